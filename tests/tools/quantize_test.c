/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include "tests/mktiny.h"
#include "tools/quantize.c"

#include "moge/engine.h"
#include "moge/tokenizer.h"

/* Runs the command with standard error thrown away. */
static int command(int argc, const char *const *argv) {
    char *copy[8] = {0};
    int saved = dup(STDERR_FILENO), nowhere = open("/dev/null", O_WRONLY);
    for (int i = 0; i < argc; i++)
        copy[i] = (char *)(uintptr_t)argv[i];
    dup2(nowhere, STDERR_FILENO);
    int rc = moge_command_quantize(argc, copy);
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(nowhere);
    return rc;
}

static int to_type(const char *in, const char *out, const char *type) {
    const char *argv[] = {"quantize", in, out, "--type", type};
    return command(5, argv);
}

/* Every value of `out` is within the share of its block's largest that the type allows. */
static void values_are_near(const struct moge_gguf *in, const struct moge_gguf *out, float share) {
    static float x[64 * 512], y[64 * 512];
    for (uint64_t i = 0; i < moge_gguf_n_tensors(in); i++) {
        const struct moge_gguf_tensor *a = moge_gguf_tensor_at(in, i);
        const struct moge_gguf_tensor *b = moge_gguf_tensor_at(out, i);
        size_t n = (size_t)(a->ne[0] * a->ne[1] * a->ne[2]);
        assert_true(n <= sizeof x / sizeof *x && a->ne[2] == b->ne[2]);
        moge_type_traits((uint32_t)a->type)->to_f32(a->data, x, n);
        moge_type_traits((uint32_t)b->type)->to_f32(b->data, y, n);
        for (size_t k = 0; k < n; k += 32) {
            float largest = 0;
            for (size_t j = k; j < k + 32 && j < n; j++)
                largest = fmaxf(largest, fabsf(x[j]));
            for (size_t j = k; j < k + 32 && j < n; j++)
                assert_true(fabsf(x[j] - y[j]) <= share * largest);
        }
    }
}

static void models_change_type_and_nothing_else(void **state) {
    (void)state;
    static const struct {
        const char *name;
        float share;
        int64_t file_type;
    } cases[] = {{"q8_0", 0.0051f, 7},
                 {"q4_0", 0.13f, 2},
                 {"bf16", 0.004f, 32},
                 {"f16", 0.001f, 1},
                 {"f32", 0, 0}};
    char in[1024], out[1100];
    mktiny(in, sizeof in, "tiny", MOGE_TYPE_F32, 1);
    snprintf(out, sizeof out, "%s.out", in);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct moge_gguf *a = NULL, *b = NULL;
        struct moge_model *before = NULL, *after = NULL;
        struct moge_model_options options = {0};
        struct moge_err err = {0};
        int64_t file_type = -1;
        assert_int_equal(to_type(in, out, cases[i].name), 0);
        TEST_OK(moge_gguf_open(&a, in, &err), err);
        TEST_OK(moge_gguf_open(&b, out, &err), err);
        TEST_OK(moge_gguf_get_int(b, "general.file_type", 0, 99, &file_type, &err), err);
        assert_int_equal(file_type, cases[i].file_type);
        assert_string_equal(
            moge_type_traits(moge_gguf_find_tensor(b, "blk.1.ffn_up_exps.weight")->type)->name,
            cases[i].name);
        assert_int_equal(moge_gguf_find_tensor(b, "blk.1.ffn_gate_inp.weight")->type,
                         MOGE_TYPE_F32);
        assert_int_equal(moge_gguf_find_tensor(b, "blk.1.attn_q.bias")->type, MOGE_TYPE_F32);
        values_are_near(a, b, cases[i].share);
        TEST_OK(moge_model_open(&before, in, &options, &err), err);
        TEST_OK(moge_model_open(&after, out, &options, &err), err);
        TEST_OK(
            moge_tokenizer_compare(moge_model_tokenizer(before), moge_model_tokenizer(after), &err),
            err);
        assert_string_equal(moge_model_info(before)->name, moge_model_info(after)->name);
        moge_model_close(before);
        moge_model_close(after);
        moge_gguf_close(a);
        moge_gguf_close(b);
        unlink(out);
    }
    unlink(in);
}

static bool same_bytes(const char *a, const char *b) {
    FILE *x = fopen(a, "rb"), *y = fopen(b, "rb");
    assert_true(x && y);
    int c = 0, d = 0;
    while (c == d && c != EOF) {
        c = getc(x);
        d = getc(y);
    }
    fclose(x);
    fclose(y);
    return c == d;
}

static int to_layout(const char *in, const char *out, const char *layout) {
    return command(5, (const char *[]){"quantize", in, out, "--layout", layout});
}

static void layouts_hold_the_same_values(void **state) {
    (void)state;
    const enum moge_type types[] = {MOGE_TYPE_Q8_0, MOGE_TYPE_Q4_0};
    char rows[1024], panels[1100], back[1100];
    for (int i = 0; i < 2; i++) {
        struct moge_gguf *gguf = NULL;
        struct moge_err err = {0};
        mktiny(rows, sizeof rows, "tiny", types[i], 1);
        snprintf(panels, sizeof panels, "%s.panels", rows);
        snprintf(back, sizeof back, "%s.back", rows);
        assert_int_equal(to_layout(rows, panels, "panels"), 0);
        TEST_OK(moge_gguf_open(&gguf, panels, &err), err);
        assert_int_equal(moge_gguf_find_tensor(gguf, "blk.1.ffn_up_exps.weight")->type,
                         moge_type_panel(types[i]));
        assert_int_equal(moge_gguf_find_tensor(gguf, "token_embd.weight")->type, types[i]);
        moge_gguf_close(gguf);
        assert_int_equal(to_layout(panels, back, "rows"), 0);
        assert_true(same_bytes(rows, back));
        /* Panels to panels is a copy; through a type and back is the same as from rows. */
        assert_int_equal(to_layout(panels, back, "panels"), 0);
        assert_true(same_bytes(panels, back));
        assert_int_equal(to_type(panels, back, "f32"), 0);
        assert_int_equal(to_type(rows, panels, "f32"), 0);
        assert_true(same_bytes(panels, back));
        assert_int_equal(to_layout(back, panels, "panels"), 1); /* nothing in it has panels */
        unlink(rows);
        unlink(panels);
        unlink(back);
    }
}

static void a_file_may_replace_itself(void **state) {
    (void)state;
    char path[1024];
    struct moge_gguf *gguf = NULL;
    struct moge_err err = {0};
    mktiny(path, sizeof path, "tiny-draft", MOGE_TYPE_F16, 1);
    assert_int_equal(to_type(path, path, "q8_0"), 0);
    TEST_OK(moge_gguf_open(&gguf, path, &err), err);
    assert_int_equal(moge_gguf_find_tensor(gguf, "output.weight")->type, MOGE_TYPE_Q8_0);
    moge_gguf_close(gguf);
    unlink(path);
}

static void what_a_type_cannot_hold_is_named(void **state) {
    (void)state;
    char in[1024], out[1100];
    struct moge_gguf_writer *w = NULL;
    struct moge_gguf *gguf = NULL;
    struct moge_err err = {0};
    float x[64] = {0};
    snprintf(in, sizeof in, MOGE_BINARY_DIR "/quantize_test.%ld.gguf", (long)getpid());
    snprintf(out, sizeof out, "%s.out", in);
    for (int i = 0; i < 3; i++) {
        const float values[] = {NAN, INFINITY, 1e30f};
        x[40] = values[i];
        TEST_OK(moge_gguf_create(&w, in, &err), err);
        moge_gguf_put_tensor(w, "matrix", (const uint64_t[]){32, 2}, 2, MOGE_TYPE_F32);
        TEST_OK(moge_gguf_write_data(w, x, sizeof x, &err), err);
        TEST_OK(moge_gguf_finish(w, &err), err);
        TEST_OK(moge_gguf_open(&gguf, in, &err), err);
        assert_int_equal(
            model_write(gguf, &(struct wish){.has_type = true, .type = MOGE_TYPE_Q8_0}, out, &err),
            MOGE_FORMAT);
        assert_string_equal(err.text, "tensor matrix holds a value that q8_0 cannot hold");
        assert_int_equal(access(out, F_OK), -1);
        moge_gguf_close(gguf);
    }
    unlink(in);
}

static void wrong_options_write_nothing(void **state) {
    (void)state;
    assert_int_equal(to_type("in", "out", "q6_k"), 2);
    assert_int_equal(command(3, (const char *[]){"quantize", "in", "out"}), 2);
    assert_int_equal(command(2, (const char *[]){"quantize", "--nonsense"}), 2);
    assert_int_equal(to_layout("in", "out", "columns"), 2);
    assert_int_equal(command(7, (const char *[]){"quantize", "in", "out", "--type", "f16",
                                                 "--layout", "panels"}),
                     2);
    assert_int_equal(to_type("/nonexistent.gguf", "out", "q8_0"), 1);
    assert_int_equal(access("out", F_OK), -1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(models_change_type_and_nothing_else),
        cmocka_unit_test(layouts_hold_the_same_values),
        cmocka_unit_test(a_file_may_replace_itself),
        cmocka_unit_test(what_a_type_cannot_hold_is_named),
        cmocka_unit_test(wrong_options_write_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
