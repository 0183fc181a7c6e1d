/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/test.h"
#include "tools/bench_serve_report.c"

static void close_to(double got, double expected) {
    if (!(fabs(got - expected) <= 1e-9 * (1 + fabs(expected))))
        fail_msg("%.12g is not %.12g", got, expected);
}

/* Expected values are numpy's: percentile(method="linear"), std(ddof=0). */
static void spread_is_that_of_numpy(void **state) {
    (void)state;
    double ten[] = {9, 1, 4, 3, 8, 2, 10, 6, 5, 7};
    struct moge_serve_spread s = moge_serve_spread_of(ten, 10);
    close_to(s.mean, 5.5);
    close_to(s.std, 2.8722813232690143);
    close_to(s.p50, 5.5);
    close_to(s.median, 5.5);
    close_to(s.p90, 9.1);
    close_to(s.p99, 9.91);
    double one[] = {3.25};
    s = moge_serve_spread_of(one, 1);
    close_to(s.p50 + s.p90 + s.p99 + s.mean, 4 * 3.25);
    close_to(s.std, 0);
    s = moge_serve_spread_of(NULL, 0);
    close_to(s.mean + s.std + s.p50 + s.p90 + s.p99, 0);
}

static void percentiles_bracket_their_share(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(1);
    for (int round = 0; round < 200; round++) {
        double values[101];
        size_t n = 1 + (size_t)test_below(&rng, 101);
        for (size_t i = 0; i < n; i++)
            values[i] = test_below(&rng, 50); /* with ties */
        struct moge_serve_spread s = moge_serve_spread_of(values, n);
        size_t below = 0, above = 0;
        for (size_t i = 0; i < n; i++) {
            below += values[i] < s.p90;
            above += values[i] > s.p90;
        }
        assert_true((double)below < 0.9 * (double)(n - 1) + 1);
        assert_true((double)above < 0.1 * (double)(n - 1) + 1);
        assert_true(s.p50 <= s.p90 && s.p90 <= s.p99 && s.p99 <= values[n - 1]);
    }
}

static struct moge_serve_sample sample_of(double ttft_ms, double e2el_ms, int32_t n_output) {
    const int64_t due_ns = 7000000000;
    return (struct moge_serve_sample){.due_ns = due_ns,
                                      .sent_ns = due_ns + 2000000,
                                      .first_ns = due_ns + (int64_t)(ttft_ms * 1e6),
                                      .last_ns = due_ns + (int64_t)(e2el_ms * 1e6),
                                      .n_prompt = 10,
                                      .n_output = n_output,
                                      .n_messages = n_output,
                                      .status = "OK"};
}

static void totals_count_from_the_due_time(void **state) {
    (void)state;
    struct moge_serve_sample samples[] = {
        sample_of(10, 110, 11), /* 10 ms a token */
        sample_of(20, 20, 1),   /* no time per output token */
        sample_of(40, 440, 11), /* 40 ms a token */
        {.status = "RESOURCE_EXHAUSTED", .sentence = "the queue is full"},
        {.status = "DEADLINE_EXCEEDED", .sentence = "too late"},
        {.status = "RESOURCE_EXHAUSTED", .sentence = "the queue is still full"},
    };
    double gaps[] = {1, 3};
    struct moge_serve_load load = {.samples = samples,
                                   .n_requests = 6,
                                   .gaps_ms = gaps,
                                   .n_gaps = 2,
                                   .begin_ns = 1000000000,
                                   .end_ns = 3000000000};
    double limits[MOGE_SERVE_METRICS] = {[MOGE_SERVE_TTFT] = 30, [MOGE_SERVE_TPOT] = 20};
    struct totals totals;
    assert_int_equal(totals_sum(&totals, &load, limits), 0);
    assert_int_equal(totals.n_completed, 3);
    assert_int_equal(totals.n_good, 2);
    assert_int_equal(totals.n_output, 23);
    close_to(totals.seconds, 2);
    close_to(totals.spreads[MOGE_SERVE_TTFT].mean, 70.0 / 3);
    close_to(totals.spreads[MOGE_SERVE_TPOT].mean, 25);
    close_to(totals.spreads[MOGE_SERVE_E2EL].p50, 110);
    close_to(totals.spreads[MOGE_SERVE_ITL].mean, 2);
    assert_int_equal(totals.n_statuses, 2);
    assert_string_equal(totals.failures[0].status, "RESOURCE_EXHAUSTED");
    assert_string_equal(totals.failures[0].sentence, "the queue is full");
    assert_int_equal(totals.failures[0].n, 2);
    assert_int_equal(totals.failures[1].n, 1);

    double strict[MOGE_SERVE_METRICS] = {[MOGE_SERVE_E2EL] = 19};
    assert_int_equal(totals_sum(&totals, &load, strict), 0);
    assert_int_equal(totals.n_good, 0);
}

static void nothing_completed_is_a_failure(void **state) {
    (void)state;
    struct moge_serve_sample sample = {.status = "UNAVAILABLE", .sentence = "it drains"};
    struct moge_serve_load load = {.samples = &sample, .n_requests = 1, .end_ns = 1};
    struct moge_serve_report report = {.dataset = "synthetic", .speculation = "off"};
    struct moge_err err = {0};
    assert_int_not_equal(moge_serve_report_print(&report, &load, &err), 0);
    assert_string_equal(err.text, "none of 1 requests completed; the first: it drains");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(spread_is_that_of_numpy),
        cmocka_unit_test(percentiles_bracket_their_share),
        cmocka_unit_test(totals_count_from_the_due_time),
        cmocka_unit_test(nothing_completed_is_a_failure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
