/* SPDX-License-Identifier: Apache-2.0 */
/* Engine, drafter, acceptance and tokenizer that remember everything, for simulations of the
 * scheduler:
 *
 *   - the engine keeps, for every page and offset, a hash of the whole history up to that position,
 *     and checks that every earlier position of a span holds the hash of *this* history: a page
 *     that was lost, reused too early or not truncated is seen at once;
 *   - a forward takes a fixed time and one for each row;
 *   - the next token is a function of the history's hash, so each request's output is known
 *     beforehand. */
#ifndef TEST_FAKE_ENGINE_H
#define TEST_FAKE_ENGINE_H

#include <string.h>

#include "moge/draft.h"
#include "moge/engine.h"
#include "moge/kv.h"
#include "tests/test.h"

/* Whoever includes this defines CONTEXT, ROWS_MAX and PAGES_MAX first. */
enum { VOCAB = 50, EOS = 1 };

/* Time passes inside the engine only. */
static int64_t fake_now_us;
static int64_t fake_now_ns(void) {
    return fake_now_us * 1000;
}

struct moge_engine {
    uint64_t kv[PAGES_MAX][MOGE_PAGE_TOKENS]; /* hash of the history that ends at this position */
    bool broken;
    int64_t step_us, row_us; /* what a forward takes: step_us + row_us * rows, */
    int64_t page_ns;         /* and page_ns for each page before a row */
};

struct moge_draft {
    struct test_rng rng;
    int accuracy; /* guesses right in 100 */
};

static uint64_t history_step(uint64_t hash, int32_t token) {
    struct test_rng rng = {hash ^ (uint64_t)token * 0x2545f4914f6cdd1du};
    return test_u64(&rng);
}

static int32_t next_token(uint64_t hash) {
    return hash % 97 == 0 ? EOS : (int32_t)(2 + hash % (VOCAB - 2));
}

int moge_engine_forward(struct moge_engine *engine, struct moge_batch *batch) {
    if (engine->broken)
        return MOGE_INTERNAL;
    MOGE_ASSERT(moge_batch_rows(batch) <= ROWS_MAX);
    int32_t n_logits = 0;
    fake_now_us += engine->step_us + engine->row_us * moge_batch_rows(batch);
    for (int32_t i = 0; i < batch->n_spans; i++)
        fake_now_us += engine->page_ns * batch->spans[i].n_rows *
                       (batch->spans[i].pos / MOGE_PAGE_TOKENS) / 1000;
    for (int32_t i = 0; i < batch->n_spans; i++) {
        struct moge_span *span = &batch->spans[i];
        uint64_t hash = 1;
        for (int32_t p = 0; p < span->pos + span->n_rows; p++) {
            hash = history_step(hash, span->tokens[p]);
            uint64_t *cell = &engine->kv[span->pages[p / MOGE_PAGE_TOKENS]][p % MOGE_PAGE_TOKENS];
            if (p < span->pos)
                MOGE_ASSERT(*cell ==
                            hash); /* what was computed before is this history, still in place */
            *cell = hash;
        }
        span->logits_row = n_logits;
        n_logits += span->n_logits;
    }
    MOGE_ASSERT(n_logits <= batch->n_logits_cap);
    return 0;
}

void moge_draft_forget(struct moge_draft *draft, int32_t slot) {
    (void)draft;
    (void)slot;
}

void moge_draft_observe(struct moge_draft *draft, const struct moge_batch *batch,
                        int64_t forward_ns) {
    (void)draft;
    (void)batch;
    (void)forward_ns;
}

void moge_draft_propose(struct moge_draft *draft, struct moge_batch *batch) {
    int32_t n_free = ROWS_MAX - moge_batch_rows(batch);
    int32_t n_free_logits = batch->n_logits_cap - moge_batch_logits(batch);
    n_free = n_free_logits < n_free ? n_free_logits : n_free;
    for (int32_t i = 0; i < batch->n_spans; i++) {
        struct moge_span *span = &batch->spans[i];
        int32_t n_max = span->guess_max < n_free ? span->guess_max : n_free;
        if (n_max <= 0)
            continue;
        span->n_guess = test_below(&draft->rng, n_max + 1);
        uint64_t hash = 1;
        for (int32_t p = 0; p < span->n_known; p++)
            hash = history_step(hash, span->tokens[p]);
        for (int32_t g = 0; g < span->n_guess; g++) {
            bool right = test_below(&draft->rng, 100) < draft->accuracy;
            int32_t id = right ? next_token(hash) : test_below(&draft->rng, VOCAB);
            span->tokens[span->n_known + g] = id;
            hash = history_step(hash, id);
        }
        span->n_rows += span->n_guess;
        span->n_logits += span->n_guess;
        n_free -= span->n_guess;
    }
}

/* What the fake thinks of the token behind a history. */
static float score_of(uint64_t hash, int32_t token) {
    return (float)(history_step(hash, token) % 4096);
}

static void score_span(struct moge_span *span) {
    uint64_t hash = 1;
    int32_t first = span->pos + span->n_rows - span->n_logits;
    for (int32_t p = 0; p < first + span->n_scored; p++) {
        hash = history_step(hash, span->tokens[p]);
        if (p >= first)
            span->scores[p - first] = (struct moge_logprobs){
                .chosen = score_of(hash, span->tokens[p + 1]), .n_top = span->n_score_top};
    }
}

void moge_accept_batch(struct moge_accept *accept, struct moge_batch *batch) {
    (void)accept;
    for (int32_t i = 0; i < batch->n_spans; i++) {
        struct moge_span *span = &batch->spans[i];
        uint64_t hash = 1;
        score_span(span);
        for (int32_t p = 0; p < span->n_known; p++)
            hash = history_step(hash, span->tokens[p]);
        while (moge_span_decides(span)) {
            int32_t id = next_token(hash), at = span->n_known + span->n_out++;
            bool agreed = span->n_out <= span->n_guess && span->tokens[at] == id;
            span->tokens[at] = id;
            hash = history_step(hash, id);
            if (!agreed)
                break;
            span->n_accepted++;
        }
    }
}

size_t moge_tokenizer_push_max(const struct moge_tokenizer *tok) {
    (void)tok;
    return 8;
}

void moge_detok_init(struct moge_detok *detok, const struct moge_tokenizer *tok, bool continues) {
    (void)tok;
    (void)continues;
    *detok = (struct moge_detok){0};
}

static const char *piece_of(int32_t id) {
    static const char *const pieces[] = {"a", "b", "ab", "c", "bc", "abc", "", "d"};
    return id == EOS ? "" : pieces[id % 8];
}

size_t moge_detok_push(struct moge_detok *detok, int32_t id, char *out) {
    (void)detok;
    size_t len = strlen(piece_of(id));
    memcpy(out, piece_of(id), len);
    return len;
}

size_t moge_detok_finish(struct moge_detok *detok, char *out) {
    (void)detok;
    (void)out;
    return 0;
}

struct moge_sample_params moge_sample_params_default(void) {
    return (struct moge_sample_params){.n_logprobs = -1};
}

#endif
