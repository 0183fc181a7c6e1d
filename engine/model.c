/* SPDX-License-Identifier: Apache-2.0 */
/* From a GGUF file to a model in memory, by way of one description:
 *
 *   parameters   metadata to struct moge_model, each value within the range that makes sense
 *   tensors      every tensor that the description needs is found, its shape compared and its room
 *                measured; then each matrix gets a type and, if it must be packed or converted, a
 *                place in an arena of exactly the size that it takes
 *   fill         matrices are packed, pages of the file that are done with are let go
 *
 * Float matrices that stay as they are are used where the file is mapped. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/model_load.h"
#include "moge/tokenizer.h"

#define DIM_MAX (1 << 20)

/* ---- parameters ---- */

/* How the architectures differ. */
static const struct architecture {
    const char *name;
    bool neox, moe, grouped, renorm_default;
} architectures[] = {
    {"pangu-moe", true, true, true, false},
    {"pangu-embedded", true, false, false, false},
    {"llama", false, false, false, false},
    {"qwen2moe", true, true, false, false},
};

static int architecture_find(struct moge_loader *loader) {
    struct moge_str name;
    int rc = moge_gguf_get_str(loader->gguf, "general.architecture", &name, loader->err);
    if (rc != 0)
        return rc;
    for (size_t i = 0; i < sizeof architectures / sizeof architectures[0]; i++)
        if (strlen(architectures[i].name) == name.len &&
            memcmp(architectures[i].name, name.data, name.len) == 0) {
            loader->arch = architectures[i].name;
            loader->model->rope_neox = architectures[i].neox;
            loader->moe = architectures[i].moe;
            loader->grouped = architectures[i].grouped;
            snprintf(loader->model->info.architecture, sizeof loader->model->info.architecture,
                     "%s", architectures[i].name);
            return 0;
        }
    return moge_fail(
        loader->err, MOGE_FORMAT,
        "architecture %.*s is not supported; pangu-moe, pangu-embedded, llama and qwen2moe are",
        (int)(name.len < 40 ? name.len : 40), name.data);
}

static const char *key_of(const struct moge_loader *loader, char *key, const char *suffix) {
    snprintf(key, MOGE_NAME_MAX, "%s.%s", loader->arch, suffix);
    return key;
}

/* An integer of the architecture; with `otherwise` >= 0 the key may be absent. */
static int get_int(struct moge_loader *loader, const char *suffix, int64_t min, int64_t max,
                   int64_t otherwise, int32_t *out) {
    char key[MOGE_NAME_MAX];
    int64_t value = otherwise;
    key_of(loader, key, suffix);
    if (otherwise < 0 || moge_gguf_find(loader->gguf, key)) {
        int rc = moge_gguf_get_int(loader->gguf, key, min, max, &value, loader->err);
        if (rc != 0)
            return rc;
    }
    *out = (int32_t)value;
    return 0;
}

static int get_float(struct moge_loader *loader, const char *suffix, double min, double max,
                     double otherwise, float *out) {
    char key[MOGE_NAME_MAX];
    double value = otherwise;
    key_of(loader, key, suffix);
    if (moge_gguf_find(loader->gguf, key)) {
        int rc = moge_gguf_get_float(loader->gguf, key, &value, loader->err);
        if (rc != 0)
            return rc;
    }
    if (!(value >= min && value <= max))
        return moge_fail(loader->err, MOGE_FORMAT, "metadata key %s is %g; %g..%g is possible", key,
                         value, min, max);
    *out = (float)value;
    return 0;
}

static int attention_read(struct moge_loader *loader) {
    struct moge_model_info *info = &loader->model->info;
    int32_t value_dim;
    int rc;
    if ((rc = get_int(loader, "block_count", 1, 4096, -1, &info->n_layers)) != 0 ||
        (rc = get_int(loader, "embedding_length", 1, DIM_MAX, -1, &info->dim)) != 0 ||
        (rc = get_int(loader, "context_length", 1, 1 << 24, -1, &info->n_context)) != 0 ||
        (rc = get_int(loader, "attention.head_count", 1, 4096, -1, &info->n_heads)) != 0 ||
        (rc = get_int(loader, "attention.head_count_kv", 1, 4096, info->n_heads,
                      &info->n_kv_heads)) != 0)
        return rc;
    if (info->n_heads % info->n_kv_heads != 0)
        return moge_fail(loader->err, MOGE_FORMAT,
                         "%d attention heads cannot share %d KV heads evenly", info->n_heads,
                         info->n_kv_heads);
    int64_t head_dim = info->dim / info->n_heads;
    if ((rc = get_int(loader, "attention.key_length", 1, 4096, head_dim, &info->head_dim)) != 0 ||
        (rc = get_int(loader, "attention.value_length", 1, 4096, info->head_dim, &value_dim)) !=
            0 ||
        (rc = get_int(loader, "rope.dimension_count", 1, 4096, info->head_dim,
                      &loader->model->rope_dim)) != 0 ||
        (rc = get_float(loader, "rope.freq_base", 1, 1e12, 10000, &loader->model->rope_base)) !=
            0 ||
        (rc = get_float(loader, "attention.layer_norm_rms_epsilon", 0, 1, 1e-5,
                        &loader->model->norm_eps)) != 0)
        return rc;
    if (value_dim != info->head_dim || loader->model->rope_dim != info->head_dim ||
        info->head_dim % 2 != 0 || info->head_dim == 0)
        return moge_fail(
            loader->err, MOGE_FORMAT,
            "keys of %d, values of %d and rotary embedding over %d dimensions: they must be equal "
            "and even",
            info->head_dim, value_dim, loader->model->rope_dim);
    return 0;
}

/* What a file may ask for that would be computed wrongly if it were passed over. */
static int unsupported_find(struct moge_loader *loader) {
    static const char *const counts[] = {"attention.sliding_window", "leading_dense_block_count",
                                         "expert_group_used_count"};
    char key[MOGE_NAME_MAX];
    struct moge_str scaling;
    int32_t n, n_experts = 0;
    int rc;
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        if ((rc = get_int(loader, counts[i], 0, INT32_MAX, 0, &n)) != 0)
            return rc;
        if (n != 0)
            return moge_fail(loader->err, MOGE_FORMAT, "%s is %d; only models without it are read",
                             key_of(loader, key, counts[i]), n);
    }
    if (!loader->moe && (rc = get_int(loader, "expert_count", 0, INT32_MAX, 0, &n_experts)) != 0)
        return rc;
    if (n_experts != 0)
        return moge_fail(loader->err, MOGE_FORMAT, "%s models with experts (%d) are not supported",
                         loader->arch, n_experts);
    if (moge_gguf_find(loader->gguf, key_of(loader, key, "rope.scaling.type"))) {
        rc = moge_gguf_get_str(loader->gguf, key, &scaling, loader->err);
        if (rc != 0)
            return rc;
        if (scaling.len != 4 || memcmp(scaling.data, "none", 4) != 0)
            return moge_fail(loader->err, MOGE_FORMAT,
                             "rotary embedding with scaling (%.*s) is not supported",
                             (int)(scaling.len < 40 ? scaling.len : 40), scaling.data);
    }
    float linear;
    if ((rc = get_float(loader, "rope.scale_linear", 0, 1e9, 1, &linear)) != 0)
        return rc;
    if (linear != 1)
        return moge_fail(loader->err, MOGE_FORMAT, "%s is %g; only 1 is supported",
                         key_of(loader, key, "rope.scale_linear"), (double)linear);
    return 0;
}

static int router_read(struct moge_loader *loader) {
    struct moge_router *router = &loader->model->router;
    char key[MOGE_NAME_MAX];
    int32_t gating = 1;
    int rc;
    if ((rc = get_int(loader, "expert_count", 1, MOGE_EXPERTS_MAX, -1, &router->n_experts)) != 0 ||
        (rc = get_int(loader, "expert_used_count", 1, router->n_experts, -1, &router->n_used)) !=
            0 ||
        (rc = get_int(loader, "expert_group_count", 1, router->n_experts, loader->grouped ? -1 : 1,
                      &router->n_groups)) != 0 ||
        (rc = get_int(loader, "expert_gating_func", 1, 2, 1, &gating)) != 0 ||
        (rc = get_float(loader, "expert_weights_scale", 0, 1e6, 1, &router->scale)) != 0)
        return rc;
    key_of(loader, key, "expert_weights_norm");
    if (moge_gguf_find(loader->gguf, key) &&
        (rc = moge_gguf_get_bool(loader->gguf, key, &router->renorm, loader->err)) != 0)
        return rc;
    if (router->n_experts % router->n_groups != 0 ||
        (loader->grouped && router->n_used % router->n_groups != 0))
        return moge_fail(loader->err, MOGE_FORMAT,
                         "%d experts, %d of them used, do not fall into %d equal groups",
                         router->n_experts, router->n_used, router->n_groups);
    router->score = gating == 2 ? MOGE_SCORE_SIGMOID : MOGE_SCORE_SOFTMAX;
    router->per_group = loader->grouped;
    router->n_groups_kept = router->n_groups;
    loader->model->info.n_experts = router->n_experts;
    loader->model->info.n_experts_used = router->n_used;
    loader->model->info.n_groups = router->n_groups;
    return get_int(loader, "expert_feed_forward_length", 1, DIM_MAX, -1,
                   &loader->model->expert_dim);
}

static int ffn_read(struct moge_loader *loader) {
    struct moge_model *model = loader->model;
    if (!loader->moe)
        return get_int(loader, "feed_forward_length", 1, DIM_MAX, -1, &model->ffn_dim);
    int rc = router_read(loader);
    if (rc != 0)
        return rc;
    int32_t dense = 0;
    if ((rc = get_int(loader, "feed_forward_length", 0, DIM_MAX, 0, &dense)) != 0)
        return rc;
    return get_int(loader, "expert_shared_feed_forward_length", 0, DIM_MAX, dense, &model->ffn_dim);
}

static int parameters_read(struct moge_loader *loader) {
    int rc;
    if ((rc = architecture_find(loader)) != 0 || (rc = attention_read(loader)) != 0 ||
        (rc = unsupported_find(loader)) != 0 || (rc = ffn_read(loader)) != 0)
        return rc;
    loader->model->info.n_vocab = moge_tokenizer_n_vocab(loader->model->tokenizer);
    return 0;
}

static void name_read(struct moge_model *model, const char *path) {
    struct moge_str name = {0};
    if (moge_gguf_get_str(model->gguf, "general.name", &name, NULL) != 0 || name.len == 0) {
        const char *slash = strrchr(path, '/');
        name.data = slash ? slash + 1 : path;
        name.len = strlen(name.data);
    }
    size_t len = name.len < sizeof model->info.name - 1 ? name.len : sizeof model->info.name - 1;
    memcpy(model->info.name, name.data, len);
}

/* ---- what the file amounts to ---- */

static void info_fill(struct moge_loader *loader) {
    struct moge_model *model = loader->model;
    struct moge_model_info *info = &model->info;
    info->n_params = loader->n_params;
    int64_t idle =
        (int64_t)(info->n_experts - info->n_experts_used) * 3 * info->dim * model->expert_dim;
    info->n_params_active = loader->n_params - (loader->moe ? idle * info->n_layers : 0);
    info->weight_bytes = (int64_t)loader->weight_bytes;
    info->kv_bytes_per_token = moge_engine_page_bytes(model, MOGE_KV_F16) / MOGE_PAGE_TOKENS;
    snprintf(info->weights, sizeof info->weights, "%s", moge_type_traits(loader->main_type)->name);
}

/* ---- life ---- */

static void loader_done(struct moge_loader *loader) {
    free(loader->jobs);
    free(loader->known);
}

int moge_model_open(struct moge_model **out, const char *path,
                    const struct moge_model_options *options, struct moge_err *err) {
    struct moge_model *model = calloc(1, sizeof *model);
    if (!model)
        return moge_fail(err, MOGE_NOMEM, "no memory for a model");
    struct moge_err why = {0};
    struct moge_loader loader = {.model = model, .options = options, .err = &why};
    int rc = moge_gguf_open(&model->gguf, path, err);
    if (rc != 0) { /* its sentence names the file already */
        moge_model_close(model);
        return rc;
    }
    loader.gguf = model->gguf;
    name_read(model, path);
    if ((rc = moge_tokenizer_open(&model->tokenizer, model->gguf, &why)) != 0 ||
        (rc = parameters_read(&loader)) != 0 || (rc = moge_model_tensors(&loader)) != 0 ||
        (rc = moge_model_fill(&loader)) != 0) {
        loader_done(&loader);
        moge_model_close(model);
        const char *slash = strrchr(path, '/');
        return moge_fail(err, rc, "%.60s: %s", slash ? slash + 1 : path, why.text);
    }
    info_fill(&loader);
    loader_done(&loader);
    *out = model;
    return 0;
}

void moge_model_close(struct moge_model *model) {
    if (!model)
        return;
    moge_tokenizer_close(model->tokenizer);
    moge_gguf_close(model->gguf);
    moge_arena_fini(&model->weights);
    free(model);
}

const struct moge_model_info *moge_model_info(const struct moge_model *model) {
    return &model->info;
}

const struct moge_tokenizer *moge_model_tokenizer(const struct moge_model *model) {
    return model->tokenizer;
}

void moge_model_embed(const struct moge_model *model, int32_t id, float *out) {
    const struct moge_matrix *embed = &model->embed;
    const struct moge_type_traits *traits = moge_type_traits(embed->type);
    size_t row_bytes = (size_t)(embed->n_in / traits->block_values) * (size_t)traits->block_bytes;
    MOGE_ASSERT(id >= 0 && id < embed->n_out);
    traits->to_f32((const unsigned char *)embed->data + (size_t)id * row_bytes, out,
                   (size_t)embed->n_in);
}
