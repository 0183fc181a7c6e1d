/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/test.h"
#include "engine/quant.c"

/* Every f16 that is a number survives the way through f32. */
static void f16_round_trips(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float f = moge_f16_to_f32((uint16_t)h);
        if (isnan(f)) {
            assert_true((h & 0x7c00) == 0x7c00 && (h & 0x3ff) != 0);
            assert_true(isnan(moge_f16_to_f32(moge_f32_to_f16(f))));
        } else {
            assert_int_equal(moge_f32_to_f16(f), h);
        }
    }
}

/* The definition of rounding, by search: the nearest f16, the even one of two. */
static uint16_t nearest_by_search(float f) {
    uint16_t best = 0;
    double distance = INFINITY;
    for (uint32_t h = 0; h < 0x7c00; h++) {
        double d = fabs((double)moge_f16_to_f32((uint16_t)h) - (double)fabsf(f));
        if (d < distance || (d == distance && !(h & 1))) {
            distance = d;
            best = (uint16_t)h;
        }
    }
    return (uint16_t)(best | (signbit(f) ? 0x8000 : 0));
}

static void f16_rounds_to_nearest_even(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(1);
    for (int i = 0; i < 60; i++) { /* halfway points, and their neighbours, of all magnitudes */
        uint16_t h = (uint16_t)test_below(&rng, 0x7bff);
        float middle = (moge_f16_to_f32(h) + moge_f16_to_f32((uint16_t)(h + 1))) / 2;
        float near[] = {middle, nextafterf(middle, 0), nextafterf(middle, 1e30f), -middle};
        for (int k = 0; k < 4; k++)
            assert_int_equal(moge_f32_to_f16(near[k]), nearest_by_search(near[k]));
    }
    assert_int_equal(moge_f32_to_f16(65519.996f), 0x7bff);
    assert_int_equal(moge_f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(moge_f32_to_f16(-INFINITY), 0xfc00);
    assert_int_equal(moge_f32_to_f16(0x1p-25f), 0); /* a tie: even is zero */
    assert_int_equal(moge_f32_to_f16(nextafterf(0x1p-25f, 1)), 1);
    assert_int_equal(moge_f32_to_f16(0x1p-126f), 0);
    assert_int_equal(moge_f32_to_f16(-0.0f), 0x8000);
    assert_int_equal(moge_f32_to_f16(0x1.ffcp-15f), 0x0400); /* rounds up into the normal numbers */
}

static void bf16_rounds_to_nearest_even(void **state) {
    (void)state;
    const struct moge_type_traits *t = moge_type_traits(MOGE_TYPE_BF16);
    float x[] = {1.0f,
                 bits_float(0x3f808000),
                 bits_float(0x3f818000),
                 bits_float(0x3f808001),
                 INFINITY,
                 NAN,
                 3.4e38f};
    uint16_t h[7], want[] = {0x3f80, 0x3f80, 0x3f82, 0x3f81, 0x7f80, 0, 0x7f80};
    t->from_f32(x, h, 7);
    for (int i = 0; i < 7; i++)
        if (i != 5)
            assert_int_equal(h[i], want[i]);
    float back;
    t->to_f32(&h[5], &back, 1);
    assert_true(isnan(back));
}

static void q8_0_keeps_the_largest_and_its_error_bound(void **state) {
    (void)state;
    const struct moge_type_traits *t = moge_type_traits(MOGE_TYPE_Q8_0);
    struct test_rng rng = test_rng_init(2);
    for (int round = 0; round < 200; round++) {
        float x[64], y[64], scale = ldexpf(1, test_below(&rng, 24) - 12);
        struct moge_block_q8_0 blocks[2];
        for (int i = 0; i < 64; i++)
            x[i] = test_float(&rng) * scale;
        t->from_f32(x, blocks, 64);
        t->to_f32(blocks, y, 64);
        for (int b = 0; b < 2; b++) {
            float largest = 0;
            int q_largest = 0;
            for (int i = 0; i < 32; i++) {
                largest = fmaxf(largest, fabsf(x[32 * b + i]));
                q_largest = abs(blocks[b].q[i]) > q_largest ? abs(blocks[b].q[i]) : q_largest;
            }
            assert_int_equal(q_largest, 127);
            for (int i = 0; i < 32; i++) /* half a step, and the rounding of the scale to f16 */
                assert_true(fabsf(x[32 * b + i] - y[32 * b + i]) <=
                            largest / 254 * 1.001f + largest / 1024 + 0x1p-24f * 127);
        }
    }
}

static void q4_0_uses_the_signed_extreme(void **state) {
    (void)state;
    const struct moge_type_traits *t = moge_type_traits(MOGE_TYPE_Q4_0);
    float x[32] = {0}, y[32];
    struct moge_block_q4_0 block;
    x[3] = 4.0f, x[17] = -2.0f, x[0] = 0.75f; /* d = -0.5; 0.75 / -0.5 = -1.5 is a tie */
    t->from_f32(x, &block, 32);
    assert_int_equal(block.d, moge_f32_to_f16(-0.5f));
    assert_int_equal(block.q[3], 0x80);    /* low nibble 0 is the extreme */
    assert_int_equal(block.q[1] >> 4, 12); /* -2 / -0.5 = 4, + 8 */
    assert_int_equal(block.q[0] & 15, 6);  /* -1.5 rounds to -2 */
    t->to_f32(&block, y, 32);
    assert_true(y[3] == 4.0f && y[17] == -2.0f && y[0] == 1.0f && y[5] == 0.0f);
    for (int i = 0; i < 32; i++)
        x[i] = i == 9 ? -8.0f : 8.0f * 0.999f; /* the opposite sign is clipped at 7 steps */
    t->from_f32(x, &block, 32);
    t->to_f32(&block, y, 32);
    assert_true(y[9] == -8.0f && y[0] == 7.0f);
}

static void degenerate_blocks_are_defined(void **state) {
    (void)state;
    float x[32], y[32];
    struct moge_block_q8_0 q8;
    struct moge_block_q4_0 q4;
    const float fill[] = {0.0f, 1e-42f, 1e-12f, NAN, INFINITY, 3e38f};
    for (int k = 0; k < 6; k++) {
        for (int i = 0; i < 32; i++)
            x[i] = i & 1 ? -fill[k] : fill[k];
        moge_type_traits(MOGE_TYPE_Q8_0)->from_f32(x, &q8, 32);
        moge_type_traits(MOGE_TYPE_Q4_0)->from_f32(x, &q4, 32);
        moge_type_traits(MOGE_TYPE_Q8_0)->to_f32(&q8, y, 32);
        if (k < 3) {
            for (int i = 0; i < 32; i++)
                assert_true(y[i] == 0.0f);
            moge_type_traits(MOGE_TYPE_Q4_0)->to_f32(&q4, y, 32);
            for (int i = 0; i < 32; i++)
                assert_true(y[i] == 0.0f);
        } else { /* the scale says that the values were no numbers */
            assert_true(!isfinite(moge_f16_to_f32(q8.d)));
            assert_true(!isfinite(moge_f16_to_f32(q4.d)));
        }
    }
}

static void one_nan_spoils_its_block(void **state) {
    (void)state;
    for (int at = 0; at < 32; at += 31) {
        float x[32];
        struct moge_block_q8_0 q8;
        struct moge_block_q4_0 q4;
        for (int i = 0; i < 32; i++)
            x[i] = i == at ? NAN : (float)(i + 1);
        moge_type_traits(MOGE_TYPE_Q8_0)->from_f32(x, &q8, 32);
        moge_type_traits(MOGE_TYPE_Q4_0)->from_f32(x, &q4, 32);
        assert_true(isnan(moge_f16_to_f32(q8.d)));
        assert_true(isnan(moge_f16_to_f32(q4.d)));
    }
}

static void types_are_found_by_name_and_number(void **state) {
    (void)state;
    enum moge_type type = MOGE_TYPE_F32;
    assert_int_equal(moge_type_parse("q8_0", &type), 0);
    assert_int_equal(type, MOGE_TYPE_Q8_0);
    assert_int_equal(moge_type_parse("q9_9", &type), MOGE_INVALID);
    assert_int_equal(type, MOGE_TYPE_Q8_0);
    assert_null(moge_type_traits(14));
    assert_null(moge_type_traits(UINT32_MAX));
    assert_string_equal(moge_type_traits(30)->name, "bf16");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f16_round_trips),
        cmocka_unit_test(f16_rounds_to_nearest_even),
        cmocka_unit_test(bf16_rounds_to_nearest_even),
        cmocka_unit_test(q8_0_keeps_the_largest_and_its_error_bound),
        cmocka_unit_test(q4_0_uses_the_signed_extreme),
        cmocka_unit_test(degenerate_blocks_are_defined),
        cmocka_unit_test(one_nan_spoils_its_block),
        cmocka_unit_test(types_are_found_by_name_and_number),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
