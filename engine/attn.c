/* SPDX-License-Identifier: Apache-2.0 */
/* Paged grouped-query attention.
 *
 *      query heads   0 1 2 3 | 4 5 6 7        all heads of a KV head go through its page together
 *      KV heads         0    |    1
 *      pages of the row's sequence, in order: [16 positions][16 positions][1..16 positions]
 *
 * A unit of work is (KV head, row).  For one row: scores of all positions 0..pos, softmax, then the
 * values in the same order.  The order depends on the position alone, so chunking and neighbours
 * change nothing.
 *
 * K and V of all rows must be stored before any row attends, because rows of one chunk see each
 * other.  When the KV heads divide evenly among the threads, a thread computes, stores and attends
 * heads of its own and nobody waits; otherwise threads meet in between. */
#include <math.h>
#include <string.h>

#include "engine/engine_state.h"

/* ---- formats ---- */

/* Keys lie across a page, [head_dim, 16]: sixteen positions are then one vector, and a score needs
 * no sum over lanes. */
static void f16_store_key(const struct moge_kernels *kernels, const float *x, void *page, int32_t t,
                          int32_t n) {
    uint16_t *cells = page, narrow[MOGE_PAGE_TOKENS];
    for (int32_t i = 0; i < n; i += MOGE_PAGE_TOKENS) {
        int32_t n_part = n - i < MOGE_PAGE_TOKENS ? n - i : MOGE_PAGE_TOKENS;
        kernels->f32_to_f16(x + i, narrow, n_part);
        for (int32_t j = 0; j < n_part; j++)
            cells[(i + j) * MOGE_PAGE_TOKENS + t] = narrow[j];
    }
}

static void f16_store_value(const struct moge_kernels *kernels, const float *x, void *page,
                            int32_t t, int32_t n) {
    kernels->f32_to_f16(x, (uint16_t *)page + (size_t)t * (size_t)n, n);
}

static void f16_scores(const struct moge_kernels *kernels, const float *q, int32_t n_q,
                       const void *k, int32_t n_tok, int32_t head_dim, float scale, float *scores,
                       size_t stride) {
    kernels->attn_scores(q, n_q, k, n_tok, head_dim, scale, scores, stride);
}

static void f16_values(const struct moge_kernels *kernels, const float *p, size_t stride,
                       int32_t n_q, const void *v, int32_t n_tok, int32_t head_dim, float *out) {
    kernels->attn_values(p, stride, n_q, v, n_tok, head_dim, out);
}

static void f32_store(const struct moge_kernels *kernels, const float *x, void *page, int32_t t,
                      int32_t n) {
    (void)kernels;
    memcpy((float *)page + (size_t)t * (size_t)n, x, (size_t)n * sizeof *x);
}

static void f32_scores(const struct moge_kernels *kernels, const float *q, int32_t n_q,
                       const void *k, int32_t n_tok, int32_t head_dim, float scale, float *scores,
                       size_t stride) {
    const float *keys = k;
    for (int32_t h = 0; h < n_q; h++)
        for (int32_t t = 0; t < n_tok; t++)
            scores[(size_t)h * stride + (size_t)t] =
                scale *
                kernels->dot(q + (ptrdiff_t)h * head_dim, keys + (ptrdiff_t)t * head_dim, head_dim);
}

static void f32_values(const struct moge_kernels *kernels, const float *p, size_t stride,
                       int32_t n_q, const void *v, int32_t n_tok, int32_t head_dim, float *out) {
    const float *values = v;
    for (int32_t h = 0; h < n_q; h++)
        for (int32_t t = 0; t < n_tok; t++)
            kernels->axpy(out + (ptrdiff_t)h * head_dim, p[(size_t)h * stride + (size_t)t],
                          values + (ptrdiff_t)t * head_dim, head_dim);
}

static size_t f16_bytes(int32_t head_dim) {
    return (size_t)head_dim * MOGE_PAGE_TOKENS * sizeof(uint16_t);
}

static size_t f32_bytes(int32_t head_dim) {
    return (size_t)head_dim * MOGE_PAGE_TOKENS * sizeof(float);
}

static size_t q8_0_bytes(int32_t head_dim) {
    return ((size_t)head_dim + MOGE_QBLOCK - 1) / MOGE_QBLOCK * sizeof(struct moge_kv_q8_0);
}

/* Quantises columns i.. of one position, padded with zeros to a block. */
static int32_t q8_0_block(const struct moge_kernels *kernels, const float *x, int32_t i, int32_t n,
                          int8_t *q, uint16_t *d) {
    float block[MOGE_QBLOCK] = {0}, scale;
    int32_t sum, n_part = n - i < MOGE_QBLOCK ? n - i : MOGE_QBLOCK;
    memcpy(block, x + i, (size_t)n_part * sizeof *block);
    kernels->quantize(block, MOGE_QBLOCK, q, &scale, &sum);
    kernels->f32_to_f16(&scale, d, 1);
    return n_part;
}

static void q8_0_store_key(const struct moge_kernels *kernels, const float *x, void *page,
                           int32_t t, int32_t n) {
    struct moge_kv_q8_0 *blocks = page;
    int8_t q[MOGE_QBLOCK];
    for (int32_t i = 0; i < n; i += MOGE_QBLOCK, blocks++) {
        int32_t n_part = q8_0_block(kernels, x, i, n, q, &blocks->d[t]);
        for (int32_t j = 0; j < n_part; j++)
            blocks->q[j * MOGE_PAGE_TOKENS + t] = q[j];
    }
}

static void q8_0_store_value(const struct moge_kernels *kernels, const float *x, void *page,
                             int32_t t, int32_t n) {
    struct moge_kv_q8_0 *blocks = page;
    for (int32_t i = 0; i < n; i += MOGE_QBLOCK, blocks++)
        q8_0_block(kernels, x, i, n, blocks->q + t * MOGE_QBLOCK, &blocks->d[t]);
}

static void q8_0_scores(const struct moge_kernels *kernels, const float *q, int32_t n_q,
                        const void *k, int32_t n_tok, int32_t head_dim, float scale, float *scores,
                        size_t stride) {
    kernels->attn_scores_q8_0(q, n_q, k, n_tok, head_dim, scale, scores, stride);
}

static void q8_0_values(const struct moge_kernels *kernels, const float *p, size_t stride,
                        int32_t n_q, const void *v, int32_t n_tok, int32_t head_dim, float *out) {
    kernels->attn_values_q8_0(p, stride, n_q, v, n_tok, head_dim, out);
}

const struct moge_kv_format *moge_kv_format(enum moge_kv_type type) {
    static const struct moge_kv_format formats[] = {
        [MOGE_KV_F16] = {f16_bytes, f16_store_key, f16_store_value, f16_scores, f16_values},
        [MOGE_KV_F32] = {f32_bytes, f32_store, f32_store, f32_scores, f32_values},
        [MOGE_KV_Q8_0] = {q8_0_bytes, q8_0_store_key, q8_0_store_value, q8_0_scores, q8_0_values},
    };
    return (size_t)type < sizeof formats / sizeof formats[0] ? &formats[type] : NULL;
}

/* K (which 0) or V (1) of one KV head in the page that holds position pos. */
static void *kv_page(const struct moge_engine *engine, int32_t layer, int which, int32_t kv_head,
                     const struct moge_row *row, int32_t pos) {
    const struct moge_model_info *info = &engine->model->info;
    size_t page = (size_t)row->pages[pos / MOGE_PAGE_TOKENS],
           n_pages = (size_t)engine->options.n_pages;
    size_t block =
        (((size_t)layer * n_pages + page) * 2 + (size_t)which) * (size_t)info->n_kv_heads +
        (size_t)kv_head;
    return engine->kv + block * engine->kv_block_bytes;
}

/* ---- the work ---- */

static void store_row(struct moge_engine *engine, int32_t layer, int32_t kv_head, int32_t row) {
    const struct moge_model *model = engine->model;
    const struct moge_kernels *kernels = engine->kernels;
    size_t head_dim = (size_t)model->info.head_dim, n_kv = (size_t)model->info.n_kv_heads;
    int32_t group = model->info.n_heads / model->info.n_kv_heads;
    const struct moge_row *r = &engine->rows[row];
    const float *cs = engine->rope + (size_t)r->pos * head_dim;
    float *q = engine->q + ((size_t)row * n_kv + (size_t)kv_head) * (size_t)group * head_dim;
    float *k = engine->k + ((size_t)row * n_kv + (size_t)kv_head) * head_dim;
    const float *v = engine->v + ((size_t)row * n_kv + (size_t)kv_head) * head_dim;
    kernels->rope(q, cs, group, (int32_t)head_dim, model->rope_neox);
    kernels->rope(k, cs, 1, (int32_t)head_dim, model->rope_neox);
    const struct moge_kv_format *format = engine->kv_format;
    int32_t t = r->pos % MOGE_PAGE_TOKENS;
    format->store_key(kernels, k, kv_page(engine, layer, 0, kv_head, r, r->pos), t,
                      (int32_t)head_dim);
    format->store_value(kernels, v, kv_page(engine, layer, 1, kv_head, r, r->pos), t,
                        (int32_t)head_dim);
}

/* Whether a KV head's outputs are whole blocks, so that whoever attends can quantise them. */
static bool heads_are_blocks(const struct moge_model *model) {
    return model->info.n_heads / model->info.n_kv_heads * model->info.head_dim % MOGE_QBLOCK == 0;
}

static void attend_row(struct moge_engine *engine, int32_t layer, int32_t kv_head, int32_t row,
                       float *scores) {
    const struct moge_model_info *info = &engine->model->info;
    const struct moge_kernels *kernels = engine->kernels;
    const struct moge_kv_format *format = engine->kv_format;
    const struct moge_row *r = &engine->rows[row];
    int32_t group = info->n_heads / info->n_kv_heads, n_seen = r->pos + 1;
    size_t at =
        ((size_t)row * (size_t)info->n_heads + (size_t)(kv_head * group)) * (size_t)info->head_dim;
    size_t stride = (size_t)engine->options.n_context_max;
    const float *q = engine->q + at;
    float *out = engine->attn.f32 + at;
    float scale = 1.0f / sqrtf((float)info->head_dim);
    for (int32_t p = 0; p < n_seen; p += MOGE_PAGE_TOKENS) {
        int32_t n = n_seen - p < MOGE_PAGE_TOKENS ? n_seen - p : MOGE_PAGE_TOKENS;
        format->scores(kernels, q, group, kv_page(engine, layer, 0, kv_head, r, p), n,
                       info->head_dim, scale, scores + p, stride);
    }
    for (int32_t h = 0; h < group; h++)
        kernels->softmax(scores + (size_t)h * stride, n_seen);
    memset(out, 0, (size_t)group * (size_t)info->head_dim * sizeof *out);
    for (int32_t p = 0; p < n_seen; p += MOGE_PAGE_TOKENS) {
        int32_t n = n_seen - p < MOGE_PAGE_TOKENS ? n_seen - p : MOGE_PAGE_TOKENS;
        format->values(kernels, scores + p, stride, group, kv_page(engine, layer, 1, kv_head, r, p),
                       n, info->head_dim, out);
    }
    if (moge_is_quantized(&engine->model->layers[layer].o) && heads_are_blocks(engine->model))
        kernels->quantize(out, group * info->head_dim, engine->attn.q + at,
                          engine->attn.d + at / MOGE_QBLOCK, engine->attn.sum + at / MOGE_QBLOCK);
}

bool moge_attn_heads_apart(const struct moge_engine *engine, const struct moge_layer *layer) {
    const struct moge_model_info *info = &engine->model->info;
    if (info->n_kv_heads % engine->n_active != 0)
        return false;
    int32_t n_kv = info->n_kv_heads / engine->n_active * info->head_dim;
    int32_t n_q = n_kv * (info->n_heads / info->n_kv_heads);
    return n_q % moge_gemm_grain(layer->q.type) == 0 &&
           n_kv % moge_gemm_grain(layer->k.type) == 0 && n_kv % moge_gemm_grain(layer->v.type) == 0;
}

void moge_attn_run(struct moge_engine *engine, int32_t i_layer, int i_thread) {
    const struct moge_layer *layer = &engine->model->layers[i_layer];
    int32_t n_kv = engine->model->info.n_kv_heads, n_rows = engine->n_rows;
    int32_t begin, end;
    if (!moge_attn_heads_apart(engine, layer))
        moge_engine_meet(engine); /* q, k, v of a head come from several threads */
    moge_threads_split(n_kv * n_rows, 1, i_thread, engine->n_active, &begin, &end);
    for (int32_t unit = begin; unit < end; unit++)
        store_row(engine, i_layer, unit / n_rows, unit % n_rows);
    if (n_kv % engine->n_active != 0)
        moge_engine_meet(engine); /* a head's rows are stored by several threads */
    for (int32_t unit = begin; unit < end; unit++)
        attend_row(engine, i_layer, unit / n_rows, unit % n_rows, engine->workers[i_thread].scores);
    if (!moge_is_quantized(&layer->o) || heads_are_blocks(engine->model))
        return;
    moge_engine_meet(engine); /* blocks lie across heads */
    moge_threads_split(n_rows, 1, i_thread, engine->n_active, &begin, &end);
    for (int32_t row = begin; row < end; row++)
        moge_act_quantize(&engine->attn, engine->kernels, row);
}
