/* SPDX-License-Identifier: Apache-2.0 */
/* The draft model's bookkeeping, over an imaginary engine in which KV matters: every position
 * stores a number made of its token, and the logits of a row are made of all numbers before it,
 * read through the block table as attention would.  A stale, misplaced or missing entry changes the
 * guess. */
#include "tests/test.h"
#include "draft/lm.c"

#include "moge/kv.h"

#define N_SLOTS   6
#define N_PAGES   40
#define N_CONTEXT 160
#define N_VOCAB   50

struct moge_model {
    struct moge_model_info info;
};

struct moge_engine {
    struct moge_engine_options options;
    uint64_t kv[N_PAGES * MOGE_PAGE_TOKENS];
    float logits[N_SLOTS * N_VOCAB];
};

struct moge_sampler {
    int unused;
};

static struct moge_engine *the_engine;
static int n_forwards, n_rows_computed, n_until_failure;

static uint64_t mix(uint64_t a, uint64_t b) {
    uint64_t z = (a ^ b * 0x9e3779b97f4a7c15u) + 0x7f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t entry(int32_t token, int32_t pos) {
    return mix((uint64_t)token, (uint64_t)pos);
}

const struct moge_model_info *moge_model_info(const struct moge_model *model) {
    return &model->info;
}

int moge_engine_new(struct moge_engine **out, const struct moge_model *model,
                    struct moge_threads *threads, const struct moge_engine_options *options,
                    struct moge_err *err) {
    (void)model;
    (void)threads;
    (void)err;
    the_engine = calloc(1, sizeof *the_engine);
    assert_non_null(the_engine);
    the_engine->options = *options;
    assert_true(options->n_logits_max <= N_SLOTS);
    *out = the_engine;
    return 0;
}

void moge_engine_free(struct moge_engine *engine) {
    free(engine);
}

int moge_engine_forward(struct moge_engine *engine, struct moge_batch *batch) {
    if (n_until_failure > 0 && --n_until_failure == 0)
        return MOGE_INTERNAL;
    assert_true(batch->n_spans >= 1);
    assert_in_range(moge_batch_rows(batch), 1, engine->options.n_rows_max);
    assert_true(moge_batch_logits(batch) <= engine->options.n_logits_max);
    n_forwards++;
    int32_t row = 0;
    for (int32_t i = 0; i < batch->n_spans; i++) {
        struct moge_span *span = &batch->spans[i];
        assert_true(span->n_rows >= 1 && span->pos >= 0);
        assert_true(span->pos + span->n_rows <= engine->options.n_context_max);
        n_rows_computed += span->n_rows;
        for (int32_t p = span->pos; p < span->pos + span->n_rows; p++) {
            int32_t page = span->pages[p / MOGE_PAGE_TOKENS];
            assert_in_range(page, 0, N_PAGES - 1);
            engine->kv[page * MOGE_PAGE_TOKENS + p % MOGE_PAGE_TOKENS] = entry(span->tokens[p], p);
        }
        span->logits_row = row;
        assert_in_range(span->n_logits, 0, 1);
        if (span->n_logits == 0)
            continue;
        uint64_t h = 0;
        for (int32_t p = 0; p < span->pos + span->n_rows; p++)
            h = mix(h, engine->kv[span->pages[p / MOGE_PAGE_TOKENS] * MOGE_PAGE_TOKENS +
                                  p % MOGE_PAGE_TOKENS]);
        for (int32_t v = 0; v < N_VOCAB; v++)
            engine->logits[row * N_VOCAB + v] = (float)(mix(h, (uint64_t)v) >> 40);
        row++;
    }
    batch->logits = engine->logits;
    return 0;
}

int moge_sampler_new(struct moge_sampler **out, int32_t n_vocab, struct moge_err *err) {
    (void)n_vocab;
    (void)err;
    *out = calloc(1, sizeof **out);
    return *out ? 0 : MOGE_NOMEM;
}

void moge_sampler_free(struct moge_sampler *sampler) {
    free(sampler);
}

/* Depends on everything a pick may depend on: parameters, history, position, where the prompt ends.
 */
int32_t moge_sampler_pick(struct moge_sampler *sampler, const struct moge_sample_params *params,
                          const float *logits, const int32_t *tokens, int32_t n_prompt,
                          int32_t n_tokens) {
    (void)sampler;
    int32_t best = 0;
    for (int32_t v = 1; v < N_VOCAB; v++)
        best = logits[v] > logits[best] ? v : best;
    uint64_t h = mix(params->seed, (uint64_t)best + ((uint64_t)n_prompt << 32));
    for (int32_t p = n_tokens - 3 > 0 ? n_tokens - 3 : 0; p < n_tokens; p++)
        h = mix(h, (uint64_t)tokens[p]);
    return (int32_t)(mix(h, (uint64_t)n_tokens) % N_VOCAB);
}

/* What decoding alone, from nothing, would guess next. */
static int32_t naive_pick(const struct moge_sample_params *params, const int32_t *tokens,
                          int32_t n_prompt, int32_t n_tokens) {
    float logits[N_VOCAB];
    uint64_t h = 0;
    for (int32_t p = 0; p < n_tokens; p++)
        h = mix(h, entry(tokens[p], p));
    for (int32_t v = 0; v < N_VOCAB; v++)
        logits[v] = (float)(mix(h, (uint64_t)v) >> 40);
    return moge_sampler_pick(NULL, params, logits, tokens, n_prompt, n_tokens);
}

struct sequence {
    int32_t slot; /* -1: none */
    int32_t n_known, n_prompt;
    int32_t n_pause; /* steps for which nothing is guessed */
    int32_t tokens[N_CONTEXT + MOGE_DRAFT_LEN_MAX + 1];
    struct moge_sample_params sample;
};

struct bench {
    struct test_rng rng;
    struct moge_kv *kv;
    struct moge_threads *threads;
    struct moge_model model;
    struct moge_drafter drafter;
    struct sequence sequences[N_SLOTS];
};

static void bench_init(struct bench *bench, uint64_t seed, int32_t n_rows_max, int n_threads) {
    memset(bench, 0, sizeof *bench);
    n_forwards = n_rows_computed = n_until_failure = 0;
    bench->rng = test_rng_init(seed);
    bench->model.info.n_vocab = N_VOCAB;
    bench->model.info.n_context = N_CONTEXT;
    struct moge_err err;
    TEST_OK(moge_threads_new(&bench->threads, n_threads, &err), err);
    struct moge_kv_options kv = {N_PAGES, N_SLOTS, N_CONTEXT / MOGE_PAGE_TOKENS, true};
    TEST_OK(moge_kv_new(&bench->kv, &kv, &err), err);
    struct moge_draft_lm_options lm = {N_PAGES, N_SLOTS, n_rows_max, N_CONTEXT, MOGE_KV_F16};
    TEST_OK(moge_draft_lm_new(&bench->drafter, &bench->model, bench->threads, &lm, &err), err);
    for (int i = 0; i < N_SLOTS; i++)
        bench->sequences[i].slot = -1;
}

static void bench_fini(struct bench *bench) {
    bench->drafter.ops->free(bench->drafter.self);
    moge_kv_free(bench->kv);
    moge_threads_free(bench->threads);
}

/* The prompt begins with the first n_common tokens of all prompts.  What the pager knows of it is
 * taken over, as the scheduler does it; the rest counts as computed by the target. */
static bool sequence_begin_alike(struct bench *bench, struct sequence *sequence, int32_t n_prompt,
                                 int32_t n_common) {
    int slot = moge_kv_slot_take(bench->kv);
    if (slot < 0)
        return false;
    for (int32_t i = 0; i < n_prompt; i++)
        sequence->tokens[i] =
            i < n_common ? (5 * i + 1) % N_VOCAB : test_below(&bench->rng, N_VOCAB);
    moge_kv_attach(bench->kv, slot, NULL, 0, sequence->tokens, n_prompt - 1);
    if (moge_kv_reserve(bench->kv, slot, n_prompt) != 0) {
        moge_kv_slot_give(bench->kv, slot);
        return false;
    }
    sequence->slot = slot;
    sequence->n_known = sequence->n_prompt = n_prompt;
    sequence->sample.seed = test_u64(&bench->rng);
    moge_kv_publish(bench->kv, slot, sequence->tokens, n_prompt - 1);
    return true;
}

static bool sequence_begin(struct bench *bench, struct sequence *sequence, int32_t n_prompt) {
    return sequence_begin_alike(bench, sequence, n_prompt, 0);
}

static void sequence_end(struct bench *bench, struct sequence *sequence) {
    bench->drafter.ops->forget(bench->drafter.self, sequence->slot);
    moge_kv_slot_give(bench->kv, sequence->slot);
    sequence->slot = -1;
}

/* Overwrites every KV entry that the draft has no right to rely on: in pages nobody holds and of
 * which it claims nothing, and at positions beyond what a sequence has decided. */
static void scramble(struct bench *bench) {
    bool held[N_PAGES * MOGE_PAGE_TOKENS] = {0};
    for (int i = 0; i < N_SLOTS; i++) {
        const struct sequence *sequence = &bench->sequences[i];
        for (int32_t p = 0; sequence->slot >= 0 && p < sequence->n_known - 1; p++)
            held[moge_kv_table(bench->kv, sequence->slot)[p / MOGE_PAGE_TOKENS] * MOGE_PAGE_TOKENS +
                 p % MOGE_PAGE_TOKENS] = true;
    }
    const struct lm *lm = bench->drafter.self;
    for (int32_t i = 0; i < N_PAGES * MOGE_PAGE_TOKENS; i++)
        if (!held[i] && lm->marks[i / MOGE_PAGE_TOKENS] == PAGE_UNKNOWN)
            the_engine->kv[i] = test_u64(&bench->rng);
}

static void span_of(struct bench *bench, struct sequence *sequence, struct moge_span *span) {
    *span = (struct moge_span){.tokens = sequence->tokens,
                               .pages = moge_kv_table(bench->kv, sequence->slot),
                               .slot = sequence->slot,
                               .pos = sequence->n_known - 1,
                               .n_rows = 1,
                               .n_known = sequence->n_known,
                               .n_prompt = sequence->n_prompt,
                               .n_logits = 1,
                               .sample = &sequence->sample};
}

static void check_guesses(struct sequence *sequence, const struct moge_span *span) {
    for (int32_t j = 0; j < span->n_guess; j++)
        assert_int_equal(
            span->tokens[span->n_known + j],
            naive_pick(&sequence->sample, span->tokens, span->n_prompt, span->n_known + j));
}

/* The target accepts some of the guesses and decides one more token. */
static void decide(struct bench *bench, struct sequence *sequence, int32_t n_guess) {
    int32_t n_accepted = n_guess > 0 ? test_below(&bench->rng, n_guess + 1) : 0;
    int32_t *next = &sequence->tokens[sequence->n_known + n_accepted];
    if (n_accepted < n_guess)
        *next = (*next + 1 + test_below(&bench->rng, N_VOCAB - 1)) % N_VOCAB;
    else
        *next = test_below(&bench->rng, N_VOCAB);
    sequence->n_known += n_accepted + 1;
    moge_kv_publish(bench->kv, sequence->slot, sequence->tokens, sequence->n_known - 1);
    moge_kv_truncate(bench->kv, sequence->slot, sequence->n_known - 1);
}

static void bench_step(struct bench *bench) {
    struct moge_span spans[N_SLOTS], *asked[N_SLOTS];
    int32_t want[N_SLOTS], n_spans = 0, n_wanted[N_SLOTS] = {0}, at[N_SLOTS];
    for (int i = 0; i < N_SLOTS; i++) {
        struct sequence *sequence = &bench->sequences[i];
        at[i] = -1;
        if (sequence->slot < 0)
            continue;
        n_wanted[i] = sequence->n_pause > 0 ? 0 : test_below(&bench->rng, MOGE_DRAFT_LEN_MAX + 1);
        sequence->n_pause -= sequence->n_pause > 0;
        int32_t n_room = N_CONTEXT - sequence->n_known - 1;
        n_wanted[i] = n_wanted[i] < n_room ? n_wanted[i] : n_room;
        if (moge_kv_reserve(bench->kv, sequence->slot, sequence->n_known + n_wanted[i]) != 0) {
            sequence_end(bench, sequence);
            continue;
        }
        at[i] = n_spans;
        span_of(bench, sequence, &spans[n_spans]);
        asked[n_spans] = &spans[n_spans];
        want[n_spans++] = n_wanted[i];
    }
    bench->drafter.ops->guess(bench->drafter.self, asked, want, n_spans);
    for (int i = 0; i < N_SLOTS; i++) {
        struct sequence *sequence = &bench->sequences[i];
        if (at[i] < 0)
            continue;
        assert_int_equal(spans[at[i]].n_guess, n_wanted[i]);
        assert_int_equal(spans[at[i]].n_rows, 1);
        check_guesses(sequence, &spans[at[i]]);
        decide(bench, sequence, spans[at[i]].n_guess);
        if (test_below(&bench->rng, 12) == 0)
            sequence->n_pause = test_below(&bench->rng, 30);
        if (sequence->n_known >= N_CONTEXT - 2 || test_below(&bench->rng, 40) == 0)
            sequence_end(bench, sequence);
    }
}

/* Prompts come and go, guesses pause, are rejected and accepted, pages change hands: what is
 * guessed is always what decoding alone would guess. */
static void guesses_are_those_of_decoding_alone(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 30; seed++) {
        struct bench bench;
        bench_init(&bench, seed, 1 + (int32_t)(seed * 7 % 40), 1 + (int)(seed % 3));
        for (int step = 0; step < 120; step++) {
            struct sequence *sequence = &bench.sequences[test_below(&bench.rng, N_SLOTS)];
            if (sequence->slot < 0)
                sequence_begin_alike(&bench, sequence, 1 + test_below(&bench.rng, 60),
                                     test_below(&bench.rng, 3) * 30);
            if (sequence->n_known == sequence->n_prompt && test_below(&bench.rng, 4) == 0)
                sequence->n_pause = 5;
            bench_step(&bench);
            scramble(&bench);
        }
        bench_fini(&bench);
    }
}

/* Asks for `want` guesses of the first n sequences; returns the forwards it took. */
static int guess(struct bench *bench, int32_t n, int32_t want, int32_t *n_guess) {
    struct moge_span spans[N_SLOTS], *asked[N_SLOTS];
    int32_t wants[N_SLOTS];
    for (int32_t i = 0; i < n; i++) {
        struct sequence *sequence = &bench->sequences[i];
        assert_int_equal(moge_kv_reserve(bench->kv, sequence->slot, sequence->n_known + want), 0);
        span_of(bench, sequence, &spans[i]);
        asked[i] = &spans[i];
        wants[i] = want;
    }
    int before = n_forwards;
    bench->drafter.ops->guess(bench->drafter.self, asked, wants, n);
    for (int32_t i = 0; i < n; i++) {
        check_guesses(&bench->sequences[i], &spans[i]);
        n_guess[i] = spans[i].n_guess;
    }
    return n_forwards - before;
}

static int32_t debt(struct bench *bench, int i) {
    struct moge_span span;
    span_of(bench, &bench->sequences[i], &span);
    return bench->drafter.ops->debt(bench->drafter.self, &span);
}

static void one_forward_a_round_for_all_sequences(void **state) {
    (void)state;
    struct bench bench;
    int32_t n_guess[N_SLOTS];
    bench_init(&bench, 1, 32, 2);
    for (int i = 0; i < 4; i++) {
        assert_true(sequence_begin(&bench, &bench.sequences[i], 4 + i));
        assert_int_equal(debt(&bench, i), 3 + i);
    }
    /* 4 + 5 + 6 + 7 rows fit one forward: the catch-up is the first round. */
    assert_int_equal(guess(&bench, 4, 5, n_guess), 5);
    assert_int_equal(n_rows_computed, 22 + 4 * 4);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(n_guess[i], 5);
        /* Everything is accepted: the last guess was not fed, so it is all there is to catch up. */
        bench.sequences[i].n_known += 6;
        assert_int_equal(debt(&bench, i), 1);
    }
    assert_int_equal(guess(&bench, 4, 3, n_guess), 3);
    /* Everything is rejected: nothing to catch up but what was decided. */
    for (int i = 0; i < 4; i++) {
        struct sequence *sequence = &bench.sequences[i];
        sequence->tokens[sequence->n_known] = (sequence->tokens[sequence->n_known] + 1) % N_VOCAB;
        sequence->n_known++;
        assert_int_equal(debt(&bench, i), 0);
    }
    assert_int_equal(guess(&bench, 4, 1, n_guess), 1);
    /* A catch-up that does not fit is cut into full forwards. */
    bench.drafter.ops->forget(bench.drafter.self, bench.sequences[0].slot);
    int32_t n_rows = debt(&bench, 0) + 1;
    bench.drafter.ops->forget(bench.drafter.self, bench.sequences[1].slot);
    n_rows += debt(&bench, 1) + 1;
    assert_true(n_rows <= 32);
    assert_int_equal(guess(&bench, 2, 1, n_guess), 1);
    bench_fini(&bench);

    bench_init(&bench, 1, 8, 1);
    assert_true(sequence_begin(&bench, &bench.sequences[0], 60));
    assert_int_equal(guess(&bench, 1, 2, n_guess), 8 + 1);
    bench_fini(&bench);
}

/* Two that begin alike catch up with the shared pages once, in either order and side by side; a
 * third finds them done; and a page that the pager exchanges is not taken for the one it was. */
static void shared_pages_are_computed_once(void **state) {
    (void)state;
    struct bench bench;
    int32_t n_guess[N_SLOTS];
    bench_init(&bench, 1, 128, 2);
    for (int i = 0; i < 2; i++)
        assert_true(sequence_begin_alike(&bench, &bench.sequences[i], 50, 48));
    assert_int_equal(debt(&bench, 1), 49);
    guess(&bench, 2, 1, n_guess);
    assert_int_equal(n_guess[0] + n_guess[1], 2);
    assert_int_equal(n_rows_computed, 50 + 2);
    assert_true(sequence_begin_alike(&bench, &bench.sequences[2], 70, 48));
    assert_int_equal(debt(&bench, 2), 69 - 48);
    bench_fini(&bench);

    /* Both fill page 0 by themselves; then the second is given the first one's, where the draft
     * never was. */
    bench_init(&bench, 1, 128, 1);
    for (int i = 0; i < 2; i++)
        assert_true(sequence_begin_alike(&bench, &bench.sequences[i], 10, 10));
    struct sequence *second = &bench.sequences[1];
    struct moge_span span, *asked = &span;
    int32_t want = 2;
    span_of(&bench, second, &span);
    bench.drafter.ops->guess(bench.drafter.self, &asked, &want, 1);
    for (int i = 0; i < 2; i++) {
        struct sequence *sequence = &bench.sequences[i];
        for (; sequence->n_known < 20; sequence->n_known++)
            sequence->tokens[sequence->n_known] = 7;
        assert_int_equal(moge_kv_reserve(bench.kv, sequence->slot, 20), 0);
        moge_kv_publish(bench.kv, sequence->slot, sequence->tokens, 19);
    }
    assert_int_equal(moge_kv_table(bench.kv, second->slot)[0],
                     moge_kv_table(bench.kv, bench.sequences[0].slot)[0]);
    assert_int_equal(debt(&bench, 1), 19);
    guess(&bench, 2, 2, n_guess);
    bench_fini(&bench);
}

static void no_want_costs_nothing(void **state) {
    (void)state;
    struct bench bench;
    int32_t n_guess[N_SLOTS];
    bench_init(&bench, 1, 32, 1);
    assert_true(sequence_begin(&bench, &bench.sequences[0], 20));
    assert_int_equal(guess(&bench, 1, 0, n_guess), 0);
    assert_int_equal(n_guess[0], 0);
    bench_fini(&bench);
}

static void an_engine_that_refuses_ends_the_guesses_of_that_step(void **state) {
    (void)state;
    struct bench bench;
    int32_t n_guess[N_SLOTS];
    bench_init(&bench, 1, 32, 1);
    assert_true(sequence_begin(&bench, &bench.sequences[0], 20));
    n_until_failure = 3;
    guess(&bench, 1, 4, n_guess);
    assert_int_equal(n_guess[0], 2);
    n_until_failure = 1;
    guess(&bench, 1, 4, n_guess);
    assert_int_equal(n_guess[0], 0);
    guess(&bench, 1, 4, n_guess);
    assert_int_equal(n_guess[0], 4);
    bench_fini(&bench);
}

static void guesses_stay_inside_the_draft_models_context(void **state) {
    (void)state;
    struct bench bench;
    int32_t n_guess[N_SLOTS];
    bench_init(&bench, 1, 32, 1);
    bench_fini(&bench);
    bench.model.info.n_context = 24; /* shorter than the target's */
    memset(bench.sequences, 0, sizeof bench.sequences);
    struct moge_err err;
    TEST_OK(moge_threads_new(&bench.threads, 1, &err), err);
    struct moge_kv_options kv = {N_PAGES, N_SLOTS, N_CONTEXT / MOGE_PAGE_TOKENS, true};
    TEST_OK(moge_kv_new(&bench.kv, &kv, &err), err);
    struct moge_draft_lm_options lm = {N_PAGES, N_SLOTS, 32, N_CONTEXT, MOGE_KV_F16};
    TEST_OK(moge_draft_lm_new(&bench.drafter, &bench.model, bench.threads, &lm, &err), err);
    assert_true(sequence_begin(&bench, &bench.sequences[0], 20));
    guess(&bench, 1, 8, n_guess);
    assert_int_equal(n_guess[0], 5); /* positions 19..23 are fed */
    bench.sequences[0].n_known = 40;
    guess(&bench, 1, 8, n_guess);
    assert_int_equal(n_guess[0], 0);
    lm.n_slots = 0;
    struct moge_drafter refused = {0};
    assert_int_equal(moge_draft_lm_new(&refused, &bench.model, bench.threads, &lm, &err),
                     MOGE_INVALID);
    assert_null(refused.ops);
    bench_fini(&bench);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(guesses_are_those_of_decoding_alone),
        cmocka_unit_test(one_forward_a_round_for_all_sequences),
        cmocka_unit_test(shared_pages_are_computed_once),
        cmocka_unit_test(no_want_costs_nothing),
        cmocka_unit_test(an_engine_that_refuses_ends_the_guesses_of_that_step),
        cmocka_unit_test(guesses_stay_inside_the_draft_models_context)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
