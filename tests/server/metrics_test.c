/* SPDX-License-Identifier: Apache-2.0 */
#include "server/metrics.c"

#include <pthread.h>

#include "../test.h"

/* Every value lies in the bucket whose bounds enclose it, and buckets are at most a quarter wide.
 */
static void test_buckets(void **state) {
    (void)state;
    for (int i = 0; i + 1 < MOGE_HISTOGRAM_BUCKETS; i++) {
        int64_t low = moge_histogram_bound(i), next = moge_histogram_bound(i + 1);
        assert_true(low < next);
        assert_int_equal(bucket_of(low), i);
        assert_int_equal(bucket_of(next - 1), i);
        if (low >= 8)
            assert_true(next - low <= low / 4);
    }
    assert_int_equal(bucket_of(-5), 0);
    assert_int_equal(bucket_of(INT64_MAX), MOGE_HISTOGRAM_BUCKETS - 1);
}

static void test_quantiles(void **state) {
    (void)state;
    static struct moge_histogram histogram;
    assert_int_equal(moge_histogram_quantile(&histogram, 0.5), 0);
    struct test_rng rng = test_rng_init(1);
    for (int i = 0; i < 100000; i++)
        moge_histogram_add(&histogram, test_below(&rng, 1000000));
    static const double shares[] = {0.01, 0.1, 0.5, 0.9, 0.99};
    for (size_t i = 0; i < sizeof shares / sizeof shares[0]; i++) {
        double value = (double)moge_histogram_quantile(&histogram, shares[i]);
        assert_true(value > 0.97 * shares[i] * 1e6 && value < 1.28 * shares[i] * 1e6);
    }
    assert_int_equal(histogram.count, 100000);
}

static void *add_many(void *arg) {
    struct moge_metrics *metrics = arg;
    for (int i = 0; i < 10000; i++) {
        moge_metrics_add(&metrics->prompt_tokens_total, 1);
        moge_histogram_add(&metrics->engine_step, i);
    }
    return NULL;
}

static void test_threads_lose_nothing(void **state) {
    (void)state;
    static struct moge_metrics metrics;
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, add_many, &metrics);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(metrics.prompt_tokens_total, 40000);
    assert_int_equal(metrics.engine_step.count, 40000);
    assert_int_equal(metrics.engine_step.sum, 4ll * 10000 * 9999 / 2);
}

static void test_request(void **state) {
    (void)state;
    static struct moge_metrics metrics;
    static struct moge_req req;
    req.usage = (struct moge_usage){.n_prompt = 7,
                                    .n_output = 5,
                                    .n_preempted = 1,
                                    .queue_us = 10,
                                    .prefill_us = 20,
                                    .decode_us = 400};
    atomic_store(&req.finish, MOGE_FINISH_STOP);
    moge_metrics_request(&metrics, &req);
    assert_int_equal(metrics.request_success_stop_total, 1);
    assert_int_equal(metrics.prompt_tokens_total, 7);
    assert_int_equal(metrics.generation_tokens_total, 5);
    assert_int_equal(metrics.time_to_first_token.sum, 30);
    assert_int_equal(metrics.e2e_request_latency.sum, 430);
    assert_int_equal(metrics.time_per_output_token.sum, 100);
    /* One that never got a token has no latencies, but it waited. */
    req.usage = (struct moge_usage){.n_prompt = 7, .queue_us = 10};
    atomic_store(&req.finish, MOGE_FINISH_CANCELLED);
    moge_metrics_request(&metrics, &req);
    assert_int_equal(metrics.request_cancelled_total, 1);
    assert_int_equal(metrics.time_to_first_token.count, 1);
    assert_int_equal(metrics.request_queue_time.count, 2);
}

static void test_refused(void **state) {
    (void)state;
    static struct moge_metrics metrics;
    moge_metrics_refused(&metrics, MOGE_LIMIT);
    moge_metrics_refused(&metrics, MOGE_SHUTDOWN);
    moge_metrics_refused(&metrics, MOGE_INVALID);
    assert_int_equal(metrics.request_refused_total, 2);
    moge_metrics_refused(&metrics, MOGE_DEADLINE); /* it had passed on arrival */
    moge_metrics_refused(&metrics, MOGE_NOMEM);
    assert_int_equal(metrics.request_invalid_total, 1);
    assert_int_equal(metrics.request_deadline_total, 1);
    assert_int_equal(metrics.request_error_total, 1);
}

static void test_line(void **state) {
    (void)state;
    static struct moge_metrics metrics;
    char line[256];
    metrics.generation_tokens_total = 42;
    atomic_store(&metrics.stats.words[offsetof(struct moge_stats, n_running) / 8], 3);
    atomic_store(&metrics.stats.words[offsetof(struct moge_stats, n_offered) / 8], 9);
    moge_metrics_line(&metrics, line, sizeof line);
    assert_non_null(strstr(line, "3 running"));
    assert_non_null(strstr(line, "42 tokens"));
    assert_non_null(strstr(line, "guesses 0 of 9 accepted"));
    moge_metrics_line(&metrics, line, 8); /* cut, not overrun */
    assert_int_equal(strlen(line), 7);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_buckets),
        cmocka_unit_test(test_quantiles),
        cmocka_unit_test(test_threads_lose_nothing),
        cmocka_unit_test(test_request),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
