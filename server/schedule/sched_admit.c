/* SPDX-License-Identifier: Apache-2.0 */
/* A request's way in.  Admission takes pages for the whole history and leaves one page a running
 * sequence as a margin. */
#include "server/schedule/sched_state.h"

static void take_over(struct moge_sched *sched, struct moge_queue *queue) {
    struct moge_req *next;
    for (struct moge_req *req = moge_queue_drain(queue); req; req = next) {
        next = req->next;
        MOGE_ASSERT(req->n_prompt >= 1 && req->n_prompt < sched->options.n_context &&
                    req->max_tokens >= 1);
        req->n_tokens = req->n_prompt;
        req->n_computed = 0;
        req->slot = -1;
        moge_detok_init(&req->detok, sched->options.tokenizer, true);
        moge_sched_wait(sched, req, false);
    }
}

/* Why a request must end now, or MOGE_FINISH_NONE. */
static enum moge_finish must_end(const struct moge_req *req, int64_t now_us) {
    if (atomic_load_explicit(&req->cancelled, memory_order_relaxed))
        return MOGE_FINISH_CANCELLED;
    return now_us >= req->deadline_us ? MOGE_FINISH_DEADLINE : MOGE_FINISH_NONE;
}

static void reap(struct moge_sched *sched, struct moge_queue *queue, struct moge_req_list *list,
                 int64_t now_us) {
    struct moge_req *next;
    for (struct moge_req *req = list->first; req; req = next) {
        next = req->next;
        enum moge_finish reason = must_end(req, now_us);
        if (reason == MOGE_FINISH_NONE)
            continue;
        if (!sched_was_admitted(req))
            moge_queue_admitted(queue, req);
        moge_sched_finish(sched, list, req, reason, now_us);
    }
}

static bool admit_one(struct moge_sched *sched, struct moge_queue *queue, struct moge_req *req,
                      int64_t now_us) {
    struct moge_kv *kv = sched->options.kv;
    int32_t n_pages = moge_kv_pages_for(req->n_tokens + 1);
    if (sched->running.n >= sched->options.n_running_max || moge_kv_slots_free(kv) == 0)
        return false;
    if (sched->running.n > 0 && n_pages + sched->running.n > moge_kv_pages_free(kv))
        return false;
    int slot = moge_kv_slot_take(kv);
    MOGE_ASSERT(slot >= 0);
    /* Alone, one context always fits; in company, the free pages were just counted. */
    int rc = moge_kv_reserve(kv, slot, req->n_tokens);
    MOGE_ASSERT(rc == 0);
    moge_req_list_remove(&sched->waiting, req);
    req->slot = slot;
    if (!sched_was_admitted(req)) {
        moge_queue_admitted(queue, req);
        req->admitted_us = now_us > 0 ? now_us : 1;
    }
    moge_req_list_insert(&sched->running, req, NULL);
    return true;
}

void moge_sched_admit(struct moge_sched *sched, struct moge_queue *queue, int64_t now_us) {
    take_over(sched, queue);
    reap(sched, queue, &sched->waiting, now_us);
    reap(sched, queue, &sched->running, now_us);
    while (sched->waiting.first && admit_one(sched, queue, sched->waiting.first, now_us)) {
    }
}

void moge_sched_abort(struct moge_sched *sched, struct moge_queue *queue, enum moge_finish reason,
                      int64_t now_us) {
    take_over(sched, queue);
    while (sched->waiting.first) {
        if (!sched_was_admitted(sched->waiting.first))
            moge_queue_admitted(queue, sched->waiting.first);
        moge_sched_finish(sched, &sched->waiting, sched->waiting.first, reason, now_us);
    }
    while (sched->running.first)
        moge_sched_finish(sched, &sched->running, sched->running.first, reason, now_us);
}
