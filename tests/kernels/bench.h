/* SPDX-License-Identifier: Apache-2.0 */
/* kernels_check --bench: GB/s of weights or floats, and GMAC/s, per kernel, level and rows, and
 * what share of the level's own peak that is (engine/kernels/peak.h).  Best of several short runs:
 * the machine is shared.  One thread. */
#ifndef MOGE_TESTS_BENCH_H
#define MOGE_TESTS_BENCH_H

#include <sys/mman.h>
#include <time.h>
#include "engine/kernels/peak.h"
#include "tests/kernels/panels.h"

#define BENCH_SECONDS 0.03
#define BENCH_RUNS    5

static inline double bench_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Seconds of one `call`. */
#define BENCH(seconds, call)                                                                       \
    do {                                                                                           \
        seconds = 1e9;                                                                             \
        for (int run_ = 0; run_ < BENCH_RUNS; run_++) {                                            \
            double start_ = bench_now(), spent_;                                                   \
            int64_t times_ = 0;                                                                    \
            do {                                                                                   \
                call;                                                                              \
                times_++;                                                                          \
                spent_ = bench_now() - start_;                                                     \
            } while (spent_ < BENCH_SECONDS / BENCH_RUNS);                                         \
            if (spent_ / (double)times_ < seconds)                                                 \
                seconds = spent_ / (double)times_;                                                 \
        }                                                                                          \
    } while (0)

/* GMAC/s of a loop of nothing but the level's multiply-adds, for 8-bit and 4-bit weights. */
static double bench_peak(int64_t (*macs)(int64_t n)) {
    double seconds;
    int64_t done = 0;
    BENCH(seconds, done = macs(1024));
    return (double)done / seconds * 1e-9;
}

enum { BENCH_IN = 2048, BENCH_ROWS = 32, BENCH_PANELS = 64 };

/* A few panels in cache, or a walk over far more than any cache holds, BENCH_PANELS a call. */
static void bench_panels(const struct moge_kernels *k, enum moge_type type, size_t n_panels) {
    struct moge_peak probes;
    moge_peak_fill(&probes, (enum moge_isa)(k - levels));
    double peak = bench_peak(type == MOGE_TYPE_Q8_0 ? probes.macs_i8 : probes.macs_i4);
    size_t bytes =
        BENCH_IN / 32 *
        (type == MOGE_TYPE_Q8_0 ? (size_t)MOGE_PANEL_Q8_0_BYTES : (size_t)MOGE_PANEL_Q4_0_BYTES);
    uint8_t *panels = aligned_alloc(2 << 20, (bytes * n_panels + (2 << 20) - 1) >> 21 << 21);
    madvise(panels, bytes * n_panels, MADV_HUGEPAGE); /* as models are loaded */
    static struct moge_act_block x[BENCH_ROWS][BENCH_IN / 32];
    assert_non_null(panels);
    memset(panels, 0x21, bytes * n_panels);
    const struct moge_act_block *rows[BENCH_ROWS];
    static float values[BENCH_ROWS][8 * BENCH_PANELS];
    float *out[BENCH_ROWS];
    for (int r = 0; r < BENCH_ROWS; r++) {
        for (int b = 0; b < BENCH_IN / 32; b++) {
            x[r][b] = (struct moge_act_block){.d = 0.01f};
            memset(x[r][b].q, 3, sizeof x[r][b].q);
        }
        rows[r] = x[r];
        out[r] = values[r];
    }
    const int counts[] = {1, 2, 3, 4, 5, 6, 8, 16, 32};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        double seconds;
        size_t at = 0, each = n_panels < BENCH_PANELS ? n_panels : BENCH_PANELS;
        BENCH(seconds, {
            (type == MOGE_TYPE_Q8_0 ? k->panels_q8_0 : k->panels_q4_0)(
                panels + at * bytes, (int32_t)each, BENCH_IN, rows, counts[i], out);
            at = at + each < n_panels ? at + each : 0;
        });
        double gmac_s = 8.0 * (double)each * BENCH_IN * counts[i] / seconds * 1e-9;
        printf("%-7s panels_%s %-6s rows %2d  %6.1f GB/s  %6.1f GMAC/s  %3.0f%% of peak\n", k->isa,
               type == MOGE_TYPE_Q8_0 ? "q8_0" : "q4_0",
               n_panels < BENCH_PANELS ? "cache" : "memory", counts[i],
               (double)(bytes * each) / seconds * 1e-9, gmac_s, 100 * gmac_s / peak);
    }
    free(panels);
}

#define BENCH_VEC(name, n, call)                                                                   \
    do {                                                                                           \
        double seconds_;                                                                           \
        BENCH(seconds_, call);                                                                     \
        printf("%-7s %-14s n %6d  %8.3f ns each  %6.1f GB/s\n", k->isa, name, n,                   \
               seconds_ / (double)(n)*1e9, 4e-9 * (double)(n) / seconds_);                         \
    } while (0)

enum { ATTN_HEAD = 128, ATTN_TOKENS = 256, ATTN_Q_MAX = 32, ATTN_SLOTS = 16 };

/* Segments of pages as an arena of 8 KV heads scatters them: 16 KiB from page to page. */
struct bench_attn {
    unsigned char *arena;
    size_t bytes, at;
    float q[ATTN_Q_MAX * ATTN_HEAD], p[ATTN_Q_MAX * ATTN_TOKENS];
    const float *queries[ATTN_Q_MAX];
    float *outs[ATTN_Q_MAX];
    const void *pages[ATTN_SLOTS + MOGE_ATTN_AHEAD];
};

static const void *const *bench_pages(struct bench_attn *b) {
    for (int i = 0; i < ATTN_SLOTS + MOGE_ATTN_AHEAD; i++)
        b->pages[i] = b->arena + (b->at + (size_t)i * 16384) % b->bytes;
    b->at += (size_t)ATTN_SLOTS * 16384 + 4096;
    return b->pages;
}

/* Cells as bytes and scales alike are finite and ordinary. */
static void bench_attn_size(const struct moge_kernels *k, const char *where, size_t bytes) {
    static struct bench_attn b;
    b = (struct bench_attn){.arena = aligned_alloc(2 << 20, bytes + (2 << 20)), .bytes = bytes};
    madvise(b.arena, bytes + (2 << 20), MADV_HUGEPAGE);
    memset(b.arena, 0x30, bytes + (2 << 20));
    for (int h = 0; h < ATTN_Q_MAX; h++) {
        b.queries[h] = b.q + h * ATTN_HEAD;
        b.outs[h] = calloc(ATTN_HEAD, sizeof(float));
    }
    for (int n_q = 4; n_q <= ATTN_Q_MAX; n_q *= 8) {
        double seconds[4], macs = (double)n_q * ATTN_HEAD * ATTN_TOKENS;
        BENCH(seconds[0], k->attn_scores(b.queries, n_q, bench_pages(&b), ATTN_TOKENS, ATTN_HEAD,
                                         0.1f, b.p, ATTN_TOKENS));
        BENCH(seconds[1], k->attn_values(b.p, ATTN_TOKENS, n_q, bench_pages(&b), ATTN_TOKENS,
                                         ATTN_HEAD, b.outs));
        BENCH(seconds[2], k->attn_scores_q8_0(b.queries, n_q, bench_pages(&b), ATTN_TOKENS,
                                              ATTN_HEAD, 0.1f, b.p, ATTN_TOKENS));
        BENCH(seconds[3], k->attn_values_q8_0(b.p, ATTN_TOKENS, n_q, bench_pages(&b), ATTN_TOKENS,
                                              ATTN_HEAD, b.outs));
        static const char *const names[] = {"scores f16", "values f16", "scores q8_0",
                                            "values q8_0"};
        for (int i = 0; i < 4; i++)
            printf("%-7s attn %-11s %-6s heads %2d  %6.1f GB/s  %6.1f GMAC/s\n", k->isa, names[i],
                   where, n_q, ATTN_TOKENS * ATTN_HEAD * (i < 2 ? 2 : 1.0625) / seconds[i] * 1e-9,
                   macs / seconds[i] * 1e-9);
    }
    for (int h = 0; h < ATTN_Q_MAX; h++)
        free(b.outs[h]);
    free(b.arena);
}

static void bench_attn(const struct moge_kernels *k) {
    bench_attn_size(k, "cache", 16384);
    bench_attn_size(k, "memory", (size_t)256 << 20);
}

static void bench_vec(const struct moge_kernels *k) {
    enum { N = 2048, VOCAB = 32768 };
    static float x[VOCAB], y[VOCAB], w[VOCAB];
    static uint16_t half[VOCAB];
    static struct moge_act_block blocks[N / 32];
    struct test_rng rng = test_rng_init(1);
    for (int i = 0; i < VOCAB; i++) {
        x[i] = test_float(&rng) * 2.0f;
        w[i] = y[i] = test_float(&rng);
        half[i] = 0x3000;
    }
    volatile int32_t sink;
    BENCH_VEC("quantize", N, k->quantize(x, N, blocks));
    BENCH_VEC("rmsnorm", N, k->rmsnorm(x, w, 1e-5f, N, y));
    BENCH_VEC("silu_mul", N, k->silu_mul(y, w, N));
    BENCH_VEC("softmax", N, k->softmax(y, N));
    const float *row = x;
    BENCH_VEC("dots", N, k->dots(&row, 1, w, 1, N, y, 1));
    BENCH_VEC("rope", N, k->rope(y, w, N / ATTN_HEAD, ATTN_HEAD, 1));
    BENCH_VEC("f16_to_f32", N, k->f16_to_f32(half, y, N));
    BENCH_VEC("f32_to_f16", N, k->f32_to_f16(x, half, N));
    BENCH_VEC("argmax", VOCAB, sink = k->argmax(x, VOCAB));
    BENCH_VEC("gumbel (flat)", VOCAB, sink = k->gumbel_argmax(x, NULL, VOCAB, 1.0f, 1, 1));
    x[0] = 30.0f; /* one likely token: the noise of the others is never computed */
    BENCH_VEC("gumbel (peaked)", VOCAB, sink = k->gumbel_argmax(x, NULL, VOCAB, 1.0f, 1, 1));
    (void)sink;
    bench_attn(k);
}

static int bench(void) {
    for (const struct moge_kernels *k = levels; k < levels + n_levels; k++) {
        if (k->panels_q8_0 != (k > levels ? k[-1].panels_q8_0 : NULL))
            for (int type = 0; type < 2; type++) {
                bench_panels(k, panel_types[type], 1);
                if (k > levels)
                    bench_panels(k, panel_types[type], 16384);
            }
        bench_vec(k);
    }
    return 0;
}

#endif
