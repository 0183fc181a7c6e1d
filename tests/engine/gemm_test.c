/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/test.h"
#include "engine/gemm.c"
#include "engine/panel_layout.h"
#include "moge/threads.h"

#include <math.h>

static const enum moge_type types[] = {MOGE_TYPE_F32, MOGE_TYPE_F16, MOGE_TYPE_BF16, MOGE_TYPE_Q8_0,
                                       MOGE_TYPE_Q4_0};
#define EACH_TYPE(type)                                                                            \
    for (size_t i_type = 0; i_type < sizeof types / sizeof *types; i_type++)                       \
        for (enum moge_type type = types[i_type], once = 1; once; once = 0)

/* A matrix as GGUF stores it, the same packed, and its values. */
struct fixture {
    struct moge_arena arena;
    struct moge_matrix matrix;
    struct moge_act act;
    int32_t n_rows;
    double *w;             /* [n_out, n_in] what the weights stand for */
    double *x;             /* [n_rows, n_in] what the activations stand for */
    float *bias;           /* [n_out] */
    void *scratch[2];      /* one per thread */
    float *out, *expected; /* [n_rows, n_out] */
};

static double half_value(uint16_t h) {
    int exponent = h >> 10 & 31, mantissa = h & 1023;
    double v = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    return h & 0x8000 ? -v : v;
}

static uint16_t some_half(struct test_rng *rng) {
    return (uint16_t)(0x2000 + test_below(rng, 0x1800) + (test_below(rng, 2) << 15));
}

/* Writes one random row as stored and as values. */
static void random_row(struct test_rng *rng, enum moge_type type, int32_t n_in, uint8_t *stored,
                       double *w) {
    for (int32_t i = 0; i < n_in; i++) {
        if (type == MOGE_TYPE_F32) {
            float f = test_float(rng);
            memcpy(stored + 4 * i, &f, 4);
            w[i] = (double)f;
        } else if (type == MOGE_TYPE_F16) {
            uint16_t h = some_half(rng);
            memcpy(stored + 2 * i, &h, 2);
            w[i] = half_value(h);
        } else if (type == MOGE_TYPE_BF16) {
            float f = test_float(rng);
            uint32_t bits;
            memcpy(&bits, &f, 4);
            uint16_t h = (uint16_t)(bits >> 16);
            memcpy(stored + 2 * i, &h, 2);
            bits &= 0xffff0000u;
            memcpy(&f, &bits, 4);
            w[i] = (double)f;
        } else if (type == MOGE_TYPE_Q8_0) {
            struct moge_block_q8_0 *b = (struct moge_block_q8_0 *)(void *)stored + i / 32;
            if (i % 32 == 0)
                b->d = some_half(rng);
            b->q[i % 32] = (int8_t)(test_below(rng, 256) - 128);
            w[i] = half_value(b->d) * b->q[i % 32];
        } else {
            struct moge_block_q4_0 *b = (struct moge_block_q4_0 *)(void *)stored + i / 32;
            if (i % 32 == 0)
                *b = (struct moge_block_q4_0){.d = some_half(rng)};
            int nibble = test_below(rng, 16), k = i % 32;
            b->q[k % 16] = (uint8_t)(b->q[k % 16] | nibble << (k < 16 ? 0 : 4));
            w[i] = half_value(b->d) * (nibble - 8);
        }
    }
}

static void act_fill(struct fixture *f, struct test_rng *rng) {
    int32_t n_in = f->matrix.n_in;
    const struct moge_kernels *kernels = moge_kernels();
    for (int32_t r = 0; r < f->n_rows; r++) {
        float *x = f->act.f32 + (size_t)r * (size_t)n_in;
        for (int32_t i = 0; i < n_in; i++)
            x[i] = test_float(rng) * (float)(1 + r % 3);
        if (is_panel(f->matrix.type))
            moge_act_quantize(&f->act, kernels, r, 0, n_in);
        for (int32_t i = 0; i < n_in; i++) {
            size_t at = (size_t)r * (size_t)n_in + (size_t)i;
            size_t block = (size_t)r * (size_t)(n_in / 32) + (size_t)(i / 32);
            f->x[at] = is_panel(f->matrix.type)
                           ? (double)f->act.blocks[block].d * f->act.blocks[block].q[i % 32]
                           : (double)x[i];
        }
    }
}

/* Rows begin..end, begin a multiple of MOGE_PANEL_ROWS. */
static void pack(enum moge_type type, const uint8_t *stored, int32_t begin, int32_t end,
                 int32_t n_in, size_t row_bytes, uint8_t *packed) {
    const uint8_t *rows = stored + (size_t)begin * row_bytes;
    uint8_t *target = packed + moge_matrix_bytes(type, begin, n_in);
    if (is_panel(type))
        moge_panels_pack(type, rows, end - begin, n_in, target);
    else
        memcpy(target, rows, (size_t)(end - begin) * row_bytes);
}

static void setup(struct fixture *f, enum moge_type type, int32_t n_out, int32_t n_in,
                  int32_t n_rows) {
    struct moge_err err;
    struct test_rng rng = test_rng_init((uint64_t)n_out * 1000003u + (uint64_t)n_in);
    *f = (struct fixture){.n_rows = n_rows};
    TEST_OK(moge_arena_init(&f->arena, (size_t)64 << 20, &err), err);
    size_t values = (size_t)n_out * (size_t)n_in, row_bytes = 4 * (size_t)n_in;
    f->w = moge_arena_take(&f->arena, values, sizeof(double));
    f->x = moge_arena_take(&f->arena, (size_t)n_rows * (size_t)n_in, sizeof(double));
    f->bias = moge_arena_take(&f->arena, (size_t)n_out, sizeof(float));
    f->out = moge_arena_take(&f->arena, (size_t)n_rows * (size_t)n_out, sizeof(float));
    f->expected = moge_arena_take(&f->arena, (size_t)n_rows * (size_t)n_out, sizeof(float));
    uint8_t *stored = moge_arena_take(&f->arena, (size_t)n_out, row_bytes);
    void *packed = moge_arena_take(&f->arena, moge_matrix_bytes(type, n_out, n_in), 1);
    for (int i = 0; i < 2; i++)
        f->scratch[i] = moge_arena_take(&f->arena, moge_gemm_scratch_bytes(n_in), 1);
    assert_int_equal(moge_act_init(&f->act, &f->arena, n_rows, n_in), 0);
    assert_non_null(f->scratch[1]);
    size_t bytes_per_row = type == MOGE_TYPE_Q8_0   ? (size_t)n_in / 32 * 34
                           : type == MOGE_TYPE_Q4_0 ? (size_t)n_in / 32 * 18
                                                    : (size_t)n_in * float_bytes(type);
    for (int32_t o = 0; o < n_out; o++) {
        random_row(&rng, type, n_in, stored + (size_t)o * bytes_per_row,
                   f->w + (size_t)o * (size_t)n_in);
        f->bias[o] = test_float(&rng);
    }
    /* In two parts, as a parallel loader does. */
    int32_t half = n_out / 2 / MOGE_PANEL_ROWS * MOGE_PANEL_ROWS;
    pack(type, stored, half, n_out, n_in, bytes_per_row, packed);
    pack(type, stored, 0, half, n_in, bytes_per_row, packed);
    f->matrix = (struct moge_matrix){.type = type, .n_out = n_out, .n_in = n_in, .data = packed};
    act_fill(f, &rng);
}

static void teardown(struct fixture *f) {
    moge_arena_fini(&f->arena);
}

static const struct {
    int32_t n_out, n_in;
} shapes[] = {{1, 32}, {7, 64}, {8, 32}, {33, 96}, {64, 160}, {75, 256}, {130, 512}};

static void products_are_right(void **state) {
    (void)state;
    EACH_TYPE(type)
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        struct fixture f;
        int32_t n_out = shapes[s].n_out, n_in = shapes[s].n_in, n_rows = 11;
        setup(&f, type, n_out, n_in, n_rows);
        moge_gemm(moge_kernels(), &f.matrix, &f.act, NULL, n_rows, 0, n_out, f.bias, f.out,
                  (size_t)n_out, f.scratch[0]);
        for (int32_t r = 0; r < n_rows; r++)
            for (int32_t o = 0; o < n_out; o++) {
                double dot = (double)f.bias[o], magnitude = 1.0;
                for (int32_t i = 0; i < n_in; i++) {
                    double p = f.w[(size_t)o * (size_t)n_in + (size_t)i] *
                               f.x[(size_t)r * (size_t)n_in + (size_t)i];
                    dot += p;
                    magnitude += fabs(p);
                }
                double error = fabs(dot - (double)f.out[(size_t)r * (size_t)n_out + (size_t)o]);
                if (error > 2e-6 * magnitude)
                    fail_msg("type %d, %d x %d, row %d, output %d: off by %g", (int)type, n_out,
                             n_in, r, o, error);
            }
        teardown(&f);
    }
}

/* Each row by itself is what it must be in any company and at any place. */
static void rows_are_independent(void **state) {
    (void)state;
    enum { ROWS = 150 }; /* more than two chunks */
    struct test_rng rng = test_rng_init(77);
    EACH_TYPE(type)
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        struct fixture f;
        int32_t n_out = shapes[s].n_out;
        setup(&f, type, n_out, shapes[s].n_in, ROWS);
        for (int32_t r = 0; r < ROWS; r++)
            moge_gemm(moge_kernels(), &f.matrix, &f.act, &r, 1, 0, n_out, NULL,
                      f.expected + (size_t)r * (size_t)n_out, (size_t)n_out, f.scratch[0]);
        for (int n = 1; n <= ROWS; n += n < 24 ? 1 : 21) {
            int32_t rows[ROWS];
            for (int i = 0; i < n; i++)
                rows[i] = test_below(&rng, ROWS);
            memset(f.scratch[0], 0xff, moge_gemm_scratch_bytes(f.matrix.n_in)); /* NaN */
            moge_gemm(moge_kernels(), &f.matrix, &f.act, rows, n, 0, n_out, NULL, f.out,
                      (size_t)n_out, f.scratch[0]);
            for (int i = 0; i < n; i++)
                if (memcmp(f.out + (size_t)i * (size_t)n_out,
                           f.expected + (size_t)rows[i] * (size_t)n_out,
                           (size_t)n_out * sizeof(float)) != 0)
                    fail_msg("type %d, %d x %d: row %d is another among %d", (int)type, n_out,
                             f.matrix.n_in, rows[i], n);
        }
        teardown(&f);
    }
}

struct split_run {
    struct fixture *f;
    int32_t cut; /* outputs of thread 0 */
};

static void split_part(void *arg, int i_thread, int n_threads) {
    (void)n_threads;
    struct split_run *run = arg;
    struct fixture *f = run->f;
    int32_t begin = i_thread ? run->cut : 0, end = i_thread ? f->matrix.n_out : run->cut;
    if (begin < end)
        moge_gemm(moge_kernels(), &f->matrix, &f->act, NULL, f->n_rows, begin, end, f->bias, f->out,
                  (size_t)f->matrix.n_out, f->scratch[i_thread]);
}

static void ranges_do_not_matter(void **state) {
    (void)state;
    struct moge_threads *pool;
    struct moge_err err;
    TEST_OK(moge_threads_new(&pool, 2, &err), err);
    EACH_TYPE(type)
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        struct fixture f;
        int32_t n_out = shapes[s].n_out, grain = moge_gemm_grain(type);
        setup(&f, type, n_out, shapes[s].n_in, 13);
        size_t values = 13 * (size_t)n_out;
        moge_gemm(moge_kernels(), &f.matrix, &f.act, NULL, 13, 0, n_out, f.bias, f.expected,
                  (size_t)n_out, f.scratch[0]);
        for (int32_t cut = 0; cut < n_out + grain; cut += grain) {
            struct split_run run = {&f, cut < n_out ? cut : n_out};
            memset(f.out, 0x7f, values * sizeof(float));
            moge_threads_run(pool, split_part, &run);
            assert_memory_equal(f.out, f.expected, values * sizeof(float));
        }
        teardown(&f);
    }
    moge_threads_free(pool);
}

/* out_stride wider than the matrix, and nothing written beside the asked outputs. */
static void only_the_range_is_written(void **state) {
    (void)state;
    EACH_TYPE(type) {
        struct fixture f;
        int32_t n_out = 75, grain = moge_gemm_grain(type), stride = 80;
        setup(&f, type, n_out, 64, 12);
        moge_gemm(moge_kernels(), &f.matrix, &f.act, NULL, 10, 0, n_out, NULL, f.expected,
                  (size_t)n_out, f.scratch[0]);
        float canary = -123.5f;
        for (int i = 0; i < 10 * stride; i++)
            f.out[i] = canary;
        int32_t begin = 75 / grain * grain;
        moge_gemm(moge_kernels(), &f.matrix, &f.act, NULL, 10, begin, n_out, NULL, f.out,
                  (size_t)stride, f.scratch[0]);
        for (int r = 0; r < 10; r++)
            for (int o = 0; o < stride; o++)
                assert_true(f.out[r * stride + o] ==
                            (o >= begin && o < n_out ? f.expected[r * n_out + o] : canary));
        teardown(&f);
    }
}

static void sizes_are_those_of_the_file(void **state) {
    (void)state;
    assert_int_equal(moge_matrix_bytes(MOGE_TYPE_Q8_0, 16, 64), 16 * 2 * 34);
    assert_int_equal(moge_matrix_bytes(MOGE_TYPE_Q4_0, 16, 64), 16 * 2 * 18);
    assert_int_equal(moge_matrix_bytes(MOGE_TYPE_Q4_0, 9, 32), 16 * 18);
    assert_int_equal(moge_matrix_bytes(MOGE_TYPE_F32, 5, 7), 140);
    assert_int_equal(moge_matrix_bytes(MOGE_TYPE_BF16, 100000, 100000), 20000000000u);
}

static void a_small_arena_is_refused(void **state) {
    (void)state;
    struct moge_arena arena;
    struct moge_err err;
    TEST_OK(moge_arena_init(&arena, 65536, &err), err);
    struct moge_act act = {.n_in = -7};
    assert_int_equal(moge_act_init(&act, &arena, 200, 128), MOGE_NOMEM);
    assert_int_equal(moge_act_init(&act, &arena, INT32_MAX, INT32_MAX), MOGE_NOMEM);
    assert_int_equal(act.n_in, -7);
    assert_int_equal(arena.used_bytes, 0);
    assert_int_equal(moge_act_init(&act, &arena, 20, 128), 0);
    moge_arena_fini(&arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_are_right),          cmocka_unit_test(rows_are_independent),
        cmocka_unit_test(ranges_do_not_matter),        cmocka_unit_test(only_the_range_is_written),
        cmocka_unit_test(sizes_are_those_of_the_file), cmocka_unit_test(a_small_arena_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
