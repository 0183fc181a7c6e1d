/* SPDX-License-Identifier: Apache-2.0 */
#include "server/schedule/sched_state.h"

/* Rows of the next span, if it ends at `end`, that yield something for the ring. */
static int32_t rows_yielding(const struct moge_req *req, int32_t end) {
    return sched_max(end - sched_max(sched_first_yield(req), req->n_computed), 0);
}

static struct moge_span *span_append(struct moge_sched *sched, struct moge_batch *batch,
                                     struct moge_req *req, int32_t n_rows) {
    MOGE_ASSERT(batch->n_spans < batch->n_spans_cap);
    struct moge_span *span = &batch->spans[batch->n_spans++];
    int32_t end = req->n_computed + n_rows, n_logits = rows_yielding(req, end);
    *span = (struct moge_span){
        .tokens = req->tokens,
        .pages = moge_kv_table(sched->options.kv, req->slot),
        .slot = req->slot,
        .pos = req->n_computed,
        .n_rows = n_rows,
        .n_known = req->n_tokens,
        .n_prompt = req->n_prompt,
        .n_logits = n_logits,
        .n_scored = n_logits - (end == req->n_tokens),
        .n_score_top = req->n_prompt_logprobs,
        .spec_mode = req->spec_mode,
        .spec_len = req->spec_len,
        .drafters = req->drafters,
        .sample = &req->sample,
        .owner = req,
        .scores = req->logprobs,
    };
    if (req->sample.n_logprobs >= 0)
        span->logprobs = req->logprobs + span->n_scored;
    return span;
}

/* A row for every decoding sequence whose reader keeps up. */
static void plan_decodes(struct moge_sched *sched, struct moge_batch *batch) {
    moge_sched_pages_for_decodes(sched);
    for (struct moge_req *req = sched->running.first; req; req = req->next)
        if (sched_is_decode(req) && !sched_is_stalled(req))
            span_append(sched, batch, req, 1);
}

/* Prompt rows of a step with n_decode decode rows: what those and their likely guesses leave, but
 * at least a quarter of the step, so that prompts advance beside any number of decodes; and no more
 * than keeps the time between tokens in its limits. */
static int32_t prefill_budget(const struct moge_sched *sched, int32_t n_decode) {
    int32_t step_rows = sched->options.step_rows_max;
    if (n_decode == 0)
        return step_rows;
    int32_t budget = step_rows - n_decode * (1 + MOGE_DRAFT_LEN_MAX / 4);
    if (budget < step_rows / 4)
        budget = sched_min(step_rows / 4, step_rows - n_decode);
    return sched_min(budget, moge_sched_prefill_rows_max(sched));
}

/* Gives req up to n_max more prompt rows of this step; returns how many. */
static int32_t rows_give(struct moge_sched *sched, struct moge_req *req, int32_t n_max) {
    if (sched_is_decode(req))
        return 0;
    int32_t begin = req->n_computed + req->n_planned;
    int32_t n = sched_min(req->n_tokens - begin, sched->options.prefill_chunk_max - req->n_planned);
    n = sched_min(n, n_max);
    /* Rows that yield something: as many as the reader has room for and the step has logits. */
    int32_t n_had = rows_yielding(req, begin);
    int32_t room = sched_max(sched_min(sched_ring_room(req) - n_had, sched->logits_left), 0);
    n = sched_min(n, sched_max(sched_first_yield(req), begin) + room - begin);
    n = sched_max(n, 0);
    sched->logits_left -= rows_yielding(req, begin + n) - n_had;
    req->n_planned += n;
    return n;
}

/* Prompts share the budget in equal parts of at least a page; where that is not enough for all,
 * they take turns, beginning behind the one that came last.  What is left over goes to the oldest.
 */
static void share_rows(struct moge_sched *sched, int32_t budget) {
    int32_t n_prefilling = 0;
    struct moge_req *begin = NULL;
    for (struct moge_req *req = sched->running.first; req; req = req->next) {
        req->n_planned = 0;
        n_prefilling += !sched_is_decode(req);
        if (req->slot == sched->last_prefilled)
            begin = req->next;
    }
    if (n_prefilling == 0)
        return;
    int32_t share = budget / n_prefilling;
    if (share < MOGE_PAGE_TOKENS)
        share = MOGE_PAGE_TOKENS;
    struct moge_req *req = begin ? begin : sched->running.first;
    for (int32_t i = 0; i < sched->running.n && budget > 0; i++) {
        int32_t n = rows_give(sched, req, sched_min(share, budget));
        budget -= n;
        if (n > 0)
            sched->last_prefilled = req->slot;
        req = req->next ? req->next : sched->running.first;
    }
    for (req = sched->running.first; req && budget > 0; req = req->next)
        budget -= rows_give(sched, req, budget);
}

static void plan_prefills(struct moge_sched *sched, struct moge_batch *batch) {
    sched->logits_left = batch->n_logits_cap - batch->n_spans;
    share_rows(sched, prefill_budget(sched, batch->n_spans));
    for (struct moge_req *req = sched->running.first; req; req = req->next)
        if (req->n_planned > 0)
            span_append(sched, batch, req, req->n_planned);
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
        int32_t n = sched_min(req->spec_len_max, n_left - 1);
        n = sched_min(n, sched_ring_room(req) - 1);
        n = sched_min(n, sched->options.n_context - req->n_tokens - 1);
        n = sched_min(n, MOGE_DRAFT_LEN_MAX);
        int32_t n_pages = moge_kv_slot_pages(kv, req->slot) + moge_kv_pages_free(kv);
        n = sched_min(n, n_pages * MOGE_PAGE_TOKENS - req->n_tokens);
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
