/* SPDX-License-Identifier: Apache-2.0 */
/* vpdpbusd multiplies unsigned by signed bytes and adds four products to an int32, exactly.  Q4_0's
 * nibbles are unsigned as they are.  Q8_0's weights become so by adding 128 (an exclusive or); sums
 * begin with what that adds taken off, 128 or 8 times the sum of the activations. */
#include <immintrin.h>
#define MOGE_QUANT_TILE 8
#include "engine/kernels/quant_tiles.h"

/* -8 times the sum of a block's activations, in every lane. */
INLINE __m256i eight_sums(int32_t sum) {
    return _mm256_madd_epi16(_mm256_set1_epi32(sum), _mm256_set1_epi16(1));
}

INLINE void block_q8_0(const uint8_t *quads, __m256 w_d, const struct moge_qrow *rows, int32_t b,
                       __m256 *acc, const int n) {
    __m256i sums[MOGE_QUANT_TILE];
    EACH_ROW
    sums[r] = _mm256_slli_epi32(eight_sums(rows[r].sum[b]), 4);
    EACH_QUAD(8) {
        __m256i w = _mm256_xor_si256(load_quad(quads, k), _mm256_set1_epi8(-128));
        EACH_ROW {
            sums[r] = _mm256_dpbusd_epi32(sums[r], w, broadcast_quad(&rows[r], b, k));
            PIN(sums[r]);
        }
    }
    EACH_ROW
    acc[r] = scaled(sums[r], w_d, rows[r].d + b, acc[r]);
}

INLINE void block_q4_0(const uint8_t *quads, __m256 w_d, const struct moge_qrow *rows, int32_t b,
                       __m256 *acc, const int n) {
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i sums[MOGE_QUANT_TILE];
    EACH_ROW
    sums[r] = eight_sums(rows[r].sum[b]);
    EACH_QUAD(4) {
        __m256i w = load_quad(quads, k), low = _mm256_and_si256(w, nibble);
        __m256i high = _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble);
        EACH_ROW {
            sums[r] = _mm256_dpbusd_epi32(sums[r], low, broadcast_quad(&rows[r], b, k));
            PIN(sums[r]);
            sums[r] = _mm256_dpbusd_epi32(sums[r], high, broadcast_quad(&rows[r], b, k + 4));
            PIN(sums[r]);
        }
    }
    EACH_ROW
    acc[r] = scaled(sums[r], w_d, rows[r].d + b, acc[r]);
}

PANELS(q8_0, MOGE_PANEL_Q8_0_BYTES)
PANELS(q4_0, MOGE_PANEL_Q4_0_BYTES)

void moge_quant_init_vnni(struct moge_kernels *kernels) {
    kernels->panels_q8_0 = panels_q8_0;
    kernels->panels_q4_0 = panels_q4_0;
}
