/* SPDX-License-Identifier: Apache-2.0 */
#include "server/schedule/sched_state.h"

#include "server/schedule/text.h"

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
    int32_t n_accepted = sched_min(span->n_accepted, n_emitted);
    usage->n_offered += span->n_guess;
    usage->n_accepted += n_accepted;
    for (int32_t i = 0; i < span->n_guess; i++) {
        usage->offered_at[i]++;
        usage->ngram_offered_at[i] += moge_span_is_by_ngram(span, i);
    }
    for (int32_t i = 0; i < n_accepted; i++) {
        usage->accepted_at[i]++;
        usage->ngram_accepted_at[i] += moge_span_is_by_ngram(span, i);
    }
}

/* The tokens whose KV is in place: full pages of them are published. */
static void set_computed(struct moge_sched *sched, struct moge_req *req, int32_t n_computed) {
    req->n_computed = n_computed;
    moge_kv_publish(sched->options.kv, req->slot, req->tokens, n_computed);
}

/* Scores of the prompt's tokens; what was sent before a preemption is not scored again. */
static void emit_scores(struct moge_req *req, const struct moge_span *span) {
    for (int32_t i = 0; i < span->n_scored; i++) {
        struct moge_token_out out = {
            .id = req->tokens[++req->n_scored], .scored = true, .logprobs = span->scores[i]};
        moge_req_push(req, &out, "");
    }
}

/* What the step decided for one sequence: emitted up to a stop, KV cut to the tokens that stand. */
static enum moge_finish commit_span(struct moge_sched *sched, struct moge_span *span,
                                    int64_t now_us) {
    struct moge_req *req = span->owner;
    emit_scores(req, span);
    if (!moge_span_decides(span)) {
        set_computed(sched, req, span->pos + span->n_rows);
        return MOGE_FINISH_NONE;
    }
    if (req->first_token_us == 0)
        req->first_token_us = sched_moment(now_us);
    enum moge_finish reason = MOGE_FINISH_NONE;
    int32_t i = 0;
    for (; i < span->n_out && reason == MOGE_FINISH_NONE; i++)
        reason = emit(sched, req, span->logprobs ? &span->logprobs[i] : NULL);
    count_guesses(req, span, i);
    span->n_emitted = i;
    span->gap_us = req->last_token_us ? now_us - req->last_token_us : -1;
    req->last_token_us = sched_moment(now_us);
    set_computed(sched, req, req->n_tokens - 1);
    if (reason == MOGE_FINISH_NONE && sched->options.admission == MOGE_ADMISSION_OPTIMISTIC)
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
            moge_sched_finish(sched, &sched->running, req, reason, now_us);
        else if (span->n_logits > 0 && req->gained)
            req->gained(req);
    }
}
