/* SPDX-License-Identifier: Apache-2.0 */
/* Stands in for the compiler's header, so that a kernel file of any instruction set becomes plain C
 * (SIMDe) and runs on a CPU that lacks it.  What SIMDe 0.7.4 does not have follows here, lane by
 * lane. */
#ifndef MOGE_EMULATED_IMMINTRIN_H
#define MOGE_EMULATED_IMMINTRIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#define SIMDE_ENABLE_NATIVE_ALIASES
#define SIMDE_NO_NATIVE
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wshadow"
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>
#pragma GCC diagnostic pop

typedef simde__mmask16 __mmask16;

/* A vector, its lanes. */
#define EMULATED_LANES(vector, type, name, n)                                                      \
    type name[n];                                                                                  \
    memcpy(name, &(vector), sizeof(vector) < sizeof name ? sizeof(vector) : sizeof name)

#define EMULATED_MAP(name, in_type, in, out_type, out, expression)                                 \
    static inline out_type name(in_type vector) {                                                  \
        EMULATED_LANES(vector, in, x, 16);                                                         \
        out y[16];                                                                                 \
        for (int i = 0; i < 16; i++)                                                               \
            y[i] = (out)(expression);                                                              \
        out_type result;                                                                           \
        memcpy(&result, y, sizeof result);                                                         \
        return result;                                                                             \
    }

EMULATED_MAP(_mm512_cvtepi32_ps, __m512i, int32_t, __m512, float, x[i])
EMULATED_MAP(_mm512_cvtepi8_epi32, __m128i, int8_t, __m512i, int32_t, x[i])
EMULATED_MAP(_mm512_cvtepu16_epi32, __m256i, uint16_t, __m512i, uint32_t, x[i])
/* As processors do, and SIMDe does not, a signalling NaN becomes a quiet one. */
static inline float emulated_cvtph(uint16_t half) {
    float x = simde_float16_to_float32(simde_uint16_as_float16(half));
    return simde_uint32_as_float32(simde_float32_as_uint32(x) | (x == x ? 0 : 0x400000u));
}
EMULATED_MAP(_mm512_cvtph_ps, __m256i, uint16_t, __m512, float, emulated_cvtph(x[i]))

static inline __m512i emulated_srai(__m512i vector, unsigned count) {
    EMULATED_LANES(vector, int32_t, x, 16);
    for (int i = 0; i < 16; i++)
        x[i] >>= count;
    memcpy(&vector, x, sizeof vector);
    return vector;
}
#define _mm512_srai_epi32 emulated_srai

static inline __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void *at) {
    float x[16] = {0};
    for (size_t i = 0; i < 16; i++)
        if (mask >> i & 1)
            memcpy(&x[i], (const char *)at + 4 * i, 4);
    return simde_mm512_loadu_ps(x);
}
static inline __m512i _mm512_maskz_loadu_epi32(__mmask16 mask, const void *at) {
    return simde_mm512_castps_si512(_mm512_maskz_loadu_ps(mask, at));
}
static inline void _mm512_mask_storeu_ps(void *at, __mmask16 mask, __m512 vector) {
    EMULATED_LANES(vector, float, x, 16);
    for (size_t i = 0; i < 16; i++)
        if (mask >> i & 1)
            memcpy((char *)at + 4 * i, &x[i], 4);
}
static inline __m256i _mm256_maskz_loadu_epi16(__mmask16 mask, const void *at) {
    uint16_t x[16] = {0};
    for (size_t i = 0; i < 16; i++)
        if (mask >> i & 1)
            memcpy(&x[i], (const char *)at + 2 * i, 2);
    return simde_mm256_loadu_si256((const simde__m256i *)x);
}
static inline __m256 _mm512_extractf32x8_ps(__m512 vector, int half) {
    EMULATED_LANES(vector, float, x, 16);
    return simde_mm256_loadu_ps(x + 8 * half);
}
/* To nearest, ties to even, which SIMDe does not. */
static inline uint16_t emulated_cvtps(float x) {
    uint32_t bits = simde_float32_as_uint32(x), sign = bits >> 16 & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | (bits >> 13 & 0x3ffu));
    if (bits >= 0x477ff000u)
        return (uint16_t)(sign | 0x7c00u);
    if (bits < 0x38800000u) /* subnormal: what is added to 1/2 is rounded to multiples of 2^-24 */
        return (uint16_t)(sign | (simde_float32_as_uint32(simde_uint32_as_float32(bits) + 0.5f) -
                                  0x3f000000u));
    return (uint16_t)(sign | ((bits + 0xfffu + (bits >> 13 & 1u) - 0x38000000u) >> 13));
}
static inline __m256i _mm512_maskz_cvtps_ph(__mmask16 mask, __m512 vector, int rounding) {
    EMULATED_LANES(vector, float, x, 16);
    (void)rounding;
    uint16_t y[16];
    for (int i = 0; i < 16; i++)
        y[i] = mask >> i & 1 ? emulated_cvtps(x[i]) : 0;
    return simde_mm256_loadu_si256((const simde__m256i *)y);
}

/* SIMDe rounds twice. */
#define EMULATED_FMA(name, vector_type, n)                                                         \
    static inline vector_type name(vector_type a, vector_type b, vector_type c) {                  \
        EMULATED_LANES(a, float, x, n);                                                            \
        EMULATED_LANES(b, float, y, n);                                                            \
        EMULATED_LANES(c, float, z, n);                                                            \
        for (int i = 0; i < (n); i++)                                                              \
            x[i] = __builtin_fmaf(x[i], y[i], z[i]);                                               \
        memcpy(&a, x, sizeof a);                                                                   \
        return a;                                                                                  \
    }
EMULATED_FMA(emulated_fmadd_256, __m256, 8)
EMULATED_FMA(emulated_fmadd_512, __m512, 16)
#undef _mm256_fmadd_ps
#undef _mm512_fmadd_ps
#define _mm256_fmadd_ps emulated_fmadd_256
#define _mm512_fmadd_ps emulated_fmadd_512

/* SIMDe's aliases of these take other arguments than the functions do. */
#undef _mm512_madd_epi16
#define _mm512_madd_epi16 simde_mm512_madd_epi16

/* The kernels pin values to vector registers, for speed alone; there are none here. */
#define __asm__(...)
#endif
