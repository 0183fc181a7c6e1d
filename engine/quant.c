/* SPDX-License-Identifier: Apache-2.0 */
/* Block formats.  A block of 32 values shares one f16 scale d:
 *
 *      q8_0   | d | q0 q1 q2 ... q31 |                value i = d * q[i], q in [-127, 127]
 *      q4_0   | d | q0q16 q1q17 ... q15q31 |          value i = d * (nibble - 8), nibble in [0, 15]
 *
 * Files are little-endian, and so is every machine this builds for. */
#include "moge/quant.h"

#include <math.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "GGUF data is used as it lies");

static uint32_t float_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static float bits_float(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

float moge_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 0x1fu, mantissa = h & 0x3ffu;
    if (exponent == 31) /* infinity and NaN keep their payload */
        return bits_float(sign | 0x7f800000u | mantissa << 13);
    if (exponent == 0) { /* zero and denormals: mantissa * 2^-24 is exact in f32 */
        float magnitude = (float)mantissa * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    return bits_float(sign | (exponent + 112u) << 23 | mantissa << 13);
}

uint16_t moge_f32_to_f16(float f) {
    uint32_t u = float_bits(f), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) /* a NaN stays one, and quiet */
        return (uint16_t)(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
    if (magnitude >= 0x477ff000u) /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) { /* below 2^-14: a multiple of 2^-24 */
        uint32_t shift = 126u - (magnitude >> 23);
        if (shift > 25) /* below 2^-25, half the least denormal */
            return (uint16_t)sign;
        uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
        uint32_t half = 1u << (shift - 1), rest = mantissa & ((1u << shift) - 1u);
        uint32_t value = mantissa >> shift;
        value += rest > half || (rest == half && (value & 1u));
        return (uint16_t)(sign | value);
    }
    uint32_t value = magnitude - (112u << 23);
    value += 0xfffu + ((value >> 13) & 1u); /* to nearest, ties to even */
    return (uint16_t)(sign | value >> 13);
}

static uint16_t bf16_round(float f) {
    uint32_t u = float_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

static void f32_to_f32(const void *source, float *target, size_t n) {
    memcpy(target, source, n * sizeof *target);
}

static void f32_from_f32(const float *source, void *target, size_t n) {
    memcpy(target, source, n * sizeof *source);
}

static void f16_to_f32(const void *source, float *target, size_t n) {
    const uint16_t *h = source;
    for (size_t i = 0; i < n; i++)
        target[i] = moge_f16_to_f32(h[i]);
}

static void f16_from_f32(const float *source, void *target, size_t n) {
    uint16_t *h = target;
    for (size_t i = 0; i < n; i++)
        h[i] = moge_f32_to_f16(source[i]);
}

static void bf16_to_f32(const void *source, float *target, size_t n) {
    const uint16_t *h = source;
    for (size_t i = 0; i < n; i++)
        target[i] = bits_float((uint32_t)h[i] << 16);
}

static void bf16_from_f32(const float *source, void *target, size_t n) {
    uint16_t *h = target;
    for (size_t i = 0; i < n; i++)
        h[i] = bf16_round(source[i]);
}

static void q8_0_to_f32(const void *source, float *target, size_t n) {
    const struct moge_block_q8_0 *block = source;
    for (size_t b = 0; b < n / MOGE_QBLOCK; b++) {
        float d = moge_f16_to_f32(block[b].d);
        for (size_t i = 0; i < MOGE_QBLOCK; i++)
            target[b * MOGE_QBLOCK + i] = d * (float)block[b].q[i];
    }
}

/* round(x * inverse) kept within [low, high]; NaN becomes low, so that nothing is undefined. */
static int scaled_round(float x, float inverse, float low, float high) {
    return (int)lrintf(fminf(fmaxf(x * inverse, low), high));
}

/* d = largest magnitude / 127.  A block whose scale vanishes in f16 is all zero; one whose scale
 * is not finite in f16 gets the infinite scale that a loader refuses. */
static void q8_0_from_f32(const float *source, void *target, size_t n) {
    struct moge_block_q8_0 *block = target;
    for (size_t b = 0; b < n / MOGE_QBLOCK; b++) {
        const float *x = source + b * MOGE_QBLOCK;
        float largest = 0;
        for (size_t i = 0; i < MOGE_QBLOCK; i++)
            if (isnan(x[i]) || fabsf(x[i]) > largest) /* a NaN stays */
                largest = fabsf(x[i]);
        block[b].d = moge_f32_to_f16(largest / 127.0f);
        float inverse = (block[b].d & 0x7fffu) ? 127.0f / largest : 0.0f;
        for (size_t i = 0; i < MOGE_QBLOCK; i++)
            block[b].q[i] = (int8_t)(inverse > 0 ? scaled_round(x[i], inverse, -127, 127) : 0);
    }
}

static void q4_0_to_f32(const void *source, float *target, size_t n) {
    const struct moge_block_q4_0 *block = source;
    for (size_t b = 0; b < n / MOGE_QBLOCK; b++) {
        float d = moge_f16_to_f32(block[b].d);
        float *y = target + b * MOGE_QBLOCK;
        for (size_t i = 0; i < MOGE_QBLOCK / 2; i++) {
            y[i] = d * (float)((block[b].q[i] & 15) - 8);
            y[i + MOGE_QBLOCK / 2] = d * (float)((block[b].q[i] >> 4) - 8);
        }
    }
}

/* d = the value of largest magnitude, with its sign, / -8: that value is then exactly nibble 0. */
static void q4_0_from_f32(const float *source, void *target, size_t n) {
    struct moge_block_q4_0 *block = target;
    for (size_t b = 0; b < n / MOGE_QBLOCK; b++) {
        const float *x = source + b * MOGE_QBLOCK;
        float extreme = 0;
        for (size_t i = 0; i < MOGE_QBLOCK; i++)
            if (isnan(x[i]) || fabsf(x[i]) > fabsf(extreme)) /* a NaN stays */
                extreme = x[i];
        block[b].d = moge_f32_to_f16(extreme / -8.0f);
        float inverse = (block[b].d & 0x7fffu) && isfinite(extreme) ? -8.0f / extreme : 0.0f;
        for (size_t i = 0; i < MOGE_QBLOCK / 2; i++) {
            int low = scaled_round(x[i], inverse, -8, 7) + 8;
            int high = scaled_round(x[i + MOGE_QBLOCK / 2], inverse, -8, 7) + 8;
            block[b].q[i] = (uint8_t)(low | high << 4);
        }
    }
}

const struct moge_type_traits *moge_type_traits(uint32_t type) {
    static const struct moge_type_traits f32 = {"f32", 1, 4, f32_to_f32, f32_from_f32};
    static const struct moge_type_traits f16 = {"f16", 1, 2, f16_to_f32, f16_from_f32};
    static const struct moge_type_traits bf16 = {"bf16", 1, 2, bf16_to_f32, bf16_from_f32};
    static const struct moge_type_traits q8_0 = {
        "q8_0", MOGE_QBLOCK, (int32_t)sizeof(struct moge_block_q8_0), q8_0_to_f32, q8_0_from_f32};
    static const struct moge_type_traits q4_0 = {
        "q4_0", MOGE_QBLOCK, (int32_t)sizeof(struct moge_block_q4_0), q4_0_to_f32, q4_0_from_f32};
    static const struct moge_type_traits q8_0_p8 = {
        "q8_0_p8", MOGE_QBLOCK, (int32_t)sizeof(struct moge_block_q8_0), NULL, NULL};
    static const struct moge_type_traits q4_0_p8 = {
        "q4_0_p8", MOGE_QBLOCK, (int32_t)sizeof(struct moge_block_q4_0), NULL, NULL};
    switch (type) {
    case MOGE_TYPE_F32:
        return &f32;
    case MOGE_TYPE_F16:
        return &f16;
    case MOGE_TYPE_BF16:
        return &bf16;
    case MOGE_TYPE_Q8_0:
        return &q8_0;
    case MOGE_TYPE_Q4_0:
        return &q4_0;
    case MOGE_TYPE_Q8_0_P8:
        return &q8_0_p8;
    case MOGE_TYPE_Q4_0_P8:
        return &q4_0_p8;
    default:
        return NULL;
    }
}

enum moge_type moge_type_plain(enum moge_type type) {
    return type == MOGE_TYPE_Q8_0_P8   ? MOGE_TYPE_Q8_0
           : type == MOGE_TYPE_Q4_0_P8 ? MOGE_TYPE_Q4_0
                                       : type;
}

enum moge_type moge_type_panel(enum moge_type type) {
    return type == MOGE_TYPE_Q8_0   ? MOGE_TYPE_Q8_0_P8
           : type == MOGE_TYPE_Q4_0 ? MOGE_TYPE_Q4_0_P8
                                    : type;
}

bool moge_type_is_panel(enum moge_type type) {
    return moge_type_plain(type) != type;
}

int moge_type_parse(const char *name, enum moge_type *out) {
    static const enum moge_type known[] = {MOGE_TYPE_F32, MOGE_TYPE_F16, MOGE_TYPE_BF16,
                                           MOGE_TYPE_Q8_0, MOGE_TYPE_Q4_0};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(name, moge_type_traits(known[i])->name) == 0) {
            *out = known[i];
            return 0;
        }
    return MOGE_INVALID;
}
