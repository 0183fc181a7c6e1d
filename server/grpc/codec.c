/* SPDX-License-Identifier: Apache-2.0 */
/* Requests: unpack under a memory budget, check, copy into plain C.
 *
 * protobuf-c keeps unknown fields and a record of every field it scans, so a hostile message can
 * cost thirty times its length.  The allocator below counts and stops that; an honest message stays
 * far under the budget. */
#include "server/grpc/codec_message.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "grpc/health/v1/health.pb-c.h"
#include "moge/v1/moge.pb-c.h"

#define BUDGET_BASE  (512u << 10)
#define BUDGET_RATIO 8

struct budget {
    ProtobufCAllocator allocator;
    size_t left;
    bool exceeded;
};

static void *budget_alloc(void *arg, size_t size) {
    struct budget *budget = arg;
    if (size > budget->left) {
        budget->exceeded = true;
        return NULL;
    }
    budget->left -= size;
    return malloc(size);
}

static void budget_free(void *arg, void *pointer) {
    (void)arg;
    free(pointer);
}

static void budget_init(struct budget *budget, size_t len) {
    *budget = (struct budget){.allocator = {budget_alloc, budget_free, budget},
                              .left = BUDGET_BASE + BUDGET_RATIO * len};
}

/* The message, or NULL and err. */
static ProtobufCMessage *unpack(const ProtobufCMessageDescriptor *descriptor, struct budget *budget,
                                const void *data, size_t len, struct moge_err *err) {
    budget_init(budget, len);
    ProtobufCMessage *message =
        protobuf_c_message_unpack(descriptor, &budget->allocator, len, data);
    if (message)
        return message;
    if (budget->exceeded)
        moge_fail(err, MOGE_LIMIT, "the request takes too much memory to decode for its %zu bytes",
                  len);
    else
        moge_fail(err, MOGE_INVALID, "the request is not a well-formed %s message",
                  descriptor->short_name);
    return NULL;
}

bool moge_utf8_valid(const void *data, size_t len) {
    const unsigned char *s = data, *end = s + len;
    while (s < end) {
        unsigned char c = *s++;
        if (c < 0x80)
            continue;
        int n_more = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
        if (c < 0xc2 || c > 0xf4 || end - s < n_more)
            return false;
        /* The second byte rules out overlong forms, surrogates and what lies beyond U+10FFFF. */
        unsigned char low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80;
        unsigned char high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
        if (*s < low || *s > high)
            return false;
        for (int i = 1; i < n_more; i++)
            if ((s[i] & 0xc0) != 0x80)
                return false;
        s += n_more;
    }
    return true;
}

/* ---- Generate: the parts of a request ---- */

static int id_check(const struct moge_service *service, uint32_t id, const char *field, size_t i,
                    struct moge_err *err) {
    uint32_t n_vocab = (uint32_t)service->target.n_vocab;
    if (id < n_vocab)
        return 0;
    return moge_fail(err, MOGE_INVALID,
                     "%s[%zu] is %" PRIu32 "; this model's token ids are 0..%" PRIu32, field, i, id,
                     n_vocab - 1);
}

static int sampling_copy(const struct moge_service *service, const Moge__V1__Sampling *from,
                         struct moge_req *req, struct moge_err *err) {
    struct moge_sample_params *to = &req->sample;
    if (from->_temperature_case)
        to->temperature = from->temperature;
    if (from->_top_k_case)
        to->top_k = from->top_k;
    if (from->_top_p_case)
        to->top_p = from->top_p;
    if (from->_min_p_case)
        to->min_p = from->min_p;
    if (from->_repetition_penalty_case)
        to->repetition_penalty = from->repetition_penalty;
    if (from->_presence_penalty_case)
        to->presence_penalty = from->presence_penalty;
    if (from->_frequency_penalty_case)
        to->frequency_penalty = from->frequency_penalty;
    if (from->n_logit_bias > MOGE_LOGIT_BIAS_MAX)
        return moge_fail(err, MOGE_INVALID,
                         "sampling.logit_bias has %zu entries; at most %d are "
                         "allowed",
                         from->n_logit_bias, MOGE_LOGIT_BIAS_MAX);
    for (size_t i = 0; i < from->n_logit_bias; i++) {
        const Moge__V1__LogitBias *bias = from->logit_bias[i];
        int rc = id_check(service, bias->id, "sampling.logit_bias", i, err);
        if (rc)
            return rc;
        if (isnan(bias->bias) || bias->bias == INFINITY)
            return moge_fail(err, MOGE_INVALID,
                             "sampling.logit_bias[%zu].bias is %g; it must be a "
                             "number or minus infinity",
                             i, (double)bias->bias);
        req->bias[i] = (struct moge_logit_bias){(int32_t)bias->id, bias->bias};
    }
    to->n_bias = (int32_t)from->n_logit_bias;
    return 0;
}

static int stop_strings_copy(const Moge__V1__Stopping *from, struct moge_req *req,
                             struct moge_err *err) {
    if (from->n_stop > MOGE_STOP_STRINGS_MAX)
        return moge_fail(err, MOGE_INVALID, "stopping.stop has %zu strings; at most %d are allowed",
                         from->n_stop, MOGE_STOP_STRINGS_MAX);
    for (size_t i = 0; i < from->n_stop; i++) {
        const ProtobufCBinaryData *stop = &from->stop[i];
        if (stop->len == 0 || stop->len > MOGE_STOP_BYTES_MAX)
            return moge_fail(err, MOGE_INVALID,
                             "stopping.stop[%zu] has %zu bytes; it must have 1..%d", i, stop->len,
                             MOGE_STOP_BYTES_MAX);
        if (!moge_utf8_valid(stop->data, stop->len))
            return moge_fail(err, MOGE_INVALID, "stopping.stop[%zu] is not valid UTF-8", i);
        memcpy(req->stop_strings[i], stop->data, stop->len);
        req->stop_string_len[i] = (uint16_t)stop->len;
    }
    req->n_stop_strings = (int32_t)from->n_stop;
    return 0;
}

static int stopping_copy(const struct moge_service *service, const Moge__V1__Stopping *from,
                         struct moge_req *req, struct moge_err *err) {
    if (from->_max_tokens_case && from->max_tokens < 1)
        return moge_fail(err, MOGE_INVALID,
                         "stopping.max_tokens is %" PRId32 "; it must be at "
                         "least 1",
                         from->max_tokens);
    req->max_tokens = from->_max_tokens_case ? from->max_tokens : INT32_MAX;
    if (from->min_tokens < 0 || from->min_tokens > req->max_tokens)
        return moge_fail(err, MOGE_INVALID,
                         "stopping.min_tokens is %" PRId32 "; it must be 0 or "
                         "more, and at most max_tokens",
                         from->min_tokens);
    req->sample.min_tokens = from->min_tokens;
    req->include_stop = from->include_stop;
    int32_t n = 0;
    int32_t eos = moge_tokenizer_eos(service->tokenizer);
    if (eos >= 0 && !from->ignore_eos)
        req->stop_ids[n++] = eos;
    if (from->n_stop_token_ids > MOGE_STOP_IDS_MAX - 1)
        return moge_fail(err, MOGE_INVALID,
                         "stopping.stop_token_ids has %zu ids; at most %d are "
                         "allowed",
                         from->n_stop_token_ids, MOGE_STOP_IDS_MAX - 1);
    for (size_t i = 0; i < from->n_stop_token_ids; i++) {
        int rc = id_check(service, from->stop_token_ids[i], "stopping.stop_token_ids", i, err);
        if (rc)
            return rc;
        req->stop_ids[n++] = (int32_t)from->stop_token_ids[i];
    }
    req->sample.n_stop_ids = n;
    return stop_strings_copy(from, req, err);
}

static int length_check(const struct moge_service *service, const char *field, int32_t length,
                        struct moge_err *err) {
    if (length >= 1 && length <= service->draft_len_max)
        return 0;
    return moge_fail(err, MOGE_INVALID, "%s is %" PRId32 "; this server allows 1..%" PRId32, field,
                     length, service->draft_len_max);
}

/* The protocol numbers drafters as we do. */
_Static_assert((int)MOGE_DRAFTERS_MODEL == (int)MOGE__V1__SPECULATION__DRAFTER__DRAFTER_MODEL &&
                   (int)MOGE_DRAFTERS_NGRAM == (int)MOGE__V1__SPECULATION__DRAFTER__DRAFTER_NGRAM &&
                   (int)MOGE_DRAFTERS_BOTH == (int)MOGE__V1__SPECULATION__DRAFTER__DRAFTER_BOTH,
               "");

static int drafter_copy(const struct moge_service *service, const Moge__V1__Speculation *from,
                        struct moge_req *req, struct moge_err *err) {
    static const char *const names[] = {
        [MOGE_DRAFTERS_ANY] = "DRAFTER_DEFAULT",
        [MOGE_DRAFTERS_MODEL] = "DRAFTER_MODEL",
        [MOGE_DRAFTERS_NGRAM] = "DRAFTER_NGRAM",
        [MOGE_DRAFTERS_BOTH] = "DRAFTER_BOTH",
    };
    int drafter = (int)from->drafter;
    if (drafter < MOGE_DRAFTERS_ANY || drafter > MOGE_DRAFTERS_BOTH)
        return moge_fail(err, MOGE_INVALID, "speculation.drafter is %d, which is not a drafter",
                         drafter);
    if (drafter != MOGE_DRAFTERS_ANY && from->mode == MOGE__V1__SPECULATION__MODE__MODE_OFF)
        return moge_fail(err, MOGE_INVALID,
                         "speculation.drafter is %s, but speculation.mode is MODE_OFF",
                         names[drafter]);
    if (drafter & ~(int)service->drafters)
        return moge_fail(err, MOGE_INVALID,
                         "speculation.drafter is %s, but this server's drafter is %s",
                         names[drafter], service->drafter);
    req->drafters = (enum moge_drafters)drafter;
    return 0;
}

static int speculation_copy(const struct moge_service *service, const Moge__V1__Speculation *from,
                            struct moge_req *req, struct moge_err *err) {
    bool fixed = from->mode == MOGE__V1__SPECULATION__MODE__MODE_FIXED;
    bool automatic = from->mode == MOGE__V1__SPECULATION__MODE__MODE_AUTO;
    int rc = drafter_copy(service, from, req, err);
    if (rc)
        return rc;
    if (from->_length_case && !fixed)
        return moge_fail(err, MOGE_INVALID, "speculation.length is for MODE_FIXED only");
    if (from->_max_length_case && !automatic)
        return moge_fail(err, MOGE_INVALID, "speculation.max_length is for MODE_AUTO only");
    switch (from->mode) {
    case MOGE__V1__SPECULATION__MODE__MODE_DEFAULT:
        return 0;
    case MOGE__V1__SPECULATION__MODE__MODE_OFF:
        req->spec_mode = MOGE_SPEC_OFF;
        return 0;
    case MOGE__V1__SPECULATION__MODE__MODE_AUTO:
        req->spec_mode = MOGE_SPEC_AUTO;
        if (!from->_max_length_case)
            return 0;
        rc = length_check(service, "speculation.max_length", from->max_length, err);
        if (rc == 0)
            req->spec_len_max = from->max_length;
        return rc;
    case MOGE__V1__SPECULATION__MODE__MODE_FIXED:
        if (!from->_length_case)
            return moge_fail(err, MOGE_INVALID,
                             "speculation.mode is MODE_FIXED, but "
                             "speculation.length is not set");
        req->spec_mode = MOGE_SPEC_FIXED;
        rc = length_check(service, "speculation.length", from->length, err);
        if (rc == 0)
            req->spec_len = req->spec_len_max = from->length;
        return rc;
    default:
        return moge_fail(err, MOGE_INVALID, "speculation.mode is %d, which is not a mode",
                         (int)from->mode);
    }
}

/* ---- prompts ---- */

static int tokenize_flags(bool add_bos_given, bool add_bos, bool parse_special) {
    bool bos = !add_bos_given || add_bos;
    return (bos ? MOGE_TOKENIZE_BOS : 0) | (parse_special ? MOGE_TOKENIZE_SPECIAL : 0);
}

static int prompt_too_long(const struct moge_service *service, struct moge_err *err) {
    return moge_fail(err, MOGE_INVALID,
                     "the prompt has more than %d tokens, the most that a "
                     "context of %d has room for",
                     service->n_context - 1, service->n_context);
}

static int prompt_ids(const struct moge_service *service, const Moge__V1__TokenIds *from,
                      struct moge_req *req, struct moge_err *err) {
    if (from->n_ids >= (size_t)service->n_context)
        return prompt_too_long(service, err);
    for (size_t i = 0; i < from->n_ids; i++) {
        int rc = id_check(service, from->ids[i], "token_ids", i, err);
        if (rc)
            return rc;
        req->tokens[i] = (int32_t)from->ids[i];
    }
    req->n_prompt = (int32_t)from->n_ids;
    return 0;
}

static int encode_failed(const char *field, int rc, struct moge_err *err) {
    if (rc == MOGE_INVALID)
        return moge_fail(err, rc, "%s is not valid UTF-8", field);
    return moge_fail(err, rc, "%s cannot be tokenised: %s", field, moge_code_name(rc));
}

static int prompt_text(const struct moge_service *service, const Moge__V1__GenerateRequest *from,
                       struct moge_req *req, struct moge_err *err) {
    if (from->text.len == 0)
        return moge_fail(err, MOGE_INVALID, "the prompt is empty");
    /* A token stands for so many bytes at most: what is hopeless need not be tokenised. */
    size_t piece_max = moge_tokenizer_push_max(service->tokenizer);
    if (from->text.len / piece_max > (size_t)service->n_context)
        return prompt_too_long(service, err);
    int flags = tokenize_flags(from->_add_bos_case, from->add_bos, from->parse_special);
    int n = moge_tokenizer_encode(service->tokenizer, (const char *)from->text.data, from->text.len,
                                  flags, req->tokens, service->n_context - 1);
    if (n == MOGE_LIMIT)
        return prompt_too_long(service, err);
    if (n < 0)
        return encode_failed("text", n, err);
    req->n_prompt = n;
    return 0;
}

static int prompt_copy(const struct moge_service *service, const Moge__V1__GenerateRequest *from,
                       struct moge_req *req, struct moge_err *err) {
    int rc = 0;
    if (from->prompt_case == MOGE__V1__GENERATE_REQUEST__PROMPT_TEXT)
        rc = prompt_text(service, from, req, err);
    else if (from->prompt_case == MOGE__V1__GENERATE_REQUEST__PROMPT_TOKEN_IDS)
        rc = prompt_ids(service, from->token_ids, req, err);
    else
        return moge_fail(err, MOGE_INVALID, "there is no prompt: set text or token_ids");
    if (rc == 0 && req->n_prompt == 0)
        return moge_fail(err, MOGE_INVALID, "the prompt is empty");
    return rc;
}

static int logprobs_check(const char *field, int32_t n, struct moge_err *err) {
    if (n >= 0 && n <= MOGE_LOGPROBS_MAX)
        return 0;
    return moge_fail(err, MOGE_INVALID, "%s is %" PRId32 "; it must be 0..%d", field, n,
                     MOGE_LOGPROBS_MAX);
}

/* How many alternatives are reported, of the output and of the prompt; -1: nothing is. */
static int logprobs_copy(const Moge__V1__GenerateRequest *from, struct moge_req *req,
                         struct moge_err *err) {
    req->sample.n_logprobs = req->n_prompt_logprobs = -1;
    int rc = 0;
    if (from->_logprobs_case) {
        rc = logprobs_check("logprobs", from->logprobs, err);
        req->sample.n_logprobs = from->logprobs;
    }
    if (rc == 0 && from->_prompt_logprobs_case) {
        rc = logprobs_check("prompt_logprobs", from->prompt_logprobs, err);
        req->n_prompt_logprobs = from->prompt_logprobs;
    }
    return rc;
}

static int samples_copy(const struct moge_service *service, const Moge__V1__GenerateRequest *from,
                        struct moge_req *req, struct moge_err *err) {
    req->n_samples = from->n == 0 ? 1 : from->n;
    if (req->n_samples == 1 || (from->n > 0 && from->n <= service->n_samples_max))
        return 0;
    return moge_fail(err, MOGE_INVALID, "n is %" PRId32 "; this server allows 1..%" PRId32, from->n,
                     service->n_samples_max);
}

static int cache_salt_copy(const Moge__V1__GenerateRequest *from, struct moge_req *req,
                           struct moge_err *err) {
    if (from->cache_salt.len > MOGE_CACHE_SALT_MAX)
        return moge_fail(err, MOGE_INVALID, "cache_salt has %zu bytes; it may have %d",
                         from->cache_salt.len, MOGE_CACHE_SALT_MAX);
    if (from->cache_salt.len > 0)
        memcpy(req->cache_salt, from->cache_salt.data, from->cache_salt.len);
    req->cache_salt_len = from->cache_salt.len;
    return 0;
}

/* ---- Generate ---- */

static int request_copy(const struct moge_service *service, const Moge__V1__GenerateRequest *from,
                        struct moge_req *req, struct moge_err *err) {
    static const Moge__V1__Sampling no_sampling = MOGE__V1__SAMPLING__INIT;
    static const Moge__V1__Stopping no_stopping = MOGE__V1__STOPPING__INIT;
    static const Moge__V1__Speculation no_speculation = MOGE__V1__SPECULATION__INIT;
    const Moge__V1__Sampling *sampling = from->sampling ? from->sampling : &no_sampling;
    const Moge__V1__Stopping *stopping = from->stopping ? from->stopping : &no_stopping;
    req->priority = from->priority;
    req->spec_mode = service->spec_mode;
    req->spec_len = service->spec_len;
    req->spec_len_max = service->draft_len_max;
    int rc = sampling_copy(service, sampling, req, err);
    if (rc == 0)
        rc = stopping_copy(service, stopping, req, err);
    if (rc == 0)
        rc = speculation_copy(service, from->speculation ? from->speculation : &no_speculation, req,
                              err);
    if (rc == 0)
        rc = cache_salt_copy(from, req, err);
    if (rc == 0)
        rc = logprobs_copy(from, req, err);
    if (rc == 0)
        rc = samples_copy(service, from, req, err);
    if (rc)
        return rc;
    rc = moge_sample_params_check(&req->sample, service->target.n_vocab, err);
    if (rc)
        return rc;
    if (sampling->_seed_case)
        req->sample.seed = sampling->seed;
    else if (getrandom(&req->sample.seed, sizeof req->sample.seed, 0) < 0)
        return moge_fail(err, MOGE_INTERNAL, "no random seed can be had");
    return prompt_copy(service, from, req, err);
}

int moge_codec_generate(const struct moge_service *service, const void *data, size_t len,
                        struct moge_req *req, struct moge_err *err) {
    struct budget budget;
    ProtobufCMessage *message =
        unpack(&moge__v1__generate_request__descriptor, &budget, data, len, err);
    if (!message)
        return budget.exceeded ? MOGE_LIMIT : MOGE_INVALID;
    int rc = request_copy(service, (const Moge__V1__GenerateRequest *)message, req, err);
    protobuf_c_message_free_unpacked(message, &budget.allocator);
    if (rc)
        return rc;
    /* More than the context has room for is no error: its end is a length limit like any other. */
    int32_t n_room = service->n_context - req->n_prompt;
    if (req->max_tokens > n_room)
        req->max_tokens = n_room;
    return 0;
}

/* ---- the unary methods ---- */

/* Replies are bounded as requests are. */
static int reply_pack(const struct moge_service *service, const ProtobufCMessage *message,
                      struct moge_bytes *out, struct moge_err *err) {
    size_t len = protobuf_c_message_get_packed_size(message);
    if (len > (size_t)service->max_message_bytes)
        return moge_fail(err, MOGE_LIMIT,
                         "the reply would have %zu bytes; at most %" PRId64 " are allowed", len,
                         service->max_message_bytes);
    if (moge_message_pack(message, out) != 0)
        return moge_fail(err, MOGE_NOMEM, "no memory for a reply of %zu bytes", len);
    return 0;
}

static int tokenize_reply(const struct moge_service *service, uint32_t *ids, size_t n_ids,
                          bool with_pieces, struct moge_bytes *out, struct moge_err *err) {
    Moge__V1__TokenizeResponse reply = MOGE__V1__TOKENIZE_RESPONSE__INIT;
    reply.n_token_ids = n_ids;
    reply.token_ids = ids;
    if (with_pieces && n_ids > 0) {
        reply.pieces = calloc(n_ids, sizeof *reply.pieces);
        if (!reply.pieces)
            return moge_fail(err, MOGE_NOMEM, "no memory for %zu pieces", n_ids);
        reply.n_pieces = n_ids;
        for (size_t i = 0; i < n_ids; i++)
            reply.pieces[i].data = (uint8_t *)(uintptr_t)moge_tokenizer_piece(
                service->tokenizer, (int32_t)ids[i], &reply.pieces[i].len);
    }
    int rc = reply_pack(service, &reply.base, out, err);
    free(reply.pieces);
    return rc;
}

int moge_codec_tokenize(const struct moge_service *service, const void *data, size_t len,
                        struct moge_bytes *out, struct moge_err *err) {
    struct budget budget;
    ProtobufCMessage *message =
        unpack(&moge__v1__tokenize_request__descriptor, &budget, data, len, err);
    if (!message)
        return budget.exceeded ? MOGE_LIMIT : MOGE_INVALID;
    const Moge__V1__TokenizeRequest *from = (const Moge__V1__TokenizeRequest *)message;
    /* Byte fallback makes at most one token of a byte; BOS and the leading space come on top. */
    size_t cap = from->text.len + 8;
    int32_t *ids = calloc(cap, sizeof *ids);
    int rc = ids ? 0 : moge_fail(err, MOGE_NOMEM, "no memory for %zu token ids", cap);
    if (rc == 0) {
        int flags = tokenize_flags(from->_add_bos_case, from->add_bos, from->parse_special);
        rc = moge_tokenizer_encode(service->tokenizer, (const char *)from->text.data,
                                   from->text.len, flags, ids, (int)cap);
        if (rc < 0)
            encode_failed("text", rc, err);
    }
    if (rc >= 0) /* ids are not negative: the same bits as the wire's type */
        rc = tokenize_reply(service, (uint32_t *)ids, (size_t)rc, from->with_pieces, out, err);
    free(ids);
    protobuf_c_message_free_unpacked(message, &budget.allocator);
    return rc;
}

/* Pieces of all ids, one after the other, into a buffer that grows up to the largest reply. */
static int detokenize(const struct moge_service *service, const Moge__V1__DetokenizeRequest *from,
                      struct moge_bytes *text, struct moge_err *err) {
    struct moge_detok detok;
    size_t push_max = moge_tokenizer_push_max(service->tokenizer), cap = 0;
    moge_detok_init(&detok, service->tokenizer, from->continues);
    for (size_t i = 0; i < from->n_token_ids; i++) {
        int rc = id_check(service, from->token_ids[i], "token_ids", i, err);
        if (rc)
            return rc;
        if (text->len > (size_t)service->max_message_bytes)
            return moge_fail(err, MOGE_LIMIT, "the reply would have more than %" PRId64 " bytes",
                             service->max_message_bytes);
        if (text->len + push_max + 4 > cap) {
            cap = 2 * cap + push_max + 4096;
            unsigned char *more = realloc(text->data, cap);
            if (!more)
                return moge_fail(err, MOGE_NOMEM, "no memory for a text of %zu bytes", cap);
            text->data = more;
        }
        text->len +=
            moge_detok_push(&detok, (int32_t)from->token_ids[i], (char *)text->data + text->len);
    }
    if (text->data)
        text->len += moge_detok_finish(&detok, (char *)text->data + text->len);
    return 0;
}

int moge_codec_detokenize(const struct moge_service *service, const void *data, size_t len,
                          struct moge_bytes *out, struct moge_err *err) {
    struct budget budget;
    ProtobufCMessage *message =
        unpack(&moge__v1__detokenize_request__descriptor, &budget, data, len, err);
    if (!message)
        return budget.exceeded ? MOGE_LIMIT : MOGE_INVALID;
    struct moge_bytes text = {0};
    int rc = detokenize(service, (const Moge__V1__DetokenizeRequest *)message, &text, err);
    Moge__V1__DetokenizeResponse reply = MOGE__V1__DETOKENIZE_RESPONSE__INIT;
    reply.text = (ProtobufCBinaryData){text.len, text.data};
    if (rc == 0)
        rc = reply_pack(service, &reply.base, out, err);
    free(text.data);
    protobuf_c_message_free_unpacked(message, &budget.allocator);
    return rc;
}

int moge_codec_stats(const struct moge_service *service, const void *data, size_t len,
                     struct moge_bytes *out, struct moge_err *err) {
    struct budget budget;
    ProtobufCMessage *message =
        unpack(&moge__v1__get_stats_request__descriptor, &budget, data, len, err);
    if (!message)
        return budget.exceeded ? MOGE_LIMIT : MOGE_INVALID;
    bool with_prometheus = ((const Moge__V1__GetStatsRequest *)message)->with_prometheus;
    protobuf_c_message_free_unpacked(message, &budget.allocator);
    return moge_codec_stats_reply(service, with_prometheus, out, err);
}

/* ---- health ---- */

int moge_codec_health_request(const void *data, size_t len, char *name, size_t cap,
                              struct moge_err *err) {
    struct budget budget;
    ProtobufCMessage *message =
        unpack(&grpc__health__v1__health_check_request__descriptor, &budget, data, len, err);
    if (!message)
        return budget.exceeded ? MOGE_LIMIT : MOGE_INVALID;
    const ProtobufCBinaryData *service =
        &((const Grpc__Health__V1__HealthCheckRequest *)message)->service;
    snprintf(name, cap, "%.*s", (int)(service->len < cap ? service->len : cap - 1),
             service->data ? (const char *)service->data : "");
    protobuf_c_message_free_unpacked(message, &budget.allocator);
    return 0;
}
