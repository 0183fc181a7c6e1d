/* SPDX-License-Identifier: Apache-2.0 */
#include "server/schedule/sched_state.h"

#include <stdlib.h>

#include "server/schedule/text.h"

int moge_sched_new(struct moge_sched **out, const struct moge_sched_options *options,
                   struct moge_err *err) {
    if (moge_kv_pages_total(options->kv) < moge_kv_pages_for(options->n_context))
        return moge_fail(
            err, MOGE_INVALID,
            "the KV cache has %d pages, but one context of %d tokens needs %d: raise kv-memory or "
            "lower context",
            moge_kv_pages_total(options->kv), options->n_context,
            moge_kv_pages_for(options->n_context));
    if (options->n_running_max < 1 || options->n_running_max > options->step_rows_max)
        return moge_fail(err, MOGE_INVALID, "max-running is %d; it must be 1..step-rows (%d)",
                         options->n_running_max, options->step_rows_max);
    if (moge_tokenizer_push_max(options->tokenizer) > MOGE_TEXT_PIECE_MAX)
        return moge_fail(err, MOGE_FORMAT,
                         "the tokenizer has a piece of %zu bytes; at most %d are supported",
                         moge_tokenizer_push_max(options->tokenizer), MOGE_TEXT_PIECE_MAX);
    struct moge_sched *sched = calloc(1, sizeof *sched);
    if (!sched)
        return moge_fail(err, MOGE_NOMEM, "no memory for the scheduler");
    sched->options = *options;
    sched->last_prefilled = -1;
    *out = sched;
    return 0;
}

void moge_sched_free(struct moge_sched *sched) {
    if (!sched)
        return;
    MOGE_ASSERT(moge_sched_idle(sched));
    free(sched);
}

int32_t moge_sched_n_waiting(const struct moge_sched *sched) {
    return sched->waiting.n;
}

int32_t moge_sched_n_running(const struct moge_sched *sched) {
    return sched->running.n;
}

bool moge_sched_idle(const struct moge_sched *sched) {
    return sched->waiting.n == 0 && sched->running.n == 0;
}

/* ---- lists ---- */

void moge_req_list_insert(struct moge_req_list *list, struct moge_req *req, struct moge_req *next) {
    req->next = next;
    req->prev = next ? next->prev : list->last;
    *(req->prev ? &req->prev->next : &list->first) = req;
    *(next ? &next->prev : &list->last) = req;
    list->n++;
}

void moge_req_list_remove(struct moge_req_list *list, struct moge_req *req) {
    *(req->prev ? &req->prev->next : &list->first) = req->next;
    *(req->next ? &req->next->prev : &list->last) = req->prev;
    req->prev = req->next = NULL;
    list->n--;
}

/* From the back: who has just come usually stays there. */
void moge_sched_wait(struct moge_sched *sched, struct moge_req *req) {
    struct moge_req *next = NULL, *prev = sched->waiting.last;
    while (prev && sched_before(req, prev)) {
        next = prev;
        prev = prev->prev;
    }
    moge_req_list_insert(&sched->waiting, req, next);
}

/* ---- a request's end ---- */

void moge_sched_slot_give(struct moge_sched *sched, struct moge_req *req) {
    moge_draft_forget(sched->options.draft, req->slot);
    moge_kv_slot_give(sched->options.kv, req->slot);
    req->slot = -1;
    req->n_computed = 0;
}

/* Text that was held back still belongs to the client when a request ends without a stop string. */
static void flush_text(struct moge_req *req) {
    char text[MOGE_TEXT_OUT_MAX];
    size_t len = moge_text_finish(req, text);
    if (len == 0)
        return;
    struct moge_token_out out = {
        .id = -1, .hidden = true, .text_len = (int32_t)len, .logprobs = {.n_top = -1}};
    moge_req_push(req, &out, text);
}

/* Samples that waited for this one's prompt compute it themselves. */
static void forks_release(struct moge_sched *sched, const struct moge_req *req) {
    for (struct moge_req *other = sched->waiting.first; other; other = other->next)
        if (other->fork_of == req)
            other->fork_of = NULL;
}

void moge_sched_finish(struct moge_sched *sched, struct moge_req_list *list, struct moge_req *req,
                       enum moge_finish reason, int64_t now_us) {
    moge_req_list_remove(list, req);
    if (req->slot >= 0)
        moge_sched_slot_give(sched, req);
    if (sched_was_admitted(req))
        flush_text(req);
    if (req->n_samples > 1)
        forks_release(sched, req);
    req->usage.n_prompt = req->i_sample == 0 ? req->n_prompt : 0;
    req->usage.n_output = sched_was_admitted(req) ? req->n_tokens - req->n_prompt : 0;
    if (sched_was_admitted(req))
        req->usage.queue_us = req->admitted_us - req->submitted_us;
    else
        req->usage.queue_us = now_us - req->submitted_us;
    if (req->first_token_us) {
        req->usage.prefill_us = req->first_token_us - req->admitted_us;
        req->usage.decode_us = now_us - req->first_token_us;
    }
    atomic_store_explicit(&req->finish, (int)reason, memory_order_release);
    if (req->gained)
        req->gained(req);
    moge_req_release(sched->options.reqs, req);
}

void moge_sched_stats(const struct moge_sched *sched, struct moge_sched_stats *out) {
    *out = (struct moge_sched_stats){
        .n_waiting = sched->waiting.n,
        .n_running = sched->running.n,
        .n_preempted = sched->n_preempted,
        .n_recomputed = sched->n_recomputed,
        .n_prefix_queried = sched->n_prefix_queried,
        .n_prefix_hit = sched->n_prefix_hit,
        .n_refused_age = sched->n_refused_age,
        .n_refused_deadline = sched->n_refused_deadline,
        .step_ns = sched->step_ns,
        .prefill_row_ns = moge_sched_row_ns(sched),
        .prefill_rows_max = moge_sched_prefill_rows_max(sched),
    };
    for (const struct moge_req *req = sched->running.first; req; req = req->next)
        out->n_prefilling += !sched_is_decode(req);
}

/* Tokens whose pages a running request must hold. */
static int32_t tokens_held(const struct moge_sched *sched, const struct moge_req *req) {
    if (sched->options.admission == MOGE_ADMISSION_RESERVE)
        return sched_tokens_max(sched, req);
    return req->n_computed;
}

void moge_sched_check(const struct moge_sched *sched) {
    int32_t n_running = 0, n_waiting = 0, n_pages = 0;
    for (const struct moge_req *req = sched->running.first; req; req = req->next, n_running++) {
        MOGE_ASSERT(req->slot >= 0 && req->n_computed < req->n_tokens);
        MOGE_ASSERT(req->n_tokens <= sched->options.n_context);
        MOGE_ASSERT(moge_kv_slot_pages(sched->options.kv, req->slot) >=
                    moge_kv_pages_for(tokens_held(sched, req)));
        n_pages += moge_kv_slot_pages(sched->options.kv, req->slot);
    }
    for (const struct moge_req *req = sched->waiting.first; req; req = req->next, n_waiting++) {
        MOGE_ASSERT(req->slot == -1 && req->n_computed == 0);
        MOGE_ASSERT(!req->next || sched_before(req, req->next));
    }
    MOGE_ASSERT(n_running == sched->running.n && n_waiting == sched->waiting.n);
    MOGE_ASSERT(n_pages + moge_kv_pages_free(sched->options.kv) >=
                moge_kv_pages_total(sched->options.kv));
    moge_kv_check(sched->options.kv);
}
