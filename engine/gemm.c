/* SPDX-License-Identifier: Apache-2.0 */
/* Two ways through a matrix.
 *
 *   quantised   for each chunk of up to ROWS_CHUNK rows: one kernel call for all panels of 8
 *               outputs.  The kernel goes through both in tiles; what it reads again, panels and
 *               the chunk's activations, is in the second-level cache.
 *   float       for each block of BLAS_OUT outputs (widened to f32 once): for each tile of
 * BLAS_ROWS rows, gathered and padded with zeros: one sgemm of always the same shape.
 *
 * A row's bits depend on neither its neighbours nor its place.  The kernels promise it; for
 * OpenBLAS the fixed shape does: blocks begin at multiples of BLAS_OUT, so that the last, shorter
 * one is the same whoever computes it, and inputs are always in the same two scratch buffers. */
#include "engine/gemm.h"

#include <cblas.h>
#include <pthread.h>
#include <string.h>

#include "moge/err.h"

#define ROWS_CHUNK 64
#define BLAS_ROWS  8
#define BLAS_OUT   32

int moge_act_init(struct moge_act *act, struct moge_arena *arena, int32_t n_rows, int32_t n_in) {
    size_t rows = (size_t)n_rows, values = (size_t)n_in, blocks = values / MOGE_QBLOCK;
    if (values != 0 && rows > SIZE_MAX / values)
        return MOGE_NOMEM;
    struct moge_act made = {.n_in = n_in};
    size_t mark = moge_arena_mark(arena);
    made.f32 = moge_arena_take(arena, rows * values, sizeof *made.f32);
    made.blocks = moge_arena_take(arena, rows * blocks, sizeof *made.blocks);
    if (!made.f32 || !made.blocks) {
        moge_arena_reset(arena, mark);
        return MOGE_NOMEM;
    }
    *act = made;
    return 0;
}

void moge_act_quantize(const struct moge_act *act, const struct moge_kernels *kernels, int32_t row,
                       int32_t first, int32_t n) {
    size_t at = (size_t)row * (size_t)act->n_in + (size_t)first;
    kernels->quantize(act->f32 + at, n, act->blocks + at / MOGE_QBLOCK);
}

static bool is_panel(enum moge_type type) {
    return type == MOGE_TYPE_Q8_0 || type == MOGE_TYPE_Q4_0;
}

static size_t float_bytes(enum moge_type type) {
    MOGE_ASSERT(type == MOGE_TYPE_F32 || type == MOGE_TYPE_F16 || type == MOGE_TYPE_BF16);
    return type == MOGE_TYPE_F32 ? 4 : 2;
}

static size_t panel_bytes(enum moge_type type, int32_t n_in) {
    size_t block = type == MOGE_TYPE_Q8_0 ? MOGE_PANEL_Q8_0_BYTES : MOGE_PANEL_Q4_0_BYTES;
    return (size_t)(n_in / MOGE_QBLOCK) * block;
}

size_t moge_matrix_bytes(enum moge_type type, int32_t n_out, int32_t n_in) {
    size_t rows = (size_t)n_out;
    if (!is_panel(type))
        return rows * (size_t)n_in * float_bytes(type);
    return (rows + MOGE_PANEL_ROWS - 1) / MOGE_PANEL_ROWS * panel_bytes(type, n_in);
}

int32_t moge_gemm_grain(enum moge_type type) {
    return is_panel(type) ? MOGE_PANEL_ROWS : BLAS_OUT;
}

size_t moge_gemm_scratch_bytes(int32_t n_in_max) {
    size_t per_column = BLAS_ROWS + BLAS_OUT;
    return ((size_t)n_in_max * per_column + BLAS_ROWS * BLAS_OUT) * sizeof(float);
}

/* n outputs of one row: where they belong, with the bias. */
static void put(const float *values, const float *bias, int32_t n, float *out) {
    for (int32_t o = 0; o < n; o++)
        out[o] = values[o] + (bias ? bias[o] : 0.0f);
}

struct product { /* the arguments of moge_gemm that stay the same in its loops */
    const struct moge_kernels *kernels;
    const struct moge_matrix *weights;
    const struct moge_act *x;
    const int32_t *rows; /* or NULL */
    int32_t out_begin, out_end;
    const float *bias; /* or NULL */
    float *out;
    size_t out_stride;
};

static size_t act_row(const struct product *p, int32_t i) {
    return (size_t)(p->rows ? p->rows[i] : i);
}

static void run_panels(const struct product *p, int32_t o, int32_t n_panels,
                       const struct moge_act_block *const *rows, int32_t n, float *const *out) {
    const struct moge_matrix *w = p->weights;
    const void *panels =
        (const uint8_t *)w->data + (size_t)(o / MOGE_PANEL_ROWS) * panel_bytes(w->type, w->n_in);
    if (w->type == MOGE_TYPE_Q8_0)
        p->kernels->panels_q8_0(panels, n_panels, w->n_in, rows, n, out);
    else
        p->kernels->panels_q4_0(panels, n_panels, w->n_in, rows, n, out);
}

/* Outputs o .. out_end of the last panel, which the matrix cuts. */
static void cut_panel(const struct product *p, int32_t o, const struct moge_act_block *const *rows,
                      int32_t n, float *const *out) {
    float values[ROWS_CHUNK][MOGE_PANEL_ROWS], *at[ROWS_CHUNK];
    for (int32_t i = 0; i < n; i++)
        at[i] = values[i];
    run_panels(p, o, 1, rows, n, at);
    for (int32_t i = 0; i < n; i++)
        memcpy(out[i] + (o - p->out_begin), values[i],
               (size_t)(p->out_end - o) * sizeof values[0][0]);
}

/* Rows first .. first + n of the list, n <= ROWS_CHUNK.  Whole panels write where their outputs
 * belong. */
static void chunk_panels(const struct product *p, int32_t first, int32_t n) {
    const struct moge_matrix *w = p->weights;
    const struct moge_act_block *rows[ROWS_CHUNK];
    float *out[ROWS_CHUNK];
    int32_t n_out = p->out_end - p->out_begin, n_panels = n_out / MOGE_PANEL_ROWS;
    MOGE_ASSERT(n >= 1 && n <= ROWS_CHUNK);
    for (int32_t i = 0; i < n; i++) {
        rows[i] = p->x->blocks + act_row(p, first + i) * (size_t)(w->n_in / MOGE_QBLOCK);
        out[i] = p->out + (size_t)(first + i) * p->out_stride + p->out_begin;
    }
    if (n_panels > 0)
        run_panels(p, p->out_begin, n_panels, rows, n, out);
    if (n_out % MOGE_PANEL_ROWS > 0)
        cut_panel(p, p->out_begin + n_panels * MOGE_PANEL_ROWS, rows, n, out);
    for (int32_t i = 0; i < n && p->bias; i++)
        p->kernels->add(out[i], p->bias + p->out_begin, n_out);
}

/* OpenBLAS's own threads would split sums and fight with the pool. */
static void blas_single_thread(void) {
    openblas_set_num_threads(1);
}

/* Outputs o .. o + n of the matrix as f32: in place, or widened into scratch. */
static const float *wide_block(const struct product *p, int32_t o, int32_t n, float *scratch) {
    const struct moge_matrix *w = p->weights;
    size_t at = (size_t)o * (size_t)w->n_in;
    if (w->type == MOGE_TYPE_F32)
        return (const float *)w->data + at;
    const uint16_t *narrow = (const uint16_t *)w->data + at;
    for (int32_t i = 0; i < n; i++, narrow += w->n_in)
        (w->type == MOGE_TYPE_F16 ? p->kernels->f16_to_f32 : p->kernels->bf16_to_f32)(
            narrow, scratch + (size_t)i * (size_t)w->n_in, w->n_in);
    return scratch;
}

static void float_blocks(const struct product *p, int32_t n_rows, float *scratch) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, blas_single_thread);
    size_t n_in = (size_t)p->weights->n_in;
    float *tile = scratch, *block = tile + BLAS_ROWS * n_in, *values = block + BLAS_OUT * n_in;
    for (int32_t o = p->out_begin; o < p->out_end; o += BLAS_OUT) {
        int32_t left = p->out_end - o, n = left < BLAS_OUT ? left : BLAS_OUT;
        const float *wide = wide_block(p, o, n, block);
        for (int32_t first = 0; first < n_rows; first += BLAS_ROWS) {
            int32_t in_tile = n_rows - first < BLAS_ROWS ? n_rows - first : BLAS_ROWS;
            for (int32_t i = 0; i < in_tile; i++)
                memcpy(tile + (size_t)i * n_in, p->x->f32 + act_row(p, first + i) * n_in,
                       n_in * sizeof *tile);
            memset(tile + (size_t)in_tile * n_in, 0,
                   (size_t)(BLAS_ROWS - in_tile) * n_in * sizeof *tile);
            cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, BLAS_ROWS, n, (int)n_in, 1.0f,
                        tile, (int)n_in, wide, (int)n_in, 0.0f, values, BLAS_OUT);
            for (int32_t i = 0; i < in_tile; i++)
                put(values + i * BLAS_OUT, p->bias ? p->bias + o : NULL, n,
                    p->out + (size_t)(first + i) * p->out_stride + o);
        }
    }
}

void moge_gemm(const struct moge_kernels *kernels, const struct moge_matrix *weights,
               const struct moge_act *x, const int32_t *rows, int32_t n_rows, int32_t out_begin,
               int32_t out_end, const float *bias, float *out, size_t out_stride, void *scratch) {
    int32_t grain = moge_gemm_grain(weights->type);
    MOGE_ASSERT(x->n_in == weights->n_in);
    MOGE_ASSERT(out_begin % grain == 0 || out_begin >= out_end);
    MOGE_ASSERT(out_end % grain == 0 || out_end == weights->n_out);
    struct product p = {.kernels = kernels,
                        .weights = weights,
                        .x = x,
                        .rows = rows,
                        .out_begin = out_begin,
                        .out_end = out_end,
                        .bias = bias,
                        .out = out,
                        .out_stride = out_stride};
    if (!is_panel(weights->type)) {
        float_blocks(&p, n_rows, scratch);
        return;
    }
    int32_t n_chunks = (n_rows + ROWS_CHUNK - 1) / ROWS_CHUNK; /* as even as can be */
    for (int32_t i = 0; i < n_chunks; i++) {
        int32_t first = n_rows * i / n_chunks;
        chunk_panels(&p, first, n_rows * (i + 1) / n_chunks - first);
    }
}
