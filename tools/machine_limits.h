/* SPDX-License-Identifier: Apache-2.0 */
/* What this machine can do: the yardstick of every bench.  On a shared machine that changes from
 * one moment to the next, so limits are probed in turns with what is held against them, and both
 * are medians of the same minute. */
#ifndef MOGE_MACHINE_LIMITS_H
#define MOGE_MACHINE_LIMITS_H

#include "engine/kernels/kernels.h"
#include "engine/kernels/peak.h"
#include "moge/err.h"
#include "moge/threads.h"

enum moge_limit {
    MOGE_LIMIT_READ, /* GB/s from memory: several streams a thread, huge pages where they are had */
    MOGE_LIMIT_I8,   /* GMAC/s, bytes by bytes into 32-bit sums: the peak for Q8_0 */
    MOGE_LIMIT_I4,   /* into 16-bit sums where that is faster: the peak for Q4_0 */
    MOGE_LIMIT_F32,  /* float multiply-adds: matrices of floats, and attention */
    MOGE_LIMITS
};

/* Of all threads of the pool together. */
struct moge_machine_limits {
    double of[MOGE_LIMITS];
};

#define MOGE_LIMITS_TAKEN_MAX 256

struct moge_limits_probe {
    struct moge_threads *threads;
    struct moge_peak peak;
    int64_t n[MOGE_LIMITS]; /* loops of an arithmetic probe */
    char *data;             /* read by the first */
    double taken[MOGE_LIMITS][MOGE_LIMITS_TAKEN_MAX];
    int32_t n_taken;
};

/* With the instructions of one level, which this CPU must run.  Holds 256 MB until it is closed. */
int moge_limits_open(struct moge_limits_probe *probe, struct moge_threads *threads,
                     enum moge_isa isa, struct moge_err *err);
void moge_limits_close(struct moge_limits_probe *probe);

/* One short run of each, some 20 ms together. */
void moge_limits_take(struct moge_limits_probe *probe);

/* The median of what was taken since the last call, at least one. */
struct moge_machine_limits moge_limits_median(struct moge_limits_probe *probe);

#endif
