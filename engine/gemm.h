/* SPDX-License-Identifier: Apache-2.0 */
/* Weight matrix times activation rows.  The only file that sees <cblas.h> is gemm.c.
 *
 * Quantised weights are kept as panels of MOGE_PANEL_ROWS interleaved rows and go through our
 * kernels.  Float weights go through OpenBLAS in tiles of one fixed number of rows (padded with
 * zeros) and fixed blocks of outputs, so that a row meets the same code path whatever shares the
 * batch.  Called inside a parallel run: each thread asks for its own range of outputs. */
#ifndef MOGE_GEMM_H
#define MOGE_GEMM_H

#include <stddef.h>
#include <stdint.h>
#include "engine/kernels/kernels.h"
#include "moge/arena.h"
#include "moge/quant.h"

struct moge_matrix {
    enum moge_type type;
    int32_t n_out, n_in; /* n_in a multiple of 32 when quantised */
    const void *data;    /* float types: rows as stored; quantised: ceil(n_out / 8) panels */
};

/* Rows of activations, [n_rows, n_in], in the forms that matrices want. */
struct moge_act {
    int32_t n_in;
    float *f32;                    /* [n_rows, n_in] */
    struct moge_act_block *blocks; /* [n_rows, n_in / 32] valid after moge_act_quantize */
};

/* Takes storage for n_rows rows from the arena. */
int moge_act_init(struct moge_act *act, struct moge_arena *arena, int32_t n_rows, int32_t n_in);

/* Quantises n values of a row from act->f32, beginning with column `first`; both multiples of 32.
 */
void moge_act_quantize(const struct moge_act *act, const struct moge_kernels *kernels, int32_t row,
                       int32_t first, int32_t n);

/* Bytes of packed storage for an n_out x n_in matrix of this type (float types: as stored). */
size_t moge_matrix_bytes(enum moge_type type, int32_t n_out, int32_t n_in);

/* Outputs are computed in units of this many; ranges handed to moge_gemm begin at a multiple of it.
 */
int32_t moge_gemm_grain(enum moge_type type);

/* Bytes of per-thread scratch that moge_gemm needs for any matrix with n_in up to n_in_max. */
size_t moge_gemm_scratch_bytes(int32_t n_in_max);

/* out[i * out_stride + o] = dot(weights[o], x[rows ? rows[i] : i]) + (bias ? bias[o] : 0), for i <
 * n_rows and out_begin <= o < out_end.  out_begin is a multiple of moge_gemm_grain, out_end too or
 * n_out.  scratch: moge_gemm_scratch_bytes, one per thread. */
void moge_gemm(const struct moge_kernels *kernels, const struct moge_matrix *weights,
               const struct moge_act *x, const int32_t *rows, int32_t n_rows, int32_t out_begin,
               int32_t out_end, const float *bias, float *out, size_t out_stride, void *scratch);

#endif
