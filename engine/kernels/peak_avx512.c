/* SPDX-License-Identifier: Apache-2.0 */
/* The loops of peak_avx2.c in twice the width. */
#include <immintrin.h>
#include "engine/kernels/peak.h"

#define CHAINS     16
#define PIN(x)     __asm__ volatile("" : "+v"(x))
#define EACH_CHAIN _Pragma("GCC unroll 16") for (int c = 0; c < CHAINS; c++)

static int64_t macs_i8(int64_t n) {
    __m512i sums[CHAINS], w = _mm512_set1_epi8(1), x = w, ones = _mm512_set1_epi16(1);
    EACH_CHAIN sums[c] = _mm512_setzero_si512();
    for (int64_t i = 0; i < n; i++)
        EACH_CHAIN {
            PIN(w);
            __m512i pairs = _mm512_maddubs_epi16(w, x);
            sums[c] = _mm512_add_epi32(sums[c], _mm512_madd_epi16(pairs, ones));
            PIN(sums[c]);
        }
    return n * CHAINS * 64;
}

static int64_t macs_i4(int64_t n) {
    __m512i sums[CHAINS], w = _mm512_set1_epi8(1), x = w;
    EACH_CHAIN sums[c] = _mm512_setzero_si512();
    for (int64_t i = 0; i < n; i++)
        EACH_CHAIN {
            PIN(w);
            sums[c] = _mm512_add_epi16(sums[c], _mm512_maddubs_epi16(w, x));
            PIN(sums[c]);
        }
    return n * CHAINS * 64;
}

static int64_t macs_f32(int64_t n) {
    __m512 sums[CHAINS], w = _mm512_set1_ps(1.0f), x = w;
    EACH_CHAIN sums[c] = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i++)
        EACH_CHAIN {
            PIN(w);
            sums[c] = _mm512_fmadd_ps(w, x, sums[c]);
            PIN(sums[c]);
        }
    return n * CHAINS * 16;
}

static uint64_t read_streams(const void *data, size_t n) {
    size_t part = n / MOGE_PEAK_STREAMS;
    __m512i sums[MOGE_PEAK_STREAMS];
    for (int s = 0; s < MOGE_PEAK_STREAMS; s++)
        sums[s] = _mm512_setzero_si512();
    for (size_t at = 0; at < part; at += 256) {
        _Pragma("GCC unroll 4") for (int s = 0; s < MOGE_PEAK_STREAMS; s++) {
            const __m512i *line = (const void *)((const char *)data + (size_t)s * part + at);
            _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) {
                sums[s] = _mm512_add_epi64(sums[s], _mm512_load_si512(line + i));
            }
        }
    }
    for (int s = 1; s < MOGE_PEAK_STREAMS; s++)
        sums[0] = _mm512_add_epi64(sums[0], sums[s]);
    uint64_t words[8], sum = 0; /* the header's own reduction adds signed numbers */
    _mm512_storeu_si512(words, sums[0]);
    for (int i = 0; i < 8; i++)
        sum += words[i];
    return sum;
}

void moge_peak_init_avx512(struct moge_peak *peak) {
    peak->macs_i8 = macs_i8;
    peak->macs_i4 = macs_i4;
    peak->macs_f32 = macs_f32;
    peak->read = read_streams;
}
