/* SPDX-License-Identifier: Apache-2.0 */
/* Twelve chains and three operands: all that 16 registers hold. */
#include <immintrin.h>
#include "engine/kernels/peak.h"

#define CHAINS 12
/* Forces the value into a register and makes it unknown: the product cannot leave the loop, and the
 * chains stay apart. */
#define PIN(x)     __asm__ volatile("" : "+x"(x))
#define EACH_CHAIN _Pragma("GCC unroll 12") for (int c = 0; c < CHAINS; c++)

static int64_t macs_i8(int64_t n) {
    __m256i sums[CHAINS], w = _mm256_set1_epi8(1), x = w, ones = _mm256_set1_epi16(1);
    EACH_CHAIN sums[c] = _mm256_setzero_si256();
    for (int64_t i = 0; i < n; i++)
        EACH_CHAIN {
            PIN(w);
            __m256i pairs = _mm256_maddubs_epi16(w, x);
            sums[c] = _mm256_add_epi32(sums[c], _mm256_madd_epi16(pairs, ones));
            PIN(sums[c]);
        }
    return n * CHAINS * 32;
}

static int64_t macs_i4(int64_t n) {
    __m256i sums[CHAINS], w = _mm256_set1_epi8(1), x = w;
    EACH_CHAIN sums[c] = _mm256_setzero_si256();
    for (int64_t i = 0; i < n; i++)
        EACH_CHAIN {
            PIN(w);
            sums[c] = _mm256_add_epi16(sums[c], _mm256_maddubs_epi16(w, x));
            PIN(sums[c]);
        }
    return n * CHAINS * 32;
}

static int64_t macs_f32(int64_t n) {
    __m256 sums[CHAINS], w = _mm256_set1_ps(1.0f), x = w;
    EACH_CHAIN sums[c] = _mm256_setzero_ps();
    for (int64_t i = 0; i < n; i++)
        EACH_CHAIN {
            PIN(w);
            sums[c] = _mm256_fmadd_ps(w, x, sums[c]);
            PIN(sums[c]);
        }
    return n * CHAINS * 8;
}

static uint64_t read_streams(const void *data, size_t n) {
    size_t part = n / MOGE_PEAK_STREAMS;
    __m256i sums[MOGE_PEAK_STREAMS];
    for (int s = 0; s < MOGE_PEAK_STREAMS; s++)
        sums[s] = _mm256_setzero_si256();
    for (size_t at = 0; at < part; at += 256) {
        _Pragma("GCC unroll 4") for (int s = 0; s < MOGE_PEAK_STREAMS; s++) {
            const __m256i *line = (const void *)((const char *)data + (size_t)s * part + at);
            _Pragma("GCC unroll 8") for (int i = 0; i < 8; i++) {
                sums[s] = _mm256_add_epi64(sums[s], _mm256_load_si256(line + i));
            }
        }
    }
    for (int s = 1; s < MOGE_PEAK_STREAMS; s++)
        sums[0] = _mm256_add_epi64(sums[0], sums[s]);
    uint64_t words[4];
    _mm256_storeu_si256((__m256i *)words, sums[0]);
    return words[0] + words[1] + words[2] + words[3];
}

void moge_peak_init_avx2(struct moge_peak *peak) {
    peak->macs_i8 = macs_i8;
    peak->macs_i4 = macs_i4;
    peak->macs_f32 = macs_f32;
    peak->read = read_streams;
}
