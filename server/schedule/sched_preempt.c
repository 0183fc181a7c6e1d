/* SPDX-License-Identifier: Apache-2.0 */
/* Preemption by recomputation: when a decode row finds no page, some running request gives its
 * pages back and waits; its history will be computed again.
 *
 * Who?  Not the head, the first in rank of those whose reader keeps up: the pager is at least as
 * large as one whole context, so the head always reaches its end and nobody starves.  Of the others
 * the cheapest, in this order: whose reader takes nothing, lower priority, not preempted a moment
 * ago, fewest positions to compute again for each page that is needed now.
 *
 * Thrash is bounded from two sides: a preempted request is admitted again only when pages for its
 * growth are free as well (sched_admit.c), and is spared until it has grown that much. */
#include "server/schedule/sched_state.h"

void moge_sched_preempt(struct moge_sched *sched, struct moge_req *req) {
    moge_req_list_remove(&sched->running, req);
    sched->n_preempted++;
    req->n_given_up = req->n_computed;
    moge_sched_slot_give(sched, req);
    req->usage.n_preempted++;
    moge_sched_wait(sched, req);
}

static struct moge_req *head_of_running(const struct moge_sched *sched) {
    struct moge_req *head = NULL;
    for (struct moge_req *req = sched->running.first; req; req = req->next)
        if (!sched_is_stalled(req) && (!head || sched_before(req, head)))
            head = req;
    return head;
}

static bool is_spared(const struct moge_req *req) {
    return req->usage.n_preempted > 0 &&
           req->n_tokens < req->n_tokens_admitted + MOGE_SCHED_GROWTH_TOKENS;
}

/* Whether a gives its pages back rather than b.  Pages beyond the need count for nothing: they
 * would be paid for now and used by others later. */
static bool rather(const struct moge_sched *sched, const struct moge_req *a,
                   const struct moge_req *b, int32_t n_needed) {
    const struct moge_kv *kv = sched->options.kv;
    if (sched_is_stalled(a) != sched_is_stalled(b))
        return sched_is_stalled(a);
    if (a->priority != b->priority)
        return a->priority < b->priority;
    if (is_spared(a) != is_spared(b))
        return is_spared(b);
    int64_t gain_a = moge_kv_slot_gain(kv, a->slot, n_needed);
    int64_t gain_b = moge_kv_slot_gain(kv, b->slot, n_needed);
    int64_t cost_a = a->n_computed * gain_b, cost_b = b->n_computed * gain_a;
    return cost_a != cost_b ? cost_a < cost_b : sched_before(b, a);
}

/* Who makes room for req: itself, if nobody of its priority or below is cheaper. */
static struct moge_req *victim_for(const struct moge_sched *sched, struct moge_req *req,
                                   const struct moge_req *head) {
    struct moge_req *victim = req == head ? NULL : req;
    /* Each running sequence needs about one page in the next sixteen tokens. */
    int32_t n_needed = sched->running.n;
    for (struct moge_req *other = sched->running.first; other; other = other->next) {
        bool above = other->priority > req->priority && !sched_is_stalled(other);
        if (other == head || other == req || (above && req != head))
            continue;
        if (!victim || rather(sched, other, victim, n_needed))
            victim = other;
    }
    MOGE_ASSERT(victim); /* alone, the head has all pages */
    return victim;
}

/* False: there was no page, and req was itself preempted. */
static bool page_for_decode(struct moge_sched *sched, struct moge_req *req) {
    while (moge_kv_reserve(sched->options.kv, req->slot, req->n_tokens) != 0) {
        struct moge_req *victim = victim_for(sched, req, head_of_running(sched));
        moge_sched_preempt(sched, victim);
        if (victim == req)
            return false;
    }
    return true;
}

void moge_sched_pages_for_decodes(struct moge_sched *sched) {
    struct moge_req *req = sched->running.first;
    while (req) {
        bool wants = sched_is_decode(req) && !sched_is_stalled(req);
        if (!wants || page_for_decode(sched, req))
            req = req->next;
        else
            req = sched->running.first; /* whatever was next may be gone too */
    }
}
