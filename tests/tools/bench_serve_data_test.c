/* SPDX-License-Identifier: Apache-2.0 */
#include <unistd.h>
#include "tests/test.h"
#include "tools/bench_serve_data.c"

static int read_text(struct moge_serve_data *data, const char *text, struct moge_err *err) {
    char path[1024];
    snprintf(path, sizeof path, MOGE_BINARY_DIR "/bench_serve_data_test.%ld", (long)getpid());
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    int rc = moge_serve_data_read(data, path, err);
    unlink(path);
    return rc;
}

static void prompts_come_round(void **state) {
    (void)state;
    struct moge_serve_data data;
    struct moge_err err = {0};
    int rc = read_text(&data,
                       "{\"prompt\": \"one\", \"output_len\": 7}\n\n"
                       "{\"prompt\": \"t\\u0000wo\", \"id\": [1]}\n  \n{\"prompt\": \"three\"}",
                       &err);
    assert_string_equal(err.text, "");
    assert_int_equal(rc, 0);
    assert_int_equal(data.n_prompts, 3);
    for (int64_t round = 0; round < 2; round++) {
        struct moge_client_request first = {0}, second = {0};
        moge_serve_data_get(&data, 3 * round, 64, &first);
        moge_serve_data_get(&data, 3 * round + 1, 64, &second);
        assert_memory_equal(first.prompt, "one", 3);
        assert_true(first.has_max_tokens && first.ignore_eos);
        assert_int_equal(first.max_tokens, 7);
        assert_int_equal(second.prompt_len, 4);
        assert_memory_equal(second.prompt, "t\0wo", 4);
        assert_false(second.ignore_eos);
        assert_int_equal(second.max_tokens, 64);
    }
    moge_serve_data_free(&data);
}

static void bad_lines_are_named(void **state) {
    (void)state;
    static const char *const bad[][2] = {
        {"{\"prompt\": \"fine\"}\n{\"prompt\": 3}\n", "line 2 of "},
        {"{\"prompt\": \"\"}", "has no text as its \"prompt\""},
        {"{\"text\": \"x\"}", "has no text as its \"prompt\""},
        {"[\"x\"]", "has no text as its \"prompt\""},
        {"{\"prompt\": \"x\"", "is no JSON object"},
        {"{\"prompt\": \"x\"} {}", "is no JSON object"},
        {"{\"prompt\": \"\xff\"}", "is no JSON object"},
        {"{\"prompt\": \"x\", \"output_len\": 0}", "\"output_len\""},
        {"{\"prompt\": \"x\", \"output_len\": \"9\"}", "\"output_len\""},
        {"{\"prompt\": \"x\", \"output_len\": 99999999999}", "\"output_len\""},
        {"\n \n", "holds no prompts"},
        {"", "holds no prompts"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct moge_serve_data data;
        struct moge_err err = {0};
        assert_int_not_equal(read_text(&data, bad[i][0], &err), 0);
        if (!strstr(err.text, bad[i][1]))
            fail_msg("case %zu says: %s", i, err.text);
        moge_serve_data_free(&data);
    }
    struct moge_serve_data data;
    struct moge_err err = {0};
    assert_int_equal(moge_serve_data_read(&data, "/nonexistent/x", &err), MOGE_IO);
    moge_serve_data_free(&data);
}

static void random_prompts_follow_the_seed(void **state) {
    (void)state;
    struct moge_serve_data a, b;
    struct moge_client_request x = {0}, y = {0};
    assert_int_equal(moge_serve_data_random(&a, 32, 1000, 5, NULL), 0);
    assert_int_equal(moge_serve_data_random(&b, 32, 1000, 5, NULL), 0);
    moge_serve_data_get(&a, 9, 64, &x);
    moge_serve_data_get(&b, 9, 64, &y);
    assert_int_equal(x.n_prompt_ids, 32);
    assert_memory_equal(x.prompt_ids, y.prompt_ids, 32 * sizeof *x.prompt_ids);
    for (int i = 0; i < 32; i++)
        assert_in_range(x.prompt_ids[i], 250, 749);
    moge_serve_data_get(&b, 10, 64, &y);
    assert_memory_not_equal(x.prompt_ids, y.prompt_ids, 32 * sizeof *x.prompt_ids);
    moge_serve_data_free(&a);
    moge_serve_data_free(&b);
    assert_int_equal(moge_serve_data_random(&a, 32, 0, 5, NULL), MOGE_FORMAT);
    moge_serve_data_free(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompts_come_round),
        cmocka_unit_test(bad_lines_are_named),
        cmocka_unit_test(random_prompts_follow_the_seed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
