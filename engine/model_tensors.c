/* SPDX-License-Identifier: Apache-2.0 */
/* Which tensors a model has, what shape each must have, and how it gets into memory. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/model_load.h"

/* ---- finding ---- */

/* The tensor of this name with exactly these dimensions, trailing ones left out.  *out NULL:
 * absent. */
static int tensor_find(struct moge_loader *loader, const char *name, bool optional, int64_t n_in,
                       int64_t n_out, int64_t n_stacked, const struct moge_gguf_tensor **out) {
    const struct moge_gguf_tensor *tensor = moge_gguf_find_tensor(loader->gguf, name);
    *out = tensor;
    if (!tensor && optional)
        return 0;
    if (!tensor)
        return moge_fail(loader->err, MOGE_FORMAT, "tensor %s is missing", name);
    const uint64_t *ne = tensor->ne;
    if (ne[0] != (uint64_t)n_in || ne[1] != (uint64_t)n_out || ne[2] != (uint64_t)n_stacked ||
        ne[3] != 1)
        return moge_fail(loader->err, MOGE_FORMAT,
                         "tensor %s is %llu x %llu x %llu; the metadata says %lld x %lld x %lld",
                         name, (unsigned long long)ne[0], (unsigned long long)ne[1],
                         (unsigned long long)ne[2], (long long)n_in, (long long)n_out,
                         (long long)n_stacked);
    loader->known[tensor - moge_gguf_tensor_at(loader->gguf, 0)] = true;
    if (!loader->measuring)
        loader->n_params += n_in * n_out * n_stacked;
    return 0;
}

/* Room in the arena, or NULL while measuring. */
static void *arena_take(struct moge_loader *loader, size_t n, size_t size) {
    if (loader->measuring) { /* the shapes are those of tensors in the file: no overflow */
        size_t begin = (loader->arena_bytes + MOGE_ARENA_ALIGN - 1) / MOGE_ARENA_ALIGN;
        loader->arena_bytes = begin * MOGE_ARENA_ALIGN + n * size;
        return NULL;
    }
    void *memory = moge_arena_take(&loader->model->weights, n, size);
    MOGE_ASSERT(memory); /* it was measured */
    return memory;
}

/* A vector as f32, widened or copied into the arena.  *out NULL: absent. */
static int vector_load(struct moge_loader *loader, const char *name, bool optional, int32_t n,
                       const float **out) {
    const struct moge_gguf_tensor *tensor;
    /* Some writers store a vector as [n, 1] or [1, n]. */
    const struct moge_gguf_tensor *found = moge_gguf_find_tensor(loader->gguf, name);
    bool column = found && n > 1 && found->ne[0] == 1;
    int rc = tensor_find(loader, name, optional, column ? 1 : n, column ? n : 1, 1, &tensor);
    *out = NULL;
    if (rc != 0 || !tensor)
        return rc;
    const struct moge_type_traits *traits = moge_type_traits(tensor->type);
    if (traits->block_values != 1)
        return moge_fail(loader->err, MOGE_FORMAT, "tensor %s is a vector but has type %s", name,
                         traits->name);
    float *values = arena_take(loader, (size_t)n, sizeof *values);
    if (loader->measuring)
        return 0;
    unsigned char *bytes = malloc(tensor->bytes); /* aligned copy: a file's alignment may be 1 */
    if (!bytes)
        return moge_fail(loader->err, MOGE_NOMEM, "no memory for tensor %s", name);
    memcpy(bytes, tensor->data, tensor->bytes);
    traits->to_f32(bytes, values, (size_t)n);
    free(bytes);
    for (int32_t i = 0; i < n; i++)
        if (!isfinite(values[i]))
            return moge_fail(loader->err, MOGE_FORMAT, "tensor %s holds a value that is not finite",
                             name);
    *out = values;
    return 0;
}

/* ---- matrices ---- */

static enum moge_type type_wanted(const struct moge_loader *loader, enum moge_type stored,
                                  int64_t n_in) {
    stored = moge_type_plain(stored);
    bool is_float = moge_type_traits(stored)->block_values == 1;
    switch (loader->options->weights) {
    case MOGE_WEIGHTS_F32:
        return MOGE_TYPE_F32;
    case MOGE_WEIGHTS_Q8_0:
        return is_float && n_in % MOGE_QBLOCK == 0 ? MOGE_TYPE_Q8_0 : stored;
    case MOGE_WEIGHTS_Q4_0:
        return is_float && n_in % MOGE_QBLOCK == 0 ? MOGE_TYPE_Q4_0 : stored;
    default:
        return stored;
    }
}

/* Floats and stored panels are.  A stack of panels whose size is no multiple of the alignment has
 * members that do not begin where the kernels want it. */
static bool usable_in_place(enum moge_type stored, enum moge_type wanted,
                            const unsigned char *data) {
    if (moge_type_is_panel(stored))
        return moge_type_plain(stored) == wanted && (uintptr_t)data % MOGE_PANEL_ALIGNMENT == 0;
    return stored == wanted && moge_type_traits(stored)->block_values == 1 &&
           (uintptr_t)data % 4 == 0;
}

static int job_add(struct moge_loader *loader, const struct moge_pack_job *job) {
    if (loader->n_jobs == loader->jobs_cap) {
        size_t cap = loader->jobs_cap ? 2 * loader->jobs_cap : 256;
        struct moge_pack_job *jobs = realloc(loader->jobs, cap * sizeof *jobs);
        if (!jobs)
            return moge_fail(loader->err, MOGE_NOMEM, "no memory to load the model");
        loader->jobs = jobs;
        loader->jobs_cap = cap;
    }
    loader->jobs[loader->n_jobs++] = *job;
    return 0;
}

/* Matrix `i` of the n that a tensor stacks, as `wanted`. */
static int matrix_place(struct moge_loader *loader, struct moge_matrix *matrix,
                        enum moge_type wanted, const struct moge_gguf_tensor *tensor, int32_t i) {
    uint64_t bytes = tensor->bytes / tensor->ne[2];
    struct moge_pack_job job = {.matrix = matrix,
                                .name = tensor->name,
                                .stored = tensor->type,
                                .source = tensor->data + (uint64_t)i * bytes,
                                .source_bytes = bytes};
    *matrix = (struct moge_matrix){
        .type = wanted, .n_out = (int32_t)tensor->ne[1], .n_in = (int32_t)tensor->ne[0]};
    size_t held = moge_matrix_bytes(wanted, matrix->n_out, matrix->n_in);
    job.in_place = usable_in_place(tensor->type, wanted, job.source);
    matrix->data = job.in_place ? job.source : arena_take(loader, held, 1);
    if (loader->measuring)
        return 0;
    loader->weight_bytes += held;
    loader->type_values[wanted] += tensor->ne[0] * tensor->ne[1];
    return job_add(loader, &job);
}

static int matrix_load(struct moge_loader *loader, const char *name, bool optional, int32_t n_in,
                       int32_t n_out, struct moge_matrix *matrix) {
    const struct moge_gguf_tensor *tensor;
    int rc = tensor_find(loader, name, optional, n_in, n_out, 1, &tensor);
    *matrix = (struct moge_matrix){0};
    if (rc != 0 || !tensor)
        return rc;
    return matrix_place(loader, matrix, type_wanted(loader, tensor->type, n_in), tensor, 0);
}

/* The stacked matrices of all experts of a layer. */
static int experts_load(struct moge_loader *loader, const char *name, int32_t n_in, int32_t n_out,
                        struct moge_matrix **out) {
    int32_t n = loader->model->router.n_experts;
    const struct moge_gguf_tensor *tensor;
    int rc = tensor_find(loader, name, false, n_in, n_out, n, &tensor);
    if (rc != 0)
        return rc;
    struct moge_matrix scratch, *matrices = arena_take(loader, (size_t)n, sizeof *matrices);
    for (int32_t e = 0; e < n && rc == 0; e++)
        rc = matrix_place(loader, loader->measuring ? &scratch : &matrices[e],
                          type_wanted(loader, tensor->type, n_in), tensor, e);
    *out = matrices;
    return rc;
}

/* ---- the description ---- */

/* "blk.3.attn_q.weight" in a buffer that lives until the next call with it. */
static const char *in_layer(char *name, int32_t layer, const char *part) {
    snprintf(name, MOGE_NAME_MAX, "blk.%d.%s", layer, part);
    return name;
}

static int attention_load(struct moge_loader *loader, int32_t i, struct moge_layer *layer) {
    const struct moge_model_info *info = &loader->model->info;
    int32_t n_q = info->n_heads * info->head_dim, n_kv = info->n_kv_heads * info->head_dim,
            dim = info->dim;
    char name[MOGE_NAME_MAX];
    int rc;
    if ((rc = vector_load(loader, in_layer(name, i, "attn_norm.weight"), false, dim,
                          &layer->attn_norm)) != 0 ||
        (rc = matrix_load(loader, in_layer(name, i, "attn_q.weight"), false, dim, n_q,
                          &layer->q)) != 0 ||
        (rc = matrix_load(loader, in_layer(name, i, "attn_k.weight"), false, dim, n_kv,
                          &layer->k)) != 0 ||
        (rc = matrix_load(loader, in_layer(name, i, "attn_v.weight"), false, dim, n_kv,
                          &layer->v)) != 0 ||
        (rc = matrix_load(loader, in_layer(name, i, "attn_output.weight"), false, n_q, dim,
                          &layer->o)) != 0 ||
        (rc = vector_load(loader, in_layer(name, i, "attn_q.bias"), true, n_q, &layer->q_bias)) !=
            0 ||
        (rc = vector_load(loader, in_layer(name, i, "attn_k.bias"), true, n_kv, &layer->k_bias)) !=
            0 ||
        (rc = vector_load(loader, in_layer(name, i, "attn_v.bias"), true, n_kv, &layer->v_bias)) !=
            0 ||
        (rc = vector_load(loader, in_layer(name, i, "attn_output.bias"), true, dim,
                          &layer->o_bias)) != 0)
        return rc;
    return vector_load(loader, in_layer(name, i, "ffn_norm.weight"), false, dim, &layer->ffn_norm);
}

static int dense_load(struct moge_loader *loader, int32_t i, const char *suffix,
                      struct moge_layer *layer) {
    int32_t dim = loader->model->info.dim, ffn = loader->model->ffn_dim;
    char part[32], name[MOGE_NAME_MAX];
    int rc;
    snprintf(part, sizeof part, "ffn_gate%s.weight", suffix);
    if ((rc = matrix_load(loader, in_layer(name, i, part), false, dim, ffn, &layer->gate)) != 0)
        return rc;
    snprintf(part, sizeof part, "ffn_up%s.weight", suffix);
    if ((rc = matrix_load(loader, in_layer(name, i, part), false, dim, ffn, &layer->up)) != 0)
        return rc;
    snprintf(part, sizeof part, "ffn_down%s.weight", suffix);
    return matrix_load(loader, in_layer(name, i, part), false, ffn, dim, &layer->down);
}

/* The router stays f32 whatever the options say: it is small, and the choice of experts hangs on
 * it. */
static int router_load(struct moge_loader *loader, int32_t i, struct moge_layer *layer) {
    struct moge_model *model = loader->model;
    int32_t n = model->router.n_experts, dim = model->info.dim;
    char name[MOGE_NAME_MAX];
    const struct moge_gguf_tensor *tensor;
    int rc =
        tensor_find(loader, in_layer(name, i, "ffn_gate_inp.weight"), false, dim, n, 1, &tensor);
    if (rc == 0)
        rc = matrix_place(loader, &layer->router, MOGE_TYPE_F32, tensor, 0);
    if (rc == 0)
        rc = vector_load(loader, in_layer(name, i, "exp_probs_b.bias"), true, n,
                         &layer->router_bias);
    if (rc == 0)
        rc = vector_load(loader, in_layer(name, i, "ffn_gate_inp_shexp.weight"), true, dim,
                         &layer->shared_gate);
    in_layer(name, i, "ffn_router_scale.weight");
    if (!moge_gguf_find_tensor(loader->gguf, name))
        in_layer(name, i, "ffn_router_scale");
    return rc == 0 ? vector_load(loader, name, !loader->grouped, n, &layer->router_scale) : rc;
}

static int moe_load(struct moge_loader *loader, int32_t i, struct moge_layer *layer) {
    int32_t dim = loader->model->info.dim, expert = loader->model->expert_dim;
    char name[MOGE_NAME_MAX];
    int rc;
    if ((rc = router_load(loader, i, layer)) != 0 ||
        (rc = experts_load(loader, in_layer(name, i, "ffn_gate_exps.weight"), dim, expert,
                           &layer->gate_exps)) != 0 ||
        (rc = experts_load(loader, in_layer(name, i, "ffn_up_exps.weight"), dim, expert,
                           &layer->up_exps)) != 0 ||
        (rc = experts_load(loader, in_layer(name, i, "ffn_down_exps.weight"), expert, dim,
                           &layer->down_exps)) != 0)
        return rc;
    return loader->model->ffn_dim > 0 ? dense_load(loader, i, "_shexp", layer) : 0;
}

/* The embedding is looked up row by row, so it stays as stored; a tied output is packed from the
 * same rows. */
static int ends_load(struct moge_loader *loader) {
    struct moge_model *model = loader->model;
    int32_t dim = model->info.dim, n_vocab = model->info.n_vocab;
    const struct moge_gguf_tensor *embed;
    int rc = tensor_find(loader, "token_embd.weight", false, dim, n_vocab, 1, &embed);
    if (rc != 0)
        return rc;
    if (moge_type_is_panel(embed->type))
        return moge_fail(loader->err, MOGE_FORMAT,
                         "token_embd.weight is stored in panels (%s); it is read row by row and "
                         "must be stored in rows",
                         moge_type_traits(embed->type)->name);
    model->embed = (struct moge_matrix){embed->type, n_vocab, dim, embed->data};
    struct moge_pack_job look = {.matrix = &model->embed,
                                 .name = embed->name,
                                 .in_place = true,
                                 .stored = embed->type,
                                 .source = embed->data,
                                 .source_bytes = embed->bytes};
    if (!loader->measuring) {
        loader->weight_bytes += embed->bytes;
        rc = job_add(loader, &look);
    }
    if (rc != 0 ||
        (rc = vector_load(loader, "output_norm.weight", false, dim, &model->output_norm)) != 0)
        return rc;
    if (moge_gguf_find_tensor(loader->gguf, "output.weight"))
        return matrix_load(loader, "output.weight", false, dim, n_vocab, &model->output);
    enum moge_type wanted = type_wanted(loader, embed->type, dim);
    if (usable_in_place(embed->type, wanted, embed->data)) {
        model->output = model->embed;
        return 0;
    }
    return matrix_place(loader, &model->output, wanted, embed, 0);
}

/* One walk over the description. */
static int describe(struct moge_loader *loader) {
    struct moge_model *model = loader->model;
    struct moge_layer scratch;
    model->layers = arena_take(loader, (size_t)model->info.n_layers, sizeof *model->layers);
    int rc = ends_load(loader);
    for (int32_t i = 0; i < model->info.n_layers && rc == 0; i++) {
        struct moge_layer *layer = loader->measuring ? &scratch : &model->layers[i];
        memset(layer, 0, sizeof *layer);
        rc = attention_load(loader, i, layer);
        if (rc == 0)
            rc = loader->moe ? moe_load(loader, i, layer) : dense_load(loader, i, "", layer);
    }
    return rc;
}

/* A tensor without a use means that the file wants something computed that this build would leave
 * out. */
static int all_known(const struct moge_loader *loader) {
    for (uint64_t i = 0; i < moge_gguf_n_tensors(loader->gguf); i++)
        if (!loader->known[i]) {
            struct moge_str name = moge_gguf_tensor_at(loader->gguf, i)->name;
            return moge_fail(loader->err, MOGE_FORMAT,
                             "tensor %.*s has no use in a %s model of %d layers",
                             (int)(name.len < 80 ? name.len : 80), name.data, loader->arch,
                             loader->model->info.n_layers);
        }
    return 0;
}

int moge_model_tensors(struct moge_loader *loader) {
    struct moge_model *model = loader->model;
    uint64_t n_tensors = moge_gguf_n_tensors(loader->gguf);
    loader->known = calloc(n_tensors ? (size_t)n_tensors : 1, sizeof *loader->known);
    if (!loader->known)
        return moge_fail(loader->err, MOGE_NOMEM, "no memory to load the model");
    loader->measuring = true;
    int rc = describe(loader);
    if (rc == 0)
        rc = all_known(loader);
    if (rc == 0)
        rc = moge_arena_init(&model->weights, loader->arena_bytes, loader->err);
    if (rc != 0)
        return rc;
    madvise(model->weights.base, model->weights.cap_bytes, /* a wish either way */
            loader->options->huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    loader->measuring = false;
    rc = describe(loader);
    for (int type = 0; type < 64; type++)
        if (loader->type_values[type] > loader->type_values[loader->main_type])
            loader->main_type = (enum moge_type)type;
    return rc;
}
