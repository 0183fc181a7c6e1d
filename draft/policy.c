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
 * Where guesses can be looked up as well, the next guess of a span is whoever's it is: the
 * lookup's, unless the drafter is so much more likely to be right that it is worth the drafter's
 * time.
 *
 * p comes from the request's own recent guesses at that position, leaning on its guesses at all
 * positions, leaning on everybody's.  Where nothing is guessed, estimates would never change again:
 * a small share of the time (PROBE_SHARE) is saved up, and spent on a step that gives every span
 * one guess.  A probe that is right gives back what it has saved. */
#include "draft/policy.h"

#include <stdlib.h>

#include "draft/match.h"

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

struct policy_slot {
    bool used;                                   /* between its first choice and forget */
    struct moge_evidence at[MOGE_DRAFT_LEN_MAX]; /* by position of the guess */
    struct moge_evidence all, fast;              /* at any position; long and short memory */
    struct moge_own_matches matches; /* of the lookup's guesses; the rest: the drafter's */
};

/* A span on its way through one choice. */
struct candidate {
    int32_t i_span;
    const struct moge_lookup *lookup; /* NULL: nothing was looked up */
    struct moge_plan plan;            /* so far */
    double reached;                   /* probability that all guesses so far are right */
    double debt_ns;                   /* catch-up charged to the drafter's first guess */
    bool looked_up;                   /* the next guess is the lookup's */
    double draft_ns;                  /* what making it takes, rounds aside */
    double key;                       /* its gain per cost; the heap's order */
};

/* One guess, in the order of gain per cost. */
struct choice {
    int32_t i_span;
    bool looked_up;
};

/* What things cost in this step. */
struct prices {
    const struct moge_drafter *drafter; /* ops NULL: there is none */
    double tokens_per_ns;               /* of a step without guesses */
    double round_ns;                    /* share of one span in a round of drafting */
    double guess_row_ns, row_ns;        /* a row of drafting, a row of the step */
};

struct moge_policy {
    /* constant after new */
    int32_t n_slots, draft_len_max;
    /* engine thread */
    struct moge_step_cost step;
    struct moge_guess_cost guess;
    struct moge_evidence global[MOGE_DRAFT_LEN_MAX], global_all; /* everybody's */
    struct moge_matches matches;                                 /* everybody's */
    struct policy_slot *slots;                                   /* [n_slots] */
    double probe_ns;                                             /* saved up for probing */
    bool probing; /* the guesses of this step are a probe */
    /* scratch of one choice */
    struct candidate *heap; /* [n_slots] largest key first */
    int32_t n_heap;
    struct prices prices; /* of the last choice */
    struct choice *order; /* [n_slots * MOGE_DRAFT_LEN_MAX] */
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

/* Probability that the guess at position j is right, given that those before it were. */
static double accept_rate(const struct moge_policy *policy, const struct policy_slot *slot, int j) {
    double everybody = moge_evidence_rate(&policy->global_all, PRIOR_ACCEPT, PRIOR_WEIGHT);
    double everybody_here = moge_evidence_rate(&policy->global[j], everybody, PRIOR_WEIGHT);
    /* What is special about the position is known from everybody; deep ones have little evidence.
     */
    double rate = moge_evidence_rate(&slot->all, everybody, PRIOR_WEIGHT);
    rate *= everybody_here / everybody;
    rate = moge_evidence_rate(&slot->at[j], rate < ACCEPT_MAX ? rate : ACCEPT_MAX, PRIOR_WEIGHT);
    return rate < ACCEPT_MAX ? rate : ACCEPT_MAX;
}

static void evidence_scale_one(struct moge_evidence *evidence, double factor) {
    evidence->n *= factor;
    evidence->hits *= factor;
}

static void evidence_scale(struct policy_slot *slot, double factor) {
    evidence_scale_one(&slot->all, factor);
    for (int j = 0; j < MOGE_DRAFT_LEN_MAX; j++)
        evidence_scale_one(&slot->at[j], factor);
}

/* One guess and its outcome, in the memories of its request. */
static void slot_learn(struct policy_slot *slot, int j, bool hit) {
    moge_evidence_add(&slot->at[j], hit, FADE_SLOT);
    moge_evidence_add(&slot->all, hit, FADE_SLOT);
    moge_evidence_add(&slot->fast, hit, FADE_FAST);
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
    return drafter->ops && drafter->ops->debt ? drafter->ops->debt(drafter->self, span) : 0;
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

static bool may_draft(const struct prices *prices, const struct moge_span *span) {
    return prices->drafter->ops && (span->drafters == MOGE_DRAFTERS_ANY ||
                                    (span->drafters & (int)MOGE_DRAFTERS_MODEL) != 0);
}

static int32_t min_i32(int32_t a, int32_t b) {
    return a < b ? a : b;
}

static struct prices prices_of(const struct moge_policy *policy, const struct moge_batch *batch,
                               const struct moge_drafter *drafter) {
    struct prices prices = {.drafter = drafter, .guess_row_ns = guess_row_ns(policy)};
    int32_t n_decode = moge_batch_logits(batch), n_rows = moge_batch_rows(batch), n_drafting = 0;
    double ns = moge_step_cost_ns(&policy->step, n_decode);
    for (int32_t i = 0; i < batch->n_spans; i++)
        n_drafting += may_guess(&batch->spans[i]) && may_draft(&prices, &batch->spans[i]);
    prices.tokens_per_ns = ns > 0 ? n_decode / ns : 0;
    prices.round_ns = round_ns(policy) / (n_drafting > 1 ? n_drafting : 1);
    prices.row_ns =
        moge_step_cost_ns(&policy->step, n_rows + 1) - moge_step_cost_ns(&policy->step, n_rows) + 1;
    return prices;
}

/* Is the lookup's guess the better one, when the drafter is right with probability drafter_rate and
 * takes draft_ns?  A guess that is right is worth itself and about as much of the next one. */
static bool lookup_is_better(const struct prices *prices, double lookup_rate, double drafter_rate,
                             double draft_ns) {
    return (drafter_rate - lookup_rate) * (1 + drafter_rate) <= prices->tokens_per_ns * draft_ns;
}

/* Readies the candidate's next guess: whose it is, and what it gains and costs.  False when nobody
 * has one. */
static bool candidate_next(const struct moge_policy *policy, const struct moge_span *span,
                           struct candidate *c) {
    const struct prices *prices = &policy->prices;
    const struct policy_slot *slot = &policy->slots[span->slot];
    int32_t n_lookup = c->plan.n_lookup, j = n_lookup + c->plan.n_drafter;
    if (j >= min_i32(span->guess_max, policy->draft_len_max))
        return false;
    bool first = c->plan.n_drafter == 0, drafts = may_draft(prices, span);
    bool looks = first && c->lookup && n_lookup < c->lookup->n;
    if (!drafts && !looks)
        return false;
    double rate = drafts ? accept_rate(policy, slot, j) : 0, rate_lookup = 0;
    c->draft_ns = prices->guess_row_ns;
    if (first) /* what was looked up before is history to the drafter */
        c->draft_ns += c->debt_ns + n_lookup * prices->guess_row_ns;
    if (looks)
        rate_lookup =
            moge_match_rate(&policy->matches, &slot->matches, c->lookup->match_len + n_lookup);
    c->looked_up = looks && (!drafts || lookup_is_better(prices, rate_lookup, rate,
                                                         c->draft_ns + prices->round_ns));
    if (c->looked_up) {
        rate = rate_lookup;
        c->draft_ns = 0;
    }
    c->reached *= rate;
    c->key = c->reached / (prices->row_ns + c->draft_ns);
    return true;
}

static void candidate_take(struct candidate *c) {
    c->plan.n_lookup += c->looked_up;
    c->plan.n_drafter += !c->looked_up;
}

static struct candidate candidate_begin(const struct moge_policy *policy,
                                        const struct moge_batch *batch, int32_t i_span,
                                        const struct moge_lookup *lookups) {
    const struct moge_span *span = &batch->spans[i_span];
    struct candidate c = {.i_span = i_span, .reached = 1};
    if (may_draft(&policy->prices, span))
        c.debt_ns = debt_charge_ns(policy, span, debt_rows(policy->prices.drafter, span));
    if (lookups && lookups[span->slot].n_known == span->n_known)
        c.lookup = &lookups[span->slot];
    return c;
}

/* What the step yields and takes before any guess of an auto span. */
struct outlook {
    double tokens, ns;
    int32_t n_rows, n_rounds;
};

/* Fixed lengths, one guess a round so that a full batch is shared fairly; what they are expected to
 * bring goes into the outlook.  Returns their sum. */
static int32_t choose_fixed(struct moge_policy *policy, const struct moge_batch *batch,
                            const struct moge_lookup *lookups, int32_t room,
                            struct moge_plan *plans, struct outlook *outlook) {
    struct candidate *fixed = policy->heap; /* nobody else uses it yet */
    int32_t n_fixed = 0, n_guess = 0;
    for (int32_t i = 0; i < batch->n_spans; i++)
        if (may_guess(&batch->spans[i]) && batch->spans[i].spec_mode == MOGE_SPEC_FIXED) {
            MOGE_ASSERT(n_fixed < policy->n_slots);
            fixed[n_fixed++] = candidate_begin(policy, batch, i, lookups);
        }
    for (int32_t k = 1; n_fixed > 0 && k <= policy->draft_len_max; k++)
        for (int32_t i = 0; i < n_fixed && n_guess < room; i++) {
            struct candidate *c = &fixed[i];
            const struct moge_span *span = &batch->spans[c->i_span];
            if (k > span->spec_len || !candidate_next(policy, span, c)) {
                fixed[i--] = fixed[--n_fixed];
                continue;
            }
            candidate_take(c);
            plans[c->i_span] = c->plan;
            outlook->tokens += c->reached;
            outlook->ns += c->draft_ns;
            if (c->plan.n_drafter > outlook->n_rounds)
                outlook->n_rounds = c->plan.n_drafter;
            n_guess++;
        }
    return n_guess;
}

static void heap_fill(struct moge_policy *policy, const struct moge_batch *batch,
                      const struct moge_lookup *lookups) {
    policy->n_heap = 0;
    for (int32_t i = 0; i < batch->n_spans; i++) {
        const struct moge_span *span = &batch->spans[i];
        if (!may_guess(span) || span->spec_mode != MOGE_SPEC_AUTO)
            continue;
        struct candidate c = candidate_begin(policy, batch, i, lookups);
        MOGE_ASSERT(policy->n_heap < policy->n_slots);
        if (candidate_next(policy, span, &c) && c.reached >= GAIN_MIN)
            policy->heap[policy->n_heap++] = c;
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
                           const struct moge_lookup *lookups, int32_t room, struct outlook outlook,
                           double *advantage) {
    if (outlook.ns <= 0)
        return 0;
    heap_fill(policy, batch, lookups);
    double zero_rate = outlook.tokens / outlook.ns, best_rate = MARGIN * zero_rate;
    int32_t n = 0, n_best = 0;
    while (policy->n_heap > 0 && n < room) {
        struct candidate *first = &policy->heap[0];
        outlook.tokens += first->reached;
        outlook.ns += moge_step_cost_ns(&policy->step, outlook.n_rows + 1) -
                      moge_step_cost_ns(&policy->step, outlook.n_rows) + first->draft_ns;
        outlook.n_rows++;
        candidate_take(first);
        if (first->plan.n_drafter > outlook.n_rounds) {
            outlook.n_rounds = first->plan.n_drafter;
            outlook.ns += round_ns(policy);
        }
        policy->order[n++] = (struct choice){first->i_span, first->looked_up};
        if (outlook.tokens / outlook.ns > best_rate) {
            best_rate = outlook.tokens / outlook.ns;
            n_best = n;
        }
        if (!candidate_next(policy, &batch->spans[first->i_span], first) ||
            first->reached < GAIN_MIN)
            policy->heap[0] = policy->heap[--policy->n_heap];
        heap_down(policy, 0);
    }
    *advantage = best_rate / zero_rate;
    return n_best;
}

/* One guess for every auto span, if that has been saved up for: then acceptance and the cost of a
 * wider step are known again.  Spans with so much to catch up with that it costs as much as a step
 * are left out. */
static int32_t probe(struct moge_policy *policy, const struct moge_batch *batch, int32_t room) {
    const struct moge_drafter *drafter = policy->prices.drafter;
    int32_t n_rows = moge_batch_rows(batch), n_probes = 0;
    double step_ns = moge_step_cost_ns(&policy->step, n_rows), cost_ns = round_ns(policy);
    for (int32_t i = 0; i < batch->n_spans && n_probes < room; i++) {
        const struct moge_span *span = &batch->spans[i];
        if (!may_guess(span) || span->spec_mode != MOGE_SPEC_AUTO ||
            !may_draft(&policy->prices, span))
            continue;
        double catch_up_ns = guess_row_ns(policy) * debt_rows(drafter, span);
        if (catch_up_ns > step_ns)
            continue;
        cost_ns += catch_up_ns + guess_row_ns(policy);
        policy->order[n_probes++] = (struct choice){.i_span = i};
    }
    cost_ns += moge_step_cost_ns(&policy->step, n_rows + n_probes) - step_ns;
    if (n_probes == 0 || cost_ns > policy->probe_ns)
        return 0;
    policy->probe_ns -= cost_ns;
    policy->probing = true;
    return n_probes;
}

int32_t moge_policy_choose(struct moge_policy *policy, const struct moge_batch *batch,
                           const struct moge_drafter *drafter, const struct moge_lookup *lookups,
                           struct moge_plan *plans) {
    int32_t room = min_i32(batch->n_rows_cap - moge_batch_rows(batch),
                           batch->n_logits_cap - moge_batch_logits(batch));
    struct outlook outlook = {.n_rows = moge_batch_rows(batch)};
    int32_t n_decode = 0;
    bool any_auto = false;
    policy->probing = false;
    for (int32_t i = 0; i < batch->n_spans; i++) {
        const struct moge_span *span = &batch->spans[i];
        MOGE_ASSERT(span->slot >= 0 && span->slot < policy->n_slots);
        plans[i] = (struct moge_plan){0};
        policy->slots[span->slot].used = true;
        n_decode += span->n_logits - span->n_scored;
        outlook.tokens += moge_span_decides(span);
        any_auto = any_auto || (may_guess(span) && span->spec_mode == MOGE_SPEC_AUTO);
    }
    if (room <= 0)
        return 0;
    policy->prices = prices_of(policy, batch, drafter);
    int32_t n_fixed = choose_fixed(policy, batch, lookups, room, plans, &outlook);
    if (!any_auto)
        return n_fixed;
    outlook.n_rows += n_fixed;
    outlook.ns +=
        moge_step_cost_ns(&policy->step, n_decode + n_fixed) + outlook.n_rounds * round_ns(policy);
    double advantage = 1;
    int32_t n_auto = choose_auto(policy, batch, lookups, room - n_fixed, outlook, &advantage);
    if (n_fixed == 0 && n_auto > 0 && must_measure_zero(policy, batch, advantage))
        return 0;
    if (n_auto == 0)
        n_auto = probe(policy, batch, room - n_fixed);
    for (int32_t i = 0; i < n_auto; i++) {
        struct moge_plan *plan = &plans[policy->order[i].i_span];
        plan->n_lookup += policy->order[i].looked_up;
        plan->n_drafter += !policy->order[i].looked_up;
    }
    return n_fixed + n_auto;
}

bool moge_policy_prefers_lookup(const struct moge_policy *policy, const struct moge_span *span,
                                const struct moge_lookup *lookup) {
    const struct prices *prices = &policy->prices;
    const struct policy_slot *slot = &policy->slots[span->slot];
    double rate = moge_match_rate(&policy->matches, &slot->matches, lookup->match_len);
    return lookup_is_better(prices, rate, accept_rate(policy, slot, span->n_guess),
                            prices->guess_row_ns + prices->round_ns);
}

/* ---- learning ---- */

void moge_policy_drafted(struct moge_policy *policy, int32_t n_rounds, int32_t n_rows, int64_t ns) {
    moge_guess_cost_observe(&policy->guess, n_rounds, n_rows, (double)ns);
}

void moge_policy_looked(struct moge_policy *policy, const struct moge_span *span,
                        const struct moge_lookup *lookup) {
    struct policy_slot *slot = &policy->slots[span->slot];
    bool hit = true;
    for (int32_t j = 0; hit && j < lookup->n && lookup->n_known + j < span->n_known; j++) {
        hit = lookup->tokens[j] == span->tokens[lookup->n_known + j];
        moge_match_learn(&policy->matches, &slot->matches, lookup->match_len + j, hit);
    }
}

static void observe_span(struct moge_policy *policy, const struct moge_span *span) {
    struct policy_slot *slot = &policy->slots[span->slot];
    int32_t n_drafted = 0;
    for (int32_t j = 0; j < span->n_guess && j <= span->n_accepted; j++) {
        bool hit = j < span->n_accepted;
        if (moge_span_is_by_ngram(span, j)) /* see moge_policy_looked */
            continue;
        n_drafted++;
        moge_evidence_add(&policy->global[j], hit, FADE_GLOBAL);
        moge_evidence_add(&policy->global_all, hit, FADE_GLOBAL);
        /* A request that has ended in this step leaves nothing behind in its slot. */
        if (slot->used)
            slot_learn(slot, j, hit);
    }
    /* The text moves on while the drafter says nothing. */
    if (n_drafted == 0)
        evidence_scale(slot, 1 - 1 / FADE_IDLE);
    /* So it does beyond the last guess: a bad start of a position must not be its end. */
    for (int32_t j = span->n_guess; n_drafted > 0 && j < MOGE_DRAFT_LEN_MAX; j++) {
        evidence_scale_one(&slot->at[j], 1 - 1 / FADE_IDLE);
        evidence_scale_one(&policy->global[j], 1 - 1 / FADE_GLOBAL);
    }
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
