/* SPDX-License-Identifier: Apache-2.0 */
#include "server/schedule/sched_state.h"

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

/* A row for every decoding sequence, oldest first. */
static void plan_decodes(struct moge_sched *sched, struct moge_batch *batch) {
    struct moge_req *next;
    for (struct moge_req *req = sched->running.first; req; req = next) {
        next = req->next;
        if (!sched_is_decode(req) || sched_ring_room(req) <= 0)
            continue;
        if (!moge_sched_page_for_decode(sched, req))
            return; /* it was the youngest */
        span_append(sched, batch, req, 1);
        next = req->next; /* the one after may have been preempted */
    }
}

/* Prompt chunks, oldest first, in what decodes and their likely guesses leave of the step's rows; a
 * quarter of the step is always theirs, so that prompts advance beside any number of decodes. */
static void plan_prefills(struct moge_sched *sched, struct moge_batch *batch) {
    int32_t n_decode = batch->n_spans, step_rows = sched->options.step_rows_max;
    int32_t budget = step_rows - n_decode * (1 + MOGE_DRAFT_LEN_MAX / 4);
    if (budget < step_rows / 4)
        budget = sched_min(step_rows / 4, step_rows - n_decode);
    for (struct moge_req *req = sched->running.first; req && budget > 0; req = req->next) {
        if (sched_is_decode(req))
            continue;
        int32_t n_rows =
            sched_min(req->n_tokens - req->n_computed, sched->options.prefill_chunk_max);
        n_rows = sched_min(n_rows, budget);
        bool last = req->n_computed + n_rows == req->n_tokens;
        if (last && sched_ring_room(req) <= 0)
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
