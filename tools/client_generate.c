/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/client_generate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "moge/v1/moge.pb-c.h"

/* ---- Generate ---- */

struct stream {
    moge_client_prompt_fn *on_prompt;
    moge_client_delta_fn *on_delta;
    void *arg;
    moge_client_end_fn *on_end;        /* of a started one */
    struct moge_client_finish *finish; /* [n_samples] the caller's */
    int32_t n_samples, n_finished;
    int32_t *i_sample;
};

static const char *reason_name(Moge__V1__Finish__Reason reason) {
    switch (reason) {
    case MOGE__V1__FINISH__REASON__REASON_STOP:
        return "stop";
    case MOGE__V1__FINISH__REASON__REASON_LENGTH:
        return "length";
    case MOGE__V1__FINISH__REASON__REASON_ABORTED:
        return "aborted";
    default:
        return "unknown";
    }
}

static void positions_read(struct moge_client_guesses *out, const int32_t *offered,
                           size_t n_offered, const int32_t *accepted, size_t n_accepted) {
    size_t n = n_offered < n_accepted ? n_offered : n_accepted;
    if (n > MOGE_DRAFT_LEN_MAX)
        n = MOGE_DRAFT_LEN_MAX;
    out->n_positions = (int32_t)n;
    for (size_t i = 0; i < n; i++) {
        out->offered_at[i] = offered[i];
        out->accepted_at[i] = accepted[i];
    }
}

static void guesses_read(struct moge_client_finish *out, const Moge__V1__Guesses *in) {
    out->guesses.n_offered = in->offered;
    out->guesses.n_accepted = in->accepted;
    positions_read(&out->guesses, in->offered_by_position, in->n_offered_by_position,
                   in->accepted_by_position, in->n_accepted_by_position);
    for (size_t i = 0; i < in->n_by_drafter; i++) {
        const Moge__V1__DrafterGuesses *from = in->by_drafter[i];
        bool ngram = from->drafter == MOGE__V1__SPECULATION__DRAFTER__DRAFTER_NGRAM;
        struct moge_client_guesses *to = ngram ? &out->by_ngram : &out->by_model;
        to->n_offered = from->offered;
        to->n_accepted = from->accepted;
        positions_read(to, from->offered_by_position, from->n_offered_by_position,
                       from->accepted_by_position, from->n_accepted_by_position);
    }
}

static void finish_read(struct moge_client_finish *out, const Moge__V1__Finish *in) {
    *out = (struct moge_client_finish){.reason = reason_name(in->reason), .seed = in->seed};
    if (in->usage != NULL) {
        out->n_prompt = in->usage->prompt_tokens;
        out->n_output = in->usage->output_tokens;
    }
    if (in->timings != NULL) {
        out->queue_us = in->timings->queue_us;
        out->prefill_us = in->timings->prefill_us;
        out->decode_us = in->timings->decode_us;
    }
    if (in->guesses != NULL)
        guesses_read(out, in->guesses);
}

/* Scores of the prompt, the alternatives behind the tokens, in one allocation. */
static int scores_take(const struct stream *stream, const Moge__V1__GenerateResponse *response,
                       struct moge_err *err) {
    size_t n = response->n_prompt_tokens, n_top = 0;
    if (n == 0 || stream->on_prompt == NULL)
        return 0;
    for (size_t i = 0; i < n; i++)
        n_top +=
            response->prompt_tokens[i]->logprobs ? response->prompt_tokens[i]->logprobs->n_top : 0;
    struct moge_client_score *scores = calloc(n + n_top, sizeof *scores), *top = scores + n;
    if (scores == NULL)
        return moge_fail(err, MOGE_NOMEM, "out of memory");
    for (size_t i = 0; i < n; i++) {
        const Moge__V1__PromptToken *from = response->prompt_tokens[i];
        const Moge__V1__TokenLogprobs *logprobs = from->logprobs;
        scores[i] = (struct moge_client_score){.id = from->id,
                                               .piece = (const char *)from->piece.data,
                                               .piece_len = from->piece.len,
                                               .top = top};
        if (logprobs == NULL)
            continue;
        scores[i].logprob = logprobs->logprob;
        scores[i].rank = logprobs->rank;
        scores[i].n_top = logprobs->n_top;
        for (size_t j = 0; j < logprobs->n_top; j++)
            *top++ = (struct moge_client_score){.id = logprobs->top[j]->id,
                                                .piece = (const char *)logprobs->top[j]->piece.data,
                                                .piece_len = logprobs->top[j]->piece.len,
                                                .logprob = logprobs->top[j]->logprob};
    }
    int rc = stream->on_prompt(stream->arg, scores, n, err);
    free(scores);
    return rc;
}

/* What the last response of a sample says. */
static void finish_take(struct stream *stream, int32_t i, const Moge__V1__Finish *finish) {
    finish_read(&stream->finish[i], finish);
    stream->n_finished++;
}

static int response_take(void *arg, const void *data, size_t len, struct moge_err *err) {
    struct stream *stream = arg;
    Moge__V1__GenerateResponse *response = moge__v1__generate_response__unpack(NULL, len, data);
    if (response == NULL)
        return moge_fail(err, MOGE_INTERNAL, "the server sent a message that cannot be read");
    int rc = 0;
    if (response->index < 0 || response->index >= stream->n_samples)
        rc = moge_fail(err, MOGE_INTERNAL, "the server sent a sample that was not asked for");
    else if (stream->i_sample != NULL)
        *stream->i_sample = response->index;
    if (rc == 0)
        rc = scores_take(stream, response, err);
    if (rc == 0)
        rc = stream->on_delta(stream->arg, (const char *)response->text.data, response->text.len,
                              response->token_ids, response->n_token_ids, err);
    if (rc == 0 && response->finish != NULL)
        finish_take(stream, response->index, response->finish);
    moge__v1__generate_response__free_unpacked(response, NULL);
    return rc;
}

static void sampling_fill(Moge__V1__Sampling *sampling, const struct moge_client_request *request) {
    if (request->has_temperature) {
        sampling->_temperature_case = MOGE__V1__SAMPLING___TEMPERATURE_TEMPERATURE;
        sampling->temperature = request->temperature;
    }
    if (request->has_top_p) {
        sampling->_top_p_case = MOGE__V1__SAMPLING___TOP_P_TOP_P;
        sampling->top_p = request->top_p;
    }
    if (request->has_seed) {
        sampling->_seed_case = MOGE__V1__SAMPLING___SEED_SEED;
        sampling->seed = request->seed;
    }
}

/* The protocol numbers drafters as we do. */
_Static_assert((int)MOGE_DRAFTERS_MODEL == (int)MOGE__V1__SPECULATION__DRAFTER__DRAFTER_MODEL &&
                   (int)MOGE_DRAFTERS_NGRAM == (int)MOGE__V1__SPECULATION__DRAFTER__DRAFTER_NGRAM &&
                   (int)MOGE_DRAFTERS_BOTH == (int)MOGE__V1__SPECULATION__DRAFTER__DRAFTER_BOTH,
               "");

static void speculation_fill(Moge__V1__Speculation *speculation,
                             const struct moge_client_request *request) {
    speculation->drafter = (Moge__V1__Speculation__Drafter)request->drafters;
    if (!request->has_speculation)
        return;
    if (request->spec_len_max > 0) {
        speculation->_max_length_case = MOGE__V1__SPECULATION___MAX_LENGTH_MAX_LENGTH;
        speculation->max_length = request->spec_len_max;
    }
    switch (request->spec_mode) {
    case MOGE_SPEC_OFF:
        speculation->mode = MOGE__V1__SPECULATION__MODE__MODE_OFF;
        break;
    case MOGE_SPEC_AUTO:
        speculation->mode = MOGE__V1__SPECULATION__MODE__MODE_AUTO;
        break;
    case MOGE_SPEC_FIXED:
        speculation->mode = MOGE__V1__SPECULATION__MODE__MODE_FIXED;
        speculation->_length_case = MOGE__V1__SPECULATION___LENGTH_LENGTH;
        speculation->length = request->spec_len;
        break;
    }
}

/* The packed request, to be freed by the caller, or NULL when memory is short. */
static uint8_t *request_pack(const struct moge_client_request *request, size_t *len) {
    Moge__V1__Sampling sampling = MOGE__V1__SAMPLING__INIT;
    Moge__V1__Stopping stopping = MOGE__V1__STOPPING__INIT;
    Moge__V1__Speculation speculation = MOGE__V1__SPECULATION__INIT;
    Moge__V1__GenerateRequest message = MOGE__V1__GENERATE_REQUEST__INIT;
    Moge__V1__TokenIds ids = MOGE__V1__TOKEN_IDS__INIT;
    ProtobufCBinaryData stops[MOGE_CLIENT_STOPS_MAX];

    sampling_fill(&sampling, request);
    speculation_fill(&speculation, request);
    stopping.ignore_eos = request->ignore_eos;
    if (request->has_max_tokens) {
        stopping._max_tokens_case = MOGE__V1__STOPPING___MAX_TOKENS_MAX_TOKENS;
        stopping.max_tokens = request->max_tokens;
    }
    for (int i = 0; i < request->n_stops; i++) {
        const char *stop = request->stops[i];
        stops[i] = (ProtobufCBinaryData){strlen(stop), (uint8_t *)(uintptr_t)stop};
    }
    stopping.n_stop = (size_t)request->n_stops;
    stopping.stop = stops;
    if (request->cache_salt != NULL)
        message.cache_salt = (ProtobufCBinaryData){strlen(request->cache_salt),
                                                   (uint8_t *)(uintptr_t)request->cache_salt};
    if (request->has_prompt_logprobs) {
        message._prompt_logprobs_case =
            MOGE__V1__GENERATE_REQUEST___PROMPT_LOGPROBS_PROMPT_LOGPROBS;
        message.prompt_logprobs = request->n_prompt_logprobs;
    }
    message.prompt_case = MOGE__V1__GENERATE_REQUEST__PROMPT_TEXT;
    message.text =
        (ProtobufCBinaryData){request->prompt_len, (uint8_t *)(uintptr_t)request->prompt};
    if (request->prompt_ids != NULL) {
        message.prompt_case = MOGE__V1__GENERATE_REQUEST__PROMPT_TOKEN_IDS;
        message.token_ids = &ids;
        ids.n_ids = request->n_prompt_ids;
        ids.ids = (uint32_t *)(uintptr_t)request->prompt_ids;
    }
    message.parse_special = request->parse_special;
    message.sampling = &sampling;
    message.stopping = &stopping;
    message.speculation = &speculation;
    message.n = request->n_samples;

    *len = moge__v1__generate_request__get_packed_size(&message);
    uint8_t *packed = malloc(*len);
    if (packed != NULL)
        moge__v1__generate_request__pack(&message, packed);
    return packed;
}

static struct moge_client_call generate_call(const struct moge_client_request *request,
                                             const uint8_t *packed, size_t len,
                                             struct stream *stream) {
    return (struct moge_client_call){.method = "/moge.v1.Moge/Generate",
                                     .request = packed,
                                     .request_len = len,
                                     .timeout_us = request->timeout_us,
                                     .cancelled = request->cancelled,
                                     .on_message = response_take,
                                     .arg = stream};
}

static struct stream stream_begin(const struct moge_client_request *request,
                                  moge_client_delta_fn *on_delta, void *arg,
                                  struct moge_client_finish *finish) {
    return (struct stream){.on_prompt = request->on_prompt,
                           .on_delta = on_delta,
                           .arg = arg,
                           .finish = finish,
                           .n_samples = request->n_samples > 1 ? request->n_samples : 1,
                           .i_sample = request->i_sample};
}

int moge_client_generate(struct moge_client *client, const struct moge_client_request *request,
                         moge_client_delta_fn *on_delta, void *arg,
                         struct moge_client_finish *finish, struct moge_err *err) {
    size_t len;
    uint8_t *packed = request_pack(request, &len);
    if (packed == NULL)
        return moge_fail(err, MOGE_NOMEM, "out of memory");
    struct stream stream = stream_begin(request, on_delta, arg, finish);
    struct moge_client_call call = generate_call(request, packed, len, &stream);
    int rc = moge_client_call(client, &call, err);
    free(packed);
    if (rc != 0)
        return rc;
    if (stream.n_finished < stream.n_samples)
        return moge_fail(err, MOGE_INTERNAL, "the server ended the stream without a last message");
    return 0;
}

static void stream_end(void *arg, int rc, const char *status, const struct moge_err *err) {
    struct stream *stream = arg;
    struct moge_err own = *err;
    if (rc == 0 && stream->n_finished < stream->n_samples)
        rc = moge_fail(&own, MOGE_INTERNAL, "the server ended the stream without a last message");
    stream->on_end(stream->arg, rc, status, &own);
    free(stream);
}

int moge_client_generate_start(struct moge_client_calls *calls,
                               const struct moge_client_request *request,
                               moge_client_delta_fn *on_delta, moge_client_end_fn *on_end,
                               void *arg, struct moge_client_finish *finish, struct moge_err *err) {
    size_t len;
    struct stream *stream = malloc(sizeof *stream);
    uint8_t *packed = request_pack(request, &len);
    if (stream == NULL || packed == NULL) {
        free(stream);
        free(packed);
        return moge_fail(err, MOGE_NOMEM, "out of memory");
    }
    *stream = stream_begin(request, on_delta, arg, finish);
    stream->on_end = on_end;
    struct moge_client_call call = generate_call(request, packed, len, stream);
    int rc = moge_client_start(calls, &call, stream_end, err);
    free(packed);
    if (rc != 0)
        free(stream);
    return rc;
}

/* ---- Tokenize ---- */

static int tokens_count(void *arg, const void *data, size_t len, struct moge_err *err) {
    Moge__V1__TokenizeResponse *response = moge__v1__tokenize_response__unpack(NULL, len, data);
    if (response == NULL)
        return moge_fail(err, MOGE_INTERNAL, "the server sent a message that cannot be read");
    *(size_t *)arg = response->n_token_ids;
    moge__v1__tokenize_response__free_unpacked(response, NULL);
    return 0;
}

int moge_client_count_tokens(struct moge_client *client, const char *text, size_t *n_tokens,
                             struct moge_err *err) {
    Moge__V1__TokenizeRequest message = MOGE__V1__TOKENIZE_REQUEST__INIT;
    message.text = (ProtobufCBinaryData){strlen(text), (uint8_t *)(uintptr_t)text};
    message.parse_special = true;
    message._add_bos_case = MOGE__V1__TOKENIZE_REQUEST___ADD_BOS_ADD_BOS;
    size_t len = moge__v1__tokenize_request__get_packed_size(&message);
    uint8_t *packed = malloc(len);
    if (packed == NULL)
        return moge_fail(err, MOGE_NOMEM, "out of memory");
    moge__v1__tokenize_request__pack(&message, packed);
    struct moge_client_call call = {.method = "/moge.v1.Moge/Tokenize",
                                    .request = packed,
                                    .request_len = len,
                                    .timeout_us = 30 * 1000000ll,
                                    .on_message = tokens_count,
                                    .arg = n_tokens};
    int rc = moge_client_call(client, &call, err);
    free(packed);
    return rc;
}

/* ---- GetModelInfo ---- */

static void text_read(char *out, size_t cap, const ProtobufCBinaryData *in) {
    snprintf(out, cap, "%.*s", (int)in->len, in->len > 0 ? (const char *)in->data : "");
}

static void model_read(struct moge_client_model *out, const Moge__V1__Model *in) {
    if (in == NULL)
        return;
    text_read(out->name, sizeof out->name, &in->name);
    text_read(out->architecture, sizeof out->architecture, &in->architecture);
    text_read(out->weights, sizeof out->weights, &in->weights);
    out->n_params = in->parameters;
    out->n_params_active = in->parameters_active;
    out->weight_bytes = in->weight_bytes;
    out->n_layers = in->layers;
    out->n_experts = in->experts;
    out->n_experts_used = in->experts_used;
    out->n_groups = in->expert_groups;
    out->n_vocab = in->vocabulary;
}

static int info_take(void *arg, const void *data, size_t len, struct moge_err *err) {
    struct moge_client_info *out = arg;
    Moge__V1__GetModelInfoResponse *in = moge__v1__get_model_info_response__unpack(NULL, len, data);
    if (in == NULL)
        return moge_fail(err, MOGE_INTERNAL, "the server sent a message that cannot be read");
    model_read(&out->target, in->target);
    model_read(&out->draft, in->draft);
    if (in->server != NULL) {
        text_read(out->version, sizeof out->version, &in->server->version);
        text_read(out->isa, sizeof out->isa, &in->server->isa);
        text_read(out->drafter, sizeof out->drafter, &in->server->drafter);
        out->n_threads = in->server->threads;
        out->n_context = in->server->context;
        out->n_running_max = in->server->max_running;
        out->n_kv_tokens = in->server->kv_tokens;
    }
    moge__v1__get_model_info_response__free_unpacked(in, NULL);
    return 0;
}

int moge_client_info(struct moge_client *client, int64_t timeout_us, struct moge_client_info *info,
                     struct moge_err *err) {
    struct moge_client_info read = {0};
    struct moge_client_call call = {.method = "/moge.v1.Moge/GetModelInfo",
                                    .request = "",
                                    .timeout_us = timeout_us,
                                    .on_message = info_take,
                                    .arg = &read};
    int rc = moge_client_call(client, &call, err);
    if (rc == 0)
        *info = read;
    return rc;
}
