/* SPDX-License-Identifier: Apache-2.0 */
/* The choice for spans in auto mode.
 *
 * A step that decodes n sequences yields n tokens for sure, in the time t(rows).  The j-th guess of
 * a span adds the probability p1 * ... * pj of one more token, and costs one more row, one more row
 * of drafting, and a round of drafting if no other span goes that deep.  Guesses are tried in the
 * order of gain per cost; of all the beginnings of that order, the one with the largest tokens per
 * second wins.  (Stopping at the first loss would be wrong: the first guess of a step pays for a
 * round that the following ones share.)
 *
 * Prefill rows of the same step are nobody's gain here, so guesses are charged what they add to
 * such a step, against the time that the decodes alone would take.
 *
 * p comes from the request's own recent guesses at that position, leaning on its guesses at all
 * positions, leaning on everybody's.  Where nothing is guessed, estimates would never change again:
 * a small share of the time (PROBE_SHARE) is saved up and spent on single guesses. */
#include "draft/policy.h"

#include <stdbool.h>
#include <stdlib.h>

/* Evidence per slot and position fades to 1/e after this many guesses there, so that a change of
 * the text is followed; everybody's together more slowly. */
#define FADE_SLOT   12.0
#define FADE_GLOBAL 200.0
/* Evidence also fades with steps that guessed nothing: the text has moved on. */
#define FADE_IDLE 64.0
/* The level above counts as much as this many guesses. */
#define PRIOR_WEIGHT 3.0
/* Before anything is known. */
#define PRIOR_ACCEPT 0.6
/* A guess worth less than this is not considered. */
#define GAIN_MIN 0.01
/* Guessing must promise at least this much more tokens per second. */
#define MARGIN 1.01
/* Share of the time that may be spent on probing, and the most that is saved up, in steps. */
#define PROBE_SHARE 0.005
#define PROBE_SAVED 4.0
/* Before drafting was ever measured: a round, and a row, as a share of a step of one row. */
#define GUESS_PRIOR 0.04

struct evidence {
    double n, hits; /* fading counts */
};

struct policy_slot {
    bool used; /* between its first choice and forget */
    bool probing;
    int32_t n_idle; /* steps since it was last guessed for */
    struct evidence at[MOGE_DRAFT_LEN_MAX];
};

/* A span on its way through one choice. */
struct candidate {
    int32_t i_span;
    int32_t n_guess; /* so far */
    double reached;  /* probability that all guesses so far are right */
    double debt_ns;  /* catch-up charged to the first guess */
    double key;      /* gain of the next guess per cost; the heap's order */
};

struct moge_policy {
    /* constant after new */
    int32_t n_slots, draft_len_max;
    /* engine thread */
    struct moge_step_cost step;
    struct moge_guess_cost guess;
    struct evidence global[MOGE_DRAFT_LEN_MAX];
    struct policy_slot *slots; /* [n_slots] */
    double probe_ns;           /* saved up for probing */
    /* scratch of one choice */
    struct candidate *heap; /* [n_slots] largest key first */
    int32_t n_heap;
    int32_t *order; /* [n_slots * MOGE_DRAFT_LEN_MAX] spans, in the order of their guesses */
};

int moge_policy_new(struct moge_policy **out, int32_t n_slots, int32_t draft_len_max,
                    struct moge_err *err) {
    if (n_slots < 1 || draft_len_max < 1 || draft_len_max > MOGE_DRAFT_LEN_MAX)
        return moge_fail(err, MOGE_INVALID, "draft-len is %d; it must be 1..%d", draft_len_max,
                         MOGE_DRAFT_LEN_MAX);
    struct moge_policy *policy = calloc(1, sizeof *policy);
    if (!policy)
        goto fail;
    policy->n_slots = n_slots;
    policy->draft_len_max = draft_len_max;
    policy->slots = calloc((size_t)n_slots, sizeof *policy->slots);
    policy->heap = calloc((size_t)n_slots, sizeof *policy->heap);
    policy->order = calloc((size_t)n_slots * MOGE_DRAFT_LEN_MAX, sizeof *policy->order);
    if (!policy->slots || !policy->heap || !policy->order)
        goto fail;
    *out = policy;
    return 0;
fail:
    moge_policy_free(policy);
    return moge_fail(err, MOGE_NOMEM, "no memory for the draft policy of %d slots", n_slots);
}

void moge_policy_free(struct moge_policy *policy) {
    if (!policy)
        return;
    free(policy->slots);
    free(policy->heap);
    free(policy->order);
    free(policy);
}

void moge_policy_forget(struct moge_policy *policy, int32_t i_slot) {
    MOGE_ASSERT(i_slot >= 0 && i_slot < policy->n_slots);
    policy->slots[i_slot] = (struct policy_slot){0};
}

/* ---- acceptance ---- */

static void evidence_add(struct evidence *evidence, bool hit, double fade) {
    evidence->n = evidence->n * (1 - 1 / fade) + 1;
    evidence->hits = evidence->hits * (1 - 1 / fade) + hit;
}

static double evidence_rate(const struct evidence *evidence, double prior) {
    return (evidence->hits + PRIOR_WEIGHT * prior) / (evidence->n + PRIOR_WEIGHT);
}

static struct evidence evidence_sum(const struct evidence *at) {
    struct evidence sum = {0};
    for (int j = 0; j < MOGE_DRAFT_LEN_MAX; j++) {
        sum.n += at[j].n;
        sum.hits += at[j].hits;
    }
    return sum;
}

/* Probability that the guess at position j is right, given that those before it were. */
static double accept_rate(const struct moge_policy *policy, const struct policy_slot *slot, int j) {
    struct evidence everybody = evidence_sum(policy->global), own = evidence_sum(slot->at);
    double everybody_rate = evidence_rate(&everybody, PRIOR_ACCEPT);
    double rate = evidence_rate(&own, everybody_rate);
    /* What is special about the position, seen over everybody; deep ones have little evidence. */
    double at_rate = evidence_rate(&policy->global[j], everybody_rate);
    rate *= at_rate / everybody_rate;
    rate = evidence_rate(&slot->at[j], rate);
    return rate < 0.99 ? rate : 0.99;
}

static void evidence_idle(struct policy_slot *slot) {
    for (int j = 0; j < MOGE_DRAFT_LEN_MAX; j++) {
        slot->at[j].n *= 1 - 1 / FADE_IDLE;
        slot->at[j].hits *= 1 - 1 / FADE_IDLE;
    }
    slot->n_idle++;
}

/* ---- cost of drafting ---- */

static double round_ns(const struct moge_policy *policy) {
    return policy->guess.sum_weight > 0 ? policy->guess.ns_per_round
                                        : GUESS_PRIOR * moge_step_cost_ns(&policy->step, 1);
}

static double guess_row_ns(const struct moge_policy *policy) {
    return policy->guess.sum_weight > 0 ? policy->guess.ns_per_row
                                        : GUESS_PRIOR * moge_step_cost_ns(&policy->step, 1);
}

static int32_t debt_rows(const struct moge_drafter *drafter, const struct moge_span *span) {
    return drafter->ops->debt ? drafter->ops->debt(drafter->self, span) : 0;
}

/* Up to two rows come with every full acceptance and are the price of this step.  More is what
 * piled up while nothing was guessed, or a prompt: paid once, of use for the steps to come.  How
 * many those are is unknown; the room for guesses is a hint, since it ends with the request. */
static double debt_charge_ns(const struct moge_policy *policy, const struct moge_span *span,
                             int32_t n_rows) {
    double now = n_rows < 2 ? n_rows : 2;
    return guess_row_ns(policy) * (now + (n_rows - now) / (2.0 * span->guess_max));
}

/* ---- heap ---- */

static void heap_down(struct moge_policy *policy, int32_t i) {
    struct candidate *heap = policy->heap;
    for (;;) {
        int32_t largest = i;
        for (int32_t child = 2 * i + 1; child <= 2 * i + 2 && child < policy->n_heap; child++)
            if (heap[child].key > heap[largest].key)
                largest = child;
        if (largest == i)
            return;
        struct candidate swap = heap[i];
        heap[i] = heap[largest];
        heap[largest] = swap;
        i = largest;
    }
}

/* ---- choice ---- */

static bool may_guess(const struct moge_span *span) {
    return span->guess_max > 0 && span->n_logits > 0 && span->spec_mode != MOGE_SPEC_OFF;
}

static int32_t min_i32(int32_t a, int32_t b) {
    return a < b ? a : b;
}

/* Fixed lengths, one guess a round so that a full batch is shared fairly.  Returns their sum. */
static int32_t choose_fixed(const struct moge_policy *policy, const struct moge_batch *batch,
                            int32_t room, int32_t *want) {
    int32_t n_guess = 0;
    for (int32_t k = 1; k <= policy->draft_len_max; k++)
        for (int32_t i = 0; i < batch->n_spans; i++) {
            const struct moge_span *span = &batch->spans[i];
            if (!may_guess(span) || span->spec_mode != MOGE_SPEC_FIXED || n_guess >= room)
                continue;
            if (k > span->guess_max || k > span->spec_len)
                continue;
            want[i] = k;
            n_guess++;
        }
    return n_guess;
}

/* What the step yields and takes before any guess of an auto span. */
struct outlook {
    double tokens, ns;
    int32_t n_rows, n_rounds;
};

static struct outlook outlook_begin(const struct moge_policy *policy,
                                    const struct moge_batch *batch, const int32_t *want) {
    struct outlook outlook = {.n_rows = moge_batch_rows(batch)};
    int32_t n_decode = 0, n_fixed = 0;
    for (int32_t i = 0; i < batch->n_spans; i++) {
        const struct moge_span *span = &batch->spans[i];
        if (span->n_logits == 0)
            continue;
        n_decode += span->n_logits;
        outlook.tokens += 1;
        double reached = 1;
        for (int j = 0; j < want[i]; j++)
            outlook.tokens += reached *= accept_rate(policy, &policy->slots[span->slot], j);
        n_fixed += want[i];
        if (want[i] > outlook.n_rounds)
            outlook.n_rounds = want[i];
    }
    outlook.n_rows += n_fixed;
    outlook.ns = moge_step_cost_ns(&policy->step, n_decode + n_fixed) +
                 outlook.n_rounds * round_ns(policy) + n_fixed * guess_row_ns(policy);
    return outlook;
}

/* Readies the candidate's next guess, or says that there is none worth trying. */
static bool candidate_next(const struct moge_policy *policy, const struct moge_batch *batch,
                           struct candidate *candidate, double row_ns) {
    const struct moge_span *span = &batch->spans[candidate->i_span];
    int j = candidate->n_guess;
    if (j >= min_i32(span->guess_max, policy->draft_len_max))
        return false;
    candidate->reached *= accept_rate(policy, &policy->slots[span->slot], j);
    candidate->key = candidate->reached / (row_ns + (j == 0 ? candidate->debt_ns : 0));
    return candidate->reached >= GAIN_MIN;
}

static void heap_fill(struct moge_policy *policy, const struct moge_batch *batch,
                      const struct moge_drafter *drafter, double row_ns) {
    policy->n_heap = 0;
    for (int32_t i = 0; i < batch->n_spans; i++) {
        const struct moge_span *span = &batch->spans[i];
        if (!may_guess(span) || span->spec_mode != MOGE_SPEC_AUTO)
            continue;
        struct candidate candidate = {.i_span = i, .reached = 1};
        candidate.debt_ns = debt_charge_ns(policy, span, debt_rows(drafter, span));
        MOGE_ASSERT(policy->n_heap < policy->n_slots);
        if (candidate_next(policy, batch, &candidate, row_ns))
            policy->heap[policy->n_heap++] = candidate;
    }
    for (int32_t i = policy->n_heap / 2 - 1; i >= 0; i--)
        heap_down(policy, i);
}

/* Returns how many guesses of policy->order make the fastest step. */
static int32_t choose_auto(struct moge_policy *policy, const struct moge_batch *batch,
                           const struct moge_drafter *drafter, int32_t room, const int32_t *want) {
    struct outlook outlook = outlook_begin(policy, batch, want);
    if (outlook.ns <= 0)
        return 0; /* no step has been measured yet */
    double slope = moge_step_cost_ns(&policy->step, outlook.n_rows + 1) -
                   moge_step_cost_ns(&policy->step, outlook.n_rows);
    heap_fill(policy, batch, drafter, slope + guess_row_ns(policy) + 1);
    double best_rate = MARGIN * outlook.tokens / outlook.ns;
    int32_t n = 0, n_best = 0;
    while (policy->n_heap > 0 && n < room) {
        struct candidate *first = &policy->heap[0];
        outlook.tokens += first->reached;
        outlook.ns += moge_step_cost_ns(&policy->step, outlook.n_rows + 1) -
                      moge_step_cost_ns(&policy->step, outlook.n_rows) + guess_row_ns(policy);
        outlook.n_rows++;
        if (first->n_guess == 0)
            outlook.ns += first->debt_ns;
        first->n_guess++;
        if (first->n_guess > outlook.n_rounds) {
            outlook.n_rounds = first->n_guess;
            outlook.ns += round_ns(policy);
        }
        policy->order[n++] = first->i_span;
        if (outlook.tokens / outlook.ns > best_rate) {
            best_rate = outlook.tokens / outlook.ns;
            n_best = n;
        }
        if (!candidate_next(policy, batch, first, slope + guess_row_ns(policy) + 1))
            policy->heap[0] = policy->heap[--policy->n_heap];
        heap_down(policy, 0);
    }
    return n_best;
}

/* The auto span that was left alone for longest gets one guess, if that has been saved up for. */
static int32_t probe(struct moge_policy *policy, const struct moge_batch *batch,
                     const struct moge_drafter *drafter, int32_t n_guess, int32_t *want) {
    int32_t stalest = -1, n_rows = moge_batch_rows(batch) + n_guess;
    for (int32_t i = 0; i < batch->n_spans; i++) {
        const struct moge_span *span = &batch->spans[i];
        if (!may_guess(span) || span->spec_mode != MOGE_SPEC_AUTO || want[i] > 0)
            continue;
        if (stalest < 0 ||
            policy->slots[span->slot].n_idle > policy->slots[batch->spans[stalest].slot].n_idle)
            stalest = i;
    }
    if (stalest < 0)
        return 0;
    const struct moge_span *span = &batch->spans[stalest];
    double cost_ns = moge_step_cost_ns(&policy->step, n_rows + 1) -
                     moge_step_cost_ns(&policy->step, n_rows) + round_ns(policy) +
                     guess_row_ns(policy) * (1 + debt_rows(drafter, span));
    if (policy->probe_ns < cost_ns)
        return 0;
    policy->probe_ns -= cost_ns;
    policy->slots[span->slot].probing = true;
    want[stalest] = 1;
    return 1;
}

int32_t moge_policy_choose(struct moge_policy *policy, const struct moge_batch *batch,
                           const struct moge_drafter *drafter, int32_t *want) {
    int32_t room = min_i32(batch->n_rows_cap - moge_batch_rows(batch),
                           batch->n_logits_cap - moge_batch_logits(batch));
    bool any_auto = false;
    for (int32_t i = 0; i < batch->n_spans; i++) {
        const struct moge_span *span = &batch->spans[i];
        MOGE_ASSERT(span->slot >= 0 && span->slot < policy->n_slots);
        want[i] = 0;
        policy->slots[span->slot].used = true;
        policy->slots[span->slot].probing = false;
        any_auto = any_auto || (may_guess(span) && span->spec_mode == MOGE_SPEC_AUTO);
    }
    if (room <= 0)
        return 0;
    int32_t n_guess = choose_fixed(policy, batch, room, want);
    if (!any_auto)
        return n_guess;
    int32_t n_auto = choose_auto(policy, batch, drafter, room - n_guess, want);
    for (int32_t i = 0; i < n_auto; i++)
        want[policy->order[i]]++;
    n_guess += n_auto;
    if (n_auto == 0 && n_guess < room)
        n_guess += probe(policy, batch, drafter, n_guess, want);
    return n_guess;
}

/* ---- learning ---- */

void moge_policy_drafted(struct moge_policy *policy, int32_t n_rounds, int32_t n_rows, int64_t ns) {
    moge_guess_cost_observe(&policy->guess, n_rounds, n_rows, (double)ns);
}

static void observe_span(struct moge_policy *policy, const struct moge_span *span) {
    struct policy_slot *slot = &policy->slots[span->slot];
    for (int32_t j = 0; j < span->n_guess && j <= span->n_accepted; j++) {
        bool hit = j < span->n_accepted;
        evidence_add(&policy->global[j], hit, FADE_GLOBAL);
        /* A request that has ended in this step leaves nothing behind in its slot. */
        if (slot->used)
            evidence_add(&slot->at[j], hit, FADE_SLOT);
    }
    if (span->n_guess > 0)
        slot->n_idle = 0;
    else if (slot->used)
        evidence_idle(slot);
    /* A probe that was right has paid for itself, so the next may follow at once. */
    if (slot->probing && span->n_accepted > 0)
        policy->probe_ns += moge_step_cost_ns(&policy->step, 1);
}

void moge_policy_observe(struct moge_policy *policy, const struct moge_batch *batch,
                         int64_t forward_ns) {
    if (forward_ns > 0)
        moge_step_cost_observe(&policy->step, moge_batch_rows(batch), (double)forward_ns);
    for (int32_t i = 0; i < batch->n_spans; i++) {
        const struct moge_span *span = &batch->spans[i];
        /* Nothing decided: a chunk of a prompt, or a step that failed. */
        if (span->n_logits > 0 && span->n_out > 0)
            observe_span(policy, span);
    }
    policy->probe_ns += PROBE_SHARE * (double)forward_ns;
    double saved_max = PROBE_SAVED * moge_step_cost_ns(&policy->step, 1);
    if (policy->probe_ns > saved_max)
        policy->probe_ns = saved_max;
}

void moge_policy_stats(const struct moge_policy *policy, struct moge_draft_stats *out) {
    out->guess_ns = round_ns(policy) + guess_row_ns(policy);
    out->row_ns[0] = policy->step.ns;
    out->row_ns[1] = policy->step.ns_per_row;
}
