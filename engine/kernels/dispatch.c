/* SPDX-License-Identifier: Apache-2.0 */
/* Which level this CPU runs, and one filled table for each up to it: what fills a level's slots is
 * compiled for that level, so only a CPU that has it may run it.  The tables are filled together at
 * the first use and never change afterwards, so any thread may hold a pointer to one. */
#include "engine/kernels/kernels.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdatomic.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>

#define XCR0_AVX    0x06u /* the operating system saves xmm and ymm */
#define XCR0_AVX512 0xe6u /* and k, zmm */

static uint32_t read_xcr0(void) {
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static bool has(uint32_t word, uint32_t bits) {
    return (word & bits) == bits;
}

enum moge_isa moge_isa_detect(void) {
    uint32_t a, b, c, d, b7, c7;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, bit_OSXSAVE | bit_AVX | bit_FMA | bit_F16C))
        return MOGE_ISA_SCALAR;
    uint32_t saved = read_xcr0();
    if (!has(saved, XCR0_AVX) || !__get_cpuid_count(7, 0, &a, &b7, &c7, &d) ||
        !has(b7, bit_AVX2 | bit_BMI2))
        return MOGE_ISA_SCALAR;
    if (!has(saved, XCR0_AVX512) ||
        !has(b7, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL))
        return MOGE_ISA_AVX2;
    return has(c7, bit_AVX512VNNI) ? MOGE_ISA_VNNI : MOGE_ISA_AVX512;
}
#else
enum moge_isa moge_isa_detect(void) {
    return MOGE_ISA_SCALAR;
}
#endif

void moge_kernels_fill(struct moge_kernels *kernels, enum moge_isa isa) {
    static const char *const names[MOGE_ISA_COUNT] = {"scalar", "avx2", "avx512", "vnni"};
    kernels->isa = names[isa];
    moge_quant_init_scalar(kernels);
    moge_vec_init_scalar(kernels);
    moge_attn_page_init_scalar(kernels);
    if (isa < MOGE_ISA_AVX2)
        return;
    moge_quant_init_avx2(kernels);
    moge_vec_init_avx2(kernels);
    moge_attn_page_init_avx2(kernels);
    if (isa < MOGE_ISA_AVX512)
        return;
    moge_vec_init_avx512(kernels);
    moge_attn_page_init_avx512(kernels);
    if (isa < MOGE_ISA_VNNI)
        return;
    moge_quant_init_vnni(kernels);
}

/* constant after tables_fill */
static struct moge_kernels tables[MOGE_ISA_COUNT];
static enum moge_isa detected;
/* shared: written by moge_kernels_set_max, read by everyone; no other data hangs on it */
static _Atomic int isa_max = MOGE_ISA_COUNT - 1;

static void tables_fill(void) {
    detected = moge_isa_detect();
    for (int isa = 0; isa <= (int)detected; isa++)
        moge_kernels_fill(&tables[isa], (enum moge_isa)isa);
}

const struct moge_kernels *moge_kernels(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, tables_fill);
    int max = atomic_load_explicit(&isa_max, memory_order_relaxed);
    return &tables[(int)detected < max ? (int)detected : max];
}

enum moge_isa moge_kernels_level(void) {
    return (enum moge_isa)(moge_kernels() - tables);
}

void moge_kernels_set_max(enum moge_isa isa) {
    atomic_store_explicit(&isa_max, (int)isa, memory_order_relaxed);
}

/* ---- self test: two tables, the same made-up input, the same bits ---- */

enum { SELF_N = 128 + 13, SELF_IN = 5 * 32, SELF_ROWS = 7, SELF_PANELS = 7, SELF_HEAD = 40 };

struct self_input {
    float a[SELF_N], b[SELF_N];
    uint16_t half[2 * 16 * SELF_HEAD];
    _Alignas(64) uint8_t panels[SELF_PANELS * (SELF_IN / 32) * MOGE_PANEL_Q8_0_BYTES];
    struct moge_kv_q8_0 kv[2 * ((SELF_HEAD + 31) / 32)];
    struct moge_act_block blocks[SELF_ROWS * SELF_IN / 32];
};

static float self_float(uint32_t *state) { /* in [-4, 4) */
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) * 0x1p-21f - 4.0f;
}

static void self_fill(struct self_input *in) {
    uint32_t state = 1;
    for (int i = 0; i < SELF_N; i++) {
        in->a[i] = self_float(&state);
        in->b[i] = self_float(&state);
    }
    for (int i = 0; i < 2 * 16 * SELF_HEAD; i++) /* halves of magnitude 1/4 to 4 */
        in->half[i] = (uint16_t)(0x3400u + (uint32_t)(self_float(&state) * 512.0f + 2048.0f));
    for (size_t i = 0; i < sizeof in->panels; i++) /* also as a scale: a finite half below 2 */
        in->panels[i] = (uint8_t)((uint32_t)(self_float(&state) * 32.0f + 128.0f) & 0xbfu);
    for (size_t b = 0; b < sizeof in->kv / sizeof in->kv[0]; b++) {
        for (size_t i = 0; i < sizeof in->kv[b].q; i++)
            in->kv[b].q[i] = (int8_t)(self_float(&state) * 31.0f);
        memcpy(in->kv[b].d, in->half + 16 * b, sizeof in->kv[b].d);
    }
    for (int i = 0; i < SELF_ROWS * SELF_IN / 32; i++) {
        struct moge_act_block *block = &in->blocks[i];
        int32_t halves[2] = {0, 0};
        block->d = self_float(&state);
        for (int k = 0; k < 32; k++) {
            block->q[k] = (int8_t)(self_float(&state) * 31.0f);
            halves[k / 2 % 2] += block->q[k];
        }
        block->sum = moge_qsum(halves[0], halves[1]);
    }
}

/* Everything one slot writes; large enough for each. */
struct self_output {
    float f[16 * SELF_HEAD];
    int32_t i[16];
    struct moge_act_block blocks[SELF_IN / 32];
    uint16_t h[SELF_N];
};

/* Several tiles of rows for each panel, and one. */
static void self_panels(const struct self_input *in, struct self_output *out,
                        void (*panels)(const void *panels, int32_t n_panels, int32_t n_in,
                                       const struct moge_act_block *const *rows, int32_t n_rows,
                                       float *const *out)) {
    enum { EACH = SELF_PANELS * MOGE_PANEL_ROWS };
    const struct moge_act_block *rows[SELF_ROWS];
    float *at[SELF_ROWS + 3];
    for (int r = 0; r < SELF_ROWS + 3; r++)
        at[r] = out->f + EACH * r;
    for (int r = 0; r < SELF_ROWS; r++)
        rows[r] = in->blocks + r * (SELF_IN / 32);
    panels(in->panels, SELF_PANELS, SELF_IN, rows, SELF_ROWS, at);
    panels(in->panels, SELF_PANELS, SELF_IN, rows, 1, at + SELF_ROWS);
    panels(in->panels, SELF_PANELS, SELF_IN, rows, 2, at + SELF_ROWS + 1);
}

/* Two pages, the second with 11 positions; five heads are a tile and a rest. */
static void self_attn(
    const struct self_input *in, struct self_output *out, const uint8_t *pages, size_t page_bytes,
    void (*scores)(const float *const *q, int32_t n_q, const void *const *pages, int32_t n_tok,
                   int32_t head_dim, float scale, float *scores, size_t stride),
    void (*values)(const float *p, size_t stride, int32_t n_q, const void *const *pages,
                   int32_t n_tok, int32_t head_dim, float *const *out)) {
    enum { HEADS = 5, TOKENS = 16 + 11 };
    const void *at[2 + MOGE_ATTN_AHEAD] = {pages, pages + page_bytes};
    for (int i = 0; i < MOGE_ATTN_AHEAD; i++)
        at[2 + i] = pages;
    const float *q[HEADS];
    float *sums[HEADS];
    for (int h = 0; h < HEADS; h++) {
        q[h] = in->a + 16 * h;
        sums[h] = out->f + HEADS * TOKENS + SELF_HEAD * h;
    }
    scores(q, HEADS, at, TOKENS, SELF_HEAD, 0.1f, out->f, TOKENS);
    values(out->f, TOKENS, HEADS, at, TOKENS, SELF_HEAD, sums);
}

/* Tiles of all shapes. */
static void self_dots(const struct moge_kernels *k, const struct self_input *in,
                      struct self_output *out) {
    enum { N = SELF_N / 3 };
    const float *x[] = {in->a, in->a + 7, in->a + 16};
    k->dots(x, 3, in->b, 3, N, out->f, 3);
}

#define SELF_COUNT 21

/* Runs slot number `slot`; returns its name. */
static const char *self_run(const struct moge_kernels *k, int slot, const struct self_input *in,
                            struct self_output *out) {
    memset(out, 0, sizeof *out);
    memcpy(out->f, in->a, sizeof in->a);
    switch (slot) {
    case 0:
        return k->quantize(in->a, 128, out->blocks), "quantize";
    case 1:
        return self_panels(in, out, k->panels_q8_0), "panels_q8_0";
    case 2:
        return self_panels(in, out, k->panels_q4_0), "panels_q4_0";
    case 3:
        return k->rmsnorm(in->a, in->b, 1e-5f, SELF_N, out->f), "rmsnorm";
    case 4:
        return k->silu_mul(out->f, in->b, SELF_N), "silu_mul";
    case 5:
        return k->add(out->f, in->b, SELF_N), "add";
    case 6:
        return k->axpy(out->f, 0.7f, in->b, SELF_N), "axpy";
    case 7:
        return self_dots(k, in, out), "dots";
    case 8:
        return k->softmax(out->f, SELF_N), "softmax";
    case 9:
        return out->f[SELF_N] = k->exp_sum(in->a, 3.0f, 0.3f, SELF_N, out->f), "exp_sum";
    case 10:
        return k->rope(out->f, in->b, 3, SELF_HEAD, 1), "rope (neox)";
    case 11:
        return k->rope(out->f, in->b, 3, SELF_HEAD, 0), "rope (pairs)";
    case 12:
        return out->i[0] = k->argmax(in->a, SELF_N), "argmax";
    case 13:
        return out->i[0] = k->gumbel_argmax(in->a, NULL, SELF_N, 0.8f, 42, 7), "gumbel_argmax";
    case 14:
        return k->f16_to_f32(in->half, out->f, SELF_N), "f16_to_f32";
    case 15:
        return k->f32_to_f16(in->a, out->h, SELF_N), "f32_to_f16";
    case 16:
        return k->bf16_to_f32(in->half, out->f, SELF_N), "bf16_to_f32";
    case 17:
        return self_attn(in, out, (const uint8_t *)in->half, sizeof in->half / 2, k->attn_scores,
                         k->attn_values),
               "attn_scores and attn_values";
    case 18:
        return self_attn(in, out, (const uint8_t *)in->kv, sizeof in->kv / 2, k->attn_scores_q8_0,
                         k->attn_values_q8_0),
               "attn_scores_q8_0 and attn_values_q8_0";
    case 19:
        out->f[SELF_N] = -2.0f, out->f[SELF_N + 1] = 3.0f;
        out->f[SELF_N + 2] = k->softmax_part(out->f, SELF_N, &out->f[SELF_N], &out->f[SELF_N + 1]);
        return "softmax_part";
    default:
        return k->scale(out->f, 0.7f, SELF_N), "scale";
    }
}

const char *moge_kernels_self_test(const struct moge_kernels *kernels) {
    struct self_input in;
    struct self_output expected, actual;
    struct moge_kernels scalar;
    self_fill(&in);
    moge_kernels_fill(&scalar, MOGE_ISA_SCALAR);
    for (int slot = 0; slot < SELF_COUNT; slot++) {
        self_run(&scalar, slot, &in, &expected);
        const char *name = self_run(kernels, slot, &in, &actual);
        if (memcmp(&expected, &actual, sizeof actual) != 0)
            return name;
    }
    return NULL;
}
