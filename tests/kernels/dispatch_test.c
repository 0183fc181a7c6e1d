/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/test.h"
#include "engine/kernels/dispatch.c"

static void the_table_is_the_lower_of_cpu_and_maximum(void **state) {
    (void)state;
    static const char *const names[MOGE_ISA_COUNT] = {"scalar", "avx2", "avx512", "vnni"};
    enum moge_isa best = moge_isa_detect();
    assert_string_equal(moge_kernels()->isa, names[best]);
    for (int isa = 0; isa < MOGE_ISA_COUNT; isa++) {
        moge_kernels_set_max((enum moge_isa)isa);
        assert_string_equal(moge_kernels()->isa, names[isa < (int)best ? isa : (int)best]);
    }
    assert_string_equal(moge_kernels()->isa, names[best]);
}

static void the_cpu_agrees(void **state) {
    (void)state;
#if defined(__x86_64__)
    __builtin_cpu_init();
    enum moge_isa best = moge_isa_detect();
    assert_int_equal(best >= MOGE_ISA_AVX2,
                     __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
    assert_int_equal(best >= MOGE_ISA_AVX512, best >= MOGE_ISA_AVX2 &&
                                                  __builtin_cpu_supports("avx512bw") &&
                                                  __builtin_cpu_supports("avx512vl"));
    assert_int_equal(best >= MOGE_ISA_VNNI,
                     best >= MOGE_ISA_AVX512 && __builtin_cpu_supports("avx512vnni"));
#else
    assert_int_equal(moge_isa_detect(), MOGE_ISA_SCALAR);
#endif
}

/* Every slot, as bytes: the table holds nothing but pointers. */
static void no_slot_is_empty(void **state) {
    (void)state;
    for (int isa = 0; isa <= (int)moge_isa_detect(); isa++) {
        void *slots[sizeof(struct moge_kernels) / sizeof(void *)] = {0};
        struct moge_kernels kernels;
        memset(&kernels, 0, sizeof kernels);
        moge_kernels_fill(&kernels, (enum moge_isa)isa);
        memcpy(slots, &kernels, sizeof kernels);
        for (size_t i = 0; i < sizeof slots / sizeof *slots; i++)
            assert_non_null(slots[i]);
    }
}

/* ---- a broken slot is named ---- */

static const struct moge_kernels *right;

static void off_quantize(const float *x, int32_t n, struct moge_act_block *blocks) {
    right->quantize(x, n, blocks);
    blocks[n / 32 - 1].sum++;
}
static void off_panels_q8_0(const void *panels, int32_t n_panels, int32_t n_in,
                            const struct moge_act_block *const *rows, int32_t n_rows,
                            float *const *out) {
    right->panels_q8_0(panels, n_panels, n_in, rows, n_rows, out);
    out[n_rows - 1][7] = -out[n_rows - 1][7];
}
static void off_panels_q4_0(const void *panels, int32_t n_panels, int32_t n_in,
                            const struct moge_act_block *const *rows, int32_t n_rows,
                            float *const *out) {
    right->panels_q4_0(panels, n_panels, n_in, rows, n_rows - 1, out);
}
static void off_axpy(float *y, float a, const float *x, int32_t n) {
    for (int32_t i = 0; i < n; i++) /* rounds twice */
        y[i] += a * x[i];
}
static void off_add(float *y, const float *x, int32_t n) {
    right->add(y, x, n - n % 16); /* forgets the tail */
}
static void off_dots(const float *const *x, int32_t n_x, const float *w, int32_t n_w, int32_t n,
                     float *out, size_t stride) {
    right->dots(x, n_x, w, n_w, n, out, stride);
    float sum = 0.0f; /* the last in another order */
    for (int32_t i = 0; i < n; i++)
        sum += x[n_x - 1][i] * w[(n_w - 1) * n + i];
    out[(size_t)(n_x - 1) * stride + (size_t)n_w - 1] = sum;
}
static int32_t off_argmax(const float *x, int32_t n) {
    return right->argmax(x, n) + 1;
}

static void the_self_test_names_a_broken_slot(void **state) {
    (void)state;
    right = moge_kernels();
    assert_null(moge_kernels_self_test(right));
#define BREAK(slot)                                                                                \
    do {                                                                                           \
        struct moge_kernels broken = *right;                                                       \
        broken.slot = off_##slot;                                                                  \
        assert_string_equal(moge_kernels_self_test(&broken), #slot);                               \
    } while (0)
    BREAK(quantize);
    BREAK(panels_q8_0);
    BREAK(panels_q4_0);
    BREAK(axpy);
    BREAK(add);
    BREAK(dots);
    BREAK(argmax);
}

/* The self test must compare something: every slot changes its output, to finite values. */
static void the_self_test_input_is_telling(void **state) {
    (void)state;
    struct self_input in;
    struct self_output out;
    static struct self_output untouched;
    self_fill(&in);
    memcpy(untouched.f, in.a, sizeof in.a);
    for (int slot = 0; slot < SELF_COUNT; slot++) {
        self_run(moge_kernels(), slot, &in, &out);
        assert_memory_not_equal(&out, &untouched, sizeof out);
        for (size_t i = 0; i < sizeof out.f / sizeof *out.f; i++)
            assert_true(out.f[i] - out.f[i] == 0.0f);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_table_is_the_lower_of_cpu_and_maximum),
        cmocka_unit_test(the_cpu_agrees),
        cmocka_unit_test(no_slot_is_empty),
        cmocka_unit_test(the_self_test_names_a_broken_slot),
        cmocka_unit_test(the_self_test_input_is_telling),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
