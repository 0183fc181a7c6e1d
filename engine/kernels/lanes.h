/* SPDX-License-Identifier: Apache-2.0 */
/* Sixteen lanes of float or 32-bit integer: the few operations that vec_body.h and attn_body.h are
 * written in.  The plain C form below is the meaning; the other two must give the same bits lane by
 * lane.  A file that wants one of those includes <immintrin.h>, defines MOGE_LANES_AVX2 or
 * MOGE_LANES_AVX512 and is compiled for it.
 *
 * lf_: floats.  li_: 32-bit integers, wrapping.  lm_: one truth value per lane.  The *_part forms
 * touch n lanes (0 < n < 16) of memory only; the others read as zero. */
#ifndef MOGE_LANES_H
#define MOGE_LANES_H

#include <stdint.h>
#include <string.h>

#define LANES 16
/* Functions of many operations.  In plain C they are called, not inlined: sixteen loops each in
 * every place would take minutes to compile under the sanitizers. */
#if defined(MOGE_LANES_AVX512) || defined(MOGE_LANES_AVX2)
#define LANES_FUNCTION static inline
#else
#define LANES_FUNCTION static __attribute__((noinline, unused))
#endif
#define LANES_MAGIC 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer, half to even */

#if defined(MOGE_LANES_AVX512)

typedef __m512 lf;
typedef __m512i li;
typedef __mmask16 lm;

static inline __mmask16 lanes_first(int32_t n) {
    return (__mmask16)((1u << n) - 1);
}
static inline lf lf_set(float a) {
    return _mm512_set1_ps(a);
}
static inline lf lf_load(const float *p) {
    return _mm512_loadu_ps(p);
}
static inline lf lf_load_part(const float *p, int32_t n) {
    return _mm512_maskz_loadu_ps(lanes_first(n), p);
}
static inline void lf_store(float *p, lf a) {
    _mm512_storeu_ps(p, a);
}
static inline void lf_store_part(float *p, lf a, int32_t n) {
    _mm512_mask_storeu_ps(p, lanes_first(n), a);
}
static inline lf lf_add(lf a, lf b) {
    return _mm512_add_ps(a, b);
}
static inline lf lf_sub(lf a, lf b) {
    return _mm512_sub_ps(a, b);
}
static inline lf lf_mul(lf a, lf b) {
    return _mm512_mul_ps(a, b);
}
static inline lf lf_div(lf a, lf b) {
    return _mm512_div_ps(a, b);
}
static inline lf lf_fma(lf a, lf b, lf c) {
    return _mm512_fmadd_ps(a, b, c);
}
static inline lf lf_min(lf a, lf b) {
    return _mm512_min_ps(a, b);
}
static inline lf lf_max(lf a, lf b) {
    return _mm512_max_ps(a, b);
}
static inline lm lf_less(lf a, lf b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}
static inline lf lf_select(lm m, lf a, lf b) {
    return _mm512_mask_blend_ps(m, b, a);
}
static inline li lf_bits(lf a) {
    return _mm512_castps_si512(a);
}
static inline lf li_float_bits(li a) {
    return _mm512_castsi512_ps(a);
}
static inline lf li_to_float(li a) {
    return _mm512_cvtepi32_ps(a);
}
static inline li li_set(uint32_t a) {
    return _mm512_set1_epi32((int32_t)a);
}
static inline li li_iota(void) {
    return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
static inline li li_load(const int32_t *p) {
    return _mm512_loadu_si512(p);
}
static inline li li_load_part(const int32_t *p, int32_t n) {
    return _mm512_maskz_loadu_epi32(lanes_first(n), p);
}
static inline void li_store(int32_t *p, li a) {
    _mm512_storeu_si512(p, a);
}
static inline li li_add(li a, li b) {
    return _mm512_add_epi32(a, b);
}
static inline li li_sub(li a, li b) {
    return _mm512_sub_epi32(a, b);
}
static inline li li_xor(li a, li b) {
    return _mm512_xor_si512(a, b);
}
#define li_shl(a, n) _mm512_slli_epi32(a, n)
#define li_sar(a, n) _mm512_srai_epi32(a, n)
static inline lm li_negative(li a) {
    return _mm512_movepi32_mask(a);
}
static inline li li_select(lm m, li a, li b) {
    return _mm512_mask_blend_epi32(m, b, a);
}
static inline lm lm_first(int32_t n) {
    return n >= LANES ? (__mmask16)0xffff : lanes_first(n);
}
static inline int lm_any(lm m) {
    return m != 0;
}
static inline li li_mul_hilo(li a, uint32_t m, li *high) {
    __m512i factor = _mm512_set1_epi64((int64_t)m);
    __m512i even = _mm512_mul_epu32(a, factor);
    __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), factor);
    *high = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
    return _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
}
static inline lf lf_load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline lf lf_load_f16_part(const uint16_t *p, int32_t n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes_first(n), p));
}
static inline void lf_store_f16(uint16_t *p, lf a) {
    _mm256_storeu_si256((__m256i *)p, _mm512_maskz_cvtps_ph(0xffff, a, _MM_FROUND_TO_NEAREST_INT));
}
static inline lf lf_load_bf16(const uint16_t *p) {
    __m256i half = _mm256_loadu_si256((const __m256i *)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
static inline lf lf_load_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
static inline void lf_load_pairs(const float *p, lf *even, lf *odd) {
    __m512 a = _mm512_loadu_ps(p), b = _mm512_loadu_ps(p + LANES);
    __m512i pick = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    *even = _mm512_permutex2var_ps(a, pick, b);
    *odd = _mm512_permutex2var_ps(a, _mm512_add_epi32(pick, _mm512_set1_epi32(1)), b);
}
static inline void lf_store_pairs(float *p, lf even, lf odd) {
    __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    _mm512_storeu_ps(p, _mm512_permutex2var_ps(even, low, odd));
    _mm512_storeu_ps(p + LANES, _mm512_permutex2var_ps(even, high, odd));
}
static inline float lf_sum(lf a) {
    __m256 v = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

#elif defined(MOGE_LANES_AVX2)

typedef struct {
    __m256 lo, hi;
} lf;
typedef struct {
    __m256i lo, hi;
} li;
typedef struct {
    __m256 lo, hi;
} lm;

/* All ones in the first n lanes. */
static inline li lanes_first(int32_t n) {
    static const int32_t window[2 * LANES] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                              -1, -1, -1, -1, -1, -1, -1, -1};
    const int32_t *at = window + LANES - n;
    return (li){_mm256_loadu_si256((const __m256i *)at),
                _mm256_loadu_si256((const __m256i *)(at + 8))};
}
static inline lf lf_set(float a) {
    return (lf){_mm256_set1_ps(a), _mm256_set1_ps(a)};
}
static inline lf lf_load(const float *p) {
    return (lf){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
static inline lf lf_load_part(const float *p, int32_t n) {
    li m = lanes_first(n);
    if (n <= 8) /* p + 8 may not exist */
        return (lf){_mm256_maskload_ps(p, m.lo), _mm256_setzero_ps()};
    return (lf){_mm256_loadu_ps(p), _mm256_maskload_ps(p + 8, m.hi)};
}
static inline void lf_store(float *p, lf a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
static inline void lf_store_part(float *p, lf a, int32_t n) {
    li m = lanes_first(n);
    _mm256_maskstore_ps(p, m.lo, a.lo);
    if (n > 8)
        _mm256_maskstore_ps(p + 8, m.hi, a.hi);
}
static inline lf lf_add(lf a, lf b) {
    return (lf){_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
static inline lf lf_sub(lf a, lf b) {
    return (lf){_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
static inline lf lf_mul(lf a, lf b) {
    return (lf){_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
static inline lf lf_div(lf a, lf b) {
    return (lf){_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
static inline lf lf_fma(lf a, lf b, lf c) {
    return (lf){_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
static inline lf lf_min(lf a, lf b) {
    return (lf){_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
static inline lf lf_max(lf a, lf b) {
    return (lf){_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
static inline lm lf_less(lf a, lf b) {
    return (lm){_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)};
}
static inline lf lf_select(lm m, lf a, lf b) {
    return (lf){_mm256_blendv_ps(b.lo, a.lo, m.lo), _mm256_blendv_ps(b.hi, a.hi, m.hi)};
}
static inline li lf_bits(lf a) {
    return (li){_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)};
}
static inline lf li_float_bits(li a) {
    return (lf){_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)};
}
static inline lf li_to_float(li a) {
    return (lf){_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)};
}
static inline li li_set(uint32_t a) {
    return (li){_mm256_set1_epi32((int32_t)a), _mm256_set1_epi32((int32_t)a)};
}
static inline li li_iota(void) {
    return (li){_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};
}
static inline li li_load(const int32_t *p) {
    return (li){_mm256_loadu_si256((const __m256i *)p),
                _mm256_loadu_si256((const __m256i *)(p + 8))};
}
static inline li li_load_part(const int32_t *p, int32_t n) {
    li m = lanes_first(n);
    if (n <= 8)
        return (li){_mm256_maskload_epi32(p, m.lo), _mm256_setzero_si256()};
    return (li){_mm256_loadu_si256((const __m256i *)p), _mm256_maskload_epi32(p + 8, m.hi)};
}
static inline void li_store(int32_t *p, li a) {
    _mm256_storeu_si256((__m256i *)p, a.lo);
    _mm256_storeu_si256((__m256i *)(p + 8), a.hi);
}
static inline li li_add(li a, li b) {
    return (li){_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
static inline li li_sub(li a, li b) {
    return (li){_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)};
}
static inline li li_xor(li a, li b) {
    return (li){_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)};
}
static inline li li_shl(li a, int n) {
    return (li){_mm256_slli_epi32(a.lo, n), _mm256_slli_epi32(a.hi, n)};
}
static inline li li_sar(li a, int n) {
    return (li){_mm256_srai_epi32(a.lo, n), _mm256_srai_epi32(a.hi, n)};
}
static inline lm li_negative(li a) {
    li m = li_sar(a, 31);
    return (lm){_mm256_castsi256_ps(m.lo), _mm256_castsi256_ps(m.hi)};
}
static inline li li_select(lm m, li a, li b) {
    return lf_bits(lf_select(m, li_float_bits(a), li_float_bits(b)));
}
static inline lm lm_first(int32_t n) {
    li m = lanes_first(n < LANES ? n : LANES);
    return (lm){_mm256_castsi256_ps(m.lo), _mm256_castsi256_ps(m.hi)};
}
static inline int lm_any(lm m) {
    return _mm256_movemask_ps(_mm256_or_ps(m.lo, m.hi)) != 0;
}
static inline __m256i half_mul_hilo(__m256i a, __m256i factor, __m256i *high) {
    __m256i even = _mm256_mul_epu32(a, factor);
    __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), factor);
    *high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
    return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
}
static inline li li_mul_hilo(li a, uint32_t m, li *high) {
    __m256i factor = _mm256_set1_epi64x((int64_t)m);
    li low;
    low.lo = half_mul_hilo(a.lo, factor, &high->lo);
    low.hi = half_mul_hilo(a.hi, factor, &high->hi);
    return low;
}
static inline lf lf_load_f16(const uint16_t *p) {
    return (lf){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
static inline lf lf_load_f16_part(const uint16_t *p, int32_t n) {
    uint16_t whole[LANES] = {0};
    memcpy(whole, p, (size_t)n * sizeof *p);
    return lf_load_f16(whole);
}
static inline void lf_store_f16(uint16_t *p, lf a) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
static inline lf lf_load_bf16(const uint16_t *p) {
    __m256i lo = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    __m256i hi = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p + 8)));
    return li_float_bits(li_shl((li){lo, hi}, 16));
}
static inline lf lf_load_i8(const int8_t *p) {
    return (lf){
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p))),
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p + 8))))};
}
static inline void half_load_pairs(const float *p, __m256 *even, __m256 *odd) {
    __m256 a = _mm256_loadu_ps(p), b = _mm256_loadu_ps(p + 8);
    __m256 low = _mm256_permute2f128_ps(a, b, 0x20), high = _mm256_permute2f128_ps(a, b, 0x31);
    *even = _mm256_shuffle_ps(low, high, 0x88);
    *odd = _mm256_shuffle_ps(low, high, 0xdd);
}
static inline void lf_load_pairs(const float *p, lf *even, lf *odd) {
    half_load_pairs(p, &even->lo, &odd->lo);
    half_load_pairs(p + LANES, &even->hi, &odd->hi);
}
static inline void half_store_pairs(float *p, __m256 even, __m256 odd) {
    __m256 low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
    _mm256_storeu_ps(p, _mm256_permute2f128_ps(low, high, 0x20));
    _mm256_storeu_ps(p + 8, _mm256_permute2f128_ps(low, high, 0x31));
}
static inline void lf_store_pairs(float *p, lf even, lf odd) {
    half_store_pairs(p, even.lo, odd.lo);
    half_store_pairs(p + LANES, even.hi, odd.hi);
}
static inline float lf_sum(lf a) {
    __m256 v = _mm256_add_ps(a.lo, a.hi);
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

#else /* plain C: the meaning */

typedef struct {
    float v[LANES];
} lf;
typedef struct {
    uint32_t v[LANES];
} li;
typedef struct {
    uint32_t v[LANES]; /* 0 or 1 */
} lm;

#define LANES_LOOP _Pragma("GCC unroll 1") for (int i = 0; i < LANES; i++)
#define LANES_EACH(type, expression)                                                               \
    type out;                                                                                      \
    LANES_LOOP                                                                                     \
    out.v[i] = (expression);                                                                       \
    return out

static inline lf lf_set(float a) {
    LANES_EACH(lf, a);
}
static inline lf lf_load_part(const float *p, int32_t n) {
    LANES_EACH(lf, i < n ? p[i] : 0.0f);
}
static inline lf lf_load(const float *p) {
    LANES_EACH(lf, p[i]);
}
static inline void lf_store_part(float *p, lf a, int32_t n) {
    memcpy(p, a.v, (size_t)n * sizeof *p);
}
static inline void lf_store(float *p, lf a) {
    memcpy(p, a.v, sizeof a.v);
}
static inline lf lf_add(lf a, lf b) {
    LANES_EACH(lf, a.v[i] + b.v[i]);
}
static inline lf lf_sub(lf a, lf b) {
    LANES_EACH(lf, a.v[i] - b.v[i]);
}
static inline lf lf_mul(lf a, lf b) {
    LANES_EACH(lf, a.v[i] * b.v[i]);
}
static inline lf lf_div(lf a, lf b) {
    LANES_EACH(lf, a.v[i] / b.v[i]);
}
static inline lf lf_fma(lf a, lf b, lf c) {
    LANES_EACH(lf, __builtin_fmaf(a.v[i], b.v[i], c.v[i]));
}
/* b when either is NaN, as the instructions do. */
static inline lf lf_min(lf a, lf b) {
    LANES_EACH(lf, a.v[i] < b.v[i] ? a.v[i] : b.v[i]);
}
static inline lf lf_max(lf a, lf b) {
    LANES_EACH(lf, a.v[i] > b.v[i] ? a.v[i] : b.v[i]);
}
static inline lm lf_less(lf a, lf b) {
    LANES_EACH(lm, a.v[i] < b.v[i]);
}
static inline lf lf_select(lm m, lf a, lf b) {
    LANES_EACH(lf, m.v[i] ? a.v[i] : b.v[i]);
}
static inline li lf_bits(lf a) {
    li out;
    memcpy(&out, &a, sizeof out);
    return out;
}
static inline lf li_float_bits(li a) {
    lf out;
    memcpy(&out, &a, sizeof out);
    return out;
}
static inline lf li_to_float(li a) { /* signed */
    LANES_EACH(lf, (float)(int32_t)a.v[i]);
}
static inline li li_set(uint32_t a) {
    LANES_EACH(li, a);
}
static inline li li_iota(void) {
    LANES_EACH(li, (uint32_t)i);
}
static inline li li_load_part(const int32_t *p, int32_t n) {
    LANES_EACH(li, i < n ? (uint32_t)p[i] : 0);
}
static inline li li_load(const int32_t *p) {
    LANES_EACH(li, (uint32_t)p[i]);
}
static inline void li_store(int32_t *p, li a) {
    memcpy(p, a.v, sizeof a.v);
}
static inline li li_add(li a, li b) {
    LANES_EACH(li, a.v[i] + b.v[i]);
}
static inline li li_sub(li a, li b) {
    LANES_EACH(li, a.v[i] - b.v[i]);
}
static inline li li_xor(li a, li b) {
    LANES_EACH(li, a.v[i] ^ b.v[i]);
}
static inline li li_shl(li a, int n) {
    LANES_EACH(li, a.v[i] << n);
}
static inline li li_sar(li a, int n) { /* keeps the sign */
    LANES_EACH(li, (uint32_t)((int32_t)a.v[i] >> n));
}
static inline lm li_negative(li a) {
    LANES_EACH(lm, a.v[i] >> 31);
}
static inline li li_select(lm m, li a, li b) {
    LANES_EACH(li, m.v[i] ? a.v[i] : b.v[i]);
}
static inline lm lm_first(int32_t n) {
    LANES_EACH(lm, i < n);
}
static inline int lm_any(lm m) {
    uint32_t any = 0;
    for (int i = 0; i < LANES; i++)
        any |= m.v[i];
    return any != 0;
}
/* Low half of the 64-bit product; *high gets the other. */
static inline li li_mul_hilo(li a, uint32_t m, li *high) {
    for (int i = 0; i < LANES; i++)
        high->v[i] = (uint32_t)(((uint64_t)a.v[i] * m) >> 32);
    LANES_EACH(li, a.v[i] * m);
}
/* Exact; NaN becomes quiet and keeps its payload, as the instruction does. */
static inline float f16_widen(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u;
    uint32_t mantissa = h & 0x3ffu, bits;
    if (exponent == 31)
        bits = sign | 0x7f800000u | mantissa << 13 | (mantissa ? 0x400000u : 0);
    else if (exponent != 0)
        bits = sign | (exponent + 112) << 23 | mantissa << 13;
    else {
        float tiny = (float)mantissa * 0x1p-24f;
        memcpy(&bits, &tiny, sizeof bits);
        bits |= sign;
    }
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}
/* Rounds half to even; too large becomes infinity. */
static inline uint16_t f16_narrow(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000u, a = bits & 0x7fffffffu, half;
    if (a > 0x7f800000u)
        half = 0x7e00u | (a >> 13 & 0x3ffu);
    else if (a >= 0x477ff000u) /* 65520: rounds past the largest, 65504 */
        half = 0x7c00u;
    else if (a < 0x38800000u) { /* below 2^-14: count units of 2^-24 by letting an addition round */
        float magnitude;
        memcpy(&magnitude, &a, sizeof magnitude);
        float shifted = magnitude + 0.5f;
        memcpy(&half, &shifted, sizeof half);
        half -= 0x3f000000u;
    } else
        half = (a - (112u << 23) + 0xfffu + (a >> 13 & 1u)) >> 13;
    return (uint16_t)(sign | half);
}
static inline lf lf_load_f16_part(const uint16_t *p, int32_t n) {
    LANES_EACH(lf, i < n ? f16_widen(p[i]) : 0.0f);
}
static inline lf lf_load_f16(const uint16_t *p) {
    LANES_EACH(lf, f16_widen(p[i]));
}
static inline void lf_store_f16(uint16_t *p, lf a) {
    for (int i = 0; i < LANES; i++)
        p[i] = f16_narrow(a.v[i]);
}
static inline lf lf_load_bf16(const uint16_t *p) {
    li bits;
    for (int i = 0; i < LANES; i++)
        bits.v[i] = (uint32_t)p[i] << 16;
    return li_float_bits(bits);
}
static inline lf lf_load_i8(const int8_t *p) {
    LANES_EACH(lf, (float)p[i]);
}
/* Sixteen pairs (even, odd) from and to 32 floats. */
static inline void lf_load_pairs(const float *p, lf *even, lf *odd) {
    for (int i = 0; i < LANES; i++) {
        even->v[i] = p[2 * i];
        odd->v[i] = p[2 * i + 1];
    }
}
static inline void lf_store_pairs(float *p, lf even, lf odd) {
    for (int i = 0; i < LANES; i++) {
        p[2 * i] = even.v[i];
        p[2 * i + 1] = odd.v[i];
    }
}
/* The fixed tree: lane i plus lane i + 8, then + 4, + 2, + 1. */
static inline float lf_sum(lf a) {
    for (int step = LANES / 2; step > 0; step /= 2)
        for (int i = 0; i < step; i++)
            a.v[i] += a.v[i + step];
    return a.v[0];
}

#endif

/* n lanes (1..16) from memory, the rest zero; and back. */
static inline lf lf_take(const float *p, int32_t n) {
    return n >= LANES ? lf_load(p) : lf_load_part(p, n);
}
static inline void lf_put(float *p, lf a, int32_t n) {
    if (n >= LANES)
        lf_store(p, a);
    else if (n > 0) /* always; but not every compiler sees it */
        lf_store_part(p, a, n);
}
static inline lf lf_take_f16(const uint16_t *p, int32_t n) {
    return n >= LANES ? lf_load_f16(p) : lf_load_f16_part(p, n);
}

#endif
