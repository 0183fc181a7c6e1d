/* SPDX-License-Identifier: Apache-2.0 */
/* vpmaddubsw multiplies unsigned by signed bytes and adds neighbours to an int16, saturating.
 *
 *   Q8_0   |w| is the unsigned side and x, negated where w is negative, the signed one.  Two
 * products are at most 2 * 128 * 127 = 32,512: exact for -128 too, since |x| <= 127.
 *
 *   Q4_0   nibbles are unsigned as they are.  A lane's sum begins with -8 times the activations
 * that it will see, so that its 16 products add up to what signed weights give: at most 16 * 8 *
 * 127 = 16,256.  Additions wrap around, so it may be anything on the way there. */
#include <immintrin.h>
#define MOGE_QUANT_TILE 6
#include "engine/kernels/quant_tiles.h"

INLINE void block_q8_0(const uint8_t *quads, __m256 w_d, const struct moge_qrow *rows, int32_t b,
                       __m256 *acc, const int n) {
    __m256i sums[MOGE_QUANT_TILE];
    EACH_ROW
    sums[r] = _mm256_setzero_si256();
    EACH_QUAD(8) {
        __m256i w = load_quad(quads, k), magnitude = _mm256_abs_epi8(w);
        EACH_ROW {
            __m256i x = _mm256_sign_epi8(broadcast_quad(&rows[r], b, k), w);
            __m256i pairs = _mm256_maddubs_epi16(magnitude, x);
            sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
            PIN(sums[r]);
        }
    }
    EACH_ROW
    acc[r] = scaled(sums[r], w_d, rows[r].d + b, acc[r]);
}

INLINE void block_q4_0(const uint8_t *quads, __m256 w_d, const struct moge_qrow *rows, int32_t b,
                       __m256 *acc, const int n) {
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i sums[MOGE_QUANT_TILE]; /* int16 */
    EACH_ROW
    sums[r] = _mm256_set1_epi32(rows[r].sum[b]);
    EACH_QUAD(4) {
        __m256i w = load_quad(quads, k), low = _mm256_and_si256(w, nibble);
        __m256i high = _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble);
        EACH_ROW {
            __m256i pairs = _mm256_maddubs_epi16(low, broadcast_quad(&rows[r], b, k));
            sums[r] = _mm256_add_epi16(sums[r], pairs);
            PIN(sums[r]);
            pairs = _mm256_maddubs_epi16(high, broadcast_quad(&rows[r], b, k + 4));
            sums[r] = _mm256_add_epi16(sums[r], pairs);
            PIN(sums[r]);
        }
    }
    EACH_ROW {
        __m256i products = _mm256_madd_epi16(sums[r], _mm256_set1_epi16(1));
        acc[r] = scaled(products, w_d, rows[r].d + b, acc[r]);
    }
}

PANELS(walk_q8_0, 1, tile, q8_0, MOGE_PANEL_Q8_0_BYTES)
PANELS(walk_q4_0, 1, tile, q4_0, MOGE_PANEL_Q4_0_BYTES)

static void panels_q8_0(const void *panels, int32_t n_panels, int32_t n_in,
                        const struct moge_qrow *rows, int32_t n_rows, float *const *out) {
    walk_q8_0(panels, 0, n_panels, n_in, rows, n_rows, out);
}

static void panels_q4_0(const void *panels, int32_t n_panels, int32_t n_in,
                        const struct moge_qrow *rows, int32_t n_rows, float *const *out) {
    walk_q4_0(panels, 0, n_panels, n_in, rows, n_rows, out);
}

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
        /* The packs work in 128-bit halves; the permutation puts quads back in order. */
        __m256i bytes =
            _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
        bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256((__m256i *)q, bytes);
        __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
        __m128i s =
            _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
        s = _mm_add_epi16(s, _mm_unpackhi_epi64(s, s));
        s = _mm_add_epi16(s, _mm_shuffle_epi32(s, 1));
        sum[b] = _mm_cvtsi128_si32(_mm_sub_epi16(_mm_setzero_si128(), _mm_slli_epi16(s, 3)));
    }
}

void moge_quant_init_avx2(struct moge_kernels *kernels) {
    kernels->quantize = quantize;
    kernels->panels_q8_0 = panels_q8_0;
    kernels->panels_q4_0 = panels_q4_0;
}
