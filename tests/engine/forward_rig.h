/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of the engine share: small models of every kind, sequences with reference logits,
 * and a rig that runs batches of them.  The reference is the slowest way there is: every sequence
 * by itself, one token at a time, one thread, scalar kernels (under a sanitizer, where they take
 * minutes, the best there are), pages in order. */
#ifndef MOGE_FORWARD_RIG_H
#define MOGE_FORWARD_RIG_H

#include <math.h>
#include <unistd.h>
#include "tests/test.h"
#include "engine/engine_state.h"
#include "moge/kv.h"
#include "tools/synth.h"

#define N_SEQS    (TEST_SHARE > 1 ? 7 : 17)
#define LEN_MAX   100
#define N_CONTEXT 128
#define N_PAGES   160 /* more than N_SEQS * ceil(LEN_MAX / 16), so that tables can be scattered */
#define N_ROWS    256

struct kind {
    const char *name;
    const char *path; /* a file of the repository, or NULL: made from shape and type */
    enum moge_weights weights;
    enum moge_kv_type kv_type;
    struct moge_shape shape;
    enum moge_type type;
};
#define TARGET "tests/golden/tiny-target.gguf"
#define DRAFT  "tests/golden/tiny-draft.gguf"

static const struct kind kinds[] = {
    {.name = "MoGE q8_0", .path = TARGET, .weights = MOGE_WEIGHTS_Q8_0, .kv_type = MOGE_KV_F16},
    {.name = "MoGE q4_0", .path = TARGET, .weights = MOGE_WEIGHTS_Q4_0, .kv_type = MOGE_KV_F16},
    {.name = "MoGE f16", .path = TARGET, .weights = MOGE_WEIGHTS_AS_STORED, .kv_type = MOGE_KV_F16},
    {.name = "MoGE f32, KV f32",
     .path = TARGET,
     .weights = MOGE_WEIGHTS_F32,
     .kv_type = MOGE_KV_F32},
    {.name = "MoGE q8_0, KV q8_0",
     .path = TARGET,
     .weights = MOGE_WEIGHTS_Q8_0,
     .kv_type = MOGE_KV_Q8_0},
    {.name = "dense q8_0", .path = DRAFT, .weights = MOGE_WEIGHTS_Q8_0, .kv_type = MOGE_KV_F16},
    {.name = "dense f16", .path = DRAFT, .weights = MOGE_WEIGHTS_AS_STORED, .kv_type = MOGE_KV_F16},
    /* Widths that are no multiple of anything; columns of down come in units of 8 and of 32. */
    {.name = "MoGE, odd widths, q8_0 and f16",
     .shape = {.architecture = "pangu-moe",
               .n_vocab = 401,
               .n_layers = 2,
               .dim = 104,
               .n_heads = 6,
               .n_kv_heads = 2,
               .head_dim = 14,
               .n_context = N_CONTEXT,
               .n_experts = 12,
               .n_experts_used = 6,
               .n_groups = 3,
               .expert_dim = 40,
               .ffn_dim = 160,
               .rope_base = 10000,
               .norm_eps = 1e-5f},
     .type = MOGE_TYPE_Q8_0},
    /* Top-k over all, gated shared expert, experts of three units for two threads. */
    {.name = "qwen2moe q4_0",
     .shape = {.architecture = "qwen2moe",
               .n_vocab = 384,
               .n_layers = 2,
               .dim = 64,
               .n_heads = 4,
               .n_kv_heads = 1,
               .head_dim = 32,
               .n_context = N_CONTEXT,
               .n_experts = 7,
               .n_experts_used = 3,
               .n_groups = 1,
               .expert_dim = 96,
               .ffn_dim = 32,
               .rope_base = 1e6f,
               .norm_eps = 1e-6f,
               .tied = true},
     .type = MOGE_TYPE_Q4_0},
    /* KV blocks of which the last is part empty, and scales shared by no two positions. */
    {.name = "llama q8_0, KV q8_0",
     .kv_type = MOGE_KV_Q8_0,
     .shape = {.architecture = "llama",
               .n_vocab = 384,
               .n_layers = 2,
               .dim = 96,
               .n_heads = 6,
               .n_kv_heads = 2,
               .head_dim = 44,
               .n_context = N_CONTEXT,
               .ffn_dim = 96,
               .rope_base = 10000,
               .norm_eps = 1e-5f},
     .type = MOGE_TYPE_Q8_0},
    /* Interleaved rotation; blocks of the attention output lie across heads. */
    {.name = "llama q8_0",
     .shape = {.architecture = "llama",
               .n_vocab = 384,
               .n_layers = 2,
               .dim = 96,
               .n_heads = 4,
               .n_kv_heads = 4,
               .head_dim = 24,
               .n_context = N_CONTEXT,
               .ffn_dim = 224,
               .rope_base = 10000,
               .norm_eps = 1e-5f},
     .type = MOGE_TYPE_Q8_0},
};
#define N_KINDS ((int)(sizeof kinds / sizeof kinds[0]))

struct sequence {
    int32_t n, n_done;
    int32_t tokens[LEN_MAX + MOGE_DRAFT_LEN_MAX + 1];
    int32_t pages[N_CONTEXT / MOGE_PAGE_TOKENS];
    float *logits; /* [n, n_vocab] the reference */
};

static struct moge_model *models[N_KINDS];
static struct sequence seqs[N_KINDS][N_SEQS];
static struct moge_kernels tables[MOGE_ISA_COUNT];

/* ---- a rig: an engine with so many threads at one level ---- */

struct rig {
    int kind;
    struct moge_threads *threads;
    struct moge_engine *engine;
    struct moge_batch batch;
    struct moge_span spans[N_SEQS];
    struct sequence *of[N_SEQS]; /* whose span it is */
};

static inline void rig_open(struct rig *rig, int kind, int n_threads, enum moge_isa isa) {
    struct moge_err err;
    memset(rig, 0, sizeof *rig);
    rig->kind = kind;
    TEST_OK(moge_threads_new(&rig->threads, n_threads, &err), err);
    struct moge_engine_options options = {.n_pages = N_PAGES,
                                          .n_rows_max = N_ROWS,
                                          .n_logits_max = N_ROWS,
                                          .n_context_max = N_CONTEXT,
                                          .kv_type = kinds[kind].kv_type};
    TEST_OK(moge_engine_new(&rig->engine, models[kind], rig->threads, &options, &err), err);
    rig->engine->kernels = &tables[isa];
    /* These models are too small to be worth sharing out; share them all the same. */
    rig->engine->pass_macs_alone = n_threads == 1 ? INT64_MAX : -1;
    /* Cells never written hold NaN: reading one shows. */
    memset(rig->engine->kv, 0xff, rig->engine->kv_arena.cap_bytes);
    rig->batch.spans = rig->spans;
    rig->batch.n_spans_cap = N_SEQS;
    for (int i = 0; i < N_SEQS; i++)
        seqs[kind][i].n_done = 0;
}

static inline void rig_close(struct rig *rig) {
    moge_engine_free(rig->engine);
    moge_threads_free(rig->threads);
}

static inline struct sequence *seq_of(const struct rig *rig, int i) {
    return &seqs[rig->kind][i];
}

/* Gives every sequence pages of its own, in order or scattered over the arena. */
static inline void pages_deal(struct rig *rig, struct test_rng *rng) {
    int32_t ids[N_PAGES], next = 0;
    for (int32_t i = 0; i < N_PAGES; i++)
        ids[i] = i;
    for (int32_t i = N_PAGES - 1; rng && i > 0; i--) {
        int32_t j = test_below(rng, i + 1), t = ids[i];
        ids[i] = ids[j];
        ids[j] = t;
    }
    for (int i = 0; i < N_SEQS; i++)
        for (int32_t p = 0; p < moge_kv_pages_for(LEN_MAX); p++)
            seq_of(rig, i)->pages[p] = ids[next++];
}

/* Adds a span of n rows of seq to the batch, logits wanted for all. */
static inline void span_add(struct rig *rig, struct sequence *seq, int32_t n) {
    rig->of[rig->batch.n_spans] = seq;
    rig->spans[rig->batch.n_spans++] = (struct moge_span){.tokens = seq->tokens,
                                                          .pages = seq->pages,
                                                          .pos = seq->n_done,
                                                          .n_rows = n,
                                                          .n_known = seq->n,
                                                          .n_logits = n};
}

static inline const float *logits_at(const struct rig *rig, int32_t row) {
    return rig->batch.logits + (size_t)row * (size_t)rig->batch.n_vocab;
}

static inline void compare_rows(const struct rig *rig, const struct moge_span *span,
                                const struct sequence *seq, int32_t n_rows, const char *what) {
    size_t n_vocab = (size_t)rig->batch.n_vocab;
    int32_t first = span->pos + span->n_rows - span->n_logits;
    for (int32_t i = 0; i < n_rows; i++) {
        const float *want = seq->logits + (size_t)(first + i) * n_vocab;
        const float *got = logits_at(rig, span->logits_row + i);
        if (memcmp(want, got, n_vocab * sizeof *got) == 0)
            continue;
        size_t id = 0;
        while (memcmp(&want[id], &got[id], sizeof *got) == 0)
            id++;
        fail_msg("%s, %s: sequence %d, position %d, logit of token %zu is %.9g, alone %.9g",
                 kinds[rig->kind].name, what, (int)(seq - seqs[rig->kind]), first + i, id,
                 (double)got[id], (double)want[id]);
    }
}

/* Runs the batch, compares every wanted row with the reference, advances the sequences. */
static inline void step(struct rig *rig, const char *what) {
    assert_int_equal(moge_engine_forward(rig->engine, &rig->batch), 0);
    for (int32_t i = 0; i < rig->batch.n_spans; i++) {
        compare_rows(rig, &rig->spans[i], rig->of[i], rig->spans[i].n_logits, what);
        rig->of[i]->n_done += rig->spans[i].n_rows;
    }
    rig->batch.n_spans = 0;
}

static inline int32_t left_of(const struct sequence *seq, int32_t n) {
    return seq->n - seq->n_done < n ? seq->n - seq->n_done : n;
}

/* ---- the reference ---- */

static inline void reference_make(int kind, struct test_rng *rng) {
    struct rig rig;
    size_t n_vocab = (size_t)moge_model_info(models[kind])->n_vocab;
    rig_open(&rig, kind, 1, TEST_SHARE > 1 ? moge_isa_detect() : MOGE_ISA_SCALAR);
    for (int i = 0; i < N_SEQS; i++) {
        struct sequence *seq = seq_of(&rig, i);
        seq->n = i == 0 ? LEN_MAX : i == 1 ? 1 : 1 + test_below(rng, LEN_MAX / 2);
        for (int32_t p = 0; p < seq->n; p++)
            seq->tokens[p] = test_below(rng, (int32_t)n_vocab);
        seq->logits = malloc((size_t)seq->n * n_vocab * sizeof(float));
    }
    pages_deal(&rig, NULL);
    for (int i = 0; i < N_SEQS; i++)
        for (struct sequence *seq = seq_of(&rig, i); seq->n_done < seq->n; seq->n_done++) {
            rig.batch.n_spans = 0;
            span_add(&rig, seq, 1);
            assert_int_equal(moge_engine_forward(rig.engine, &rig.batch), 0);
            memcpy(seq->logits + (size_t)seq->n_done * n_vocab, rig.batch.logits,
                   n_vocab * sizeof(float));
        }
    rig_close(&rig);
}

static inline int references_make(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(1);
    for (int isa = 0; isa < MOGE_ISA_COUNT; isa++)
        moge_kernels_fill(&tables[isa],
                          isa <= (int)moge_isa_detect() ? (enum moge_isa)isa : moge_isa_detect());
    for (int kind = 0; kind < N_KINDS; kind++) {
        struct moge_err err;
        char path[512];
        struct moge_model_options options = {.weights = kinds[kind].weights};
        if (kinds[kind].path) {
            snprintf(path, sizeof path, MOGE_SOURCE_DIR "/%s", kinds[kind].path);
        } else {
            snprintf(path, sizeof path, MOGE_BINARY_DIR "/forward_test.%ld.gguf", (long)getpid());
            TEST_OK(moge_synth_write(&kinds[kind].shape, kinds[kind].type, 7, path, &err), err);
        }
        TEST_OK(moge_model_open(&models[kind], path, &options, &err), err);
        if (!kinds[kind].path)
            unlink(path);
        reference_make(kind, &rng);
    }
    return 0;
}

static inline int references_free(void **state) {
    (void)state;
    for (int kind = 0; kind < N_KINDS; kind++) {
        for (int i = 0; i < N_SEQS; i++)
            free(seqs[kind][i].logits);
        moge_model_close(models[kind]);
    }
    return 0;
}

#endif
