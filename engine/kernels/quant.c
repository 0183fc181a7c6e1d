/* SPDX-License-Identifier: Apache-2.0 */
/* Quantisation of activations and the canonical dot product, in plain C: the specification.
 *
 * A panel is 8 weight rows, interleaved so that each 32-bit lane of a 256-bit register belongs to
 * one row: lanes hold different outputs, never parts of one, and nothing is summed across lanes.
 * Blocks of 32 columns go in groups of 4, which keeps every quad of a full group 64-byte aligned;
 * the last group holds what is left, in the same order.
 *
 *   group    [ scales of block 0 | 1 | 2 | 3 ][ quads of block 0 | 1 | 2 | 3 ]
 *   scales   f16 of row 0, row 1, ... row 7                                        16 bytes a block
 *   quads    Q8_0: quad 0, 1, ... 7                                               256 bytes a block
 *            Q4_0: quads (0 4), (1 5), (2 6), (3 7)                               128 bytes a block
 *   quad k   Q8_0: | row 0: columns 4k .. 4k+3 | row 1: 4k .. 4k+3 | ... | row 7 |   int8, 32 bytes
 *   (k k+4)  Q4_0: the same, but low nibbles belong to quad k and high ones to quad k + 4; nibbles
 *            are unsigned and stand for values 8 lower, as in GGUF */
#include "engine/kernels/kernels.h"

#include <string.h>

#define BLOCK 32
#define ROWS  MOGE_PANEL_ROWS

static float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u;
    uint32_t mantissa = h & 0x3ffu, bits;
    if (exponent == 31)
        bits = 0x7f800000u | mantissa << 13 | (mantissa ? 0x400000u : 0);
    else if (exponent != 0)
        bits = (exponent + 112) << 23 | mantissa << 13;
    else {
        float tiny = (float)mantissa * 0x1p-24f;
        memcpy(&bits, &tiny, sizeof bits);
    }
    bits |= sign;
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}

/* Half to even, for |x| < 2^22. */
static float round_even(float x) {
    return (x + 12582912.0f) - 12582912.0f;
}

static void quantize(const float *x, int32_t n, struct moge_act_block *block) {
    for (int32_t b = 0; b < n / BLOCK; b++, x += BLOCK, block++) {
        float largest = 0.0f;
        for (int i = 0; i < BLOCK; i++)
            largest = __builtin_fabsf(x[i]) > largest ? __builtin_fabsf(x[i]) : largest;
        float inverse = 127.0f / largest;
        if (inverse > __FLT_MAX__) { /* zeros, or too small to scale up */
            inverse = 0.0f;
            largest = 0.0f;
        }
        block->d = largest / 127.0f;
        int32_t halves[2] = {0, 0};
        for (int i = 0; i < BLOCK; i++) {
            block->q[i] = (int8_t)round_even(x[i] * inverse);
            halves[i / 2 % 2] += block->q[i];
        }
        block->sum = moge_qsum(halves[0], halves[1]);
    }
}

/* Where block b of a panel keeps its scales and quads. */
struct place {
    const uint8_t *scales, *quads;
};

static struct place block_place(const void *panel, int32_t n_blocks, int32_t b, size_t bytes) {
    int32_t first = b / MOGE_PANEL_BLOCKS * MOGE_PANEL_BLOCKS;
    int32_t left = n_blocks - first;
    size_t in_group = (size_t)(left < MOGE_PANEL_BLOCKS ? left : MOGE_PANEL_BLOCKS);
    size_t scale_bytes = ROWS * sizeof(uint16_t), i = (size_t)(b - first);
    const uint8_t *group = (const uint8_t *)panel + (size_t)first * bytes;
    return (struct place){group + i * scale_bytes,
                          group + in_group * scale_bytes + i * (bytes - scale_bytes)};
}

static int32_t weight_q8_0(const uint8_t *quads, int j, int k) {
    return (int8_t)quads[k / 4 * (4 * ROWS) + 4 * j + k % 4];
}

static int32_t weight_q4_0(const uint8_t *quads, int j, int k) {
    uint8_t pair = quads[k % 16 / 4 * (4 * ROWS) + 4 * j + k % 4];
    return (k < 16 ? pair & 15 : pair >> 4) - 8;
}

static float dot_canonical(const void *panel, int32_t n_in, const struct moge_act_block *row, int j,
                           size_t bytes, int32_t (*weight)(const uint8_t *quads, int j, int k)) {
    float acc = 0.0f;
    int32_t n_blocks = n_in / BLOCK;
    for (int32_t b = 0; b < n_blocks; b++) {
        struct place at = block_place(panel, n_blocks, b, bytes);
        uint16_t scale;
        memcpy(&scale, at.scales + sizeof scale * (size_t)j, sizeof scale);
        int32_t products = 0;
        for (int k = 0; k < BLOCK; k++)
            products += weight(at.quads, j, k) * row[b].q[k];
        acc = __builtin_fmaf((float)products, half_to_float(scale) * row[b].d, acc);
    }
    return acc;
}

static void every_panel(const void *panels, int32_t n_panels, int32_t n_in,
                        const struct moge_act_block *const *rows, int32_t n_rows, float *const *out,
                        size_t bytes, int32_t (*weight)(const uint8_t *quads, int j, int k)) {
    const uint8_t *panel = panels;
    for (int32_t p = 0; p < n_panels; p++, panel += (size_t)(n_in / BLOCK) * bytes)
        for (int32_t r = 0; r < n_rows; r++)
            for (int j = 0; j < ROWS; j++)
                out[r][ROWS * p + j] = dot_canonical(panel, n_in, rows[r], j, bytes, weight);
}

static void panels_q8_0(const void *at, int32_t n_panels, int32_t n_in,
                        const struct moge_act_block *const *rows, int32_t n_rows,
                        float *const *out) {
    every_panel(at, n_panels, n_in, rows, n_rows, out, MOGE_PANEL_Q8_0_BYTES, weight_q8_0);
}

static void panels_q4_0(const void *at, int32_t n_panels, int32_t n_in,
                        const struct moge_act_block *const *rows, int32_t n_rows,
                        float *const *out) {
    every_panel(at, n_panels, n_in, rows, n_rows, out, MOGE_PANEL_Q4_0_BYTES, weight_q4_0);
}

void moge_quant_init_scalar(struct moge_kernels *kernels) {
    kernels->quantize = quantize;
    kernels->panels_q8_0 = panels_q8_0;
    kernels->panels_q4_0 = panels_q4_0;
}
