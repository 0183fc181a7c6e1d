/* SPDX-License-Identifier: Apache-2.0 */
/* Verification is an equality test.
 *
 *      row of       t5   g6   g7   g8        one span: the last known token and three guesses
 *      target picks g6   g7   x8   (not asked)
 *      outcome      two guesses accepted, x8 decided by the target itself: n_out = 3
 *
 * Row i is only looked at when all guesses before it were right, so the history it saw is the true
 * one.  The token after the last accepted guess therefore always comes for free. */
#include "moge/draft.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "moge/sample.h"

struct moge_accept {
    /* constant after new */
    int32_t n_vocab;
    int n_threads;
    struct moge_threads *threads;
    struct moge_sampler **samplers; /* [n_threads] a sampler is scratch: one per thread */
    /* one batch */
    struct moge_batch *batch;
    atomic_int next_span; /* taken by the threads one at a time: spans differ in rows */
};

int moge_accept_new(struct moge_accept **out, int32_t n_vocab, struct moge_threads *threads,
                    struct moge_err *err) {
    struct moge_accept *accept = calloc(1, sizeof *accept);
    if (!accept)
        return moge_fail(err, MOGE_NOMEM, "no memory for verification");
    accept->n_vocab = n_vocab;
    accept->threads = threads;
    accept->n_threads = moge_threads_count(threads);
    int rc;
    accept->samplers = calloc((size_t)accept->n_threads, sizeof(*accept->samplers));
    if (!accept->samplers) {
        rc = moge_fail(err, MOGE_NOMEM, "no memory for verification");
        goto fail;
    }
    for (int i = 0; i < accept->n_threads; i++) {
        rc = moge_sampler_new(&accept->samplers[i], n_vocab, err);
        if (rc != 0)
            goto fail;
    }
    *out = accept;
    return 0;
fail:
    moge_accept_free(accept);
    return rc;
}

void moge_accept_free(struct moge_accept *accept) {
    if (!accept)
        return;
    for (int i = 0; accept->samplers && i < accept->n_threads; i++)
        moge_sampler_free(accept->samplers[i]);
    free(accept->samplers);
    free(accept);
}

/* What the model thought of tokens that are known: the row of position p scores the token at p + 1.
 */
static void score_span(struct moge_sampler *sampler, const struct moge_batch *batch,
                       struct moge_span *span) {
    const int32_t *tokens = span->tokens + span->pos + span->n_rows - span->n_logits + 1;
    for (int32_t i = 0; i < span->n_scored; i++) {
        const float *logits =
            batch->logits + (size_t)(span->logits_row + i) * (size_t)batch->n_vocab;
        moge_sampler_logprobs(sampler, logits, tokens[i], span->n_score_top, &span->scores[i]);
    }
}

static void accept_span(struct moge_sampler *sampler, const struct moge_batch *batch,
                        struct moge_span *span) {
    MOGE_ASSERT(span->n_guess >= 0 && span->n_guess < span->n_logits);
    const struct moge_sample_params *sample = span->sample;
    int32_t first_row = span->logits_row + span->n_logits - span->n_guess - 1;
    bool agrees = true;
    span->n_accepted = 0;
    for (int32_t i = 0; agrees; i++) {
        const float *logits = batch->logits + (size_t)(first_row + i) * (size_t)batch->n_vocab;
        int32_t n_tokens = span->n_known + i;
        int32_t id =
            moge_sampler_pick(sampler, sample, logits, span->tokens, span->n_prompt, n_tokens);
        agrees = i < span->n_guess && id == span->tokens[n_tokens];
        span->n_accepted += agrees;
        span->tokens[n_tokens] = id;
        if (span->logprobs && sample->n_logprobs >= 0)
            moge_sampler_logprobs(sampler, logits, id, sample->n_logprobs, &span->logprobs[i]);
    }
    span->n_out = span->n_accepted + 1;
}

static void accept_some(void *arg, int i_thread, int n_threads) {
    (void)n_threads;
    struct moge_accept *accept = arg;
    struct moge_batch *batch = accept->batch;
    for (;;) {
        int i = atomic_fetch_add_explicit(&accept->next_span, 1, memory_order_relaxed);
        if (i >= batch->n_spans)
            return;
        struct moge_span *span = &batch->spans[i];
        span->n_accepted = span->n_out = 0;
        score_span(accept->samplers[i_thread], batch, span);
        if (moge_span_decides(span))
            accept_span(accept->samplers[i_thread], batch, span);
    }
}

void moge_accept_batch(struct moge_accept *accept, struct moge_batch *batch) {
    MOGE_ASSERT(batch->n_vocab == accept->n_vocab);
    accept->batch = batch;
    atomic_store_explicit(&accept->next_span, 0, memory_order_relaxed);
    int32_t n_wanting = 0;
    for (int32_t i = 0; i < batch->n_spans; i++)
        n_wanting += batch->spans[i].n_logits > 0;
    if (n_wanting > 1)
        moge_threads_run(accept->threads, accept_some, accept);
    else
        accept_some(accept, 0, 1); /* not worth waking anybody */
}
