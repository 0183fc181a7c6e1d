/* SPDX-License-Identifier: Apache-2.0 */
/* The engine against the Python reference: logits of fixed token sequences, tests/golden/README.md.
 */
#include "tests/test.h"

#include <math.h>

#include "moge/engine.h"
#include "moge/tokenizer.h"

#define TOLERANCE 1e-3

struct golden {
    int32_t n_tokens, n_vocab, k, n_full;
    const int32_t *tokens;
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
    g.tokens = (const int32_t *)(const void *)(g.file + sizeof head);
    g.positions = (const unsigned char *)(g.tokens + g.n_tokens);
    g.full = g.positions + (size_t)g.n_tokens * (size_t)g.k * 8;
    return g;
}

struct rig {
    struct moge_threads *threads;
    struct moge_model *model;
    struct moge_engine *engine;
    struct moge_batch batch;
    struct moge_span span;
    int32_t pages[256], tokens[4096];
};

/* One sequence, all rows at once, logits of every row. */
static void rig_open(struct rig *rig, const char *path, enum moge_weights weights,
                     enum moge_kv_type kv_type, int32_t n_tokens) {
    struct moge_err err;
    char full[512];
    memset(rig, 0, sizeof *rig);
    snprintf(full, sizeof full, MOGE_SOURCE_DIR "/%s", path);
    struct moge_model_options options = {.weights = weights};
    TEST_OK(moge_threads_new(&rig->threads, 2, &err), err);
    TEST_OK(moge_model_open(&rig->model, full, &options, &err), err);
    struct moge_engine_options engine = {.n_pages = 256,
                                         .n_rows_max = n_tokens,
                                         .n_logits_max = n_tokens,
                                         .n_context_max = moge_model_info(rig->model)->n_context,
                                         .kv_type = kv_type};
    TEST_OK(moge_engine_new(&rig->engine, rig->model, rig->threads, &engine, &err), err);
    for (int32_t i = 0; i < 256; i++)
        rig->pages[i] = 255 - i;
    rig->batch = (struct moge_batch){.spans = &rig->span, .n_spans = 1, .n_spans_cap = 1};
}

static const float *rig_run(struct rig *rig, const int32_t *tokens, int32_t n) {
    memcpy(rig->tokens, tokens, (size_t)n * sizeof *tokens);
    rig->span = (struct moge_span){.tokens = rig->tokens,
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
}

static double worst_difference(const struct golden *g, const float *logits) {
    double worst = 0;
    for (int32_t p = 0; p < g->n_tokens; p++)
        for (int32_t i = 0; i < g->k; i++) {
            const unsigned char *at = g->positions + (size_t)p * (size_t)g->k * 8;
            int32_t id;
            float logit;
            memcpy(&id, at + (size_t)i * 4, 4);
            memcpy(&logit, at + (size_t)(g->k + i) * 4, 4);
            worst = fmax(worst, fabs((double)logits[(size_t)p * (size_t)g->n_vocab + (size_t)id] -
                                     (double)logit));
        }
    for (int32_t f = 0; f < g->n_full; f++) {
        const unsigned char *at = g->full + (size_t)f * (4 + 4 * (size_t)g->n_vocab);
        uint32_t p;
        memcpy(&p, at, 4);
        for (int32_t id = 0; id < g->n_vocab; id++) {
            float logit;
            memcpy(&logit, at + 4 + 4 * (size_t)id, 4);
            worst = fmax(worst,
                         fabs((double)logits[p * (size_t)g->n_vocab + (size_t)id] - (double)logit));
        }
    }
    return worst;
}

static void compare(const char *golden, const char *model) {
    struct golden g = golden_read(golden);
    struct rig rig;
    rig_open(&rig, model, MOGE_WEIGHTS_F32, MOGE_KV_F32, g.n_tokens);
    assert_int_equal(moge_model_info(rig.model)->n_vocab, g.n_vocab);
    double worst = worst_difference(&g, rig_run(&rig, g.tokens, g.n_tokens));
    print_message("%s: largest difference of a logit %.2g\n", golden, worst);
    assert_true(worst < TOLERANCE);
    rig_close(&rig);
    free(g.file);
}

static void tiny_pair_agrees(void **state) {
    (void)state;
    compare("tests/golden/tiny-target-random1.logits", "tests/golden/tiny-target.gguf");
    compare("tests/golden/tiny-target-random2.logits", "tests/golden/tiny-target.gguf");
    compare("tests/golden/tiny-draft-random1.logits", "tests/golden/tiny-draft.gguf");
    compare("tests/golden/tiny-draft-random2.logits", "tests/golden/tiny-draft.gguf");
}

static void embedded_pair_agrees(void **state) {
    (void)state;
    compare("tests/golden/embedded-target-text.logits", "models/moge-embedded-target.gguf");
    compare("tests/golden/embedded-target-random.logits", "models/moge-embedded-target.gguf");
    compare("tests/golden/embedded-draft-text.logits", "models/moge-embedded-draft.gguf");
    compare("tests/golden/embedded-draft-random.logits", "models/moge-embedded-draft.gguf");
}

/* Positions of held-out text where the engine, as it serves (Q8_0, keys and values in f16), has the
 * reference's best token. */
static void q8_0_keeps_the_top_token(void **state) {
    (void)state;
    size_t bytes;
    unsigned char *file = file_read("tests/golden/heldout.top1", &bytes);
    assert_memory_equal(file, "MGT1", 4);
    uint32_t n_sequences, n, n_kept = 0, n_all = 0;
    memcpy(&n_sequences, file + 8, sizeof n_sequences);
    const unsigned char *at = file + 12;
    struct rig rig;
    rig_open(&rig, "models/moge-embedded-target.gguf", MOGE_WEIGHTS_Q8_0, MOGE_KV_F16, 512);
    for (uint32_t i = 0; i < n_sequences; i++) {
        memcpy(&n, at, sizeof n);
        const int32_t *tokens = (const int32_t *)(const void *)(at + 4), *top1 = tokens + n;
        const float *logits = rig_run(&rig, tokens, (int32_t)n);
        for (uint32_t p = 0; p < n; p++) {
            const float *row = logits + (size_t)p * (size_t)rig.batch.n_vocab;
            int32_t best = 0;
            for (int32_t id = 1; id < rig.batch.n_vocab; id++)
                if (row[id] > row[best])
                    best = id;
            n_kept += best == top1[p];
        }
        n_all += n;
        at += 4 + 12 * (size_t)n;
    }
    assert_ptr_equal(at, file + bytes);
    print_message("Q8_0 keeps the top token at %u of %u positions (%.2f%%)\n", n_kept, n_all,
                  100.0 * n_kept / n_all);
    assert_true(n_all >= 4000);
    assert_true(n_kept >= 0.98 * n_all);
    rig_close(&rig);
    free(file);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(tiny_pair_agrees),
                                       cmocka_unit_test(embedded_pair_agrees),
                                       cmocka_unit_test(q8_0_keeps_the_top_token)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
