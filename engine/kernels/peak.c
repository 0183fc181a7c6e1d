/* SPDX-License-Identifier: Apache-2.0 */
/* Plain C of the same loops, for machines without vector instructions of ours, and the cascade of
 * the levels above. */
#include "engine/kernels/peak.h"

/* The compiler must take `x` for unknown from here on. */
#define OPAQUE(x) __asm__ volatile("" : "+r"(x) : : "memory")

enum { PEAK_N = 1024 };

static int64_t macs_i8(int64_t n) {
    static int8_t a[PEAK_N], b[PEAK_N];
    const int8_t *x = a, *y = b;
    int32_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        OPAQUE(x);
        for (int j = 0; j < PEAK_N; j++)
            sum += x[j] * y[j];
    }
    OPAQUE(sum);
    return n * PEAK_N;
}

static int64_t macs_f32(int64_t n) {
    enum { CHAINS = 16 };
    static float a[CHAINS];
    const float *x = a;
    float sums[CHAINS] = {0};
    for (int64_t i = 0; i < n; i++) {
        OPAQUE(x);
        for (int j = 0; j < CHAINS; j++)
            sums[j] += x[j] * x[j];
    }
    float *out = sums;
    OPAQUE(out);
    return n * CHAINS;
}

static uint64_t read_words(const void *data, size_t n) {
    const uint64_t *words = data;
    size_t part = n / MOGE_PEAK_STREAMS / sizeof *words;
    uint64_t sum = 0;
    for (size_t i = 0; i < part; i++)
        for (size_t s = 0; s < MOGE_PEAK_STREAMS; s++)
            sum += words[s * part + i];
    return sum;
}

void moge_peak_fill(struct moge_peak *peak, enum moge_isa isa) {
    *peak = (struct moge_peak){macs_i8, macs_i8, macs_f32, read_words};
    if (isa < MOGE_ISA_AVX2)
        return;
    moge_peak_init_avx2(peak);
    if (isa < MOGE_ISA_AVX512)
        return;
    moge_peak_init_avx512(peak);
    if (isa < MOGE_ISA_VNNI)
        return;
    moge_peak_init_vnni(peak);
}
