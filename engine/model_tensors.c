/* SPDX-License-Identifier: Apache-2.0 */
/* Which tensors a model has, what shape each must have, and how it gets into memory. */
#include <math.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/model_load.h"

#define LOAD_THREADS_MAX 8

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
    loader->n_params += n_in * n_out * n_stacked;
    return 0;
}

static void *arena_take(struct moge_loader *loader, size_t n, size_t size) {
    void *memory = moge_arena_take(&loader->model->weights, n, size);
    MOGE_ASSERT(memory); /* arena_bound counted it */
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

static bool usable_in_place(enum moge_type stored, enum moge_type wanted,
                            const unsigned char *data) {
    return stored == wanted && moge_type_traits(stored)->block_values == 1 &&
           (uintptr_t)data % 4 == 0;
}

static int job_add(struct moge_loader *loader, struct moge_matrix *matrix, enum moge_type stored,
                   const unsigned char *source, uint64_t bytes) {
    if (loader->n_jobs == loader->jobs_cap) {
        size_t cap = loader->jobs_cap ? 2 * loader->jobs_cap : 256;
        struct moge_pack_job *jobs = realloc(loader->jobs, cap * sizeof *jobs);
        if (!jobs)
            return moge_fail(loader->err, MOGE_NOMEM, "no memory to load the model");
        loader->jobs = jobs;
        loader->jobs_cap = cap;
    }
    loader->jobs[loader->n_jobs++] = (struct moge_pack_job){matrix, stored, source, bytes};
    return 0;
}

/* One matrix of `wanted` type from n_out rows at source. */
static int matrix_place(struct moge_loader *loader, struct moge_matrix *matrix,
                        enum moge_type stored, enum moge_type wanted, int32_t n_in, int32_t n_out,
                        const unsigned char *source, uint64_t bytes) {
    *matrix = (struct moge_matrix){.type = wanted, .n_out = n_out, .n_in = n_in};
    size_t held = moge_matrix_bytes(wanted, n_out, n_in);
    loader->weight_bytes += held;
    loader->type_values[wanted] += (uint64_t)n_in * (uint64_t)n_out;
    if (usable_in_place(stored, wanted, source)) {
        matrix->data = source;
        return 0;
    }
    matrix->data = arena_take(loader, held, 1);
    return job_add(loader, matrix, stored, source, bytes);
}

static int matrix_load(struct moge_loader *loader, const char *name, bool optional, int32_t n_in,
                       int32_t n_out, struct moge_matrix *matrix) {
    const struct moge_gguf_tensor *tensor;
    int rc = tensor_find(loader, name, optional, n_in, n_out, 1, &tensor);
    *matrix = (struct moge_matrix){0};
    if (rc != 0 || !tensor)
        return rc;
    return matrix_place(loader, matrix, tensor->type, type_wanted(loader, tensor->type, n_in), n_in,
                        n_out, tensor->data, tensor->bytes);
}

/* The stacked matrices of all experts of a layer. */
static int experts_load(struct moge_loader *loader, const char *name, int32_t n_in, int32_t n_out,
                        struct moge_matrix **out) {
    int32_t n = loader->model->router.n_experts;
    const struct moge_gguf_tensor *tensor;
    int rc = tensor_find(loader, name, false, n_in, n_out, n, &tensor);
    if (rc != 0)
        return rc;
    *out = arena_take(loader, (size_t)n, sizeof **out);
    uint64_t bytes = tensor->bytes / (uint64_t)n;
    for (int32_t e = 0; e < n && rc == 0; e++)
        rc = matrix_place(loader, &(*out)[e], tensor->type, type_wanted(loader, tensor->type, n_in),
                          n_in, n_out, tensor->data + (uint64_t)e * bytes, bytes);
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
        rc = matrix_place(loader, &layer->router, tensor->type, MOGE_TYPE_F32, dim, n, tensor->data,
                          tensor->bytes);
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
    model->embed = (struct moge_matrix){embed->type, n_vocab, dim, embed->data};
    loader->weight_bytes += embed->bytes;
    if ((rc = vector_load(loader, "output_norm.weight", false, dim, &model->output_norm)) != 0)
        return rc;
    if (moge_gguf_find_tensor(loader->gguf, "output.weight"))
        return matrix_load(loader, "output.weight", false, dim, n_vocab, &model->output);
    return matrix_place(loader, &model->output, embed->type, type_wanted(loader, embed->type, dim),
                        dim, n_vocab, embed->data, embed->bytes);
}

/* Arena bytes for everything the file holds, in the largest form it may take.  Untouched pages cost
 * nothing. */
static size_t arena_bound(const struct moge_loader *loader) {
    const struct moge_model *model = loader->model;
    size_t n_layers = (size_t)model->info.n_layers, n_experts = (size_t)model->router.n_experts;
    size_t bound =
        n_layers * (sizeof(struct moge_layer) + 3 * (n_experts + 1) * sizeof(struct moge_matrix));
    for (uint64_t i = 0; i < moge_gguf_n_tensors(loader->gguf); i++) {
        const struct moge_gguf_tensor *tensor = moge_gguf_tensor_at(loader->gguf, i);
        uint64_t n_rows = tensor->ne[1] * tensor->ne[2] * tensor->ne[3];
        /* f32, or panels filled up to 8 rows for each stacked matrix, 64 bytes of alignment each */
        bound += 2 * 4 * tensor->ne[0] * (n_rows + 8 * tensor->ne[2]) + 128 * tensor->ne[2];
    }
    return bound + (1 << 20);
}

int moge_model_tensors(struct moge_loader *loader) {
    struct moge_model *model = loader->model;
    int rc = moge_arena_init(&model->weights, arena_bound(loader), loader->err);
    if (rc != 0)
        return rc;
    size_t n_layers = (size_t)model->info.n_layers;
    model->layers = arena_take(loader, n_layers, sizeof *model->layers);
    memset(model->layers, 0, n_layers * sizeof *model->layers);
    rc = ends_load(loader);
    for (int32_t i = 0; i < model->info.n_layers && rc == 0; i++) {
        rc = attention_load(loader, i, &model->layers[i]);
        if (rc == 0)
            rc = loader->moe ? moe_load(loader, i, &model->layers[i])
                             : dense_load(loader, i, "", &model->layers[i]);
    }
    for (int type = 0; type < 64; type++)
        if (loader->type_values[type] > loader->type_values[loader->main_type])
            loader->main_type = (enum moge_type)type;
    return rc;
}

/* ---- filling ---- */

struct filling {
    struct moge_loader *loader;
    struct moge_threads *threads;
    atomic_int failed; /* a job whose values cannot be used, plus 1; 0: none */
};

/* A quantised block whose scale is not finite would turn the whole model into NaN. */
static bool scales_finite(enum moge_type type, const unsigned char *blocks, size_t n_blocks) {
    size_t step = (size_t)moge_type_traits(type)->block_bytes;
    for (size_t b = 0; b < n_blocks; b++) {
        uint16_t d;
        memcpy(&d, blocks + b * step, sizeof d);
        if ((d & 0x7c00) == 0x7c00)
            return false;
    }
    return true;
}

static bool values_finite(const float *values, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!isfinite(values[i]))
            return false;
    return true;
}

/* Rows begin..end (at most a panel of them) by way of f32. */
static bool rows_convert(const struct moge_pack_job *job, int32_t begin, int32_t end,
                         unsigned char *rows, float *wide) {
    const struct moge_matrix *m = job->matrix;
    const struct moge_type_traits *from = moge_type_traits(job->stored),
                                  *to = moge_type_traits(m->type);
    size_t n = (size_t)(end - begin) * (size_t)m->n_in;
    size_t row_bytes = (size_t)(m->n_in / from->block_values) * (size_t)from->block_bytes;
    memcpy(rows, job->source + (size_t)begin * row_bytes, (size_t)(end - begin) * row_bytes);
    from->to_f32(rows, wide, n);
    if (!values_finite(wide, n))
        return false;
    unsigned char *target = (unsigned char *)(uintptr_t)m->data;
    if (m->type == MOGE_TYPE_F32) {
        memcpy(target + (size_t)begin * (size_t)m->n_in * sizeof *wide, wide, n * sizeof *wide);
        return true;
    }
    to->from_f32(wide, rows, n);
    size_t panel = moge_matrix_bytes(m->type, MOGE_PANEL_ROWS, m->n_in);
    moge_matrix_pack(m->type, rows, end - begin, m->n_in, 0, end - begin,
                     target + (size_t)(begin / MOGE_PANEL_ROWS) * panel);
    return true;
}

/* One thread's rows of one matrix. */
static bool job_run(const struct moge_pack_job *job, int i_thread, int n_threads,
                    unsigned char *rows, float *wide) {
    const struct moge_matrix *m = job->matrix;
    const struct moge_type_traits *traits = moge_type_traits(job->stored);
    int begin, end;
    moge_threads_split(m->n_out, MOGE_PANEL_ROWS, i_thread, n_threads, &begin, &end);
    if (begin >= end)
        return true;
    if (job->stored == m->type) {
        size_t per_row = (size_t)(m->n_in / traits->block_values);
        const unsigned char *first =
            job->source + (size_t)begin * per_row * (size_t)traits->block_bytes;
        if (traits->block_values > 1 &&
            !scales_finite(m->type, first, (size_t)(end - begin) * per_row))
            return false;
        moge_matrix_pack(m->type, job->source, m->n_out, m->n_in, begin, end,
                         (void *)(uintptr_t)m->data);
        return true;
    }
    for (int32_t row = begin; row < end; row += MOGE_PANEL_ROWS)
        if (!rows_convert(job, row, end - row < MOGE_PANEL_ROWS ? end : row + MOGE_PANEL_ROWS, rows,
                          wide))
            return false;
    return true;
}

/* Pages of the file that were read once and are not needed again. */
static void source_drop(const struct moge_pack_job *job) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = ((uintptr_t)job->source + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)job->source + job->source_bytes) / page * page;
    if (end > begin)
        madvise((void *)begin, end - begin, MADV_DONTNEED);
}

static void fill_thread(void *arg, int i_thread, int n_threads) {
    struct filling *filling = arg;
    struct moge_loader *loader = filling->loader;
    size_t n_in_max = 0;
    for (size_t i = 0; i < loader->n_jobs; i++)
        if ((size_t)loader->jobs[i].matrix->n_in > n_in_max)
            n_in_max = (size_t)loader->jobs[i].matrix->n_in;
    unsigned char *rows = malloc(n_in_max * MOGE_PANEL_ROWS * sizeof(float) + 64);
    float *wide = malloc(n_in_max * MOGE_PANEL_ROWS * sizeof *wide + 64);
    if (!rows || !wide)
        atomic_store(&filling->failed, -1);
    for (size_t i = 0; i < loader->n_jobs; i++) {
        if (rows && wide && !job_run(&loader->jobs[i], i_thread, n_threads, rows, wide))
            atomic_store(&filling->failed, (int)i + 1);
        moge_threads_barrier(filling->threads);
        if (atomic_load(&filling->failed) != 0)
            break;
        if (i_thread == 0) {
            source_drop(&loader->jobs[i]);
            if (loader->options->progress)
                loader->options->progress(loader->options->progress_arg,
                                          (double)(i + 1) / (double)loader->n_jobs);
        }
        moge_threads_barrier(
            filling->threads); /* nobody sets `failed` while another still reads it */
    }
    free(rows);
    free(wide);
}

int moge_model_fill(struct moge_loader *loader) {
    struct filling filling = {.loader = loader};
    long n_cpus = sysconf(_SC_NPROCESSORS_ONLN);
    int n_threads = n_cpus < 1 ? 1 : n_cpus > LOAD_THREADS_MAX ? LOAD_THREADS_MAX : (int)n_cpus;
    int rc = moge_threads_new(&filling.threads, n_threads, loader->err);
    if (rc != 0)
        return rc;
    moge_threads_run(filling.threads, fill_thread, &filling);
    moge_threads_free(filling.threads);
    int failed = atomic_load(&filling.failed);
    if (failed < 0)
        return moge_fail(loader->err, MOGE_NOMEM, "no memory to load the model");
    if (failed > 0)
        return moge_fail(
            loader->err, MOGE_FORMAT, "a weight matrix of %d x %d holds values that are not finite",
            loader->jobs[failed - 1].matrix->n_in, loader->jobs[failed - 1].matrix->n_out);
    struct moge_arena *weights = &loader->model->weights;
    if (loader->options->mlock && mlock(weights->base, weights->used_bytes) != 0)
        return moge_fail(loader->err, MOGE_IO,
                         "cannot lock %zu bytes of weights in memory: raise LimitMEMLOCK",
                         weights->used_bytes);
    return 0;
}
