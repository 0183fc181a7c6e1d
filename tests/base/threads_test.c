/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/test.h"
#include "engine/base/threads.c"

struct shared {
    struct moge_threads *pool;
    int n_threads;
    _Atomic int entered;
    int stage[MOGE_THREADS_MAX];
    int sum[MOGE_THREADS_MAX];
};

/* After each barrier every thread must see what every other wrote before it. */
static void stages(void *arg, int i, int n) {
    struct shared *s = arg;
    atomic_fetch_add(&s->entered, 1);
    for (int round = 1; round <= 50; round++) {
        s->stage[i] = round;
        moge_threads_barrier(s->pool);
        int sum = 0;
        for (int j = 0; j < n; j++)
            sum += s->stage[j];
        s->sum[i] += sum == round * n;
        moge_threads_barrier(s->pool);
    }
}

static void barrier_publishes_writes(void **state) {
    (void)state;
    for (int n = 1; n <= 5; n++) {
        struct shared s = {0};
        struct moge_err err;
        TEST_OK(moge_threads_new(&s.pool, n, &err), err);
        for (int run = 0; run < 20; run++)
            moge_threads_run(s.pool, stages, &s);
        assert_int_equal(s.entered, 20 * n);
        for (int i = 0; i < n; i++)
            assert_int_equal(s.sum[i], 20 * 50);
        moge_threads_free(s.pool);
    }
}

/* All threads on one processor: waits must let the others run, and say so by not spinning. */
static void one_processor_for_all(void **state) {
    (void)state;
    cpu_set_t before, one;
    struct moge_err err;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    CPU_ZERO(&one);
    CPU_SET((size_t)sched_getcpu(), &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    struct shared s = {0};
    TEST_OK(moge_threads_new(&s.pool, 3, &err), err);
    moge_threads_run(s.pool, stages, &s);
    assert_true(moge_threads_crowded(s.pool) || sched_getcpu() >= 64);
    for (int i = 0; i < 3; i++)
        assert_int_equal(s.sum[i], 50);
    moge_threads_free(s.pool);
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
}

static void split_covers_everything_once(void **state) {
    (void)state;
    for (int n = 0; n < 200; n += 7)
        for (int grain = 1; grain <= 64; grain *= 4)
            for (int threads = 1; threads < 9; threads++) {
                int at = 0;
                for (int i = 0; i < threads; i++) {
                    int begin, end;
                    moge_threads_split(n, grain, i, threads, &begin, &end);
                    assert_int_equal(begin, at);
                    assert_true(end >= begin);
                    assert_true(begin % grain == 0 || begin == n);
                    at = end;
                }
                assert_int_equal(at, n);
            }
}

static void bad_counts_are_refused(void **state) {
    (void)state;
    struct moge_threads *pool = NULL;
    struct moge_err err = {0};
    assert_int_equal(moge_threads_new(&pool, 0, &err), MOGE_INVALID);
    assert_non_null(strstr(err.text, "threads is 0"));
    assert_int_equal(moge_threads_new(&pool, MOGE_THREADS_MAX + 1, &err), MOGE_INVALID);
    assert_null(pool);
    moge_threads_free(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(barrier_publishes_writes), cmocka_unit_test(one_processor_for_all),
        cmocka_unit_test(split_covers_everything_once), cmocka_unit_test(bad_counts_are_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
