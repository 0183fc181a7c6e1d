/* SPDX-License-Identifier: Apache-2.0 */
/* Every slot of every level this CPU runs, against the scalar table bit for bit: all alignments,
 * tails and extreme values; and the scalar table against computations of another kind.  `--bench`
 * prints speeds instead. */
#include "tests/test.h"
#include "tests/kernels/panels.h"

#include <math.h>
#include <time.h>

static struct moge_kernels levels[MOGE_ISA_COUNT];
static int n_levels; /* that run here */

/* tests/kernels/emulated */
void emulated_vec_init_avx512(struct moge_kernels *kernels);
void emulated_attn_page_init_avx512(struct moge_kernels *kernels);
void emulated_quant_init_vnni(struct moge_kernels *kernels);

#define SCALAR (&levels[MOGE_ISA_SCALAR])

/* For each level above scalar: `k`. */
#define EACH_LEVEL(k) for (const struct moge_kernels *k = levels + 1; k < levels + n_levels; k++)

static void assert_same(const char *slot, const struct moge_kernels *k, int32_t n,
                        const void *expected, const void *actual, size_t bytes) {
    if (memcmp(expected, actual, bytes) == 0)
        return;
    size_t at = 0;
    while (((const char *)expected)[at] == ((const char *)actual)[at])
        at++;
    fail_msg("%s of %s differs from scalar at byte %zu of %zu, n = %d", slot, k->isa, at, bytes, n);
}

enum { N_MAX = 2100, GUARD = 64 };

/* Buffers with an offset of 0..3 elements and a guard that must stay untouched. */
struct buffers {
    float a[N_MAX + GUARD], b[N_MAX + GUARD], expected[N_MAX + GUARD], actual[N_MAX + GUARD];
    uint16_t half[N_MAX + GUARD], half_expected[N_MAX + GUARD], half_actual[N_MAX + GUARD];
    int32_t ids[N_MAX + GUARD];
};
static struct buffers buffers;

/* What float rows hold: ordinary numbers, then extremes of every kind mixed in. */
enum filling { ORDINARY, EXTREME, N_FILLINGS };

static float any_float(struct test_rng *rng, enum filling filling) {
    static const float extremes[] = {0.0f,   -0.0f, 1e-45f,  -1e-40f, 1.1e-38f, 1e30f, -1e30f,
                                     1e-30f, 88.7f, -103.9f, 104.0f,  -88.0f,   1.0f,  65504.0f};
    if (filling == EXTREME && test_below(rng, 3) == 0)
        return extremes[test_below(rng, (int32_t)(sizeof extremes / sizeof *extremes))];
    return test_float(rng) * 8.0f;
}

static void refill(struct test_rng *rng, enum filling filling) {
    struct buffers *m = &buffers;
    for (int i = 0; i < N_MAX + GUARD; i++) {
        m->a[i] = any_float(rng, filling);
        m->b[i] = any_float(rng, filling);
        m->half[i] = (uint16_t)test_u64(rng);
        if ((m->half[i] & 0x7c00) == 0x7c00)
            m->half[i] &= 0x83ff;
        m->ids[i] = test_below(rng, 200000);
    }
}

static void start_outputs(void) {
    struct buffers *m = &buffers;
    memcpy(m->expected, m->b, sizeof m->b);
    memcpy(m->actual, m->b, sizeof m->b);
    memset(m->half_expected, 0x55, sizeof m->half_expected);
    memset(m->half_actual, 0x55, sizeof m->half_actual);
}

/* Runs `call` with K = scalar and OUT = expected, then with the level and actual; compares all. */
#define SAME(slot, call)                                                                           \
    do {                                                                                           \
        start_outputs();                                                                           \
        {                                                                                          \
            const struct moge_kernels *K = SCALAR;                                                 \
            float *OUT = m->expected + offset;                                                     \
            uint16_t *HALF_OUT = m->half_expected + offset;                                        \
            (void)OUT, (void)HALF_OUT;                                                             \
            call;                                                                                  \
        }                                                                                          \
        {                                                                                          \
            const struct moge_kernels *K = k;                                                      \
            float *OUT = m->actual + offset;                                                       \
            uint16_t *HALF_OUT = m->half_actual + offset;                                          \
            (void)OUT, (void)HALF_OUT;                                                             \
            call;                                                                                  \
        }                                                                                          \
        assert_same(slot, k, n, m->expected, m->actual, sizeof m->actual);                         \
        assert_same(slot, k, n, m->half_expected, m->half_actual, sizeof m->half_actual);          \
    } while (0)

/* Behind a part whose largest was 1; what is returned goes behind the entries. */
static void softmax_part_into(const struct moge_kernels *k, float *x, int32_t n) {
    float max = 1.0f, sum = 3.0f;
    x[n] = k->softmax_part(x, n, &max, &sum);
    x[n + 1] = max;
    x[n + 2] = sum;
}

#define DOTS_MOST 3

/* Tiles of all shapes; rows begin anywhere. */
static void dots_same(const struct moge_kernels *k, int32_t n, int32_t offset) {
    struct buffers *m = &buffers;
    const float *x[DOTS_MOST];
    for (int i = 0; i < DOTS_MOST; i++)
        x[i] = m->a + offset + i;
    for (int n_x = 1; n_x <= DOTS_MOST; n_x++)
        for (int n_w = 1; n_w <= DOTS_MOST; n_w++)
            SAME("dots", K->dots(x, n_x, m->b + offset, n_w, 1 + n / n_w, OUT, DOTS_MOST + 1));
}

static void vec_slots_same(const struct moge_kernels *k, int32_t n, int32_t offset) {
    struct buffers *m = &buffers;
    const float *a = m->a + offset;
    SAME("rmsnorm", K->rmsnorm(a, OUT, 1e-5f, n, OUT));
    SAME("silu_mul", K->silu_mul(OUT, a, n));
    SAME("add", K->add(OUT, a, n));
    SAME("axpy", K->axpy(OUT, -1.7f, a, n));
    dots_same(k, n, offset);
    SAME("softmax", K->softmax(OUT, n));
    SAME("scale", K->scale(OUT, m->a[0], n));
    SAME("softmax_part", softmax_part_into(K, OUT, n));
    SAME("exp_sum", OUT[n] = K->exp_sum(a, 0.3f, 0.7f, n, OUT));
    SAME("exp_sum in place", OUT[n] = K->exp_sum(OUT, 8.0f, 1.0f, n, OUT));
    SAME("argmax", OUT[0] = (float)K->argmax(a, n));
    SAME("gumbel_argmax", OUT[0] = (float)K->gumbel_argmax(a, NULL, n, 1.25f, 99, n));
    SAME("gumbel_argmax of ids",
         OUT[0] = (float)K->gumbel_argmax(a, m->ids + offset, n, 0.01f, ~0ull, n));
    SAME("f16_to_f32", K->f16_to_f32(m->half + offset, OUT, n));
    SAME("f32_to_f16", K->f32_to_f16(a, HALF_OUT, n));
    SAME("bf16_to_f32", K->bf16_to_f32(m->half + offset, OUT, n));
}

static void vec_is_the_same_at_every_level(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(1);
    EACH_LEVEL(k)
    for (int filling = 0; filling < N_FILLINGS; filling++)
        for (int32_t n = 1; n <= N_MAX; n = n < 70 ? n + 1 : n * 3 - 1) {
            refill(&rng, (enum filling)filling);
            vec_slots_same(k, n, n % 4);
        }
}

static void rope_is_the_same_at_every_level(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(2);
    struct buffers *m = &buffers;
    EACH_LEVEL(k)
    for (int32_t n = 2; n <= 256; n += n < 80 ? 2 : 16)
        for (int neox = 0; neox < 2; neox++) {
            int32_t offset = n % 3;
            refill(&rng, ORDINARY);
            SAME("rope", K->rope(OUT, m->a + offset, 3, n, neox));
        }
}

static void quantize_is_the_same_at_every_level(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(4);
    static struct moge_act_block blocks[2][N_MAX / 32 + 1];
    EACH_LEVEL(k)
    for (int filling = 0; filling < N_FILLINGS; filling++)
        for (int32_t n = 32; n <= 2048; n = n * 2 + 32) {
            refill(&rng, (enum filling)filling);
            memset(buffers.a, 0, 32 * sizeof(float));
            for (int i = 32; i < 64; i++)
                buffers.a[i] = test_float(&rng) * 3.7e-37f; /* about the smallest that is kept */
            for (int i = 64; i < 96; i++)
                buffers.a[i] = test_float(&rng) * 3.4e38f;
            float *x = buffers.a + n % 7;
            memset(blocks, 1, sizeof blocks);
            SCALAR->quantize(x, n, blocks[0]);
            k->quantize(x, n, blocks[1]);
            assert_same("quantize", k, n, blocks[0], blocks[1], sizeof blocks[0]);
        }
}

static void quantize_is_right(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(5);
    for (int round = 0; round < 300; round++) {
        float x[32];
        struct moge_act_block block;
        int32_t halves[2] = {0, 0};
        float magnitude = ldexpf(1.0f, test_below(&rng, 200) - 100);
        double largest = 0;
        for (int i = 0; i < 32; i++) {
            x[i] = test_float(&rng) * magnitude;
            largest = fmax(largest, fabs((double)x[i]));
        }
        SCALAR->quantize(x, 32, &block);
        assert_true(fabs((double)block.d * 127.0 / largest - 1.0) < 1e-6);
        for (int i = 0; i < 32; i++) {
            assert_true(fabs((double)block.q[i] - (double)x[i] * 127.0 / largest) < 0.5001);
            halves[i / 2 % 2] += block.q[i];
        }
        int16_t expected[2] = {(int16_t)(-8 * halves[0]), (int16_t)(-8 * halves[1])};
        assert_memory_equal(&block.sum, expected, sizeof block.sum);
    }
    float zero[32] = {0}, half[32] = {127.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f};
    struct moge_act_block block = {1, 1, {1}};
    SCALAR->quantize(zero, 32, &block);
    assert_true(block.d == 0.0f && block.sum == 0 && block.q[0] == 0);
    SCALAR->quantize(half, 32, &block);
    const int8_t even[6] = {127, 0, 2, 2, 0, -2};
    assert_memory_equal(block.q, even, sizeof even);
}

/* ---- panels ---- */

static struct panel_case panel_case;

typedef void panels_fn(const void *panels, int32_t n_panels, int32_t n_in,
                       const struct moge_act_block *const *rows, int32_t n_rows, float *const *out);

static panels_fn *panels_slot(const struct moge_kernels *k, enum moge_type type) {
    return type == MOGE_TYPE_Q8_0 ? k->panels_q8_0 : k->panels_q4_0;
}

static void panels_are_right(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(6);
    struct panel_case *c = &panel_case;
    for (int type = 0; type < 2; type++)
        for (int filling = 0; filling < PANEL_FILLINGS; filling++)
            for (int32_t n_blocks = 1; n_blocks <= PANEL_BLOCKS_MAX; n_blocks++) {
                panel_case_fill(c, &rng, panel_types[type], n_blocks, (enum panel_filling)filling);
                panels_slot(SCALAR, c->type)(c->panels, c->n_panels, c->n_in, c->rows,
                                             PANEL_ROWS_MAX, c->out);
                for (int r = 0; r < PANEL_ROWS_MAX; r++)
                    for (int j = 0; j < 8 * c->n_panels; j++) {
                        double magnitude, exact = panel_case_dot(c, r, j, &magnitude);
                        if (fabs(exact - (double)c->out[r][j]) > 1e-6 * magnitude + 1e-44)
                            fail_msg("%d blocks: row %d output %d is %.9g, not %.9g", n_blocks, r,
                                     j, (double)c->out[r][j], exact);
                    }
            }
}

/* One row at a time by the scalar table is what every tile of every level must give. */
static void panels_are_the_same_in_every_tile(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(7);
    struct panel_case *c = &panel_case;
    static float expected[PANEL_ROWS_MAX][8 * PANELS_MAX];
    for (int type = 0; type < 2; type++)
        for (int filling = 0; filling < PANEL_FILLINGS; filling++)
            for (int32_t n_blocks = 1; n_blocks <= PANEL_BLOCKS_MAX; n_blocks++) {
                panel_case_fill(c, &rng, panel_types[type], n_blocks, (enum panel_filling)filling);
                memset(expected, 0x7f, sizeof expected); /* as what must stay untouched */
                for (int r = 0; r < PANEL_ROWS_MAX; r++)
                    panels_slot(SCALAR, c->type)(c->panels, c->n_panels, c->n_in, c->rows + r, 1,
                                                 (float *[]){expected[r]});
                for (const struct moge_kernels *k = levels; k < levels + n_levels; k++)
                    for (int n = 1; n <= PANEL_ROWS_MAX; n++) {
                        int first = test_below(&rng, PANEL_ROWS_MAX - n + 1);
                        memset(c->values, 0x7f, sizeof c->values);
                        panels_slot(k, c->type)(c->panels, c->n_panels, c->n_in, c->rows + first, n,
                                                c->out + first);
                        assert_same(type ? "panels_q4_0" : "panels_q8_0", k, n, expected[first],
                                    c->out[first], (size_t)n * sizeof expected[0]);
                    }
            }
}

enum { WIDE_MAX = 26240, WIDE_PANELS = 3, WIDE_ROWS = 7 };

/* Any bytes with ordinary scales. */
static void wide_fill(struct test_rng *rng, uint8_t *panels, int32_t n_blocks, size_t block_bytes) {
    for (size_t i = 0; i < WIDE_PANELS * (size_t)n_blocks * block_bytes; i++)
        panels[i] = (uint8_t)test_below(rng, 256);
    for (int p = 0; p < WIDE_PANELS; p++)
        for (int32_t b = 0, n; b < n_blocks; b += n, panels += (size_t)n * block_bytes) {
            n = n_blocks - b < MOGE_PANEL_BLOCKS ? n_blocks - b : MOGE_PANEL_BLOCKS;
            for (int i = 0; i < n * MOGE_PANEL_ROWS; i++)
                panels[2 * i + 1] = (uint8_t)(0x20 | (panels[2 * i + 1] & 0x8f));
        }
}

/* Wider than what the nearest cache holds, and more than the rows of any tile. */
static void wide_panels_are_the_same(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(11);
    _Alignas(64) static uint8_t panels[WIDE_PANELS * WIDE_MAX / 32 * MOGE_PANEL_Q8_0_BYTES];
    static struct moge_act_block blocks[WIDE_ROWS][WIDE_MAX / 32];
    static float x[WIDE_MAX];
    float values[2][WIDE_ROWS][8 * WIDE_PANELS], *out[2][WIDE_ROWS];
    const struct moge_act_block *rows[WIDE_ROWS];
    for (int r = 0; r < WIDE_ROWS; r++) {
        for (int i = 0; i < WIDE_MAX; i++)
            x[i] = test_float(&rng);
        SCALAR->quantize(x, WIDE_MAX, blocks[r]);
        rows[r] = blocks[r];
        out[0][r] = values[0][r], out[1][r] = values[1][r];
    }
    for (int type = 0; type < 2; type++)
        for (int32_t n_in = WIDE_MAX; n_in > WIDE_MAX - 64; n_in -= 32) {
            wide_fill(&rng, panels, n_in / 32,
                      type ? MOGE_PANEL_Q4_0_BYTES : MOGE_PANEL_Q8_0_BYTES);
            panels_slot(SCALAR, panel_types[type])(panels, WIDE_PANELS, n_in, rows, WIDE_ROWS,
                                                   out[0]);
            EACH_LEVEL(k) {
                memset(values[1], 0x7f, sizeof values[1]);
                panels_slot(k, panel_types[type])(panels, WIDE_PANELS, n_in, rows, WIDE_ROWS,
                                                  out[1]);
                assert_same(type ? "panels_q4_0" : "panels_q8_0", k, n_in, values[0], values[1],
                            sizeof values[0]);
            }
        }
}

/* ---- the scalar table against double precision ---- */

static void exp_is_right(void **state) {
    (void)state;
    float worst = 0;
    for (float x = -86.0f; x < 88.0f; x += 0.00917f) {
        float y, sum = SCALAR->exp_sum(&x, 0.0f, 1.0f, 1, &y);
        assert_true(sum == y);
        double error = fabs((double)y / exp((double)x) - 1.0);
        worst = error > (double)worst ? (float)error : worst;
    }
    assert_true(worst < 2e-7f);
    const float x[6] = {-INFINITY, -200.0f, 0.0f, 200.0f, INFINITY, NAN};
    float y[6];
    SCALAR->exp_sum(x, 0.0f, 1.0f, 6, y);
    assert_true(y[0] == 0.0f && y[1] == 0.0f && y[2] == 1.0f);
    assert_true(isinf(y[3]) && isinf(y[4]) && isnan(y[5]));
    const float small = -100.0f; /* a denormal result */
    SCALAR->exp_sum(&small, 0.0f, 1.0f, 1, y);
    assert_true(fabs((double)y[0] - exp(-100.0)) <= 0x1p-149);
}

static void softmax_is_right(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(8);
    for (int32_t n = 2; n < 200; n += 3) {
        float x[200];
        double sum = 0, total = 0;
        for (int i = 0; i < n; i++)
            x[i] = test_float(&rng) * 10.0f + 50.0f;
        x[n - 1] = -INFINITY;
        float before[200];
        memcpy(before, x, sizeof x);
        for (int i = 0; i < n; i++)
            sum += exp((double)before[i] - 50.0);
        SCALAR->softmax(x, n);
        for (int i = 0; i < n; i++) {
            double exact = exp((double)before[i] - 50.0) / sum;
            assert_true(fabs((double)x[i] - exact) <= 1e-6 * exact);
            total += (double)x[i];
        }
        assert_true(fabs(total - 1.0) < 1e-6);
        assert_true(x[n - 1] == 0.0f);
    }
}

static void rows_are_right(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(9);
    for (int32_t n = 1; n < 500; n += 7) {
        float x[500], w[500], y[500];
        double squares = 0, products = 0, magnitude = 0;
        for (int i = 0; i < n; i++) {
            x[i] = test_float(&rng), w[i] = test_float(&rng);
            squares += (double)x[i] * (double)x[i];
            products += (double)x[i] * (double)w[i];
            magnitude += fabs((double)x[i] * (double)w[i]);
        }
        const float *row = x;
        SCALAR->dots(&row, 1, w, 1, n, y, 1);
        assert_true(fabs((double)y[0] - products) <= 1e-6 * magnitude);
        SCALAR->rmsnorm(x, w, 1e-5f, n, y);
        for (int i = 0; i < n; i++) {
            double exact = (double)x[i] / sqrt(squares / n + 1e-5) * (double)w[i];
            assert_true(fabs((double)y[i] - exact) <= 1e-6 * fabs(exact));
        }
        memcpy(y, x, sizeof y);
        SCALAR->silu_mul(y, w, n);
        for (int i = 0; i < n; i++) {
            double exact = (double)x[i] / (1 + exp(-(double)x[i])) * (double)w[i];
            assert_true(fabs((double)y[i] - exact) <= 1e-6 * fabs(exact));
        }
        memcpy(y, x, sizeof y);
        SCALAR->axpy(y, 3.0f, w, n);
        for (int i = 0; i < n; i++)
            assert_true(y[i] == fmaf(3.0f, w[i], x[i]));
        SCALAR->add(y, w, n);
        assert_true(y[n - 1] == fmaf(3.0f, w[n - 1], x[n - 1]) + w[n - 1]);
    }
}

static void rope_is_right(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(10);
    for (int neox = 0; neox < 2; neox++)
        for (int32_t half = 1; half < 40; half++) {
            float x[160], before[160], cs[80];
            for (int i = 0; i < 4 * half; i++)
                before[i] = x[i] = test_float(&rng);
            for (int i = 0; i < half; i++) {
                double angle = (double)test_float(&rng) * 3.0;
                cs[2 * i] = (float)cos(angle), cs[2 * i + 1] = (float)sin(angle);
            }
            SCALAR->rope(x, cs, 2, 2 * half, neox);
            for (int h = 0; h < 2; h++)
                for (int i = 0; i < half; i++) {
                    int a = 2 * half * h + (neox ? i : 2 * i), b = neox ? a + half : a + 1;
                    double c = (double)cs[2 * i], s = (double)cs[2 * i + 1];
                    double p = (double)before[a], q = (double)before[b];
                    assert_true(fabs((double)x[a] - (p * c - q * s)) < 2e-7);
                    assert_true(fabs((double)x[b] - (p * s + q * c)) < 2e-7);
                }
        }
}

static double half_value(uint16_t h) {
    int exponent = h >> 10 & 31, mantissa = h & 1023;
    double v = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    return h & 0x8000 ? -v : v;
}

static void halves_are_right(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        uint16_t half = (uint16_t)h, back;
        float f, wide;
        SCALAR->f16_to_f32(&half, &f, 1);
        SCALAR->bf16_to_f32(&half, &wide, 1);
        uint32_t bits = h << 16;
        assert_memory_equal(&wide, &bits, 4);
        if ((h & 0x7c00) == 0x7c00) {
            assert_true(h & 0x3ff ? isnan(f) : isinf(f) && !signbit(f) == !(h >> 15));
            continue;
        }
        assert_true((double)f == half_value(half));
        SCALAR->f32_to_f16(&f, &back, 1);
        assert_int_equal(back, half);
        if ((h & 0x7fff) >= 0x7bff)
            continue;
        /* Between two neighbours: below, at and above the middle. */
        double next = half_value((uint16_t)(h + 1)), middle = ((double)f + next) / 2;
        float at[3] = {nextafterf((float)middle, f), (float)middle,
                       nextafterf((float)middle, (float)next)};
        uint16_t rounded[3];
        SCALAR->f32_to_f16(at, rounded, 3);
        assert_int_equal(rounded[0], h);
        assert_int_equal(rounded[1], h & 1 ? h + 1 : h);
        assert_int_equal(rounded[2], h + 1);
    }
    const float large[4] = {65519.99f, 65520.0f, 1e30f, -INFINITY};
    uint16_t rounded[4];
    SCALAR->f32_to_f16(large, rounded, 4);
    const uint16_t expected[4] = {0x7bff, 0x7c00, 0x7c00, 0xfc00};
    assert_memory_equal(rounded, expected, sizeof expected);
    EACH_LEVEL(k)
    for (uint32_t h = 0; h < 65536; h += 16) { /* NaN payloads too */
        uint16_t half[16], back[2][16];
        float f[2][16];
        for (uint32_t i = 0; i < 16; i++)
            half[i] = (uint16_t)(h + i);
        SCALAR->f16_to_f32(half, f[0], 16), k->f16_to_f32(half, f[1], 16);
        assert_same("f16_to_f32", k, 16, f[0], f[1], sizeof f[0]);
        SCALAR->bf16_to_f32(half, f[0], 16);
        SCALAR->f32_to_f16(f[0], back[0], 16), k->f32_to_f16(f[0], back[1], 16);
        assert_same("f32_to_f16", k, 16, back[0], back[1], sizeof back[0]);
    }
}

#include "tests/kernels/attention.h"

/* ---- choices ---- */

static void argmax_takes_the_first_largest(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(12);
    float x[300];
    for (const struct moge_kernels *k = levels; k < levels + n_levels; k++)
        for (int32_t n = 1; n < 300; n++) {
            int32_t expected = 0;
            for (int i = 0; i < n; i++) {
                x[i] = (float)test_below(&rng, 9); /* many ties */
                if (x[i] > x[expected])
                    expected = i;
            }
            assert_int_equal(k->argmax(x, n), expected);
            for (int i = 0; i < n; i++)
                x[i] = -INFINITY;
            assert_int_equal(k->argmax(x, n), 0);
            assert_int_equal(k->gumbel_argmax(x, NULL, n, 1.0f, 1, 1), 0);
            x[0] = NAN;
            assert_int_equal(k->argmax(x, n), n > 1 ? 1 : 0);
            assert_int_equal(k->gumbel_argmax(x, NULL, n, 1.0f, 1, 1), n > 1 ? 1 : 0);
            x[n - 1] = -3e38f;
            assert_int_equal(k->argmax(x, n), n - 1);
            assert_int_equal(k->gumbel_argmax(x, NULL, n, 1.0f, 1, 1), n - 1);
        }
}

/* One by one, with the noise of moge_kernel_gumbel. */
static int32_t gumbel_by_hand(const float *x, const int32_t *ids, int32_t n, float inv_t,
                              uint64_t seed, int32_t pos) {
    int32_t best = 0;
    float value = -INFINITY;
    for (int32_t i = 0; i < n; i++) {
        float v = x[i] * inv_t + moge_kernel_gumbel(seed, pos, ids ? ids[i] : i);
        if (v > value)
            value = v, best = i;
    }
    return best;
}

static void gumbel_argmax_agrees_with_its_noise(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(13);
    struct buffers *m = &buffers;
    for (int round = 0; round < 150; round++) {
        int32_t n = 1 + test_below(&rng, 500), pos = test_below(&rng, 5000);
        uint64_t seed = test_u64(&rng);
        float inv_t = 0.05f + 3.0f * (test_float(&rng) + 1.0f);
        refill(&rng, round % 2 ? EXTREME : ORDINARY);
        for (int i = 0; i < n; i++)
            if (test_below(&rng, 4) == 0)
                m->a[i] = -INFINITY;
        int32_t expected = gumbel_by_hand(m->a, NULL, n, inv_t, seed, pos);
        int32_t expected_ids = gumbel_by_hand(m->a, m->ids, n, inv_t, seed, pos);
        for (const struct moge_kernels *k = levels; k < levels + n_levels; k++) {
            assert_int_equal(k->gumbel_argmax(m->a, NULL, n, inv_t, seed, pos), expected);
            assert_int_equal(k->gumbel_argmax(m->a, m->ids, n, inv_t, seed, pos), expected_ids);
        }
    }
}

static void every_level_passes_its_self_test(void **state) {
    (void)state;
    for (const struct moge_kernels *k = levels; k < levels + n_levels; k++)
        assert_null(moge_kernels_self_test(k));
}

#include "tests/kernels/bench.h"

/* A level that this CPU does not run: its kernels as plain C, over those of the levels below. There
 * are none for AVX2. */
static void add_emulated_level(enum moge_isa isa) {
    if (isa == MOGE_ISA_AVX2) {
        printf("avx2: this CPU does not run it, so it is not checked\n");
        return;
    }
    struct moge_kernels *k = &levels[n_levels];
    *k = levels[n_levels - 1];
    if (isa == MOGE_ISA_AVX512) {
        k->isa = "avx512, emulated";
        emulated_vec_init_avx512(k);
        emulated_attn_page_init_avx512(k);
    } else {
        k->isa = "vnni, emulated";
        emulated_quant_init_vnni(k);
    }
    printf("%s: this CPU does not run it\n", k->isa);
    n_levels++;
}

int main(int argc, char **argv) {
    n_levels = (int)moge_isa_detect() + 1;
    for (int isa = 0; isa < n_levels; isa++)
        moge_kernels_fill(&levels[isa], (enum moge_isa)isa);
    if (argc > 1 && strcmp(argv[1], "--bench") == 0)
        return bench();
    for (int isa = n_levels; isa < MOGE_ISA_COUNT; isa++)
        add_emulated_level((enum moge_isa)isa);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quantize_is_right),
        cmocka_unit_test(quantize_is_the_same_at_every_level),
        cmocka_unit_test(panels_are_right),
        cmocka_unit_test(panels_are_the_same_in_every_tile),
        cmocka_unit_test(wide_panels_are_the_same),
        cmocka_unit_test(exp_is_right),
        cmocka_unit_test(softmax_is_right),
        cmocka_unit_test(rows_are_right),
        cmocka_unit_test(rope_is_right),
        cmocka_unit_test(halves_are_right),
        cmocka_unit_test(attention_is_right),
        cmocka_unit_test(q8_0_attention_is_right),
        cmocka_unit_test(softmax_in_parts_is_right),
        cmocka_unit_test(vec_is_the_same_at_every_level),
        cmocka_unit_test(rope_is_the_same_at_every_level),
        cmocka_unit_test(attention_is_the_same_at_every_level),
        cmocka_unit_test(argmax_takes_the_first_largest),
        cmocka_unit_test(gumbel_argmax_agrees_with_its_noise),
        cmocka_unit_test(every_level_passes_its_self_test),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
