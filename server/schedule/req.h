/* SPDX-License-Identifier: Apache-2.0 */
/* One generation request, from submission to its last token.
 *
 *   free -> filling (a CQ thread) -> queued -> waiting -> running <-> waiting (preempted) ->
 * finished -> free moge_reqs_take   queue_submit  the engine thread owns it          both sides let
 * go
 *
 * Requests live in a pool sized at start.  Each is shared by exactly two parties: the RPC side and
 * the engine thread; `refs` counts them, the last to let go returns it to the pool.  Tokens flow
 * through a single-producer single-consumer ring: a slow reader fills its own ring and stalls only
 * its own sequence. */
#ifndef MOGE_REQ_H
#define MOGE_REQ_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include "moge/batch.h"
#include "moge/sample.h"
#include "moge/tokenizer.h"

#define MOGE_STOP_STRINGS_MAX 16
#define MOGE_STOP_BYTES_MAX   256 /* longest stop string */
#define MOGE_CACHE_SALT_MAX   128
#define MOGE_RING_TOKENS      64    /* tokens between engine and reader; a power of two */
#define MOGE_RING_TEXT_BYTES  16384 /* their text; a power of two */

enum moge_finish {
    MOGE_FINISH_NONE,
    MOGE_FINISH_STOP,      /* EOS, a stop id or a stop string */
    MOGE_FINISH_LENGTH,    /* max_tokens or the context is full */
    MOGE_FINISH_CANCELLED, /* the client went away, or said stop */
    MOGE_FINISH_DEADLINE,
    MOGE_FINISH_SHUTDOWN, /* the drain timer ran out */
    MOGE_FINISH_REFUSED,  /* waited too long, or cannot meet its deadline; err says which */
    MOGE_FINISH_ERROR,    /* our own fault; err says what */
};

/* One decided token on its way to the client.  Its text may be empty (half a character, or held
 * back because it may begin a stop string) and may contain bytes held back earlier.  Or one token
 * of the prompt with its score: those come first, in order, without text. */
struct moge_token_out {
    int32_t id;
    bool scored;                   /* a token of the prompt */
    int32_t text_len;              /* bytes of the text ring that belong to this token */
    bool hidden;                   /* counts as usage but is not sent (the stop token itself) */
    struct moge_logprobs logprobs; /* n_top = -1: not asked for */
};

struct moge_usage {
    int32_t n_prompt, n_output, n_cached; /* tokens */
    int32_t n_offered, n_accepted;        /* guesses */
    int32_t offered_at[MOGE_DRAFT_LEN_MAX], accepted_at[MOGE_DRAFT_LEN_MAX];
    int32_t ngram_offered_at[MOGE_DRAFT_LEN_MAX]; /* of which n-gram lookup made so many */
    int32_t ngram_accepted_at[MOGE_DRAFT_LEN_MAX];
    int32_t n_preempted;
    int64_t queue_us, prefill_us, decode_us; /* submit -> admitted -> first token -> last token */
};

struct moge_req {
    /* ---- filled by the RPC side before submission, constant afterwards ---- */
    uint64_t id;
    struct moge_sample_params sample; /* points into bias[] and stop_ids[] below */
    struct moge_logit_bias bias[MOGE_LOGIT_BIAS_MAX];
    int32_t stop_ids[MOGE_STOP_IDS_MAX];
    int32_t n_stop_strings;
    char stop_strings[MOGE_STOP_STRINGS_MAX][MOGE_STOP_BYTES_MAX];
    uint16_t stop_string_len[MOGE_STOP_STRINGS_MAX];
    bool include_stop;  /* the stop string or token's text stays in the output */
    int32_t max_tokens; /* >= 1 */
    enum moge_spec_mode spec_mode;
    int32_t spec_len, spec_len_max;
    enum moge_drafters drafters;
    char cache_salt[MOGE_CACHE_SALT_MAX]; /* cached pages are found only under the same salt */
    size_t cache_salt_len;
    int32_t n_prompt_logprobs; /* alternatives beside each scored prompt token; -1: no scores */
    int32_t priority;          /* higher first; 0 is ordinary */
    int64_t submitted_us, deadline_us; /* monotonic; INT64_MAX: none */
    int32_t n_prompt;
    int32_t *tokens; /* [context + MOGE_DRAFT_LEN_MAX + 1] prompt first; then the engine thread's */
    void (*gained)(struct moge_req *req); /* engine thread calls it when the ring gained something;
                                              notes it: moge_step.wake follows for all */
    void *rpc;                          /* opaque to schedule/ */
    /* Samples of one prompt: requests of their own, submitted together. */
    int32_t n_samples, i_sample;
    struct moge_req *next_sample; /* from sample 0 to the last; NULL */
    bool told, counted;           /* the RPC side's: its end was sent, is in the metrics */

    /* ---- engine thread ---- */
    struct moge_req *fork_of;  /* sample 0, until this one is admitted or that one ends */
    int32_t n_tokens;          /* decided, prompt included */
    int32_t n_computed;        /* positions whose KV is in place */
    int32_t slot;              /* pager slot, -1 when not admitted */
    int64_t rank;              /* place in line: lower first, then by arrival */
    uint64_t arrival;          /* number of the request since start */
    int32_t n_tokens_admitted; /* n_tokens when it last got its pages */
    int32_t n_given_up;        /* n_computed when it was last preempted */
    int32_t n_scored;          /* prompt rows whose scores are in the ring or beyond */
    int32_t n_planned;         /* prompt rows of this step, while it is planned */
    struct moge_detok detok;
    int32_t n_held; /* text held back: could be the beginning of a stop string */
    char held[MOGE_STOP_BYTES_MAX + 256];
    int64_t admitted_us, first_token_us, last_token_us; /* 0: not yet */
    struct moge_logprobs *logprobs; /* [MOGE_RING_TOKENS] landing place for accept */
    struct moge_req *prev, *next;   /* in one of the scheduler's lists */

    /* ---- shared ---- */
    atomic_int refs;       /* RPC side + engine side */
    atomic_bool cancelled; /* RPC side sets, engine thread reads once per step (relaxed) */
    /* ring: engine thread produces (release head), RPC side consumes (release tail) */
    _Atomic uint32_t head, tail;
    _Atomic uint32_t text_head, text_tail;
    struct moge_token_out ring[MOGE_RING_TOKENS];
    char text[MOGE_RING_TEXT_BYTES];
    /* final state: written by the engine thread before finish is released */
    _Atomic int finish; /* enum moge_finish; acquire before reading the rest */
    struct moge_usage usage;
    int32_t stop_id;     /* the token that stopped it, or -1 */
    int32_t stop_string; /* index of the stop string that stopped it, or -1 */
    struct moge_err err;
};

struct moge_reqs; /* the pool */

/* n requests with room for n_context tokens each; all memory is taken here. */
int moge_reqs_new(struct moge_reqs **out, int32_t n, int32_t n_context, struct moge_err *err);
void moge_reqs_free(struct moge_reqs *reqs);

/* A cleared request with one reference (the RPC side's), or NULL when all are in use.  Any thread.
 */
struct moge_req *moge_reqs_take(struct moge_reqs *reqs);

/* Makes req, filled and not yet submitted, the first of its n_samples samples: takes the others
 * from the pool and fills them alike, each with a seed of its own.  MOGE_LIMIT when the pool has
 * too few. Those taken are linked in any case: moge_req_release_samples lets go of them.  Any
 * thread. */
int moge_req_fan_out(struct moge_reqs *reqs, struct moge_req *req, struct moge_err *err);
void moge_req_release_samples(struct moge_reqs *reqs, struct moge_req *req);

/* The seed of sample i; that of sample 0 is the request's. */
uint64_t moge_sample_seed(uint64_t seed, int32_t i);

/* Drops one reference.  Any thread. */
void moge_req_release(struct moge_reqs *reqs, struct moge_req *req);

/* Consumer side (one thread at a time): the oldest token and its text, or false when the ring is
 * empty.  text has room for MOGE_RING_TEXT_BYTES; *text_len bytes are written. */
bool moge_req_pop(struct moge_req *req, struct moge_token_out *token, char *text, size_t *text_len);

/* Producer side (engine thread): room for tokens before the ring is full; push (asserts there is
 * room). */
int32_t moge_req_room(const struct moge_req *req);
void moge_req_push(struct moge_req *req, const struct moge_token_out *token, const char *text);

#endif
