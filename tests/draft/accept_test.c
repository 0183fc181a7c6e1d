/* SPDX-License-Identifier: Apache-2.0 */
/* Verification against the plain loop it replaces: pick a token, append it, pick the next. */
#include "tests/test.h"
#include "draft/accept.c"
#include "draft/random.c"

#include <math.h>
#include <stdbool.h>

#define N_VOCAB   96
#define N_SPANS   7
#define N_KNOWN   20
#define N_ROWS    (MOGE_DRAFT_LEN_MAX + 2)
#define TOKENS    (N_KNOWN + MOGE_DRAFT_LEN_MAX + 1)
#define UNTOUCHED (-77)

struct fixture {
    struct test_rng rng;
    struct moge_threads *threads;
    struct moge_accept *accept;
    struct moge_sampler *sampler; /* of the plain loop */
    struct moge_batch batch;
    struct moge_span spans[N_SPANS];
    struct moge_logprobs scores[N_SPANS];
    struct moge_sample_params params[N_SPANS];
    struct moge_logit_bias bias[2];
    int32_t tokens[N_SPANS][TOKENS];
    struct moge_logprobs logprobs[N_SPANS][MOGE_DRAFT_LEN_MAX + 1];
    float logits[N_SPANS * N_ROWS * N_VOCAB];
    int32_t plain[N_SPANS][TOKENS]; /* what the loop decides, guess or no guess */
};

static void fixture_init(struct fixture *f, uint64_t seed, int n_threads) {
    memset(f, 0, sizeof *f);
    f->rng = test_rng_init(seed);
    struct moge_err err;
    TEST_OK(moge_threads_new(&f->threads, n_threads, &err), err);
    TEST_OK(moge_accept_new(&f->accept, N_VOCAB, f->threads, &err), err);
    TEST_OK(moge_sampler_new(&f->sampler, N_VOCAB, &err), err);
    f->batch = (struct moge_batch){.spans = f->spans,
                                   .n_spans = N_SPANS,
                                   .n_spans_cap = N_SPANS,
                                   .logits = f->logits,
                                   .n_vocab = N_VOCAB};
    for (size_t i = 0; i < sizeof f->logits / sizeof f->logits[0]; i++)
        f->logits[i] = 6 * test_float(&f->rng);
    f->bias[0] = (struct moge_logit_bias){3, 2.5f};
    f->bias[1] = (struct moge_logit_bias){9, -INFINITY};
}

static void fixture_fini(struct fixture *f) {
    moge_accept_free(f->accept);
    moge_sampler_free(f->sampler);
    moge_threads_free(f->threads);
}

static void params_draw(struct fixture *f, struct moge_sample_params *params) {
    *params = moge_sample_params_default();
    params->temperature = test_below(&f->rng, 2) ? 0.9f : 0;
    params->top_k = test_below(&f->rng, 2) ? 10 : 0;
    params->repetition_penalty = 1.3f;
    params->presence_penalty = 0.5f;
    params->seed = test_u64(&f->rng);
    params->n_logprobs = test_below(&f->rng, 4) - 1;
    params->n_bias = test_below(&f->rng, 3);
    params->bias = f->bias;
}

/* Span i with n_guess guesses of which the first n_right are what the loop would decide.  An extra
 * row of logits before them scores the last known token. */
static void span_make(struct fixture *f, int32_t i, int32_t n_guess, int32_t n_right, bool extra) {
    int32_t *tokens = f->tokens[i], *plain = f->plain[i], first = i * N_ROWS;
    params_draw(f, &f->params[i]);
    for (int32_t p = 0; p < N_KNOWN; p++)
        tokens[p] = plain[p] = test_below(&f->rng, N_VOCAB);
    for (int32_t j = 0; j <= n_guess; j++)
        plain[N_KNOWN + j] = moge_sampler_pick(f->sampler, &f->params[i],
                                               f->logits + (size_t)(first + extra + j) * N_VOCAB,
                                               plain, 12, N_KNOWN + j);
    for (int32_t p = N_KNOWN; p < TOKENS; p++)
        tokens[p] = UNTOUCHED;
    for (int32_t j = 0; j < n_guess; j++)
        tokens[N_KNOWN + j] = j < n_right    ? plain[N_KNOWN + j]
                              : j == n_right ? (plain[N_KNOWN + j] + 1) % N_VOCAB
                                             : test_below(&f->rng, N_VOCAB);
    memset(f->logprobs[i], 0x55, sizeof f->logprobs[i]);
    f->spans[i] = (struct moge_span){.tokens = tokens,
                                     .slot = i,
                                     .pos = N_KNOWN - 1 - extra,
                                     .n_rows = 1 + n_guess + extra,
                                     .n_known = N_KNOWN,
                                     .n_prompt = 12,
                                     .n_logits = 1 + n_guess + extra,
                                     .n_scored = extra,
                                     .n_score_top = 2,
                                     .scores = &f->scores[i],
                                     .sample = &f->params[i],
                                     .n_guess = n_guess,
                                     .logits_row = first,
                                     .n_accepted = 55,
                                     .n_out = 55,
                                     .logprobs = i % 3 == 0 ? NULL : f->logprobs[i]};
}

static void check_logprobs(struct fixture *f, int32_t i, bool extra) {
    const struct moge_span *span = &f->spans[i];
    struct moge_logprobs expected, untouched;
    memset(&untouched, 0x55, sizeof untouched);
    for (int32_t j = 0; j <= MOGE_DRAFT_LEN_MAX; j++) {
        const struct moge_logprobs *got = &f->logprobs[i][j];
        if (!span->logprobs || span->sample->n_logprobs < 0 || j >= span->n_out) {
            assert_memory_equal(got, &untouched, sizeof untouched);
            continue;
        }
        moge_sampler_logprobs(f->sampler, f->logits + (size_t)(i * N_ROWS + extra + j) * N_VOCAB,
                              f->plain[i][N_KNOWN + j], span->sample->n_logprobs, &expected);
        assert_memory_equal(&got->chosen, &expected.chosen, sizeof got->chosen);
        assert_int_equal(got->rank, expected.rank);
        assert_int_equal(got->n_top, expected.n_top);
        assert_memory_equal(got->top, expected.top,
                            (size_t)expected.n_top * sizeof expected.top[0]);
    }
}

static void check_score(struct fixture *f, int32_t i, bool extra) {
    struct moge_logprobs expected;
    if (!extra)
        return;
    moge_sampler_logprobs(f->sampler, f->logits + (size_t)(i * N_ROWS) * N_VOCAB,
                          f->plain[i][N_KNOWN - 1], 2, &expected);
    assert_memory_equal(&f->scores[i].chosen, &expected.chosen, sizeof expected.chosen);
    assert_int_equal(f->scores[i].rank, expected.rank);
    assert_int_equal(f->scores[i].n_top, 2);
    assert_memory_equal(f->scores[i].top, expected.top, 2 * sizeof expected.top[0]);
}

static void keeps_what_the_plain_loop_decides(void **state) {
    (void)state;
    struct fixture *f = malloc(sizeof *f);
    assert_non_null(f);
    for (int n_threads = 1; n_threads <= 3; n_threads++) {
        fixture_init(f, 5, n_threads);
        for (int32_t n_guess = 0; n_guess <= MOGE_DRAFT_LEN_MAX; n_guess++)
            for (int32_t n_right = 0; n_right <= n_guess; n_right++) {
                bool extra = (n_guess + n_right) % 4 == 0;
                int32_t right[N_SPANS], prefill = test_below(&f->rng, N_SPANS);
                for (int32_t i = 0; i < N_SPANS; i++) {
                    right[i] = (n_right + i) % (n_guess + 1);
                    span_make(f, i, n_guess, right[i], extra);
                }
                /* A chunk of a prompt decides nothing; its row may score. */
                f->spans[prefill].n_logits = f->spans[prefill].n_rows = extra;
                f->spans[prefill].n_guess = 0;
                moge_accept_batch(f->accept, &f->batch);
                for (int32_t i = 0; i < N_SPANS; i++) {
                    const struct moge_span *span = &f->spans[i];
                    assert_int_equal(span->n_accepted, i == prefill ? 0 : right[i]);
                    assert_int_equal(span->n_out, i == prefill ? 0 : right[i] + 1);
                    assert_memory_equal(f->tokens[i], f->plain[i],
                                        (size_t)(N_KNOWN + span->n_out) * sizeof(int32_t));
                    check_logprobs(f, i, extra);
                    check_score(f, i, extra);
                }
            }
        fixture_fini(f);
    }
    free(f);
}

/* Drafts that are right by chance only: decided tokens are the plain loop's all the same. */
static void random_guesses_change_nothing(void **state) {
    (void)state;
    struct fixture *f = malloc(sizeof *f);
    assert_non_null(f);
    fixture_init(f, 9, 2);
    struct moge_drafter drafter = {0};
    struct moge_err err = {0};
    TEST_OK(moge_draft_random_new(&drafter, N_VOCAB, 3, &err), err);
    int32_t n_accepted = 0;
    for (int round = 0; round < 400; round++) {
        struct moge_span *spans[N_SPANS];
        int32_t want[N_SPANS];
        for (int32_t i = 0; i < N_SPANS; i++) {
            span_make(f, i, MOGE_DRAFT_LEN_MAX, 0, false);
            spans[i] = &f->spans[i];
            spans[i]->n_guess = 0;
            want[i] = MOGE_DRAFT_LEN_MAX;
        }
        drafter.ops->guess(drafter.self, spans, want, N_SPANS);
        moge_accept_batch(f->accept, &f->batch);
        for (int32_t i = 0; i < N_SPANS; i++) {
            n_accepted += f->spans[i].n_accepted;
            assert_memory_equal(f->tokens[i], f->plain[i],
                                (size_t)(N_KNOWN + f->spans[i].n_out) * sizeof(int32_t));
        }
    }
    assert_in_range(n_accepted, 5, 120); /* 2,800 first guesses, each right once in 96 */
    assert_int_equal(moge_draft_random_new(&drafter, 0, 3, &err), MOGE_INVALID);
    drafter.ops->free(drafter.self);
    moge_accept_free(NULL);
    fixture_fini(f);
    free(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(keeps_what_the_plain_loop_decides),
                                       cmocka_unit_test(random_guesses_change_nothing)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
