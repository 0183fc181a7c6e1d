/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/test.h"
#include "engine/kernels/vec.c"

#include <math.h>

/* Known answers of philox2x32 with 10 rounds, from the Random123 distribution: counter, key, first
 * word of the output. */
static void philox_gives_the_known_answers(void **state) {
    (void)state;
    static const uint32_t known[3][4] = {{0, 0, 0, 0xff1dae59},
                                         {0xffffffff, 0xffffffff, 0xffffffff, 0x2c3f628b},
                                         {0x243f6a88, 0x85a308d3, 0x13198a2e, 0xdd7ce038}};
    for (int i = 0; i < 3; i++) {
        li out = lanes_philox(li_set(known[i][0]), known[i][1], known[i][2]);
        for (int lane = 0; lane < LANES; lane++)
            assert_int_equal(out.v[lane], known[i][3]);
    }
}

/* The noise of given random bits, in double precision. */
static double gumbel_exact(uint32_t bits) {
    return -log(-log1p(-((double)bits + 0.5) * 0x1p-32));
}

static void gumbel_is_right_for_all_kinds_of_bits(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(1);
    for (int round = 0; round < 3000; round++) {
        li bits;
        for (int i = 0; i < LANES; i++) {
            uint32_t some = (uint32_t)test_u64(&rng) >> test_below(&rng, 32);
            bits.v[i] = round % 2 ? ~some : some; /* near both ends */
        }
        if (round == 0)
            bits.v[0] = 0, bits.v[1] = UINT32_MAX, bits.v[2] = 0x7fffffff, bits.v[3] = 0x80000000;
        lf g = lanes_gumbel(bits);
        for (int i = 0; i < LANES; i++) {
            double exact = gumbel_exact(bits.v[i]);
            if (!(fabs((double)g.v[i] - exact) <= 1e-6 * fmax(1.0, fabs(exact))))
                fail_msg("bits %08x: %.9g, not %.9g", bits.v[i], (double)g.v[i], exact);
            assert_true(g.v[i] < GUMBEL_MAX);
        }
    }
}

/* Mean and variance of the standard Gumbel, and its quantiles. */
static void noise_has_the_gumbel_distribution(void **state) {
    (void)state;
    enum { N = 60000, CELLS = 50 };
    double sum = 0, squares = 0;
    int cell[CELLS] = {0};
    for (int32_t i = 0; i < N; i++) {
        double g = (double)moge_kernel_gumbel(12345 + (uint64_t)(i % 10), i / 1000, i % 1000);
        sum += g;
        squares += g * g;
        cell[(int)(exp(-exp(-g)) * CELLS)]++;
    }
    double mean = sum / N, variance = squares / N - mean * mean, chi = 0;
    assert_true(fabs(mean - 0.57721566) < 0.021); /* 4 standard errors */
    assert_true(fabs(variance - 1.64493407) < 0.064);
    for (int i = 0; i < CELLS; i++)
        chi += pow(cell[i] - (double)N / CELLS, 2) / ((double)N / CELLS);
    assert_true(chi < 99.0); /* 49 degrees of freedom: p = 3e-5 */
}

/* Neighbouring ids, positions and seeds share nothing. */
static void noise_is_uncorrelated(void **state) {
    (void)state;
    enum { N = 8000 };
    double products[4] = {0};
    const double mean = 0.57721566, variance = 1.64493407;
    for (int32_t i = 0; i < N; i++) {
        double g = (double)moge_kernel_gumbel(7, 3, i) - mean;
        products[0] += g * ((double)moge_kernel_gumbel(7, 3, i + 1) - mean);
        products[1] += g * ((double)moge_kernel_gumbel(7, 4, i) - mean);
        products[2] += g * ((double)moge_kernel_gumbel(8, 3, i) - mean);
        products[3] += g * ((double)moge_kernel_gumbel(7 + (1ull << 32), 3, i) - mean);
    }
    for (int k = 0; k < 4; k++)
        assert_true(fabs(products[k] / N) < 4.5 * variance / sqrt(N));
}

/* Gumbel-max picks i with probability softmax(x)[i]. */
static void gumbel_argmax_samples_the_softmax(void **state) {
    (void)state;
    enum { N = 20000, CHOICES = 19 };
    float x[CHOICES], p[CHOICES];
    int count[CHOICES] = {0};
    for (int i = 0; i < CHOICES; i++)
        x[i] = p[i] = 0.4f * (float)(i % 7);
    x[3] = p[3] = -INFINITY;
    vec_softmax(p, CHOICES);
    for (int32_t pos = 0; pos < N; pos++)
        count[vec_gumbel_argmax(x, NULL, CHOICES, 1.0f, 99, pos)]++;
    double chi = 0;
    for (int i = 0; i < CHOICES; i++)
        if (i != 3)
            chi += pow(count[i] - (double)N * (double)p[i], 2) / ((double)N * (double)p[i]);
    assert_int_equal(count[3], 0);
    assert_true(chi < 47.0); /* 17 degrees of freedom: p = 1e-4 */
}

static void sums_follow_the_tree(void **state) {
    (void)state;
    /* Chosen so that any other order rounds differently. */
    lf v;
    for (int i = 0; i < LANES; i++)
        v.v[i] = (i & 1 ? -1.0f : 1.0f) * ldexpf(1.0f + 0.1f * (float)i, i % 5 * 6);
    float four[4];
    for (int i = 0; i < 4; i++)
        four[i] = (v.v[i] + v.v[i + 8]) + (v.v[i + 4] + v.v[i + 12]);
    float expected = (four[0] + four[2]) + (four[1] + four[3]);
    assert_true(lf_sum(v) == expected);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_gives_the_known_answers),
        cmocka_unit_test(gumbel_is_right_for_all_kinds_of_bits),
        cmocka_unit_test(noise_has_the_gumbel_distribution),
        cmocka_unit_test(noise_is_uncorrelated),
        cmocka_unit_test(gumbel_argmax_samples_the_softmax),
        cmocka_unit_test(sums_follow_the_tree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
