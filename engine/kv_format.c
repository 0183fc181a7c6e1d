/* SPDX-License-Identifier: Apache-2.0 */
/* How keys and values lie in a page, by KV type. */
#include <string.h>

#include "engine/engine_state.h"

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

static void f16_scores(const struct moge_kernels *kernels, const float *const *q, int32_t n_q,
                       const void *const *pages, int32_t n_tok, int32_t head_dim, float scale,
                       float *scores, size_t stride) {
    kernels->attn_scores(q, n_q, pages, n_tok, head_dim, scale, scores, stride);
}

static void f16_values(const struct moge_kernels *kernels, const float *p, size_t stride,
                       int32_t n_q, const void *const *pages, int32_t n_tok, int32_t head_dim,
                       float *const *out) {
    kernels->attn_values(p, stride, n_q, pages, n_tok, head_dim, out);
}

static void f32_store(const struct moge_kernels *kernels, const float *x, void *page, int32_t t,
                      int32_t n) {
    (void)kernels;
    memcpy((float *)page + (size_t)t * (size_t)n, x, (size_t)n * sizeof *x);
}

static void f32_scores(const struct moge_kernels *kernels, const float *const *q, int32_t n_q,
                       const void *const *pages, int32_t n_tok, int32_t head_dim, float scale,
                       float *scores, size_t stride) {
    for (int32_t t = 0; t < n_tok; t += MOGE_PAGE_TOKENS) {
        int32_t n = n_tok - t < MOGE_PAGE_TOKENS ? n_tok - t : MOGE_PAGE_TOKENS;
        kernels->dots(q, n_q, pages[t / MOGE_PAGE_TOKENS], n, head_dim, scores + t, stride);
    }
    for (int32_t h = 0; h < n_q; h++)
        kernels->scale(scores + (size_t)h * stride, scale, n_tok);
}

static void f32_values(const struct moge_kernels *kernels, const float *p, size_t stride,
                       int32_t n_q, const void *const *pages, int32_t n_tok, int32_t head_dim,
                       float *const *out) {
    for (int32_t h = 0; h < n_q; h++)
        for (int32_t t = 0; t < n_tok; t++) {
            const float *value = (const float *)pages[t / MOGE_PAGE_TOKENS] +
                                 (ptrdiff_t)(t % MOGE_PAGE_TOKENS) * head_dim;
            kernels->axpy(out[h], p[(size_t)h * stride + (size_t)t], value, head_dim);
        }
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
static struct moge_act_block q8_0_block(const struct moge_kernels *kernels, const float *x,
                                        int32_t i, int32_t n, uint16_t *d) {
    float values[MOGE_QBLOCK] = {0};
    struct moge_act_block block;
    memcpy(values, x + i, (size_t)(n - i < MOGE_QBLOCK ? n - i : MOGE_QBLOCK) * sizeof *values);
    kernels->quantize(values, MOGE_QBLOCK, &block);
    kernels->f32_to_f16(&block.d, d, 1);
    return block;
}

static void q8_0_store_key(const struct moge_kernels *kernels, const float *x, void *page,
                           int32_t t, int32_t n) {
    struct moge_kv_q8_0 *blocks = page;
    for (int32_t i = 0; i < n; i += MOGE_QBLOCK, blocks++) {
        struct moge_act_block block = q8_0_block(kernels, x, i, n, &blocks->d[t]);
        for (int32_t j = 0; j < MOGE_QBLOCK && i + j < n; j++)
            blocks->q[j * MOGE_PAGE_TOKENS + t] = block.q[j];
    }
}

static void q8_0_store_value(const struct moge_kernels *kernels, const float *x, void *page,
                             int32_t t, int32_t n) {
    struct moge_kv_q8_0 *blocks = page;
    for (int32_t i = 0; i < n; i += MOGE_QBLOCK, blocks++) {
        struct moge_act_block block = q8_0_block(kernels, x, i, n, &blocks->d[t]);
        memcpy(blocks->q + t * MOGE_QBLOCK, block.q, sizeof block.q);
    }
}

static void q8_0_scores(const struct moge_kernels *kernels, const float *const *q, int32_t n_q,
                        const void *const *pages, int32_t n_tok, int32_t head_dim, float scale,
                        float *scores, size_t stride) {
    kernels->attn_scores_q8_0(q, n_q, pages, n_tok, head_dim, scale, scores, stride);
}

static void q8_0_values(const struct moge_kernels *kernels, const float *p, size_t stride,
                        int32_t n_q, const void *const *pages, int32_t n_tok, int32_t head_dim,
                        float *const *out) {
    kernels->attn_values_q8_0(p, stride, n_q, pages, n_tok, head_dim, out);
}

const struct moge_kv_format *moge_kv_format(enum moge_kv_type type) {
    static const struct moge_kv_format formats[] = {
        [MOGE_KV_F16] = {f16_bytes, f16_store_key, f16_store_value, f16_scores, f16_values},
        [MOGE_KV_F32] = {f32_bytes, f32_store, f32_store, f32_scores, f32_values},
        [MOGE_KV_Q8_0] = {q8_0_bytes, q8_0_store_key, q8_0_store_value, q8_0_scores, q8_0_values},
    };
    return (size_t)type < sizeof formats / sizeof formats[0] ? &formats[type] : NULL;
}
