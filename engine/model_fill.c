/* SPDX-License-Identifier: Apache-2.0 */
/* Weights into memory: several threads read matrices in pieces that the second-level cache holds
 * and pack them from there, so that a model is never held twice.  Every value is looked at on the
 * way, whether it moves or not: one that is not finite would turn all logits into NaN. */
#include <errno.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "engine/model_load.h"
#include "engine/panel_layout.h"

#define LOAD_THREADS_MAX 8
#define UNIT_BYTES       (256 << 10) /* of a matrix, about, read and packed at a time */
#define SPAN_UNITS_MAX   64          /* taken by one thread at a time */

enum { NO_MEMORY = -1, UNREADABLE = -2, CANCELLED = -3 }; /* why filling failed, beside jobs */

struct filling {
    const struct moge_loader *loader;
    int32_t n_in_max;
    size_t unit_bytes_max;
    uint64_t bytes_all;
    size_t n_units, span_units;
    atomic_size_t next; /* unit to be taken next */
    atomic_ullong bytes_done;
    atomic_int failed; /* a job whose values cannot be used, plus 1; or why; 0: it did not */
};

static size_t row_bytes(const struct moge_pack_job *job) {
    return (size_t)job->source_bytes / (size_t)job->matrix->n_out;
}

/* Rows of a unit: whole panels. */
static int32_t unit_rows(const struct moge_pack_job *job) {
    size_t n = UNIT_BYTES / row_bytes(job) / MOGE_PANEL_ROWS * MOGE_PANEL_ROWS;
    return n > MOGE_PANEL_ROWS ? (int32_t)n : MOGE_PANEL_ROWS;
}

static size_t units_of(const struct moge_pack_job *job) {
    size_t n = (size_t)unit_rows(job);
    return ((size_t)job->matrix->n_out + n - 1) / n;
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

/* What one thread works with. */
struct scratch {
    unsigned char *unit; /* rows as the file has them */
    unsigned char *rows; /* a panel of rows, or of bytes on their way */
    float *wide;
};

/* Where rows from `row` on of a packed matrix belong. */
static unsigned char *packed_at(const struct moge_matrix *m, int32_t row) {
    size_t panel = moge_matrix_bytes(m->type, MOGE_PANEL_ROWS, m->n_in);
    return (unsigned char *)(uintptr_t)m->data + (size_t)(row / MOGE_PANEL_ROWS) * panel;
}

/* n rows of the matrix's own type, to row `begin` of it.  Scales are looked at where they then
 * stand together. */
static bool rows_put(const struct moge_matrix *m, const unsigned char *rows, int32_t begin,
                     int32_t n) {
    unsigned char *target = packed_at(m, begin);
    const struct moge_type_traits *traits = moge_type_traits(m->type);
    size_t n_blocks = (size_t)n * (size_t)m->n_in / (size_t)traits->block_values;
    if (traits->block_values == 1) {
        memcpy(target, rows, n_blocks * (size_t)traits->block_bytes);
        return stored_finite(m->type, rows, n_blocks);
    }
    moge_panels_pack(m->type, rows, n, m->n_in, target);
    return moge_panels_finite(m->type, target, m->n_in,
                              (n + MOGE_PANEL_ROWS - 1) / MOGE_PANEL_ROWS);
}

/* n rows (at most a panel of them) by way of f32, to row `begin` of the matrix. */
static bool rows_convert(const struct moge_pack_job *job, const unsigned char *source,
                         int32_t begin, int32_t n, const struct scratch *scratch) {
    const struct moge_matrix *m = job->matrix;
    const struct moge_type_traits *from = moge_type_traits(moge_type_plain(job->stored)),
                                  *to = moge_type_traits(m->type);
    size_t n_values = (size_t)n * (size_t)m->n_in;
    if (moge_type_is_panel(job->stored)) {
        moge_panel_unpack(moge_type_plain(job->stored), source, m->n_in, scratch->rows);
        source = scratch->rows;
    }
    bool is_wide = m->type == MOGE_TYPE_F32;
    float *wide = is_wide ? (void *)packed_at(m, begin) : scratch->wide;
    from->to_f32(source, wide, n_values);
    bool finite = values_finite(wide, n_values);
    if (is_wide || !finite)
        return finite;
    to->from_f32(wide, scratch->rows, n_values); /* a scale may be beyond f16 */
    return rows_put(m, scratch->rows, begin, n);
}

/* Rows begin..end of one matrix, begin a multiple of MOGE_PANEL_ROWS, from `source`, a copy
 * of them. */
static bool job_run(const struct moge_pack_job *job, const unsigned char *source, int32_t begin,
                    int32_t end, const struct scratch *scratch) {
    const struct moge_matrix *m = job->matrix;
    bool is_panel = moge_type_is_panel(job->stored), finite = true;
    int32_t n = end - begin;
    size_t bytes = (size_t)n * row_bytes(job);
    if (moge_type_plain(job->stored) != m->type) {
        for (int32_t row = begin; row < end && finite; row += MOGE_PANEL_ROWS)
            finite =
                rows_convert(job, source + (size_t)(row - begin) * row_bytes(job), row,
                             end - row < MOGE_PANEL_ROWS ? end - row : MOGE_PANEL_ROWS, scratch);
        return finite;
    }
    if (!job->in_place && !is_panel)
        return rows_put(m, source, begin, n);
    if (!job->in_place)
        memcpy(packed_at(m, begin), source, bytes);
    return is_panel ? moge_panels_finite(m->type, source, m->n_in, n / MOGE_PANEL_ROWS)
                    : stored_finite(m->type, source,
                                    bytes / (size_t)moge_type_traits(job->stored)->block_bytes);
}

/* Maps the pages of a matrix that is used where it lies, many at a time: each would otherwise be a
 * fault of its own.  False when the disk does not give them, which would be a signal later. */
static bool pages_map(const unsigned char *begin, size_t bytes) {
#ifdef MADV_POPULATE_READ
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = (uintptr_t)begin / page * page;
    uintptr_t last = ((uintptr_t)begin + bytes + page - 1) / page * page;
    return madvise((void *)first, last - first, MADV_POPULATE_READ) == 0 || errno != EFAULT;
#else
    return bytes == 0 || begin != NULL;
#endif
}

/* Reads rows begin..end into the unit.  Those of a matrix that is used where it lies are mapped
 * too, but looked at in the copy: what a page costs when it is first touched is then paid by
 * whoever computes with it. */
static bool source_take(const struct filling *filling, const struct moge_pack_job *job,
                        int32_t begin, int32_t end, const struct scratch *scratch) {
    const unsigned char *source = job->source + (size_t)begin * row_bytes(job);
    size_t bytes = (size_t)(end - begin) * row_bytes(job);
    if (moge_gguf_read(filling->loader->gguf, source, bytes, scratch->unit, NULL) != 0)
        return false;
    return !job->in_place || pages_map(source, bytes);
}

/* False: nobody wants the model any more. */
static bool progress_tell(const struct moge_loader *loader, double done) {
    const struct moge_model_options *options = loader->options;
    return !options->progress || options->progress(options->progress_arg, done);
}

/* Unit `unit` of job i, counted from the job's first. */
static void unit_run(struct filling *filling, size_t i, size_t unit, bool reports,
                     const struct scratch *scratch) {
    const struct moge_loader *loader = filling->loader;
    const struct moge_pack_job *job = &loader->jobs[i];
    int32_t n = unit_rows(job), begin = (int32_t)unit * n;
    int32_t left = job->matrix->n_out - begin, end = begin + (left < n ? left : n);
    bool readable = source_take(filling, job, begin, end, scratch);
    if (!readable || !job_run(job, scratch->unit, begin, end, scratch)) {
        atomic_store(&filling->failed, readable ? (int)i + 1 : UNREADABLE);
        return;
    }
    uint64_t bytes = (uint64_t)(end - begin) * row_bytes(job);
    uint64_t done = atomic_fetch_add(&filling->bytes_done, bytes) + bytes;
    if (reports && !progress_tell(loader, (double)done / (double)filling->bytes_all))
        atomic_store(&filling->failed, CANCELLED);
}

/* Spans of units are taken by whoever is free, in order: a thread that the machine has no time for
 * delays nobody.  They are long because two threads that write to one huge page for the first time
 * both clear it, and one of them in vain. */
static void units_run(struct filling *filling, bool reports, const struct scratch *scratch) {
    const struct moge_loader *loader = filling->loader;
    size_t i = 0, first_unit = 0, unit; /* the job that the unit is of, and its first */
    while ((unit = atomic_fetch_add(&filling->next, filling->span_units)) < filling->n_units) {
        size_t left = filling->n_units - unit;
        size_t end = unit + (left < filling->span_units ? left : filling->span_units);
        for (; unit < end && atomic_load(&filling->failed) == 0; unit++) {
            while (unit - first_unit >= units_of(&loader->jobs[i]))
                first_unit += units_of(&loader->jobs[i++]);
            unit_run(filling, i, unit - first_unit, reports, scratch);
        }
    }
}

static void fill_thread(void *arg, int i_thread, int n_threads) {
    struct filling *filling = arg;
    size_t values = (size_t)filling->n_in_max * MOGE_PANEL_ROWS;
    struct scratch scratch = {malloc(filling->unit_bytes_max), malloc(values * sizeof(float)),
                              malloc(values * sizeof(float))};
    (void)n_threads;
    if (scratch.unit && scratch.rows && scratch.wide)
        units_run(filling, i_thread == 0, &scratch);
    else
        atomic_store(&filling->failed, NO_MEMORY);
    free(scratch.unit);
    free(scratch.rows);
    free(scratch.wide);
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
    if (locked)
        return 0;
    int why = errno;
    struct rlimit limit = {0};
    bool limited = getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
                   limit.rlim_cur < loader->weight_bytes;
    return limited
               ? moge_fail(loader->err, MOGE_IO,
                           "cannot lock %.1f MiB of weights in memory: the limit is %.1f MiB; "
                           "raise it (LimitMEMLOCK= of the unit, ulimit -l) or leave mlock off",
                           (double)loader->weight_bytes / 1048576.0,
                           (double)limit.rlim_cur / 1048576.0)
               : moge_fail(loader->err, MOGE_IO, "cannot lock %.1f MiB of weights in memory: %s",
                           (double)loader->weight_bytes / 1048576.0, strerror(why));
}

int moge_model_fill(struct moge_loader *loader) {
    struct filling filling = {.loader = loader};
    struct moge_threads *threads = NULL;
    long n_cpus = sysconf(_SC_NPROCESSORS_ONLN);
    int n_threads = n_cpus < 1 ? 1 : n_cpus > LOAD_THREADS_MAX ? LOAD_THREADS_MAX : (int)n_cpus;
    for (size_t i = 0; i < loader->n_jobs; i++) {
        const struct moge_pack_job *job = &loader->jobs[i];
        filling.bytes_all += job->source_bytes;
        filling.n_units += units_of(job);
        size_t unit = (size_t)unit_rows(job) * row_bytes(job);
        if (unit > filling.unit_bytes_max)
            filling.unit_bytes_max = unit;
        if (job->matrix->n_in > filling.n_in_max)
            filling.n_in_max = job->matrix->n_in;
    }
    size_t share = filling.n_units / (8 * (size_t)n_threads); /* small models too are shared out */
    filling.span_units = share < 1 ? 1 : share < SPAN_UNITS_MAX ? share : SPAN_UNITS_MAX;
    int rc = moge_threads_new(&threads, n_threads, loader->err);
    if (rc != 0)
        return rc;
    moge_threads_run(threads, fill_thread, &filling);
    moge_threads_free(threads);
    int failed = atomic_load(&filling.failed);
    if (failed == 0 && !progress_tell(loader, 1))
        failed = CANCELLED;
    if (failed == UNREADABLE)
        return moge_fail(loader->err, MOGE_IO, "the file cannot be read to its end");
    if (failed == CANCELLED)
        return moge_fail(loader->err, MOGE_CANCELLED, "loading was given up");
    if (failed == NO_MEMORY)
        return moge_fail(loader->err, MOGE_NOMEM, "no memory to load the model");
    if (failed > 0) {
        struct moge_str name = loader->jobs[failed - 1].name;
        return moge_fail(loader->err, MOGE_FORMAT, "tensor %.*s holds a value that is not finite",
                         (int)(name.len < 80 ? name.len : 80), name.data);
    }
    return loader->options->mlock ? memory_lock(loader) : 0;
}
