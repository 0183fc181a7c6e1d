/* SPDX-License-Identifier: Apache-2.0 */
/* The policy in a world whose costs and acceptance are known: a simulated clock, a step that takes
 * t(rows), a drafter that is right with given probabilities. */
#include "tests/test.h"
#include "draft/cost.c"
#include "draft/draft.c"
#include "draft/policy.c"

#define BATCH_MAX 32

struct world {
    double step_first_ns, step_row_ns; /* concave part, as MoE weights are shared: see step_ns */
    double moe_ns;
    double round_ns, row_ns;           /* of the drafter */
    double accept[MOGE_DRAFT_LEN_MAX]; /* by position */
    double noise;                      /* relative, of every measurement */
    int32_t n_prefill_rows;            /* of another request, in every step */
};

static int64_t clock_ns;
static struct world world;
static struct test_rng rng;
static int32_t n_calls, n_debt_rows;

static int64_t now(void) {
    return clock_ns;
}

static double unit(void) {
    return (double)(test_u64(&rng) >> 11) / (double)(1ull << 53);
}

static double noisy(double ns) {
    return ns * (1 + world.noise * (2 * unit() - 1));
}

/* Traffic of 64 experts in 8 groups, and arithmetic in proportion to rows. */
static double step_ns(int32_t n_rows) {
    double untouched = 1;
    for (int32_t i = 0; i < n_rows; i++)
        untouched *= 7.0 / 8;
    return world.step_first_ns + world.moe_ns * 8 * (1 - untouched) + world.step_row_ns * n_rows;
}

static void sim_guess(void *self, struct moge_span *const *spans, const int32_t *want,
                      int32_t n_spans) {
    (void)self;
    int32_t n_rounds = 0, n_rows = 0;
    for (int32_t i = 0; i < n_spans; i++) {
        spans[i]->n_guess = want[i];
        for (int32_t j = 0; j < want[i]; j++)
            spans[i]->tokens[spans[i]->n_known + j] = 1;
        n_rows += want[i];
        n_rounds = want[i] > n_rounds ? want[i] : n_rounds;
    }
    n_calls++;
    clock_ns += (int64_t)noisy(n_rounds * world.round_ns + (n_rows + n_debt_rows) * world.row_ns);
}

static int32_t sim_debt(void *self, const struct moge_span *span) {
    (void)self;
    (void)span;
    return n_debt_rows;
}

static void sim_forget(void *self, int32_t slot) {
    (void)self;
    (void)slot;
}

static void sim_free(void *self) {
    (void)self;
}

static const struct moge_drafter_ops sim_ops = {
    .name = "sim", .guess = sim_guess, .debt = sim_debt, .forget = sim_forget, .free = sim_free};

struct run {
    struct moge_draft *draft;
    struct moge_batch batch;
    struct moge_span spans[BATCH_MAX + 1];
    int32_t tokens[BATCH_MAX + 1][64];
    int32_t n_decode;
};

static void run_init(struct run *run, int32_t n_decode, int32_t draft_len_max) {
    memset(run, 0, sizeof *run);
    clock_ns = 1;
    rng = test_rng_init(7);
    n_calls = n_debt_rows = 0;
    struct moge_draft_options options = {.drafter = {&sim_ops, NULL},
                                         .n_slots = BATCH_MAX + 1,
                                         .draft_len_max = draft_len_max,
                                         .now_ns = now};
    struct moge_err err;
    TEST_OK(moge_draft_new(&run->draft, &options, &err), err);
    run->n_decode = n_decode;
    run->batch = (struct moge_batch){.spans = run->spans,
                                     .n_spans_cap = BATCH_MAX + 1,
                                     .n_rows_cap = 1024,
                                     .n_logits_cap = 512,
                                     .n_vocab = 10};
}

/* One step; returns the tokens it yielded. */
static int32_t run_step(struct run *run, enum moge_spec_mode mode, int32_t len) {
    struct moge_batch *batch = &run->batch;
    batch->n_spans = 0;
    for (int32_t i = 0; i < run->n_decode; i++)
        run->spans[batch->n_spans++] = (struct moge_span){.tokens = run->tokens[i],
                                                          .slot = i,
                                                          .pos = 9,
                                                          .n_rows = 1,
                                                          .n_known = 10,
                                                          .n_logits = 1,
                                                          .guess_max = MOGE_DRAFT_LEN_MAX,
                                                          .spec_mode = mode,
                                                          .spec_len = len};
    if (world.n_prefill_rows > 0)
        run->spans[batch->n_spans++] = (struct moge_span){.tokens = run->tokens[BATCH_MAX],
                                                          .slot = BATCH_MAX,
                                                          .n_rows = world.n_prefill_rows,
                                                          .spec_mode = mode};
    moge_draft_propose(run->draft, batch);
    int64_t forward_ns = (int64_t)noisy(step_ns(moge_batch_rows(batch)));
    clock_ns += forward_ns;
    int32_t n_out = 0;
    for (int32_t i = 0; i < run->n_decode; i++) {
        struct moge_span *span = &run->spans[i];
        while (span->n_accepted < span->n_guess && unit() < world.accept[span->n_accepted])
            span->n_accepted++;
        /* Guesses are 1; what the target says otherwise is 2, also where nothing was offered. */
        bool hit = span->n_guess == 0 && unit() < world.accept[0];
        for (int32_t j = 0; j <= span->n_accepted; j++)
            span->tokens[span->n_known + j] = j < span->n_accepted || hit ? 1 : 2;
        n_out += span->n_out = span->n_accepted + 1;
    }
    moge_draft_observe(run->draft, batch, forward_ns);
    return n_out;
}

/* Tokens per simulated second over n_steps. */
static double rate_of(struct run *run, enum moge_spec_mode mode, int32_t len, int32_t n_steps) {
    int64_t n_out = 0, begin_ns = clock_ns;
    for (int32_t i = 0; i < n_steps; i++)
        n_out += run_step(run, mode, len);
    return (double)n_out * 1e9 / (double)(clock_ns - begin_ns);
}

/* The same from the start, but for the prompts: they are computed before, in steps of several
 * sizes. */
static double rate(int32_t n_decode, enum moge_spec_mode mode, int32_t len, int32_t n_steps) {
    struct run run;
    run_init(&run, n_decode, MOGE_DRAFT_LEN_MAX);
    int32_t n_prefill_rows = world.n_prefill_rows;
    for (int32_t i = 0; i < 4; i++) {
        run.n_decode = n_decode * i / 4;
        world.n_prefill_rows = 64 - 15 * i;
        run_step(&run, mode, len);
    }
    world.n_prefill_rows = n_prefill_rows;
    run.n_decode = n_decode;
    double result = rate_of(&run, mode, len, n_steps);
    moge_draft_free(run.draft);
    return result;
}

static void world_init(double accept, double drafter_share) {
    /* 3B shape, roughly: 23 ms for one row, of which the experts are most. */
    world = (struct world){.step_first_ns = 8e6, .moe_ns = 14e6, .step_row_ns = 1e6, .noise = 0.03};
    for (int j = 0; j < MOGE_DRAFT_LEN_MAX; j++)
        world.accept[j] = accept;
    world.round_ns = drafter_share * step_ns(1) * 0.9;
    world.row_ns = drafter_share * step_ns(1) * 0.1;
}

static void never_slower_than_off_and_near_the_best_fixed_length(void **state) {
    (void)state;
    const int32_t batches[] = {1, 4, 16, 32};
    const double accepts[] = {0, 0.3, 0.6, 0.8, 0.95}, drafters[] = {0.001, 0.03, 0.2};
    for (int b = 0; b < 4; b++)
        for (int a = 0; a < 5; a++)
            for (int d = 0; d < 3; d++) {
                world_init(accepts[a], drafters[d]);
                double off = rate(batches[b], MOGE_SPEC_OFF, 0, 200), best = off;
                for (int32_t k = 1; k <= MOGE_DRAFT_LEN_MAX; k += k < 8 ? 1 : 4) {
                    double fixed =
                        rate(batches[b], MOGE_SPEC_FIXED, k, 12000 / batches[b] / 16 + 100);
                    best = fixed > best ? fixed : best;
                }
                double automatic = rate(batches[b], MOGE_SPEC_AUTO, 0, 1500);
                if (getenv("MOGE_VERBOSE"))
                    printf("batch %2d accept %.2f drafter %.3f: off %6.1f best %6.1f auto %6.1f "
                           "(%.3f of best)\n",
                           batches[b], accepts[a], drafters[d], off, best, automatic,
                           automatic / best);
                /* Trying what may be better costs most where a guess takes a fifth of a step. */
                double floor = drafters[d] > 0.1 ? 0.94 : 0.96;
                if (automatic < 0.975 * off || automatic < floor * best)
                    fail_msg("batch %d, acceptance %.2f, drafter %.3f: off %.1f, best %.1f, auto "
                             "%.1f tokens/s",
                             batches[b], accepts[a], drafters[d], off, best, automatic);
            }
}

static void prefill_in_the_same_step_does_not_make_guesses_look_free(void **state) {
    (void)state;
    world_init(0.05, 0.01);
    world.n_prefill_rows = 64;
    double off = rate(2, MOGE_SPEC_OFF, 0, 1000);
    assert_true(rate(2, MOGE_SPEC_AUTO, 0, 1000) > 0.985 * off);
}

static void follows_a_change_of_the_text(void **state) {
    (void)state;
    struct run run;
    world_init(0.95, 0.01);
    run_init(&run, 1, MOGE_DRAFT_LEN_MAX);
    for (int32_t i = 0; i < 300; i++)
        run_step(&run, MOGE_SPEC_AUTO, 0);
    assert_true(run.spans[0].n_guess >= 4);
    for (int j = 0; j < MOGE_DRAFT_LEN_MAX; j++)
        world.accept[j] = 0;
    int32_t n_guess = 0, n_out = 0;
    for (; n_out < 50; n_guess += run.spans[0].n_guess)
        n_out += run_step(&run, MOGE_SPEC_AUTO, 0);
    assert_int_equal(run.spans[0].n_guess, 0);
    assert_true(n_guess < 150);
    for (int32_t i = 0; i < 2000; i++)
        run_step(&run, MOGE_SPEC_AUTO, 0);
    /* And back again: probing must have kept an eye on it. */
    for (int j = 0; j < MOGE_DRAFT_LEN_MAX; j++)
        world.accept[j] = 0.95;
    for (n_out = 0; n_out < 800;)
        n_out += run_step(&run, MOGE_SPEC_AUTO, 0);
    n_out = 0;
    for (int32_t i = 0; i < 50; i++)
        n_out += run_step(&run, MOGE_SPEC_AUTO, 0);
    assert_true(n_out > 150);
    moge_draft_free(run.draft);
}

static void follows_a_change_of_the_cost(void **state) {
    (void)state;
    struct run run;
    world_init(0.7, 0.01);
    run_init(&run, 4, MOGE_DRAFT_LEN_MAX);
    for (int32_t i = 0; i < 300; i++)
        run_step(&run, MOGE_SPEC_AUTO, 0);
    assert_true(run.spans[0].n_guess + run.spans[1].n_guess > 0);
    /* Rows become dear: compute binds. */
    world.step_row_ns = 100e6;
    for (int32_t i = 0; i < 300; i++)
        run_step(&run, MOGE_SPEC_AUTO, 0);
    double off = rate_of(&run, MOGE_SPEC_OFF, 0, 300);
    assert_true(rate_of(&run, MOGE_SPEC_AUTO, 0, 1000) > 0.98 * off);
    struct moge_draft_stats stats;
    moge_draft_stats(run.draft, &stats);
    double expected_ns = stats.row_ns[0] + 4 * stats.row_ns[1];
    assert_true(expected_ns > 0.7 * step_ns(4) && expected_ns < 1.3 * step_ns(4));
    moge_draft_free(run.draft);
}

static void zero_is_a_real_zero(void **state) {
    (void)state;
    struct run run;
    world_init(0.9, 0.01);
    run_init(&run, 8, MOGE_DRAFT_LEN_MAX);
    for (int32_t i = 0; i < 100; i++)
        run_step(&run, MOGE_SPEC_OFF, 0);
    assert_int_equal(n_calls, 0);
    moge_draft_free(run.draft);
    world_init(0, 0.01);
    run_init(&run, 8, MOGE_DRAFT_LEN_MAX);
    for (int32_t i = 0; i < 2000; i++)
        run_step(&run, MOGE_SPEC_AUTO, 0);
    struct moge_draft_stats stats;
    moge_draft_stats(run.draft, &stats);
    assert_true(stats.len_chosen[0] > 8 * 1900);
    /* Probes, half a percent of the time. */
    assert_true(n_calls > 0 &&
                n_calls * (world.round_ns + 8 * world.row_ns) < 0.01 * (double)clock_ns);
    assert_int_equal(stats.accepted[0], 0);
    moge_draft_free(run.draft);
}

static void debt_is_priced_in(void **state) {
    (void)state;
    struct run run;
    world_init(0.95, 0.1);
    run_init(&run, 1, MOGE_DRAFT_LEN_MAX);
    for (int32_t i = 0; i < 200; i++)
        run_step(&run, MOGE_SPEC_AUTO, 0);
    assert_true(run.spans[0].n_guess > 0);
    /* A guess that must first catch up with a huge history, at a price beyond any gain. */
    world.row_ns = step_ns(1);
    for (int32_t i = 0; i < 200; i++)
        run_step(&run, MOGE_SPEC_AUTO, 0);
    n_debt_rows = 20000;
    run_step(&run, MOGE_SPEC_AUTO, 0);
    assert_int_equal(run.spans[0].n_guess, 0);
    moge_draft_free(run.draft);
}

static void limits_hold(void **state) {
    (void)state;
    world_init(0.9, 0.001);
    struct test_rng choice = test_rng_init(3);
    for (int round = 0; round < 300; round++) {
        struct run run;
        int32_t draft_len_max = 1 + test_below(&choice, MOGE_DRAFT_LEN_MAX);
        run_init(&run, 0, draft_len_max);
        for (int32_t i = 0; i < 40; i++) { /* learn that guessing pays */
            run.n_decode = 4;
            run_step(&run, i < 4 ? MOGE_SPEC_FIXED : MOGE_SPEC_AUTO, 4);
        }
        struct moge_batch *batch = &run.batch;
        batch->n_spans = 1 + test_below(&choice, BATCH_MAX);
        int32_t n_fixed_short = 0;
        for (int32_t i = 0; i < batch->n_spans; i++)
            run.spans[i] =
                (struct moge_span){.tokens = run.tokens[i],
                                   .slot = i,
                                   .pos = 9,
                                   .n_rows = 1,
                                   .n_known = 10,
                                   .n_logits = 1,
                                   .n_guess = 77,
                                   .guess_max = test_below(&choice, MOGE_DRAFT_LEN_MAX + 1),
                                   .spec_mode = (enum moge_spec_mode)test_below(&choice, 3),
                                   .spec_len = 1 + test_below(&choice, MOGE_DRAFT_LEN_MAX)};
        batch->n_rows_cap = batch->n_spans + test_below(&choice, 60);
        batch->n_logits_cap = batch->n_spans + test_below(&choice, 60);
        moge_draft_propose(run.draft, batch);
        assert_true(moge_batch_rows(batch) <= batch->n_rows_cap);
        assert_true(moge_batch_logits(batch) <= batch->n_logits_cap);
        int32_t room =
            batch->n_rows_cap < batch->n_logits_cap ? batch->n_rows_cap : batch->n_logits_cap;
        for (int32_t i = 0; i < batch->n_spans; i++) {
            const struct moge_span *span = &run.spans[i];
            int32_t most = span->guess_max < draft_len_max ? span->guess_max : draft_len_max;
            assert_in_range(span->n_guess, 0, most);
            assert_int_equal(span->n_rows, 1 + span->n_guess);
            assert_int_equal(span->n_logits, 1 + span->n_guess);
            if (span->spec_mode == MOGE_SPEC_OFF)
                assert_int_equal(span->n_guess, 0);
            if (span->spec_mode == MOGE_SPEC_FIXED)
                n_fixed_short += span->n_guess < (most < span->spec_len ? most : span->spec_len);
        }
        /* Fixed lengths are cut only where the batch is full. */
        if (n_fixed_short > 0)
            assert_int_equal(moge_batch_rows(batch), room);
        moge_draft_free(run.draft);
    }
}

static void ids_the_target_lacks_end_the_guesses(void **state) {
    (void)state;
    struct run run;
    world_init(0.9, 0.001);
    run_init(&run, 1, MOGE_DRAFT_LEN_MAX);
    run.batch.n_vocab = 1; /* the simulated drafter guesses id 1 */
    run_step(&run, MOGE_SPEC_FIXED, 4);
    assert_int_equal(n_calls, 1);
    assert_int_equal(run.spans[0].n_guess, 0);
    assert_int_equal(run.spans[0].n_rows, 1);
    moge_draft_free(run.draft);
}

static void the_same_clock_gives_the_same_choices(void **state) {
    (void)state;
    world_init(0.7, 0.02);
    double first = rate(4, MOGE_SPEC_AUTO, 0, 500);
    assert_true(first == rate(4, MOGE_SPEC_AUTO, 0, 500));
}

static void without_a_drafter_nothing_is_guessed(void **state) {
    (void)state;
    struct moge_draft *draft;
    struct moge_err err = {0};
    struct moge_draft_options options = {.n_slots = 2, .draft_len_max = 4, .now_ns = now};
    TEST_OK(moge_draft_new(&draft, &options, &err), err);
    struct moge_span span = {.n_rows = 1,
                             .n_known = 1,
                             .n_logits = 1,
                             .guess_max = 4,
                             .spec_mode = MOGE_SPEC_FIXED,
                             .spec_len = 4,
                             .n_guess = 3};
    struct moge_batch batch = {.spans = &span, .n_spans = 1, .n_rows_cap = 8, .n_logits_cap = 8};
    moge_draft_propose(draft, &batch);
    assert_int_equal(span.n_guess, 0);
    moge_draft_forget(draft, 0);
    moge_draft_free(draft);
    moge_draft_free(NULL);
    options.draft_len_max = MOGE_DRAFT_LEN_MAX + 1;
    draft = NULL;
    assert_int_equal(moge_draft_new(&draft, &options, &err), MOGE_INVALID);
    assert_null(draft);
    assert_non_null(strstr(err.text, "draft-len is 17"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(never_slower_than_off_and_near_the_best_fixed_length),
        cmocka_unit_test(prefill_in_the_same_step_does_not_make_guesses_look_free),
        cmocka_unit_test(follows_a_change_of_the_text),
        cmocka_unit_test(follows_a_change_of_the_cost),
        cmocka_unit_test(zero_is_a_real_zero),
        cmocka_unit_test(debt_is_priced_in),
        cmocka_unit_test(limits_hold),
        cmocka_unit_test(ids_the_target_lacks_end_the_guesses),
        cmocka_unit_test(the_same_clock_gives_the_same_choices),
        cmocka_unit_test(without_a_drafter_nothing_is_guessed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
