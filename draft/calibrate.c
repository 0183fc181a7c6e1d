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
 * Kinds come cheapest first, so that a small budget measures the small ones.  The next is expected
 * to take GROWTH times the one before it (twice is the most), and no trial is begun that would then
 * end after the budget.  What was not tried often enough stays unknown: the policy will look there.
 *
 * A sequence has a page for itself and never fills it, so no page is ever taken for a known one.
 * The pager is not asked: nobody holds a page yet, and what is in a free page is nobody's. */
#include "draft/draft_state.h"

#include <stdbool.h>

#include "moge/sample.h"
#include "moge/splitmix.h"

#define N_STEPS      7 /* 1, 2, 4 .. 64 rows */
#define N_SEQS       (1 << (N_STEPS - 1))
#define N_DRAFTS     4
#define TRIALS       2
#define GROWTH       1.5
#define BUDGET_STEPS 48
#define STEPS_OF     0.8 /* of the budget; the rest is the drafter's, and what steps leave */
#define SEQ_TOKENS   (MOGE_PAGE_TOKENS + MOGE_DRAFT_LEN_MAX + 1)

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

/* The least that a kind takes; false when the time is up before it is known, or it cannot be made.
 * The first trial finds memory that is new, and other programs only ever make it longer. */
static bool kind_measure(struct calibrator *c, bool drafting, int i, double until_ns,
                         double expected_ns, double *out) {
    double least_ns = expected_ns;
    for (int n = 0; n < TRIALS; n++) {
        if ((double)c->draft->now_ns() + least_ns >= until_ns)
            return false;
        double ns = kind_try(c, drafting, i);
        if (ns <= 0)
            return false;
        least_ns = n == 0 || ns < least_ns ? ns : least_ns;
    }
    *out = least_ns;
    return true;
}

/* Returns the sizes that are known now. */
static int steps_measure(struct calibrator *c, double until_ns, double one_ns) {
    double ns, before_ns = one_ns;
    int i = 0;
    for (; i < N_STEPS; i++) {
        if (!kind_measure(c, false, i, until_ns, i > 0 ? GROWTH * before_ns : one_ns, &ns))
            break;
        /* Twice the rows never take longer than two steps. */
        before_ns = i > 0 && ns > 2 * before_ns ? 2 * before_ns : ns;
        moge_policy_calibrate(c->draft->policy, 1 << i, before_ns);
    }
    return i;
}

static void drafts_measure(struct calibrator *c, double until_ns) {
    double ns = 0;
    for (int i = 0; i < N_DRAFTS; i++) {
        int32_t n_rounds = draft_kinds[i].len, n_rows = n_rounds * draft_kinds[i].n_seqs;
        if (!kind_measure(c, true, i, until_ns, GROWTH * ns, &ns))
            return;
        for (int n = 0; n < TRIALS; n++)
            moge_policy_drafted(c->draft->policy, n_rounds, n_rows, (int64_t)ns);
    }
}

int moge_draft_calibrate(struct moge_draft *draft, const struct moge_calibration *with) {
    struct calibrator c;
    double begin_ns = (double)draft->now_ns(), budget_ns = (double)with->budget_ns;
    calibrator_init(&c, draft, with);
    double one_ns = budget_ns > 0 ? step_try(&c, 1) : 0;
    budget_ns = BUDGET_STEPS * one_ns < budget_ns ? BUDGET_STEPS * one_ns : budget_ns;
    int n_steps = steps_measure(&c, begin_ns + STEPS_OF * budget_ns, one_ns);
    if (n_steps > 0 && draft->drafter.ops)
        drafts_measure(&c, begin_ns + budget_ns);
    with->batch->n_spans = 0;
    return n_steps;
}
