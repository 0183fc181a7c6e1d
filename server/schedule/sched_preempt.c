/* SPDX-License-Identifier: Apache-2.0 */
/* Preemption by recomputation.  When a decode row finds no page, the youngest running request is
 * preempted: its pages go back, it waits, and its history is computed again.  The pager is at least
 * as large as one whole context, so the oldest request always advances: nobody starves. */
#include "server/schedule/sched_state.h"

void moge_sched_preempt(struct moge_sched *sched, struct moge_req *req) {
    moge_req_list_remove(&sched->running, req);
    moge_sched_slot_give(sched, req);
    req->usage.n_preempted++;
    moge_sched_wait(sched, req, true);
}

bool moge_sched_page_for_decode(struct moge_sched *sched, struct moge_req *req) {
    while (moge_kv_reserve(sched->options.kv, req->slot, req->n_tokens) != 0) {
        struct moge_req *youngest = sched->running.last;
        moge_sched_preempt(sched, youngest);
        if (youngest == req)
            return false;
    }
    return true;
}
