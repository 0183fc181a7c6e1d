/* SPDX-License-Identifier: Apache-2.0 */
/* Two lists, linked through the requests themselves:
 *
 *      waiting   ordered by priority, then arrival; a preempted request goes back to the front of
 * its priority running   ordered by admission; each holds a pager slot
 *
 * A running request with n_tokens decided tokens, n_computed of them with KV in place, is in one of
 * two states that need no flag: n_computed = n_tokens - 1 is a decode row; less is a prompt (or,
 * after preemption, a history) still to be prefilled.
 *
 * Pages: admission takes pages for the whole history and leaves one page a running sequence as a
 * margin. When a decode row finds no page all the same, the youngest running request is preempted:
 * its pages go back, it waits, and its history is computed again.  The pager is at least as large
 * as one whole context, so the oldest request always advances: nobody starves. */
#include "server/schedule/sched.h"

#include <stdlib.h>

#include "server/schedule/text.h"

static int32_t min_i32(int32_t a, int32_t b) {
    return a < b ? a : b;
}

struct list {
    struct moge_req *first, *last;
    int32_t n;
};

struct moge_sched {
    struct moge_sched_options options;
    struct list waiting, running;
};

static void list_insert_before(struct list *list, struct moge_req *req, struct moge_req *next) {
    req->next = next;
    req->prev = next ? next->prev : list->last;
    *(req->prev ? &req->prev->next : &list->first) = req;
    *(next ? &next->prev : &list->last) = req;
    list->n++;
}

static void list_remove(struct list *list, struct moge_req *req) {
    *(req->prev ? &req->prev->next : &list->first) = req->next;
    *(req->next ? &req->next->prev : &list->last) = req->prev;
    req->prev = req->next = NULL;
    list->n--;
}

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

/* ---- a request's way in and out ---- */

/* Among those of the same priority: behind them, or (preempted) before them. */
static void wait_in_line(struct moge_sched *sched, struct moge_req *req, bool front) {
    struct moge_req *next = sched->waiting.first;
    while (next && (front ? next->priority > req->priority : next->priority >= req->priority))
        next = next->next;
    list_insert_before(&sched->waiting, req, next);
}

static void slot_give(struct moge_sched *sched, struct moge_req *req) {
    moge_draft_forget(sched->options.draft, req->slot);
    moge_kv_slot_give(sched->options.kv, req->slot);
    req->slot = -1;
    req->n_computed = 0;
}

/* Tokens the ring takes; one element stays free for the text that ends a request. */
static int32_t ring_room(const struct moge_req *req) {
    return moge_req_room(req) - 1;
}

static bool was_admitted(const struct moge_req *req) {
    return req->admitted_us != 0;
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

/* The end, whatever the reason.  Gives back what the request holds and the engine side's reference.
 */
static void finish(struct moge_sched *sched, struct list *list, struct moge_req *req,
                   enum moge_finish reason, int64_t now_us) {
    list_remove(list, req);
    if (req->slot >= 0)
        slot_give(sched, req);
    if (was_admitted(req))
        flush_text(req);
    req->usage.n_prompt = req->n_prompt;
    req->usage.n_output = was_admitted(req) ? req->n_tokens - req->n_prompt : 0;
    if (was_admitted(req))
        req->usage.queue_us = req->admitted_us - req->submitted_us;
    else
        req->usage.queue_us = now_us - req->submitted_us;
    if (req->first_token_us) {
        req->usage.prefill_us = req->first_token_us - req->admitted_us;
        req->usage.decode_us = now_us - req->first_token_us;
    }
    atomic_store_explicit(&req->finish, (int)reason, memory_order_release);
    if (req->wake)
        req->wake(req);
    moge_req_release(sched->options.reqs, req);
}

static void preempt(struct moge_sched *sched, struct moge_req *req) {
    list_remove(&sched->running, req);
    slot_give(sched, req);
    req->usage.n_preempted++;
    wait_in_line(sched, req, true);
}

/* ---- admit ---- */

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
        wait_in_line(sched, req, false);
    }
}

/* Why a request must end now, or MOGE_FINISH_NONE. */
static enum moge_finish must_end(const struct moge_req *req, int64_t now_us) {
    if (atomic_load_explicit(&req->cancelled, memory_order_relaxed))
        return MOGE_FINISH_CANCELLED;
    return now_us >= req->deadline_us ? MOGE_FINISH_DEADLINE : MOGE_FINISH_NONE;
}

static void reap(struct moge_sched *sched, struct moge_queue *queue, struct list *list,
                 int64_t now_us) {
    struct moge_req *next;
    for (struct moge_req *req = list->first; req; req = next) {
        next = req->next;
        enum moge_finish reason = must_end(req, now_us);
        if (reason == MOGE_FINISH_NONE)
            continue;
        if (!was_admitted(req))
            moge_queue_admitted(queue, req);
        finish(sched, list, req, reason, now_us);
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
    list_remove(&sched->waiting, req);
    req->slot = slot;
    if (!was_admitted(req)) {
        moge_queue_admitted(queue, req);
        req->admitted_us = now_us > 0 ? now_us : 1;
    }
    list_insert_before(&sched->running, req, NULL);
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
        if (!was_admitted(sched->waiting.first))
            moge_queue_admitted(queue, sched->waiting.first);
        finish(sched, &sched->waiting, sched->waiting.first, reason, now_us);
    }
    while (sched->running.first)
        finish(sched, &sched->running, sched->running.first, reason, now_us);
}

/* ---- plan ---- */

static bool is_decode(const struct moge_req *req) {
    return req->n_computed == req->n_tokens - 1;
}

static struct moge_span *span_append(struct moge_sched *sched, struct moge_batch *batch,
                                     struct moge_req *req, int32_t n_rows) {
    MOGE_ASSERT(batch->n_spans < batch->n_spans_cap);
    struct moge_span *span = &batch->spans[batch->n_spans++];
    *span = (struct moge_span){
        .tokens = req->tokens,
        .pages = moge_kv_table(sched->options.kv, req->slot),
        .slot = req->slot,
        .pos = req->n_computed,
        .n_rows = n_rows,
        .n_known = req->n_tokens,
        .n_prompt = req->n_prompt,
        .n_logits = req->n_computed + n_rows == req->n_tokens,
        .spec_mode = req->spec_mode,
        .spec_len = req->spec_len,
        .sample = &req->sample,
        .owner = req,
        .logprobs = req->sample.n_logprobs >= 0 ? req->logprobs : NULL,
    };
    return span;
}

/* A page for the next position of every decoding sequence, oldest first, at the cost of the
 * youngest. */
static void plan_decodes(struct moge_sched *sched, struct moge_batch *batch) {
    struct moge_req *next;
    for (struct moge_req *req = sched->running.first; req; req = next) {
        next = req->next;
        if (!is_decode(req) || ring_room(req) <= 0)
            continue;
        while (moge_kv_reserve(sched->options.kv, req->slot, req->n_tokens) != 0 &&
               sched->running.last != req)
            preempt(sched, sched->running.last);
        if (moge_kv_slot_pages(sched->options.kv, req->slot) >= moge_kv_pages_for(req->n_tokens)) {
            span_append(sched, batch, req, 1);
            next = req->next; /* the one after may have been preempted */
        } else {
            next = NULL; /* the youngest, and no page: it is its own victim */
            preempt(sched, req);
        }
    }
}

/* Prompt chunks, oldest first, in what decodes and their likely guesses leave of the step's rows; a
 * quarter of the step is always theirs, so that prompts advance beside any number of decodes. */
static void plan_prefills(struct moge_sched *sched, struct moge_batch *batch) {
    int32_t n_decode = batch->n_spans, step_rows = sched->options.step_rows_max;
    int32_t budget = step_rows - n_decode * (1 + MOGE_DRAFT_LEN_MAX / 4);
    if (budget < step_rows / 4)
        budget = min_i32(step_rows / 4, step_rows - n_decode);
    for (struct moge_req *req = sched->running.first; req && budget > 0; req = req->next) {
        if (is_decode(req))
            continue;
        int32_t n_rows = min_i32(req->n_tokens - req->n_computed, sched->options.prefill_chunk_max);
        n_rows = min_i32(n_rows, budget);
        bool last = req->n_computed + n_rows == req->n_tokens;
        if (last && ring_room(req) <= 0)
            continue;
        span_append(sched, batch, req, n_rows);
        budget -= n_rows;
    }
}

/* Room for guesses: what the request may still emit, its ring, its context, and pages nobody else
 * needs. */
static void plan_guesses(struct moge_sched *sched, struct moge_batch *batch, int32_t n_decode) {
    struct moge_kv *kv = sched->options.kv;
    for (int32_t i = 0; i < n_decode; i++) {
        struct moge_span *span = &batch->spans[i];
        const struct moge_req *req = span->owner;
        if (req->spec_mode == MOGE_SPEC_OFF)
            continue;
        int32_t n_left = req->max_tokens - (req->n_tokens - req->n_prompt);
        int32_t n = min_i32(req->spec_len_max, n_left - 1);
        n = min_i32(n, ring_room(req) - 1);
        n = min_i32(n, sched->options.n_context - req->n_tokens - 1);
        n = min_i32(n, MOGE_DRAFT_LEN_MAX);
        int32_t n_pages = moge_kv_slot_pages(kv, req->slot) + moge_kv_pages_free(kv);
        n = min_i32(n, n_pages * MOGE_PAGE_TOKENS - req->n_tokens);
        if (n <= 0)
            continue;
        int rc = moge_kv_reserve(kv, req->slot, req->n_tokens + n);
        MOGE_ASSERT(rc == 0); /* the pages were just counted */
        span->guess_max = n;
    }
}

void moge_sched_plan(struct moge_sched *sched, struct moge_batch *batch) {
    batch->n_spans = 0;
    plan_decodes(sched, batch);
    int32_t n_decode = batch->n_spans;
    plan_prefills(sched, batch);
    plan_guesses(sched, batch, n_decode);
}

/* ---- commit ---- */

static bool is_stop_id(const struct moge_req *req, int32_t id) {
    for (int32_t i = 0; i < req->sample.n_stop_ids; i++)
        if (req->sample.stop_ids[i] == id)
            return true;
    return false;
}

/* One decided token: history, text, ring.  Returns why the request ends with it, or
 * MOGE_FINISH_NONE. */
static enum moge_finish emit(struct moge_sched *sched, struct moge_req *req,
                             const struct moge_logprobs *logprobs) {
    int32_t id = req->tokens[req->n_tokens++];
    int32_t n_output = req->n_tokens - req->n_prompt;
    enum moge_finish reason = MOGE_FINISH_NONE;
    char text[MOGE_TEXT_OUT_MAX];
    text[0] = '\0'; /* a hidden token has none */
    struct moge_token_out out = {.id = id, .logprobs = {.n_top = -1}};
    if (logprobs)
        out.logprobs = *logprobs;
    if (is_stop_id(req, id)) {
        req->stop_id = id;
        reason = MOGE_FINISH_STOP;
        out.hidden = !req->include_stop;
    }
    if (!out.hidden)
        out.text_len = (int32_t)moge_text_push(req, id, n_output >= req->sample.min_tokens, text);
    moge_req_push(req, &out, text);
    if (req->stop_string >= 0)
        return MOGE_FINISH_STOP;
    if (reason == MOGE_FINISH_NONE &&
        (n_output >= req->max_tokens || req->n_tokens >= sched->options.n_context))
        reason = MOGE_FINISH_LENGTH;
    return reason;
}

/* Guesses that agreed but lie behind a stop were of no use: n_emitted is the bound. */
static void count_guesses(struct moge_req *req, const struct moge_span *span, int32_t n_emitted) {
    struct moge_usage *usage = &req->usage;
    int32_t n_accepted = min_i32(span->n_accepted, n_emitted);
    usage->n_offered += span->n_guess;
    usage->n_accepted += n_accepted;
    for (int32_t i = 0; i < span->n_guess; i++)
        usage->offered_at[i]++;
    for (int32_t i = 0; i < n_accepted; i++)
        usage->accepted_at[i]++;
}

/* What the step decided for one sequence: emitted up to a stop, KV cut to the tokens that stand. */
static enum moge_finish commit_span(struct moge_sched *sched, const struct moge_span *span,
                                    int64_t now_us) {
    struct moge_req *req = span->owner;
    if (span->n_logits == 0) {
        req->n_computed = span->pos + span->n_rows;
        return MOGE_FINISH_NONE;
    }
    if (req->first_token_us == 0)
        req->first_token_us = now_us > 0 ? now_us : 1;
    enum moge_finish reason = MOGE_FINISH_NONE;
    int32_t i = 0;
    for (; i < span->n_out && reason == MOGE_FINISH_NONE; i++)
        reason = emit(sched, req, span->logprobs ? &span->logprobs[i] : NULL);
    count_guesses(req, span, i);
    req->n_computed = req->n_tokens - 1;
    if (reason == MOGE_FINISH_NONE)
        moge_kv_truncate(sched->options.kv, req->slot, req->n_computed);
    return reason;
}

void moge_sched_commit(struct moge_sched *sched, struct moge_batch *batch, int forward_rc,
                       int64_t now_us) {
    for (int32_t i = 0; i < batch->n_spans; i++) {
        struct moge_span *span = &batch->spans[i];
        struct moge_req *req = span->owner;
        enum moge_finish reason = MOGE_FINISH_ERROR;
        if (forward_rc == 0)
            reason = commit_span(sched, span, now_us);
        else
            moge_fail(&req->err, MOGE_INTERNAL, "the engine failed: %s",
                      moge_code_name(forward_rc));
        if (reason != MOGE_FINISH_NONE)
            finish(sched, &sched->running, req, reason, now_us);
        else if (span->n_logits > 0 && req->wake)
            req->wake(req);
    }
}

void moge_sched_check(const struct moge_sched *sched) {
    int32_t n_running = 0, n_waiting = 0, n_pages = 0;
    for (const struct moge_req *req = sched->running.first; req; req = req->next, n_running++) {
        MOGE_ASSERT(req->slot >= 0 && req->n_computed < req->n_tokens);
        MOGE_ASSERT(req->n_tokens <= sched->options.n_context);
        MOGE_ASSERT(moge_kv_slot_pages(sched->options.kv, req->slot) >=
                    moge_kv_pages_for(req->n_computed));
        n_pages += moge_kv_slot_pages(sched->options.kv, req->slot);
    }
    for (const struct moge_req *req = sched->waiting.first; req; req = req->next, n_waiting++) {
        MOGE_ASSERT(req->slot == -1 && req->n_computed == 0);
        MOGE_ASSERT(!req->next || req->priority >= req->next->priority);
    }
    MOGE_ASSERT(n_running == sched->running.n && n_waiting == sched->waiting.n);
    MOGE_ASSERT(n_pages + moge_kv_pages_free(sched->options.kv) >=
                moge_kv_pages_total(sched->options.kv));
    moge_kv_check(sched->options.kv);
}
