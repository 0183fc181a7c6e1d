/* SPDX-License-Identifier: Apache-2.0 */
/* The hot loops, as one table of functions.  Each slot's contract is written here once; the scalar
 * file of a family (quant.c, vec.c, attn_page.c) is its specification and fallback;
 * <family>_<isa>.c overwrites slots it does better.  EVERY slot gives the same bits at every ISA
 * level:
 *   - integer sums are exact, and floats of a block are combined in the order the scalar file
 * states;
 *   - float reductions run in 16 lanes: lane i takes elements i, i + 16, ..., and lanes are then
 * added as a fixed tree (i + 8, i + 4, i + 2, i + 1).  Sums of products use fused multiply-add.
 *   - exp and log are our own polynomials, never libm's.
 * No slot allocates, locks or logs.  Pointers need no alignment unless said. */
#ifndef MOGE_KERNELS_H
#define MOGE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* 32 activations of a row: x[i] ~ d * q[i].  All of a block in one place: a product reads one
 * stream for each row, and needs one register to know where it is. */
struct moge_act_block {
    float d;      /* largest magnitude / 127 */
    int32_t sum;  /* q summed, as moge_qsum makes it */
    int8_t q[32]; /* in [-127, 127] */
};

/* What makes unsigned weights signed again: -8 times the sum of the q in columns 4k and 4k + 1 (low
 * half) and of those in 4k + 2 and 4k + 3 (high half).  Integer sums begin with it, in int16 lanes
 * or added up; each half is within +-16 * 127 * 8. */
static inline int32_t moge_qsum(int32_t low, int32_t high) {
    return (int32_t)(((uint32_t)(-8 * high) << 16) | ((uint32_t)(-8 * low) & 0xffffu));
}

/* Packed weights: the formats are drawn in quant.c.  A panel holds as many bytes as the 8 GGUF rows
 * it was made of. */
#define MOGE_PANEL_ROWS       8   /* weight rows interleaved in one packed panel */
#define MOGE_PANEL_BLOCKS     4   /* blocks whose scales stand together in it */
#define MOGE_PANEL_Q8_0_BYTES 272 /* of one block of 32 of all 8 rows */
#define MOGE_PANEL_Q4_0_BYTES 144

#define MOGE_ATTN_AHEAD 2 /* a page is fetched so many pages before its turn */

enum moge_isa { MOGE_ISA_SCALAR, MOGE_ISA_AVX2, MOGE_ISA_AVX512, MOGE_ISA_VNNI, MOGE_ISA_COUNT };

/* 32 columns of the 16 positions of a page in q8_0: value = q * d of its position.  Keys lie
 * across, q [32 columns, 16 positions]; values along, q [16 positions, 32 columns].  A head whose
 * width is no multiple of 32 leaves the rest of its last block unused. */
struct moge_kv_q8_0 {
    int8_t q[32 * 16];
    uint16_t d[16]; /* f16 */
};

struct moge_kernels {
    const char *isa; /* "scalar", "avx2", "avx512", "vnni" */

    /* ---- quant: products of packed weights and quantised activations ---- */

    /* Quantises n (a multiple of 32) floats.  d = amax / 127, q = round-half-even(x * (127 /
     * amax)); all 0 for a block of zeros or of values so small that 127 / amax overflows (below
     * 3.8e-37).  x must be finite. */
    void (*quantize)(const float *x, int32_t n, struct moge_act_block *blocks);

    /* out[r][8 * p + j] = dot(weight row j of panel p, rows[r]) for p < n_panels, r < n_rows (both
     * >= 1), j < MOGE_PANEL_ROWS, by the canonical dot product: acc = 0; for each block b in order:
     * acc = fma(float(sum of 32 products), w_d[b] * rows[r][b].d, acc).  Panels stand one behind
     * the other, the first 64-byte aligned; n_in is a multiple of 32.  Integer sums are exact for
     * all bytes that a panel can hold, -128 too. */
    void (*panels_q8_0)(const void *panels, int32_t n_panels, int32_t n_in,
                        const struct moge_act_block *const *rows, int32_t n_rows,
                        float *const *out);
    void (*panels_q4_0)(const void *panels, int32_t n_panels, int32_t n_in,
                        const struct moge_act_block *const *rows, int32_t n_rows,
                        float *const *out);

    /* ---- vec: element-wise and row-wise float work; n is any positive number ---- */

    /* y = x / sqrt(mean(x^2) + eps) * w; y may be x. */
    void (*rmsnorm)(const float *x, const float *w, float eps, int32_t n, float *y);
    /* gate = gate / (1 + exp(-gate)) * up */
    void (*silu_mul)(float *gate, const float *up, int32_t n);
    /* y = y + x */
    void (*add)(float *y, const float *x, int32_t n);
    /* y = fma(a, x, y) */
    void (*axpy)(float *y, float a, const float *x, int32_t n);
    /* out[i * stride + j] = inner product of x[i] and w + j * n, in 16 lanes; for i < n_x, j < n_w.
     */
    void (*dots)(const float *const *x, int32_t n_x, const float *w, int32_t n_w, int32_t n,
                 float *out, size_t stride);
    /* x = exp(x - max) / sum; -INFINITY gives 0, but at least one entry must be finite. */
    void (*softmax)(float *x, int32_t n);
    /* The next n entries of a softmax taken in parts: max (-INFINITY before the first) becomes the
     * largest so far, x = exp(x - max), sum = fma(sum, factor, sum of x) with factor = exp(max
     * before - max), which is returned: what was weighed by earlier parts has to be scaled by it.
     * At least one entry of the first part must be finite. */
    float (*softmax_part)(float *x, int32_t n, float *max, float *sum);
    /* y = a * y */
    void (*scale)(float *y, float a, int32_t n);
    /* y = exp((x - shift) * scale), y may be x; returns the sum in 16 lanes. */
    float (*exp_sum)(const float *x, float shift, float scale, int32_t n, float *y);
    /* Rotary embedding of n_heads vectors of head_dim: cs = head_dim / 2 pairs (cos, sin).  neox:
     * pair (i, i + head_dim / 2); otherwise pair (2i, 2i + 1). */
    void (*rope)(float *x, const float *cs, int32_t n_heads, int32_t head_dim, int neox);
    /* Index of the largest, the lowest on ties; NaN never wins over a number. */
    int32_t (*argmax)(const float *x, int32_t n);
    /* argmax over i of x[i] * inv_t + moge_kernel_gumbel(seed, pos, ids ? ids[i] : i), multiplied
     * and then added; entries of -INFINITY never win unless all are, NaN never wins over a number.
     * Lowest i on ties.  inv_t is positive. */
    int32_t (*gumbel_argmax)(const float *x, const int32_t *ids, int32_t n, float inv_t,
                             uint64_t seed, int32_t pos);
    void (*f16_to_f32)(const uint16_t *x, float *y, int32_t n);
    void (*f32_to_f16)(const float *x, uint16_t *y, int32_t n); /* round half even */
    void (*bf16_to_f32)(const uint16_t *x, float *y, int32_t n);

    /* ---- attn: pages of one KV head, in order, and n_q query heads of rows that see all n_tok
     * positions in them.  Each page has 16 positions, the last may lack some; pages has
     * MOGE_ATTN_AHEAD pointers more: pages that are read next and fetched ahead, or any others.
     * ---- */

    /* scores[h * stride + t] = scale * (fma over i in order (q[h][i], k[i][t], 0)) for t < n_tok;
     * q n_q vectors [head_dim], pages [head_dim, 16] f16: the keys of a page lie side by side.  All
     * 16 columns are read, whatever they hold. */
    void (*attn_scores)(const float *const *q, int32_t n_q, const void *const *pages, int32_t n_tok,
                        int32_t head_dim, float scale, float *scores, size_t stride);
    /* out[h] = fma over t in order (p[h * stride + t], v[t], out[h]); out n_q vectors [head_dim],
     * pages [16, head_dim] f16. */
    void (*attn_values)(const float *p, size_t stride, int32_t n_q, const void *const *pages,
                        int32_t n_tok, int32_t head_dim, float *const *out);
    /* The same of q8_0 pages, [head_dim / 32 rounded up] struct moge_kv_q8_0.  scores: per block
     * part = fma over its columns in order (q[h][i], k.q[i][t], 0), then sum = fma(part, k.d[t],
     * sum).  values: out[h] = fma over t in order (p[h * stride + t] * v.d[t], v.q[t], out[h]).
     * Scales of all 16 positions are read, whatever they are. */
    void (*attn_scores_q8_0)(const float *const *q, int32_t n_q, const void *const *pages,
                             int32_t n_tok, int32_t head_dim, float scale, float *scores,
                             size_t stride);
    void (*attn_values_q8_0)(const float *p, size_t stride, int32_t n_q, const void *const *pages,
                             int32_t n_tok, int32_t head_dim, float *const *out);
};

/* The best level this CPU (and operating system, by XCR0) runs. */
enum moge_isa moge_isa_detect(void);

/* Fills the table for a level that this CPU runs: scalar first, then each level up to it overwrites
 * what it has, in code compiled for that level. */
void moge_kernels_fill(struct moge_kernels *kernels, enum moge_isa isa);

/* The process-wide table: level = min(detected, maximum set).  Any thread. */
const struct moge_kernels *moge_kernels(void);

/* That level.  Any thread. */
enum moge_isa moge_kernels_level(void);

/* Lowers the level for moge_kernels(); call before any engine exists (configuration `isa`, tests).
 */
void moge_kernels_set_max(enum moge_isa isa);

/* Start-up trust check: every selected slot reproduces a scalar result once (about a millisecond).
 * Returns NULL, or the name of the slot that differs. */
const char *moge_kernels_self_test(const struct moge_kernels *kernels);

/* Standard Gumbel noise of a token id at a position under a seed: the noise of gumbel_argmax, one
 * at a time and slow.  From a counter-based generator; in (-3.2, 22.9), never infinite. */
float moge_kernel_gumbel(uint64_t seed, int32_t pos, int32_t id);

/* What each family file exports, for dispatch.c only: overwrites the slots that it has. */
void moge_quant_init_scalar(struct moge_kernels *kernels);
void moge_quant_init_avx2(struct moge_kernels *kernels);
void moge_quant_init_vnni(struct moge_kernels *kernels);
void moge_vec_init_scalar(struct moge_kernels *kernels);
void moge_vec_init_avx2(struct moge_kernels *kernels);
void moge_vec_init_avx512(struct moge_kernels *kernels);
void moge_attn_page_init_scalar(struct moge_kernels *kernels);
void moge_attn_page_init_avx2(struct moge_kernels *kernels);
void moge_attn_page_init_avx512(struct moge_kernels *kernels);

#endif
