/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include "tests/mktiny.h"
#include "tools/synth_write.c"

#include "moge/engine.h"
#include "moge/tokenizer.h"

static struct moge_model *tiny_open(const char *shape, enum moge_type type, uint64_t seed) {
    char path[1024];
    struct moge_model_options options = {0};
    struct moge_model *model = NULL;
    struct moge_err err = {0};
    mktiny(path, sizeof path, shape, type, seed);
    TEST_OK(moge_model_open(&model, path, &options, &err), err);
    unlink(path);
    return model;
}

static void every_shape_is_sound(void **state) {
    (void)state;
    static const struct {
        const char *name;
        double params; /* in millions, to half a percent */
    } shapes[] = {{"tiny", 0.31408},          {"tiny-draft", 0.042176},
                  {"moge-3b", 2825.5},        {"moge-3b-draft", 32.12},
                  {"pangu-pro-moe", 71988.8}, {"pangu-pro-moe-4l", 7438.8}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        char path[1024];
        struct moge_shape shape;
        struct moge_err err = {0};
        struct moge_synth_tensor *tensors = NULL;
        uint64_t n = 0, values = 0;
        snprintf(path, sizeof path, MOGE_SOURCE_DIR "/bench/shapes/%s.ini", shapes[i].name);
        TEST_OK(moge_shape_read(&shape, path, &err), err);
        assert_string_equal(shape.name, shapes[i].name);
        TEST_OK(moge_synth_plan(&shape, MOGE_TYPE_Q8_0, &tensors, &n, &err), err);
        for (uint64_t k = 0; k < n; k++)
            values += tensors[k].ne[0] * tensors[k].ne[1] * tensors[k].ne[2];
        free(tensors);
        if (fabs((double)values * 1e-6 / shapes[i].params - 1) > 0.005)
            fail_msg("%s has %.3f million parameters", shapes[i].name, (double)values * 1e-6);
    }
}

static int read_text(const char *text, struct moge_err *err) {
    char path[1024];
    struct moge_shape shape;
    snprintf(path, sizeof path, MOGE_BINARY_DIR "/synth_test.%ld.ini", (long)getpid());
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    int rc = moge_shape_read(&shape, path, err);
    unlink(path);
    return rc;
}

static void bad_shapes_are_refused(void **state) {
    (void)state;
#define DENSE                                                                                      \
    "[model]\narchitecture = llama\nvocabulary = 512\nlayers = 1\nhidden = 32\nheads = 2\n"        \
    "kv_heads = 1\nhead_dim = 16\ncontext = 64\n"
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"[model]\nlayer = 3\n", "layer: no such key"},
        {"[shape]\nlayers = 3\n", "no such section"},
        {"[model]\nlayers = three\n", "layers: \"three\" is not a number"},
        {"[model]\nlayers = 99999999999999999999\n", "is not a number from 1"},
        {"[model]\nlayers = -1\n", "is not a number from 1"},
        {"[model]\nwhat\n", "line 2"},
        {DENSE "ffn = 64\nvocabulary = 100\n", "vocabulary"},
        {DENSE, "a dense model has ffn"},
        {DENSE "ffn = 64\nexperts = 4\n", "no experts"},
        {DENSE "ffn = 64\narchitecture = gpt2\n", "gpt2"},
        {DENSE "ffn = 64\nkv_heads = 3\n", "KV heads"},
        {DENSE "ffn = 64\ntied = maybe\n", "true or false"},
        {DENSE "architecture = pangu-moe\nexperts = 12\nexperts_used = 8\ngroups = 8\n"
               "expert_ffn = 32\n",
         "equal groups"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct moge_err err = {0};
        assert_int_equal(read_text(cases[i].text, &err), MOGE_INVALID);
        if (!strstr(err.text, cases[i].part))
            fail_msg("\"%s\" does not contain \"%s\"", err.text, cases[i].part);
    }
    struct moge_err err = {0};
    struct moge_shape shape;
    TEST_OK(read_text(DENSE "ffn = 64\n", &err), err);
    assert_int_equal(moge_shape_read(&shape, "/nonexistent.ini", &err), MOGE_IO);
}

/* Same arguments, same bytes; another seed, other bytes. */
static void files_are_reproducible(void **state) {
    (void)state;
    uint64_t sums[3];
    for (int i = 0; i < 3; i++) {
        char path[1024];
        uint64_t sum = 14695981039346656037u;
        mktiny(path, sizeof path, "tiny", MOGE_TYPE_Q4_0, i == 2);
        FILE *file = fopen(path, "rb");
        assert_non_null(file);
        for (int c; (c = fgetc(file)) != EOF;)
            sum = (sum ^ (uint64_t)c) * 0x100000001b3u;
        fclose(file);
        unlink(path);
        sums[i] = sum;
    }
    assert_true(sums[0] == sums[1] && sums[0] != sums[2]);
}

static void blocks_are_symmetric_and_spread(void **state) {
    (void)state;
    struct rng rng = rng_init(7, "x");
    struct moge_block_q8_0 q8[512];
    struct moge_block_q4_0 q4[512];
    static float x[512 * MOGE_QBLOCK];
    fill_q8_0(&rng, 0.02f, q8, 512);
    fill_q4_0(&rng, 0.02f, q4, 512);
    for (int kind = 0; kind < 2; kind++) {
        double sum = 0, squares = 0;
        if (kind == 0)
            moge_type_traits(MOGE_TYPE_Q8_0)->to_f32(q8, x, 512 * MOGE_QBLOCK);
        else
            moge_type_traits(MOGE_TYPE_Q4_0)->to_f32(q4, x, 512 * MOGE_QBLOCK);
        for (int i = 0; i < 512 * MOGE_QBLOCK; i++) {
            sum += (double)x[i];
            squares += (double)x[i] * (double)x[i];
        }
        double mean = sum / (512 * MOGE_QBLOCK), deviation = sqrt(squares / (512 * MOGE_QBLOCK));
        assert_true(fabs(mean) < 0.001);
        assert_true(deviation > 0.018 && deviation < 0.023);
    }
    for (int b = 0; b < 512; b++)
        for (int i = 0; i < MOGE_QBLOCK; i++)
            assert_true(q8[b].q[i] != INT8_MIN);
}

static void any_text_goes_through_the_tokenizer(void **state) {
    (void)state;
    struct moge_model *model = tiny_open("tiny", MOGE_TYPE_Q8_0, 1);
    const struct moge_tokenizer *tok = moge_model_tokenizer(model);
    static const char *const texts[] = {"The query returns a table of values.",
                                        " two  spaces ",
                                        "caf\xc3\xa9 \xe7\x94\xa8\xe6\x88\xb7\n\ttab",
                                        "x",
                                        "0123",
                                        "[unused9]\xe7\x94\xa8"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        int32_t ids[256];
        char out[1024], piece[256];
        size_t len = 0;
        int n = moge_tokenizer_encode(tok, texts[i], strlen(texts[i]), 0, ids, 256);
        assert_true(n > 0);
        struct moge_detok detok;
        assert_true(moge_tokenizer_push_max(tok) <= sizeof piece);
        moge_detok_init(&detok, tok, false);
        for (int k = 0; k < n; k++)
            len += moge_detok_push(&detok, ids[k], out + len);
        len += moge_detok_finish(&detok, out + len);
        assert_int_equal(len, strlen(texts[i]));
        assert_memory_equal(out, texts[i], len);
    }
    moge_model_close(model);
}

static void draft_and_target_share_the_tokenizer(void **state) {
    (void)state;
    struct moge_model *target = tiny_open("tiny", MOGE_TYPE_Q8_0, 1);
    struct moge_model *draft = tiny_open("tiny-draft", MOGE_TYPE_F16, 2);
    struct moge_err err = {0};
    TEST_OK(moge_tokenizer_compare(moge_model_tokenizer(target), moge_model_tokenizer(draft), &err),
            err);
    moge_model_close(target);
    moge_model_close(draft);
}

/* English comes out at a realistic length with the vocabulary of the bench shape. */
static void english_costs_what_it_usually_does(void **state) {
    (void)state;
    char path[1024];
    struct moge_shape shape;
    struct moge_err err = {0};
    struct moge_gguf *gguf = NULL;
    struct moge_tokenizer *tok = NULL;
    static const char text[] =
        "A database index allows a query to find rows quickly without reading every page of the "
        "table. Other systems keep the whole of their data in memory, which is faster still.";
    int32_t ids[256];
    TEST_OK(moge_shape_read(&shape, MOGE_SOURCE_DIR "/bench/shapes/tiny-draft.ini", &err), err);
    shape.n_vocab = 32000;
    snprintf(path, sizeof path, MOGE_BINARY_DIR "/synth_test.%ld.gguf", (long)getpid());
    TEST_OK(moge_synth_write(&shape, MOGE_TYPE_Q4_0, 0, path, &err), err);
    TEST_OK(moge_gguf_open(&gguf, path, &err), err);
    unlink(path);
    TEST_OK(moge_tokenizer_open(&tok, gguf, &err), err);
    int n = moge_tokenizer_encode(tok, text, sizeof text - 1, 0, ids, 256);
    double per_token = (double)(sizeof text - 1) / n;
    if (per_token < 2.5 || per_token > 5)
        fail_msg("%.2f characters a token", per_token);
    moge_tokenizer_close(tok);
    moge_gguf_close(gguf);
}

/* Runs eight tokens through a model; the logits are finite, differ from token to token, and are
 * neither flat nor wild. */
static void forward_gives_sensible_logits(const char *shape, enum moge_type type) {
    struct moge_model *model = tiny_open(shape, type, 3);
    struct moge_threads *threads = NULL;
    struct moge_engine *engine = NULL;
    struct moge_err err = {0};
    struct moge_engine_options options = {
        .n_pages = 1, .n_rows_max = 8, .n_logits_max = 8, .n_context_max = 16};
    int32_t tokens[64] = {1, 270, 300, 350, 400, 450, 500, 510}, pages[1] = {0};
    struct moge_span span = {
        .tokens = tokens, .pages = pages, .n_rows = 8, .n_known = 8, .n_prompt = 8, .n_logits = 8};
    struct moge_batch batch = {
        .spans = &span, .n_spans = 1, .n_spans_cap = 1, .n_rows_cap = 8, .n_logits_cap = 8};
    TEST_OK(moge_threads_new(&threads, 1, &err), err);
    TEST_OK(moge_engine_new(&engine, model, threads, &options, &err), err);
    assert_int_equal(moge_engine_forward(engine, &batch), 0);
    int n_vocab = moge_model_info(model)->n_vocab, best[8];
    for (int r = 0; r < 8; r++) {
        const float *logits = batch.logits + (size_t)r * (size_t)n_vocab;
        double squares = 0;
        best[r] = 0;
        for (int i = 0; i < n_vocab; i++) {
            assert_true(isfinite(logits[i]));
            squares += (double)logits[i] * (double)logits[i];
            best[r] = logits[i] > logits[best[r]] ? i : best[r];
        }
        double deviation = sqrt(squares / n_vocab);
        if (deviation < 1 || deviation > 16)
            fail_msg("logits of %s %s deviate by %.2f", shape, moge_type_traits(type)->name,
                     deviation);
    }
    int n_distinct = 0;
    for (int r = 1; r < 8; r++)
        n_distinct += best[r] != best[0];
    assert_true(n_distinct >= 4);
    moge_engine_free(engine);
    moge_threads_free(threads);
    moge_model_close(model);
}

static void models_compute(void **state) {
    (void)state;
    const enum moge_type types[] = {MOGE_TYPE_F32, MOGE_TYPE_F16, MOGE_TYPE_BF16, MOGE_TYPE_Q8_0,
                                    MOGE_TYPE_Q4_0};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        forward_gives_sensible_logits("tiny", types[i]);
        forward_gives_sensible_logits("tiny-draft", types[i]);
    }
}

static void nothing_is_left_of_a_failed_write(void **state) {
    (void)state;
    struct moge_shape shape = {.architecture = "llama"};
    struct moge_err err = {0};
    assert_int_equal(moge_synth_write(&shape, MOGE_TYPE_F16, 0, "/dev/null/x", &err), MOGE_INVALID);
    TEST_OK(moge_shape_read(&shape, MOGE_SOURCE_DIR "/bench/shapes/tiny.ini", &err), err);
    assert_int_equal(moge_synth_write(&shape, MOGE_TYPE_F16, 0, "/dev/null/x", &err), MOGE_IO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_shape_is_sound),
        cmocka_unit_test(bad_shapes_are_refused),
        cmocka_unit_test(files_are_reproducible),
        cmocka_unit_test(blocks_are_symmetric_and_spread),
        cmocka_unit_test(any_text_goes_through_the_tokenizer),
        cmocka_unit_test(draft_and_target_share_the_tokenizer),
        cmocka_unit_test(english_costs_what_it_usually_does),
        cmocka_unit_test(models_compute),
        cmocka_unit_test(nothing_is_left_of_a_failed_write),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
