/* SPDX-License-Identifier: Apache-2.0 */
/* Protobuf on one side, plain C on the other.  Only codec*.c sees generated code.
 *
 * Decoding trusts nothing: memory is bounded by the length of the message, every field is checked
 * before it is used, and what is wrong is said in one sentence that names the field.  Encoded
 * messages are malloc'ed; the caller frees them.  Any thread; no state. */
#ifndef MOGE_CODEC_H
#define MOGE_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "moge/err.h"
#include "server/service.h"

struct moge_bytes {
    unsigned char *data; /* malloc'ed */
    size_t len;
};

/* Decodes a GenerateRequest into a request fresh from the pool, text prompts tokenised.  Everything
 * is filled but id, gained, rpc and the times. */
int moge_codec_generate(const struct moge_service *service, const void *data, size_t len,
                        struct moge_req *req, struct moge_err *err);

/* What a response will carry, collected from a request's ring. */
struct moge_chunk {
    int32_t i_sample;
    int32_t n_tokens;
    uint32_t ids[MOGE_RING_TOKENS];
    struct moge_logprobs logprobs[MOGE_RING_TOKENS]; /* n_top = -1: not asked for */
    int32_t n_scored; /* tokens of the prompt; with the others at most MOGE_RING_TOKENS */
    uint32_t scored_ids[MOGE_RING_TOKENS];
    struct moge_logprobs scores[MOGE_RING_TOKENS];
    size_t text_len;
    char text[2 * MOGE_RING_TEXT_BYTES];
};

/* Takes what the ring holds, as far as one response goes; false when that is nothing. */
bool moge_chunk_fill(struct moge_chunk *chunk, struct moge_req *req);

/* A GenerateResponse.  With `finished` (its final state has been released) it is the last one. */
int moge_codec_chunk(const struct moge_service *service, const struct moge_chunk *chunk,
                     const struct moge_req *finished, struct moge_bytes *out);

/* The unary methods: request in, reply out. */
int moge_codec_tokenize(const struct moge_service *service, const void *data, size_t len,
                        struct moge_bytes *out, struct moge_err *err);
int moge_codec_detokenize(const struct moge_service *service, const void *data, size_t len,
                          struct moge_bytes *out, struct moge_err *err);
int moge_codec_model_info(const struct moge_service *service, const void *data, size_t len,
                          struct moge_bytes *out, struct moge_err *err);
int moge_codec_stats(const struct moge_service *service, const void *data, size_t len,
                     struct moge_bytes *out, struct moge_err *err);
int moge_codec_stats_reply(const struct moge_service *service, bool with_prometheus,
                           struct moge_bytes *out, struct moge_err *err);

/* Health.  The service asked for, cut to the buffer. */
int moge_codec_health_request(const void *data, size_t len, char *name, size_t cap,
                              struct moge_err *err);
enum moge_health { /* the wire's numbers */
                   MOGE_HEALTH_UNKNOWN,
                   MOGE_HEALTH_SERVING,
                   MOGE_HEALTH_NOT_SERVING,
                   MOGE_HEALTH_SERVICE_UNKNOWN
};
int moge_codec_health_reply(enum moge_health status, struct moge_bytes *out);

/* Strict UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF. */
bool moge_utf8_valid(const void *data, size_t len);

#endif
