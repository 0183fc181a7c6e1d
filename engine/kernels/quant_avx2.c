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

/* Most rows of a tile of two panels. */
#define TWIN_ROWS 5

/* The integer sums of a block of n_panels panels, each `other` bytes behind the one before: for the
 * n rows those of the first, then those of the second. */
#define PANELS_MOST 2
#define SUMS        (PANELS_MOST * TWIN_ROWS)
#define EACH_PANEL  _Pragma("GCC unroll 2") for (int p = 0; p < n_panels; p++)

/* Five rows of two panels leave no register to weights that wait for their turn: what was read is
 * read again, from the nearest cache. */
INLINE void forget(const int n) {
    if (n == TWIN_ROWS)
        __asm__("" ::: "memory");
}

typedef void sums_fn(const uint8_t *quads, const size_t other,
                     const struct moge_act_block *const *rows, ptrdiff_t b, __m256i *sums,
                     const int n, const int n_panels);

INLINE void sums_q8_0(const uint8_t *quads, const size_t other,
                      const struct moge_act_block *const *rows, ptrdiff_t b, __m256i *sums,
                      const int n, const int n_panels) {
    __m256i magnitude[PANELS_MOST];
    EACH_PANEL EACH_ROW sums[p * n + r] = _mm256_setzero_si256();
    EACH_QUAD(8) {
        EACH_PANEL magnitude[p] = _mm256_abs_epi8(load_quad(quads + (size_t)p * other, k));
        EACH_ROW {
            forget(n);
            __m256i quad = broadcast_quad(&rows[r][b], k), *sum = &sums[r];
            EACH_PANEL {
                __m256i x = _mm256_sign_epi8(quad, load_quad(quads + (size_t)p * other, k));
                __m256i pairs = _mm256_maddubs_epi16(magnitude[p], x);
                sum[p * n] =
                    _mm256_add_epi32(sum[p * n], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
                PIN(sum[p * n]);
            }
        }
    }
}

/* sums + the products of a nibble of each panel and four activations, as int16. */
INLINE void add_nibbles(const __m256i *nibbles, __m256i x, __m256i *sums, const int n,
                        const int n_panels) {
    EACH_PANEL {
        sums[p * n] = _mm256_add_epi16(sums[p * n], _mm256_maddubs_epi16(nibbles[p], x));
        PIN(sums[p * n]);
    }
}

INLINE void sums_q4_0(const uint8_t *quads, const size_t other,
                      const struct moge_act_block *const *rows, ptrdiff_t b, __m256i *sums,
                      const int n, const int n_panels) {
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i nibbles[PANELS_MOST];
    EACH_PANEL EACH_ROW sums[p * n + r] = _mm256_set1_epi32(rows[r][b].sum);
    EACH_QUAD(4) {
        EACH_PANEL nibbles[p] = _mm256_and_si256(load_quad(quads + (size_t)p * other, k), nibble);
        EACH_ROW add_nibbles(nibbles, broadcast_quad(&rows[r][b], k), sums + r, n, n_panels);
        forget(n);
        EACH_PANEL {
            __m256i w = load_quad(quads + (size_t)p * other, k);
            nibbles[p] = _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble);
        }
        EACH_ROW add_nibbles(nibbles, broadcast_quad(&rows[r][b], k + 4), sums + r, n, n_panels);
    }
    EACH_PANEL EACH_ROW sums[p * n + r] = _mm256_madd_epi16(sums[p * n + r], _mm256_set1_epi16(1));
}

/* ---- what is left of an odd number of panels ---- */

INLINE void block_q8_0(const uint8_t *quads, __m256 w_d, const struct moge_act_block *const *rows,
                       int32_t b, __m256 *acc, const int n) {
    __m256i sums[MOGE_QUANT_TILE];
    sums_q8_0(quads, 0, rows, b, sums, n, 1);
    EACH_ROW acc[r] = scaled(sums[r], w_d, &rows[r][b], acc[r]);
}

INLINE void block_q4_0(const uint8_t *quads, __m256 w_d, const struct moge_act_block *const *rows,
                       int32_t b, __m256 *acc, const int n) {
    __m256i sums[MOGE_QUANT_TILE];
    sums_q4_0(quads, 0, rows, b, sums, n, 1);
    EACH_ROW acc[r] = scaled(sums[r], w_d, &rows[r][b], acc[r]);
}

PANELS(walk_q8_0, 1, tile, q8_0, MOGE_PANEL_Q8_0_BYTES)
PANELS(walk_q4_0, 1, tile, q4_0, MOGE_PANEL_Q4_0_BYTES)

/* ---- two panels at once: the activations of a quad serve both ---- */

/* As `tile`, for the panel and the one that begins `other` bytes later.  Memory is asked for
 * `ahead` bytes in front of either, unless that is 0. */
INLINE void twin_tile(const uint8_t *panel, const size_t other, const size_t ahead,
                      int32_t n_blocks, const struct moge_act_block *const *rows, float *const *out,
                      size_t at, size_t at_other, const size_t block_bytes, sums_fn *sums_of,
                      const int n) {
    const size_t quad_bytes = block_bytes - SCALE_BYTES;
    const int n_panels = 2;
    const struct moge_act_block *x[TWIN_ROWS];
    __m256 acc[SUMS];
    __m256i sums[SUMS];
    ptrdiff_t b = 0;
    EACH_ROW x[r] = rows[r];
    EACH_PANEL EACH_ROW acc[p * n + r] = _mm256_setzero_ps();
    for (int32_t first = 0; first < n_blocks; first += MOGE_PANEL_BLOCKS) {
        int32_t in_group = lesser(MOGE_PANEL_BLOCKS, n_blocks - first);
        const uint8_t *quads = panel + (size_t)in_group * SCALE_BYTES;
        for (int32_t i = 0; i < in_group; i++, b++, quads += quad_bytes) {
            const uint8_t *scales = panel + (size_t)i * SCALE_BYTES;
            if (ahead > 0)
                EACH_PANEL prefetch_block(quads + (size_t)p * other + ahead, block_bytes);
            sums_of(quads, other, x, b, sums, n, n_panels);
            EACH_PANEL {
                const void *w_d = scales + (size_t)p * other;
                __m256 d = _mm256_cvtph_ps(_mm_load_si128(w_d));
                EACH_ROW acc[p * n + r] = scaled(sums[p * n + r], d, &x[r][b], acc[p * n + r]);
            }
        }
        panel = quads;
    }
    EACH_ROW {
        _mm256_storeu_ps(out[r] + at, acc[r]);
        _mm256_storeu_ps(out[r] + at_other, acc[n + r]);
    }
}

/* How far in front of its reading memory is asked for, when each panel is read once: far enough to
 * be there in time, past the ends of pages of 4 KiB, where the processor's own prefetching stops.
 * Behind the last panel that is what stands there, most often the panels that are read next. */
#define AHEAD 1024

/* Rows of the next tile: as few tiles as can be, as even as can be. */
static int32_t twin_rows(int32_t left) {
    int32_t n_tiles = (left + TWIN_ROWS - 1) / TWIN_ROWS;
    return (left + n_tiles - 1) / n_tiles;
}

typedef void twin_fn(const uint8_t *panel, size_t other, size_t ahead, int32_t n_blocks,
                     const struct moge_act_block *const *rows, float *const *out, size_t at,
                     size_t at_other);

/* Each by itself, so that a tile has all registers. */
#define TWIN_TILE(type, block_bytes, n)                                                            \
    static __attribute__((noinline)) void twin_##type##_##n(                                       \
        const uint8_t *panel, size_t other, size_t ahead, int32_t n_blocks,                        \
        const struct moge_act_block *const *rows, float *const *out, size_t at, size_t at_other) { \
        twin_tile(panel, other, ahead, n_blocks, rows, out, at, at_other, block_bytes,             \
                  sums_##type, n);                                                                 \
    }

/* Defines the slot: panels i and half + i go together.  Two distant streams keep more of the memory
 * busy than one; a pair stays in the nearest cache for all tiles of rows, the last of which asks
 * for the next pair. */
#define PANELS_OF(type, block_bytes)                                                               \
    TWIN_TILE(type, block_bytes, 1)                                                                \
    TWIN_TILE(type, block_bytes, 2)                                                                \
    TWIN_TILE(type, block_bytes, 3)                                                                \
    TWIN_TILE(type, block_bytes, 4)                                                                \
    TWIN_TILE(type, block_bytes, 5)                                                                \
                                                                                                   \
    static void panels_##type(const void *panels, int32_t n_panels, int32_t n_in,                  \
                              const struct moge_act_block *const *rows, int32_t n_rows,            \
                              float *const *out) {                                                 \
        static twin_fn *const tiles[] = {twin_##type##_1, twin_##type##_2, twin_##type##_3,        \
                                         twin_##type##_4, twin_##type##_5};                        \
        const size_t half = (size_t)n_panels / 2, half_rows = half * MOGE_PANEL_ROWS;              \
        const size_t panel_bytes = (size_t)(n_in / BLOCK) * (block_bytes);                         \
        const uint8_t *at = panels;                                                                \
        for (size_t o = 0; o < half_rows; o += MOGE_PANEL_ROWS, at += panel_bytes)                 \
            for (int32_t r = 0, n; r < n_rows; r += n) {                                           \
                n = twin_rows(n_rows - r);                                                         \
                size_t ahead = n == n_rows ? AHEAD : r + n == n_rows ? panel_bytes : 0;            \
                tiles[n - 1](at, half * panel_bytes, ahead, n_in / BLOCK, rows + r, out + r, o,    \
                             o + half_rows);                                                       \
            }                                                                                      \
        walk_##type(panels, 2 * (int32_t)half, n_panels, n_in, rows, n_rows, out);                 \
    }

PANELS_OF(q8_0, MOGE_PANEL_Q8_0_BYTES)
PANELS_OF(q4_0, MOGE_PANEL_Q4_0_BYTES)

static float largest_magnitude(const float *x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 v = _mm256_andnot_ps(sign, _mm256_loadu_ps(x));
    for (int i = 8; i < BLOCK; i += 8)
        v = _mm256_max_ps(v, _mm256_andnot_ps(sign, _mm256_loadu_ps(x + i)));
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

static void quantize(const float *x, int32_t n, struct moge_act_block *block) {
    for (int32_t b = 0; b < n / BLOCK; b++, x += BLOCK, block++) {
        float largest = largest_magnitude(x), inverse = 127.0f / largest;
        if (inverse > __FLT_MAX__)
            inverse = largest = 0.0f;
        block->d = largest / 127.0f;
        __m256 factor = _mm256_set1_ps(inverse);
        __m256i v[4];
        for (int i = 0; i < 4; i++)
            v[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), factor));
        /* The packs work in 128-bit halves; the permutation puts quads back in order. */
        __m256i bytes =
            _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
        bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256((__m256i *)block->q, bytes);
        __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
        __m128i s =
            _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
        s = _mm_add_epi16(s, _mm_unpackhi_epi64(s, s));
        s = _mm_add_epi16(s, _mm_shuffle_epi32(s, 1));
        block->sum = _mm_cvtsi128_si32(_mm_sub_epi16(_mm_setzero_si128(), _mm_slli_epi16(s, 3)));
    }
}

void moge_quant_init_avx2(struct moge_kernels *kernels) {
    kernels->quantize = quantize;
    kernels->panels_q8_0 = panels_q8_0;
    kernels->panels_q4_0 = panels_q4_0;
}
