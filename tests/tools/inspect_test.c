/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <math.h>
#include "tests/mktiny.h"
#include "tools/inspect.c"

/* Runs the command and returns what it wrote to standard output (or error, as `fd` says). */
static char *output_of(int fd, int expected_rc, int argc, const char *const *argv) {
    char name[1024], *copy[8] = {0}, *text = calloc(1, 1 << 20);
    snprintf(name, sizeof name, MOGE_BINARY_DIR "/inspect_test.%ld.out", (long)getpid());
    fflush(stdout);
    int saved = dup(fd), file = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_true(saved >= 0 && file >= 0 && text);
    for (int i = 0; i < argc; i++)
        copy[i] = (char *)(uintptr_t)argv[i];
    dup2(file, fd);
    int rc = moge_command_inspect(argc, copy);
    fflush(stdout);
    dup2(saved, fd);
    close(saved);
    lseek(file, 0, SEEK_SET);
    assert_true(read(file, text, (1 << 20) - 1) >= 0);
    close(file);
    unlink(name);
    assert_int_equal(rc, expected_rc);
    return text;
}

static void text_shows_metadata_and_tensors(void **state) {
    (void)state;
    char path[1024];
    mktiny(path, sizeof path, "tiny", MOGE_TYPE_Q8_0, 1);
    char *text = output_of(STDOUT_FILENO, 0, 2, (const char *[]){"inspect", path});
    static const char *const parts[] = {
        "pangu-moe.expert_group_count", "\"synthetic tiny\"", "... 512 in all",
        "blk.1.ffn_down_exps.weight",   "32 x 64 x 16",       "0.31 M values"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (!strstr(text, parts[i]))
            fail_msg("\"%s\" is not shown", parts[i]);
    free(text);
    unlink(path);
}

static void json_is_complete(void **state) {
    (void)state;
    char path[1024];
    mktiny(path, sizeof path, "tiny", MOGE_TYPE_Q4_0, 1);
    char *text = output_of(STDOUT_FILENO, 0, 3, (const char *[]){"inspect", "--json", path});
    json_t *all = json_loads(text, 0, NULL), *metadata = json_object_get(all, "metadata");
    assert_non_null(all);
    assert_int_equal(json_integer_value(json_object_get(metadata, "pangu-moe.expert_count")), 16);
    assert_int_equal(json_array_size(json_object_get(metadata, "tokenizer.ggml.tokens")), 512);
    double eps =
        json_real_value(json_object_get(metadata, "pangu-moe.attention.layer_norm_rms_epsilon"));
    assert_true(fabs(eps - 1e-5) < 1e-9);
    json_t *first = json_array_get(json_object_get(all, "tensors"), 0);
    assert_string_equal(json_string_value(json_object_get(first, "name")), "token_embd.weight");
    assert_string_equal(json_string_value(json_object_get(first, "type")), "q4_0");
    assert_int_equal(json_integer_value(json_object_get(first, "bytes")), 512 * 2 * 18);
    json_decref(all);
    free(text);
    unlink(path);
}

/* Values that JSON has no word for do not stop it. */
static void odd_values_are_shown(void **state) {
    (void)state;
    char path[1024];
    struct moge_gguf_writer *w = NULL;
    struct moge_err err = {0};
    const float scores[] = {NAN, INFINITY, 1};
    snprintf(path, sizeof path, MOGE_BINARY_DIR "/inspect_test.%ld.gguf", (long)getpid());
    TEST_OK(moge_gguf_create(&w, path, &err), err);
    moge_gguf_put_str(w, "bytes", "\xff\xfe");
    moge_gguf_put_f32(w, "nan", NAN);
    moge_gguf_put_f32s(w, "scores", scores, 3);
    TEST_OK(moge_gguf_finish(w, &err), err);
    char *text = output_of(STDOUT_FILENO, 0, 2, (const char *[]){"inspect", path});
    assert_non_null(strstr(text, "(not UTF-8)"));
    assert_non_null(strstr(text, "scores"));
    free(text);
    text = output_of(STDOUT_FILENO, 0, 3, (const char *[]){"inspect", path, "--json"});
    json_t *all = json_loads(text, 0, NULL);
    assert_non_null(all);
    json_t *metadata = json_object_get(all, "metadata"),
           *items = json_object_get(metadata, "scores");
    assert_int_equal(json_array_size(items), 3);
    assert_true(json_is_null(json_array_get(items, 0)));
    assert_true(json_is_null(json_object_get(metadata, "nan")));
    json_decref(all);
    free(text);
    unlink(path);
}

static void what_is_wrong_is_said(void **state) {
    (void)state;
    char *text = output_of(STDERR_FILENO, 1, 2, (const char *[]){"inspect", "/nonexistent.gguf"});
    assert_non_null(strstr(text, "moge inspect: cannot open /nonexistent.gguf: No such file"));
    free(text);
    text = output_of(STDERR_FILENO, 2, 2, (const char *[]){"inspect", "--what"});
    assert_non_null(strstr(text, "--what"));
    free(text);
    free(output_of(STDERR_FILENO, 2, 1, (const char *[]){"inspect"}));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_shows_metadata_and_tensors),
        cmocka_unit_test(json_is_complete),
        cmocka_unit_test(odd_values_are_shown),
        cmocka_unit_test(what_is_wrong_is_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
