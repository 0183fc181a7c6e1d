/* SPDX-License-Identifier: Apache-2.0 */
/* The promise of the engine, bit for bit: a row's logits depend on its own history alone.  Every
 * test computes the same sequences in another way than the reference (forward_rig.h) and compares
 * all logits of all positions with memcmp. */
#include "tests/engine/forward_rig.h"
#include "engine/forward.c"

/* One sequence after the other in chunks of n. */
static void run_chunks(struct rig *rig, int32_t n, const char *what) {
    for (int i = 0; i < N_SEQS; i++)
        for (struct sequence *seq = seq_of(rig, i); seq->n_done < seq->n;) {
            span_add(rig, seq, left_of(seq, n));
            step(rig, what);
        }
}

/* All sequences together, in random order and chunks, each step a different mix. */
static void run_mixed(struct rig *rig, struct test_rng *rng, const char *what) {
    for (int32_t n_left = N_SEQS; n_left > 0;) {
        n_left = 0;
        int32_t first = test_below(rng, N_SEQS), stride = 1 + test_below(rng, N_SEQS - 1);
        for (int i = 0; i < N_SEQS; i++) { /* N_SEQS is prime: every stride visits all */
            struct sequence *seq = seq_of(rig, (first + i * stride) % N_SEQS);
            int32_t n = left_of(seq, 1 + (test_below(rng, 2) ? test_below(rng, 14) : 0));
            if (n > 0 && test_below(rng, 4) > 0)
                span_add(rig, seq, n);
            n_left += seq->n_done < seq->n;
        }
        step(rig, what);
    }
}

/* A reference that is the same for every history would pass everything else here. */
static void logits_depend_on_the_history(void **state) {
    (void)state;
    for (int kind = 0; kind < N_KINDS; kind++) {
        const struct sequence *seq = &seqs[kind][0];
        size_t n_vocab = (size_t)moge_model_info(models[kind])->n_vocab;
        for (int32_t p = 0; p < seq->n; p++) {
            for (size_t id = 0; id < n_vocab; id++)
                assert_true(isfinite(seq->logits[(size_t)p * n_vocab + id]));
            for (int32_t other = 0; other < p; other++)
                assert_memory_not_equal(seq->logits + (size_t)p * n_vocab,
                                        seq->logits + (size_t)other * n_vocab, n_vocab * 4);
        }
    }
}

static void chunks_change_nothing(void **state) {
    (void)state;
    static const int32_t chunks[] = {1, 2, 4, 5, 7, 16, 64, LEN_MAX};
    for (int kind = 0; kind < N_KINDS; kind++)
        for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
            if ((size_t)kind % TEST_SHARE != i % TEST_SHARE)
                continue;
            struct rig rig;
            char what[64];
            snprintf(what, sizeof what, "chunks of %d", chunks[i]);
            rig_open(&rig, kind, 1, moge_isa_detect());
            pages_deal(&rig, NULL);
            run_chunks(&rig, chunks[i], what);
            rig_close(&rig);
        }
}

static void neighbours_pages_and_threads_change_nothing(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(2);
    for (int kind = 0; kind < N_KINDS; kind++)
        for (int n_threads = 1; n_threads <= 3; n_threads++) {
            struct rig rig;
            char what[64];
            snprintf(what, sizeof what, "mixed batches, %d threads", n_threads);
            rig_open(&rig, kind, n_threads, moge_isa_detect());
            if (n_threads == 2)
                rig.engine->router_macs_alone = -1;
            pages_deal(&rig, &rng);
            run_mixed(&rig, &rng, what);
            rig_close(&rig);
        }
}

static void levels_change_nothing(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(3);
    for (int isa = 0; isa < MOGE_ISA_COUNT; isa++) {
        if (isa > (int)moge_isa_detect()) {
            print_message("SKIP: this processor has no level %d\n", isa);
            continue;
        }
        for (int kind = 0; kind < N_KINDS; kind++) {
            struct rig rig;
            rig_open(&rig, kind, 2, (enum moge_isa)isa);
            pages_deal(&rig, &rng);
            run_mixed(&rig, &rng, tables[isa].isa);
            rig_close(&rig);
        }
    }
}

/* Whoever takes them and whenever, units are every output once, and the next part begins anew. */
static void units_are_taken_once(void **state) {
    (void)state;
    static const int32_t widths[] = {1, 31, 32, 33, 64, 96, 500, 2048, 32000};
    for (int n_threads = 1; n_threads <= 16; n_threads++)
        for (size_t w = 0; w < sizeof widths / sizeof widths[0]; w++) {
            struct moge_engine engine = {.n_active = n_threads};
            int32_t begin = 0, end = 0, at = 0;
            for (; moge_forward_take_outputs(&engine, widths[w], &begin, &end); at = end) {
                assert_int_equal(begin, at);
                assert_true(begin < end && end - begin <= 512 && begin % MOGE_QBLOCK == 0);
            }
            assert_int_equal(at, widths[w]);
            for (int i = 1; i < n_threads; i++)
                assert_false(moge_forward_take_outputs(&engine, widths[w], &begin, &end));
            assert_int_equal(moge_forward_take(&engine), 0);
        }
}

/* Passes that are worth sharing and passes that are not, in turns, on one engine. */
static void sharing_changes_nothing(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(5);
    for (int kind = 0; kind < N_KINDS; kind++) {
        struct rig rig;
        rig_open(&rig, kind, 2, moge_isa_detect());
        rig.engine->pass_macs_alone = 8 * rig.engine->row_macs;
        rig.engine->router_macs_alone = 2 * 16 * 64; /* so are one or two rows of a router */
        pages_deal(&rig, &rng);
        run_mixed(&rig, &rng, "sharing now and then");
        rig_close(&rig);
    }
}

/* Rows with wrong guesses behind right ones; then the sequence goes on over their cells. */
static void wrong_guesses_leave_no_trace(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(4);
    for (int kind = 0; kind < N_KINDS; kind++) {
        struct rig rig;
        int32_t n_vocab = moge_model_info(models[kind])->n_vocab;
        rig_open(&rig, kind, 2, moge_isa_detect());
        pages_deal(&rig, &rng);
        struct sequence *seq = seq_of(&rig, 0);
        int32_t truth[LEN_MAX + MOGE_DRAFT_LEN_MAX + 1];
        memcpy(truth, seq->tokens, sizeof truth);
        while (seq->n_done < seq->n) {
            int32_t right = test_below(&rng, 4), wrong = test_below(&rng, 9);
            int32_t n_right = left_of(seq, 1 + right);
            if (seq->n_done + n_right + wrong > LEN_MAX)
                wrong = 0;
            for (int32_t i = 0; i < wrong; i++)
                seq->tokens[seq->n_done + n_right + i] = test_below(&rng, n_vocab);
            span_add(&rig, seq, n_right + wrong);
            assert_int_equal(moge_engine_forward(rig.engine, &rig.batch), 0);
            compare_rows(&rig, &rig.spans[0], seq, n_right, "guessing");
            rig.batch.n_spans = 0;
            memcpy(seq->tokens, truth, sizeof truth);
            seq->n_done += n_right;
        }
        rig_close(&rig);
    }
}

/* Two sequences with one prefix share its full pages. */
static void shared_pages_serve_both(void **state) {
    (void)state;
    struct rig rig;
    rig_open(&rig, 0, 2, moge_isa_detect());
    pages_deal(&rig, NULL);
    struct sequence *seq = seq_of(&rig, 0), twin = *seq;
    span_add(&rig, seq, 50);
    step(&rig, "prefix");
    twin.n_done = 48;
    for (int32_t p = 3; p < N_CONTEXT / MOGE_PAGE_TOKENS; p++)
        twin.pages[p] = seq_of(&rig, 1)->pages[p - 3];
    span_add(&rig, &twin, twin.n - 48);
    span_add(&rig, seq, seq->n - 50);
    step(&rig, "shared prefix");
    rig_close(&rig);
}

static void only_wanted_rows_have_logits(void **state) {
    (void)state;
    struct rig rig;
    rig_open(&rig, 0, 2, moge_isa_detect());
    pages_deal(&rig, NULL);
    span_add(&rig, seq_of(&rig, 0), 40);
    span_add(&rig, seq_of(&rig, 1), 1);
    rig.spans[0].n_logits = 2;
    step(&rig, "last two rows");
    assert_int_equal(moge_engine_last(rig.engine)->n_rows, 41);
    assert_int_equal(moge_engine_last(rig.engine)->n_logits, 3);
    span_add(&rig, seq_of(&rig, 0), 20);
    rig.spans[0].n_logits = 0;
    step(&rig, "none");
    assert_int_equal(moge_engine_last(rig.engine)->n_logits, 0);
    span_add(&rig, seq_of(&rig, 0), 40);
    step(&rig, "after none");
    rig_close(&rig);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_depend_on_the_history),
        cmocka_unit_test(chunks_change_nothing),
        cmocka_unit_test(neighbours_pages_and_threads_change_nothing),
        cmocka_unit_test(levels_change_nothing),
        cmocka_unit_test(units_are_taken_once),
        cmocka_unit_test(sharing_changes_nothing),
        cmocka_unit_test(wrong_guesses_leave_no_trace),
        cmocka_unit_test(shared_pages_serve_both),
        cmocka_unit_test(only_wanted_rows_have_logits),
    };
    return cmocka_run_group_tests(tests, references_make, references_free);
}
