/* SPDX-License-Identifier: Apache-2.0 */
/* The promise of the engine, bit for bit: a row's logits depend on its own history alone.
 *
 * The reference is the slowest way there is: every sequence by itself, one token at a time, one
 * thread, scalar kernels, pages in order.  Every test then computes the same sequences in another
 * way and compares all logits of all positions with memcmp. */
#include "tests/test.h"
#include "engine/engine.c"

#include "moge/kv.h"

#define N_SEQS    17
#define LEN_MAX   100
#define N_CONTEXT 128
#define N_PAGES   160 /* more than N_SEQS * ceil(LEN_MAX / 16), so that tables can be scattered */
#define N_ROWS    256

struct kind {
    const char *name, *path;
    enum moge_weights weights;
    enum moge_kv_type kv_type;
};
#define TARGET "tests/golden/tiny-target.gguf"
#define DRAFT  "tests/golden/tiny-draft.gguf"
static const struct kind kinds[] = {
    {"MoGE q8_0", TARGET, MOGE_WEIGHTS_Q8_0, MOGE_KV_F16},
    {"MoGE q4_0", TARGET, MOGE_WEIGHTS_Q4_0, MOGE_KV_F16},
    {"MoGE f16", TARGET, MOGE_WEIGHTS_AS_STORED, MOGE_KV_F16},
    {"MoGE f32, KV f32", TARGET, MOGE_WEIGHTS_F32, MOGE_KV_F32},
    {"dense q8_0", DRAFT, MOGE_WEIGHTS_Q8_0, MOGE_KV_F16},
    {"dense f16", DRAFT, MOGE_WEIGHTS_AS_STORED, MOGE_KV_F16},
};
#define N_KINDS ((int)(sizeof kinds / sizeof kinds[0]))

struct sequence {
    int32_t n, n_done;
    int32_t tokens[LEN_MAX + MOGE_DRAFT_LEN_MAX + 1];
    int32_t pages[N_CONTEXT / MOGE_PAGE_TOKENS];
    float *logits; /* [n, n_vocab] the reference */
};

static struct moge_model *models[N_KINDS];
static struct sequence seqs[N_KINDS][N_SEQS];
static struct moge_kernels tables[MOGE_ISA_COUNT];

/* ---- a rig: an engine with so many threads at one level ---- */

struct rig {
    int kind;
    struct moge_threads *threads;
    struct moge_engine *engine;
    struct moge_batch batch;
    struct moge_span spans[N_SEQS];
    struct sequence *of[N_SEQS]; /* whose span it is */
};

static void rig_open(struct rig *rig, int kind, int n_threads, enum moge_isa isa) {
    struct moge_err err;
    memset(rig, 0, sizeof *rig);
    rig->kind = kind;
    TEST_OK(moge_threads_new(&rig->threads, n_threads, &err), err);
    struct moge_engine_options options = {.n_pages = N_PAGES,
                                          .n_rows_max = N_ROWS,
                                          .n_logits_max = N_ROWS,
                                          .n_context_max = N_CONTEXT,
                                          .kv_type = kinds[kind].kv_type};
    TEST_OK(moge_engine_new(&rig->engine, models[kind], rig->threads, &options, &err), err);
    rig->engine->kernels = &tables[isa];
    /* These models are too small to be worth sharing out; share them all the same. */
    rig->engine->pass_macs_alone = n_threads == 1 ? INT64_MAX : -1;
    /* Cells never written hold NaN: reading one shows. */
    memset(rig->engine->kv, 0xff, rig->engine->kv_arena.cap_bytes);
    rig->batch.spans = rig->spans;
    rig->batch.n_spans_cap = N_SEQS;
    for (int i = 0; i < N_SEQS; i++)
        seqs[kind][i].n_done = 0;
}

static void rig_close(struct rig *rig) {
    moge_engine_free(rig->engine);
    moge_threads_free(rig->threads);
}

static struct sequence *seq_of(const struct rig *rig, int i) {
    return &seqs[rig->kind][i];
}

/* Gives every sequence pages of its own, in order or scattered over the arena. */
static void pages_deal(struct rig *rig, struct test_rng *rng) {
    int32_t ids[N_PAGES], next = 0;
    for (int32_t i = 0; i < N_PAGES; i++)
        ids[i] = i;
    for (int32_t i = N_PAGES - 1; rng && i > 0; i--) {
        int32_t j = test_below(rng, i + 1), t = ids[i];
        ids[i] = ids[j];
        ids[j] = t;
    }
    for (int i = 0; i < N_SEQS; i++)
        for (int32_t p = 0; p < moge_kv_pages_for(LEN_MAX); p++)
            seq_of(rig, i)->pages[p] = ids[next++];
}

/* Adds a span of n rows of seq to the batch, logits wanted for all. */
static void span_add(struct rig *rig, struct sequence *seq, int32_t n) {
    rig->of[rig->batch.n_spans] = seq;
    rig->spans[rig->batch.n_spans++] = (struct moge_span){.tokens = seq->tokens,
                                                          .pages = seq->pages,
                                                          .pos = seq->n_done,
                                                          .n_rows = n,
                                                          .n_known = seq->n,
                                                          .n_logits = n};
}

static const float *logits_at(const struct rig *rig, int32_t row) {
    return rig->batch.logits + (size_t)row * (size_t)rig->batch.n_vocab;
}

static void compare_rows(const struct rig *rig, const struct moge_span *span,
                         const struct sequence *seq, int32_t n_rows, const char *what) {
    size_t n_vocab = (size_t)rig->batch.n_vocab;
    int32_t first = span->pos + span->n_rows - span->n_logits;
    for (int32_t i = 0; i < n_rows; i++) {
        const float *want = seq->logits + (size_t)(first + i) * n_vocab;
        const float *got = logits_at(rig, span->logits_row + i);
        if (memcmp(want, got, n_vocab * sizeof *got) == 0)
            continue;
        size_t id = 0;
        while (memcmp(&want[id], &got[id], sizeof *got) == 0)
            id++;
        fail_msg("%s, %s: sequence %d, position %d, logit of token %zu is %.9g, alone %.9g",
                 kinds[rig->kind].name, what, (int)(seq - seqs[rig->kind]), first + i, id,
                 (double)got[id], (double)want[id]);
    }
}

/* Runs the batch, compares every wanted row with the reference, advances the sequences. */
static void step(struct rig *rig, const char *what) {
    assert_int_equal(moge_engine_forward(rig->engine, &rig->batch), 0);
    for (int32_t i = 0; i < rig->batch.n_spans; i++) {
        compare_rows(rig, &rig->spans[i], rig->of[i], rig->spans[i].n_logits, what);
        rig->of[i]->n_done += rig->spans[i].n_rows;
    }
    rig->batch.n_spans = 0;
}

static int32_t left_of(const struct sequence *seq, int32_t n) {
    return seq->n - seq->n_done < n ? seq->n - seq->n_done : n;
}

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

/* ---- the reference ---- */

static void reference_make(int kind, struct test_rng *rng) {
    struct rig rig;
    size_t n_vocab = (size_t)moge_model_info(models[kind])->n_vocab;
    rig_open(&rig, kind, 1, MOGE_ISA_SCALAR);
    for (int i = 0; i < N_SEQS; i++) {
        struct sequence *seq = seq_of(&rig, i);
        seq->n = i == 0 ? LEN_MAX : i == 1 ? 1 : 1 + test_below(rng, LEN_MAX / 2);
        for (int32_t p = 0; p < seq->n; p++)
            seq->tokens[p] = test_below(rng, (int32_t)n_vocab);
        seq->logits = malloc((size_t)seq->n * n_vocab * sizeof(float));
    }
    pages_deal(&rig, NULL);
    for (int i = 0; i < N_SEQS; i++)
        for (struct sequence *seq = seq_of(&rig, i); seq->n_done < seq->n; seq->n_done++) {
            rig.batch.n_spans = 0;
            span_add(&rig, seq, 1);
            assert_int_equal(moge_engine_forward(rig.engine, &rig.batch), 0);
            memcpy(seq->logits + (size_t)seq->n_done * n_vocab, rig.batch.logits,
                   n_vocab * sizeof(float));
        }
    rig_close(&rig);
}

static int references_make(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(1);
    for (int isa = 0; isa < MOGE_ISA_COUNT; isa++)
        moge_kernels_fill(&tables[isa],
                          isa <= (int)moge_isa_detect() ? (enum moge_isa)isa : moge_isa_detect());
    for (int kind = 0; kind < N_KINDS; kind++) {
        struct moge_err err;
        char path[512];
        snprintf(path, sizeof path, MOGE_SOURCE_DIR "/%s", kinds[kind].path);
        struct moge_model_options options = {.weights = kinds[kind].weights};
        TEST_OK(moge_model_open(&models[kind], path, &options, &err), err);
        reference_make(kind, &rng);
    }
    return 0;
}

static int references_free(void **state) {
    (void)state;
    for (int kind = 0; kind < N_KINDS; kind++) {
        for (int i = 0; i < N_SEQS; i++)
            free(seqs[kind][i].logits);
        moge_model_close(models[kind]);
    }
    return 0;
}

/* ---- the promise ---- */

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

static void counters_count(void **state) {
    (void)state;
    struct rig rig;
    rig_open(&rig, 0, 2, moge_isa_detect());
    pages_deal(&rig, NULL);
    const struct moge_model_info *info = moge_model_info(models[0]);
    const struct moge_forward_stats *stats = moge_engine_last(rig.engine);
    span_add(&rig, seq_of(&rig, 0), 1);
    step(&rig, "one row");
    int64_t one = stats->weight_bytes;
    assert_int_equal(stats->experts_touched, info->n_layers * info->n_experts_used);
    span_add(&rig, seq_of(&rig, 0), 90);
    step(&rig, "ninety rows");
    assert_true(stats->experts_touched > info->n_layers * info->n_experts_used);
    assert_true(stats->experts_touched <= info->n_layers * info->n_experts);
    assert_true(stats->weight_bytes > one && stats->weight_bytes <= info->weight_bytes);
    rig_close(&rig);
}

/* ---- what is refused, and that nothing was written then ---- */

static uint64_t hash_of(const void *data, size_t n) {
    const unsigned char *bytes = data;
    uint64_t h = 14695981039346656037u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ bytes[i]) * 1099511628211u;
    return h;
}

static void refuse(struct rig *rig, int code) {
    size_t n_kv = (size_t)moge_engine_page_bytes(models[rig->kind]) * N_PAGES;
    uint64_t kv = hash_of(rig->engine->kv, n_kv);
    struct moge_batch before = rig->batch;
    assert_int_equal(moge_engine_forward(rig->engine, &rig->batch), code);
    assert_true(hash_of(rig->engine->kv, n_kv) == kv);
    assert_memory_equal(&before, &rig->batch, sizeof before);
}

static void bad_batches_are_refused(void **state) {
    (void)state;
    struct rig rig;
    rig_open(&rig, 0, 2, moge_isa_detect());
    pages_deal(&rig, NULL);
    int32_t n_vocab = moge_model_info(models[0])->n_vocab;
    struct sequence *seq = seq_of(&rig, 0);
    span_add(&rig, seq_of(&rig, 1), 1);
    span_add(&rig, seq, 20);
    struct moge_span *span = &rig.spans[1], good = *span;
    static const struct {
        size_t offset;
        int32_t value;
    } bad[] = {
        {offsetof(struct moge_span, pos), -1},
        {offsetof(struct moge_span, pos), N_CONTEXT - 19},
        {offsetof(struct moge_span, pos), INT32_MAX},
        {offsetof(struct moge_span, n_rows), 0},
        {offsetof(struct moge_span, n_rows), -3},
        {offsetof(struct moge_span, n_rows), N_CONTEXT + 1},
        {offsetof(struct moge_span, n_rows), INT32_MAX},
        {offsetof(struct moge_span, n_logits), -1},
        {offsetof(struct moge_span, n_logits), 21},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        memcpy((char *)span + bad[i].offset, &bad[i].value, sizeof bad[i].value);
        refuse(&rig, MOGE_INVALID);
        *span = good;
    }
    static const int32_t ids[] = {-1, INT32_MIN, INT32_MAX};
    for (size_t i = 0; i < 4; i++) {
        int32_t token = seq->tokens[19], page = seq->pages[1];
        seq->tokens[19] = i < 3 ? ids[i] : n_vocab;
        refuse(&rig, MOGE_INVALID);
        seq->tokens[19] = token;
        seq->pages[1] = i < 3 ? ids[i] : N_PAGES;
        refuse(&rig, MOGE_INVALID);
        seq->pages[1] = page;
    }
    step(&rig, "good again");
    rig_close(&rig);
}

static void too_much_is_refused(void **state) {
    (void)state;
    struct rig rig;
    struct moge_err err;
    rig_open(&rig, 0, 1, moge_isa_detect());
    pages_deal(&rig, NULL);
    moge_engine_free(rig.engine);
    struct moge_engine_options options = {
        .n_pages = N_PAGES, .n_rows_max = 8, .n_logits_max = 3, .n_context_max = N_CONTEXT};
    TEST_OK(moge_engine_new(&rig.engine, models[0], rig.threads, &options, &err), err);
    span_add(&rig, seq_of(&rig, 0), 9);
    rig.spans[0].n_logits = 1;
    refuse(&rig, MOGE_LIMIT);
    rig.spans[0].n_rows = 8;
    rig.spans[0].n_logits = 4;
    refuse(&rig, MOGE_LIMIT);
    rig.spans[0].n_logits = 3;
    step(&rig, "just fits");
    step(&rig, "nothing to do");
    rig_close(&rig);
}

static void options_are_checked(void **state) {
    (void)state;
    struct moge_err err = {0};
    struct moge_threads *threads;
    struct moge_engine *engine = NULL;
    TEST_OK(moge_threads_new(&threads, 1, &err), err);
    const struct moge_engine_options good = {1, 1, 1, 1, MOGE_KV_F16};
    for (int i = 0; i < 10; i++) {
        struct moge_engine_options options = good;
        int32_t *fields[] = {&options.n_pages, &options.n_rows_max, &options.n_logits_max,
                             &options.n_context_max};
        if (i < 8)
            *fields[i % 4] = i < 4 ? 0 : -5;
        if (i == 8)
            options.n_context_max = moge_model_info(models[0])->n_context + 1;
        if (i == 9)
            options.kv_type = (enum moge_kv_type)7;
        err = (struct moge_err){0};
        assert_int_equal(moge_engine_new(&engine, models[0], threads, &options, &err),
                         MOGE_INVALID);
        assert_true(err.text[0] != '\0');
        assert_null(engine);
    }
    moge_engine_free(NULL);
    moge_threads_free(threads);
}

/* The arena is sized by one formula and filled by other code: odd shapes must fit too. */
static void every_size_has_room(void **state) {
    (void)state;
    struct moge_err err;
    static const int32_t sizes[] = {1, 2, 33, 1000};
    for (int kind = 0; kind < N_KINDS; kind++)
        for (int i = 0; i < 16; i++) {
            struct moge_threads *threads;
            struct moge_engine *engine;
            int n_threads = i % 3 == 0 ? 1 : i % 3 == 1 ? 3 : 7;
            TEST_OK(moge_threads_new(&threads, n_threads, &err), err);
            struct moge_engine_options options = {.n_pages = 1 + i,
                                                  .n_rows_max = sizes[i % 4],
                                                  .n_logits_max = sizes[i / 4 % 4],
                                                  .n_context_max = 1 + i * 7 / 16 * 16,
                                                  .kv_type = kinds[kind].kv_type};
            TEST_OK(moge_engine_new(&engine, models[kind], threads, &options, &err), err);
            moge_engine_free(engine);
            moge_threads_free(threads);
        }
}

/* ---- no allocation inside a pass ---- */

static _Atomic int n_allocations;
void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);

void *__wrap_malloc(size_t n) {
    n_allocations++;
    return __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size) {
    n_allocations++;
    return __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n) {
    n_allocations++;
    return __real_realloc(p, n);
}

static void a_pass_allocates_nothing(void **state) {
    (void)state;
    for (int kind = 0; kind < N_KINDS; kind++) {
        struct rig rig;
        rig_open(&rig, kind, 2, moge_isa_detect());
        pages_deal(&rig, NULL);
        for (int round = 0; round < 6; round++) {
            span_add(&rig, seq_of(&rig, 0), round % 2 == 0 ? 1 : 14);
            int before = n_allocations;
            assert_int_equal(moge_engine_forward(rig.engine, &rig.batch), 0);
            assert_int_equal(n_allocations, before);
            rig.batch.n_spans = 0;
        }
        rig_close(&rig);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_depend_on_the_history),
        cmocka_unit_test(chunks_change_nothing),
        cmocka_unit_test(neighbours_pages_and_threads_change_nothing),
        cmocka_unit_test(levels_change_nothing),
        cmocka_unit_test(sharing_changes_nothing),
        cmocka_unit_test(wrong_guesses_leave_no_trace),
        cmocka_unit_test(shared_pages_serve_both),
        cmocka_unit_test(only_wanted_rows_have_logits),
        cmocka_unit_test(counters_count),
        cmocka_unit_test(bad_batches_are_refused),
        cmocka_unit_test(too_much_is_refused),
        cmocka_unit_test(options_are_checked),
        cmocka_unit_test(every_size_has_room),
        cmocka_unit_test(a_pass_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, references_make, references_free);
}
