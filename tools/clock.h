/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOGE_CLOCK_H
#define MOGE_CLOCK_H

#include <stdint.h>
#include <time.h>

/* The monotonic clock. */
static inline int64_t moge_clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline double moge_clock_s(void) {
    return (double)moge_clock_ns() * 1e-9;
}

#endif
