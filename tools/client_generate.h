/* SPDX-License-Identifier: Apache-2.0 */
/* Our protocol, seen from a client: requests and answers as plain structs.  Any thread. */
#ifndef MOGE_CLIENT_GENERATE_H
#define MOGE_CLIENT_GENERATE_H

#include <stdbool.h>
#include "moge/batch.h"
#include "tools/client.h"

#define MOGE_CLIENT_STOPS_MAX   16
#define MOGE_CLIENT_SAMPLES_MAX 64

/* A token and how likely the model found it. */
struct moge_client_score {
    uint32_t id;
    const char *piece; /* [piece_len] bytes */
    size_t piece_len;
    float logprob;
    int32_t rank; /* 1: the most likely; 0 for an alternative */
    size_t n_top;
    const struct moge_client_score *top; /* alternatives, most likely first */
};

/* Scored tokens of the prompt, borrowed for the call; arg is that of the deltas.  Non-zero cancels
 * the stream. */
typedef int moge_client_prompt_fn(void *arg, const struct moge_client_score *scores,
                                  size_t n_scores, struct moge_err *err);

/* Unset fields (has_x false, n_x 0) leave the choice to the daemon. */
struct moge_client_request {
    const char *prompt; /* [prompt_len] UTF-8, NULs allowed */
    size_t prompt_len;
    const uint32_t *prompt_ids; /* [n_prompt_ids], instead of the text unless NULL */
    size_t n_prompt_ids;
    bool parse_special; /* the prompt may spell control tokens */
    bool has_max_tokens, has_temperature, has_top_p, has_seed, has_speculation;
    int32_t max_tokens;
    float temperature, top_p;
    uint64_t seed;
    const char *cache_salt; /* NULL: none */
    bool has_prompt_logprobs;
    int32_t n_prompt_logprobs; /* alternatives beside each token of the prompt */
    int n_stops;
    const char *stops[MOGE_CLIENT_STOPS_MAX];
    enum moge_spec_mode spec_mode;
    int32_t spec_len;     /* MOGE_SPEC_FIXED */
    int32_t spec_len_max; /* MOGE_SPEC_AUTO; 0: the daemon's */
    enum moge_drafters drafters;
    moge_client_prompt_fn *on_prompt; /* NULL: scores are dropped */
    int32_t n_samples;                /* at most MOGE_CLIENT_SAMPLES_MAX; 0: one */
    int32_t *i_sample;            /* set to the sample of each delta before it; NULL: one sample */
    bool ignore_eos;              /* go on after the end of the text */
    int64_t timeout_us;           /* 0: none */
    const atomic_bool *cancelled; /* may be NULL */
};

/* Guesses of all drafters, or of one. */
struct moge_client_guesses {
    int32_t n_offered, n_accepted;
    int32_t n_positions; /* entries of the two below */
    int32_t offered_at[MOGE_DRAFT_LEN_MAX], accepted_at[MOGE_DRAFT_LEN_MAX];
};

/* What the last message of a stream says. */
struct moge_client_finish {
    const char *reason; /* "stop", "length", "aborted" or "unknown"; a constant */
    int32_t n_prompt, n_output;
    int64_t queue_us, prefill_us, decode_us;
    struct moge_client_guesses guesses, by_model, by_ngram;
    uint64_t seed;
};

/* New tokens and their text, borrowed for the call.  Non-zero cancels the stream. */
typedef int moge_client_delta_fn(void *arg, const char *text, size_t text_len, const uint32_t *ids,
                                 size_t n_ids, struct moge_err *err);

/* Streams one continuation, or n_samples; finish[] is filled on success.  MOGE_INTERNAL when the
 * server ends the stream without a last message. */
int moge_client_generate(struct moge_client *client, const struct moge_client_request *request,
                         moge_client_delta_fn *on_delta, void *arg,
                         struct moge_client_finish *finish, struct moge_err *err);

/* The same as one of many calls of a thread.  on_delta and on_end are told arg; *finish, filled
 * before an on_end with rc 0, and arg live until on_end. */
int moge_client_generate_start(struct moge_client_calls *calls,
                               const struct moge_client_request *request,
                               moge_client_delta_fn *on_delta, moge_client_end_fn *on_end,
                               void *arg, struct moge_client_finish *finish, struct moge_err *err);

/* How many tokens a text comes to when it may spell control tokens, without BOS. */
int moge_client_count_tokens(struct moge_client *client, const char *text, size_t *n_tokens,
                             struct moge_err *err);

/* What is served, in the words of the server; cut to fit. */
struct moge_client_model {
    char name[64], architecture[32], weights[16];
    int64_t n_params, n_params_active, weight_bytes;
    int32_t n_layers, n_experts, n_experts_used, n_groups, n_vocab;
};
struct moge_client_info {
    struct moge_client_model target, draft; /* draft.name is empty when there is none */
    char version[32], isa[16], drafter[16];
    int32_t n_threads, n_context, n_running_max;
    int64_t n_kv_tokens;
};
int moge_client_info(struct moge_client *client, int64_t timeout_us, struct moge_client_info *info,
                     struct moge_err *err);

#endif
