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

/* A block of n_panels panels, each `other` bytes behind the one before; sums and acc: the n rows of
 * the first, then those of the second. */
#define PANELS_MOST 2
#define SUMS        8 /* the most of them: two panels by ROWS_STREAM, or one by MOGE_QUANT_TILE */
#define EACH_PANEL  _Pragma("GCC unroll 2") for (int p = 0; p < n_panels; p++)

typedef void blocks_fn(const uint8_t *quads, const size_t other, const __m256 *w_d,
                       const struct moge_qrow *rows, int32_t b, __m256 *acc, const int n,
                       const int n_panels);

INLINE void blocks_q8_0(const uint8_t *quads, const size_t other, const __m256 *w_d,
                        const struct moge_qrow *rows, int32_t b, __m256 *acc, const int n,
                        const int n_panels) {
    __m256i sums[SUMS], w[PANELS_MOST], magnitude[PANELS_MOST];
    EACH_PANEL EACH_ROW sums[p * n + r] = _mm256_setzero_si256();
    EACH_QUAD(8) {
        EACH_PANEL {
            w[p] = load_quad(quads + (size_t)p * other, k);
            magnitude[p] = _mm256_abs_epi8(w[p]);
        }
        EACH_ROW {
            __m256i quad = broadcast_quad(&rows[r], b, k), *sum = &sums[r];
            EACH_PANEL {
                __m256i x = _mm256_sign_epi8(quad, w[p]);
                __m256i pairs = _mm256_maddubs_epi16(magnitude[p], x);
                sum[p * n] =
                    _mm256_add_epi32(sum[p * n], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
                PIN(sum[p * n]);
            }
        }
    }
    EACH_PANEL EACH_ROW acc[p * n + r] =
        scaled(sums[p * n + r], w_d[p], rows[r].d + b, acc[p * n + r]);
}

/* sums + the products of a nibble of each panel and four activations, as int16. */
INLINE void add_nibbles(const __m256i *nibbles, __m256i x, __m256i *sums, const int n,
                        const int n_panels) {
    EACH_PANEL {
        sums[p * n] = _mm256_add_epi16(sums[p * n], _mm256_maddubs_epi16(nibbles[p], x));
        PIN(sums[p * n]);
    }
}

INLINE void blocks_q4_0(const uint8_t *quads, const size_t other, const __m256 *w_d,
                        const struct moge_qrow *rows, int32_t b, __m256 *acc, const int n,
                        const int n_panels) {
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i sums[SUMS], low[PANELS_MOST], high[PANELS_MOST];
    EACH_PANEL EACH_ROW sums[p * n + r] = _mm256_set1_epi32(rows[r].sum[b]);
    EACH_QUAD(4) {
        EACH_PANEL {
            __m256i w = load_quad(quads + (size_t)p * other, k);
            low[p] = _mm256_and_si256(w, nibble);
            high[p] = _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble);
        }
        EACH_ROW {
            add_nibbles(low, broadcast_quad(&rows[r], b, k), sums + r, n, n_panels);
            add_nibbles(high, broadcast_quad(&rows[r], b, k + 4), sums + r, n, n_panels);
        }
    }
    EACH_PANEL EACH_ROW {
        __m256i products = _mm256_madd_epi16(sums[p * n + r], _mm256_set1_epi16(1));
        acc[p * n + r] = scaled(products, w_d[p], rows[r].d + b, acc[p * n + r]);
    }
}

/* ---- many rows: panel after panel ---- */

INLINE void block_q8_0(const uint8_t *quads, __m256 w_d, const struct moge_qrow *rows, int32_t b,
                       __m256 *acc, const int n) {
    blocks_q8_0(quads, 0, &w_d, rows, b, acc, n, 1);
}

INLINE void block_q4_0(const uint8_t *quads, __m256 w_d, const struct moge_qrow *rows, int32_t b,
                       __m256 *acc, const int n) {
    blocks_q4_0(quads, 0, &w_d, rows, b, acc, n, 1);
}

PANELS(walk_q8_0, 1, tile, q8_0, MOGE_PANEL_Q8_0_BYTES)
PANELS(walk_q4_0, 1, tile, q4_0, MOGE_PANEL_Q4_0_BYTES)

/* ---- few rows: the two halves of the panels side by side ---- */

/* How far in front of a half's reading its memory is asked for: far enough to be there in time,
 * past the ends of pages of 4 KiB, where the processor's own prefetching stops.  Behind the last
 * panel that is what stands there, most often the panels that are read next. */
#define AHEAD 1024

/* As `tile`, for the panel and the one that begins `other` bytes later. */
INLINE void twin_tile(const uint8_t *panel, const size_t other, int32_t n_blocks,
                      const struct moge_qrow *rows, float *const *out, size_t at, size_t at_other,
                      const size_t block_bytes, blocks_fn *blocks, const int n) {
    const size_t quad_bytes = block_bytes - SCALE_BYTES;
    const int n_panels = 2;
    __m256 acc[SUMS], w_d[PANELS_MOST];
    EACH_PANEL EACH_ROW acc[p * n + r] = _mm256_setzero_ps();
    for (int32_t first = 0; first < n_blocks; first += MOGE_PANEL_BLOCKS) {
        int32_t in_group = lesser(MOGE_PANEL_BLOCKS, n_blocks - first);
        const uint8_t *quads = panel + (size_t)in_group * SCALE_BYTES;
        for (int32_t i = 0; i < in_group; i++, quads += quad_bytes) {
            const uint8_t *scales = panel + (size_t)i * SCALE_BYTES;
            EACH_PANEL {
                const void *d = scales + (size_t)p * other;
                w_d[p] = _mm256_cvtph_ps(_mm_load_si128(d));
                prefetch_block(quads + (size_t)p * other + AHEAD, block_bytes);
            }
            blocks(quads, other, w_d, rows, first + i, acc, n, n_panels);
        }
        panel = quads;
    }
    EACH_ROW {
        _mm256_storeu_ps(out[r] + at, acc[r]);
        _mm256_storeu_ps(out[r] + at_other, acc[n + r]);
    }
}

#define TWIN_CASE(n_rows, type, block_bytes)                                                       \
    case n_rows:                                                                                   \
        twin_tile(at, other, n_in / BLOCK, rows, out, o, o + half * MOGE_PANEL_ROWS, block_bytes,  \
                  blocks_##type, n_rows);                                                          \
        break;

/* Defines a function that takes panels i and half + i together, for i < half and up to ROWS_STREAM
 * rows.  Two distant streams keep more of the memory busy than one, and the activations of a quad
 * serve both. */
#define TWINS(name, type, block_bytes)                                                             \
    static void name(const void *panels, size_t half, int32_t n_in, const struct moge_qrow *rows,  \
                     int32_t n_rows, float *const *out) {                                          \
        const size_t panel_bytes = (size_t)(n_in / BLOCK) * (block_bytes);                         \
        const size_t other = half * panel_bytes;                                                   \
        const uint8_t *at = panels;                                                                \
        for (size_t o = 0; o < half * MOGE_PANEL_ROWS; o += MOGE_PANEL_ROWS, at += panel_bytes)    \
            switch (n_rows) {                                                                      \
                TWIN_CASE(1, type, block_bytes)                                                    \
                TWIN_CASE(2, type, block_bytes)                                                    \
                TWIN_CASE(3, type, block_bytes)                                                    \
                TWIN_CASE(4, type, block_bytes)                                                    \
            }                                                                                      \
    }

TWINS(twins_q8_0, q8_0, MOGE_PANEL_Q8_0_BYTES)
TWINS(twins_q4_0, q4_0, MOGE_PANEL_Q4_0_BYTES)

/* Panels of either half that go together. */
static int32_t n_twins(int32_t n_panels, int32_t n_rows) {
    return n_rows <= ROWS_STREAM ? n_panels / 2 : 0;
}

static void panels_q8_0(const void *panels, int32_t n_panels, int32_t n_in,
                        const struct moge_qrow *rows, int32_t n_rows, float *const *out) {
    int32_t half = n_twins(n_panels, n_rows);
    twins_q8_0(panels, (size_t)half, n_in, rows, n_rows, out);
    walk_q8_0(panels, 2 * half, n_panels, n_in, rows, n_rows, out);
}

static void panels_q4_0(const void *panels, int32_t n_panels, int32_t n_in,
                        const struct moge_qrow *rows, int32_t n_rows, float *const *out) {
    int32_t half = n_twins(n_panels, n_rows);
    twins_q4_0(panels, (size_t)half, n_in, rows, n_rows, out);
    walk_q4_0(panels, 2 * half, n_panels, n_in, rows, n_rows, out);
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
