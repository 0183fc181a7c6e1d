/* SPDX-License-Identifier: Apache-2.0 */
#include "server/stats.c"

#include <pthread.h>

#include "../test.h"
#include "server/metrics.h"

static atomic_bool done;

/* Every word of a copy belongs to the same publication. */
static void *read_many(void *arg) {
    const struct moge_stats_cell *cell = arg;
    struct moge_stats stats;
    uint64_t last = 0;
    while (!atomic_load(&done)) {
        moge_stats_read(cell, 0, &stats);
        MOGE_ASSERT(stats.n_steps >= last);
        MOGE_ASSERT(stats.n_rows == 3 * stats.n_steps && stats.n_emitted == stats.n_steps);
        MOGE_ASSERT(stats.group_pairs[MOGE_STATS_GROUPS_MAX - 1] == 7 * stats.n_steps);
        last = stats.n_steps;
    }
    return NULL;
}

static void test_copies_are_of_one_step(void **state) {
    (void)state;
    static struct moge_stats_cell cell;
    pthread_t readers[2];
    atomic_store(&done, false);
    for (int i = 0; i < 2; i++)
        pthread_create(&readers[i], NULL, read_many, &cell);
    for (uint64_t i = 1; i <= 20000; i++) {
        cell.engine.n_steps = i;
        cell.engine.n_rows = 3 * i;
        cell.engine.n_emitted = i;
        cell.engine.group_pairs[MOGE_STATS_GROUPS_MAX - 1] = 7 * i;
        publish(&cell);
    }
    atomic_store(&done, true);
    for (int i = 0; i < 2; i++)
        pthread_join(readers[i], NULL);
    struct moge_stats stats;
    moge_stats_read(&cell, 0, &stats);
    assert_int_equal(stats.n_steps, 20000);
}

static int64_t clock_ns;

static int64_t now(void) {
    return clock_ns;
}

/* Ten tokens a step, ten steps a second, make a hundred tokens a second; in silence they fade. */
static void test_rate(void **state) {
    (void)state;
    static struct moge_stats stats;
    struct moge_span span = {.n_rows = 10, .n_logits = 10, .n_emitted = 10};
    struct moge_step step = {.batch = {.spans = &span, .n_spans = 1}, .now_ns = now, .step_ns = 5};
    step.phase_ns[MOGE_PHASE_FORWARD] = 4;
    for (int i = 1; i <= 200; i++)
        count_step(&stats, &step, i * 100000);
    assert_true(stats.tokens_per_s > 95 && stats.tokens_per_s < 106);
    assert_int_equal(stats.n_steps, 200);
    assert_int_equal(stats.n_rows, 2000);
    assert_int_equal(stats.n_emitted, 2000);
    assert_int_equal(stats.step_ns, 1000);
    assert_int_equal(stats.phase_ns[MOGE_PHASE_FORWARD], 800);
    static struct moge_stats_cell cell;
    struct moge_stats later;
    cell.engine = stats;
    publish(&cell);
    moge_stats_read(&cell, stats.at_us + 2000000, &later);
    assert_true(later.tokens_per_s > 0.36 * stats.tokens_per_s &&
                later.tokens_per_s < 0.38 * stats.tokens_per_s);
    /* A step whose forward failed gave nobody a token, whatever its spans still say. */
    step.forward_rc = MOGE_INTERNAL;
    count_step(&stats, &step, stats.at_us + 1);
    assert_int_equal(stats.n_emitted, 2000);
    assert_int_equal(stats.n_failed, 1);
}

static void test_guesses(void **state) {
    (void)state;
    static struct moge_stats stats;
    struct moge_draft_stats draft = {.offered = {4, 2}, .accepted = {3, 1}, .ngram_offered = {1}};
    draft.step_ns[0] = 5e6;
    draft.step_ns[MOGE_STEP_COSTS - 1] = 9e6;
    draft.guess_round_ns = 2e5;
    draft.guess_row_ns = 1e4;
    draft.len_chosen[0] = 50;
    draft.len_chosen[1] = draft.len_chosen[2] = 2;
    take_guesses(&stats, &draft);
    take_guesses(&stats, &draft); /* totals, not sums of totals */
    assert_int_equal(stats.n_drafts, 4);
    assert_int_equal(stats.n_offered, 6);
    assert_int_equal(stats.n_accepted, 4);
    assert_int_equal(stats.offered[1], 2);
    assert_int_equal(stats.ngram_offered[0], 1);
    assert_true(stats.expected_step_ns[0] == 5e6);
    assert_true(stats.expected_step_ns[MOGE_STEP_COSTS - 1] == 9e6);
    assert_true(stats.guess_round_ns == 2e5 && stats.guess_row_ns == 1e4);
}

static void test_text(void **state) {
    (void)state;
    static struct moge_metrics metrics;
    metrics.generation_tokens_total = 42;
    metrics.stats.engine.n_groups = 2;
    metrics.stats.engine.n_preempted = 3;
    metrics.stats.engine.n_prefix_hit = 11;
    metrics.stats.engine.pages_used = 12;
    metrics.stats.engine.accepted[1] = 13;
    metrics.stats.engine.group_pairs[1] = 5;
    metrics.stats.engine.expected_step_ns[3] = 2500000;
    metrics.stats.engine.guess_row_ns = 4000;
    publish(&metrics.stats);
    for (int i = 0; i < 100; i++)
        moge_histogram_add(&metrics.time_to_first_token, i);
    char *text = moge_metrics_text(&metrics, 0);
    assert_non_null(text);
    assert_non_null(strstr(text, "\nmoge:generation_tokens_total 42\n"));
    assert_non_null(strstr(text, "# TYPE moge:time_to_first_token histogram\n"));
    assert_non_null(strstr(text, "moge:time_to_first_token_bucket{le=\"7\"} 8\n"));
    assert_non_null(strstr(text, "moge:time_to_first_token_bucket{le=\"63\"} 64\n"));
    assert_non_null(strstr(text, "moge:time_to_first_token_bucket{le=\"+Inf\"} 100\n"));
    assert_non_null(strstr(text, "moge:time_to_first_token_sum 4950\n"));
    assert_non_null(strstr(text, "\nmoge:num_preemptions_total 3\n"));
    assert_non_null(strstr(text, "\nmoge:prefix_cache_hits_total 11\n"));
    assert_non_null(strstr(text, "\nmoge:kv_cache_pages_used 12\n"));
    assert_non_null(
        strstr(text, "moge:spec_decode_num_accepted_tokens_per_pos_total{position=\"1\"} 13\n"));
    assert_non_null(strstr(text, "moge:expert_group_rows_total{group=\"1\"} 5\n"));
    assert_non_null(strstr(text, "\nmoge:engine_expected_step_microseconds{rows=\"8\"} 2500\n"));
    assert_non_null(strstr(text, "\nmoge:spec_decode_row_microseconds 4\n"));
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_copies_are_of_one_step),
        cmocka_unit_test(test_rate),
        cmocka_unit_test(test_guesses),
        cmocka_unit_test(test_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
