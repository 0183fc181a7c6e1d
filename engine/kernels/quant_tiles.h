/* SPDX-License-Identifier: Apache-2.0 */
/* What the 256-bit levels of the panel kernels share: walking a panel for a tile of activation
 * rows. A level includes <immintrin.h>, defines MOGE_QUANT_TILE, the most rows of a tile (up to 8),
 * and writes block_q8_0 and block_q4_0: one block of 32 columns of 8 weight rows, unpacked once,
 * against the n rows of the tile.  n is a constant where these are inlined, so that sums stay in
 * registers. */
#ifndef MOGE_QUANT_TILES_H
#define MOGE_QUANT_TILES_H

#include <stdbool.h>
#include "engine/kernels/kernels.h"

#ifdef MOGE_QUANT_TILE

#define BLOCK        32
#define SCALE_BYTES  16
#define INLINE       static inline __attribute__((always_inline))
#define EACH_ROW     _Pragma("GCC unroll 8") for (int r = 0; r < n; r++)
#define EACH_QUAD(n) _Pragma("GCC unroll 8") for (int k = 0; k < (n); k++)

/* After each addition, pins the order: left alone, GCC turns the unrolled integer sums into trees
 * whose leaves do not fit the registers. */
#define PIN(vector) __asm__("" : "+v"(vector))

typedef void block_fn(const uint8_t *quads, __m256 w_d, const struct moge_act_block *const *rows,
                      int32_t b, __m256 *acc, const int n);

/* acc + float(sums) * (w_d * x->d): the canonical step, for 8 weight rows. */
INLINE __m256 scaled(__m256i sums, __m256 w_d, const struct moge_act_block *x, __m256 acc) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), _mm256_mul_ps(w_d, _mm256_broadcast_ss(&x->d)),
                           acc);
}

INLINE __m256i load_quad(const uint8_t *quads, int k) {
    return _mm256_loadu_si256(
        (const __m256i *)(quads + 32 * k)); /* a short last group is not aligned */
}

/* Four activations to every lane. */
INLINE __m256i broadcast_quad(const struct moge_act_block *x, int k) {
    return _mm256_castps_si256(_mm256_broadcast_ss((const float *)(const void *)(x->q + 4 * k)));
}

INLINE int32_t lesser(int32_t a, int32_t b) {
    return a < b ? a : b;
}

/* Asks for the next panel while this one's last tile computes: what is left of the panel stands in
 * the nearest cache by then, and the way from memory is free. */
INLINE void prefetch_block(const uint8_t *ahead, const size_t bytes) {
    for (size_t at = 0; at < bytes; at += 64)
        _mm_prefetch((const char *)ahead + at, _MM_HINT_T0);
}

/* ahead: the next panel, or NULL. */
INLINE void tile(const uint8_t *panel, const uint8_t *ahead, int32_t n_blocks,
                 const struct moge_act_block *const *rows, float *const *out, size_t at,
                 const size_t block_bytes, block_fn *block, const int n) {
    const size_t quad_bytes = block_bytes - SCALE_BYTES;
    __m256 acc[MOGE_QUANT_TILE];
    EACH_ROW
    acc[r] = _mm256_setzero_ps();
    for (int32_t first = 0; first < n_blocks; first += MOGE_PANEL_BLOCKS) {
        int32_t in_group = lesser(MOGE_PANEL_BLOCKS, n_blocks - first);
        const uint8_t *quads = panel + (size_t)in_group * SCALE_BYTES;
        for (int32_t i = 0; i < in_group; i++, quads += quad_bytes) {
            const uint8_t *scales = panel + (size_t)i * SCALE_BYTES;
            __m256 w_d = _mm256_cvtph_ps(_mm_load_si128((const __m128i *)scales));
            if (ahead)
                prefetch_block(ahead + (size_t)(first + i) * block_bytes, block_bytes);
            block(quads, w_d, rows, first + i, acc, n);
        }
        panel = quads;
    }
    EACH_ROW
    _mm256_storeu_ps(out[r] + at, acc[r]);
}

/* Rows of the next tile: full ones, but the last two share evenly what is left. */
INLINE int32_t tile_rows(int32_t left) {
    if (left <= MOGE_QUANT_TILE)
        return left;
    return left >= 2 * MOGE_QUANT_TILE ? MOGE_QUANT_TILE : (left + 1) / 2;
}

#define TILE_CASE(rows_in_tile, tile, type, block_bytes)                                           \
    case rows_in_tile:                                                                             \
        if (rows_in_tile <= MOGE_QUANT_TILE)                                                       \
            tile(at, ahead, n_in / BLOCK, rows + r, out + r, o, block_bytes, block_##type,         \
                 lesser(rows_in_tile, MOGE_QUANT_TILE));                                           \
        break;

/* For so few rows the processor's own prefetching of one long stream is faster than ours. */
#define ROWS_STREAM 4

/* Defines a function that takes panels first .. n_panels through `tile`, `step` of them at a time
 * (two are two short streams). */
#define PANELS(name, step, tile, type, block_bytes)                                                \
    static void name(const void *panels, int32_t first, int32_t n_panels, int32_t n_in,            \
                     const struct moge_act_block *const *rows, int32_t n_rows,                     \
                     float *const *out) {                                                          \
        const size_t panel_bytes = (size_t)(n_in / BLOCK) * (block_bytes);                         \
        const size_t bytes = panel_bytes * (step);                                                 \
        const uint8_t *at = (const uint8_t *)panels + (size_t)first * panel_bytes;                 \
        const uint8_t *end = at + (size_t)((n_panels - first) / (step)) * bytes;                   \
        const bool fetches = (step) > 1 || n_rows > ROWS_STREAM;                                   \
        size_t o = (size_t)first * MOGE_PANEL_ROWS;                                                \
        for (; at < end; at += bytes, o += MOGE_PANEL_ROWS * (step))                               \
            for (int32_t r = 0, n; r < n_rows; r += n) {                                           \
                n = tile_rows(n_rows - r);                                                         \
                bool last = r + n == n_rows && at + bytes < end;                                   \
                const uint8_t *ahead = fetches && last ? at + bytes : NULL;                        \
                switch (n) {                                                                       \
                    TILE_CASE(1, tile, type, block_bytes)                                          \
                    TILE_CASE(2, tile, type, block_bytes)                                          \
                    TILE_CASE(3, tile, type, block_bytes)                                          \
                    TILE_CASE(4, tile, type, block_bytes)                                          \
                    TILE_CASE(5, tile, type, block_bytes)                                          \
                    TILE_CASE(6, tile, type, block_bytes)                                          \
                    TILE_CASE(7, tile, type, block_bytes)                                          \
                    TILE_CASE(8, tile, type, block_bytes)                                          \
                }                                                                                  \
            }                                                                                      \
    }

#endif
#endif
