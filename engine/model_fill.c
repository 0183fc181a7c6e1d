/* SPDX-License-Identifier: Apache-2.0 */
/* Weights into memory: matrices are packed by several threads, and the pages of the file that were
 * read are let go at once, so that a model is never held twice.  Every value is looked at on the
 * way, whether it moves or not: one that is not finite would turn all logits into NaN. */
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/model_load.h"
#include "engine/panel_layout.h"

#define LOAD_THREADS_MAX 8
#define UNIT_ROWS        256 /* of a matrix, packed at a time; a multiple of MOGE_PANEL_ROWS */

struct filling {
    const struct moge_loader *loader;
    int32_t n_in_max;
    uint64_t bytes_all;
    atomic_size_t next; /* unit to be taken next */
    atomic_ullong bytes_done;
    atomic_int failed; /* a job whose values cannot be used, plus 1; -1: no memory; 0: none */
};

static size_t units_of(const struct moge_pack_job *job) {
    return ((size_t)job->matrix->n_out + UNIT_ROWS - 1) / UNIT_ROWS;
}

static size_t row_bytes(const struct moge_pack_job *job) {
    return (size_t)job->source_bytes / (size_t)job->matrix->n_out;
}

/* n_blocks blocks as the file has them: scales of quantised ones, values of the others. */
static bool stored_finite(enum moge_type type, const unsigned char *blocks, size_t n_blocks) {
    size_t step = (size_t)moge_type_traits((uint32_t)type)->block_bytes;
    size_t last = type == MOGE_TYPE_F32 ? 2 : 0; /* the half with the exponent */
    unsigned mask = type == MOGE_TYPE_F32 || type == MOGE_TYPE_BF16 ? 0x7f80 : 0x7c00;
    bool finite = true;
    for (size_t b = 0; b < n_blocks; b++) {
        uint16_t d; /* a quantised block begins with its scale */
        memcpy(&d, blocks + b * step + last, sizeof d);
        finite &= (d & mask) != mask;
    }
    return finite;
}

static bool values_finite(const float *values, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!isfinite(values[i]))
            return false;
    return true;
}

/* Rows begin..end (at most a panel of them) by way of f32. */
static bool rows_convert(const struct moge_pack_job *job, int32_t begin, int32_t end,
                         unsigned char *rows, float *wide) {
    const struct moge_matrix *m = job->matrix;
    const struct moge_type_traits *from = moge_type_traits(moge_type_plain(job->stored)),
                                  *to = moge_type_traits(m->type);
    size_t n = (size_t)(end - begin) * (size_t)m->n_in, stored = row_bytes(job);
    if (moge_type_is_panel(job->stored))
        moge_panel_unpack(moge_type_plain(job->stored), job->source + (size_t)begin * stored,
                          m->n_in, rows);
    else
        memcpy(rows, job->source + (size_t)begin * stored, (size_t)(end - begin) * stored);
    from->to_f32(rows, wide, n);
    if (!values_finite(wide, n))
        return false;
    unsigned char *target = (unsigned char *)(uintptr_t)m->data;
    if (m->type == MOGE_TYPE_F32) {
        memcpy(target + (size_t)begin * (size_t)m->n_in * sizeof *wide, wide, n * sizeof *wide);
        return true;
    }
    to->from_f32(wide, rows, n);
    if (!stored_finite(m->type, rows, n / (size_t)to->block_values)) /* a scale beyond f16 */
        return false;
    size_t panel = moge_matrix_bytes(m->type, MOGE_PANEL_ROWS, m->n_in);
    moge_matrix_pack(m->type, rows, end - begin, m->n_in, 0, end - begin,
                     target + (size_t)(begin / MOGE_PANEL_ROWS) * panel);
    return true;
}

/* Rows begin..end of a matrix that is stored in panels and computed with as such. */
static bool panels_take(const struct moge_pack_job *job, int32_t begin, int32_t end) {
    const struct moge_matrix *m = job->matrix;
    size_t at = (size_t)begin * row_bytes(job), bytes = (size_t)(end - begin) * row_bytes(job);
    if (!job->in_place)
        memcpy((unsigned char *)(uintptr_t)m->data + at, job->source + at, bytes);
    return moge_panels_finite(m->type, job->source + at, m->n_in, (end - begin) / MOGE_PANEL_ROWS);
}

/* Rows begin..end of one matrix, begin a multiple of MOGE_PANEL_ROWS. */
static bool job_run(const struct moge_pack_job *job, int32_t begin, int32_t end,
                    unsigned char *rows, float *wide) {
    const struct moge_matrix *m = job->matrix;
    const struct moge_type_traits *traits = moge_type_traits(job->stored);
    if (moge_type_is_panel(job->stored) && moge_type_plain(job->stored) == m->type)
        return panels_take(job, begin, end);
    if (job->stored == m->type) {
        size_t per_row = (size_t)(m->n_in / traits->block_values);
        const unsigned char *first =
            job->source + (size_t)begin * per_row * (size_t)traits->block_bytes;
        if (!stored_finite(m->type, first, (size_t)(end - begin) * per_row))
            return false;
        if (!job->in_place)
            moge_matrix_pack(m->type, job->source, m->n_out, m->n_in, begin, end,
                             (void *)(uintptr_t)m->data);
        return true;
    }
    for (int32_t row = begin; row < end; row += MOGE_PANEL_ROWS)
        if (!rows_convert(job, row, end - row < MOGE_PANEL_ROWS ? end : row + MOGE_PANEL_ROWS, rows,
                          wide))
            return false;
    return true;
}

/* Whole pages of the file that were read once and are not needed again. */
static void source_drop(const struct moge_pack_job *job, int32_t begin, int32_t end) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), source = (uintptr_t)job->source;
    uintptr_t first = (source + (size_t)begin * row_bytes(job) + page - 1) / page * page;
    uintptr_t last = (source + (size_t)end * row_bytes(job)) / page * page;
    if (!job->in_place && last > first)
        madvise((void *)first, last - first, MADV_DONTNEED);
}

/* Units are taken by whoever is free, in order: a thread that the machine has no time for delays
 * nobody. */
static void units_run(struct filling *filling, bool reports, unsigned char *rows, float *wide) {
    const struct moge_loader *loader = filling->loader;
    size_t i = 0, first_unit = 0; /* the job that the unit is of, and its first */
    while (atomic_load(&filling->failed) == 0) {
        size_t unit = atomic_fetch_add(&filling->next, 1);
        while (i < loader->n_jobs && unit - first_unit >= units_of(&loader->jobs[i]))
            first_unit += units_of(&loader->jobs[i++]);
        if (i == loader->n_jobs)
            return;
        const struct moge_pack_job *job = &loader->jobs[i];
        int32_t begin = (int32_t)(unit - first_unit) * UNIT_ROWS, left = job->matrix->n_out - begin;
        int32_t end = begin + (left < UNIT_ROWS ? left : UNIT_ROWS);
        if (!job_run(job, begin, end, rows, wide)) {
            atomic_store(&filling->failed, (int)i + 1);
            return;
        }
        source_drop(job, begin, end);
        uint64_t bytes = (uint64_t)(end - begin) * row_bytes(job);
        uint64_t done = atomic_fetch_add(&filling->bytes_done, bytes) + bytes;
        if (reports && loader->options->progress)
            loader->options->progress(loader->options->progress_arg,
                                      (double)done / (double)filling->bytes_all);
    }
}

static void fill_thread(void *arg, int i_thread, int n_threads) {
    struct filling *filling = arg;
    size_t values = (size_t)filling->n_in_max * MOGE_PANEL_ROWS;
    unsigned char *rows = malloc(values * sizeof(float));
    float *wide = malloc(values * sizeof *wide);
    (void)n_threads;
    if (rows && wide)
        units_run(filling, i_thread == 0, rows, wide);
    else
        atomic_store(&filling->failed, -1);
    free(rows);
    free(wide);
}

/* Locks what is computed from: the arena, and matrices in the mapping. */
static int memory_lock(const struct moge_loader *loader) {
    const struct moge_arena *weights = &loader->model->weights;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    bool locked = mlock(weights->base, weights->used_bytes) == 0;
    for (size_t i = 0; i < loader->n_jobs && locked; i++) {
        const struct moge_pack_job *job = &loader->jobs[i];
        uintptr_t begin = (uintptr_t)job->source / page * page;
        if (job->in_place)
            locked = mlock((void *)begin, (uintptr_t)job->source + job->source_bytes - begin) == 0;
    }
    if (!locked)
        return moge_fail(loader->err, MOGE_IO,
                         "cannot lock %llu bytes of weights in memory: raise LimitMEMLOCK",
                         (unsigned long long)loader->weight_bytes);
    return 0;
}

int moge_model_fill(struct moge_loader *loader) {
    struct filling filling = {.loader = loader};
    struct moge_threads *threads = NULL;
    long n_cpus = sysconf(_SC_NPROCESSORS_ONLN);
    int n_threads = n_cpus < 1 ? 1 : n_cpus > LOAD_THREADS_MAX ? LOAD_THREADS_MAX : (int)n_cpus;
    for (size_t i = 0; i < loader->n_jobs; i++) {
        const struct moge_pack_job *job = &loader->jobs[i];
        filling.bytes_all += job->source_bytes;
        if (job->matrix->n_in > filling.n_in_max)
            filling.n_in_max = job->matrix->n_in;
    }
    int rc = moge_threads_new(&threads, n_threads, loader->err);
    if (rc != 0)
        return rc;
    moge_threads_run(threads, fill_thread, &filling);
    moge_threads_free(threads);
    int failed = atomic_load(&filling.failed);
    if (failed < 0)
        return moge_fail(loader->err, MOGE_NOMEM, "no memory to load the model");
    if (failed > 0) {
        struct moge_str name = loader->jobs[failed - 1].name;
        return moge_fail(loader->err, MOGE_FORMAT, "tensor %.*s holds a value that is not finite",
                         (int)(name.len < 80 ? name.len : 80), name.data);
    }
    if (loader->options->progress)
        loader->options->progress(loader->options->progress_arg, 1);
    return loader->options->mlock ? memory_lock(loader) : 0;
}
