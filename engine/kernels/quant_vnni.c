/* SPDX-License-Identifier: Apache-2.0 */
/* Panels with vpdpbusd, which multiplies unsigned by signed bytes and adds four products to an
 * int32 exactly.  Q4_0's nibbles are unsigned as they are.  Q8_0's weights are made so by adding
 * 128 (an exclusive or); 128 times the sum of the activations is taken off again. */
#include <immintrin.h>
#include "engine/kernels/kernels.h"

#define BLOCK       32
#define TILE        8
#define SCALE_BYTES 16
#define PIN(vector) __asm__("" : "+v"(vector))
#define INLINE      static inline __attribute__((always_inline))

static int32_t lesser(int32_t a, int32_t b) {
    return a < b ? a : b;
}

INLINE __m256 scaled(__m256i sums, __m256 w_d, const float *x_d, __m256 acc) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), _mm256_mul_ps(w_d, _mm256_broadcast_ss(x_d)),
                           acc);
}

INLINE __m256i broadcast_quad(const int8_t *q) {
    return _mm256_castps_si256(_mm256_broadcast_ss((const float *)(const void *)q));
}

INLINE void block_q8_0(const uint8_t *quads, __m256 w_d, const struct moge_qrow *rows, int32_t b,
                       __m256 *acc, const int n) {
    const __m256i offset = _mm256_set1_epi8(-128);
    __m256i sums[TILE];
#pragma GCC unroll 8
    for (int r = 0; r < n; r++)
        sums[r] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int k = 0; k < 8; k++) {
        __m256i w = _mm256_loadu_si256((const __m256i *)(quads + 32 * k));
        w = _mm256_xor_si256(w, offset);
#pragma GCC unroll 8
        for (int r = 0; r < n; r++) {
            const int8_t *q = rows[r].q + (size_t)b * BLOCK + 4 * k;
            sums[r] = _mm256_dpbusd_epi32(sums[r], w, broadcast_quad(q));
            PIN(sums[r]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < n; r++) {
        __m256i x_sum = _mm256_set1_epi32(rows[r].sum[b]);
        sums[r] = _mm256_sub_epi32(sums[r], _mm256_slli_epi32(x_sum, 7));
        acc[r] = scaled(sums[r], w_d, rows[r].d + b, acc[r]);
    }
}

INLINE void block_q4_0(const uint8_t *quads, __m256 w_d, const struct moge_qrow *rows, int32_t b,
                       __m256 *acc, const int n) {
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i sums[TILE];
#pragma GCC unroll 8
    for (int r = 0; r < n; r++)
        sums[r] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        __m256i w = _mm256_loadu_si256((const __m256i *)(quads + 32 * k));
        __m256i low = _mm256_and_si256(w, nibble);
        __m256i high = _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble);
#pragma GCC unroll 8
        for (int r = 0; r < n; r++) {
            const int8_t *q = rows[r].q + (size_t)b * BLOCK + 4 * k;
            sums[r] = _mm256_dpbusd_epi32(sums[r], low, broadcast_quad(q));
            PIN(sums[r]);
            sums[r] = _mm256_dpbusd_epi32(sums[r], high, broadcast_quad(q + 16));
            PIN(sums[r]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < n; r++) {
        __m256i x_sum = _mm256_set1_epi32(rows[r].sum[b]);
        sums[r] = _mm256_sub_epi32(sums[r], _mm256_slli_epi32(x_sum, 3));
        acc[r] = scaled(sums[r], w_d, rows[r].d + b, acc[r]);
    }
}

typedef void block_fn(const uint8_t *quads, __m256 w_d, const struct moge_qrow *rows, int32_t b,
                      __m256 *acc, const int n);

INLINE void tile(const uint8_t *panel, int32_t n_blocks, const struct moge_qrow *rows,
                 float *const *out, const size_t quad_bytes, block_fn *block, const int n) {
    __m256 acc[TILE];
#pragma GCC unroll 8
    for (int r = 0; r < n; r++)
        acc[r] = _mm256_setzero_ps();
    for (int32_t first = 0; first < n_blocks; first += MOGE_PANEL_BLOCKS) {
        int32_t in_group = lesser(MOGE_PANEL_BLOCKS, n_blocks - first);
        const uint8_t *quads = panel + (size_t)in_group * SCALE_BYTES;
        for (int32_t i = 0; i < in_group; i++, quads += quad_bytes) {
            const uint8_t *scales = panel + (size_t)i * SCALE_BYTES;
            __m256 w_d = _mm256_cvtph_ps(_mm_load_si128((const __m128i *)scales));
            block(quads, w_d, rows, first + i, acc, n);
        }
        panel = quads;
    }
#pragma GCC unroll 8
    for (int r = 0; r < n; r++)
        _mm256_storeu_ps(out[r], acc[r]);
}

#define TILE_CASE(n, type, bytes)                                                                  \
    case n:                                                                                        \
        tile(panel, n_blocks, rows, out, bytes - SCALE_BYTES, block_##type, n);                    \
        break;
#define TILES(type, bytes)                                                                         \
    static void tile_##type(const uint8_t *panel, int32_t n_blocks, const struct moge_qrow *rows,  \
                            int32_t rows_in_tile, float *const *out) {                             \
        switch (rows_in_tile) {                                                                    \
            TILE_CASE(1, type, bytes)                                                              \
            TILE_CASE(2, type, bytes)                                                              \
            TILE_CASE(3, type, bytes)                                                              \
            TILE_CASE(4, type, bytes)                                                              \
            TILE_CASE(5, type, bytes)                                                              \
            TILE_CASE(6, type, bytes)                                                              \
            TILE_CASE(7, type, bytes)                                                              \
            TILE_CASE(8, type, bytes)                                                              \
        }                                                                                          \
    }                                                                                              \
    static void panel_##type(const void *panel, int32_t n_in, const struct moge_qrow *rows,        \
                             int32_t n_rows, float *const *out) {                                  \
        for (int32_t r = 0; r < n_rows; r += TILE)                                                 \
            tile_##type(panel, n_in / BLOCK, rows + r, lesser(TILE, n_rows - r), out + r);         \
    }
TILES(q8_0, MOGE_PANEL_Q8_0_BYTES)
TILES(q4_0, MOGE_PANEL_Q4_0_BYTES)

void moge_quant_init_vnni(struct moge_kernels *kernels) {
    kernels->panel_q8_0 = panel_q8_0;
    kernels->panel_q4_0 = panel_q4_0;
}
