/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/test.h"
#include "tools/bench_quality.c"

#include <unistd.h>

#define MODEL MOGE_SOURCE_DIR "/tests/golden/tiny-target.gguf"
#define TEXT  "The quick brown fox jumps over the lazy dog; the dog sleeps, and so on and so forth."

static char path[] = "/tmp/test-quality-XXXXXX";

static int text_make(void **state) {
    (void)state;
    int fd = mkstemp(path);
    ssize_t n = write(fd, TEXT, sizeof TEXT - 1);
    return n == (ssize_t)(sizeof TEXT - 1) ? close(fd) : -1;
}

static int text_remove(void **state) {
    (void)state;
    return unlink(path);
}

static void quality_open(struct quality *quality, int32_t window) {
    *quality = (struct quality){.model_path = MODEL,
                                .text_path = path,
                                .types = {MOGE_KV_F32, MOGE_KV_F16, MOGE_KV_Q8_0},
                                .n_types = 3,
                                .n_threads = 1,
                                .window = window};
    struct moge_err err = {0};
    TEST_OK(setup(quality, &err), err);
    assert_int_equal(text_run(quality), 0);
}

static void quality_close(struct quality *quality) {
    for (int i = 0; i < quality->n_types; i++)
        moge_engine_free(quality->engines[i]);
    moge_threads_free(quality->threads);
    moge_model_close(quality->model);
    free(quality->ids), free(quality->tokens), free(quality->best);
    free(quality->pages), free(quality->scratch);
}

/* One row at a time, softmax in double: the same sum of losses. */
static double nats_slowly(struct quality *quality) {
    int32_t n_vocab = moge_model_info(quality->model)->n_vocab;
    double nats = 0;
    quality->tokens[0] = moge_tokenizer_bos(moge_model_tokenizer(quality->model));
    memcpy(quality->tokens + 1, quality->ids, (size_t)quality->n_ids * sizeof *quality->ids);
    for (int32_t pos = 0; pos < quality->n_ids; pos++) {
        struct moge_span span = {.tokens = quality->tokens,
                                 .pages = quality->pages,
                                 .pos = pos,
                                 .n_rows = 1,
                                 .n_known = pos + 1,
                                 .n_logits = 1};
        struct moge_batch batch = {.spans = &span, .n_spans = 1};
        assert_int_equal(moge_engine_forward(quality->engines[0], &batch), 0);
        double sum = 0;
        for (int32_t i = 0; i < n_vocab; i++)
            sum += exp((double)batch.logits[i]);
        nats += log(sum) - (double)batch.logits[quality->tokens[pos + 1]];
    }
    return nats;
}

static void losses_are_right(void **state) {
    (void)state;
    struct quality quality;
    quality_open(&quality, 0);
    assert_int_equal(quality.n_places, quality.n_ids);
    assert_int_equal(quality.n_same[0], quality.n_places);
    for (int i = 1; i < 3; i++) /* rounding moves little, but something */
        assert_true(quality.nats[i] != quality.nats[0] &&
                    fabs(quality.nats[i] / quality.nats[0] - 1) < 0.01);
    double expected = nats_slowly(&quality);
    assert_true(fabs(quality.nats[0] / expected - 1) < 1e-5);
    quality_close(&quality);
}

static void windows_predict_every_token_once(void **state) {
    (void)state;
    for (int32_t window = 2; window < 12; window++) {
        struct quality quality;
        quality_open(&quality, window);
        assert_int_equal(quality.n_places, quality.n_ids);
        quality_close(&quality);
    }
}

static int run_with(const char *option, const char *value) {
    char *argv[] = {
        (char *)"quality",         (char *)"--model",        (char *)MODEL, (char *)"--text", path,
        (char *)(uintptr_t)option, (char *)(uintptr_t)value, NULL};
    return moge_bench_quality(7, argv);
}

static void wrong_options_and_files(void **state) {
    (void)state;
    static const char *const wrong[][2] = {
        {"--kv", "q4_0"},     {"--kv", ""},       {"--kv", "f16,f16,f16,f16"}, {"--window", "1"},
        {"--window", "many"}, {"--threads", "0"}, {"--weights", "q8"},         {"--what", "1"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        assert_int_equal(run_with(wrong[i][0], wrong[i][1]), 2);
    assert_int_equal(run_with("--window", "1000000"), 1);
    assert_int_equal(run_with("--text", "/no/such/file"), 1);
    assert_int_equal(run_with("--text", "/dev/null"), 1);
    assert_int_equal(run_with("--model", path), 1);
    assert_int_equal(run_with("--kv", "q8_0"), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(losses_are_right),
                                       cmocka_unit_test(windows_predict_every_token_once),
                                       cmocka_unit_test(wrong_options_and_files)};
    return cmocka_run_group_tests(tests, text_make, text_remove);
}
