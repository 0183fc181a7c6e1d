/* SPDX-License-Identifier: Apache-2.0 */
/* What the machine can do at one ISA level: loops of nothing but the instructions that products are
 * made of, on registers, in enough independent chains to keep every unit busy.  For measurements
 * only; no computation uses them. */
#ifndef MOGE_PEAK_H
#define MOGE_PEAK_H

#include <stddef.h>
#include <stdint.h>
#include "engine/kernels/kernels.h"

struct moge_peak {
    /* Each runs its loop n times and returns how many multiply-adds that was. */
    int64_t (*macs_i8)(int64_t n); /* bytes by bytes into 32-bit sums: what Q8_0 is made of */
    int64_t (*macs_i4)(int64_t n); /* the same into 16-bit sums, enough for 4-bit weights */
    int64_t (*macs_f32)(int64_t n);
    /* Reads n bytes (a multiple of MOGE_PEAK_READ) in several streams side by side; `data` is
     * 64-byte aligned.  The result depends on every word, so that none can be skipped. */
    uint64_t (*read)(const void *data, size_t n);
};

#define MOGE_PEAK_STREAMS 4
#define MOGE_PEAK_READ    ((size_t)MOGE_PEAK_STREAMS * 256)

/* The probes of a level that this CPU runs. */
void moge_peak_fill(struct moge_peak *peak, enum moge_isa isa);

/* What each file exports, for peak.c only: overwrites the slots that it has. */
void moge_peak_init_avx2(struct moge_peak *peak);
void moge_peak_init_avx512(struct moge_peak *peak);
void moge_peak_init_vnni(struct moge_peak *peak);

#endif
