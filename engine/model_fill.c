/* SPDX-License-Identifier: Apache-2.0 */
/* Weights into memory: each matrix is packed by all threads, and the pages of the file that were
 * read are let go at once, so that a model is never held twice.  Every value is looked at on the
 * way, whether it moves or not: one that is not finite would turn all logits into NaN. */
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/model_load.h"

#define LOAD_THREADS_MAX 8

struct filling {
    struct moge_loader *loader;
    struct moge_threads *threads;
    atomic_int failed; /* a job whose values cannot be used, plus 1; 0: none */
};

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
    const struct moge_type_traits *from = moge_type_traits(job->stored),
                                  *to = moge_type_traits(m->type);
    size_t n = (size_t)(end - begin) * (size_t)m->n_in;
    size_t row_bytes = (size_t)(m->n_in / from->block_values) * (size_t)from->block_bytes;
    memcpy(rows, job->source + (size_t)begin * row_bytes, (size_t)(end - begin) * row_bytes);
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

/* One thread's rows of one matrix. */
static bool job_run(const struct moge_pack_job *job, int i_thread, int n_threads,
                    unsigned char *rows, float *wide) {
    const struct moge_matrix *m = job->matrix;
    const struct moge_type_traits *traits = moge_type_traits(job->stored);
    int begin, end;
    moge_threads_split(m->n_out, MOGE_PANEL_ROWS, i_thread, n_threads, &begin, &end);
    if (begin >= end)
        return true;
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

/* Pages of the file that were read once and are not needed again. */
static void source_drop(const struct moge_pack_job *job) {
    if (job->in_place)
        return;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = ((uintptr_t)job->source + page - 1) / page * page;
    uintptr_t end = ((uintptr_t)job->source + job->source_bytes) / page * page;
    if (end > begin)
        madvise((void *)begin, end - begin, MADV_DONTNEED);
}

static void fill_thread(void *arg, int i_thread, int n_threads) {
    struct filling *filling = arg;
    struct moge_loader *loader = filling->loader;
    size_t n_in_max = 0;
    uint64_t bytes_all = 0, bytes_done = 0;
    for (size_t i = 0; i < loader->n_jobs; i++) {
        if ((size_t)loader->jobs[i].matrix->n_in > n_in_max)
            n_in_max = (size_t)loader->jobs[i].matrix->n_in;
        bytes_all += loader->jobs[i].source_bytes;
    }
    unsigned char *rows = malloc(n_in_max * MOGE_PANEL_ROWS * sizeof(float) + 64);
    float *wide = malloc(n_in_max * MOGE_PANEL_ROWS * sizeof *wide + 64);
    if (!rows || !wide)
        atomic_store(&filling->failed, -1);
    for (size_t i = 0; i < loader->n_jobs; i++) {
        if (rows && wide && !job_run(&loader->jobs[i], i_thread, n_threads, rows, wide))
            atomic_store(&filling->failed, (int)i + 1);
        moge_threads_barrier(filling->threads);
        if (atomic_load(&filling->failed) != 0)
            break;
        if (i_thread == 0) {
            source_drop(&loader->jobs[i]);
            bytes_done += loader->jobs[i].source_bytes;
            if (loader->options->progress)
                loader->options->progress(loader->options->progress_arg,
                                          (double)bytes_done / (double)bytes_all);
        }
        moge_threads_barrier(
            filling->threads); /* nobody sets `failed` while another still reads it */
    }
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
    long n_cpus = sysconf(_SC_NPROCESSORS_ONLN);
    int n_threads = n_cpus < 1 ? 1 : n_cpus > LOAD_THREADS_MAX ? LOAD_THREADS_MAX : (int)n_cpus;
    int rc = moge_threads_new(&filling.threads, n_threads, loader->err);
    if (rc != 0)
        return rc;
    moge_threads_run(filling.threads, fill_thread, &filling);
    moge_threads_free(filling.threads);
    int failed = atomic_load(&filling.failed);
    if (failed < 0)
        return moge_fail(loader->err, MOGE_NOMEM, "no memory to load the model");
    if (failed > 0) {
        struct moge_str name = loader->jobs[failed - 1].name;
        return moge_fail(loader->err, MOGE_FORMAT, "tensor %.*s holds a value that is not finite",
                         (int)(name.len < 80 ? name.len : 80), name.data);
    }
    return loader->options->mlock ? memory_lock(loader) : 0;
}
