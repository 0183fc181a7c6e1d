/* SPDX-License-Identifier: Apache-2.0 */
/* Streamed and fixed replies.  Messages are assembled on the stack around borrowed data and packed
 * once. */
#include "server/grpc/codec_message.h"

#include <stdlib.h>
#include <string.h>

#include "grpc/health/v1/health.pb-c.h"
#include "moge/v1/moge.pb-c.h"

/* ---- one response of a stream ---- */

bool moge_chunk_fill(struct moge_chunk *chunk, struct moge_req *req) {
    struct moge_token_out token;
    size_t len;
    chunk->i_sample = req->i_sample;
    chunk->n_tokens = chunk->n_scored = 0;
    chunk->text_len = 0;
    /* The text of one pop is at most MOGE_RING_TEXT_BYTES, so there is always room for it. */
    while (chunk->n_tokens + chunk->n_scored < MOGE_RING_TOKENS &&
           chunk->text_len <= MOGE_RING_TEXT_BYTES &&
           moge_req_pop(req, &token, chunk->text + chunk->text_len, &len)) {
        chunk->text_len += len;
        if (token.scored) {
            chunk->scored_ids[chunk->n_scored] = (uint32_t)token.id;
            chunk->scores[chunk->n_scored++] = token.logprobs;
        } else if (!token.hidden) {
            chunk->ids[chunk->n_tokens] = (uint32_t)token.id;
            chunk->logprobs[chunk->n_tokens++] = token.logprobs;
        }
    }
    return chunk->n_tokens > 0 || chunk->n_scored > 0 || chunk->text_len > 0;
}

/* Everything that the log-probabilities of one response need, in one allocation: of prompt tokens
 * first, then of the others. */
struct logprob_store {
    Moge__V1__PromptToken prompt[MOGE_RING_TOKENS];
    Moge__V1__PromptToken *prompt_at[MOGE_RING_TOKENS];
    Moge__V1__TokenLogprobs tokens[MOGE_RING_TOKENS];
    Moge__V1__TokenLogprobs *token_at[MOGE_RING_TOKENS];
    Moge__V1__Alternative top[MOGE_RING_TOKENS][MOGE_LOGPROBS_MAX];
    Moge__V1__Alternative *top_at[MOGE_RING_TOKENS][MOGE_LOGPROBS_MAX];
};

static ProtobufCBinaryData piece_of(const struct moge_service *service, uint32_t id) {
    size_t len;
    const char *piece = moge_tokenizer_piece(service->tokenizer, (int32_t)id, &len);
    return moge_message_bytes(piece, len);
}

/* Place i of the store. */
static void logprobs_fill(struct logprob_store *store, const struct moge_service *service,
                          int32_t i, const struct moge_logprobs *from) {
    Moge__V1__TokenLogprobs *to = &store->tokens[i];
    moge__v1__token_logprobs__init(to);
    store->token_at[i] = to;
    to->logprob = from->chosen;
    to->rank = from->rank;
    to->n_top = (size_t)from->n_top;
    to->top = store->top_at[i];
    for (int32_t j = 0; j < from->n_top; j++) {
        Moge__V1__Alternative *top = &store->top[i][j];
        moge__v1__alternative__init(top);
        store->top_at[i][j] = top;
        top->id = (uint32_t)from->top[j].id;
        top->logprob = from->top[j].logprob;
        top->piece = piece_of(service, top->id);
    }
}

/* The log-probabilities of a response, which points into the store then. */
static void response_score(Moge__V1__GenerateResponse *response, struct logprob_store *store,
                           const struct moge_service *service, const struct moge_chunk *chunk) {
    int32_t n_scored = chunk->n_scored;
    for (int32_t i = 0; i < n_scored; i++) {
        Moge__V1__PromptToken *to = store->prompt_at[i] = &store->prompt[i];
        moge__v1__prompt_token__init(to);
        to->id = chunk->scored_ids[i];
        to->piece = piece_of(service, to->id);
        logprobs_fill(store, service, i, &chunk->scores[i]);
        to->logprobs = store->token_at[i];
    }
    response->n_prompt_tokens = (size_t)n_scored;
    response->prompt_tokens = store->prompt_at;
    if (chunk->n_tokens == 0 || chunk->logprobs[0].n_top < 0)
        return;
    for (int32_t i = 0; i < chunk->n_tokens; i++)
        logprobs_fill(store, service, n_scored + i, &chunk->logprobs[i]);
    response->n_logprobs = (size_t)chunk->n_tokens;
    response->logprobs = store->token_at + n_scored;
}

static Moge__V1__Finish__Reason reason_of(enum moge_finish finish) {
    switch (finish) {
    case MOGE_FINISH_STOP:
        return MOGE__V1__FINISH__REASON__REASON_STOP;
    case MOGE_FINISH_LENGTH:
        return MOGE__V1__FINISH__REASON__REASON_LENGTH;
    default:
        return MOGE__V1__FINISH__REASON__REASON_ABORTED;
    }
}

/* The parts of the last response, which point at each other. */
struct finish_store {
    Moge__V1__Finish finish;
    Moge__V1__Usage usage;
    Moge__V1__Timings timings;
    Moge__V1__Guesses guesses;
    int32_t offered[MOGE_DRAFT_LEN_MAX], accepted[MOGE_DRAFT_LEN_MAX];
    struct drafter_store {
        Moge__V1__DrafterGuesses guesses;
        int32_t offered[MOGE_DRAFT_LEN_MAX], accepted[MOGE_DRAFT_LEN_MAX];
    } by_drafter[2];
    Moge__V1__DrafterGuesses *by_drafter_at[2];
};

/* One drafter's share of the guesses; false if it offered none. */
static bool drafter_fill(struct drafter_store *store, const struct moge_usage *usage, bool ngram) {
    Moge__V1__DrafterGuesses *guesses = &store->guesses;
    moge__v1__drafter_guesses__init(guesses);
    guesses->drafter = ngram ? MOGE__V1__SPECULATION__DRAFTER__DRAFTER_NGRAM
                             : MOGE__V1__SPECULATION__DRAFTER__DRAFTER_MODEL;
    size_t n = 0;
    for (size_t i = 0; i < MOGE_DRAFT_LEN_MAX; i++) {
        int32_t offered = usage->ngram_offered_at[i], accepted = usage->ngram_accepted_at[i];
        store->offered[i] = ngram ? offered : usage->offered_at[i] - offered;
        store->accepted[i] = ngram ? accepted : usage->accepted_at[i] - accepted;
        guesses->offered += store->offered[i];
        guesses->accepted += store->accepted[i];
        if (store->offered[i] > 0)
            n = i + 1;
    }
    guesses->n_offered_by_position = guesses->n_accepted_by_position = n;
    guesses->offered_by_position = store->offered;
    guesses->accepted_by_position = store->accepted;
    return n > 0;
}

static void guesses_fill(struct finish_store *store, const struct moge_usage *usage) {
    store->guesses.offered = usage->n_offered;
    store->guesses.accepted = usage->n_accepted;
    size_t n = 0;
    for (size_t i = 0; i < MOGE_DRAFT_LEN_MAX; i++) {
        store->offered[i] = usage->offered_at[i];
        store->accepted[i] = usage->accepted_at[i];
        if (usage->offered_at[i] > 0)
            n = i + 1;
    }
    store->guesses.n_offered_by_position = store->guesses.n_accepted_by_position = n;
    store->guesses.offered_by_position = store->offered;
    store->guesses.accepted_by_position = store->accepted;
    size_t n_drafters = 0;
    for (int ngram = 0; ngram < 2; ngram++)
        if (drafter_fill(&store->by_drafter[n_drafters], usage, ngram)) {
            store->by_drafter_at[n_drafters] = &store->by_drafter[n_drafters].guesses;
            n_drafters++;
        }
    store->guesses.n_by_drafter = n_drafters;
    store->guesses.by_drafter = store->by_drafter_at;
}

static void finish_fill(struct finish_store *store, const struct moge_req *req) {
    const struct moge_usage *usage = &req->usage;
    moge__v1__finish__init(&store->finish);
    moge__v1__usage__init(&store->usage);
    moge__v1__timings__init(&store->timings);
    moge__v1__guesses__init(&store->guesses);
    store->finish.reason =
        reason_of((enum moge_finish)atomic_load_explicit(&req->finish, memory_order_acquire));
    if (req->stop_string >= 0) {
        store->finish.matched_case = MOGE__V1__FINISH__MATCHED_MATCHED_STOP;
        store->finish.matched_stop = moge_message_bytes(req->stop_strings[req->stop_string],
                                                        req->stop_string_len[req->stop_string]);
    } else if (req->stop_id >= 0) {
        store->finish.matched_case = MOGE__V1__FINISH__MATCHED_MATCHED_TOKEN_ID;
        store->finish.matched_token_id = (uint32_t)req->stop_id;
    }
    store->finish.seed = req->sample.seed;
    store->usage.prompt_tokens = usage->n_prompt;
    store->usage.output_tokens = usage->n_output;
    store->usage.cached_tokens = usage->n_cached;
    store->usage.preemptions = usage->n_preempted;
    store->timings.queue_us = usage->queue_us;
    store->timings.prefill_us = usage->prefill_us;
    store->timings.decode_us = usage->decode_us;
    if (usage->n_output > 0)
        store->timings.time_to_first_token_us = usage->queue_us + usage->prefill_us;
    guesses_fill(store, usage);
    store->finish.usage = &store->usage;
    store->finish.timings = &store->timings;
    store->finish.guesses = &store->guesses;
}

int moge_codec_chunk(const struct moge_service *service, const struct moge_chunk *chunk,
                     const struct moge_req *finished, struct moge_bytes *out) {
    Moge__V1__GenerateResponse response = MOGE__V1__GENERATE_RESPONSE__INIT;
    struct logprob_store *logprobs = NULL;
    struct finish_store finish;
    response.index = chunk->i_sample;
    response.n_token_ids = (size_t)chunk->n_tokens;
    response.token_ids = (uint32_t *)(uintptr_t)chunk->ids;
    response.text = moge_message_bytes(chunk->text, chunk->text_len);
    if (chunk->n_scored > 0 || (chunk->n_tokens > 0 && chunk->logprobs[0].n_top >= 0)) {
        logprobs = malloc(sizeof *logprobs);
        if (!logprobs)
            return MOGE_NOMEM;
        response_score(&response, logprobs, service, chunk);
    }
    if (finished) {
        finish_fill(&finish, finished);
        response.finish = &finish.finish;
    }
    int rc = moge_message_pack(&response.base, out);
    free(logprobs);
    return rc;
}

/* ---- what is served ---- */

static void model_fill(Moge__V1__Model *to, const struct moge_model_info *from,
                       const struct moge_tokenizer *tokenizer) {
    moge__v1__model__init(to);
    to->name = moge_message_string(from->name);
    to->architecture = moge_message_string(from->architecture);
    to->weights = moge_message_string(from->weights);
    to->vocabulary = from->n_vocab;
    to->context = from->n_context;
    to->layers = from->n_layers;
    to->hidden = from->dim;
    to->heads = from->n_heads;
    to->kv_heads = from->n_kv_heads;
    to->head_dim = from->head_dim;
    to->experts = from->n_experts;
    to->experts_used = from->n_experts_used;
    to->expert_groups = from->n_groups;
    to->parameters = from->n_params;
    to->parameters_active = from->n_params_active;
    to->weight_bytes = from->weight_bytes;
    if (moge_tokenizer_bos(tokenizer) >= 0) {
        to->_bos_case = MOGE__V1__MODEL___BOS_BOS_TOKEN_ID;
        to->bos_token_id = (uint32_t)moge_tokenizer_bos(tokenizer);
    }
    if (moge_tokenizer_eos(tokenizer) >= 0) {
        to->_eos_case = MOGE__V1__MODEL___EOS_EOS_TOKEN_ID;
        to->eos_token_id = (uint32_t)moge_tokenizer_eos(tokenizer);
    }
}

int moge_codec_model_info(const struct moge_service *service, const void *data, size_t len,
                          struct moge_bytes *out, struct moge_err *err) {
    static const Moge__V1__Speculation__Mode modes[] = {
        [MOGE_SPEC_OFF] = MOGE__V1__SPECULATION__MODE__MODE_OFF,
        [MOGE_SPEC_FIXED] = MOGE__V1__SPECULATION__MODE__MODE_FIXED,
        [MOGE_SPEC_AUTO] = MOGE__V1__SPECULATION__MODE__MODE_AUTO};
    (void)data; /* the request has no fields; whatever newer ones it holds are ignored */
    (void)len;
    Moge__V1__GetModelInfoResponse response = MOGE__V1__GET_MODEL_INFO_RESPONSE__INIT;
    Moge__V1__Model target, draft;
    Moge__V1__Server server = MOGE__V1__SERVER__INIT;
    model_fill(&target, &service->target, service->tokenizer);
    response.target = &target;
    if (service->draft.name[0]) {
        model_fill(&draft, &service->draft, service->tokenizer);
        response.draft = &draft;
    }
    server.version = moge_message_string(MOGE_VERSION);
    server.isa = moge_message_string(service->isa);
    server.threads = service->n_threads;
    server.context = service->n_context;
    server.max_running = service->n_running_max;
    server.kv_tokens = service->kv_tokens;
    server.max_message_bytes = service->max_message_bytes;
    server.max_samples = service->n_samples_max;
    server.drafter = moge_message_string(service->drafter);
    server.speculation = modes[service->spec_mode];
    server.speculation_length = service->spec_mode == MOGE_SPEC_FIXED ? service->spec_len : 0;
    server.draft_len_max = service->draft_len_max;
    response.server = &server;
    int rc = moge_message_pack(&response.base, out);
    return rc ? moge_fail(err, rc, "no memory for a reply") : 0;
}

int moge_codec_health_reply(enum moge_health status, struct moge_bytes *out) {
    Grpc__Health__V1__HealthCheckResponse response = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    response.status = (Grpc__Health__V1__HealthCheckResponse__ServingStatus)status;
    return moge_message_pack(&response.base, out);
}
