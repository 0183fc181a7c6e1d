/* SPDX-License-Identifier: Apache-2.0 */
/* The ring, from the producer's side:
 *
 *      ring   [ . . T T T . . . ]     tail (reader) ... head (engine); counters run freely and wrap
 *      text   [ . . . abc de f . ]    the bytes of those tokens, in the same order
 *
 * The engine thread writes an element and its text, then releases head; the reader acquires head,
 * copies both out, then releases tail.  Nobody else writes either counter. */
#include "server/schedule/req.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "moge/splitmix.h"

_Static_assert((MOGE_RING_TOKENS & (MOGE_RING_TOKENS - 1)) == 0, "counters wrap by masking");
_Static_assert((MOGE_RING_TEXT_BYTES & (MOGE_RING_TEXT_BYTES - 1)) == 0,
               "counters wrap by masking");

/* A step's scores and decided tokens all go into the ring. */
_Static_assert(MOGE_RING_TOKENS > MOGE_DRAFT_LEN_MAX + 1, "logprobs land in one array");

struct moge_reqs {
    pthread_mutex_t mutex;
    struct moge_req *first_free; /* under the mutex */
    struct moge_req *all;        /* [n] */
    int32_t n;
    int32_t *tokens;                /* [n, n_context + MOGE_DRAFT_LEN_MAX + 1] */
    struct moge_logprobs *logprobs; /* [n, MOGE_RING_TOKENS] */
};

int moge_reqs_new(struct moge_reqs **out, int32_t n, int32_t n_context, struct moge_err *err) {
    struct moge_reqs *reqs = calloc(1, sizeof *reqs);
    if (!reqs)
        return moge_fail(err, MOGE_NOMEM, "no memory for the request pool");
    pthread_mutex_init(&reqs->mutex, NULL);
    size_t n_tokens = (size_t)n_context + MOGE_DRAFT_LEN_MAX + 1;
    reqs->n = n;
    reqs->all = calloc((size_t)n, sizeof *reqs->all);
    reqs->tokens = calloc((size_t)n * n_tokens, sizeof *reqs->tokens);
    reqs->logprobs = calloc((size_t)n * MOGE_RING_TOKENS, sizeof *reqs->logprobs);
    if (!reqs->all || !reqs->tokens || !reqs->logprobs) {
        moge_reqs_free(reqs);
        return moge_fail(err, MOGE_NOMEM, "no memory for %d requests of %d tokens", n, n_context);
    }
    for (int32_t i = n - 1; i >= 0; i--) {
        struct moge_req *req = &reqs->all[i];
        req->tokens = reqs->tokens + (size_t)i * n_tokens;
        req->logprobs = reqs->logprobs + (size_t)i * MOGE_RING_TOKENS;
        req->next = reqs->first_free;
        reqs->first_free = req;
    }
    *out = reqs;
    return 0;
}

void moge_reqs_free(struct moge_reqs *reqs) {
    if (!reqs)
        return;
    pthread_mutex_destroy(&reqs->mutex);
    free(reqs->all);
    free(reqs->tokens);
    free(reqs->logprobs);
    free(reqs);
}

/* Everything but the big arrays, which are always written before they are read. */
static void req_clear(struct moge_req *req) {
    int32_t *tokens = req->tokens;
    struct moge_logprobs *logprobs = req->logprobs;
    memset(req, 0, offsetof(struct moge_req, ring));
    memset((char *)req + offsetof(struct moge_req, finish), 0,
           sizeof *req - offsetof(struct moge_req, finish));
    req->tokens = tokens;
    req->logprobs = logprobs;
    req->sample = moge_sample_params_default();
    req->sample.bias = req->bias;
    req->sample.stop_ids = req->stop_ids;
    req->spec_mode = MOGE_SPEC_AUTO;
    req->spec_len_max = MOGE_DRAFT_LEN_MAX;
    req->n_prompt_logprobs = -1;
    req->n_samples = 1;
    req->deadline_us = INT64_MAX;
    req->slot = -1;
    req->stop_id = req->stop_string = -1;
    atomic_store_explicit(&req->refs, 1, memory_order_relaxed);
}

struct moge_req *moge_reqs_take(struct moge_reqs *reqs) {
    pthread_mutex_lock(&reqs->mutex);
    struct moge_req *req = reqs->first_free;
    if (req)
        reqs->first_free = req->next;
    pthread_mutex_unlock(&reqs->mutex);
    if (req)
        req_clear(req);
    return req;
}

void moge_req_release(struct moge_reqs *reqs, struct moge_req *req) {
    int before = atomic_fetch_sub_explicit(&req->refs, 1, memory_order_acq_rel);
    MOGE_ASSERT(before >= 1);
    if (before > 1)
        return;
    pthread_mutex_lock(&reqs->mutex);
    req->next = reqs->first_free;
    reqs->first_free = req;
    pthread_mutex_unlock(&reqs->mutex);
}

uint64_t moge_sample_seed(uint64_t seed, int32_t i) {
    return i == 0 ? seed : moge_splitmix_mix(seed + (uint64_t)i * MOGE_SPLITMIX_STEP);
}

/* What the RPC side has filled in; scores of the prompt are sample 0's alone. */
static void req_copy(struct moge_req *to, const struct moge_req *from, int32_t i_sample) {
    int32_t *tokens = to->tokens;
    memcpy(to, from, offsetof(struct moge_req, fork_of));
    to->tokens = tokens;
    memcpy(tokens, from->tokens, (size_t)from->n_prompt * sizeof *tokens);
    to->sample.bias = to->bias;
    to->sample.stop_ids = to->stop_ids;
    to->sample.seed = moge_sample_seed(from->sample.seed, i_sample);
    to->n_prompt_logprobs = -1;
    to->i_sample = i_sample;
    to->next_sample = NULL;
}

int moge_req_fan_out(struct moge_reqs *reqs, struct moge_req *req, struct moge_err *err) {
    struct moge_req *last = req;
    for (int32_t i = 1; i < req->n_samples; i++) {
        struct moge_req *sample = moge_reqs_take(reqs);
        if (!sample)
            return moge_fail(err, MOGE_LIMIT, "the queue is full: too many requests are under way");
        req_copy(sample, req, i);
        last = last->next_sample = sample;
    }
    return 0;
}

void moge_req_release_samples(struct moge_reqs *reqs, struct moge_req *req) {
    struct moge_req *next;
    for (; req; req = next) {
        next = req->next_sample;
        moge_req_release(reqs, req);
    }
}

bool moge_req_pop(struct moge_req *req, struct moge_token_out *token, char *text,
                  size_t *text_len) {
    uint32_t tail = atomic_load_explicit(&req->tail, memory_order_relaxed);
    if (tail == atomic_load_explicit(&req->head, memory_order_acquire))
        return false;
    *token = req->ring[tail % MOGE_RING_TOKENS];
    uint32_t at = atomic_load_explicit(&req->text_tail, memory_order_relaxed);
    for (int32_t i = 0; i < token->text_len; i++)
        text[i] = req->text[(at + (uint32_t)i) % MOGE_RING_TEXT_BYTES];
    *text_len = (size_t)token->text_len;
    atomic_store_explicit(&req->text_tail, at + (uint32_t)token->text_len, memory_order_release);
    atomic_store_explicit(&req->tail, tail + 1, memory_order_release);
    return true;
}

/* A token's text is at most what was held back for a stop string plus the longest piece.  Counting
 * the text ring in units of that bound keeps `room` one number. */
#define TOKEN_TEXT_MAX ((uint32_t)sizeof(((struct moge_req *)NULL)->held))

int32_t moge_req_room(const struct moge_req *req) {
    uint32_t n_tokens = atomic_load_explicit(&req->head, memory_order_relaxed) -
                        atomic_load_explicit(&req->tail, memory_order_acquire);
    uint32_t n_text = atomic_load_explicit(&req->text_head, memory_order_relaxed) -
                      atomic_load_explicit(&req->text_tail, memory_order_acquire);
    uint32_t room = MOGE_RING_TOKENS - n_tokens;
    uint32_t room_text = (MOGE_RING_TEXT_BYTES - n_text) / TOKEN_TEXT_MAX;
    return (int32_t)(room < room_text ? room : room_text);
}

void moge_req_push(struct moge_req *req, const struct moge_token_out *token, const char *text) {
    MOGE_ASSERT(moge_req_room(req) > 0);
    MOGE_ASSERT(token->text_len >= 0 && (uint32_t)token->text_len <= TOKEN_TEXT_MAX);
    uint32_t head = atomic_load_explicit(&req->head, memory_order_relaxed);
    uint32_t at = atomic_load_explicit(&req->text_head, memory_order_relaxed);
    for (int32_t i = 0; i < token->text_len; i++)
        req->text[(at + (uint32_t)i) % MOGE_RING_TEXT_BYTES] = text[i];
    req->ring[head % MOGE_RING_TOKENS] = *token;
    atomic_store_explicit(&req->text_head, at + (uint32_t)token->text_len, memory_order_relaxed);
    atomic_store_explicit(&req->head, head + 1, memory_order_release);
}
