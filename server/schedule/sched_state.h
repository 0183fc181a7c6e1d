/* SPDX-License-Identifier: Apache-2.0 */
/* The scheduler's own state, shared by its files and seen by nobody else:
 *
 *      sched.c           the object, its two lists, a request's end, invariants
 *      sched_admit.c     what was submitted, what must end, who gets pages
 *      sched_plan.c      rows of the next step
 *      sched_preempt.c   who gives its pages back when they run out
 *      sched_pace.c      what steps cost, and what follows for prompt rows and deadlines
 *      sched_commit.c    what becomes of a step's result
 *
 * Two lists, linked through the requests themselves:
 *
 *      waiting   ordered by rank; a preempted request keeps its rank
 *      running   ordered by admission; each holds a pager slot
 *
 * Rank is the one order of service: higher priority first, then earlier arrival.  With aging it is
 * submission time less a fixed time for each level of priority, so it never changes: everybody ages
 * at the same rate, and a request waits only for those submitted within a bounded time after it.
 *
 * A running request with n_tokens decided tokens, n_computed of them with KV in place, is in one of
 * two states that need no flag: n_computed = n_tokens - 1 is a decode row; less is a prompt (or,
 * after preemption, a history) still to be prefilled. */
#ifndef MOGE_SCHED_STATE_H
#define MOGE_SCHED_STATE_H

#include "server/schedule/sched.h"

/* A preempted request is admitted again when pages for this much growth are free, and is spared
 * until it has grown so much. */
#define MOGE_SCHED_GROWTH_TOKENS (4 * MOGE_PAGE_TOKENS)

struct moge_req_list {
    struct moge_req *first, *last;
    int32_t n;
};

struct moge_sched {
    struct moge_sched_options options;
    struct moge_req_list waiting, running;
    uint64_t n_arrived;
    int32_t logits_left;    /* of the step that is being planned */
    int32_t last_prefilled; /* slot whose prompt was served last: the next one's turn is first */
    /* What steps cost, learned: see sched_pace.c. */
    double step_ns, rows_cost, rows_square;
    /* Counters of moge_sched_stats. */
    uint64_t n_preempted, n_recomputed, n_refused_age, n_refused_deadline;
    uint64_t n_prefix_queried, n_prefix_hit;
};

static inline int32_t sched_min(int32_t a, int32_t b) {
    return a < b ? a : b;
}

static inline int32_t sched_max(int32_t a, int32_t b) {
    return a > b ? a : b;
}

/* A moment to remember: 0 stands for "not yet". */
static inline int64_t sched_moment(int64_t now_us) {
    return now_us > 0 ? now_us : 1;
}

static inline bool sched_is_decode(const struct moge_req *req) {
    return req->n_computed == req->n_tokens - 1;
}

static inline bool sched_was_admitted(const struct moge_req *req) {
    return req->admitted_us != 0;
}

/* Tokens the ring takes; one element stays free for the text that ends a request. */
static inline int32_t sched_ring_room(const struct moge_req *req) {
    return moge_req_room(req) - 1;
}

/* A reader that takes nothing: no token of this request can be decided. */
static inline bool sched_is_stalled(const struct moge_req *req) {
    return sched_ring_room(req) <= 0;
}

/* Prompt rows that are to be scored: the last one decides the first token instead. */
static inline int32_t sched_rows_to_score(const struct moge_req *req) {
    return req->n_prompt_logprobs >= 0 ? req->n_prompt - 1 : 0;
}

/* The first position, of those not yet computed or of those to be computed again, whose row puts
 * something into the ring: a score that is not there yet, or the next token. */
static inline int32_t sched_first_yield(const struct moge_req *req) {
    return req->n_scored < sched_rows_to_score(req) ? req->n_scored : req->n_tokens - 1;
}

/* A sample whose prompt another one has still to compute for it. */
static inline bool sched_awaits_fork(const struct moge_req *req) {
    return req->fork_of && req->fork_of->n_computed < req->n_prompt - 1;
}

static inline bool sched_before(const struct moge_req *a, const struct moge_req *b) {
    return a->rank != b->rank ? a->rank < b->rank : a->arrival < b->arrival;
}

/* Tokens the request can ever have. */
static inline int32_t sched_tokens_max(const struct moge_sched *sched, const struct moge_req *req) {
    return req->n_prompt + sched_min(req->max_tokens, sched->options.n_context - req->n_prompt);
}

/* Puts req before next, or last when next is NULL. */
void moge_req_list_insert(struct moge_req_list *list, struct moge_req *req, struct moge_req *next);
void moge_req_list_remove(struct moge_req_list *list, struct moge_req *req);

/* Into the waiting list, by rank. */
void moge_sched_wait(struct moge_sched *sched, struct moge_req *req);

/* Gives back the slot, its pages and what the drafter knows of it. */
void moge_sched_slot_give(struct moge_sched *sched, struct moge_req *req);

/* The end, whatever the reason.  Gives back what the request holds and the engine side's reference.
 */
void moge_sched_finish(struct moge_sched *sched, struct moge_req_list *list, struct moge_req *req,
                       enum moge_finish reason, int64_t now_us);

/* Back to waiting: its pages go back, its history will be computed again. */
void moge_sched_preempt(struct moge_sched *sched, struct moge_req *req);

/* Reserves the page of every decoding request's next position, preempting some for it if needed. */
void moge_sched_pages_for_decodes(struct moge_sched *sched);

/* What a prompt row adds to a step, in ns; 0: not known yet. */
double moge_sched_row_ns(const struct moge_sched *sched);

/* Prompt rows that a step with decode rows may have, by the limits on time; at most step_rows_max.
 */
int32_t moge_sched_prefill_rows_max(const struct moge_sched *sched);

/* 0, or MOGE_DEADLINE with a sentence when req, which has just arrived, cannot be expected to have
 * its first token before its deadline. */
int moge_sched_deadline_check(const struct moge_sched *sched, const struct moge_req *req,
                              int64_t now_us, struct moge_err *err);

#endif
