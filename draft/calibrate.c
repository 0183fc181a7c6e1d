/* SPDX-License-Identifier: Apache-2.0 */
/* A few trials before anybody is served.
 *
 * Steps: so many sequences of one made-up token each as there are rows, as when many decode
 * together; where there are fewer slots, each gets several rows, as when guesses are verified.
 * Tokens are spread over the vocabulary, so that a model with experts uses about as many as in
 * service.  The drafter: rounds for one sequence and for several, since both cost.
 *
 * The time is that of BUDGET_STEPS steps of one row, if the caller allows so much: a small model
 * starts at once.  The first step is not counted: its memory is new.
 *
 * Passes go over all kinds, cheapest first, so that a small budget tries the small ones, once; the
 * median of a kind counts, or the lower of two.  A kind that was never tried is expected to take
 * GROWTH times the one before it (twice is the most), and none is begun that would then end after
 * the budget.
 *
 * A sequence has a page for itself and never fills it, so no page is ever taken for a known one.
 * The pager is not asked: nobody holds a page yet, and what is in a free page is nobody's. */
#include "draft/draft_state.h"

#include <stdbool.h>
#include <stdlib.h>

#include "moge/sample.h"
#include "moge/splitmix.h"

#define N_STEPS       7 /* 1, 2, 4 .. 64 rows */
#define N_SEQS        (1 << (N_STEPS - 1))
#define N_DRAFTS      4
#define PASSES        3
#define GROWTH        1.5
#define SPREAD_OF_ONE 0.1 /* relative, of a single trial */
#define BUDGET_STEPS  24
#define STEPS_OF      0.8 /* of the budget; the rest is the drafter's, and what steps leave */
#define SEQ_TOKENS    (MOGE_PAGE_TOKENS + MOGE_DRAFT_LEN_MAX + 1)

/* Trials of one kind. */
struct trials {
    int n;
    double ns[PASSES];
};

struct calibrator {
    struct moge_draft *draft;
    const struct moge_calibration *with;
    int32_t n_seqs_max;
    struct moge_sample_params greedy;
    int32_t pages[N_SEQS];
    int32_t tokens[N_SEQS][SEQ_TOKENS];
};

/* Rounds for so many sequences. */
static const struct draft_kind {
    int32_t n_seqs, len;
} draft_kinds[N_DRAFTS] = {{1, 1}, {1, 4}, {4, 1}, {8, 2}};

static void calibrator_init(struct calibrator *c, struct moge_draft *draft,
                            const struct moge_calibration *with) {
    *c = (struct calibrator){
        .draft = draft, .with = with, .greedy = moge_sample_params_default(), .n_seqs_max = 1};
    c->greedy.temperature = 0;
    int32_t most =
        with->batch->n_spans_cap < with->n_pages ? with->batch->n_spans_cap : with->n_pages;
    while (c->n_seqs_max < N_SEQS && 2 * c->n_seqs_max <= most)
        c->n_seqs_max *= 2;
    uint64_t state = 1;
    for (int32_t i = 0; i < N_SEQS; i++) {
        c->pages[i] = i;
        for (int32_t j = 0; j < SEQ_TOKENS; j++)
            c->tokens[i][j] = (int32_t)(moge_splitmix(&state) % (uint64_t)with->batch->n_vocab);
    }
}

/* A sequence of one token and so many guesses. */
static struct moge_span span_of(struct calibrator *c, int32_t i, int32_t n_guess) {
    return (struct moge_span){.tokens = c->tokens[i],
                              .pages = &c->pages[i],
                              .slot = i,
                              .n_rows = 1 + n_guess,
                              .n_known = 1,
                              .n_prompt = 1,
                              .n_logits = 1 + n_guess,
                              .n_guess = n_guess,
                              .sample = &c->greedy};
}

/* What a step of n_rows takes; negative when it cannot be made. */
static double step_try(struct calibrator *c, int32_t n_rows) {
    struct moge_batch *batch = c->with->batch;
    int32_t n_seqs = n_rows < c->n_seqs_max ? n_rows : c->n_seqs_max;
    if (n_rows > batch->n_rows_cap || n_rows > batch->n_logits_cap ||
        n_rows / n_seqs >= MOGE_PAGE_TOKENS)
        return -1;
    batch->n_spans = n_seqs;
    for (int32_t i = 0; i < n_seqs; i++)
        batch->spans[i] = span_of(c, i, n_rows / n_seqs - 1);
    int64_t begin_ns = c->draft->now_ns();
    if (moge_engine_forward(c->with->engine, batch) != 0)
        return -1; /* a context too short for so many rows */
    moge_accept_batch(c->with->accept, batch);
    return (double)(c->draft->now_ns() - begin_ns);
}

static double draft_try(struct calibrator *c, const struct draft_kind *kind) {
    const struct moge_drafter *drafter = &c->draft->drafter;
    struct moge_span *spans[N_SEQS];
    int32_t want[N_SEQS];
    if (kind->n_seqs > c->n_seqs_max || kind->len > c->draft->len_max)
        return -1;
    for (int32_t i = 0; i < kind->n_seqs; i++) {
        c->with->batch->spans[i] = span_of(c, i, 0);
        spans[i] = &c->with->batch->spans[i];
        want[i] = kind->len;
    }
    int64_t begin_ns = c->draft->now_ns();
    drafter->ops->guess(drafter->self, spans, want, kind->n_seqs);
    double ns = (double)(c->draft->now_ns() - begin_ns);
    for (int32_t i = 0; i < kind->n_seqs; i++)
        drafter->ops->forget(drafter->self, i);
    return ns;
}

/* Kind i, of steps or of drafting. */
static double kind_try(struct calibrator *c, bool drafting, int i) {
    return drafting ? draft_try(c, &draft_kinds[i]) : step_try(c, 1 << i);
}

/* Passes over n kinds until the time is up. */
static void passes(struct calibrator *c, bool drafting, int64_t until_ns, int n,
                   struct trials *trials) {
    for (int pass = 0; pass < PASSES; pass++)
        for (int i = 0; i < n; i++) {
            double expected = trials[i].n > 0 ? trials[i].ns[0] : 0;
            if (trials[i].n == 0 && i > 0)
                expected = GROWTH * trials[i - 1].ns[0];
            double ns = -1;
            if ((double)c->draft->now_ns() + expected < (double)until_ns)
                ns = kind_try(c, drafting, i);
            if (ns <= 0) {
                n = i;
                break;
            }
            trials[i].ns[trials[i].n++] = ns;
        }
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(struct trials *trials) {
    qsort(trials->ns, (size_t)trials->n, sizeof *trials->ns, by_size);
    return trials->ns[(trials->n - 1) / 2];
}

/* Of sorted trials. */
static double spread(const struct trials *trials) {
    return trials->n > 1 ? (trials->ns[trials->n - 1] / trials->ns[0] - 1) / 2 : SPREAD_OF_ONE;
}

int moge_draft_calibrate(struct moge_draft *draft, const struct moge_calibration *with) {
    struct calibrator c;
    struct trials steps[N_STEPS] = {0}, drafts[N_DRAFTS] = {0};
    int64_t begin_ns = draft->now_ns();
    int n_steps = 0;
    calibrator_init(&c, draft, with);
    double budget_ns = (double)with->budget_ns, one_ns = budget_ns > 0 ? step_try(&c, 1) : 0;
    budget_ns = BUDGET_STEPS * one_ns < budget_ns ? BUDGET_STEPS * one_ns : budget_ns;
    passes(&c, false, begin_ns + (int64_t)(STEPS_OF * budget_ns), N_STEPS, steps);
    for (; n_steps < N_STEPS && steps[n_steps].n > 0; n_steps++) {
        double ns = median(&steps[n_steps]);
        moge_policy_calibrate(draft->policy, 1 << n_steps, ns, spread(&steps[n_steps]));
    }
    if (n_steps > 0 && draft->drafter.ops)
        passes(&c, true, begin_ns + (int64_t)budget_ns, N_DRAFTS, drafts);
    for (int i = 0; i < N_DRAFTS; i++)
        for (int n = drafts[i].n; n > 0; n--)
            moge_policy_drafted(draft->policy, draft_kinds[i].len,
                                draft_kinds[i].len * draft_kinds[i].n_seqs,
                                (int64_t)median(&drafts[i]));
    with->batch->n_spans = 0;
    return n_steps;
}
