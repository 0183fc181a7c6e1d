/* SPDX-License-Identifier: Apache-2.0 */
/* Panels made from plain weight values, and what their products should be.  The layout is written
 * down here a second time, so that a slip in quant.c's picture of it cannot hide. */
#ifndef MOGE_TESTS_PANELS_H
#define MOGE_TESTS_PANELS_H

#include <math.h>
#include "engine/kernels/kernels.h"
#include "moge/quant.h"
#include "tests/test.h"

enum { PANEL_ROWS_MAX = 40, PANEL_BLOCKS_MAX = 9, PANELS_MAX = 7 };

static const enum moge_type panel_types[2] = {MOGE_TYPE_Q8_0, MOGE_TYPE_Q4_0};

enum panel_filling {
    PANEL_ORDINARY,
    PANEL_LARGEST, /* weights at -128 or 127 (-8 or 7), activations at +-127 */
    PANEL_SCALES,  /* largest, smallest, denormal, negative and zero scales */
    PANEL_FILLINGS
};

struct panel_case {
    enum moge_type type;
    int32_t n_in, n_blocks;
    int32_t n_panels;
    int32_t w[8 * PANELS_MAX][PANEL_BLOCKS_MAX * 32];
    uint16_t w_d[8 * PANELS_MAX][PANEL_BLOCKS_MAX];
    struct moge_act_block x[PANEL_ROWS_MAX][PANEL_BLOCKS_MAX];
    const struct moge_act_block *rows[PANEL_ROWS_MAX];
    float values[PANEL_ROWS_MAX][8 * PANELS_MAX];
    float *out[PANEL_ROWS_MAX];
    _Alignas(64) uint8_t panels[PANELS_MAX * PANEL_BLOCKS_MAX * MOGE_PANEL_Q8_0_BYTES];
};

/* Writes the panel of rows 8 * p .. 8 * p + 7; returns where the next begins. */
static inline uint8_t *panel_pack(const struct panel_case *c, int p, uint8_t *at) {
    for (int first = 0; first < c->n_blocks; first += 4) {
        int last = first + 4 < c->n_blocks ? first + 4 : c->n_blocks;
        for (int b = first; b < last; b++)
            for (int j = 0; j < 8; j++, at += 2)
                memcpy(at, &c->w_d[8 * p + j][b], 2);
        for (int b = first; b < last; b++)
            for (int quad = 0; quad < (c->type == MOGE_TYPE_Q8_0 ? 8 : 4); quad++)
                for (int j = 0; j < 8; j++)
                    for (int i = 0; i < 4; i++) {
                        const int32_t *w = &c->w[8 * p + j][32 * b + 4 * quad + i];
                        int32_t byte =
                            c->type == MOGE_TYPE_Q8_0 ? w[0] : (w[0] + 8) | (w[16] + 8) << 4;
                        *at++ = (uint8_t)(byte & 255);
                    }
    }
    return at;
}

static inline void panel_case_pack(struct panel_case *c) {
    uint8_t *at = c->panels;
    for (int p = 0; p < c->n_panels; p++)
        at = panel_pack(c, p, at);
}

static inline int32_t panel_weight(struct test_rng *rng, enum moge_type type, int largest) {
    int32_t low = type == MOGE_TYPE_Q8_0 ? -128 : -8, high = -low - 1;
    if (largest)
        return test_below(rng, 2) ? low : high;
    return low + test_below(rng, 2 * -low);
}

static inline void panel_case_fill(struct panel_case *c, struct test_rng *rng, enum moge_type type,
                                   int32_t n_blocks, enum panel_filling filling) {
    static const uint16_t scales[8] = {0x7bff, 0xfbff, 1, 0x8001, 0x03ff, 0x0400, 0, 0x8000};
    static const float x_scales[6] = {0.0f, 1e-45f, 1e-39f, 1e-30f, 1e28f, 1.0f};
    int largest = filling == PANEL_LARGEST;
    /* Now and then all of one sign: the sums as large as they get. */
    int32_t one_sign = largest && test_below(rng, 2) ? 1 : 0;
    c->type = type;
    c->n_blocks = n_blocks;
    c->n_in = 32 * n_blocks;
    c->n_panels = 1 + test_below(rng, PANELS_MAX);
    for (int j = 0; j < 8 * c->n_panels; j++) {
        for (int i = 0; i < c->n_in; i++)
            c->w[j][i] = one_sign ? (type == MOGE_TYPE_Q8_0 ? -128 : (j & 1 ? 7 : -8))
                                  : panel_weight(rng, type, largest);
        for (int b = 0; b < n_blocks; b++)
            c->w_d[j][b] = filling == PANEL_SCALES ? scales[test_below(rng, 8)]
                                                   : (uint16_t)(0x1800 + test_below(rng, 0x1800));
    }
    for (int r = 0; r < PANEL_ROWS_MAX; r++) {
        for (int b = 0; b < n_blocks; b++) {
            struct moge_act_block *block = &c->x[r][b];
            block->d =
                filling == PANEL_SCALES ? x_scales[test_below(rng, 6)] : test_float(rng) + 1.0f;
            int32_t halves[2] = {0, 0};
            for (int i = 0; i < 32; i++) {
                int32_t q = largest ? 254 * test_below(rng, 2) - 127 : test_below(rng, 255) - 127;
                block->q[i] = (int8_t)(one_sign ? (r & 1 ? 127 : -127) : q);
                halves[i / 2 % 2] += block->q[i];
            }
            block->sum = moge_qsum(halves[0], halves[1]);
        }
        c->rows[r] = c->x[r];
        c->out[r] = c->values[r];
    }
    panel_case_pack(c);
}

static inline double panel_half(uint16_t h) {
    int exponent = h >> 10 & 31, mantissa = h & 1023;
    double v = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    return h & 0x8000 ? -v : v;
}

/* In double precision; *magnitude is the sum of the blocks' magnitudes, the scale of its error. */
static inline double panel_case_dot(const struct panel_case *c, int r, int j, double *magnitude) {
    double dot = 0;
    *magnitude = 0;
    for (int b = 0; b < c->n_blocks; b++) {
        int64_t products = 0;
        for (int i = 0; i < 32; i++)
            products += (int64_t)c->w[j][32 * b + i] * c->x[r][b].q[i];
        /* The product of the scales is rounded to float, which matters when it is denormal. */
        float scale = (float)panel_half(c->w_d[j][b]) * c->x[r][b].d;
        dot += (double)products * (double)scale;
        *magnitude += fabs((double)products * (double)scale);
    }
    return dot;
}

#endif
