/* SPDX-License-Identifier: Apache-2.0 */
/* Panels by tiles of up to TILE activation rows: a quad of 8 weight rows is unpacked once and meets
 * every row of the tile.
 *
 *   Q8_0   int8 weights become two vectors of int16, even columns (0, 2) and odd ones (1, 3) of the
 *          quad; activations are split likewise once a block, and vpmaddwd makes exact int32 sums.
 *   Q4_0   nibbles are unsigned, activations signed bytes: vpmaddubsw.  All 16 products of an int16
 *          lane add up to at most 16 * 15 * 127 = 30,480, so a whole block stays in int16.
 *
 * The empty asm after each addition pins the order: left alone, GCC turns the unrolled sums into
 * trees whose leaves do not fit the registers.  Likewise the split activations must really be
 * stored, or it takes them out of registers one by one, at two operations each, where a broadcast
 * from memory needs none. */
#include <immintrin.h>
#include "engine/kernels/kernels.h"

#define BLOCK       32
#define TILE        4
#define SCALE_BYTES 16
#define INLINE      static inline __attribute__((always_inline))

#define PIN(vector)      __asm__("" : "+x"(vector))
#define IN_MEMORY(array) __asm__("" : "+m"(array))

static int32_t lesser(int32_t a, int32_t b) {
    return a < b ? a : b;
}

/* acc + float(sums) * (w_d * x_d), the canonical step for 8 weight rows. */
INLINE __m256 scaled(__m256i sums, __m256 w_d, const float *x_d, __m256 acc) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), _mm256_mul_ps(w_d, _mm256_broadcast_ss(x_d)),
                           acc);
}

INLINE __m256 load_scales(const uint8_t *scales) {
    return _mm256_cvtph_ps(_mm_load_si128((const __m128i *)scales));
}

/* Bytes 0 and 2 of each 32-bit lane as int16, and bytes 1 and 3. */
INLINE __m256i even_bytes(__m256i v) {
    return _mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8);
}
INLINE __m256i odd_bytes(__m256i v) {
    return _mm256_srai_epi16(v, 8);
}

INLINE void block_q8_0(const uint8_t *quads, __m256 w_d, const struct moge_qrow *rows, int32_t b,
                       __m256 *acc, const int n) {
    _Alignas(32) int32_t even[TILE][8], odd[TILE][8]; /* activations of each quad as int16 pairs */
    __m256i sums[TILE];
#pragma GCC unroll 8
    for (int r = 0; r < n; r++) {
        __m256i x = _mm256_loadu_si256((const __m256i *)(rows[r].q + (size_t)b * BLOCK));
        _mm256_store_si256((__m256i *)even[r], even_bytes(x));
        _mm256_store_si256((__m256i *)odd[r], odd_bytes(x));
        sums[r] = _mm256_setzero_si256();
    }
    IN_MEMORY(even);
    IN_MEMORY(odd);
#pragma GCC unroll 8
    for (int k = 0; k < 8; k++) {
        __m256i w = _mm256_loadu_si256((const __m256i *)(quads + 32 * k));
        __m256i w_even = even_bytes(w), w_odd = odd_bytes(w);
#pragma GCC unroll 8
        for (int r = 0; r < n; r++) {
            __m256i x = _mm256_set1_epi32(even[r][k]);
            sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(w_even, x));
            PIN(sums[r]);
            x = _mm256_set1_epi32(odd[r][k]);
            sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(w_odd, x));
            PIN(sums[r]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < n; r++)
        acc[r] = scaled(sums[r], w_d, rows[r].d + b, acc[r]);
}

INLINE __m256i broadcast_quad(const int8_t *q) {
    return _mm256_castps_si256(_mm256_broadcast_ss((const float *)(const void *)q));
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
            sums[r] = _mm256_add_epi16(sums[r], _mm256_maddubs_epi16(low, broadcast_quad(q)));
            PIN(sums[r]);
            sums[r] = _mm256_add_epi16(sums[r], _mm256_maddubs_epi16(high, broadcast_quad(q + 16)));
            PIN(sums[r]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < n; r++) {
        __m256i x_sum = _mm256_set1_epi32(rows[r].sum[b]);
        __m256i products = _mm256_madd_epi16(sums[r], _mm256_set1_epi16(1));
        products = _mm256_sub_epi32(products, _mm256_slli_epi32(x_sum, 3));
        acc[r] = scaled(products, w_d, rows[r].d + b, acc[r]);
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
        for (int32_t i = 0; i < in_group; i++, quads += quad_bytes)
            block(quads, load_scales(panel + (size_t)i * SCALE_BYTES), rows, first + i, acc, n);
        panel = quads;
    }
#pragma GCC unroll 8
    for (int r = 0; r < n; r++)
        _mm256_storeu_ps(out[r], acc[r]);
}

/* Rows of the next tile: full ones, but the last two share what is left evenly. */
INLINE int32_t tile_rows(int32_t left) {
    return left >= 2 * TILE || left == TILE ? TILE : left > TILE ? (left + 1) / 2 : left;
}

#define TILES(type, bytes)                                                                         \
    static void tile_##type(const uint8_t *panel, int32_t n_blocks, const struct moge_qrow *rows,  \
                            int32_t n, float *const *out) {                                        \
        if (n == 1)                                                                                \
            tile(panel, n_blocks, rows, out, bytes - SCALE_BYTES, block_##type, 1);                \
        else if (n == 2)                                                                           \
            tile(panel, n_blocks, rows, out, bytes - SCALE_BYTES, block_##type, 2);                \
        else if (n == 3)                                                                           \
            tile(panel, n_blocks, rows, out, bytes - SCALE_BYTES, block_##type, 3);                \
        else                                                                                       \
            tile(panel, n_blocks, rows, out, bytes - SCALE_BYTES, block_##type, 4);                \
    }                                                                                              \
    static void panel_##type(const void *panel, int32_t n_in, const struct moge_qrow *rows,        \
                             int32_t n_rows, float *const *out) {                                  \
        for (int32_t r = 0, n; r < n_rows; r += n) {                                               \
            n = tile_rows(n_rows - r);                                                             \
            tile_##type(panel, n_in / BLOCK, rows + r, n, out + r);                                \
        }                                                                                          \
    }
TILES(q8_0, MOGE_PANEL_Q8_0_BYTES)
TILES(q4_0, MOGE_PANEL_Q4_0_BYTES)

static float largest_magnitude(const float *x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 v = _mm256_andnot_ps(sign, _mm256_loadu_ps(x));
    for (int i = 8; i < BLOCK; i += 8)
        v = _mm256_max_ps(v, _mm256_andnot_ps(sign, _mm256_loadu_ps(x + i)));
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

static void quantize(const float *x, int32_t n, int8_t *q, float *d, int32_t *sum) {
    for (int32_t b = 0; b < n / BLOCK; b++, x += BLOCK, q += BLOCK) {
        float largest = largest_magnitude(x), inverse = 127.0f / largest;
        if (inverse > __FLT_MAX__)
            inverse = largest = 0.0f;
        d[b] = largest / 127.0f;
        __m256 factor = _mm256_set1_ps(inverse);
        __m256i v[4];
        for (int i = 0; i < 4; i++)
            v[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), factor));
        __m256i total =
            _mm256_add_epi32(_mm256_add_epi32(v[0], v[1]), _mm256_add_epi32(v[2], v[3]));
        __m128i s =
            _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
        s = _mm_add_epi32(s, _mm_unpackhi_epi64(s, s));
        sum[b] = _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 1)));
        /* The packs work in 128-bit halves; the permutation puts quads back in order. */
        __m256i bytes =
            _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
        bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256((__m256i *)q, bytes);
    }
}

void moge_quant_init_avx2(struct moge_kernels *kernels) {
    kernels->quantize = quantize;
    kernels->panel_q8_0 = panel_q8_0;
    kernels->panel_q4_0 = panel_q4_0;
}
