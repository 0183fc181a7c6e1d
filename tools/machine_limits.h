/* SPDX-License-Identifier: Apache-2.0 */
/* What this machine can do at best, measured in about a second: the yardstick of every bench. */
#ifndef MOGE_MACHINE_LIMITS_H
#define MOGE_MACHINE_LIMITS_H

#include "engine/kernels/kernels.h"
#include "moge/err.h"
#include "moge/threads.h"

/* Of all threads of the pool together; the best of several short runs, since other work on the
 * machine can only lower a figure. */
struct moge_machine_limits {
    double read_gb_s;  /* from memory: several streams a thread, huge pages where they are had */
    double i8_gmac_s;  /* bytes by bytes into 32-bit sums: the peak for Q8_0 */
    double i4_gmac_s;  /* into 16-bit sums where that is faster: the peak for Q4_0 */
    double f32_gmac_s; /* float multiply-adds: matrices of floats, and attention */
};

/* With the instructions of one level, which this CPU must run.  Takes 256 MB for its run. */
int moge_machine_limits_measure(struct moge_machine_limits *out, struct moge_threads *threads,
                                enum moge_isa isa, struct moge_err *err);

#endif
