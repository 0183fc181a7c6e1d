/* SPDX-License-Identifier: Apache-2.0 */
/* Pages of one KV head against the query heads that see them, written once over sixteen lanes (see
 * vec_body.h).  A page is taken by all heads before the next, so it is in the first cache for all
 * but the first tile.  Heads go in tiles of up to five so that a key or value is widened once for
 * them; a head's arithmetic is the same in every tile.
 *
 *      scores: lane = position:       sums [heads, ATTN_WIDE pages] over the columns
 *      values: for each 16 columns:   sums [heads, ATTN_WIDE times 16 columns] over all t
 *
 * Sums stay in registers.  A sum waits for the one before it, so there must be 8 vectors of them to
 * keep both multipliers busy; with 16 lanes a vector that takes two pages, or 32 columns.
 *
 * While a page is computed a later one is fetched, evenly and line by line, whatever order the page
 * itself is read in: lines asked for in bursts are dropped when too many are under way.  Pages lie
 * anywhere, and hardware prefetchers stop at 4 KiB. */
#ifndef MOGE_ATTN_PAGE_BODY_H
#define MOGE_ATTN_PAGE_BODY_H

#include "engine/kernels/kernels.h"
#include "engine/kernels/lanes.h"

#define ATTN_INLINE static inline __attribute__((always_inline))

#if defined(MOGE_LANES_AVX512)
#define ATTN_WIDE 2
#else
#define ATTN_WIDE 1
#endif

#define ATTN_HEADS 5 /* of a tile, at most */

/* Positions of a page at a time. */
#define ATTN_UNROLL _Pragma("GCC unroll 4")

/* ---- f16 ---- */

ATTN_INLINE void scores_tile(const float *const *q, const void *const *pages, int32_t n_tok,
                             int32_t head_dim, float scale, float *scores, size_t stride,
                             const int n_pages, const int n_heads) {
    lf sum[ATTN_HEADS][ATTN_WIDE], key[ATTN_WIDE];
    for (int h = 0; h < n_heads; h++)
        for (int j = 0; j < n_pages; j++)
            sum[h][j] = lf_set(0.0f);
    for (int32_t i = 0; i < head_dim; i++) {
        for (int j = 0; j < n_pages; j++) {
            key[j] = lf_load_f16((const uint16_t *)pages[j] + (size_t)i * LANES);
            __builtin_prefetch((const uint16_t *)pages[MOGE_ATTN_AHEAD + j] + (size_t)i * LANES);
        }
        for (int h = 0; h < n_heads; h++)
            for (int j = 0; j < n_pages; j++)
                sum[h][j] = lf_fma(lf_set(q[h][i]), key[j], sum[h][j]);
    }
    for (int h = 0; h < n_heads; h++)
        for (int j = 0; j < n_pages; j++)
            lf_put(scores + (size_t)h * stride + (size_t)j * LANES,
                   lf_mul(sum[h][j], lf_set(scale)), n_tok - j * LANES);
}

/* 16 n_wide columns from i on; the last may lack some. */
ATTN_INLINE void values_columns(const float *p, size_t stride, const uint16_t *v,
                                const uint16_t *ahead, int32_t n_tok, int32_t head_dim,
                                float *const *out, int32_t i, const int n_wide, const int n_heads) {
    lf sum[ATTN_HEADS][ATTN_WIDE], value[ATTN_WIDE];
    for (int h = 0; h < n_heads; h++)
        for (int j = 0; j < n_wide; j++)
            sum[h][j] = lf_take(out[h] + i + j * LANES, head_dim - i - j * LANES);
    ATTN_UNROLL
    for (int32_t t = 0; t < n_tok; t++) {
        size_t at = (size_t)t * (size_t)head_dim + (size_t)i;
        __builtin_prefetch(ahead + (size_t)(i + t * n_wide) * LANES);
        for (int j = 0; j < n_wide; j++)
            value[j] = lf_take_f16(v + at + j * LANES, head_dim - i - j * LANES);
        for (int h = 0; h < n_heads; h++)
            for (int j = 0; j < n_wide; j++)
                sum[h][j] = lf_fma(lf_set(p[(size_t)h * stride + (size_t)t]), value[j], sum[h][j]);
    }
    for (int h = 0; h < n_heads; h++)
        for (int j = 0; j < n_wide; j++)
            lf_put(out[h] + i + j * LANES, sum[h][j], head_dim - i - j * LANES);
}

ATTN_INLINE void values_tile(const float *p, size_t stride, const void *const *pages, int32_t n_tok,
                             int32_t head_dim, float *const *out, const int n_heads) {
    int32_t i = 0;
    for (; i + ATTN_WIDE * LANES <= head_dim; i += ATTN_WIDE * LANES)
        values_columns(p, stride, pages[0], pages[MOGE_ATTN_AHEAD], n_tok, head_dim, out, i,
                       ATTN_WIDE, n_heads);
    for (; i < head_dim; i += LANES)
        values_columns(p, stride, pages[0], pages[MOGE_ATTN_AHEAD], n_tok, head_dim, out, i, 1,
                       n_heads);
}

/* ---- q8_0 ---- */

ATTN_INLINE void scores_tile_q8_0(const float *const *q, const void *const *pages, int32_t n_tok,
                                  int32_t head_dim, float scale, float *scores, size_t stride,
                                  const int n_pages, const int n_heads) {
    lf sum[ATTN_HEADS][ATTN_WIDE], part[ATTN_HEADS][ATTN_WIDE], key[ATTN_WIDE];
    for (int h = 0; h < n_heads; h++)
        for (int j = 0; j < n_pages; j++)
            sum[h][j] = lf_set(0.0f);
    for (int32_t b = 0; b < head_dim; b += 32) {
        int32_t n = head_dim - b < 32 ? head_dim - b : 32;
        for (int h = 0; h < n_heads; h++)
            for (int j = 0; j < n_pages; j++)
                part[h][j] = lf_set(0.0f);
        for (int32_t i = 0; i < n; i++) {
            for (int j = 0; j < n_pages; j++) {
                const struct moge_kv_q8_0 *k = pages[j], *ahead = pages[MOGE_ATTN_AHEAD + j];
                key[j] = lf_load_i8(k[b / 32].q + i * LANES);
                __builtin_prefetch(ahead[b / 32].q + i * LANES);
            }
            for (int h = 0; h < n_heads; h++)
                for (int j = 0; j < n_pages; j++)
                    part[h][j] = lf_fma(lf_set(q[h][b + i]), key[j], part[h][j]);
        }
        for (int j = 0; j < n_pages; j++) {
            const struct moge_kv_q8_0 *k = pages[j];
            for (int h = 0; h < n_heads; h++)
                sum[h][j] = lf_fma(part[h][j], lf_load_f16(k[b / 32].d), sum[h][j]);
        }
    }
    for (int h = 0; h < n_heads; h++)
        for (int j = 0; j < n_pages; j++)
            lf_put(scores + (size_t)h * stride + (size_t)j * LANES,
                   lf_mul(sum[h][j], lf_set(scale)), n_tok - j * LANES);
}

/* 16 n_wide columns from i on, in block v; weights = p * d. */
ATTN_INLINE void values_columns_q8_0(float (*weights)[LANES], const struct moge_kv_q8_0 *v,
                                     const struct moge_kv_q8_0 *ahead, int32_t n_tok,
                                     int32_t head_dim, float *const *out, int32_t i,
                                     const int n_wide, const int n_heads) {
    lf sum[ATTN_HEADS][ATTN_WIDE], value[ATTN_WIDE];
    for (int h = 0; h < n_heads; h++)
        for (int j = 0; j < n_wide; j++)
            sum[h][j] = lf_take(out[h] + i + j * LANES, head_dim - i - j * LANES);
    ATTN_UNROLL
    for (int32_t t = 0; t < n_tok; t++) {
        __builtin_prefetch(ahead->q + (i % 32 + t * n_wide) * LANES);
        for (int j = 0; j < n_wide; j++)
            value[j] = lf_load_i8(v->q + t * 32 + i % 32 + j * LANES);
        for (int h = 0; h < n_heads; h++)
            for (int j = 0; j < n_wide; j++)
                sum[h][j] = lf_fma(lf_set(weights[h][t]), value[j], sum[h][j]);
    }
    for (int h = 0; h < n_heads; h++)
        for (int j = 0; j < n_wide; j++)
            lf_put(out[h] + i + j * LANES, sum[h][j], head_dim - i - j * LANES);
}

ATTN_INLINE void values_tile_q8_0(const float *p, size_t stride, const void *const *pages,
                                  int32_t n_tok, int32_t head_dim, float *const *out,
                                  const int n_heads) {
    const struct moge_kv_q8_0 *v = pages[0], *ahead = pages[MOGE_ATTN_AHEAD];
    for (int32_t i = 0; i < head_dim; v++, ahead++) {
        float weights[ATTN_HEADS][LANES]; /* one product for all columns of the block */
        int32_t end = i + 32 < head_dim ? i + 32 : head_dim;
        lf d = lf_load_f16(v->d);
        for (int h = 0; h < n_heads; h++)
            lf_store(weights[h], lf_mul(lf_take(p + (size_t)h * stride, n_tok), d));
        for (; i + ATTN_WIDE * LANES <= end; i += ATTN_WIDE * LANES)
            values_columns_q8_0(weights, v, ahead, n_tok, head_dim, out, i, ATTN_WIDE, n_heads);
        for (; i < end; i += LANES)
            values_columns_q8_0(weights, v, ahead, n_tok, head_dim, out, i, 1, n_heads);
    }
}

/* ---- pages and tiles ---- */

/* Heads of the next tile: four, the rest, or five, since one alone takes as long as four. */
ATTN_INLINE int32_t tile_heads(int32_t left) {
    return left <= ATTN_HEADS ? left : 4;
}

/* All heads in tiles: a tile's size is a constant to the compiler. */
#define ATTN_TILES(tile, ...)                                                                      \
    for (int32_t h = 0, in_tile; h < n_q; h += in_tile) {                                          \
        in_tile = tile_heads(n_q - h);                                                             \
        switch (in_tile) {                                                                         \
        case 1:                                                                                    \
            tile(__VA_ARGS__, 1);                                                                  \
            break;                                                                                 \
        case 2:                                                                                    \
            tile(__VA_ARGS__, 2);                                                                  \
            break;                                                                                 \
        case 3:                                                                                    \
            tile(__VA_ARGS__, 3);                                                                  \
            break;                                                                                 \
        case 4:                                                                                    \
            tile(__VA_ARGS__, 4);                                                                  \
            break;                                                                                 \
        default:                                                                                   \
            tile(__VA_ARGS__, ATTN_HEADS);                                                         \
        }                                                                                          \
    }

#define ATTN_SCORES(tile)                                                                          \
    for (int32_t t = 0; t < n_tok; t += ATTN_WIDE * LANES, pages += ATTN_WIDE) {                   \
        if (n_tok - t > (ATTN_WIDE - 1) * LANES)                                                   \
            ATTN_TILES(tile, q + h, pages, n_tok - t, head_dim, scale,                             \
                       scores + (size_t)h * stride + t, stride, ATTN_WIDE)                         \
        else                                                                                       \
            ATTN_TILES(tile, q + h, pages, n_tok - t, head_dim, scale,                             \
                       scores + (size_t)h * stride + t, stride, 1)                                 \
    }

/* Most pages are full, and the positions of those are a constant too. */
#define ATTN_VALUES(tile)                                                                          \
    for (int32_t t = 0; t < n_tok; t += LANES, pages++) {                                          \
        if (n_tok - t >= LANES)                                                                    \
            ATTN_TILES(tile, p + (size_t)h * stride + t, stride, pages, LANES, head_dim, out + h)  \
        else                                                                                       \
            ATTN_TILES(tile, p + (size_t)h * stride + t, stride, pages, n_tok - t, head_dim,       \
                       out + h)                                                                    \
    }

static inline void attn_page_scores(const float *const *q, int32_t n_q, const void *const *pages,
                                    int32_t n_tok, int32_t head_dim, float scale, float *scores,
                                    size_t stride) {
    ATTN_SCORES(scores_tile)
}

static inline void attn_page_values(const float *p, size_t stride, int32_t n_q,
                                    const void *const *pages, int32_t n_tok, int32_t head_dim,
                                    float *const *out) {
    ATTN_VALUES(values_tile)
}

static inline void attn_page_scores_q8_0(const float *const *q, int32_t n_q,
                                         const void *const *pages, int32_t n_tok, int32_t head_dim,
                                         float scale, float *scores, size_t stride) {
    ATTN_SCORES(scores_tile_q8_0)
}

static inline void attn_page_values_q8_0(const float *p, size_t stride, int32_t n_q,
                                         const void *const *pages, int32_t n_tok, int32_t head_dim,
                                         float *const *out) {
    ATTN_VALUES(values_tile_q8_0)
}

static inline void attn_page_fill(struct moge_kernels *kernels) {
    kernels->attn_scores = attn_page_scores;
    kernels->attn_values = attn_page_values;
    kernels->attn_scores_q8_0 = attn_page_scores_q8_0;
    kernels->attn_values_q8_0 = attn_page_values_q8_0;
}

#endif
