/* SPDX-License-Identifier: Apache-2.0 */
/* vpdpbusd multiplies unsigned by signed bytes and adds four products to an int32, exactly.  Q4_0's
 * nibbles are unsigned as they are.  Q8_0's weights become so by adding 128 (an exclusive or); sums
 * begin with what that adds taken off, 128 or 8 times the sum of the activations.
 *
 * An activation is a load for every product, and two loads a cycle are the limit.  From PAIR_ROWS
 * rows on two panels are therefore taken at once, 16 weight rows in a 512-bit register; for fewer
 * rows the one long stream from memory is what counts. */
#include <immintrin.h>
#define MOGE_QUANT_TILE 8
#include "engine/kernels/quant_tiles.h"

/* -8 times the sum of a block's activations, in every lane. */
INLINE __m256i eight_sums(int32_t sum) {
    return _mm256_madd_epi16(_mm256_set1_epi32(sum), _mm256_set1_epi16(1));
}

INLINE void block_q8_0(const uint8_t *quads, __m256 w_d, const struct moge_act_block *const *rows,
                       int32_t b, __m256 *acc, const int n) {
    __m256i sums[MOGE_QUANT_TILE];
    EACH_ROW
    sums[r] = _mm256_slli_epi32(eight_sums(rows[r][b].sum), 4);
    EACH_QUAD(8) {
        __m256i w = _mm256_xor_si256(load_quad(quads, k), _mm256_set1_epi8(-128));
        EACH_ROW {
            sums[r] = _mm256_dpbusd_epi32(sums[r], w, broadcast_quad(&rows[r][b], k));
            PIN(sums[r]);
        }
    }
    EACH_ROW
    acc[r] = scaled(sums[r], w_d, &rows[r][b], acc[r]);
}

INLINE void block_q4_0(const uint8_t *quads, __m256 w_d, const struct moge_act_block *const *rows,
                       int32_t b, __m256 *acc, const int n) {
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i sums[MOGE_QUANT_TILE];
    EACH_ROW
    sums[r] = eight_sums(rows[r][b].sum);
    EACH_QUAD(4) {
        __m256i w = load_quad(quads, k), low = _mm256_and_si256(w, nibble);
        __m256i high = _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble);
        EACH_ROW {
            sums[r] = _mm256_dpbusd_epi32(sums[r], low, broadcast_quad(&rows[r][b], k));
            PIN(sums[r]);
            sums[r] = _mm256_dpbusd_epi32(sums[r], high, broadcast_quad(&rows[r][b], k + 4));
            PIN(sums[r]);
        }
    }
    EACH_ROW
    acc[r] = scaled(sums[r], w_d, &rows[r][b], acc[r]);
}

/* ---- two panels at once ---- */

#define PAIR_ROWS 3

typedef void pair_block_fn(const uint8_t *quads, const size_t other, __m512 w_d,
                           const struct moge_act_block *const *rows, int32_t b, __m512 *acc,
                           const int n);

/* 32 bytes of a panel and of the one that begins `other` bytes later. */
INLINE __m512i load_pair(const uint8_t *at, const size_t other) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)at)),
                              _mm256_loadu_si256((const __m256i *)(at + other)), 1);
}

INLINE __m512 load_pair_scales(const uint8_t *at, const size_t other) {
    __m128i low = _mm_load_si128((const __m128i *)at);
    __m128i high = _mm_load_si128((const __m128i *)(at + other));
    return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
}

INLINE __m512i broadcast_quad_wide(const struct moge_act_block *x, int k) {
    return _mm512_castps_si512(_mm512_set1_ps(*(const float *)(const void *)(x->q + 4 * k)));
}

INLINE __m512i eight_sums_wide(int32_t sum) {
    return _mm512_madd_epi16(_mm512_set1_epi32(sum), _mm512_set1_epi16(1));
}

INLINE __m512 scaled_wide(__m512i sums, __m512 w_d, const struct moge_act_block *x, __m512 acc) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_mul_ps(w_d, _mm512_set1_ps(x->d)), acc);
}

INLINE void block_pair_q8_0(const uint8_t *quads, const size_t other, __m512 w_d,
                            const struct moge_act_block *const *rows, int32_t b, __m512 *acc,
                            const int n) {
    __m512i sums[MOGE_QUANT_TILE];
    EACH_ROW
    sums[r] = _mm512_slli_epi32(eight_sums_wide(rows[r][b].sum), 4);
    EACH_QUAD(8) {
        __m512i w = _mm512_xor_si512(load_pair(quads + 32 * k, other), _mm512_set1_epi8(-128));
        EACH_ROW {
            sums[r] = _mm512_dpbusd_epi32(sums[r], w, broadcast_quad_wide(&rows[r][b], k));
            PIN(sums[r]);
        }
    }
    EACH_ROW
    acc[r] = scaled_wide(sums[r], w_d, &rows[r][b], acc[r]);
}

INLINE void block_pair_q4_0(const uint8_t *quads, const size_t other, __m512 w_d,
                            const struct moge_act_block *const *rows, int32_t b, __m512 *acc,
                            const int n) {
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i sums[MOGE_QUANT_TILE];
    EACH_ROW
    sums[r] = eight_sums_wide(rows[r][b].sum);
    EACH_QUAD(4) {
        __m512i w = load_pair(quads + 32 * k, other), low = _mm512_and_si512(w, nibble);
        __m512i high = _mm512_and_si512(_mm512_srli_epi16(w, 4), nibble);
        EACH_ROW {
            sums[r] = _mm512_dpbusd_epi32(sums[r], low, broadcast_quad_wide(&rows[r][b], k));
            PIN(sums[r]);
            sums[r] = _mm512_dpbusd_epi32(sums[r], high, broadcast_quad_wide(&rows[r][b], k + 4));
            PIN(sums[r]);
        }
    }
    EACH_ROW
    acc[r] = scaled_wide(sums[r], w_d, &rows[r][b], acc[r]);
}

/* As `tile`, for the panel and the one behind it. */
INLINE void pair_tile(const uint8_t *panel, const uint8_t *ahead, int32_t n_blocks,
                      const struct moge_act_block *const *rows, float *const *out, size_t at,
                      const size_t block_bytes, pair_block_fn *block, const int n) {
    const size_t quad_bytes = block_bytes - SCALE_BYTES, other = (size_t)n_blocks * block_bytes;
    __m512 acc[MOGE_QUANT_TILE];
    EACH_ROW
    acc[r] = _mm512_setzero_ps();
    for (int32_t first = 0; first < n_blocks; first += MOGE_PANEL_BLOCKS) {
        int32_t in_group = lesser(MOGE_PANEL_BLOCKS, n_blocks - first);
        const uint8_t *quads = panel + (size_t)in_group * SCALE_BYTES;
        for (int32_t i = 0; i < in_group; i++, quads += quad_bytes) {
            if (ahead) {
                size_t done = (size_t)(first + i) * block_bytes;
                prefetch_block(ahead + done, block_bytes);
                prefetch_block(ahead + other + done, block_bytes);
            }
            __m512 w_d = load_pair_scales(panel + (size_t)i * SCALE_BYTES, other);
            block(quads, other, w_d, rows, first + i, acc, n);
        }
        panel = quads;
    }
    EACH_ROW
    _mm512_storeu_ps(out[r] + at, acc[r]);
}

PANELS(singles_q8_0, 1, tile, q8_0, MOGE_PANEL_Q8_0_BYTES)
PANELS(singles_q4_0, 1, tile, q4_0, MOGE_PANEL_Q4_0_BYTES)
PANELS(pairs_q8_0, 2, pair_tile, pair_q8_0, MOGE_PANEL_Q8_0_BYTES)
PANELS(pairs_q4_0, 2, pair_tile, pair_q4_0, MOGE_PANEL_Q4_0_BYTES)

/* Of so many panels, those that are taken two at a time. */
static int32_t n_paired(int32_t n_panels, int32_t n_rows) {
    return n_rows < PAIR_ROWS ? 0 : n_panels / 2 * 2;
}

static void panels_q8_0(const void *panels, int32_t n_panels, int32_t n_in,
                        const struct moge_act_block *const *rows, int32_t n_rows,
                        float *const *out) {
    int32_t paired = n_paired(n_panels, n_rows);
    pairs_q8_0(panels, 0, paired, n_in, rows, n_rows, out);
    singles_q8_0(panels, paired, n_panels, n_in, rows, n_rows, out);
}

static void panels_q4_0(const void *panels, int32_t n_panels, int32_t n_in,
                        const struct moge_act_block *const *rows, int32_t n_rows,
                        float *const *out) {
    int32_t paired = n_paired(n_panels, n_rows);
    pairs_q4_0(panels, 0, paired, n_in, rows, n_rows, out);
    singles_q4_0(panels, paired, n_panels, n_in, rows, n_rows, out);
}

void moge_quant_init_vnni(struct moge_kernels *kernels) {
    kernels->panels_q8_0 = panels_q8_0;
    kernels->panels_q4_0 = panels_q4_0;
}
