/* SPDX-License-Identifier: Apache-2.0 */
/* Stored panels: the drawing of the layout, and models that are used where their file is mapped. */
#include <math.h>
#include <sys/mman.h>
#include "tests/mktiny.h"
#include "engine/panel_layout.c"

#include "engine/gemm.h"
#include "engine/model.h"

static const enum moge_type plain_types[] = {MOGE_TYPE_Q8_0, MOGE_TYPE_Q4_0};
static const enum moge_type panel_types[] = {MOGE_TYPE_Q8_0_P8, MOGE_TYPE_Q4_0_P8};

/* ---- panels ---- */

static uint64_t digest(const void *data, size_t n) {
    const unsigned char *bytes = data;
    uint64_t h = 14695981039346656037u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ bytes[i]) * 1099511628211u;
    return h;
}

static void rows_come_back_as_they_went(void **state) {
    (void)state;
    static unsigned char rows[8 * 16 * 34], back[sizeof rows];
    _Alignas(64) static unsigned char panel[sizeof rows];
    struct test_rng rng = test_rng_init(3);
    for (int t = 0; t < 2; t++)
        for (int32_t n_in = 32; n_in <= 512; n_in += 32) {
            size_t bytes = moge_matrix_bytes(plain_types[t], 8, n_in);
            for (size_t i = 0; i < bytes; i++)
                rows[i] = (unsigned char)test_below(&rng, 256);
            moge_panels_pack(plain_types[t], rows, 8, n_in, panel);
            memset(back, 0, sizeof back);
            moge_panel_unpack(plain_types[t], panel, n_in, back);
            assert_memory_equal(back, rows, bytes);
        }
}

static void missing_rows_are_zeros(void **state) {
    (void)state;
    static unsigned char rows[16 * 5 * 34];
    static unsigned char cut[sizeof rows], whole[sizeof rows];
    struct test_rng rng = test_rng_init(4);
    for (int t = 0; t < 2; t++) {
        size_t row_bytes = moge_matrix_bytes(plain_types[t], 8, 5 * 32) / 8;
        for (size_t i = 0; i < 16 * row_bytes; i++)
            rows[i] = (unsigned char)test_below(&rng, 256);
        for (int32_t n = 15; n > 0; n--) {
            memset(cut, 0xff, sizeof cut);
            moge_panels_pack(plain_types[t], rows, n, 5 * 32, cut);
            memset(rows + (size_t)n * row_bytes, 0, row_bytes);
            moge_panels_pack(plain_types[t], rows, n > 8 ? 16 : 8, 5 * 32, whole);
            assert_memory_equal(cut, whole, (n > 8 ? 16 : 8) * row_bytes);
        }
    }
}

/* Files hold these bytes.  A build that arranges them otherwise must not read old files as if they
 * were its own: then MOGE_PANEL_LAYOUT is raised, and the digests here with it. */
static void the_layout_is_the_one_of_its_version(void **state) {
    (void)state;
    static const uint64_t expected[] = {0x4adb0db95f352bd2u, 0x90447ade683a6d46u};
    static unsigned char rows[8 * 5 * 34];
    _Alignas(64) static unsigned char panel[sizeof rows];
    for (size_t i = 0; i < sizeof rows; i++)
        rows[i] = (unsigned char)(i * i / 7 + i);
    for (int t = 0; t < 2; t++) {
        size_t bytes = moge_matrix_bytes(plain_types[t], 8, 5 * 32);
        moge_panels_pack(plain_types[t], rows, 8, 5 * 32, panel);
        if (MOGE_PANEL_LAYOUT != 1 || digest(panel, bytes) != expected[t])
            fail_msg("layout %d of %s has digest %#llx", MOGE_PANEL_LAYOUT,
                     moge_type_traits(plain_types[t])->name,
                     (unsigned long long)digest(panel, bytes));
    }
}

static void every_scale_is_looked_at(void **state) {
    (void)state;
    static unsigned char rows[16 * 5 * 34];
    _Alignas(64) static unsigned char panels[sizeof rows];
    for (int t = 0; t < 2; t++) {
        size_t step = t == 0 ? sizeof(struct moge_block_q8_0) : sizeof(struct moge_block_q4_0);
        memset(rows, 0xff, sizeof rows); /* quads may be anything */
        for (size_t b = 0; b < 16 * 5; b++)
            memset(rows + b * step, 0x3c, 2);
        moge_panels_pack(plain_types[t], rows, 16, 5 * 32, panels);
        assert_true(moge_panels_finite(plain_types[t], panels, 5 * 32, 2));
        for (size_t b = 0; b < 16 * 5; b++) {
            rows[b * step + 1] = b % 2 ? 0x7c : 0xff; /* infinity or NaN, then as before */
            moge_panels_pack(plain_types[t], rows, 16, 5 * 32, panels);
            assert_false(moge_panels_finite(plain_types[t], panels, 5 * 32, 2));
            rows[b * step + 1] = 0x3c;
        }
    }
}

/* ---- models ---- */

static struct moge_model *model_open(const char *path, enum moge_weights weights) {
    struct moge_model_options options = {.weights = weights, .huge_pages = true};
    struct moge_model *model = NULL;
    struct moge_err err = {0};
    TEST_OK(moge_model_open(&model, path, &options, &err), err);
    return model;
}

static bool is_mapped(const struct moge_model *model, const struct moge_matrix *matrix) {
    const struct moge_gguf_tensor *first = moge_gguf_tensor_at(model->gguf, 0);
    const unsigned char *data = matrix->data;
    return data >= first->data && data < first->data + moge_gguf_file_bytes(model->gguf);
}

/* Logits of 40 made-up tokens, freed by the caller. */
static float *logits_of(const struct moge_model *model, enum moge_kv_type kv_type) {
    enum { N = 40 };
    struct moge_engine_options options = {
        .n_pages = 3, .n_rows_max = N, .n_logits_max = N, .n_context_max = 48, .kv_type = kv_type};
    struct moge_threads *threads = NULL;
    struct moge_engine *engine = NULL;
    struct moge_err err = {0};
    int32_t tokens[N], pages[3] = {0, 1, 2};
    for (int32_t i = 0; i < N; i++)
        tokens[i] = (i * 37 + 5) % moge_model_info(model)->n_vocab;
    struct moge_span span = {
        .tokens = tokens, .pages = pages, .n_rows = N, .n_known = N, .n_logits = N};
    struct moge_batch batch = {.spans = &span, .n_spans = 1, .n_spans_cap = 1};
    TEST_OK(moge_threads_new(&threads, 2, &err), err);
    TEST_OK(moge_engine_new(&engine, model, threads, &options, &err), err);
    assert_int_equal(moge_engine_forward(engine, &batch), 0);
    size_t bytes = (size_t)N * (size_t)moge_model_info(model)->n_vocab * sizeof(float);
    float *logits = malloc(bytes);
    assert_non_null(logits);
    memcpy(logits, batch.logits + (size_t)span.logits_row * (size_t)batch.n_vocab, bytes);
    moge_engine_free(engine);
    moge_threads_free(threads);
    return logits;
}

/* The same shape and seed in rows and in panels. */
static void same_logits(const struct moge_shape *shape, int t, enum moge_weights weights) {
    char rows[1024], panels[1024];
    struct moge_err err = {0};
    snprintf(rows, sizeof rows, MOGE_BINARY_DIR "/panel_layout_test.%ld.rows", (long)getpid());
    snprintf(panels, sizeof panels, MOGE_BINARY_DIR "/panel_layout_test.%ld.p8", (long)getpid());
    TEST_OK(moge_synth_write(shape, plain_types[t], 11, rows, &err), err);
    TEST_OK(moge_synth_write(shape, panel_types[t], 11, panels, &err), err);
    struct moge_model *a = model_open(rows, weights), *b = model_open(panels, weights);
    assert_string_equal(moge_model_info(a)->weights, moge_model_info(b)->weights);
    assert_int_equal(moge_model_info(a)->n_params, moge_model_info(b)->n_params);
    assert_int_equal(moge_model_info(a)->weight_bytes, moge_model_info(b)->weight_bytes);
    float *of_rows = logits_of(a, MOGE_KV_F16), *of_panels = logits_of(b, MOGE_KV_F16);
    assert_memory_equal(of_rows, of_panels, 40 * (size_t)shape->n_vocab * sizeof(float));
    free(of_rows);
    free(of_panels);
    moge_model_close(a);
    moge_model_close(b);
    unlink(rows);
    unlink(panels);
}

static struct moge_shape shape_read(const char *path) {
    struct moge_shape shape;
    struct moge_err err = {0};
    TEST_OK(moge_shape_read(&shape, path, &err), err);
    return shape;
}

static void panels_compute_what_rows_do(void **state) {
    (void)state;
    struct moge_shape shape = shape_read(MOGE_SOURCE_DIR "/bench/shapes/tiny.ini");
    struct moge_shape dense = shape_read(MOGE_SOURCE_DIR "/bench/shapes/tiny-draft.ini");
    dense.tied = true;
    for (int t = 0; t < 2; t++) {
        same_logits(&shape, t, MOGE_WEIGHTS_AS_STORED);
        same_logits(&shape, t, MOGE_WEIGHTS_F32);
        same_logits(&dense, t, MOGE_WEIGHTS_AS_STORED);
    }
    /* Rows that no panel holds (the output), stacks whose members lie askew (copied), widths that
     * are no multiple of 32 (F16). */
    shape.n_vocab = 401;
    shape.dim = 96;
    shape.expert_dim = 40;
    for (int t = 0; t < 2; t++)
        same_logits(&shape, t, MOGE_WEIGHTS_AS_STORED);
}

static void panels_are_used_where_they_lie(void **state) {
    (void)state;
    for (int t = 0; t < 2; t++) {
        char path[1024];
        mktiny(path, sizeof path, "tiny", panel_types[t], 1);
        struct moge_model *model = model_open(path, MOGE_WEIGHTS_AS_STORED);
        for (int32_t i = 0; i < model->info.n_layers; i++) {
            const struct moge_layer *layer = &model->layers[i];
            assert_true(is_mapped(model, &layer->q) && is_mapped(model, &layer->o));
            assert_true(is_mapped(model, &layer->gate) && is_mapped(model, &layer->down));
            for (int32_t e = 0; e < model->info.n_experts; e++)
                assert_true(is_mapped(model, &layer->gate_exps[e]) &&
                            is_mapped(model, &layer->down_exps[e]));
            assert_int_equal(layer->q.type, plain_types[t]);
        }
        assert_true(is_mapped(model, &model->output));
        assert_int_equal(model->embed.type, plain_types[t]);
        /* Vectors and descriptions only. */
        assert_true(model->weights.used_bytes < 64 * 1024);
        moge_model_close(model);
        model = model_open(path, MOGE_WEIGHTS_F32);
        assert_false(is_mapped(model, &model->output));
        moge_model_close(model);
        unlink(path);
    }
}

/* ---- files that lie ---- */

struct file {
    unsigned char *data;
    size_t bytes;
};

static struct file file_read(const char *path) {
    FILE *in = fopen(path, "rb");
    assert_non_null(in);
    fseek(in, 0, SEEK_END);
    struct file file = {NULL, (size_t)ftell(in)};
    file.data = malloc(file.bytes);
    assert_non_null(file.data);
    rewind(in);
    assert_int_equal(fread(file.data, 1, file.bytes, in), file.bytes);
    fclose(in);
    return file;
}

static unsigned char *find(const struct file *file, const char *text) {
    unsigned char *at = memmem(file->data, file->bytes, text, strlen(text));
    assert_non_null(at);
    return at + strlen(text);
}

/* The first `bytes` of the file are refused in these words. */
static void refused(const struct file *file, size_t bytes, const char *part) {
    char path[1024];
    struct moge_model_options options = {0};
    struct moge_model *model = NULL;
    struct moge_err err = {0};
    snprintf(path, sizeof path, MOGE_BINARY_DIR "/panel_layout_test.%ld.lie", (long)getpid());
    FILE *out = fopen(path, "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(file->data, 1, bytes, out), bytes);
    fclose(out);
    int rc = moge_model_open(&model, path, &options, &err);
    unlink(path);
    if (rc != MOGE_FORMAT || model || !strstr(err.text, part))
        fail_msg("%d (\"%s\") where \"%s\" was expected", rc, err.text, part);
}

/* Overwrites bytes, asks, and puts them back. */
static void refused_with(const struct file *file, unsigned char *at, const void *bytes, size_t n,
                         const char *part) {
    unsigned char before[32];
    memcpy(before, at, n);
    memcpy(at, bytes, n);
    refused(file, file->bytes, part);
    memcpy(at, before, n);
}

static void lies_about_panels(void **state) {
    (void)state;
    char path[1024];
    mktiny(path, sizeof path, "tiny", MOGE_TYPE_Q8_0_P8, 1);
    struct file file = file_read(path);
    unlink(path);
    unsigned char *layout = find(&file, "moge.panel_layout") + 4; /* behind the kind */
    unsigned char *alignment = find(&file, "general.alignment") + 4;
    unsigned char *rows = find(&file, "blk.0.attn_q.weight") + 12; /* n_dims, ne[0] */
    unsigned char *embed = find(&file, "token_embd.weight") + 20;  /* n_dims, ne[0], ne[1] */
    const uint32_t versions[] = {0, 2, UINT32_MAX}, panel_type = MOGE_TYPE_Q8_0_P8,
                   unknown = 0x4d470003;
    for (int i = 0; i < 3; i++)
        refused_with(&file, layout, &versions[i], 4, "but this build computes with layout 1");
    refused_with(&file, layout - 4, &(uint32_t){MOGE_GGUF_F32}, 4,
                 "moge.panel_layout must be an integer");
    refused_with(&file, layout - 5, "x", 1, "key moge.panel_layout, which says how");
    refused_with(&file, alignment, &(uint32_t){32}, 4, "need a general.alignment of 64, not 32");
    refused_with(&file, rows, &(uint64_t){63}, 8, "has 63 rows, not a multiple of the 8");
    refused_with(&file, rows - 8, &(uint64_t){65}, 8, "not a multiple of the 32");
    refused_with(&file, rows, &(uint64_t){UINT64_MAX - 7}, 8, "dimension 1 of tensor blk.0.attn_q");
    refused_with(&file, embed, &panel_type, 4, "token_embd.weight is stored in panels");
    refused_with(&file, embed, &unknown, 4, "(unknown), which this build cannot read");
    uint16_t infinity = 0x7c00; /* the first scale of the last tensor, the output */
    size_t output = moge_matrix_bytes(MOGE_TYPE_Q8_0, 512, 64);
    refused_with(&file, file.data + file.bytes - output, &infinity, 2,
                 "tensor output.weight holds");
    for (size_t i = 1; i <= 64; i++)
        refused(&file, file.bytes - i * output / 64, "output.weight");
    for (size_t i = 0; i < 64; i++)
        refused(&file, file.bytes * i / 64, "");
    free(file.data);
}

static void a_vector_is_no_panel(void **state) {
    (void)state;
    char path[1024];
    mktiny(path, sizeof path, "tiny", MOGE_TYPE_Q8_0_P8, 1);
    struct file file = file_read(path);
    unlink(path);
    unsigned char *type = find(&file, "output_norm.weight") + 12;
    refused_with(&file, type, &(uint32_t){MOGE_TYPE_Q8_0_P8}, 4, "output_norm.weight");
    free(file.data);
}

/* The writer wants the layout said first, and panels whole. */
static void the_writer_refuses_half_panels(void **state) {
    (void)state;
    const struct {
        bool says;
        uint64_t ne[2];
    } cases[] = {{false, {32, 8}}, {true, {32, 12}}, {true, {48, 8}}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char path[1024];
        struct moge_gguf_writer *w = NULL;
        struct moge_err err = {0};
        snprintf(path, sizeof path, MOGE_BINARY_DIR "/panel_layout_test.%ld.w", (long)getpid());
        TEST_OK(moge_gguf_create(&w, path, &err), err);
        if (cases[i].says)
            moge_gguf_put_panel_layout(w);
        moge_gguf_put_tensor(w, "t", cases[i].ne, 2, MOGE_TYPE_Q8_0_P8);
        assert_int_equal(moge_gguf_finish(w, &err), MOGE_INVALID);
        assert_string_equal(err.text, "tensor t cannot be declared with this shape");
        assert_int_equal(access(path, F_OK), -1);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_come_back_as_they_went),
        cmocka_unit_test(missing_rows_are_zeros),
        cmocka_unit_test(the_layout_is_the_one_of_its_version),
        cmocka_unit_test(every_scale_is_looked_at),
        cmocka_unit_test(panels_compute_what_rows_do),
        cmocka_unit_test(panels_are_used_where_they_lie),
        cmocka_unit_test(lies_about_panels),
        cmocka_unit_test(a_vector_is_no_panel),
        cmocka_unit_test(the_writer_refuses_half_panels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
