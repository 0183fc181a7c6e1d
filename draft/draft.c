/* SPDX-License-Identifier: Apache-2.0 */
/* Drafter and policy put together: the policy says how many guesses each span gets, the drafter
 * makes them, the batch grows by their rows. */
#include "moge/draft.h"

#include <stdbool.h>
#include <stdlib.h>

#include "draft/policy.h"

struct moge_draft {
    /* constant after new */
    struct moge_drafter drafter;
    int32_t n_slots;
    int64_t (*now_ns)(void);
    /* engine thread */
    struct moge_policy *policy;
    struct moge_span **spans; /* [n_slots] those that get guesses */
    int32_t *want;            /* [n_slots] of every span of the batch, then of those */
    struct moge_draft_stats stats;
};

int moge_draft_new(struct moge_draft **out, const struct moge_draft_options *options,
                   struct moge_err *err) {
    int rc;
    struct moge_draft *draft = calloc(1, sizeof *draft);
    if (!draft)
        return moge_fail(err, MOGE_NOMEM, "no memory for drafting");
    draft->n_slots = options->n_slots;
    draft->now_ns = options->now_ns;
    rc = moge_policy_new(&draft->policy, options->n_slots, options->draft_len_max, err);
    if (rc != 0)
        goto fail;
    draft->spans = calloc((size_t)options->n_slots, sizeof(*draft->spans));
    draft->want = calloc((size_t)options->n_slots, sizeof *draft->want);
    if (!draft->spans || !draft->want) {
        rc = moge_fail(err, MOGE_NOMEM, "no memory for drafting in %d slots", options->n_slots);
        goto fail;
    }
    draft->drafter = options->drafter; /* last: on failure it stays the caller's */
    *out = draft;
    return 0;
fail:
    moge_draft_free(draft);
    return rc;
}

void moge_draft_free(struct moge_draft *draft) {
    if (!draft)
        return;
    if (draft->drafter.ops)
        draft->drafter.ops->free(draft->drafter.self);
    moge_policy_free(draft->policy);
    free(draft->spans);
    free(draft->want);
    free(draft);
}

/* A draft model may have padded its vocabulary beyond the target's, and a drafter may be wrong in
 * any way: an id that the target does not have ends the guesses. */
static void guesses_check(const struct moge_batch *batch, struct moge_span *span, int32_t want) {
    MOGE_ASSERT(span->n_guess >= 0 && span->n_guess <= want);
    for (int32_t j = 0; j < span->n_guess; j++) {
        int32_t id = span->tokens[span->n_known + j];
        if (id < 0 || id >= batch->n_vocab)
            span->n_guess = j;
    }
}

/* Runs the drafter over the spans that get guesses, and tells the policy what it took. */
static void guess(struct moge_draft *draft, struct moge_batch *batch) {
    const struct moge_drafter *drafter = &draft->drafter;
    int32_t n_spans = 0, n_rounds = 0, n_rows = 0;
    for (int32_t i = 0; i < batch->n_spans; i++) {
        int32_t want = draft->want[i];
        if (want == 0)
            continue;
        struct moge_span *span = &batch->spans[i];
        if (drafter->ops->debt)
            n_rows += drafter->ops->debt(drafter->self, span);
        n_rows += want;
        if (want > n_rounds)
            n_rounds = want;
        draft->spans[n_spans] = span;
        draft->want[n_spans++] = want; /* n_spans <= i: what it replaces has been read */
    }
    int64_t begin_ns = draft->now_ns();
    drafter->ops->guess(drafter->self, draft->spans, draft->want, n_spans);
    moge_policy_drafted(draft->policy, n_rounds, n_rows, draft->now_ns() - begin_ns);
    for (int32_t i = 0; i < n_spans; i++) {
        struct moge_span *span = draft->spans[i];
        guesses_check(batch, span, draft->want[i]);
        span->n_rows += span->n_guess;
        span->n_logits += span->n_guess;
    }
}

void moge_draft_propose(struct moge_draft *draft, struct moge_batch *batch) {
    MOGE_ASSERT(batch->n_spans <= draft->n_slots);
    for (int32_t i = 0; i < batch->n_spans; i++) {
        batch->spans[i].n_guess = 0;
        batch->spans[i].by_ngram = 0;
    }
    if (!draft->drafter.ops)
        return;
    if (moge_policy_choose(draft->policy, batch, &draft->drafter, draft->want) > 0)
        guess(draft, batch);
}

static bool is_decided_decode(const struct moge_span *span) {
    return span->n_logits > 0 && span->n_out > 0 && moge_span_is_decode(span);
}

void moge_draft_observe(struct moge_draft *draft, const struct moge_batch *batch,
                        int64_t forward_ns) {
    moge_policy_observe(draft->policy, batch, forward_ns);
    for (int32_t i = 0; i < batch->n_spans; i++) {
        const struct moge_span *span = &batch->spans[i];
        if (!is_decided_decode(span))
            continue;
        draft->stats.len_chosen[span->n_guess]++;
        for (int32_t j = 0; j < span->n_guess; j++)
            draft->stats.offered[j]++;
        for (int32_t j = 0; j < span->n_accepted; j++)
            draft->stats.accepted[j]++;
    }
}

void moge_draft_forget(struct moge_draft *draft, int32_t slot) {
    moge_policy_forget(draft->policy, slot);
    if (draft->drafter.ops)
        draft->drafter.ops->forget(draft->drafter.self, slot);
}

void moge_draft_stats(const struct moge_draft *draft, struct moge_draft_stats *out) {
    *out = draft->stats;
    moge_policy_stats(draft->policy, out);
}
