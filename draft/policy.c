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
 * a small share of the time (PROBE_SHARE) is saved up, and spent on a step that gives every span
 * one guess.  A probe that is right gives back what it has saved. */
#include "draft/policy.h"

#include <stdbool.h>
#include <stdlib.h>

/* Evidence fades to 1/e after this many guesses: a request's own, everybody's together, and the
 * short memory that tells when a request's text has changed its nature. */
#define FADE_SLOT   64.0
#define FADE_GLOBAL 400.0
#define FADE_FAST   8.0
/* The text has changed when the short memory is this many standard deviations off the long one. */
#define CHANGE_SIGMAS 3.5
/* Evidence also fades with steps that guessed nothing: the text has moved on. */
#define FADE_IDLE 64.0
/* The level above counts as much as this many guesses. */
#define PRIOR_WEIGHT 8.0
/* Before anything is known. */
#define PRIOR_ACCEPT 0.6
/* Nobody is always right. */
#define ACCEPT_MAX 0.99
/* A guess worth less than this is not considered. */
#define GAIN_MIN 0.01
/* Guessing must promise at least this much more tokens per second. */
#define MARGIN 1.01
/* Measurements of the step without guesses that must be in memory: when guessing is far better, and
 * when it is a close call. */
#define ZERO_WEIGHT       0.5
#define ZERO_WEIGHT_CLOSE 4.0
#define CLOSE_CALL        1.2
/* Share of the time that may be spent on probing, and the most that is saved up, in steps. */
#define PROBE_SHARE 0.005
#define PROBE_SAVED 2.0
/* Share of the time saved by a probe that is given back, so that success is followed up soon. */
#define PROBE_REFUND 0.5
/* Before drafting was ever measured: a round, and a row, as a share of a step of one row. */
#define GUESS_PRIOR     0.04
#define GUESS_ROW_PRIOR 0.004

struct evidence {
    double n, hits; /* fading counts */
};

struct policy_slot {
    bool used;                              /* between its first choice and forget */
    struct evidence at[MOGE_DRAFT_LEN_MAX]; /* by position of the guess */
    struct evidence all, fast;              /* at any position; long and short memory */
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
    struct evidence global[MOGE_DRAFT_LEN_MAX], global_all; /* everybody's */
    struct policy_slot *slots;                              /* [n_slots] */
    double probe_ns;                                        /* saved up for probing */
    bool probing; /* the guesses of this step are a probe */
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

/* Probability that the guess at position j is right, given that those before it were. */
static double accept_rate(const struct moge_policy *policy, const struct policy_slot *slot, int j) {
    double everybody = evidence_rate(&policy->global_all, PRIOR_ACCEPT);
    double everybody_here = evidence_rate(&policy->global[j], everybody);
    /* What is special about the position is known from everybody; deep ones have little evidence.
     */
    double rate = evidence_rate(&slot->all, everybody) * everybody_here / everybody;
    rate = evidence_rate(&slot->at[j], rate < ACCEPT_MAX ? rate : ACCEPT_MAX);
    return rate < ACCEPT_MAX ? rate : ACCEPT_MAX;
}

static void evidence_scale(struct policy_slot *slot, double factor) {
    slot->all.n *= factor;
    slot->all.hits *= factor;
    for (int j = 0; j < MOGE_DRAFT_LEN_MAX; j++) {
        slot->at[j].n *= factor;
        slot->at[j].hits *= factor;
    }
}

/* One guess and its outcome, in the memories of its request. */
static void slot_learn(struct policy_slot *slot, int j, bool hit) {
    evidence_add(&slot->at[j], hit, FADE_SLOT);
    evidence_add(&slot->all, hit, FADE_SLOT);
    evidence_add(&slot->fast, hit, FADE_FAST);
    if (slot->fast.n < FADE_FAST / 2)
        return;
    double rate = slot->all.hits / slot->all.n, off = slot->fast.hits / slot->fast.n - rate;
    double variance = rate * (1 - rate) > 0.02 ? rate * (1 - rate) : 0.02;
    if (off * off * slot->fast.n < CHANGE_SIGMAS * CHANGE_SIGMAS * variance)
        return;
    evidence_scale(slot, 0.1);
    slot->all = slot->fast;
}

/* ---- cost of drafting ---- */

static double round_ns(const struct moge_policy *policy) {
    return policy->guess.sum_weight > 0 ? policy->guess.ns_per_round
                                        : GUESS_PRIOR * moge_step_cost_ns(&policy->step, 1);
}

static double guess_row_ns(const struct moge_policy *policy) {
    return policy->guess.sum_weight > 0 ? policy->guess.ns_per_row
                                        : GUESS_ROW_PRIOR * moge_step_cost_ns(&policy->step, 1);
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

/* The step that guessing is compared with must itself be measured now and then, or a wrong belief
 * about it would never meet a fact; the more often, the closer the call. */
static bool must_measure_zero(const struct moge_policy *policy, const struct moge_batch *batch,
                              double advantage) {
    int32_t n_rows = moge_batch_rows(batch);
    return n_rows == moge_batch_logits(batch) &&
           moge_step_cost_weight(&policy->step, n_rows) <
               (advantage > CLOSE_CALL ? ZERO_WEIGHT : ZERO_WEIGHT_CLOSE);
}

/* Returns how many guesses of policy->order make the fastest step, and how many times the tokens
 * per second of a step without them it should reach. */
static int32_t choose_auto(struct moge_policy *policy, const struct moge_batch *batch,
                           const struct moge_drafter *drafter, int32_t room, const int32_t *want,
                           double *advantage) {
    struct outlook outlook = outlook_begin(policy, batch, want);
    if (outlook.ns <= 0)
        return 0;
    double slope = moge_step_cost_ns(&policy->step, outlook.n_rows + 1) -
                   moge_step_cost_ns(&policy->step, outlook.n_rows);
    heap_fill(policy, batch, drafter, slope + guess_row_ns(policy) + 1);
    double zero_rate = outlook.tokens / outlook.ns, best_rate = MARGIN * zero_rate;
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
    *advantage = best_rate / zero_rate;
    return n_best;
}

/* One guess for every auto span, if that has been saved up for: then acceptance and the cost of a
 * wider step are known again.  Spans with so much to catch up with that it costs as much as a step
 * are left out. */
static int32_t probe(struct moge_policy *policy, const struct moge_batch *batch,
                     const struct moge_drafter *drafter, int32_t room) {
    int32_t n_rows = moge_batch_rows(batch), n_probes = 0;
    double step_ns = moge_step_cost_ns(&policy->step, n_rows), cost_ns = round_ns(policy);
    for (int32_t i = 0; i < batch->n_spans && n_probes < room; i++) {
        const struct moge_span *span = &batch->spans[i];
        if (!may_guess(span) || span->spec_mode != MOGE_SPEC_AUTO)
            continue;
        double catch_up_ns = guess_row_ns(policy) * debt_rows(drafter, span);
        if (catch_up_ns > step_ns)
            continue;
        cost_ns += catch_up_ns + guess_row_ns(policy);
        policy->order[n_probes++] = i;
    }
    cost_ns += moge_step_cost_ns(&policy->step, n_rows + n_probes) - step_ns;
    if (n_probes == 0 || cost_ns > policy->probe_ns)
        return 0;
    policy->probe_ns -= cost_ns;
    policy->probing = true;
    return n_probes;
}

int32_t moge_policy_choose(struct moge_policy *policy, const struct moge_batch *batch,
                           const struct moge_drafter *drafter, int32_t *want) {
    int32_t room = min_i32(batch->n_rows_cap - moge_batch_rows(batch),
                           batch->n_logits_cap - moge_batch_logits(batch));
    bool any_auto = false;
    policy->probing = false;
    for (int32_t i = 0; i < batch->n_spans; i++) {
        const struct moge_span *span = &batch->spans[i];
        MOGE_ASSERT(span->slot >= 0 && span->slot < policy->n_slots);
        want[i] = 0;
        policy->slots[span->slot].used = true;
        any_auto = any_auto || (may_guess(span) && span->spec_mode == MOGE_SPEC_AUTO);
    }
    if (room <= 0)
        return 0;
    int32_t n_guess = choose_fixed(policy, batch, room, want);
    if (!any_auto)
        return n_guess;
    double advantage = 1;
    int32_t n_auto = choose_auto(policy, batch, drafter, room - n_guess, want, &advantage);
    if (n_guess == 0 && n_auto > 0 && must_measure_zero(policy, batch, advantage))
        return 0;
    if (n_auto == 0)
        n_auto = probe(policy, batch, drafter, room - n_guess);
    for (int32_t i = 0; i < n_auto; i++)
        want[policy->order[i]]++;
    return n_guess + n_auto;
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
        evidence_add(&policy->global_all, hit, FADE_GLOBAL);
        /* A request that has ended in this step leaves nothing behind in its slot. */
        if (slot->used)
            slot_learn(slot, j, hit);
    }
    /* The text moves on while nothing is guessed. */
    if (span->n_guess == 0)
        evidence_scale(slot, 1 - 1 / FADE_IDLE);
}

void moge_policy_observe(struct moge_policy *policy, const struct moge_batch *batch,
                         int64_t forward_ns) {
    if (forward_ns > 0)
        moge_step_cost_observe(&policy->step, moge_batch_rows(batch), (double)forward_ns);
    int32_t n_decode = 0, n_accepted = 0;
    for (int32_t i = 0; i < batch->n_spans; i++) {
        const struct moge_span *span = &batch->spans[i];
        /* Nothing decided: a chunk of a prompt, or a step that failed. */
        if (span->n_logits == 0 || span->n_out == 0)
            continue;
        observe_span(policy, span);
        n_decode++;
        n_accepted += span->n_accepted;
    }
    policy->probe_ns += PROBE_SHARE * (double)forward_ns;
    if (policy->probing && n_decode > 0)
        policy->probe_ns +=
            PROBE_REFUND * moge_step_cost_ns(&policy->step, n_decode) * n_accepted / n_decode;
    if (policy->probe_ns > PROBE_SAVED * (double)forward_ns)
        policy->probe_ns = PROBE_SAVED * (double)forward_ns;
}

void moge_policy_stats(const struct moge_policy *policy, struct moge_draft_stats *out) {
    out->guess_ns = round_ns(policy) + guess_row_ns(policy);
    out->row_ns[0] = policy->step.ns;
    out->row_ns[1] = policy->step.ns_per_row;
}
