/* SPDX-License-Identifier: Apache-2.0 */
/* A drafter that takes time and a lookup that takes none, together, in a world where it is known
 * how often each is right: every decided token is 1, a guess that is right is 1 too. */
#include "tests/test.h"
#include "draft/cost.c"
#include "draft/draft.c"
#include "draft/match.c"
#include "draft/policy.c"

#define BATCH_MAX 8
#define CONTEXT   40000

static struct world {
    double step_ns, row_ns, round_ns, guess_row_ns;
    double drafter_right, lookup_right; /* probabilities */
    double match; /* share of the text, in stretches of 64 tokens, that was there before */
    int32_t match_len;
    bool only_after_guess; /* a lookup finds nothing before the drafter has guessed */
} world;

static int64_t clock_ns;
static struct test_rng rng;
static int32_t n_rounds_run;

static int64_t now(void) {
    return clock_ns;
}

static bool chance(double p) {
    return (double)(test_u64(&rng) >> 11) / (double)(1ull << 53) < p;
}

static void sim_guess(void *self, struct moge_span *const *spans, const int32_t *want,
                      int32_t n_spans) {
    (void)self;
    int32_t n_rounds = 0, n_rows = 0;
    for (int32_t i = 0; i < n_spans; i++) {
        struct moge_span *span = spans[i];
        int32_t n = want[i] - span->n_guess;
        assert_true(n > 0);
        assert_true((span->drafters & (int)MOGE_DRAFTERS_MODEL) || !span->drafters);
        n_rows += n;
        n_rounds = n > n_rounds ? n : n_rounds;
        while (span->n_guess < want[i])
            span->tokens[span->n_known + span->n_guess++] = chance(world.drafter_right) ? 1 : 2;
    }
    n_rounds_run += n_rounds;
    clock_ns += (int64_t)(n_rounds * world.round_ns + n_rows * world.guess_row_ns);
}

static bool was_there_before(int32_t position) {
    return position / 64 % 10 < (int32_t)(10 * world.match + 0.5);
}

static void sim_look(void *self, const struct moge_span *span, int32_t n_max,
                     struct moge_lookup *out) {
    (void)self;
    assert_true((span->drafters & (int)MOGE_DRAFTERS_NGRAM) || !span->drafters);
    *out = (struct moge_lookup){.n_known = span->n_known + span->n_guess,
                                .match_len = world.match_len};
    if ((world.only_after_guess && span->n_guess == 0) || !was_there_before(out->n_known))
        return;
    for (; out->n < n_max; out->n++)
        out->tokens[out->n] =
            was_there_before(out->n_known + out->n) && chance(world.lookup_right) ? 1 : 3;
}

static void sim_forget(void *self, int32_t slot) {
    (void)self;
    (void)slot;
}

static void sim_free(void *self) {
    (void)self;
}

static const struct moge_drafter_ops drafter_ops = {
    .name = "drafter", .guess = sim_guess, .forget = sim_forget, .free = sim_free};
static const struct moge_drafter_ops lookup_ops = {
    .name = "lookup", .look = sim_look, .forget = sim_forget, .free = sim_free};

static struct run {
    struct moge_draft *draft;
    struct moge_batch batch;
    struct moge_span spans[BATCH_MAX];
    int32_t tokens[BATCH_MAX][CONTEXT + 64];
    int32_t n_known[BATCH_MAX];
    int32_t n_by_lookup, n_by_drafter;
} run;

static void run_init(void) {
    struct moge_err err;
    memset(&run, 0, sizeof run);
    clock_ns = 1;
    rng = test_rng_init(11);
    n_rounds_run = 0;
    struct moge_draft_options options = {.drafter = {&drafter_ops, NULL},
                                         .lookup = {&lookup_ops, NULL},
                                         .n_slots = BATCH_MAX,
                                         .draft_len_max = MOGE_DRAFT_LEN_MAX,
                                         .now_ns = now};
    TEST_OK(moge_draft_new(&run.draft, &options, &err), err);
    for (int32_t i = 0; i < BATCH_MAX; i++)
        run.n_known[i] = 10;
    run.batch = (struct moge_batch){.spans = run.spans,
                                    .n_spans_cap = BATCH_MAX,
                                    .n_rows_cap = 256,
                                    .n_logits_cap = 256,
                                    .n_vocab = 10};
}

static struct moge_span span_of(int32_t i, enum moge_spec_mode mode, int32_t len,
                                enum moge_drafters drafters) {
    return (struct moge_span){.tokens = run.tokens[i],
                              .slot = i,
                              .pos = run.n_known[i] - 1,
                              .n_rows = 1,
                              .n_known = run.n_known[i],
                              .n_logits = 1,
                              .guess_max = MOGE_DRAFT_LEN_MAX,
                              .spec_mode = mode,
                              .spec_len = len,
                              .drafters = drafters};
}

/* Counts who guessed, decides what follows, and lets the policy learn; returns the tokens. */
static int32_t run_decide(void) {
    int32_t n_out = 0;
    for (int32_t i = 0; i < run.batch.n_spans; i++) {
        struct moge_span *span = &run.spans[i];
        assert_int_equal(span->by_ngram >> span->n_guess, 0);
        assert_int_equal(span->n_rows, 1 + span->n_guess);
        assert_int_equal(span->n_logits, 1 + span->n_guess);
        for (int32_t j = 0; j < span->n_guess; j++) {
            bool looked_up = moge_span_is_by_ngram(span, j);
            run.n_by_lookup += looked_up;
            run.n_by_drafter += !looked_up;
            assert_true(span->tokens[span->n_known + j] != (looked_up ? 2 : 3));
        }
        while (span->n_accepted < span->n_guess &&
               span->tokens[span->n_known + span->n_accepted] == 1)
            span->n_accepted++;
        span->n_out = span->n_accepted + 1;
        for (int32_t j = 0; j < span->n_out; j++)
            span->tokens[span->n_known + j] = 1;
        run.n_known[i] += span->n_out;
        n_out += span->n_out;
    }
    int64_t ns = (int64_t)(world.step_ns + world.row_ns * moge_batch_rows(&run.batch));
    clock_ns += ns;
    moge_draft_observe(run.draft, &run.batch, ns);
    return n_out;
}

static int32_t run_step(int32_t n_spans, enum moge_spec_mode mode, int32_t len,
                        enum moge_drafters drafters) {
    run.batch.n_spans = n_spans;
    for (int32_t i = 0; i < n_spans; i++) {
        if (run.n_known[i] > CONTEXT - 64) /* as a new request */
            run.n_known[i] = 10;
        run.spans[i] = span_of(i, mode, len, drafters);
    }
    moge_draft_propose(run.draft, &run.batch);
    return run_decide();
}

/* Tokens per simulated second, from the start. */
static double rate(int32_t n_spans, enum moge_spec_mode mode, enum moge_drafters drafters,
                   int32_t n_steps) {
    run_init();
    int64_t n_out = 0;
    for (int32_t i = 0; i < n_steps; i++)
        n_out += run_step(n_spans, mode, 0, drafters);
    moge_draft_free(run.draft);
    return (double)n_out * 1e9 / (double)clock_ns;
}

static void world_init(double drafter_right, double lookup_right, double match) {
    world = (struct world){.step_ns = 1e6,
                           .row_ns = 2e5,
                           .round_ns = 1e5,
                           .guess_row_ns = 2e4,
                           .drafter_right = drafter_right,
                           .lookup_right = lookup_right,
                           .match = match,
                           .match_len = 5};
}

/* Whatever the text: as fast as the better of the two, and as no guesses at all. */
static void both_are_as_fast_as_the_better_one(void **state) {
    (void)state;
    const double rights[] = {0.05, 0.4, 0.7, 0.95}, matches[] = {0.1, 0.5, 1};
    const int32_t batches[] = {1, 4};
    for (int d = 0; d < 4; d++)
        for (int l = 0; l < 4; l++)
            for (int m = 0; m < 3; m++)
                for (int b = 0; b < 2; b++) {
                    world_init(rights[d], rights[l], matches[m]);
                    double off = rate(batches[b], MOGE_SPEC_OFF, MOGE_DRAFTERS_ANY, 300);
                    double model = rate(batches[b], MOGE_SPEC_AUTO, MOGE_DRAFTERS_MODEL, 1500);
                    double lookup = rate(batches[b], MOGE_SPEC_AUTO, MOGE_DRAFTERS_NGRAM, 1500);
                    double both = rate(batches[b], MOGE_SPEC_AUTO, MOGE_DRAFTERS_BOTH, 1500);
                    double best = model > lookup ? model : lookup;
                    if (getenv("MOGE_VERBOSE"))
                        print_message("batch %d drafter %.2f lookup %.2f match %.1f: off %.0f, "
                                      "model %.2f, lookup %.2f, both %.2f\n",
                                      batches[b], rights[d], rights[l], matches[m], off,
                                      model / off, lookup / off, both / off);
                    if (both < 0.985 * off || both < 0.96 * best)
                        fail_msg("batch %d, drafter %.2f, lookup %.2f, match %.1f: off %.1f, model "
                                 "%.1f, lookup %.1f, both %.1f",
                                 batches[b], rights[d], rights[l], matches[m], off, model, lookup,
                                 both);
                }
}

/* Half the time there is something to look up; the drafter fills the other half. */
static void together_they_beat_either(void **state) {
    (void)state;
    world_init(0.8, 0.95, 0.5);
    double model = rate(1, MOGE_SPEC_AUTO, MOGE_DRAFTERS_MODEL, 3000);
    double lookup = rate(1, MOGE_SPEC_AUTO, MOGE_DRAFTERS_NGRAM, 3000);
    double both = rate(1, MOGE_SPEC_AUTO, MOGE_DRAFTERS_ANY, 3000);
    if (both < 1.05 * model || both < 1.05 * lookup)
        fail_msg("model %.0f, lookup %.0f, both %.0f", model, lookup, both);
    assert_true(run.n_by_lookup > 1000 && run.n_by_drafter > 500);
}

/* A sure lookup leaves the drafter alone, and an unsure one leaves it the work. */
static void the_more_likely_for_the_price_guesses(void **state) {
    (void)state;
    world_init(0.9, 0.95, 1);
    rate(1, MOGE_SPEC_AUTO, MOGE_DRAFTERS_BOTH, 500);
    assert_true(run.n_by_lookup > 500);
    assert_true(n_rounds_run < 100);
    world_init(0.9, 0.05, 1);
    rate(1, MOGE_SPEC_AUTO, MOGE_DRAFTERS_BOTH, 500);
    assert_true(run.n_by_drafter > 1000);
    assert_true(run.n_by_lookup < 100);
}

static void a_request_gets_whom_it_asks_for(void **state) {
    (void)state;
    world_init(0.8, 0.8, 1);
    for (int mode = MOGE_SPEC_FIXED; mode <= MOGE_SPEC_AUTO; mode++) {
        run_init();
        for (int32_t i = 0; i < 100; i++)
            run_step(2, (enum moge_spec_mode)mode, 4, MOGE_DRAFTERS_MODEL);
        assert_true(run.n_by_lookup == 0 && run.n_by_drafter > 100);
        moge_draft_free(run.draft);
        run_init();
        for (int32_t i = 0; i < 100; i++)
            run_step(2, (enum moge_spec_mode)mode, 4, MOGE_DRAFTERS_NGRAM);
        assert_true(run.n_by_lookup > 100 && run.n_by_drafter == 0 && n_rounds_run == 0);
        moge_draft_free(run.draft);
    }
}

/* What the drafter has begun is gone on with for nothing. */
static void a_lookup_takes_a_chain_over(void **state) {
    (void)state;
    world_init(0.7, 0.95, 1);
    world.only_after_guess = true;
    run_init();
    for (int32_t i = 0; i < 200; i++)
        run_step(1, MOGE_SPEC_FIXED, 4, MOGE_DRAFTERS_BOTH);
    run.n_by_drafter = run.n_by_lookup = n_rounds_run = 0;
    for (int32_t i = 0; i < 200; i++)
        run_step(1, MOGE_SPEC_FIXED, 4, MOGE_DRAFTERS_BOTH);
    assert_int_equal(run.n_by_drafter, 200);
    assert_int_equal(run.n_by_lookup, 600);
    assert_int_equal(n_rounds_run, 200);
    moge_draft_free(run.draft);
}

/* Lookups are compared with the text even when none is offered: a text that begins to repeat itself
 * is noticed within a few tokens. */
static void a_change_of_the_text_is_followed(void **state) {
    (void)state;
    world_init(0.05, 0.02, 1);
    run_init();
    for (int32_t i = 0; i < 400; i++)
        run_step(1, MOGE_SPEC_AUTO, 0, MOGE_DRAFTERS_BOTH);
    run.n_by_lookup = 0;
    for (int32_t i = 0; i < 100; i++)
        run_step(1, MOGE_SPEC_AUTO, 0, MOGE_DRAFTERS_BOTH);
    assert_true(run.n_by_lookup < 10);
    world.lookup_right = 0.95;
    int32_t n_out = 0;
    while (n_out < 50)
        n_out += run_step(1, MOGE_SPEC_AUTO, 0, MOGE_DRAFTERS_BOTH);
    run.n_by_lookup = 0;
    for (int32_t i = 0; i < 20; i++)
        run_step(1, MOGE_SPEC_AUTO, 0, MOGE_DRAFTERS_BOTH);
    if (run.n_by_lookup < 40)
        fail_msg("only %d lookups were offered", run.n_by_lookup);
    moge_draft_free(run.draft);
}

/* Requests of every kind in one batch, with little room. */
static void caps_hold(void **state) {
    (void)state;
    struct test_rng choice = test_rng_init(3);
    world_init(0.7, 0.7, 0.6);
    run_init();
    for (int32_t round = 0; round < 3000; round++) {
        struct moge_batch *batch = &run.batch;
        batch->n_spans = 1 + test_below(&choice, BATCH_MAX);
        for (int32_t i = 0; i < batch->n_spans; i++) {
            if (run.n_known[i] > CONTEXT - 64 || test_below(&choice, 50) == 0) {
                run.n_known[i] = 10;
                moge_draft_forget(run.draft, i);
            }
            run.spans[i] = span_of(i, (enum moge_spec_mode)test_below(&choice, 3),
                                   1 + test_below(&choice, MOGE_DRAFT_LEN_MAX),
                                   (enum moge_drafters)test_below(&choice, 4));
            run.spans[i].guess_max = test_below(&choice, MOGE_DRAFT_LEN_MAX + 1);
        }
        batch->n_rows_cap = batch->n_spans + test_below(&choice, 40);
        batch->n_logits_cap = batch->n_spans + test_below(&choice, 40);
        moge_draft_propose(run.draft, batch);
        assert_true(moge_batch_rows(batch) <= batch->n_rows_cap);
        assert_true(moge_batch_logits(batch) <= batch->n_logits_cap);
        for (int32_t i = 0; i < batch->n_spans; i++)
            assert_true(run.spans[i].n_guess <= run.spans[i].guess_max);
        run_decide();
    }
    struct moge_draft_stats stats;
    moge_draft_stats(run.draft, &stats);
    assert_true(stats.ngram_offered[0] > 0 && stats.ngram_offered[0] < stats.offered[0]);
    assert_true(stats.ngram_accepted[0] > 0 && stats.ngram_accepted[0] < stats.accepted[0]);
    moge_draft_free(run.draft);
}

static void rates_follow_what_happens(void **state) {
    (void)state;
    struct moge_matches all = {0};
    struct moge_own_matches own = {0}, other = {0};
    for (int32_t len = 2; len < 40; len++) /* longer is better, before anything is known */
        assert_true(moge_match_rate(&all, &own, len + 1) >= moge_match_rate(&all, &own, len));
    double before = moge_match_rate(&all, &own, 30);
    for (int i = 0; i < 40; i++)
        moge_match_learn(&all, &own, 3, true);
    assert_true(moge_match_rate(&all, &own, 3) > 0.8);
    assert_true(moge_match_rate(&all, &other, 3) > 0.6); /* everybody's experience */
    assert_true(moge_match_rate(&all, &own, 30) > before);
    assert_true(moge_match_rate(&all, &own, 4) > moge_match_rate(&all, &other, 4));
    for (int i = 0; i < 40; i++)
        moge_match_learn(&all, &own, 3, false);
    assert_true(moge_match_rate(&all, &own, 3) < 0.3);
    assert_true(moge_match_rate(&all, &own, INT32_MAX) <= 0.99);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(both_are_as_fast_as_the_better_one),
                                       cmocka_unit_test(together_they_beat_either),
                                       cmocka_unit_test(the_more_likely_for_the_price_guesses),
                                       cmocka_unit_test(a_request_gets_whom_it_asks_for),
                                       cmocka_unit_test(a_lookup_takes_a_chain_over),
                                       cmocka_unit_test(a_change_of_the_text_is_followed),
                                       cmocka_unit_test(caps_hold),
                                       cmocka_unit_test(rates_follow_what_happens)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
