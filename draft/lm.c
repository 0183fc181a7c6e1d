/* SPDX-License-Identifier: Apache-2.0 */
/* A small model guesses, for all sequences at once:
 *
 *      tokens     t0 t1 t2 t3 t4 t5 | g6 g7 g8 |          want = 3
 *      KV is in   ###########^ n_valid                    t0..t2 were seen before
 *      round 0             [t3 t4 t5] -> g6               catch-up and first guess: one forward
 *      round 1                        [g6] -> g7          one row for each sequence that still
 *      round 2                             [g7] -> g8     wants a guess
 *
 * Its KV lies in an arena of its own under the target's page ids, so one block table serves both
 * models.  What must be known is how much of that KV is true: the positions below n_valid were
 * computed from tokens that were decided at the time or guessed then.  Of the guessed ones a copy
 * is kept; before the next use they are compared with what was decided in the end, and n_valid is
 * cut at the first that was rejected.
 *
 * The pager knows nothing of this arena.  It hands a sequence pages that others filled (a prefix
 * hit), or puts a page of the same tokens in place of one that just became full; the target's KV is
 * right in these, ours may not be.  So every page is marked with a hash of all tokens up to its end
 * when the last of its positions is computed, and a sequence adopts the pages whose marks fit:
 *
 *      tokens   [ t0..t15 ][ t16..t31 ][ t32..t47 ][ t48 t49              n_known = 50
 *      pages    [ mark ok ][ mark ok  ][ unknown  ][                      n_hashed = 2, n_valid =
 * 32
 *
 * A page changes hands only when it becomes full: those before n_hashed are never looked at again.
 * A hash that collides makes wrong guesses, which change no output. */
#include "moge/draft.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "moge/sample.h"
#include "moge/siphash.h"

/* What is known of a page, if not the hash of its tokens. */
#define PAGE_UNKNOWN  0
#define PAGE_IN_ROUND 1 /* being written by this round's forward */

struct lm_slot {
    int32_t n_hashed;                    /* full pages whose KV is in place, once and for all */
    uint64_t hash;                       /* of the tokens in these */
    int32_t n_valid;                     /* positions whose KV is in place */
    int32_t last_page;                   /* the page in which position n_valid - 1 was computed */
    int32_t n_decided;                   /* of which these were decided tokens when computed */
    int32_t guesses[MOGE_DRAFT_LEN_MAX]; /* [n_valid - n_decided] what the others were */
};

/* One span that wants guesses, while it is guessed for. */
struct lm_job {
    struct moge_span *span; /* of the target's batch */
    int32_t want;
    int32_t i_span; /* its span in the draft's batch of this round; -1: not in it */
};

struct lm {
    /* constant after new */
    int32_t n_slots, n_rows_max, n_context_max;
    int n_threads;
    struct moge_threads *threads;
    struct moge_engine *engine;
    struct moge_sampler **samplers; /* [n_threads] */
    /* engine thread */
    struct lm_slot *slots;   /* [n_slots] */
    uint64_t *marks;         /* [n_pages] hash of the tokens up to the page's end, or PAGE_ */
    struct lm_job *jobs;     /* [n_slots] */
    struct moge_batch batch; /* of one round */
    int32_t n_jobs;
    atomic_int next_job;
};

static uint64_t hash_page(uint64_t before, const int32_t *tokens) {
    static const uint64_t key[2] = {0, 0}; /* collisions harm nobody */
    struct {
        uint64_t before;
        int32_t tokens[MOGE_PAGE_TOKENS];
    } data = {.before = before};
    memcpy(data.tokens, tokens, sizeof data.tokens);
    return moge_siphash(key, &data, sizeof data) | 2; /* neither PAGE_UNKNOWN nor PAGE_IN_ROUND */
}

/* Full pages of the sequence that the pager will not exchange any more. */
static int32_t pages_final(const struct moge_span *span) {
    return (span->n_known - 1) / MOGE_PAGE_TOKENS;
}

/* Goes on over final pages whose marks fit; where one does not, its positions count only if this
 * sequence itself is in the middle of writing them. */
static void slot_adopt(const struct lm *lm, struct lm_slot *slot, const struct moge_span *span) {
    int32_t n_final = pages_final(span);
    for (; slot->n_hashed < n_final; slot->n_hashed++) {
        ptrdiff_t at = (ptrdiff_t)slot->n_hashed * MOGE_PAGE_TOKENS;
        uint64_t hash = hash_page(slot->hash, span->tokens + at);
        if (lm->marks[span->pages[slot->n_hashed]] != hash)
            break;
        slot->hash = hash;
    }
    int32_t n_adopted = slot->n_hashed * MOGE_PAGE_TOKENS;
    bool exchanged = slot->n_hashed < n_final && slot->n_valid > n_adopted &&
                     span->pages[slot->n_hashed] != slot->last_page;
    if (slot->n_valid < n_adopted || exchanged)
        slot->n_valid = slot->n_decided = n_adopted;
}

/* Cuts n_valid at the first token that was computed as a guess and is another one now. */
static void slot_settle(const struct lm *lm, struct lm_slot *slot, const struct moge_span *span) {
    if (slot->n_decided > span->n_known) /* another sequence, though nobody said so */
        *slot = (struct lm_slot){.last_page = -1};
    int32_t n_true = slot->n_decided, end = span->n_known, last = end + span->n_guess - 1;
    /* Asked again in the same step: guesses are compared with the guesses they were. */
    if (slot->n_decided == span->n_known)
        end += span->n_guess;
    while (n_true < slot->n_valid && n_true < end &&
           slot->guesses[n_true - slot->n_decided] == span->tokens[n_true])
        n_true++;
    /* The last token is computed again if need be: its logits are wanted. */
    slot->n_valid = n_true < last ? n_true : last;
    slot->n_decided = slot->n_valid < span->n_known ? slot->n_valid : span->n_known;
    slot_adopt(lm, slot, span);
}

/* Rows a job would have to compute to get its next guess. */
static int32_t job_pending(const struct lm *lm, const struct lm_job *job) {
    return job->span->n_known + job->span->n_guess - lm->slots[job->span->slot].n_valid;
}

static bool job_done(const struct lm_job *job) {
    return job->span->n_guess >= job->want;
}

/* Rows of all jobs that still want a guess. */
static int64_t rows_pending(const struct lm *lm) {
    int64_t n = 0;
    for (int32_t i = 0; i < lm->n_jobs; i++)
        if (!job_done(&lm->jobs[i]))
            n += job_pending(lm, &lm->jobs[i]);
    return n;
}

/* Of n_rows rows from pos, those before the first page that another job writes in this round: two
 * sequences that share pages would compute the same, and the second may adopt it afterwards. */
static int32_t pages_claim(struct lm *lm, const struct moge_span *span, int32_t pos,
                           int32_t n_rows) {
    for (int32_t i = pos / MOGE_PAGE_TOKENS; i * MOGE_PAGE_TOKENS < pos + n_rows; i++) {
        uint64_t *mark = &lm->marks[span->pages[i]];
        if (*mark == PAGE_IN_ROUND)
            return i * MOGE_PAGE_TOKENS > pos ? i * MOGE_PAGE_TOKENS - pos : 0;
        *mark = PAGE_IN_ROUND;
    }
    return n_rows;
}

/* Puts up to n_rows pending rows of a job into the round's batch; returns how many. */
static int32_t round_add(struct lm *lm, struct lm_job *job, int32_t n_rows) {
    const struct moge_span *span = job->span;
    int32_t pos = lm->slots[span->slot].n_valid;
    bool wants_logits = n_rows == job_pending(lm, job);
    int32_t n_claimed = pages_claim(lm, span, pos, n_rows);
    if (n_claimed == 0)
        return 0;
    job->i_span = lm->batch.n_spans;
    lm->batch.spans[lm->batch.n_spans++] =
        (struct moge_span){.tokens = span->tokens,
                           .pages = span->pages,
                           .slot = span->slot,
                           .pos = pos,
                           .n_rows = n_claimed,
                           .n_known = span->n_known + span->n_guess,
                           .n_prompt = span->n_prompt,
                           .n_logits = wants_logits && n_claimed == n_rows,
                           .sample = span->sample};
    return n_claimed;
}

/* Fills the batch: everything that is pending if it fits, so that every job gets a guess; else as
 * much catch-up as fits, leaving every job the row of its guess. */
static void round_plan(struct lm *lm) {
    bool guessing = rows_pending(lm) <= lm->n_rows_max;
    int32_t budget = lm->n_rows_max;
    lm->batch.n_spans = 0;
    for (int32_t i = 0; i < lm->n_jobs; i++) {
        struct lm_job *job = &lm->jobs[i];
        job->i_span = -1;
        if (job_done(job))
            continue;
        int32_t n_rows = job_pending(lm, job) - !guessing;
        if (n_rows > budget)
            n_rows = budget;
        if (n_rows > 0)
            budget -= round_add(lm, job, n_rows);
    }
}

static void pick_some(void *arg, int i_thread, int n_threads) {
    (void)n_threads;
    struct lm *lm = arg;
    for (;;) {
        int i = atomic_fetch_add_explicit(&lm->next_job, 1, memory_order_relaxed);
        if (i >= lm->n_jobs)
            return;
        struct lm_job *job = &lm->jobs[i];
        if (job->i_span < 0 || lm->batch.spans[job->i_span].n_logits == 0)
            continue;
        struct moge_span *span = job->span;
        const float *logits = lm->batch.logits + (size_t)lm->batch.spans[job->i_span].logits_row *
                                                     (size_t)lm->batch.n_vocab;
        int32_t at = span->n_known + span->n_guess;
        span->tokens[at] = moge_sampler_pick(lm->samplers[i_thread], span->sample, logits,
                                             span->tokens, span->n_prompt, at);
        span->n_guess++;
    }
}

/* Marks the pages that the rows of a round have filled or begun. */
static void pages_mark(struct lm *lm, struct lm_slot *slot, const struct moge_span *span) {
    uint64_t hash = slot->hash;
    int32_t i = slot->n_hashed, n_full = slot->n_valid / MOGE_PAGE_TOKENS;
    for (; i < n_full; i++) {
        hash = hash_page(hash, span->tokens + (ptrdiff_t)i * MOGE_PAGE_TOKENS);
        lm->marks[span->pages[i]] = hash;
        if (i >= pages_final(span))
            continue;
        slot->hash = hash;
        slot->n_hashed = i + 1;
    }
    if (slot->n_valid % MOGE_PAGE_TOKENS > 0)
        lm->marks[span->pages[n_full]] = PAGE_UNKNOWN;
    slot->last_page = span->pages[(slot->n_valid - 1) / MOGE_PAGE_TOKENS];
}

/* What the round's forward has put into the arena; then what others have put there for us. */
static void round_account(struct lm *lm) {
    for (int32_t i = 0; i < lm->n_jobs; i++) {
        const struct lm_job *job = &lm->jobs[i];
        if (job->i_span < 0)
            continue;
        const struct moge_span *span = job->span, *rows = &lm->batch.spans[job->i_span];
        struct lm_slot *slot = &lm->slots[span->slot];
        int32_t end = rows->pos + rows->n_rows;
        for (int32_t p = rows->pos; p < end; p++)
            if (p >= span->n_known)
                slot->guesses[p - span->n_known] = span->tokens[p];
        slot->n_valid = end;
        slot->n_decided = end < span->n_known ? end : span->n_known;
        pages_mark(lm, slot, span);
    }
    for (int32_t i = 0; i < lm->n_jobs; i++)
        if (!job_done(&lm->jobs[i]))
            slot_adopt(lm, &lm->slots[lm->jobs[i].span->slot], lm->jobs[i].span);
}

/* A forward that failed may have written anything. */
static void round_failed(struct lm *lm) {
    for (int32_t i = 0; i < lm->batch.n_spans; i++) {
        const struct moge_span *rows = &lm->batch.spans[i];
        int32_t end = rows->pos + rows->n_rows;
        for (int32_t page = rows->pos / MOGE_PAGE_TOKENS; page * MOGE_PAGE_TOKENS < end; page++)
            lm->marks[rows->pages[page]] = PAGE_UNKNOWN;
    }
}

/* One forward and the guesses it yields.  False when the engine refused: no more guesses then. */
static bool round_run(struct lm *lm) {
    round_plan(lm);
    if (moge_engine_forward(lm->engine, &lm->batch) != 0) {
        round_failed(lm);
        return false;
    }
    round_account(lm);
    atomic_store_explicit(&lm->next_job, 0, memory_order_relaxed);
    if (moge_batch_logits(&lm->batch) > 1)
        moge_threads_run(lm->threads, pick_some, lm);
    else
        pick_some(lm, 0, 1);
    return true;
}

static void lm_guess(void *self, struct moge_span *const *spans, const int32_t *want,
                     int32_t n_spans) {
    struct lm *lm = self;
    lm->n_jobs = 0;
    for (int32_t i = 0; i < n_spans; i++) {
        struct moge_span *span = spans[i];
        MOGE_ASSERT(span->slot >= 0 && span->slot < lm->n_slots);
        MOGE_ASSERT(want[i] <= MOGE_DRAFT_LEN_MAX);
        /* The last guess is not fed, so the model needs room for one position less. */
        int32_t room = lm->n_context_max - span->n_known + 1;
        int32_t n = want[i] < room ? want[i] : room;
        if (n <= span->n_guess)
            continue;
        MOGE_ASSERT(lm->n_jobs < lm->n_slots);
        slot_settle(lm, &lm->slots[span->slot], span);
        lm->jobs[lm->n_jobs++] = (struct lm_job){.span = span, .want = n};
    }
    while (rows_pending(lm) > 0 && round_run(lm)) {
    }
}

/* The next guess takes one row in any case; what it needs beyond that is debt. */
static int32_t lm_debt(void *self, const struct moge_span *span) {
    struct lm *lm = self;
    struct lm_slot *slot = &lm->slots[span->slot];
    slot_settle(lm, slot, span);
    return span->n_known + span->n_guess - 1 - slot->n_valid;
}

static void lm_forget(void *self, int32_t i_slot) {
    struct lm *lm = self;
    MOGE_ASSERT(i_slot >= 0 && i_slot < lm->n_slots);
    lm->slots[i_slot] = (struct lm_slot){.last_page = -1};
}

static void lm_free(void *self) {
    struct lm *lm = self;
    if (!lm)
        return;
    for (int i = 0; lm->samplers && i < lm->n_threads; i++)
        moge_sampler_free(lm->samplers[i]);
    free(lm->samplers);
    moge_engine_free(lm->engine);
    free(lm->slots);
    free(lm->marks);
    free(lm->jobs);
    free(lm->batch.spans);
    free(lm);
}

static const struct moge_drafter_ops lm_ops = {
    .name = "model", .guess = lm_guess, .debt = lm_debt, .forget = lm_forget, .free = lm_free};

static int lm_init(struct lm *lm, const struct moge_model *model,
                   const struct moge_draft_lm_options *options, struct moge_err *err) {
    const struct moge_model_info *info = moge_model_info(model);
    size_t n_slots = (size_t)options->n_slots;
    lm->slots = calloc(n_slots, sizeof *lm->slots);
    lm->marks = calloc((size_t)options->n_pages, sizeof *lm->marks);
    lm->jobs = calloc(n_slots, sizeof *lm->jobs);
    lm->batch.spans = calloc(n_slots, sizeof *lm->batch.spans);
    lm->samplers = calloc((size_t)lm->n_threads, sizeof(*lm->samplers));
    if (!lm->slots || !lm->marks || !lm->jobs || !lm->batch.spans || !lm->samplers)
        return moge_fail(err, MOGE_NOMEM, "no memory for the draft model's state");
    for (int i = 0; i < lm->n_threads; i++) {
        int rc = moge_sampler_new(&lm->samplers[i], info->n_vocab, err);
        if (rc != 0)
            return rc;
    }
    lm->batch.n_spans_cap = lm->batch.n_logits_cap = options->n_slots;
    lm->batch.n_rows_cap = lm->n_rows_max;
    lm->batch.n_vocab = info->n_vocab;
    struct moge_engine_options engine = {.n_pages = options->n_pages,
                                         .n_rows_max = lm->n_rows_max,
                                         .n_logits_max = options->n_slots,
                                         .n_context_max = lm->n_context_max,
                                         .kv_type = options->kv_type};
    return moge_engine_new(&lm->engine, model, lm->threads, &engine, err);
}

int moge_draft_lm_new(struct moge_drafter *out, const struct moge_model *model,
                      struct moge_threads *threads, const struct moge_draft_lm_options *options,
                      struct moge_err *err) {
    if (options->n_slots < 1 || options->n_pages < 1 || options->n_rows_max < 1 ||
        options->n_context_max < 1)
        return moge_fail(err, MOGE_INVALID,
                         "a draft model for %d slots, %d pages, %d rows and a context of %d is "
                         "impossible",
                         options->n_slots, options->n_pages, options->n_rows_max,
                         options->n_context_max);
    struct lm *lm = calloc(1, sizeof *lm);
    if (!lm)
        return moge_fail(err, MOGE_NOMEM, "no memory for the draft model's state");
    int32_t n_context = moge_model_info(model)->n_context;
    lm->n_slots = options->n_slots;
    /* A round needs at least one row for every sequence. */
    lm->n_rows_max = options->n_rows_max > lm->n_slots ? options->n_rows_max : lm->n_slots;
    lm->n_context_max = options->n_context_max < n_context ? options->n_context_max : n_context;
    lm->threads = threads;
    lm->n_threads = moge_threads_count(threads);
    int rc = lm_init(lm, model, options, err);
    if (rc != 0) {
        lm_free(lm);
        return rc;
    }
    *out = (struct moge_drafter){&lm_ops, lm};
    return 0;
}
