/* SPDX-License-Identifier: Apache-2.0 */
/* What every test program wants: cmocka, and random numbers that are the same everywhere.  A test
 * includes the .c file it tests, so that its statics can be called. */
#ifndef MOGE_TEST_H
#define MOGE_TEST_H

#include <stdarg.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "moge/err.h"

/* The longer suites. */
static inline bool test_long(void) {
    const char *text = getenv("MOGE_LONG");
    return text && atoi(text) > 0;
}

/* Tests of many tries do a share of them under a sanitizer: it takes 5 to 20 times as long, and
 * looks for what a share already meets, while bytes are compared by the plain build. */
#if defined __SANITIZE_THREAD__
#define TEST_SHARE 7
#elif defined __SANITIZE_ADDRESS__
#define TEST_SHARE 4
#else
#define TEST_SHARE 1
#endif

struct test_rng {
    uint64_t state;
};

static inline struct test_rng test_rng_init(uint64_t seed) {
    return (struct test_rng){seed * 0x9e3779b97f4a7c15u + 0x1234567};
}

/* splitmix64 (Steele, Lea, Flood 2014). */
static inline uint64_t test_u64(struct test_rng *rng) {
    uint64_t z = rng->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Uniform in [0, n). */
static inline int32_t test_below(struct test_rng *rng, int32_t n) {
    return (int32_t)(test_u64(rng) % (uint64_t)n);
}

/* Uniform in [-1, 1). */
static inline float test_float(struct test_rng *rng) {
    return (float)((double)(test_u64(rng) >> 11) / (double)(1ull << 52)) - 1.0f;
}

#define TEST_OK(call, err)                                                                         \
    do {                                                                                           \
        int rc_ = (call);                                                                          \
        if (rc_ != 0)                                                                              \
            fail_msg("%s: %d: %s", #call, rc_, (err).text);                                        \
    } while (0)

#endif
