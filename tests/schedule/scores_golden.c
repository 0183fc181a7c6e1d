/* SPDX-License-Identifier: Apache-2.0 */
/* Prompt scores against the Python reference: the log-probabilities that a request is given are
 * those that the golden logits make, whatever the chunks the prompt comes in. */
#include "tests/schedule/exactness.h"

#define TOLERANCE 2e-4

static unsigned char file_bytes[1 << 22];

struct golden {
    int32_t n_tokens, n_vocab, k, n_full;
    const unsigned char *tokens, *top, *full; /* see tests/golden/README.md */
};

static struct golden golden_read(const char *path) {
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    size_t bytes = fread(file_bytes, 1, sizeof file_bytes, f);
    fclose(f);
    int32_t head[6];
    memcpy(head, file_bytes, sizeof head);
    assert_memory_equal(file_bytes, "MGLG", 4);
    struct golden g = {head[2], head[3], head[4], head[5], file_bytes + sizeof head, NULL, NULL};
    g.top = g.tokens + 4 * (size_t)g.n_tokens;
    g.full = g.top + 8 * (size_t)g.n_tokens * (size_t)g.k;
    assert_int_equal(g.full - file_bytes + (4 + 4 * (ptrdiff_t)g.n_vocab) * g.n_full, bytes);
    return g;
}

static double logit_at(const unsigned char *logits, int32_t i) {
    float logit;
    memcpy(&logit, logits + 4 * (size_t)i, sizeof logit);
    return (double)logit;
}

/* The largest logits of every position: what lies between them is the same between logarithms. */
static void check_tops(const struct golden *g, const struct outcome *outcome) {
    for (int32_t p = 0; p < outcome->n_scored; p++) {
        const unsigned char *ids = g->top + 8 * (size_t)p * (size_t)g->k, *logits = ids + 4 * g->k;
        const struct moge_logprobs *got = &outcome->scored[p].logprobs;
        assert_int_equal(got->n_top, g->k);
        for (int32_t j = 0; j < g->k; j++) {
            double want = logit_at(logits, j) - logit_at(logits, 0);
            assert_true(fabs((double)(got->top[j].logprob - got->top[0].logprob) - want) <
                        TOLERANCE);
        }
        int32_t best;
        memcpy(&best, ids, sizeof best);
        if (logit_at(logits, 0) - logit_at(logits, 1) > TOLERANCE)
            assert_int_equal(got->top[0].id, best);
    }
}

/* Where all logits are known, the score itself and its rank. */
static double check_scores(const struct golden *g, const struct outcome *outcome) {
    double worst = 0;
    for (int32_t f = 0; f < g->n_full; f++) {
        const unsigned char *at = g->full + (size_t)f * (4 + 4 * (size_t)g->n_vocab);
        int32_t p, n_above = 0;
        memcpy(&p, at, sizeof p);
        if (p >= outcome->n_scored)
            continue;
        double sum = 0, chosen = logit_at(at + 4, outcome->scored[p].id);
        for (int32_t id = 0; id < g->n_vocab; id++) {
            sum += exp(logit_at(at + 4, id) - chosen);
            n_above += logit_at(at + 4, id) > chosen + TOLERANCE;
        }
        worst = fmax(worst, fabs((double)outcome->scored[p].logprobs.chosen + log(sum)));
        assert_true(outcome->scored[p].logprobs.rank > n_above);
    }
    return worst;
}

static void scores_are_the_references(void **state) {
    (void)state;
    static struct spec specs[N_SPECS];
    static struct outcome outcomes[N_SPECS];
    static const int32_t chunks[] = {1, 7, 512};
    struct golden g = golden_read(MOGE_SOURCE_DIR "/tests/golden/tiny-target-random1.logits");
    struct models models = {.name = "tiny f32", .kv_type = MOGE_KV_F32};
    struct moge_model_options options = {.weights = MOGE_WEIGHTS_F32};
    struct moge_err err = {0};
    TEST_OK(moge_model_open(&models.target, MOGE_SOURCE_DIR "/tests/golden/tiny-target.gguf",
                            &options, &err),
            err);
    specs[0].n_prompt = g.n_tokens;
    assert_true(g.n_tokens < N_CONTEXT);
    memcpy(specs[0].prompt, g.tokens, 4 * (size_t)g.n_tokens);
    specs[0].sample = moge_sample_params_default();
    specs[0].max_tokens = 1;
    specs[0].n_prompt_logprobs = g.k;
    for (int i = 0; i < 3; i++) {
        struct config config = {.n_concurrent = 1,
                                .prefill_chunk = chunks[i],
                                .n_threads = 2,
                                .step_rows = 256,
                                .n_pages = moge_kv_pages_for(N_CONTEXT),
                                .n_specs = 1};
        run_all(&models, specs, &config, NULL, outcomes);
        assert_int_equal(outcomes[0].n_scored, g.n_tokens - 1);
        for (int32_t p = 0; p < outcomes[0].n_scored; p++)
            assert_int_equal(outcomes[0].scored[p].id, specs[0].prompt[p + 1]);
        check_tops(&g, &outcomes[0]);
        double worst = check_scores(&g, &outcomes[0]);
        print_message("chunks of %d: largest difference of a score %.2g\n", chunks[i], worst);
        assert_true(worst < TOLERANCE);
    }
    moge_model_close(models.target);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(scores_are_the_references)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
