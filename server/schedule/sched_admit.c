/* SPDX-License-Identifier: Apache-2.0 */
/* A request's way in.  Limits on waiting are looked at here, once a step. */
#include "server/schedule/sched_state.h"

/* Place in line.  The product saturates: a client chooses the priority. */
static int64_t rank_of(const struct moge_sched *sched, const struct moge_req *req) {
    int64_t credit, rank;
    if (sched->options.aging_us == 0)
        return -(int64_t)req->priority;
    if (__builtin_mul_overflow((int64_t)req->priority, sched->options.aging_us, &credit))
        credit = req->priority > 0 ? INT64_MAX : INT64_MIN;
    if (__builtin_sub_overflow(req->submitted_us, credit, &rank))
        rank = credit > 0 ? INT64_MIN : INT64_MAX;
    return rank;
}

static void take_over(struct moge_sched *sched, struct moge_queue *queue) {
    struct moge_req *next;
    for (struct moge_req *req = moge_queue_drain(queue); req; req = next) {
        next = req->next;
        MOGE_ASSERT(req->n_prompt >= 1 && req->n_prompt < sched->options.n_context &&
                    req->max_tokens >= 1);
        req->n_tokens = req->n_prompt;
        req->n_computed = req->n_scored = 0;
        req->slot = -1;
        req->rank = rank_of(sched, req);
        req->arrival = sched->n_arrived++;
        moge_detok_init(&req->detok, sched->options.tokenizer, true);
        moge_sched_wait(sched, req);
    }
}

/* Refused before it ever ran: it waited too long, or (asked once, on arrival) will be too late. */
static bool must_refuse(struct moge_sched *sched, struct moge_req *req, bool arrived,
                        int64_t now_us) {
    if (req->fork_of)
        return false; /* it comes when the prompt is there: that is asked of the first sample */
    int64_t age_us = now_us - req->submitted_us, age_max_us = sched->options.queue_age_max_us;
    if (age_max_us > 0 && age_us > age_max_us) {
        moge_fail(&req->err, MOGE_LIMIT,
                  "the request has waited %.10g s for its turn; the server's limit is %.10g s",
                  (double)age_us * 1e-6, (double)age_max_us * 1e-6);
        sched->n_refused_age++;
        return true;
    }
    if (!arrived || moge_sched_deadline_check(sched, req, now_us, &req->err) == 0)
        return false;
    sched->n_refused_deadline++;
    return true;
}

/* Why a request must end now, or MOGE_FINISH_NONE. */
static enum moge_finish must_end(struct moge_sched *sched, struct moge_req *req, bool arrived,
                                 int64_t now_us) {
    if (atomic_load_explicit(&req->cancelled, memory_order_relaxed))
        return MOGE_FINISH_CANCELLED;
    if (now_us >= req->deadline_us)
        return MOGE_FINISH_DEADLINE;
    if (!sched_was_admitted(req) && must_refuse(sched, req, arrived, now_us))
        return MOGE_FINISH_REFUSED;
    return MOGE_FINISH_NONE;
}

static void reap(struct moge_sched *sched, struct moge_queue *queue, struct moge_req_list *list,
                 uint64_t n_known, int64_t now_us) {
    struct moge_req *next;
    for (struct moge_req *req = list->first; req; req = next) {
        next = req->next;
        enum moge_finish reason = must_end(sched, req, req->arrival >= n_known, now_us);
        if (reason == MOGE_FINISH_NONE)
            continue;
        if (!sched_was_admitted(req))
            moge_queue_admitted(queue, req);
        moge_sched_finish(sched, list, req, reason, now_us);
    }
}

/* Tokens that admission takes pages for. */
static int32_t tokens_to_reserve(const struct moge_sched *sched, const struct moge_req *req) {
    return sched->options.admission == MOGE_ADMISSION_RESERVE ? sched_tokens_max(sched, req)
                                                              : req->n_tokens;
}

/* Pages that it must hold or find free.  Optimistically: the next token's and one for each running
 * sequence; and after a preemption some growth, lest it happens again at once. */
static int32_t pages_to_admit(const struct moge_sched *sched, const struct moge_req *req) {
    if (sched->options.admission == MOGE_ADMISSION_RESERVE)
        return moge_kv_pages_for(sched_tokens_max(sched, req));
    int32_t n_growth = req->usage.n_preempted > 0 ? MOGE_SCHED_GROWTH_TOKENS : 1;
    int32_t n_tokens = sched_min(req->n_tokens + n_growth, sched_tokens_max(sched, req));
    return moge_kv_pages_for(n_tokens) + sched->running.n;
}

/* Pages of the history that are computed already: those that the first sample of the same prompt
 * holds, or whatever the prefix cache knows.  Only full pages are shared, which nobody writes any
 * more; what is behind them is at most a page to compute. */
static int32_t take_computed(struct moge_sched *sched, const struct moge_req *req, int32_t slot) {
    struct moge_kv *kv = sched->options.kv;
    const struct moge_req *first = req->fork_of;
    if (first && first->slot >= 0)
        return moge_kv_share(kv, first->slot, slot,
                             sched_min(first->n_computed, sched_first_yield(req)));
    return moge_kv_attach(kv, slot, req->cache_salt, req->cache_salt_len, req->tokens,
                          sched_first_yield(req));
}

/* A slot with the pages it needs, the beginning of the history already computed in some of them;
 * or false.  Whatever has logits that are wanted is always computed: the last token, and prompt
 * tokens still to be scored. */
static bool take_pages(struct moge_sched *sched, struct moge_req *req) {
    struct moge_kv *kv = sched->options.kv;
    /* Who waits for pages asks in every step: the index is not asked where no hit could help. */
    int32_t n_hit_max = sched_first_yield(req) / MOGE_PAGE_TOKENS;
    if (sched->running.n > 0 && pages_to_admit(sched, req) - n_hit_max > moge_kv_pages_free(kv))
        return false;
    int slot = moge_kv_slot_take(kv);
    MOGE_ASSERT(slot >= 0);
    int32_t n_cached = take_computed(sched, req, slot);
    int32_t n_missing = pages_to_admit(sched, req) - moge_kv_slot_pages(kv, slot);
    if (sched->running.n > 0 && n_missing > moge_kv_pages_free(kv)) {
        moge_kv_slot_give(kv, slot);
        return false;
    }
    /* Alone, one context always fits; in company, the free pages were just counted. */
    int rc = moge_kv_reserve(kv, slot, tokens_to_reserve(sched, req));
    MOGE_ASSERT(rc == 0);
    req->slot = slot;
    req->n_computed = n_cached;
    return true;
}

static void count_cached(struct moge_sched *sched, struct moge_req *req) {
    if (sched_was_admitted(req)) {
        if (req->n_given_up > req->n_computed)
            sched->n_recomputed += (uint64_t)(req->n_given_up - req->n_computed);
        return;
    }
    if (req->i_sample > 0) /* the prompt is the first sample's */
        return;
    req->usage.n_cached = req->n_computed;
    sched->n_prefix_queried += (uint64_t)req->n_prompt;
    sched->n_prefix_hit += (uint64_t)req->n_computed;
}

static bool admit_one(struct moge_sched *sched, struct moge_queue *queue, struct moge_req *req,
                      int64_t now_us) {
    struct moge_kv *kv = sched->options.kv;
    if (sched->running.n >= sched->options.n_running_max || moge_kv_slots_free(kv) == 0)
        return false;
    if (!take_pages(sched, req))
        return false;
    count_cached(sched, req);
    moge_req_list_remove(&sched->waiting, req);
    req->n_tokens_admitted = req->n_tokens;
    if (!sched_was_admitted(req)) {
        moge_queue_admitted(queue, req);
        req->admitted_us = sched_moment(now_us);
    }
    moge_req_list_insert(&sched->running, req, NULL);
    req->fork_of = NULL;
    return true;
}

/* In order of rank.  Who finds no room is not overtaken by smaller ones behind, or it might wait
 * for ever; who was preempted and whose reader still takes nothing has no use for a place, nor has
 * a sample whose prompt is not there yet. */
void moge_sched_admit(struct moge_sched *sched, struct moge_queue *queue, int64_t now_us) {
    uint64_t n_known = sched->n_arrived;
    take_over(sched, queue);
    reap(sched, queue, &sched->waiting, n_known, now_us);
    reap(sched, queue, &sched->running, n_known, now_us);
    struct moge_req *next;
    for (struct moge_req *req = sched->waiting.first; req; req = next) {
        next = req->next;
        bool ready = !sched_is_stalled(req) && !sched_awaits_fork(req);
        if (ready && !admit_one(sched, queue, req, now_us))
            return;
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
