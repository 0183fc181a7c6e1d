/* SPDX-License-Identifier: Apache-2.0 */
/* The trials at start, on an engine and a drafter that take a known time. */
#include "tests/test.h"
#include "draft/cost.c"
#include "draft/draft.c"
#include "draft/policy.c"
#include "draft/calibrate.c"

#define SLOTS 64
#define MS    1000000

static struct {
    double step_ms, row_ms, round_ms, guess_row_ms;
    int32_t n_context;          /* rows that one sequence may have */
    int32_t n_steps, n_forgets; /* calls of the engine and of forget */
    int32_t page_max;           /* that any span named */
    bool noisy;                 /* every third trial takes half as long again */
} world;
static int64_t clock_ns;
static struct moge_span spans[SLOTS];
static struct moge_batch batch;

static int64_t now(void) {
    return clock_ns;
}

static void take(double ms) {
    static int n;
    clock_ns += (int64_t)(ms * MS * (world.noisy && n++ % 3 == 2 ? 1.6 : 1));
}

int moge_engine_forward(struct moge_engine *engine, struct moge_batch *of) {
    (void)engine;
    for (int32_t i = 0; i < of->n_spans; i++) {
        const struct moge_span *span = &of->spans[i];
        assert_int_equal(span->pos, 0);
        assert_int_equal(span->slot, i);
        assert_true(span->n_rows < MOGE_PAGE_TOKENS); /* no page is ever full */
        if (span->n_rows > world.n_context)
            return MOGE_INVALID;
        world.page_max = span->pages[0] > world.page_max ? span->pages[0] : world.page_max;
    }
    world.n_steps++;
    take(world.step_ms + world.row_ms * moge_batch_rows(of));
    return 0;
}

void moge_accept_batch(struct moge_accept *accept, struct moge_batch *of) {
    (void)accept;
    (void)of;
}

static void sim_guess(void *self, struct moge_span *const *of, const int32_t *want, int32_t n) {
    (void)self;
    int32_t n_rows = 0;
    for (int32_t i = 0; i < n; i++) {
        n_rows += want[i];
        of[i]->n_guess = want[i];
    }
    take(want[0] * world.round_ms + n_rows * world.guess_row_ms);
}

static void sim_forget(void *self, int32_t slot) {
    (void)self;
    (void)slot;
    world.n_forgets++;
}

static void sim_free(void *self) {
    (void)self;
}

static const struct moge_drafter_ops sim_ops = {
    .name = "sim", .guess = sim_guess, .forget = sim_forget, .free = sim_free};

static struct moge_draft *draft_new(int32_t n_slots) {
    struct moge_draft *draft;
    struct moge_err err;
    struct moge_draft_options options = {.drafter = {&sim_ops, NULL},
                                         .n_slots = n_slots,
                                         .draft_len_max = MOGE_DRAFT_LEN_MAX,
                                         .now_ns = now};
    clock_ns = 1;
    world.step_ms = 10;
    world.row_ms = 2;
    world.round_ms = 0.5;
    world.guess_row_ms = 0.1;
    world.n_context = 1024;
    world.n_steps = world.n_forgets = world.page_max = 0;
    world.noisy = false;
    batch = (struct moge_batch){.spans = spans,
                                .n_spans_cap = n_slots,
                                .n_rows_cap = 256,
                                .n_logits_cap = 256,
                                .n_vocab = 10};
    TEST_OK(moge_draft_new(&draft, &options, &err), err);
    return draft;
}

static int calibrate(struct moge_draft *draft, int32_t n_pages, double budget_ms,
                     struct moge_draft_stats *stats) {
    struct moge_calibration with = {
        .batch = &batch, .n_pages = n_pages, .budget_ns = (int64_t)(budget_ms * MS)};
    int n = moge_draft_calibrate(draft, &with);
    moge_draft_stats(draft, stats);
    assert_int_equal(batch.n_spans, 0);
    return n;
}

static void near(double is, double should_ms) {
    if (is < 0.97 * should_ms * MS || is > 1.03 * should_ms * MS)
        fail_msg("%.3f ms instead of %.3f", is / MS, should_ms);
}

/* One trial in three is disturbed: the least does not see it. */
static void costs_are_known_at_once(void **state) {
    (void)state;
    struct moge_draft_stats stats;
    struct moge_draft *draft = draft_new(SLOTS);
    world.noisy = true;
    world.row_ms = 0.05;
    assert_int_equal(calibrate(draft, 100, 2000, &stats), 7);
    for (int i = 0; i < 7; i++)
        near(stats.step_ns[i], 10 + 0.05 * (1 << i));
    for (int i = 7; i < MOGE_STEP_COSTS; i++) /* beyond: the slope goes on */
        assert_true(stats.step_ns[i] > stats.step_ns[i - 1]);
    assert_true(stats.guess_ns > 0.5 * MS && stats.guess_ns < 0.7 * MS);
    assert_true(stats.guess_row_ns > 0.05 * MS && stats.guess_row_ns < 0.15 * MS);
    assert_true(world.n_forgets > 0 && world.page_max == SLOTS - 1);
    for (int i = 0; i <= MOGE_DRAFT_LEN_MAX; i++)
        assert_int_equal(stats.len_chosen[i], 0);
    moge_draft_free(draft);
}

static void the_budget_holds(void **state) {
    (void)state;
    for (double budget_ms = 0; budget_ms < 400; budget_ms += 7) {
        struct moge_draft_stats stats;
        struct moge_draft *draft = draft_new(SLOTS);
        int n = calibrate(draft, 100, budget_ms, &stats);
        assert_true(n >= (budget_ms > 65) && n <= 7);
        /* The first two trials are made in any case, and the last may take a third longer. */
        double most_ms = budget_ms > BUDGET_STEPS * 12 ? BUDGET_STEPS * 12 : budget_ms;
        assert_true((double)clock_ns <= (most_ms > 24 ? 1.34 * most_ms : 24) * MS + 1);
        if (n == 0)
            assert_true(stats.step_ns[0] == 0);
        moge_draft_free(draft);
    }
}

/* One slot and one page: several rows of one sequence, as far as its page and context go. */
static void small_daemons_try_less(void **state) {
    (void)state;
    struct moge_draft_stats stats;
    struct moge_draft *draft = draft_new(1);
    assert_int_equal(calibrate(draft, 1, 1000, &stats), 4);
    assert_int_equal(world.page_max, 0);
    near(stats.step_ns[3], 10 + 2 * 8);
    world.n_context = 2;
    assert_int_equal(calibrate(draft, 1, 1000, &stats), 2);
    batch.n_rows_cap = 1;
    assert_int_equal(calibrate(draft, 1, 1000, &stats), 1);
    moge_draft_free(draft);
}

static void step_observe(struct moge_draft *draft, int32_t n_rows, double ms) {
    spans[0] = (struct moge_span){.n_rows = n_rows};
    batch.n_spans = 1;
    moge_draft_observe(draft, &batch, (int64_t)(ms * MS));
}

static void knots_are_found(void **state) {
    (void)state;
    for (int32_t n_rows = 0; n_rows < 3000; n_rows++) {
        double share;
        int i = knot_below(n_rows, &share), searched = 0;
        while (searched < MOGE_COST_KNOTS - 2 && knot_rows(searched + 1) <= n_rows)
            searched++;
        assert_int_equal(i, searched);
        assert_true(fabs(knot_rows(i) + share * (knot_rows(i + 1) - knot_rows(i)) - n_rows) < 1e-6);
    }
}

/* Sizes that were never tried: a disturbed first step of one does not keep it from being tried. */
static void a_first_measurement_is_not_beyond_reason(void **state) {
    (void)state;
    struct moge_draft_stats stats;
    struct moge_draft *draft = draft_new(SLOTS);
    calibrate(draft, 100, 100, &stats);
    step_observe(draft, 128, 5000);
    moge_draft_stats(draft, &stats);
    assert_true(stats.step_ns[7] < 1.1 * 128 / 16 * stats.step_ns[4]);
    moge_draft_free(draft);
}

/* Sizes compare otherwise than at start, or the machine has become slower: real steps outweigh
 * trials. */
static void serving_overrides_it(void **state) {
    (void)state;
    struct moge_draft_stats stats;
    struct moge_draft *draft = draft_new(SLOTS);
    for (int slower = 1; slower <= 2; slower++) {
        calibrate(draft, 100, 1000, &stats);
        for (int i = 0; i < 40; i++) {
            step_observe(draft, 1, slower * 10.5);
            step_observe(draft, 4, slower * 23.0);
        }
        moge_draft_stats(draft, &stats);
        near(stats.step_ns[0] / slower, 10.5);
        near(stats.step_ns[2] / slower, 23);
    }
    moge_draft_free(draft);
}

/* A warm-up leaves costs behind, and nothing else; without calibration they are what is known. */
static void a_warm_up_is_nobodys_request(void **state) {
    (void)state;
    struct moge_draft_stats stats;
    struct moge_draft *draft = draft_new(SLOTS);
    int32_t tokens[32] = {0};
    spans[0] = (struct moge_span){.tokens = tokens,
                                  .pos = 9,
                                  .n_rows = 1,
                                  .n_known = 10,
                                  .n_logits = 1,
                                  .guess_max = 4,
                                  .spec_mode = MOGE_SPEC_FIXED,
                                  .spec_len = 2};
    batch.n_spans = 1;
    moge_draft_propose(draft, &batch);
    spans[0].n_out = spans[0].n_accepted = 1;
    moge_draft_observe(draft, &batch, 20 * MS);
    moge_draft_stats(draft, &stats);
    assert_int_equal(stats.offered[0], 1);
    assert_true(draft->policy->acceptance.all.n > 0);
    moge_draft_restart(draft);
    moge_draft_stats(draft, &stats);
    assert_int_equal(stats.offered[0], 0);
    assert_true(draft->policy->acceptance.all.n == 0);
    near(stats.step_ns[0] + 2 * stats.row_ns[1], 20);
    moge_draft_free(draft);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(costs_are_known_at_once),
                                       cmocka_unit_test(the_budget_holds),
                                       cmocka_unit_test(small_daemons_try_less),
                                       cmocka_unit_test(knots_are_found),
                                       cmocka_unit_test(a_first_measurement_is_not_beyond_reason),
                                       cmocka_unit_test(serving_overrides_it),
                                       cmocka_unit_test(a_warm_up_is_nobodys_request)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
