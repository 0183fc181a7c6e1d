/* SPDX-License-Identifier: Apache-2.0 */
/* One page of one KV head against the query heads that share it, written once over sixteen lanes
 * (see vec_body.h).  Heads go in tiles of up to four so that a key or value is widened once for
 * them; a head's arithmetic is the same in every tile.
 *
 *      scores: lane = position:       head tile [4] of sums stays in registers over the columns
 *      values: for each 16 columns:   head tile [4] of sums stays in registers over all t */
#ifndef MOGE_ATTN_PAGE_BODY_H
#define MOGE_ATTN_PAGE_BODY_H

#include "engine/kernels/kernels.h"
#include "engine/kernels/lanes.h"

#define ATTN_INLINE static inline __attribute__((always_inline))

ATTN_INLINE void scores_tile(const float *q, const uint16_t *k, int32_t n_tok, int32_t head_dim,
                             float scale, float *scores, size_t stride, const int n_heads) {
    lf sum[4];
    for (int h = 0; h < n_heads; h++)
        sum[h] = lf_set(0.0f);
    for (int32_t i = 0; i < head_dim; i++) {
        lf key = lf_take_f16(k + (size_t)i * LANES, LANES);
        for (int h = 0; h < n_heads; h++)
            sum[h] = lf_fma(lf_set(q[(size_t)h * (size_t)head_dim + (size_t)i]), key, sum[h]);
    }
    for (int h = 0; h < n_heads; h++)
        lf_put(scores + (size_t)h * stride, lf_mul(sum[h], lf_set(scale)), n_tok);
}

ATTN_INLINE void values_tile(const float *p, size_t stride, const uint16_t *v, int32_t n_tok,
                             int32_t head_dim, float *out, const int n_heads) {
    for (int32_t i = 0; i < head_dim; i += LANES) {
        lf sum[4];
        for (int h = 0; h < n_heads; h++)
            sum[h] = lf_take(out + (size_t)h * (size_t)head_dim + i, head_dim - i);
        for (int32_t t = 0; t < n_tok; t++) {
            lf value = lf_take_f16(v + (size_t)t * (size_t)head_dim + i, head_dim - i);
            for (int h = 0; h < n_heads; h++)
                sum[h] = lf_fma(lf_set(p[(size_t)h * stride + (size_t)t]), value, sum[h]);
        }
        for (int h = 0; h < n_heads; h++)
            lf_put(out + (size_t)h * (size_t)head_dim + i, sum[h], head_dim - i);
    }
}

ATTN_INLINE void scores_tile_q8_0(const float *q, const struct moge_kv_q8_0 *k, int32_t n_tok,
                                  int32_t head_dim, float scale, float *scores, size_t stride,
                                  const int n_heads) {
    lf sum[4];
    for (int h = 0; h < n_heads; h++)
        sum[h] = lf_set(0.0f);
    for (int32_t b = 0; b < head_dim; b += 32, k++) {
        int32_t n = head_dim - b < 32 ? head_dim - b : 32;
        lf part[4], d = lf_load_f16(k->d);
        for (int h = 0; h < n_heads; h++)
            part[h] = lf_set(0.0f);
        for (int32_t i = 0; i < n; i++) {
            lf key = lf_load_i8(k->q + i * LANES);
            for (int h = 0; h < n_heads; h++)
                part[h] =
                    lf_fma(lf_set(q[(size_t)h * (size_t)head_dim + (size_t)(b + i)]), key, part[h]);
        }
        for (int h = 0; h < n_heads; h++)
            sum[h] = lf_fma(part[h], d, sum[h]);
    }
    for (int h = 0; h < n_heads; h++)
        lf_put(scores + (size_t)h * stride, lf_mul(sum[h], lf_set(scale)), n_tok);
}

ATTN_INLINE void values_tile_q8_0(const float *p, size_t stride, const struct moge_kv_q8_0 *v,
                                  int32_t n_tok, int32_t head_dim, float *out, const int n_heads) {
    for (int32_t b = 0; b < head_dim; b += 32, v++) {
        float weights[4][LANES]; /* p * d: one product for all columns of the block */
        lf d = lf_load_f16(v->d);
        for (int h = 0; h < n_heads; h++)
            lf_store(weights[h], lf_mul(lf_take(p + (size_t)h * stride, n_tok), d));
        for (int32_t i = b; i < b + 32 && i < head_dim; i += LANES) {
            lf sum[4];
            for (int h = 0; h < n_heads; h++)
                sum[h] = lf_take(out + (size_t)h * (size_t)head_dim + i, head_dim - i);
            for (int32_t t = 0; t < n_tok; t++) {
                lf value = lf_load_i8(v->q + t * 32 + (i - b));
                for (int h = 0; h < n_heads; h++)
                    sum[h] = lf_fma(lf_set(weights[h][t]), value, sum[h]);
            }
            for (int h = 0; h < n_heads; h++)
                lf_put(out + (size_t)h * (size_t)head_dim + i, sum[h], head_dim - i);
        }
    }
}

/* Heads in tiles of four and a rest of one to three: the tile's size is a constant to the compiler.
 */
#define ATTN_TILES(n_q, tile, advance, ...)                                                        \
    for (;; n_q -= 4) {                                                                            \
        switch (n_q) {                                                                             \
        case 1:                                                                                    \
            tile(__VA_ARGS__, 1);                                                                  \
            break;                                                                                 \
        case 2:                                                                                    \
            tile(__VA_ARGS__, 2);                                                                  \
            break;                                                                                 \
        case 3:                                                                                    \
            tile(__VA_ARGS__, 3);                                                                  \
            break;                                                                                 \
        default:                                                                                   \
            tile(__VA_ARGS__, 4);                                                                  \
        }                                                                                          \
        if (n_q <= 4)                                                                              \
            break;                                                                                 \
        advance;                                                                                   \
    }

static inline void attn_page_scores(const float *q, int32_t n_q, const uint16_t *k, int32_t n_tok,
                                    int32_t head_dim, float scale, float *scores, size_t stride) {
    ATTN_TILES(n_q, scores_tile, (q += (size_t)4 * (size_t)head_dim, scores += 4 * stride), q, k,
               n_tok, head_dim, scale, scores, stride)
}

static inline void attn_page_values(const float *p, size_t stride, int32_t n_q, const uint16_t *v,
                                    int32_t n_tok, int32_t head_dim, float *out) {
    ATTN_TILES(n_q, values_tile, (p += 4 * stride, out += (size_t)4 * (size_t)head_dim), p, stride,
               v, n_tok, head_dim, out)
}

static inline void attn_page_scores_q8_0(const float *q, int32_t n_q, const struct moge_kv_q8_0 *k,
                                         int32_t n_tok, int32_t head_dim, float scale,
                                         float *scores, size_t stride) {
    ATTN_TILES(n_q, scores_tile_q8_0, (q += (size_t)4 * (size_t)head_dim, scores += 4 * stride), q,
               k, n_tok, head_dim, scale, scores, stride)
}

static inline void attn_page_values_q8_0(const float *p, size_t stride, int32_t n_q,
                                         const struct moge_kv_q8_0 *v, int32_t n_tok,
                                         int32_t head_dim, float *out) {
    ATTN_TILES(n_q, values_tile_q8_0, (p += 4 * stride, out += (size_t)4 * (size_t)head_dim), p,
               stride, v, n_tok, head_dim, out)
}

static inline void attn_page_fill(struct moge_kernels *kernels) {
    kernels->attn_scores = attn_page_scores;
    kernels->attn_values = attn_page_values;
    kernels->attn_scores_q8_0 = attn_page_scores_q8_0;
    kernels->attn_values_q8_0 = attn_page_values_q8_0;
}

#endif
