/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/test.h"
#include "tools/bench_serve_load.c"

#define N 20000

static void arrivals_are_a_poisson_process(void **state) {
    (void)state;
    static struct moge_serve_sample a[N], b[N], c[N];
    struct moge_serve_load load = {
        .n_requests = N, .rate = 50, .seed = 3, .begin_ns = 1000, .samples = a};
    arrivals_plan(&load);
    load.samples = b;
    arrivals_plan(&load);
    load.samples = c;
    load.seed = 4;
    arrivals_plan(&load);
    assert_int_equal(a[0].due_ns, 1000);
    int n_same = 0, n_long = 0;
    double sum = 0, squares = 0;
    for (int i = 1; i < N; i++) {
        assert_int_equal(a[i].due_ns, b[i].due_ns);
        double gap = (double)(a[i].due_ns - a[i - 1].due_ns) / 1e9 * load.rate; /* of mean 1 */
        assert_true(gap >= 0);
        n_same += a[i].due_ns == c[i].due_ns;
        n_long += gap > 2;
        sum += gap;
        squares += gap * gap;
    }
    /* Exponential gaps: mean 1, mean square 2, e^-2 of them longer than 2; each within 5 sigma. */
    assert_true(fabs(sum / N - 1) < 5 / sqrt(N));
    assert_true(fabs(squares / N - 2) < 5 * sqrt(20.0 / N));
    assert_true(fabs((double)n_long / N - exp(-2)) < 5 * sqrt(0.12 / N));
    assert_int_equal(n_same, 0);
}

static void an_infinite_rate_is_all_at_once(void **state) {
    (void)state;
    struct moge_serve_sample samples[5] = {0};
    struct moge_serve_load load = {
        .n_requests = 5, .rate = INFINITY, .begin_ns = 77, .samples = samples};
    arrivals_plan(&load);
    for (int i = 0; i < 5; i++)
        assert_int_equal(samples[i].due_ns, 77);
}

static void a_closed_loop_waits_for_room(void **state) {
    (void)state;
    struct moge_serve_load load = {.n_requests = 3, .concurrency = 2, .n_open = 1};
    struct run run = {.load = &load, .n_sent = 1};
    assert_true(is_due(&run, 0));
    load.n_open = 2;
    assert_false(is_due(&run, 0));
    load.n_open = 0;
    run.n_sent = 3;
    assert_false(is_due(&run, 0));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arrivals_are_a_poisson_process),
        cmocka_unit_test(an_infinite_rate_is_all_at_once),
        cmocka_unit_test(a_closed_loop_waits_for_room),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
