/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/machine_limits.h"

#include <string.h>
#include <sys/mman.h>

#include "tools/clock.h"
#include "tools/quantile.h"

#define BUFFER_BYTES ((size_t)256 << 20) /* far more than a share of any cache */
#define RUN_SECONDS  0.004               /* of an arithmetic probe, at least */

struct run {
    const struct moge_limits_probe *probe;
    enum moge_limit limit;
    int64_t done[MOGE_THREADS_MAX];  /* multiply-adds or bytes, by thread */
    uint64_t seen[MOGE_THREADS_MAX]; /* what reading found, so that it is not left out */
};

/* The part of the buffer that belongs to one thread. */
static char *part_of(const struct moge_limits_probe *probe, int i_thread, int n_threads,
                     size_t *n) {
    int begin, end;
    moge_threads_split((int)(BUFFER_BYTES / MOGE_PEAK_READ), 1, i_thread, n_threads, &begin, &end);
    *n = (size_t)(end - begin) * MOGE_PEAK_READ;
    return probe->data + (size_t)begin * MOGE_PEAK_READ;
}

static void touch_run(void *arg, int i_thread, int n_threads) {
    size_t n;
    char *part = part_of(arg, i_thread, n_threads, &n);
    memset(part, 1, n);
}

static void limit_run(void *arg, int i_thread, int n_threads) {
    struct run *run = arg;
    const struct moge_peak *peak = &run->probe->peak;
    int64_t n = run->probe->n[run->limit];
    int64_t (*const macs[])(int64_t) = {[MOGE_LIMIT_I8] = peak->macs_i8,
                                        [MOGE_LIMIT_I4] = peak->macs_i4,
                                        [MOGE_LIMIT_F32] = peak->macs_f32};
    if (run->limit == MOGE_LIMIT_READ) {
        size_t bytes;
        const char *part = part_of(run->probe, i_thread, n_threads, &bytes);
        run->seen[i_thread] = peak->read(part, bytes);
        run->done[i_thread] = (int64_t)bytes;
    } else {
        run->done[i_thread] = macs[run->limit](n);
    }
}

/* Units a nanosecond of the whole pool, in one run. */
static double rate(struct moge_limits_probe *probe, enum moge_limit limit, double *seconds) {
    struct run run = {.probe = probe, .limit = limit};
    double start = moge_clock_s(), done = 0;
    moge_threads_run(probe->threads, limit_run, &run);
    *seconds = moge_clock_s() - start;
    for (int i = 0; i < moge_threads_count(probe->threads); i++)
        done += (double)run.done[i];
    return done / *seconds * 1e-9;
}

int moge_limits_open(struct moge_limits_probe *probe, struct moge_threads *threads,
                     enum moge_isa isa, struct moge_err *err) {
    *probe = (struct moge_limits_probe){.threads = threads};
    moge_peak_fill(&probe->peak, isa);
    void *data =
        mmap(NULL, BUFFER_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED)
        return moge_fail(err, MOGE_NOMEM, "no memory to measure the machine's read bandwidth");
    madvise(data, BUFFER_BYTES,
            MADV_HUGEPAGE); /* a hint: without it the figure is a little lower */
    probe->data = data;
    moge_threads_run(threads, touch_run, probe);
    for (enum moge_limit limit = MOGE_LIMIT_I8; limit < MOGE_LIMITS; limit++) {
        double seconds;
        probe->n[limit] = 32;
        do {
            probe->n[limit] *= 2;
            rate(probe, limit, &seconds);
        } while (seconds < RUN_SECONDS);
    }
    return 0;
}

void moge_limits_close(struct moge_limits_probe *probe) {
    if (probe->data)
        munmap(probe->data, BUFFER_BYTES);
    probe->data = NULL;
}

void moge_limits_take(struct moge_limits_probe *probe) {
    double seconds;
    int32_t at = probe->n_taken++ % MOGE_LIMITS_TAKEN_MAX;
    for (enum moge_limit limit = 0; limit < MOGE_LIMITS; limit++)
        probe->taken[limit][at] = rate(probe, limit, &seconds);
}

struct moge_machine_limits moge_limits_median(struct moge_limits_probe *probe) {
    struct moge_machine_limits limits;
    int32_t n = probe->n_taken < MOGE_LIMITS_TAKEN_MAX ? probe->n_taken : MOGE_LIMITS_TAKEN_MAX;
    MOGE_ASSERT(n > 0);
    for (enum moge_limit limit = 0; limit < MOGE_LIMITS; limit++) {
        moge_values_sort(probe->taken[limit], (size_t)n);
        limits.of[limit] = moge_quantile(probe->taken[limit], (size_t)n, 0.5);
    }
    probe->n_taken = 0;
    return limits;
}
