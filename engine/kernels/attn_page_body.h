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

static inline void attn_page_scores(const float *q, int32_t n_q, const uint16_t *k, int32_t n_tok,
                                    int32_t head_dim, float scale, float *scores, size_t stride) {
    while (n_q > 0) {
        int n = n_q < 4 ? n_q : 4;
        switch (n) {
        case 1:
            scores_tile(q, k, n_tok, head_dim, scale, scores, stride, 1);
            break;
        case 2:
            scores_tile(q, k, n_tok, head_dim, scale, scores, stride, 2);
            break;
        case 3:
            scores_tile(q, k, n_tok, head_dim, scale, scores, stride, 3);
            break;
        default:
            scores_tile(q, k, n_tok, head_dim, scale, scores, stride, 4);
        }
        n_q -= n;
        q += (size_t)n * (size_t)head_dim;
        scores += (size_t)n * stride;
    }
}

static inline void attn_page_values(const float *p, size_t stride, int32_t n_q, const uint16_t *v,
                                    int32_t n_tok, int32_t head_dim, float *out) {
    while (n_q > 0) {
        int n = n_q < 4 ? n_q : 4;
        switch (n) {
        case 1:
            values_tile(p, stride, v, n_tok, head_dim, out, 1);
            break;
        case 2:
            values_tile(p, stride, v, n_tok, head_dim, out, 2);
            break;
        case 3:
            values_tile(p, stride, v, n_tok, head_dim, out, 3);
            break;
        default:
            values_tile(p, stride, v, n_tok, head_dim, out, 4);
        }
        n_q -= n;
        p += (size_t)n * stride;
        out += (size_t)n * (size_t)head_dim;
    }
}

static inline void attn_page_fill(struct moge_kernels *kernels) {
    kernels->attn_scores = attn_page_scores;
    kernels->attn_values = attn_page_values;
}

#endif
