/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <sys/resource.h>
#include "tests/mktiny.h"
#include "engine/model.c"

/* ---- files that are wrong in one way ---- */

/* One change to a file.  key: dropped unless a value is given.  tensor: dropped unless renamed,
 * given other dimensions or another type (its data are then zeros). */
struct edit {
    const char *key;
    const char *text;    /* new string value */
    int64_t number;      /* new u32 value unless `keep` */
    bool drop, is_float; /* number / 1000 as f32 */
    const char *tensor, *rename;
    uint64_t ne[3];
    bool has_type, with_nan;
    enum moge_type type;
    const char *extra; /* one more tensor of this name */
};

static bool is(struct moge_str s, const char *text) {
    return text && s.len == strlen(text) && memcmp(s.data, text, s.len) == 0;
}

static void put_edited(struct moge_gguf_writer *w, const struct edit *edit) {
    if (edit->drop)
        return;
    if (edit->text)
        moge_gguf_put_str(w, edit->key, edit->text);
    else if (edit->is_float)
        moge_gguf_put_f32(w, edit->key, (float)edit->number / 1000.0f);
    else
        moge_gguf_put_u32(w, edit->key, (uint32_t)edit->number);
}

static void put_tensor(struct moge_gguf_writer *w, const struct edit *edit,
                       const struct moge_gguf_tensor *tensor) {
    char name[256];
    uint64_t ne[4];
    bool edited = is(tensor->name, edit->tensor);
    memcpy(ne, tensor->ne, sizeof ne);
    if (edited && edit->ne[0])
        memcpy(ne, edit->ne, sizeof edit->ne);
    snprintf(name, sizeof name, "%.*s", (int)tensor->name.len, tensor->name.data);
    moge_gguf_put_tensor(w, edited && edit->rename ? edit->rename : name, ne, 3,
                         edited && edit->has_type ? edit->type : tensor->type);
}

static void write_tensor_data(struct moge_gguf_writer *w, const struct edit *edit,
                              const struct moge_gguf_tensor *tensor) {
    bool edited = is(tensor->name, edit->tensor);
    enum moge_type type = edited && edit->has_type ? edit->type : tensor->type;
    const uint64_t *ne = edited && edit->ne[0] ? edit->ne : tensor->ne;
    const struct moge_type_traits *traits = moge_type_traits((uint32_t)type);
    size_t bytes = (size_t)(ne[0] * ne[1] * ne[2]) / (size_t)traits->block_values *
                   (size_t)traits->block_bytes;
    unsigned char *data = calloc(1, bytes);
    struct moge_err err = {0};
    if (bytes == tensor->bytes)
        memcpy(data, tensor->data, bytes);
    if (edited && edit->with_nan) { /* the last value, or the scale of the last block */
        uint16_t nan16 = 0x7fff;
        size_t back = traits->block_values > 1 ? (size_t)traits->block_bytes : 2;
        memcpy(data + bytes - back, &nan16, sizeof nan16);
    }
    TEST_OK(moge_gguf_write_data(w, data, bytes, &err), err);
    free(data);
}

/* Copies a file with the change made. */
static void rewrite(const char *from, const char *to, const struct edit *edit) {
    struct moge_gguf *gguf = NULL;
    struct moge_gguf_writer *w = NULL;
    struct moge_err err = {0};
    const uint64_t ne[] = {8};
    const float zeros[8] = {0};
    TEST_OK(moge_gguf_open(&gguf, from, &err), err);
    TEST_OK(moge_gguf_create(&w, to, &err), err);
    for (uint64_t i = 0; i < moge_gguf_n_values(gguf); i++)
        if (!is(moge_gguf_value_at(gguf, i)->key, edit->key))
            moge_gguf_put_copy(w, moge_gguf_value_at(gguf, i));
    if (edit->key)
        put_edited(w, edit);
    for (int pass = 0; pass < 2; pass++) {
        for (uint64_t i = 0; i < moge_gguf_n_tensors(gguf); i++) {
            const struct moge_gguf_tensor *tensor = moge_gguf_tensor_at(gguf, i);
            if (is(tensor->name, edit->tensor) && edit->drop)
                continue;
            if (pass == 0)
                put_tensor(w, edit, tensor);
            else
                write_tensor_data(w, edit, tensor);
        }
        if (pass == 0 && edit->extra)
            moge_gguf_put_tensor(w, edit->extra, ne, 1, MOGE_TYPE_F32);
    }
    if (edit->extra)
        TEST_OK(moge_gguf_write_data(w, zeros, sizeof zeros, &err), err);
    TEST_OK(moge_gguf_finish(w, &err), err);
    moge_gguf_close(gguf);
}

static struct moge_model *open_with(const char *path, enum moge_weights weights) {
    struct moge_model_options options = {.weights = weights};
    struct moge_model *model = NULL;
    struct moge_err err = {0};
    TEST_OK(moge_model_open(&model, path, &options, &err), err);
    return model;
}

/* Opening the changed file gives this sentence (part of it), and names the file. */
static void sentence_is(const char *path, const struct edit *edit, const char *part) {
    char changed[1100];
    struct moge_model_options options = {0};
    struct moge_model *model = NULL;
    struct moge_err err = {0};
    snprintf(changed, sizeof changed, "%s.changed", path);
    rewrite(path, changed, edit);
    int rc = moge_model_open(&model, changed, &options, &err);
    unlink(changed);
    if (rc != MOGE_FORMAT || model)
        fail_msg("%d (\"%s\") where \"%s\" was expected", rc, err.text, part);
    if (!strstr(err.text, part) || !strstr(err.text, ".gguf.changed: "))
        fail_msg("\"%s\" does not contain \"%s\"", err.text, part);
}

struct refusal {
    struct edit edit;
    const char *part;
};

static void refusals(const char *shape, const struct refusal *cases, size_t n) {
    char path[1024];
    mktiny(path, sizeof path, shape, MOGE_TYPE_Q8_0, 1);
    for (size_t i = 0; i < n; i++)
        sentence_is(path, &cases[i].edit, cases[i].part);
    unlink(path);
}

static void lying_metadata(void **state) {
    (void)state;
    static const struct refusal cases[] = {
        {{.key = "general.architecture", .text = "gpt2"}, "architecture gpt2 is not supported"},
        {{.key = "general.architecture", .drop = true}, "general.architecture is missing"},
        {{.key = "general.architecture", .number = 3}, "general.architecture must be a string"},
        {{.key = "pangu-moe.block_count", .drop = true}, "pangu-moe.block_count is missing"},
        {{.key = "pangu-moe.block_count", .number = 0}, "block_count is 0; it must be between"},
        {{.key = "pangu-moe.block_count", .number = 4294967295}, "block_count is 4294967295"},
        {{.key = "pangu-moe.block_count", .number = 3}, "tensor blk.2.attn_norm.weight is missing"},
        {{.key = "pangu-moe.block_count", .number = 1}, "tensor blk.1."},
        {{.key = "pangu-moe.embedding_length", .number = 128}, "token_embd.weight is 64 x 512"},
        {{.key = "pangu-moe.attention.head_count", .number = 8}, "attn_q.weight is 64 x 64"},
        {{.key = "pangu-moe.attention.head_count", .number = 3}, "3 attention heads"},
        {{.key = "pangu-moe.attention.head_count_kv", .number = 4}, "attn_k.weight is 64 x 32"},
        {{.key = "pangu-moe.attention.key_length", .number = 15}, "must be equal and even"},
        {{.key = "pangu-moe.attention.value_length", .number = 32}, "must be equal and even"},
        {{.key = "pangu-moe.rope.dimension_count", .number = 8}, "must be equal and even"},
        {{.key = "pangu-moe.rope.freq_base", .number = 10}, "must be a floating-point number"},
        {{.key = "pangu-moe.rope.freq_base", .is_float = true, .number = -1}, "rope.freq_base is"},
        {{.key = "pangu-moe.rope.scaling.type", .text = "yarn"}, "scaling"},
        {{.key = "pangu-moe.attention.sliding_window", .number = 128},
         "attention.sliding_window is 128"},
        {{.key = "pangu-moe.leading_dense_block_count", .number = 1}, "leading_dense_block_count"},
        {{.key = "pangu-moe.expert_count", .number = 8}, "ffn_gate_inp.weight is 64 x 16"},
        {{.key = "pangu-moe.expert_count", .number = 4294967295}, "expert_count is 4294967295"},
        {{.key = "pangu-moe.expert_used_count", .number = 17}, "expert_used_count is 17"},
        {{.key = "pangu-moe.expert_used_count", .number = 12}, "equal groups"},
        {{.key = "pangu-moe.expert_group_count", .number = 3}, "equal groups"},
        {{.key = "pangu-moe.expert_group_count", .drop = true}, "expert_group_count is missing"},
        {{.key = "pangu-moe.expert_feed_forward_length", .number = 64}, "ffn_gate_exps.weight"},
        {{.key = "pangu-moe.expert_shared_feed_forward_length", .number = 32}, "ffn_gate_shexp"},
        {{.key = "tokenizer.ggml.tokens", .drop = true}, "tokenizer.ggml.tokens"},
        {{.key = "tokenizer.ggml.scores", .drop = true}, "tokenizer.ggml.scores"},
        {{.key = "tokenizer.ggml.model", .text = "gpt2"}, "tokenizer.ggml.model is"},
    };
    refusals("tiny", cases, sizeof cases / sizeof *cases);
}

static void wrong_tensors(void **state) {
    (void)state;
    static const struct refusal cases[] = {
        {{.tensor = "token_embd.weight", .drop = true}, "token_embd.weight is missing"},
        {{.tensor = "output_norm.weight", .drop = true}, "output_norm.weight is missing"},
        {{.tensor = "blk.1.ffn_down_exps.weight", .drop = true},
         "tensor blk.1.ffn_down_exps.weight is missing"},
        {{.tensor = "blk.0.ffn_router_scale.weight", .drop = true}, "blk.0.ffn_router_scale"},
        {{.tensor = "blk.0.attn_q.weight", .ne = {64, 96, 1}}, "blk.0.attn_q.weight is 64 x 96"},
        {{.tensor = "blk.0.attn_output.weight", .ne = {32, 128, 1}},
         "blk.0.attn_output.weight is 32 x 128"},
        {{.tensor = "blk.1.ffn_up_exps.weight", .ne = {64, 16, 32}},
         "blk.1.ffn_up_exps.weight is 64 x 16 x 32"},
        {{.tensor = "blk.0.attn_norm.weight", .ne = {32, 1, 1}}, "blk.0.attn_norm.weight is 32"},
        {{.tensor = "blk.0.attn_norm.weight", .has_type = true, .type = MOGE_TYPE_Q8_0},
         "blk.0.attn_norm.weight"},
        {{.tensor = "blk.0.attn_q.bias", .rename = "blk.0.attn_q_norm.weight"},
         "attn_q_norm.weight"},
        {{.extra = "rope_freqs.weight"}, "rope_freqs.weight"},
        {{.extra = "blk.0.attn_sinks.weight"}, "blk.0.attn_sinks.weight"},
        {{.tensor = "blk.1.attn_v.weight", .with_nan = true},
         "tensor blk.1.attn_v.weight holds a value that is not finite"},
        {{.tensor = "blk.0.ffn_up_exps.weight", .with_nan = true},
         "tensor blk.0.ffn_up_exps.weight holds a value that is not finite"},
        {{.tensor = "token_embd.weight", .with_nan = true},
         "tensor token_embd.weight holds a value that is not finite"},
        {{.tensor = "blk.0.ffn_gate_inp.weight", .with_nan = true}, "blk.0.ffn_gate_inp.weight"},
        {{.tensor = "blk.0.attn_q.bias", .with_nan = true}, "blk.0.attn_q.bias holds a value"},
    };
    refusals("tiny", cases, sizeof cases / sizeof *cases);
}

static void dense_models_have_no_experts(void **state) {
    (void)state;
    static const struct refusal cases[] = {
        {{.key = "pangu-embedded.expert_count", .number = 8}, "experts"},
        {{.key = "pangu-embedded.feed_forward_length", .drop = true}, "feed_forward_length"},
        {{.tensor = "blk.0.ffn_up.weight", .drop = true}, "blk.0.ffn_up.weight is missing"},
    };
    refusals("tiny-draft", cases, sizeof cases / sizeof *cases);
}

/* A float matrix that is used where it lies is looked at too. */
static void nan_in_float_matrices(void **state) {
    (void)state;
    char path[1024];
    const struct edit edits[] = {{.tensor = "blk.0.attn_k.weight", .with_nan = true},
                                 {.tensor = "token_embd.weight", .with_nan = true}};
    const enum moge_type types[] = {MOGE_TYPE_F16, MOGE_TYPE_BF16, MOGE_TYPE_F32};
    for (size_t i = 0; i < 3; i++) {
        mktiny(path, sizeof path, "tiny-draft", types[i], 1);
        for (size_t k = 0; k < 2; k++)
            sentence_is(path, &edits[k], edits[k].tensor);
        unlink(path);
    }
}

/* ---- truncation and allocation ---- */

static void every_truncation_is_an_error(void **state) {
    (void)state;
    char path[1024], cut[1100];
    struct moge_model_options options = {0};
    mktiny(path, sizeof path, "tiny", MOGE_TYPE_Q8_0, 1);
    snprintf(cut, sizeof cut, "%s.cut", path);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    fseek(file, 0, SEEK_END);
    size_t size = (size_t)ftell(file);
    char *data = malloc(size);
    rewind(file);
    assert_int_equal(fread(data, 1, size, file), size);
    fclose(file);
    for (size_t i = 0; i < 64; i++) {
        struct moge_model *model = NULL;
        struct moge_err err = {0};
        file = fopen(cut, "wb");
        assert_non_null(file);
        fwrite(data, 1, size * i / 64, file);
        fclose(file);
        assert_int_equal(moge_model_open(&model, cut, &options, &err), MOGE_FORMAT);
        assert_null(model);
        assert_true(strlen(err.text) > 10);
    }
    free(data);
    unlink(cut);
    unlink(path);
}

/* Metadata that promise a model of terabytes cost no memory: with little more address space than
 * the process has, opening still fails with the right sentence. */
static void promises_cost_nothing(void **state) {
    (void)state;
#ifdef __SANITIZE_ADDRESS__
    skip(); /* the sanitizer itself maps terabytes */
#endif
#ifdef __SANITIZE_THREAD__
    skip();
#endif
    char path[1024];
    struct rlimit old, limit;
    static const struct refusal cases[] = {
        {{.key = "pangu-moe.block_count", .number = 4096}, "blk.2.attn_norm.weight is missing"},
        {{.key = "pangu-moe.embedding_length", .number = 1 << 20}, "token_embd.weight is 64 x"},
        {{.key = "pangu-moe.expert_feed_forward_length", .number = 1 << 20}, "ffn_gate_exps"},
    };
    mktiny(path, sizeof path, "tiny", MOGE_TYPE_Q8_0, 1);
    FILE *statm = fopen("/proc/self/statm", "r");
    unsigned long pages = 0;
    assert_non_null(statm);
    assert_int_equal(fscanf(statm, "%lu", &pages), 1);
    fclose(statm);
    assert_int_equal(getrlimit(RLIMIT_AS, &old), 0);
    limit = old;
    limit.rlim_cur = pages * 4096 + (8 << 20);
    assert_int_equal(setrlimit(RLIMIT_AS, &limit), 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        sentence_is(path, &cases[i].edit, cases[i].part);
    assert_int_equal(setrlimit(RLIMIT_AS, &old), 0);
    unlink(path);
}

/* ---- what is right ---- */

static void info_says_what_the_file_is(void **state) {
    (void)state;
    char path[1024];
    mktiny(path, sizeof path, "tiny", MOGE_TYPE_Q8_0, 1);
    struct moge_model *model = open_with(path, MOGE_WEIGHTS_AS_STORED);
    const struct moge_model_info *info = moge_model_info(model);
    assert_string_equal(info->name, "synthetic tiny");
    assert_string_equal(info->architecture, "pangu-moe");
    assert_string_equal(info->weights, "q8_0");
    assert_int_equal(info->n_vocab, 512);
    assert_int_equal(info->n_experts, 16);
    assert_int_equal(info->n_groups, 8);
    assert_int_equal(info->n_params, 314080);
    assert_int_equal(info->n_params_active, 314080 - 2 * 8 * 3 * 64 * 32);
    assert_int_equal(info->kv_bytes_per_token, 2 * 2 * 2 * 16 * 2);
    assert_true(model->rope_neox && model->router.per_group && !model->router.renorm);
    /* Everything that was packed fits the arena exactly: at most the rounding to pages is left. */
    assert_true(model->weights.cap_bytes - model->weights.used_bytes < (2u << 20));
    assert_true(info->weight_bytes > 314080 && info->weight_bytes < 3 * 314080);
    moge_model_close(model);
    unlink(path);
}

static void a_tied_output_is_the_embedding(void **state) {
    (void)state;
    char path[1024];
    struct moge_shape shape;
    struct moge_err err = {0};
    float row[32];
    TEST_OK(moge_shape_read(&shape, MOGE_SOURCE_DIR "/bench/shapes/tiny-draft.ini", &err), err);
    shape.tied = true;
    snprintf(path, sizeof path, MOGE_BINARY_DIR "/model_test.%ld.gguf", (long)getpid());
    TEST_OK(moge_synth_write(&shape, MOGE_TYPE_F32, 5, path, &err), err);
    struct moge_model *model = open_with(path, MOGE_WEIGHTS_AS_STORED);
    assert_ptr_equal(model->output.data, model->embed.data);
    assert_int_equal(model->info.n_params, 42176 - 512 * 32);
    moge_model_embed(model, 511, row);
    assert_memory_equal(row, (const float *)model->embed.data + 511 * 32, sizeof row);
    moge_model_close(model);
    model = open_with(path, MOGE_WEIGHTS_Q8_0);
    assert_int_equal(model->output.type, MOGE_TYPE_Q8_0);
    assert_int_equal(model->embed.type, MOGE_TYPE_F32);
    moge_model_close(model);
    unlink(path);
}

/* The first panel of a packed matrix computes what the stored rows say. */
static void weights_are_converted_as_asked(void **state) {
    (void)state;
    char path[1024];
    static const struct {
        enum moge_type stored;
        enum moge_weights weights;
        enum moge_type expected;
    } cases[] = {
        {MOGE_TYPE_F16, MOGE_WEIGHTS_AS_STORED, MOGE_TYPE_F16},
        {MOGE_TYPE_F16, MOGE_WEIGHTS_F32, MOGE_TYPE_F32},
        {MOGE_TYPE_F16, MOGE_WEIGHTS_Q8_0, MOGE_TYPE_Q8_0},
        {MOGE_TYPE_BF16, MOGE_WEIGHTS_Q4_0, MOGE_TYPE_Q4_0},
        {MOGE_TYPE_F32, MOGE_WEIGHTS_Q8_0, MOGE_TYPE_Q8_0},
        {MOGE_TYPE_Q8_0, MOGE_WEIGHTS_F32, MOGE_TYPE_F32},
        {MOGE_TYPE_Q4_0, MOGE_WEIGHTS_F32, MOGE_TYPE_F32},
        {MOGE_TYPE_Q4_0, MOGE_WEIGHTS_Q8_0, MOGE_TYPE_Q4_0}, /* only floats are quantised */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mktiny(path, sizeof path, "tiny", cases[i].stored, 1);
        struct moge_model *model = open_with(path, cases[i].weights);
        const struct moge_layer *layer = &model->layers[1];
        assert_int_equal(layer->q.type, cases[i].expected);
        assert_int_equal(layer->down_exps[15].type, cases[i].expected);
        assert_int_equal(layer->router.type, MOGE_TYPE_F32);
        assert_string_equal(model->info.weights,
                            moge_type_traits((uint32_t)cases[i].expected)->name);
        if (cases[i].expected == MOGE_TYPE_F32) { /* widened values are exactly the stored ones */
            const struct moge_gguf_tensor *tensor =
                moge_gguf_find_tensor(model->gguf, "blk.1.ffn_down_exps.weight");
            float wide[64 * 32];
            size_t bytes = tensor->bytes / 16;
            moge_type_traits((uint32_t)tensor->type)
                ->to_f32(tensor->data + 15 * bytes, wide, 64 * 32);
            assert_memory_equal(layer->down_exps[15].data, wide, sizeof wide);
        }
        moge_model_close(model);
        unlink(path);
    }
}

static void odd_row_lengths_stay_float(void **state) {
    (void)state;
    char path[1024];
    struct moge_shape shape;
    struct moge_err err = {0};
    TEST_OK(moge_shape_read(&shape, MOGE_SOURCE_DIR "/bench/shapes/tiny-draft.ini", &err), err);
    shape.ffn_dim = 40;
    snprintf(path, sizeof path, MOGE_BINARY_DIR "/model_test.%ld.gguf", (long)getpid());
    TEST_OK(moge_synth_write(&shape, MOGE_TYPE_F16, 5, path, &err), err);
    struct moge_model *model = open_with(path, MOGE_WEIGHTS_Q8_0);
    assert_int_equal(model->layers[0].up.type, MOGE_TYPE_Q8_0);
    assert_int_equal(model->layers[0].down.type, MOGE_TYPE_F16);
    moge_model_close(model);
    unlink(path);
}

/* Spellings that other writers use. */
static void router_scale_may_be_spelled_otherwise(void **state) {
    (void)state;
    char path[1024], changed[1100];
    const struct edit edits[] = {
        {.tensor = "blk.0.ffn_router_scale.weight", .rename = "blk.0.ffn_router_scale"},
        {.tensor = "blk.0.ffn_router_scale.weight", .ne = {1, 16, 1}},
        {.tensor = "blk.0.ffn_router_scale.weight", .ne = {16, 1, 1}},
    };
    mktiny(path, sizeof path, "tiny", MOGE_TYPE_Q8_0, 1);
    snprintf(changed, sizeof changed, "%s.changed", path);
    struct moge_model *plain = open_with(path, MOGE_WEIGHTS_AS_STORED);
    for (size_t i = 0; i < sizeof edits / sizeof *edits; i++) {
        rewrite(path, changed, &edits[i]);
        struct moge_model *model = open_with(changed, MOGE_WEIGHTS_AS_STORED);
        assert_memory_equal(model->layers[0].router_scale, plain->layers[0].router_scale,
                            16 * sizeof(float));
        moge_model_close(model);
    }
    moge_model_close(plain);
    unlink(changed);
    unlink(path);
}

static void other_architectures_open(void **state) {
    (void)state;
    char path[1024];
    struct moge_shape shape;
    struct moge_err err = {0};
    snprintf(path, sizeof path, MOGE_BINARY_DIR "/model_test.%ld.gguf", (long)getpid());
    TEST_OK(moge_shape_read(&shape, MOGE_SOURCE_DIR "/bench/shapes/tiny-draft.ini", &err), err);
    snprintf(shape.architecture, sizeof shape.architecture, "llama");
    TEST_OK(moge_synth_write(&shape, MOGE_TYPE_Q8_0, 5, path, &err), err);
    struct moge_model *model = open_with(path, MOGE_WEIGHTS_AS_STORED);
    assert_false(model->rope_neox);
    assert_null(model->layers[0].q_bias);
    moge_model_close(model);
    TEST_OK(moge_shape_read(&shape, MOGE_SOURCE_DIR "/bench/shapes/tiny.ini", &err), err);
    snprintf(shape.architecture, sizeof shape.architecture, "qwen2moe");
    TEST_OK(moge_synth_write(&shape, MOGE_TYPE_Q8_0, 5, path, &err), err);
    model = open_with(path, MOGE_WEIGHTS_AS_STORED);
    assert_true(model->rope_neox && !model->router.per_group);
    assert_int_equal(model->router.n_groups, 1);
    assert_non_null(model->layers[0].shared_gate);
    assert_non_null(model->layers[0].q_bias);
    assert_null(model->layers[0].o_bias);
    assert_null(model->layers[0].router_scale);
    moge_model_close(model);
    unlink(path);
}

static bool count_progress(void *arg, double done) {
    double *last = arg;
    assert_true(done >= *last && done <= 1);
    *last = done;
    return true;
}

static bool no_progress(void *arg, double done) {
    (void)done;
    ++*(int *)arg;
    return false;
}

static void a_load_can_be_given_up(void **state) {
    (void)state;
    char path[1024];
    int n_asked = 0;
    struct moge_model_options options = {.progress = no_progress, .progress_arg = &n_asked};
    struct moge_model *model = NULL;
    struct moge_err err = {0};
    mktiny(path, sizeof path, "tiny", MOGE_TYPE_Q8_0, 1);
    assert_int_equal(moge_model_open(&model, path, &options, &err), MOGE_CANCELLED);
    assert_null(model);
    assert_int_equal(n_asked, 1);
    unlink(path);
}

static void progress_ends_at_one(void **state) {
    (void)state;
    const enum moge_type types[] = {MOGE_TYPE_Q8_0, MOGE_TYPE_F32};
    for (size_t i = 0; i < 2; i++) {
        char path[1024];
        double last = 0;
        struct moge_model_options options = {.progress = count_progress, .progress_arg = &last};
        struct moge_model *model = NULL;
        struct moge_err err = {0};
        mktiny(path, sizeof path, "tiny", types[i], 1);
        TEST_OK(moge_model_open(&model, path, &options, &err), err);
        assert_true(last == 1);
        moge_model_close(model);
        unlink(path);
    }
}

static void mlock_locks_or_says_why(void **state) {
    (void)state;
    char path[1024];
    struct rlimit old, none;
    struct moge_model_options options = {.mlock = true, .huge_pages = true};
    struct moge_model *model = NULL;
    struct moge_err err = {0};
    mktiny(path, sizeof path, "tiny", MOGE_TYPE_Q8_0, 1);
    if (moge_model_open(&model, path, &options, &err) != 0)
        assert_non_null(strstr(err.text, "cannot lock"));
    moge_model_close(model);
    model = NULL;
    assert_int_equal(getrlimit(RLIMIT_MEMLOCK, &old), 0);
    none = old;
    none.rlim_cur = 0;
    if (geteuid() != 0 && setrlimit(RLIMIT_MEMLOCK, &none) == 0) { /* root may lock anyway */
        assert_int_equal(moge_model_open(&model, path, &options, &err), MOGE_IO);
        assert_non_null(strstr(err.text, "cannot lock"));
        setrlimit(RLIMIT_MEMLOCK, &old);
    }
    moge_model_close(model);
    moge_model_close(NULL);
    unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lying_metadata),
        cmocka_unit_test(wrong_tensors),
        cmocka_unit_test(dense_models_have_no_experts),
        cmocka_unit_test(nan_in_float_matrices),
        cmocka_unit_test(every_truncation_is_an_error),
        cmocka_unit_test(promises_cost_nothing),
        cmocka_unit_test(info_says_what_the_file_is),
        cmocka_unit_test(a_tied_output_is_the_embedding),
        cmocka_unit_test(weights_are_converted_as_asked),
        cmocka_unit_test(odd_row_lengths_stay_float),
        cmocka_unit_test(router_scale_may_be_spelled_otherwise),
        cmocka_unit_test(other_architectures_open),
        cmocka_unit_test(progress_ends_at_one),
        cmocka_unit_test(a_load_can_be_given_up),
        cmocka_unit_test(mlock_locks_or_says_why),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
