/* SPDX-License-Identifier: Apache-2.0 */
/* The scheduler's own state, shared by its files and seen by nobody else:
 *
 *      sched.c           the object, its two lists, a request's end, invariants
 *      sched_admit.c     what was submitted, what must end, who gets pages
 *      sched_plan.c      rows of the next step
 *      sched_preempt.c   who gives its pages back when they run out
 *      sched_commit.c    what becomes of a step's result
 *
 * Two lists, linked through the requests themselves:
 *
 *      waiting   ordered by priority, then arrival; a preempted request goes back to the front of
 *                its priority
 *      running   ordered by admission; each holds a pager slot
 *
 * A running request with n_tokens decided tokens, n_computed of them with KV in place, is in one of
 * two states that need no flag: n_computed = n_tokens - 1 is a decode row; less is a prompt (or,
 * after preemption, a history) still to be prefilled. */
#ifndef MOGE_SCHED_STATE_H
#define MOGE_SCHED_STATE_H

#include "server/schedule/sched.h"

struct moge_req_list {
    struct moge_req *first, *last;
    int32_t n;
};

struct moge_sched {
    struct moge_sched_options options;
    struct moge_req_list waiting, running;
};

static inline int32_t sched_min(int32_t a, int32_t b) {
    return a < b ? a : b;
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

/* Puts req before next, or last when next is NULL. */
void moge_req_list_insert(struct moge_req_list *list, struct moge_req *req, struct moge_req *next);
void moge_req_list_remove(struct moge_req_list *list, struct moge_req *req);

/* Into the waiting list, among those of the same priority: behind them, or (front) before them. */
void moge_sched_wait(struct moge_sched *sched, struct moge_req *req, bool front);

/* Gives back the slot, its pages and what the drafter knows of it. */
void moge_sched_slot_give(struct moge_sched *sched, struct moge_req *req);

/* The end, whatever the reason.  Gives back what the request holds and the engine side's reference.
 */
void moge_sched_finish(struct moge_sched *sched, struct moge_req_list *list, struct moge_req *req,
                       enum moge_finish reason, int64_t now_us);

/* Back to waiting: its pages go back, its history will be computed again. */
void moge_sched_preempt(struct moge_sched *sched, struct moge_req *req);

/* Reserves the page of a decoding request's next position, preempting others for it if needed.
 * False: no page, and req was itself preempted. */
bool moge_sched_page_for_decode(struct moge_sched *sched, struct moge_req *req);

#endif
