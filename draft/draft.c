/* SPDX-License-Identifier: Apache-2.0 */
/* Drafters and policy put together: guesses are looked up, the policy says how many of them each
 * span gets and how many the drafter shall make after them, the batch grows by their rows. */
#include "draft/draft_state.h"

#include <stdbool.h>
#include <stdlib.h>

#define PROBE_NONE (-1)

int moge_draft_new(struct moge_draft **out, const struct moge_draft_options *options,
                   struct moge_err *err) {
    int rc;
    struct moge_draft *draft = calloc(1, sizeof *draft);
    if (!draft)
        return moge_fail(err, MOGE_NOMEM, "no memory for drafting");
    draft->n_slots = options->n_slots;
    draft->len_max = options->draft_len_max;
    draft->now_ns = options->now_ns;
    rc = moge_policy_new(&draft->policy, options->n_slots, options->draft_len_max, err);
    if (rc != 0)
        goto fail;
    draft->spans = calloc((size_t)options->n_slots, sizeof(*draft->spans));
    draft->want = calloc((size_t)options->n_slots, sizeof *draft->want);
    draft->asked = calloc((size_t)options->n_slots, sizeof(*draft->asked));
    draft->asked_want = calloc((size_t)options->n_slots, sizeof *draft->asked_want);
    draft->plans = calloc((size_t)options->n_slots, sizeof *draft->plans);
    draft->looked = calloc((size_t)options->n_slots, sizeof *draft->looked);
    draft->probes = calloc((size_t)options->n_slots, sizeof *draft->probes);
    if (!draft->spans || !draft->want || !draft->asked || !draft->asked_want || !draft->plans ||
        !draft->looked || !draft->probes) {
        rc = moge_fail(err, MOGE_NOMEM, "no memory for drafting in %d slots", options->n_slots);
        goto fail;
    }
    for (int32_t i = 0; i < options->n_slots; i++)
        draft->probes[i] = PROBE_NONE;
    draft->drafter = options->drafter; /* last: on failure they stay the caller's */
    draft->lookup = options->lookup;
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
    if (draft->lookup.ops)
        draft->lookup.ops->free(draft->lookup.self);
    moge_policy_free(draft->policy);
    free(draft->spans);
    free(draft->want);
    free(draft->asked);
    free(draft->asked_want);
    free(draft->plans);
    free(draft->looked);
    free(draft->probes);
    free(draft);
}

static bool may_look(const struct moge_draft *draft, const struct moge_span *span) {
    return draft->lookup.ops && span->n_logits > 0 && span->guess_max > 0 &&
           span->spec_mode != MOGE_SPEC_OFF &&
           (span->drafters == MOGE_DRAFTERS_ANY ||
            (span->drafters & (int)MOGE_DRAFTERS_NGRAM) != 0);
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

/* Appends looked-up guesses. */
static void guesses_add(struct moge_span *span, const struct moge_lookup *lookup, int32_t n) {
    for (int32_t j = 0; j < n; j++) {
        span->by_ngram |= 1u << span->n_guess;
        span->tokens[span->n_known + span->n_guess++] = lookup->tokens[j];
    }
}

/* A chain that the drafter has begun may have run into something that was there before: then the
 * lookup goes on with it, for nothing. */
static void take_over(struct moge_draft *draft, struct moge_span *span, int32_t want) {
    struct moge_lookup found;
    if (!may_look(draft, span) || span->n_guess >= want)
        return;
    draft->lookup.ops->look(draft->lookup.self, span, want - span->n_guess, &found);
    if (found.n == 0)
        return;
    if (draft->looked[span->slot].n == 0) /* to be compared with what follows, offered or not */
        draft->looked[span->slot] = found;
    if (moge_policy_prefers_lookup(draft->policy, span, &found))
        guesses_add(span, &found, found.n);
}

/* One call of the drafter for those of the first n_spans spans that want more guesses than they
 * have: one guess each where a lookup may take over afterwards, otherwise all of them.  Returns the
 * rounds, and adds the rows, that this took. */
static int32_t drafter_call(struct moge_draft *draft, int32_t n_spans, int32_t *n_rows) {
    const struct moge_drafter *drafter = &draft->drafter;
    int32_t n = 0, n_rounds = 0;
    for (int32_t i = 0; i < n_spans; i++) {
        struct moge_span *span = draft->spans[i];
        int32_t n_more = draft->want[i] - span->n_guess;
        if (n_more <= 0)
            continue;
        if (draft->lookup.ops)
            n_more = 1;
        *n_rows += n_more + (drafter->ops->debt ? drafter->ops->debt(drafter->self, span) : 0);
        n_rounds = n_more > n_rounds ? n_more : n_rounds;
        draft->asked[n] = span;
        draft->asked_want[n++] = span->n_guess + n_more;
    }
    if (n == 0)
        return 0;
    drafter->ops->guess(drafter->self, draft->asked, draft->asked_want, n);
    for (int32_t i = 0, k = 0; i < n_spans && k < n; i++) {
        struct moge_span *span = draft->spans[i];
        if (draft->asked[k] != span)
            continue;
        if (span->n_guess < draft->asked_want[k++]) /* it cannot, or will not */
            draft->want[i] = span->n_guess;
        take_over(draft, span, draft->want[i]);
    }
    return n_rounds;
}

/* The guess of a probe is taken back; it is only compared with what is decided in this step. */
static void probe_keep(struct moge_draft *draft, struct moge_span *span) {
    draft->probes[span->slot] = span->n_guess > 0 ? span->tokens[span->n_known] : PROBE_NONE;
    span->n_guess = 0;
    span->by_ngram = 0;
}

/* Fills the spans with the guesses that were chosen, and tells the policy what drafting took. */
static void guess(struct moge_draft *draft, struct moge_batch *batch) {
    int32_t n_spans = 0, n_rounds = 0, n_rows = 0, n;
    for (int32_t i = 0; i < batch->n_spans; i++) {
        struct moge_span *span = &batch->spans[i];
        const struct moge_plan *plan = &draft->plans[i];
        if (plan->n_lookup + plan->n_drafter == 0 && !plan->probe)
            continue;
        if (plan->n_lookup > 0)
            guesses_add(span, &draft->looked[span->slot], plan->n_lookup);
        draft->spans[n_spans] = span;
        draft->want[n_spans++] = plan->probe ? 1 : plan->n_lookup + plan->n_drafter;
    }
    int64_t begin_ns = draft->now_ns();
    while ((n = drafter_call(draft, n_spans, &n_rows)) > 0)
        n_rounds += n;
    if (n_rounds > 0)
        moge_policy_drafted(draft->policy, n_rounds, n_rows, draft->now_ns() - begin_ns);
    for (int32_t i = 0; i < n_spans; i++) {
        struct moge_span *span = draft->spans[i];
        if (draft->plans[span - batch->spans].probe) {
            probe_keep(draft, span);
            continue;
        }
        guesses_check(batch, span, draft->want[i]);
        span->n_rows += span->n_guess;
        span->n_logits += span->n_guess;
    }
}

/* Looks up what may follow, and compares what was looked up last with what did follow. */
static void look(struct moge_draft *draft, const struct moge_batch *batch) {
    for (int32_t i = 0; i < batch->n_spans; i++) {
        const struct moge_span *span = &batch->spans[i];
        if (!may_look(draft, span))
            continue;
        struct moge_lookup *looked = &draft->looked[span->slot];
        int32_t n_max = span->guess_max < draft->len_max ? span->guess_max : draft->len_max;
        moge_policy_looked(draft->policy, span, looked);
        draft->lookup.ops->look(draft->lookup.self, span, n_max, looked);
    }
}

void moge_draft_propose(struct moge_draft *draft, struct moge_batch *batch) {
    MOGE_ASSERT(batch->n_spans <= draft->n_slots);
    for (int32_t i = 0; i < batch->n_spans; i++) {
        batch->spans[i].n_guess = 0;
        batch->spans[i].by_ngram = 0;
    }
    if (!draft->drafter.ops && !draft->lookup.ops)
        return;
    look(draft, batch);
    if (moge_policy_choose(draft->policy, batch, &draft->drafter,
                           draft->lookup.ops ? draft->looked : NULL, draft->plans) > 0)
        guess(draft, batch);
}

static bool is_decided_decode(const struct moge_span *span) {
    return span->n_logits > 0 && span->n_out > 0 && moge_span_is_decode(span);
}

void moge_draft_observe(struct moge_draft *draft, const struct moge_batch *batch, int64_t step_ns) {
    moge_policy_observe(draft->policy, batch, step_ns);
    for (int32_t i = 0; i < batch->n_spans; i++) {
        const struct moge_span *span = &batch->spans[i];
        if (!is_decided_decode(span))
            continue;
        draft->stats.len_chosen[span->n_guess]++;
        if (draft->probes[span->slot] != PROBE_NONE)
            moge_policy_probed(draft->policy, span,
                               draft->probes[span->slot] == span->tokens[span->n_known]);
        draft->probes[span->slot] = PROBE_NONE;
        for (int32_t j = 0; j < span->n_guess; j++) {
            draft->stats.offered[j]++;
            draft->stats.ngram_offered[j] += moge_span_is_by_ngram(span, j);
        }
        for (int32_t j = 0; j < span->n_accepted; j++) {
            draft->stats.accepted[j]++;
            draft->stats.ngram_accepted[j] += moge_span_is_by_ngram(span, j);
        }
    }
}

void moge_draft_forget(struct moge_draft *draft, int32_t slot) {
    moge_policy_forget(draft->policy, slot);
    draft->looked[slot].n = 0;
    draft->probes[slot] = PROBE_NONE;
    if (draft->lookup.ops)
        draft->lookup.ops->forget(draft->lookup.self, slot);
    if (draft->drafter.ops)
        draft->drafter.ops->forget(draft->drafter.self, slot);
}

void moge_draft_restart(struct moge_draft *draft) {
    draft->stats = (struct moge_draft_stats){0};
    moge_policy_restart(draft->policy);
}

void moge_draft_stats(const struct moge_draft *draft, struct moge_draft_stats *out) {
    *out = draft->stats;
    moge_policy_stats(draft->policy, out);
}
