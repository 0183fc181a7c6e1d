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
 * Where nothing is guessed, estimates would never change again:
 * a small share of the time (PROBE_SHARE) is saved up, and spent on guesses that are not offered
 * but only compared with what is decided.  A probe that was right against expectation is paid back.
 */
#include "draft/policy.h"

#include <math.h>
#include <stdlib.h>

#include "draft/acceptance.h"
#include "draft/heap.h"
#include "draft/hope.h"
#include "draft/match.h"
#include "draft/order.h"

/* A guess worth less than this is not considered. */
#define GAIN_MIN 0.01
/* The step without guesses is measured where its time, compared with that of other steps, is less
 * certain than this share of what guessing gains, within limits. */
#define ZERO_SPREAD_SHARE 0.3
#define ZERO_SPREAD_MIN   0.03
#define ZERO_SPREAD_MAX   0.1
/* But after so many steps at the soonest: where measurements scatter much it never is certain. */
#define ZERO_APART 8
/* Share of the time that may be spent on probing, and the most that is saved up, in steps. */
#define PROBE_SHARE 0.005
#define PROBE_SAVED 2.0
/* Probes take turns with a hope that costs more than what is saved: they wait for so many steps. */
#define AWAIT_MAX 8
/* Before drafting was ever measured: a round, and a row, as a share of a step of one row. */
#define GUESS_PRIOR     0.04
#define GUESS_ROW_PRIOR 0.004
/* What the drafter has to catch up with is expected to serve so many steps for each guess that
 * there is room for. */
#define DEBT_HORIZON 4.0

struct policy_slot {
    bool used;                             /* between its first choice and forget */
    struct moge_own_acceptance acceptance; /* of the drafter's guesses */
    struct moge_own_matches matches;       /* of the lookup's */
    double probe_ns;                       /* what its last probe was charged */
};

/* A span on its way through one choice. */
struct candidate {
    int32_t i_span;
    const struct moge_lookup *lookup; /* NULL: nothing was looked up */
    struct moge_plan plan;            /* so far */
    double reached;                   /* probability that all guesses so far are right */
    double debt_ns;                   /* catch-up charged to the drafter's first guess */
    double unpaid_ns;                 /* of that catch-up, what is left to the steps to come */
    bool looked_up;                   /* the next guess is the lookup's */
    double draft_ns;                  /* what making it takes, rounds aside */
    double key;                       /* its gain per cost */
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
    struct moge_acceptance acceptance; /* everybody's */
    struct moge_matches matches;       /* everybody's */
    struct policy_slot *slots;         /* [n_slots] */
    struct moge_savings saved;         /* for probing */
    int32_t n_awaiting;                /* steps without a probe in favour of a hope */
    int32_t n_guessing;                /* steps since one without guesses was measured */
    int32_t probe_next;                /* span whose turn it is */
    /* scratch of one choice */
    struct candidate *candidates; /* [n_slots] spans that may guess */
    struct moge_heap heap;        /* of those in auto mode that have another guess */
    struct moge_order order;      /* of their guesses */
    struct prices prices;         /* of the last choice */
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
    policy->candidates = calloc((size_t)n_slots, sizeof *policy->candidates);
    policy->heap.entries = calloc((size_t)n_slots, sizeof *policy->heap.entries);
    if (!policy->slots || !policy->candidates || !policy->heap.entries ||
        moge_order_init(&policy->order, n_slots * MOGE_DRAFT_LEN_MAX) != 0)
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
    free(policy->candidates);
    free(policy->heap.entries);
    moge_order_fini(&policy->order);
    free(policy);
}

void moge_policy_forget(struct moge_policy *policy, int32_t i_slot) {
    MOGE_ASSERT(i_slot >= 0 && i_slot < policy->n_slots);
    policy->slots[i_slot] = (struct policy_slot){0};
}

void moge_policy_restart(struct moge_policy *policy) {
    policy->acceptance = (struct moge_acceptance){0};
    policy->matches = (struct moge_matches){0};
    for (int32_t i = 0; i < policy->n_slots; i++)
        moge_policy_forget(policy, i);
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

/* One row comes with every full acceptance and is the price of this step.  More is what piled up
 * while nothing was guessed, or a prompt: paid once, of use for the steps to come.  How many those
 * are is unknown; the room for guesses is a hint, since it ends with the request. */
static double debt_charge_ns(const struct moge_policy *policy, const struct moge_span *span,
                             int32_t n_rows) {
    double now = n_rows < 1 ? n_rows : 1;
    return guess_row_ns(policy) * (now + (n_rows - now) / (DEBT_HORIZON * span->guess_max));
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
        (moge_step_cost_ns(&policy->step, 2 * n_rows) - moge_step_cost_ns(&policy->step, n_rows)) /
            n_rows +
        1;
    return prices;
}

/* Is the lookup's guess the better one, both being right with these probabilities?  A guess that is
 * right is worth itself and about as much of the next one. */
static bool lookup_is_better(const struct prices *prices, double lookup, double drafter,
                             double draft_ns) {
    return (drafter - lookup) * (1 + drafter) <= prices->tokens_per_ns * draft_ns;
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
    double rate = 0, rate_lookup = 0;
    if (drafts)
        rate = moge_acceptance_rate(&policy->acceptance, &slot->acceptance, j);
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
    if (may_draft(&policy->prices, span)) {
        int32_t n_rows = debt_rows(policy->prices.drafter, span);
        c.debt_ns = debt_charge_ns(policy, span, n_rows);
        c.unpaid_ns = n_rows * guess_row_ns(policy) - c.debt_ns;
    }
    if (lookups && lookups[span->slot].n_known == span->n_known)
        c.lookup = &lookups[span->slot];
    return c;
}

/* Fixed lengths, one guess a round so that a full batch is shared fairly; what they are expected to
 * bring goes into the outlook.  Returns their sum. */
static int32_t choose_fixed(struct moge_policy *policy, const struct moge_batch *batch,
                            const struct moge_lookup *lookups, int32_t room,
                            struct moge_plan *plans, struct moge_outlook *outlook) {
    struct candidate *fixed = policy->candidates; /* nobody else uses them yet */
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

/* Every auto span with its first guess. */
static void heap_fill(struct moge_policy *policy, const struct moge_batch *batch,
                      const struct moge_lookup *lookups) {
    struct moge_heap *heap = &policy->heap;
    heap->n = 0;
    for (int32_t i = 0; i < batch->n_spans; i++) {
        const struct moge_span *span = &batch->spans[i];
        if (!may_guess(span) || span->spec_mode != MOGE_SPEC_AUTO)
            continue;
        MOGE_ASSERT(heap->n < policy->n_slots);
        struct candidate *c = &policy->candidates[heap->n];
        *c = candidate_begin(policy, batch, i, lookups);
        if (candidate_next(policy, span, c) && c->reached >= GAIN_MIN) {
            heap->entries[heap->n] = (struct moge_heap_entry){c->key, heap->n};
            heap->n++;
        }
    }
    for (int32_t i = heap->n / 2 - 1; i >= 0; i--)
        moge_heap_sink(heap, i);
}

/* All guesses of auto spans, best gain per cost first. */
static void order_fill(struct moge_policy *policy, const struct moge_batch *batch,
                       const struct moge_lookup *lookups) {
    struct moge_heap *heap = &policy->heap;
    struct moge_order *order = &policy->order;
    heap_fill(policy, batch, lookups);
    order->n = order->depth = 0;
    while (heap->n > 0) {
        struct candidate *c = &policy->candidates[heap->entries[0].i];
        bool first = c->plan.n_drafter == 0 && !c->looked_up;
        candidate_take(c);
        MOGE_ASSERT(order->n < order->n_max);
        order->guesses[order->n++] = (struct moge_guess){.reached = c->reached,
                                                         .draft_ns = c->draft_ns,
                                                         .unpaid_ns = first ? c->unpaid_ns : 0,
                                                         .i_span = c->i_span,
                                                         .depth = c->plan.n_drafter};
        order->depth = c->plan.n_drafter > order->depth ? c->plan.n_drafter : order->depth;
        if (candidate_next(policy, &batch->spans[c->i_span], c) && c->reached >= GAIN_MIN)
            heap->entries[0].key = c->key;
        else
            heap->entries[0] = heap->entries[--heap->n];
        moge_heap_sink(heap, 0);
    }
}

/* The step that guessing is compared with must itself be measured now and then, the more often, the
 * closer the call: this belief is what keeps guessing from costing anything. */
static bool must_measure_zero(const struct moge_policy *policy, const struct moge_batch *batch,
                              double advantage) {
    double most = ZERO_SPREAD_SHARE * (advantage - 1);
    most = most < ZERO_SPREAD_MIN ? ZERO_SPREAD_MIN : most;
    most = most > ZERO_SPREAD_MAX ? ZERO_SPREAD_MAX : most;
    return moge_step_cost_spread(&policy->step, moge_batch_rows(batch)) > most;
}

/* Adds the guesses that make the fastest step to the plans; returns their number. */
static int32_t choose_auto(struct moge_policy *policy, const struct moge_batch *batch,
                           const struct moge_lookup *lookups, int32_t room,
                           const struct moge_outlook *outlook, struct moge_plan *plans) {
    if (outlook->ns <= 0)
        return 0;
    struct moge_beginning hopes[MOGE_HOPES];
    int n_hopes;
    order_fill(policy, batch, lookups);
    struct moge_beginning best = moge_order_best(&policy->order, &policy->step, round_ns(policy),
                                                 room, outlook, hopes, &n_hopes);
    if (moge_batch_rows(batch) == moge_batch_logits(batch)) { /* no prefill */
        if (best.n > 0 && ++policy->n_guessing >= ZERO_APART &&
            must_measure_zero(policy, batch, best.rate * outlook->ns / outlook->tokens)) {
            policy->n_guessing = 0;
            return 0;
        }
        best = moge_best_or_hope(best, hopes, n_hopes, &policy->saved);
    }
    for (int32_t i = 0, n = 0; n < best.n; i++) {
        const struct moge_guess *guess = &policy->order.guesses[i];
        if (guess->depth > best.n_rounds)
            continue;
        plans[guess->i_span].n_lookup += guess->depth == 0;
        plans[guess->i_span].n_drafter += guess->depth > 0;
        n++;
    }
    return best.n;
}

/* Spans that guess nothing get a guess that is not offered, as many as has been saved up for: then
 * acceptance is known again, at the price of drafting alone.  They take turns. */
static int32_t probe(struct moge_policy *policy, const struct moge_batch *batch,
                     struct moge_plan *plans) {
    int32_t n_probes = 0, begin = policy->probe_next;
    double first_ns = round_ns(policy);
    for (int32_t i = 0; i < batch->n_spans; i++)
        first_ns = plans[i].n_drafter > 0 ? 0 : first_ns;
    for (int32_t k = 0; k < batch->n_spans; k++) {
        int32_t i = (begin + k) % batch->n_spans;
        const struct moge_span *span = &batch->spans[i];
        if (!may_guess(span) || span->spec_mode != MOGE_SPEC_AUTO ||
            plans[i].n_lookup + plans[i].n_drafter > 0 || !may_draft(&policy->prices, span))
            continue;
        double ns = guess_row_ns(policy) * (1 + debt_rows(policy->prices.drafter, span));
        if (first_ns + ns > policy->saved.ns)
            continue;
        policy->saved.ns -= first_ns + ns;
        policy->slots[span->slot].probe_ns = first_ns + ns;
        first_ns = 0;
        plans[i].probe = true;
        policy->probe_next = i + 1;
        n_probes++;
    }
    return n_probes;
}

int32_t moge_policy_choose(struct moge_policy *policy, const struct moge_batch *batch,
                           const struct moge_drafter *drafter, const struct moge_lookup *lookups,
                           struct moge_plan *plans) {
    int32_t room = min_i32(batch->n_rows_cap - moge_batch_rows(batch),
                           batch->n_logits_cap - moge_batch_logits(batch));
    struct moge_outlook outlook = {.n_rows = moge_batch_rows(batch)};
    int32_t n_decode = 0;
    bool any_auto = false;
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
    int32_t n_auto = choose_auto(policy, batch, lookups, room - n_fixed, &outlook, plans);
    if (policy->saved.awaited && ++policy->n_awaiting < AWAIT_MAX)
        return n_fixed + n_auto;
    policy->n_awaiting = 0;
    return n_fixed + n_auto + probe(policy, batch, plans);
}

bool moge_policy_prefers_lookup(const struct moge_policy *policy, const struct moge_span *span,
                                const struct moge_lookup *lookup) {
    const struct prices *prices = &policy->prices;
    const struct policy_slot *slot = &policy->slots[span->slot];
    double rate = moge_match_rate(&policy->matches, &slot->matches, lookup->match_len);
    return lookup_is_better(
        prices, rate, moge_acceptance_rate(&policy->acceptance, &slot->acceptance, span->n_guess),
        prices->guess_row_ns + prices->round_ns);
}

/* ---- learning ---- */

void moge_policy_drafted(struct moge_policy *policy, int32_t n_rounds, int32_t n_rows, int64_t ns) {
    moge_guess_cost_observe(&policy->guess, n_rounds, n_rows, (double)ns);
}

void moge_policy_calibrate(struct moge_policy *policy, int32_t n_rows, double ns) {
    if (n_rows == 1) {
        policy->step = (struct moge_step_cost){0};
        policy->guess = (struct moge_guess_cost){0};
        policy->saved.ns = PROBE_SAVED * ns;
    }
    moge_step_cost_seed(&policy->step, n_rows, ns);
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

static void drafter_learn(struct moge_policy *policy, struct policy_slot *slot, int32_t j,
                          bool hit) {
    /* A request that has ended in this step leaves nothing behind in its slot. */
    moge_acceptance_learn(&policy->acceptance, slot->used ? &slot->acceptance : NULL, j, hit);
}

void moge_policy_probed(struct moge_policy *policy, const struct moge_span *span, bool hit) {
    struct policy_slot *slot = &policy->slots[span->slot];
    if (hit) /* the less it was expected, the sooner it is followed up */
        policy->saved.ns +=
            slot->probe_ns * (1 - moge_acceptance_rate(&policy->acceptance, &slot->acceptance, 0));
    drafter_learn(policy, slot, 0, hit);
}

static void observe_span(struct moge_policy *policy, const struct moge_span *span) {
    struct policy_slot *slot = &policy->slots[span->slot];
    int32_t n_drafted = 0;
    for (int32_t j = 0; j < span->n_guess && j <= span->n_accepted; j++) {
        if (moge_span_is_by_ngram(span, j)) /* see moge_policy_looked */
            continue;
        n_drafted++;
        drafter_learn(policy, slot, j, j < span->n_accepted);
    }
    if (n_drafted == 0)
        moge_acceptance_idle(&slot->acceptance);
}

void moge_policy_observe(struct moge_policy *policy, const struct moge_batch *batch,
                         int64_t step_ns) {
    double ns = (double)step_ns;
    policy->saved.most_ns = PROBE_SAVED * ns;
    if (policy->step.n_seen == 0) /* nothing is known: what a later start would have saved */
        policy->saved.ns = policy->saved.most_ns;
    if (step_ns > 0)
        moge_step_cost_observe(&policy->step, moge_batch_rows(batch), ns);
    for (int32_t i = 0; i < batch->n_spans; i++) {
        const struct moge_span *span = &batch->spans[i];
        /* Nothing decided: a chunk of a prompt, or a step that failed. */
        if (span->n_logits > 0 && span->n_out > 0)
            observe_span(policy, span);
    }
    policy->saved.ns = fmin(policy->saved.ns + PROBE_SHARE * ns, policy->saved.most_ns);
}

void moge_policy_stats(const struct moge_policy *policy, struct moge_draft_stats *out) {
    out->guess_round_ns = round_ns(policy);
    out->guess_row_ns = guess_row_ns(policy);
    out->guess_ns = out->guess_round_ns + out->guess_row_ns;
    /* A straight line through two points of the curve. */
    double one = moge_step_cost_ns(&policy->step, 1), many = moge_step_cost_ns(&policy->step, 33);
    out->row_ns[1] = (many - one) / 32;
    out->row_ns[0] = one - out->row_ns[1];
    for (int i = 0; i < MOGE_STEP_COSTS; i++)
        out->step_ns[i] = moge_step_cost_ns(&policy->step, 1 << i);
}
