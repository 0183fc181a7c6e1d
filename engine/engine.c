/* SPDX-License-Identifier: Apache-2.0 */
/* The life of an engine, and the checks in front of a forward pass. */
#include "moge/engine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine_state.h"

int64_t moge_engine_page_bytes(const struct moge_model *model, enum moge_kv_type kv_type) {
    const struct moge_model_info *info = &model->info;
    const struct moge_kv_format *format = moge_kv_format(kv_type);
    MOGE_ASSERT(format != NULL);
    return (int64_t)info->n_layers * 2 * info->n_kv_heads *
           (int64_t)format->block_bytes(info->head_dim);
}

static int options_check(const struct moge_model *model, const struct moge_engine_options *options,
                         struct moge_err *err) {
    if (options->n_pages < 1 || options->n_rows_max < 1 || options->n_logits_max < 1)
        return moge_fail(err, MOGE_INVALID,
                         "an engine needs at least one page, row and row of logits");
    if (options->n_context_max < 1 || options->n_context_max > model->info.n_context)
        return moge_fail(err, MOGE_INVALID, "context is %d; the model was made for 1..%d",
                         options->n_context_max, model->info.n_context);
    if (!moge_kv_format(options->kv_type))
        return moge_fail(err, MOGE_INVALID, "there is no KV type %d", (int)options->kv_type);
    return 0;
}

/* ---- memory: one arena, taken in the order of engine_state.h ---- */

static int32_t max_i32(int32_t a, int32_t b) {
    return a > b ? a : b;
}

static int32_t n_in_max(const struct moge_model *model) {
    int32_t heads = model->info.n_heads * model->info.head_dim;
    return max_i32(max_i32(model->info.dim, heads), max_i32(model->ffn_dim, model->expert_dim));
}

/* Blocks of 32 are rounded up so that widths that no quantised matrix reads need no special case.
 */
static int act_take(struct moge_act *act, struct moge_arena *arena, size_t n_rows, int32_t n_in) {
    act->n_in = n_in;
    if (n_in == 0 || n_rows == 0)
        return 0;
    return moge_act_init(act, arena, (int32_t)n_rows, n_in);
}

#define TAKE(field, n)                                                                             \
    do {                                                                                           \
        (field) = moge_arena_take(arena, (size_t)(n), sizeof *(field));                            \
        if (!(field))                                                                              \
            return MOGE_NOMEM;                                                                     \
    } while (0)

static int worker_take(struct moge_engine *engine, struct moge_worker *worker) {
    struct moge_arena *arena = &engine->arena;
    const struct moge_model_info *info = &engine->model->info;
    const struct moge_router *router = &engine->model->router;
    size_t n_rows = (size_t)engine->options.n_rows_max, n_used = (size_t)router->n_used;
    if (act_take(&worker->norm, arena, MOGE_ROWS_FEW, info->dim) != 0)
        return MOGE_NOMEM;
    size_t n_heads = (size_t)(info->n_heads / info->n_kv_heads) * MOGE_ATTN_ROWS;
    TAKE(worker->attn.q, n_heads);
    TAKE(worker->attn.out, n_heads);
    TAKE(worker->attn.max, n_heads);
    TAKE(worker->attn.sum, n_heads);
    TAKE(worker->attn.scores, n_heads * MOGE_ATTN_SEGMENT);
    worker->gemm = moge_arena_take(arena, 1, moge_gemm_scratch_bytes(n_in_max(engine->model)));
    if (!worker->gemm)
        return MOGE_NOMEM;
    TAKE(worker->router_logits, MOGE_ROWS_ROUTED * (size_t)router->n_experts + 1);
    TAKE(worker->chosen, MOGE_ROWS_FEW * n_used + 1);
    TAKE(worker->weights, MOGE_ROWS_FEW * n_used + 1);
    TAKE(worker->shared_weight, MOGE_ROWS_FEW);
    TAKE(worker->expert_begin, router->n_experts + 1);
    TAKE(worker->pair_row, n_rows * n_used + 1);
    TAKE(worker->pair_weight, n_rows * n_used + 1);
    return 0;
}

static int scratch_take(struct moge_engine *engine) {
    struct moge_arena *arena = &engine->arena;
    const struct moge_model *model = engine->model;
    const struct moge_model_info *info = &model->info;
    size_t n_rows = (size_t)engine->options.n_rows_max, n_used = (size_t)model->router.n_used;
    size_t n_logits = (size_t)engine->options.n_logits_max, dim = (size_t)info->dim;
    int32_t heads = info->n_heads * info->head_dim;
    size_t kv = (size_t)(info->n_kv_heads * info->head_dim);
    TAKE(engine->rope, (size_t)engine->options.n_context_max * (size_t)info->head_dim);
    TAKE(engine->logits, n_logits * (size_t)info->n_vocab);
    TAKE(engine->rows, n_rows);
    TAKE(engine->logits_of, n_logits);
    TAKE(engine->x, n_rows * dim);
    /* An expert sees a row at most once, so delta needs no more rows than the batch has. */
    TAKE(engine->delta, n_rows * dim);
    TAKE(engine->q, n_rows * (size_t)heads);
    TAKE(engine->k, n_rows * kv);
    TAKE(engine->v, n_rows * kv);
    TAKE(engine->up, n_rows * n_used * (size_t)model->expert_dim + 1);
    TAKE(engine->up_shared, n_rows * (size_t)model->ffn_dim + 1);
    TAKE(engine->few_logits, MOGE_ROWS_FEW * (size_t)model->router.n_experts + 1);
    TAKE(engine->chosen, n_rows * n_used + 1);
    TAKE(engine->weights, n_rows * n_used + 1);
    TAKE(engine->shared_weight, n_rows);
    TAKE(engine->layer_experts, info->n_layers);
    TAKE(engine->group_pairs, info->n_groups + 1);
    size_t n_norm = n_rows > n_logits ? n_rows : n_logits;
    if (act_take(&engine->norm, arena, n_norm, info->dim) != 0 ||
        act_take(&engine->attn, arena, n_rows, heads) != 0 ||
        act_take(&engine->hidden, arena, n_rows * n_used, model->expert_dim) != 0 ||
        act_take(&engine->shared, arena, n_rows, model->ffn_dim) != 0)
        return MOGE_NOMEM;
    int32_t n_threads = moge_threads_count(engine->threads);
    TAKE(engine->workers, n_threads);
    for (int32_t i = 0; i < n_threads; i++)
        if (worker_take(engine, &engine->workers[i]) != 0)
            return MOGE_NOMEM;
    return 0;
}

/* An upper bound of what scratch_take takes; pages never touched cost nothing. */
static size_t scratch_bytes(const struct moge_engine *engine) {
    const struct moge_model *model = engine->model;
    const struct moge_model_info *info = &model->info;
    size_t n_rows = (size_t)engine->options.n_rows_max,
           n_threads = (size_t)moge_threads_count(engine->threads);
    size_t n_logits = (size_t)engine->options.n_logits_max,
           n_ctx = (size_t)engine->options.n_context_max;
    size_t wide = (size_t)n_in_max(model), n_used = (size_t)model->router.n_used;
    size_t shared = n_ctx * (size_t)info->head_dim * 4 +
                    n_logits * ((size_t)info->n_vocab * 4 + 64) + (n_rows + n_logits) * wide * 64 +
                    n_rows * n_used * ((size_t)model->expert_dim * 12 + 64);
    size_t each = MOGE_ROWS_FEW * wide * 8 +
                  (size_t)info->n_heads * MOGE_ATTN_ROWS * (MOGE_ATTN_SEGMENT + 8) * 4 +
                  moge_gemm_scratch_bytes((int32_t)wide) + n_rows * n_used * 8 +
                  (size_t)model->router.n_experts * (MOGE_ROWS_ROUTED * 4 + 16);
    return shared + n_threads * (each + 8192) + (1 << 20);
}

/* Angles in double: they are the same on every machine, and position 100,000 is as exact as
 * position 1. */
static void rope_fill(struct moge_engine *engine) {
    int32_t half = engine->model->info.head_dim / 2;
    for (int32_t i = 0; i < half; i++) {
        double frequency =
            pow((double)engine->model->rope_base, -2.0 * i / engine->model->info.head_dim);
        for (int32_t pos = 0; pos < engine->options.n_context_max; pos++) {
            float *cs = engine->rope + ((size_t)pos * (size_t)half + (size_t)i) * 2;
            cs[0] = (float)cos(pos * frequency);
            cs[1] = (float)sin(pos * frequency);
        }
    }
}

/* A meeting takes as long as this many multiply-adds: about 1.5 us at 30 of them a nanosecond. */
#define MEETING_MACS 50000

static int64_t matrix_macs(const struct moge_matrix *matrix) {
    return (int64_t)matrix->n_out * matrix->n_in;
}

static int64_t row_macs(const struct moge_model *model) {
    int64_t macs = 0;
    for (int32_t i = 0; i < model->info.n_layers; i++) {
        const struct moge_layer *layer = &model->layers[i];
        macs += matrix_macs(&layer->q) + matrix_macs(&layer->k) + matrix_macs(&layer->v) +
                matrix_macs(&layer->o) + matrix_macs(&layer->gate) + matrix_macs(&layer->up) +
                matrix_macs(&layer->down) + matrix_macs(&layer->router);
        if (layer->router.n_out > 0)
            macs += 3 * model->router.n_used * matrix_macs(layer->gate_exps);
    }
    return macs;
}

int moge_engine_new(struct moge_engine **out, const struct moge_model *model,
                    struct moge_threads *threads, const struct moge_engine_options *options,
                    struct moge_err *err) {
    int rc = options_check(model, options, err);
    if (rc != 0)
        return rc;
    struct moge_engine *engine = calloc(1, sizeof *engine);
    if (!engine)
        return moge_fail(err, MOGE_NOMEM, "no memory for an engine");
    engine->model = model;
    engine->threads = threads;
    engine->kernels = moge_kernels();
    engine->kv_format = moge_kv_format(options->kv_type);
    engine->options = *options;
    engine->row_macs = row_macs(model);
    engine->pass_macs_alone = (int64_t)MEETING_MACS * (5 * model->info.n_layers + 5);
    engine->router_macs_alone = MEETING_MACS;
    engine->kv_block_bytes = engine->kv_format->block_bytes(model->info.head_dim);
    size_t page_bytes = (size_t)moge_engine_page_bytes(model, options->kv_type);
    rc = moge_arena_init(&engine->kv_arena, page_bytes * (size_t)options->n_pages, err);
    if (rc == 0)
        rc = moge_arena_init(&engine->arena, scratch_bytes(engine), err);
    if (rc == 0 && scratch_take(engine) != 0)
        rc = moge_fail(err, MOGE_INTERNAL, "the engine's scratch was sized too small");
    if (rc != 0) {
        moge_engine_free(engine);
        return rc;
    }
    engine->kv = engine->kv_arena.base;
    rope_fill(engine);
    *out = engine;
    return 0;
}

void moge_engine_free(struct moge_engine *engine) {
    if (!engine)
        return;
    moge_arena_fini(&engine->kv_arena);
    moge_arena_fini(&engine->arena);
    free(engine);
}

/* ---- forward ---- */

static bool span_fits(const struct moge_engine *engine, const struct moge_span *span) {
    const struct moge_engine_options *options = &engine->options;
    if (span->pos < 0 || span->n_rows < 1 || span->pos > options->n_context_max - span->n_rows)
        return false;
    if (span->n_logits < 0 || span->n_logits > span->n_rows)
        return false;
    for (int32_t i = span->pos; i < span->pos + span->n_rows; i++)
        if (span->tokens[i] < 0 || span->tokens[i] >= engine->model->info.n_vocab)
            return false;
    for (int32_t i = 0; i <= (span->pos + span->n_rows - 1) / MOGE_PAGE_TOKENS; i++)
        if (span->pages[i] < 0 || span->pages[i] >= options->n_pages)
            return false;
    return true;
}

static int batch_check(const struct moge_engine *engine, const struct moge_batch *batch) {
    int64_t n_rows = 0, n_logits = 0;
    for (int32_t i = 0; i < batch->n_spans; i++) {
        if (!span_fits(engine, &batch->spans[i]))
            return MOGE_INVALID;
        n_rows += batch->spans[i].n_rows;
        n_logits += batch->spans[i].n_logits;
    }
    bool fits = n_rows <= engine->options.n_rows_max && n_logits <= engine->options.n_logits_max;
    return fits ? 0 : MOGE_LIMIT;
}

static void rows_flatten(struct moge_engine *engine, struct moge_batch *batch) {
    engine->n_rows = engine->n_logits = 0;
    for (int32_t i = 0; i < batch->n_spans; i++) {
        struct moge_span *span = &batch->spans[i];
        span->logits_row = engine->n_logits;
        for (int32_t j = 0; j < span->n_rows; j++) {
            if (j >= span->n_rows - span->n_logits)
                engine->logits_of[engine->n_logits++] = engine->n_rows;
            int32_t pos = span->pos + j;
            engine->rows[engine->n_rows++] = (struct moge_row){span->tokens[pos], pos, span->pages};
        }
    }
}

/* What every forward reads, whatever is routed. */
static int64_t dense_bytes(const struct moge_engine *engine) {
    const struct moge_model *model = engine->model;
    int64_t bytes = engine->n_logits == 0
                        ? 0
                        : (int64_t)moge_matrix_bytes(model->output.type, model->output.n_out,
                                                     model->output.n_in);
    for (int32_t i = 0; i < model->info.n_layers; i++) {
        const struct moge_layer *layer = &model->layers[i];
        const struct moge_matrix *m[] = {&layer->q,    &layer->k,  &layer->v,    &layer->o,
                                         &layer->gate, &layer->up, &layer->down, &layer->router};
        for (size_t j = 0; j < sizeof m / sizeof m[0]; j++)
            if (m[j]->n_out > 0)
                bytes += (int64_t)moge_matrix_bytes(m[j]->type, m[j]->n_out, m[j]->n_in);
    }
    return bytes;
}

/* Where other processes leave the pool one processor, a meeting takes some 8 times as long.  Only a
 * shared pass finds out whether that is over, so one is tried now and then. */
#define CROWDED_MEETING 8
#define CROWDED_PASSES  32

/* A small draft is faster on one thread.  The result is the same. */
static bool is_worth_sharing(const struct moge_engine *engine) {
    int64_t n_threads = moge_threads_count(engine->threads);
    int64_t macs =
        engine->n_rows * engine->row_macs + engine->n_logits * matrix_macs(&engine->model->output);
    int64_t saved = macs - macs / n_threads;
    if (moge_threads_crowded(engine->threads) && engine->n_passes_alone < CROWDED_PASSES)
        saved /= CROWDED_MEETING;
    return engine->n_rows > 0 && saved > engine->pass_macs_alone;
}

int moge_engine_forward(struct moge_engine *engine, struct moge_batch *batch) {
    int rc = batch_check(engine, batch);
    if (rc != 0)
        return rc;
    rows_flatten(engine, batch);
    bool sharing = is_worth_sharing(engine);
    engine->n_active = sharing ? moge_threads_count(engine->threads) : 1;
    if (sharing)
        engine->n_passes_alone = 0;
    else if (engine->n_passes_alone < CROWDED_PASSES)
        engine->n_passes_alone++;
    engine->stats = (struct moge_forward_stats){.n_rows = engine->n_rows,
                                                .n_logits = engine->n_logits,
                                                .layer_experts = engine->layer_experts,
                                                .group_pairs = engine->group_pairs};
    memset(engine->layer_experts, 0,
           (size_t)engine->model->info.n_layers * sizeof *engine->layer_experts);
    memset(engine->group_pairs, 0,
           (size_t)engine->model->info.n_groups * sizeof *engine->group_pairs);
    moge_ahead_decide(engine);
    if (sharing)
        moge_threads_run(engine->threads, moge_forward_thread, engine);
    else if (engine->n_rows > 0)
        moge_forward_thread(engine, 0, 1);
    engine->stats.weight_bytes += dense_bytes(engine);
    batch->logits = engine->logits;
    batch->n_vocab = engine->model->info.n_vocab;
    return 0;
}

const struct moge_model *moge_engine_model(const struct moge_engine *engine) {
    return engine->model;
}

const struct moge_forward_stats *moge_engine_last(const struct moge_engine *engine) {
    return &engine->stats;
}
