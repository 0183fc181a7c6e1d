/* SPDX-License-Identifier: Apache-2.0 */
/* The loops of peak.h for one register width.  A level includes <immintrin.h> and defines
 *
 *      PEAK_INT, PEAK_FLOAT   its vectors of integers and floats
 *      PEAK(op)               the name of its instruction, as _mm256_<op>
 *      PEAK_DOT               if it has one: the instruction that adds products of bytes to 32-bit
 *                             sums; for 4-bit weights nothing is faster then
 *      CHAINS                 independent sums: as many as its registers hold beside the operands
 *
 * and gets peak_fill. */
#ifndef MOGE_PEAK_BODY_H
#define MOGE_PEAK_BODY_H

#include "engine/kernels/peak.h"

#ifdef CHAINS

/* Forces the value into a register and makes it unknown: the product cannot leave the loop, and the
 * chains stay apart. */
#define PIN(x) __asm__ volatile("" : "+v"(x))
/* Unrolled, so that the sums are registers. */
#define EACH_CHAIN _Pragma("GCC unroll 16") for (int c = 0; c < CHAINS; c++)

/* Defines a probe: n times, in every chain, sum = step(sum, w, x), which is so many multiply-adds.
 */
#define MACS(name, type, zero, one, macs, step)                                                    \
    static int64_t name(int64_t n) {                                                               \
        type sums[CHAINS], w = (one), x = w;                                                       \
        EACH_CHAIN sums[c] = (zero);                                                               \
        for (int64_t i = 0; i < n; i++)                                                            \
            EACH_CHAIN {                                                                           \
                PIN(w);                                                                            \
                sums[c] = step(sums[c], w, x);                                                     \
                PIN(sums[c]);                                                                      \
            }                                                                                      \
        return n * CHAINS * (int64_t)(macs);                                                       \
    }

#define MACS_INT(name, step)                                                                       \
    MACS(name, PEAK_INT, PEAK(set1_epi8)(0), PEAK(set1_epi8)(1), sizeof(PEAK_INT), step)

#ifdef PEAK_DOT
MACS_INT(macs_i8, PEAK_DOT)
static int64_t (*const macs_i4)(int64_t n) = macs_i8;
#else
static inline PEAK_INT step_i8(PEAK_INT sum, PEAK_INT w, PEAK_INT x) {
    PEAK_INT pairs = PEAK(maddubs_epi16)(w, x);
    return PEAK(add_epi32)(sum, PEAK(madd_epi16)(pairs, PEAK(set1_epi16)(1)));
}
MACS_INT(macs_i8, step_i8)

static inline PEAK_INT step_i4(PEAK_INT sum, PEAK_INT w, PEAK_INT x) {
    return PEAK(add_epi16)(sum, PEAK(maddubs_epi16)(w, x));
}
MACS_INT(macs_i4, step_i4)
#endif

static inline PEAK_FLOAT step_f32(PEAK_FLOAT sum, PEAK_FLOAT w, PEAK_FLOAT x) {
    return PEAK(fmadd_ps)(w, x, sum);
}
MACS(macs_f32, PEAK_FLOAT, PEAK(set1_ps)(0.0f), PEAK(set1_ps)(1.0f),
     sizeof(PEAK_FLOAT) / sizeof(float), step_f32)

static uint64_t read_streams(const void *data, size_t n) {
    enum { EACH = MOGE_PEAK_READ / MOGE_PEAK_STREAMS, VECTORS = EACH / sizeof(PEAK_INT) };
    size_t part = n / MOGE_PEAK_STREAMS;
    PEAK_INT sums[MOGE_PEAK_STREAMS];
    for (int s = 0; s < MOGE_PEAK_STREAMS; s++)
        sums[s] = PEAK(set1_epi8)(0);
    for (size_t at = 0; at < part; at += EACH) {
        _Pragma("GCC unroll 4") for (int s = 0; s < MOGE_PEAK_STREAMS; s++) {
            const PEAK_INT *line = (const void *)((const char *)data + (size_t)s * part + at);
            _Pragma("GCC unroll 8") for (int i = 0; i < VECTORS; i++) {
                sums[s] = PEAK(add_epi64)(sums[s], line[i]);
            }
        }
    }
    for (int s = 1; s < MOGE_PEAK_STREAMS; s++)
        sums[0] = PEAK(add_epi64)(sums[0], sums[s]);
    uint64_t words[sizeof(PEAK_INT) / sizeof(uint64_t)], sum = 0;
    __builtin_memcpy(words, &sums[0], sizeof words);
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        sum += words[i];
    return sum;
}

static void peak_fill(struct moge_peak *peak) {
    peak->macs_i8 = macs_i8;
    peak->macs_i4 = macs_i4;
    peak->macs_f32 = macs_f32;
    peak->read = read_streams;
}

#endif
#endif
