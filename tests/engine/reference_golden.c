/* SPDX-License-Identifier: Apache-2.0 */
/* The engine against the Python reference, which shares no code with it: logits of fixed token
 * sequences and the best tokens of held-out text (formats: tests/golden/README.md). */
#include "tests/test.h"

#include <math.h>

#include "moge/engine.h"
#include "moge/kv.h"

#define TOLERANCE 1e-3

struct golden {
    int32_t n_tokens, n_vocab, k, n_full;
    int32_t *tokens;
    const unsigned char *positions; /* [n_tokens] of k ids and k logits */
    const unsigned char *full;      /* [n_full] of position and n_vocab logits */
    unsigned char *file;
};

static unsigned char *file_read(const char *name, size_t *bytes) {
    char path[512];
    snprintf(path, sizeof path, MOGE_SOURCE_DIR "/%s", name);
    FILE *f = fopen(path, "rb");
    if (!f)
        fail_msg("%s is missing: tools/train/golden.sh makes it", path);
    fseek(f, 0, SEEK_END);
    *bytes = (size_t)ftell(f);
    rewind(f);
    unsigned char *data = malloc(*bytes);
    assert_int_equal(fread(data, 1, *bytes, f), *bytes);
    fclose(f);
    return data;
}

static struct golden golden_read(const char *name) {
    size_t bytes;
    struct golden g = {.file = file_read(name, &bytes)};
    int32_t head[6];
    memcpy(head, g.file, sizeof head);
    assert_memory_equal(g.file, "MGLG", 4);
    assert_int_equal(head[1], 1);
    g.n_tokens = head[2];
    g.n_vocab = head[3];
    g.k = head[4];
    g.n_full = head[5];
    g.tokens = (int32_t *)(void *)(g.file + sizeof head);
    g.positions = (const unsigned char *)(g.tokens + g.n_tokens);
    g.full = g.positions + (size_t)g.n_tokens * (size_t)g.k * 8;
    size_t n_full = (size_t)g.n_full * (4 + 4 * (size_t)g.n_vocab);
    assert_ptr_equal(g.full + n_full, g.file + bytes);
    return g;
}

/* ---- one sequence, all rows at once, logits of every row ---- */

struct rig {
    struct moge_threads *threads;
    struct moge_model *model;
    struct moge_engine *engine;
    struct moge_batch batch;
    struct moge_span span;
    int32_t n_pages, *pages;
};

static void rig_open(struct rig *rig, const char *path, enum moge_weights weights,
                     enum moge_kv_type kv_type, int32_t n_tokens_max) {
    struct moge_err err;
    char full[512];
    memset(rig, 0, sizeof *rig);
    snprintf(full, sizeof full, MOGE_SOURCE_DIR "/%s", path);
    struct moge_model_options options = {.weights = weights};
    TEST_OK(moge_threads_new(&rig->threads, 2, &err), err);
    TEST_OK(moge_model_open(&rig->model, full, &options, &err), err);
    rig->n_pages = moge_kv_pages_for(n_tokens_max);
    struct moge_engine_options engine = {.n_pages = rig->n_pages,
                                         .n_rows_max = n_tokens_max,
                                         .n_logits_max = n_tokens_max,
                                         .n_context_max = moge_model_info(rig->model)->n_context,
                                         .kv_type = kv_type};
    TEST_OK(moge_engine_new(&rig->engine, rig->model, rig->threads, &engine, &err), err);
    rig->pages = calloc((size_t)rig->n_pages, sizeof *rig->pages);
    for (int32_t i = 0; i < rig->n_pages; i++)
        rig->pages[i] = rig->n_pages - 1 - i;
    rig->batch = (struct moge_batch){.spans = &rig->span, .n_spans = 1, .n_spans_cap = 1};
}

static const float *rig_run(struct rig *rig, int32_t *tokens, int32_t n) {
    rig->span = (struct moge_span){.tokens = tokens,
                                   .pages = rig->pages,
                                   .n_rows = n,
                                   .n_known = n,
                                   .n_prompt = n,
                                   .n_logits = n};
    assert_int_equal(moge_engine_forward(rig->engine, &rig->batch), 0);
    return rig->batch.logits;
}

static void rig_close(struct rig *rig) {
    moge_engine_free(rig->engine);
    moge_model_close(rig->model);
    moge_threads_free(rig->threads);
    free(rig->pages);
}

/* ---- logits ---- */

static double difference(const struct golden *g, const float *logits, size_t pos, int32_t id,
                         const unsigned char *want) {
    float logit;
    memcpy(&logit, want, sizeof logit);
    assert_in_range(id, 0, g->n_vocab - 1);
    double d = fabs((double)logits[pos * (size_t)g->n_vocab + (size_t)id] - (double)logit);
    return isnan(d) ? INFINITY : d;
}

static double worst_difference(const struct golden *g, const float *logits) {
    double worst = 0;
    size_t k = (size_t)g->k;
    for (size_t p = 0; p < (size_t)g->n_tokens; p++)
        for (size_t i = 0; i < k; i++) {
            const unsigned char *at = g->positions + p * k * 8;
            int32_t id;
            memcpy(&id, at + i * 4, 4);
            worst = fmax(worst, difference(g, logits, p, id, at + (k + i) * 4));
        }
    for (size_t f = 0; f < (size_t)g->n_full; f++) {
        const unsigned char *at = g->full + f * (4 + 4 * (size_t)g->n_vocab);
        uint32_t p;
        memcpy(&p, at, 4);
        for (int32_t id = 0; id < g->n_vocab; id++)
            worst = fmax(worst, difference(g, logits, p, id, at + 4 + 4 * (size_t)id));
    }
    return worst;
}

static void compare(const char *golden, const char *model) {
    struct golden g = golden_read(golden);
    struct rig rig;
    rig_open(&rig, model, MOGE_WEIGHTS_F32, MOGE_KV_F32, g.n_tokens);
    assert_int_equal(moge_model_info(rig.model)->n_vocab, g.n_vocab);
    assert_true(g.n_tokens > 0 && g.n_full > 0);
    double worst = worst_difference(&g, rig_run(&rig, g.tokens, g.n_tokens));
    print_message("%s: %d positions, largest difference of a logit %.2g\n", golden, g.n_tokens,
                  worst);
    assert_true(worst < TOLERANCE);
    rig_close(&rig);
    free(g.file);
}

#define EMBEDDED_TARGET "models/moge-embedded-target.gguf"
#define EMBEDDED_DRAFT  "models/moge-embedded-draft.gguf"

static void tiny_pair_agrees(void **state) {
    (void)state;
    compare("tests/golden/tiny-target-random1.logits", "tests/golden/tiny-target.gguf");
    compare("tests/golden/tiny-target-random2.logits", "tests/golden/tiny-target.gguf");
    compare("tests/golden/tiny-draft-random1.logits", "tests/golden/tiny-draft.gguf");
    compare("tests/golden/tiny-draft-random2.logits", "tests/golden/tiny-draft.gguf");
}

static void embedded_pair_agrees(void **state) {
    (void)state;
    compare("tests/golden/embedded-target-text.logits", EMBEDDED_TARGET);
    compare("tests/golden/embedded-target-random.logits", EMBEDDED_TARGET);
    compare("tests/golden/embedded-draft-text.logits", EMBEDDED_DRAFT);
    compare("tests/golden/embedded-draft-random.logits", EMBEDDED_DRAFT);
}

/* ---- the best token of held-out text ---- */

struct count {
    int64_t n, n_same;             /* positions; of them with the reference's best token */
    int64_t n_clear, n_clear_same; /* of those where the reference was not in doubt */
};

static int32_t best_of(const float *logits, int32_t n) {
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

static struct count heldout_count(enum moge_weights weights, enum moge_kv_type kv_type) {
    size_t bytes;
    unsigned char *file = file_read("tests/golden/heldout.top1", &bytes), *at = file + 12;
    uint32_t n_sequences;
    struct rig rig;
    struct count count = {0};
    assert_memory_equal(file, "MGT1", 4);
    memcpy(&n_sequences, file + 8, 4);
    rig_open(&rig, EMBEDDED_TARGET, weights, kv_type, 1024);
    int32_t n_vocab = moge_model_info(rig.model)->n_vocab;
    for (uint32_t s = 0; s < n_sequences; s++) {
        int32_t n;
        memcpy(&n, at, 4);
        int32_t *tokens = (int32_t *)(void *)(at + 4), *top = tokens + n;
        const float *gap = (const float *)(const void *)(top + n);
        const float *logits = rig_run(&rig, tokens, n);
        for (int32_t p = 0; p < n; p++) {
            bool same = best_of(logits + (size_t)p * (size_t)n_vocab, n_vocab) == top[p];
            bool clear = gap[p] > 0.5f;
            count.n++;
            count.n_same += same;
            count.n_clear += clear;
            count.n_clear_same += same && clear;
        }
        at = (unsigned char *)(top + n) + 4 * (size_t)n;
    }
    assert_ptr_equal(at, file + bytes);
    rig_close(&rig);
    free(file);
    return count;
}

static void heldout_expect(const char *what, struct count count, double share_min) {
    double share = (double)count.n_same / (double)count.n;
    print_message("%s: the same best token at %.2f%% of %lld held-out positions\n", what,
                  100 * share, (long long)count.n);
    assert_true(count.n > 1000);
    assert_true(share >= share_min);
    assert_true((double)count.n_clear_same >= 0.999 * (double)count.n_clear);
}

static void heldout_tokens_stay_best(void **state) {
    (void)state;
    heldout_expect("f32", heldout_count(MOGE_WEIGHTS_F32, MOGE_KV_F32), 0.999);
    heldout_expect("f16, KV f16", heldout_count(MOGE_WEIGHTS_AS_STORED, MOGE_KV_F16), 0.995);
    heldout_expect("q8_0, KV f16", heldout_count(MOGE_WEIGHTS_Q8_0, MOGE_KV_F16), 0.98);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(tiny_pair_agrees),
                                       cmocka_unit_test(embedded_pair_agrees),
                                       cmocka_unit_test(heldout_tokens_stay_best)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
