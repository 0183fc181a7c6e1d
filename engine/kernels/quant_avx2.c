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

/* The integer sums of a block of n_panels panels, each `other` bytes behind the one before: for the
 * n rows those of the first, then those of the second. */
#define PANELS_MOST 2
#define SUMS        (PANELS_MOST * MANY_ROWS)
#define MANY_ROWS   5 /* the most rows of a tile of two panels */
#define EACH_PANEL  _Pragma("GCC unroll 2") for (int p = 0; p < n_panels; p++)

/* Five rows of two panels leave no register to weights that wait for their turn: what was read is
 * read again, from the nearest cache. */
INLINE void forget(const int n) {
    if (n == MANY_ROWS)
        __asm__("" ::: "memory");
}

typedef void sums_fn(const uint8_t *quads, const size_t other, const struct moge_qrow *rows,
                     int32_t b, __m256i *sums, const int n, const int n_panels);

INLINE void sums_q8_0(const uint8_t *quads, const size_t other, const struct moge_qrow *rows,
                      int32_t b, __m256i *sums, const int n, const int n_panels) {
    __m256i magnitude[PANELS_MOST];
    EACH_PANEL EACH_ROW sums[p * n + r] = _mm256_setzero_si256();
    EACH_QUAD(8) {
        EACH_PANEL magnitude[p] = _mm256_abs_epi8(load_quad(quads + (size_t)p * other, k));
        EACH_ROW {
            forget(n);
            __m256i quad = broadcast_quad(&rows[r], b, k), *sum = &sums[r];
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

INLINE void sums_q4_0(const uint8_t *quads, const size_t other, const struct moge_qrow *rows,
                      int32_t b, __m256i *sums, const int n, const int n_panels) {
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i nibbles[PANELS_MOST];
    EACH_PANEL EACH_ROW sums[p * n + r] = _mm256_set1_epi32(rows[r].sum[b]);
    EACH_QUAD(4) {
        EACH_PANEL nibbles[p] = _mm256_and_si256(load_quad(quads + (size_t)p * other, k), nibble);
        EACH_ROW add_nibbles(nibbles, broadcast_quad(&rows[r], b, k), sums + r, n, n_panels);
        forget(n);
        EACH_PANEL {
            __m256i w = load_quad(quads + (size_t)p * other, k);
            nibbles[p] = _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble);
        }
        EACH_ROW add_nibbles(nibbles, broadcast_quad(&rows[r], b, k + 4), sums + r, n, n_panels);
    }
    EACH_PANEL EACH_ROW sums[p * n + r] = _mm256_madd_epi16(sums[p * n + r], _mm256_set1_epi16(1));
}

/* ---- what is left of an odd number of panels ---- */

INLINE void block_q8_0(const uint8_t *quads, __m256 w_d, const struct moge_qrow *rows, int32_t b,
                       __m256 *acc, const int n) {
    __m256i sums[MOGE_QUANT_TILE];
    sums_q8_0(quads, 0, rows, b, sums, n, 1);
    EACH_ROW acc[r] = scaled(sums[r], w_d, rows[r].d + b, acc[r]);
}

INLINE void block_q4_0(const uint8_t *quads, __m256 w_d, const struct moge_qrow *rows, int32_t b,
                       __m256 *acc, const int n) {
    __m256i sums[MOGE_QUANT_TILE];
    sums_q4_0(quads, 0, rows, b, sums, n, 1);
    EACH_ROW acc[r] = scaled(sums[r], w_d, rows[r].d + b, acc[r]);
}

PANELS(walk_q8_0, 1, tile, q8_0, MOGE_PANEL_Q8_0_BYTES)
PANELS(walk_q4_0, 1, tile, q4_0, MOGE_PANEL_Q4_0_BYTES)

/* ---- two panels at once: the activations of a quad serve both ---- */

/* As `tile`, for the panel and the one that begins `other` bytes later.  Memory is asked for
 * `ahead` bytes in front of either, unless that is 0.  packed: the activations of all rows stand
 * where those of rows[0] begin, a block of each row in turn. */
INLINE void twin_tile(const uint8_t *panel, const size_t other, const size_t ahead,
                      int32_t n_blocks, const struct moge_qrow *rows, const bool packed,
                      float *const *out, size_t at, size_t at_other, const size_t block_bytes,
                      sums_fn *sums_of, const int n) {
    const size_t quad_bytes = block_bytes - SCALE_BYTES;
    const int n_panels = 2;
    struct moge_qrow x[MANY_ROWS];
    __m256 acc[SUMS];
    __m256i sums[SUMS];
    EACH_ROW x[r] =
        packed ? (struct moge_qrow){rows->q + r * BLOCK, rows->d + r, rows->sum + r} : rows[r];
    EACH_PANEL EACH_ROW acc[p * n + r] = _mm256_setzero_ps();
    for (int32_t first = 0; first < n_blocks; first += MOGE_PANEL_BLOCKS) {
        int32_t in_group = lesser(MOGE_PANEL_BLOCKS, n_blocks - first);
        const uint8_t *quads = panel + (size_t)in_group * SCALE_BYTES;
        for (int32_t i = 0; i < in_group; i++, quads += quad_bytes) {
            const uint8_t *scales = panel + (size_t)i * SCALE_BYTES;
            int32_t b = packed ? (first + i) * n : first + i;
            if (ahead > 0)
                EACH_PANEL prefetch_block(quads + (size_t)p * other + ahead, block_bytes);
            sums_of(quads, other, x, b, sums, n, n_panels);
            EACH_PANEL {
                const void *w_d = scales + (size_t)p * other;
                __m256 d = _mm256_cvtph_ps(_mm_load_si128(w_d));
                EACH_ROW acc[p * n + r] = scaled(sums[p * n + r], d, x[r].d + b, acc[p * n + r]);
            }
        }
        panel = quads;
    }
    EACH_ROW {
        _mm256_storeu_ps(out[r] + at, acc[r]);
        _mm256_storeu_ps(out[r] + at_other, acc[n + r]);
    }
}

/* ---- few rows: the two halves of the panels side by side ---- */

/* How far in front of a half's reading its memory is asked for: far enough to be there in time,
 * past the ends of pages of 4 KiB, where the processor's own prefetching stops.  Behind the last
 * panel that is what stands there, most often the panels that are read next. */
#define AHEAD 1024

#define TWIN_CASE(n_rows, type, block_bytes)                                                       \
    case n_rows:                                                                                   \
        twin_tile(at, other, AHEAD, n_in / BLOCK, rows, false, out, o, o + half * MOGE_PANEL_ROWS, \
                  block_bytes, sums_##type, n_rows);                                               \
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

/* ---- many rows: tiles of up to five, packed ---- */

#define PACKED (64 * 2048) /* the most activations at once: what the second cache keeps */

/* Activations, tile after tile, and in a tile a block of each row in turn: one stream, and one
 * register to address all rows of a tile by. */
struct packed {
    _Alignas(32) int8_t q[PACKED];
    float d[PACKED / BLOCK];
    int32_t sum[PACKED / BLOCK];
};

/* Rows of the next tile: as few tiles as can be, as even as can be; so 3 to 5 of 3 rows or more. */
static int32_t many_rows(int32_t left) {
    int32_t n_tiles = (left + MANY_ROWS - 1) / MANY_ROWS;
    return (left + n_tiles - 1) / n_tiles;
}

static void pack_rows(const struct moge_qrow *rows, int32_t n_rows, int32_t n_blocks,
                      struct packed *packed) {
    for (int32_t r = 0; r < n_rows;) {
        int32_t begin = r * n_blocks, n = many_rows(n_rows - r);
        for (int32_t i = 0; i < n; i++, r++)
            for (int32_t b = 0, to = begin + i; b < n_blocks; b++, to += n) {
                __m256i q = _mm256_loadu_si256((const __m256i *)(rows[r].q + (ptrdiff_t)b * BLOCK));
                _mm256_store_si256((__m256i *)(packed->q + (ptrdiff_t)to * BLOCK), q);
                packed->d[to] = rows[r].d[b];
                packed->sum[to] = rows[r].sum[b];
            }
    }
}

/* Each by itself, so that a tile has all registers. */
#define MANY_TILE(type, block_bytes, n)                                                            \
    static __attribute__((noinline)) void tile_##type##_##n(                                       \
        const uint8_t *panel, size_t other, size_t ahead, int32_t n_blocks,                        \
        const struct moge_qrow *x, float *const *out, size_t at, size_t at_other) {                \
        twin_tile(panel, other, ahead, n_blocks, x, true, out, at, at_other, block_bytes,          \
                  sums_##type, n);                                                                 \
    }

MANY_TILE(q8_0, MOGE_PANEL_Q8_0_BYTES, 3)
MANY_TILE(q8_0, MOGE_PANEL_Q8_0_BYTES, 4)
MANY_TILE(q8_0, MOGE_PANEL_Q8_0_BYTES, 5)
MANY_TILE(q4_0, MOGE_PANEL_Q4_0_BYTES, 3)
MANY_TILE(q4_0, MOGE_PANEL_Q4_0_BYTES, 4)
MANY_TILE(q4_0, MOGE_PANEL_Q4_0_BYTES, 5)

typedef void many_tile_fn(const uint8_t *panel, size_t other, size_t ahead, int32_t n_blocks,
                          const struct moge_qrow *x, float *const *out, size_t at, size_t at_other);

/* Defines two functions for at least 3 rows.  The first takes panels i and half + i together, for
 * i < half, and as many rows as are packed: a pair of panels stays in the nearest cache for all
 * tiles, the last of which asks for the next pair.  The second takes any number of rows. */
#define MANY(name, type, block_bytes)                                                              \
    static void name##_packed(const uint8_t *at, size_t half, int32_t n_blocks,                    \
                              const struct packed *packed, int32_t n_rows, float *const *out) {    \
        static many_tile_fn *const tiles[] = {tile_##type##_3, tile_##type##_4, tile_##type##_5};  \
        const size_t panel_bytes = (size_t)n_blocks * (block_bytes), other = half * panel_bytes;   \
        for (size_t o = 0; o < half * MOGE_PANEL_ROWS; o += MOGE_PANEL_ROWS, at += panel_bytes)    \
            for (int32_t r = 0, n; r < n_rows; r += n) {                                           \
                ptrdiff_t block = (ptrdiff_t)r * n_blocks;                                         \
                const struct moge_qrow x = {packed->q + block * BLOCK, packed->d + block,          \
                                            packed->sum + block};                                  \
                n = many_rows(n_rows - r);                                                         \
                const size_t ahead = r + n == n_rows ? panel_bytes : 0;                            \
                tiles[n - 3](at, other, ahead, n_blocks, &x, out + r, o,                           \
                             o + half * MOGE_PANEL_ROWS);                                          \
            }                                                                                      \
    }                                                                                              \
                                                                                                   \
    static void name(const void *panels, size_t half, int32_t n_in, const struct moge_qrow *rows,  \
                     int32_t n_rows, float *const *out) {                                          \
        struct packed packed;                                                                      \
        int32_t most = PACKED / n_in, n_parts = (n_rows + most - 1) / most;                        \
        for (int32_t i = 0, r = 0, end; i < n_parts && half > 0; i++, r = end) {                   \
            end = n_rows * (i + 1) / n_parts;                                                      \
            pack_rows(rows + r, end - r, n_in / BLOCK, &packed);                                   \
            name##_packed(panels, half, n_in / BLOCK, &packed, end - r, out + r);                  \
        }                                                                                          \
    }

MANY(many_q8_0, q8_0, MOGE_PANEL_Q8_0_BYTES)
MANY(many_q4_0, q4_0, MOGE_PANEL_Q4_0_BYTES)

/* Panels of either half that go together. */
static int32_t n_twins(int32_t n_panels, int32_t n_in, int32_t n_rows) {
    return n_rows <= ROWS_STREAM || n_in <= PACKED / MANY_ROWS ? n_panels / 2 : 0;
}

#define PANELS_OF(name, type)                                                                      \
    static void name(const void *panels, int32_t n_panels, int32_t n_in,                           \
                     const struct moge_qrow *rows, int32_t n_rows, float *const *out) {            \
        int32_t half = n_twins(n_panels, n_in, n_rows);                                            \
        if (n_rows <= ROWS_STREAM)                                                                 \
            twins_##type(panels, (size_t)half, n_in, rows, n_rows, out);                           \
        else                                                                                       \
            many_##type(panels, (size_t)half, n_in, rows, n_rows, out);                            \
        walk_##type(panels, 2 * half, n_panels, n_in, rows, n_rows, out);                          \
    }

PANELS_OF(panels_q8_0, q8_0)
PANELS_OF(panels_q4_0, q4_0)

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
