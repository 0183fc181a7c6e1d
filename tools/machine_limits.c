/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/machine_limits.h"

#include <string.h>
#include <sys/mman.h>

#include "engine/kernels/peak.h"
#include "tools/clock.h"

#define BUFFER_BYTES ((size_t)256 << 20) /* far more than a share of any cache */
#define RUNS         8
#define RUN_SECONDS  0.01 /* of an arithmetic probe */

struct probe {
    const struct moge_peak *peak;
    int64_t (*macs)(int64_t n); /* NULL: read */
    int64_t n;
    char *data;
    int64_t done[MOGE_THREADS_MAX];  /* multiply-adds or bytes, by thread */
    uint64_t seen[MOGE_THREADS_MAX]; /* what reading found, so that it is not left out */
};

/* The part of the buffer that belongs to one thread. */
static char *part_of(const struct probe *probe, int i_thread, int n_threads, size_t *n) {
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

static void probe_run(void *arg, int i_thread, int n_threads) {
    struct probe *probe = arg;
    if (probe->macs) {
        probe->done[i_thread] = probe->macs(probe->n);
    } else {
        size_t n;
        const char *part = part_of(probe, i_thread, n_threads, &n);
        probe->seen[i_thread] += probe->peak->read(part, n);
        probe->done[i_thread] = (int64_t)n;
    }
}

/* Units a nanosecond of the whole pool, in one run. */
static double rate(struct probe *probe, struct moge_threads *threads, double *seconds) {
    double start = moge_clock_s();
    moge_threads_run(threads, probe_run, probe);
    *seconds = moge_clock_s() - start;
    double done = 0;
    for (int i = 0; i < moge_threads_count(threads); i++)
        done += (double)probe->done[i];
    return done / *seconds * 1e-9;
}

static double best_rate(struct probe *probe, struct moge_threads *threads,
                        int64_t (*macs)(int64_t n)) {
    double seconds = 0, best = 0;
    probe->macs = macs;
    for (probe->n = 64; macs && probe->n < INT64_MAX / 4; probe->n *= 2) {
        rate(probe, threads, &seconds);
        if (seconds >= RUN_SECONDS)
            break;
    }
    for (int i = 0; i < RUNS; i++) {
        double now = rate(probe, threads, &seconds);
        best = now > best ? now : best;
    }
    return best;
}

int moge_machine_limits_measure(struct moge_machine_limits *out, struct moge_threads *threads,
                                enum moge_isa isa, struct moge_err *err) {
    struct moge_peak peak;
    moge_peak_fill(&peak, isa);
    struct probe probe = {.peak = &peak};
    void *data =
        mmap(NULL, BUFFER_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED)
        return moge_fail(err, MOGE_NOMEM, "no memory to measure the machine's read bandwidth");
    madvise(data, BUFFER_BYTES,
            MADV_HUGEPAGE); /* a hint: without it the figure is a little lower */
    probe.data = data;
    moge_threads_run(threads, touch_run, &probe);
    out->read_gb_s = best_rate(&probe, threads, NULL);
    munmap(data, BUFFER_BYTES);
    out->i8_gmac_s = best_rate(&probe, threads, peak.macs_i8);
    out->i4_gmac_s =
        peak.macs_i4 == peak.macs_i8 ? out->i8_gmac_s : best_rate(&probe, threads, peak.macs_i4);
    out->f32_gmac_s = best_rate(&probe, threads, peak.macs_f32);
    return 0;
}
