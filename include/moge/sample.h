/* SPDX-License-Identifier: Apache-2.0 */
/* The sampler: the token at position p is a pure function of (logits row, parameters, seed, p, the
 * tokens before p).  No state is carried from token to token, so verification is equality and
 * composes with every parameter: penalties look at the history handed in, guesses included.
 *
 * Order of operations (the one of vLLM):  penalties, logit_bias, min_tokens mask, then
 *   temperature 0: the largest logit, lowest id on ties;
 *   otherwise: logits / temperature, keep set = top_k, then top_p, then min_p of what is left, and
 *   Gumbel-max over the kept set: argmax(logit / T + g(seed, p, id)), g from a counter-based
 * generator. The draft model picks with the same call and hence the same noise, so guesses coincide
 * often: Daliri, Musco, Suresh, "Coupling without Communication and Drafter-Invariant Speculative
 * Decoding", arXiv 2408.07978.  A sampler is scratch only; one per thread. */
#ifndef MOGE_SAMPLE_H
#define MOGE_SAMPLE_H

#include <stdint.h>
#include "moge/batch.h"
#include "moge/err.h"

#define MOGE_LOGIT_BIAS_MAX  1024
#define MOGE_STOP_IDS_MAX    64
#define MOGE_TEMPERATURE_MIN 1e-5f /* below it a temperature counts as 0 */

struct moge_logit_bias {
    int32_t id;
    float bias; /* added to the logit; -INFINITY bans */
};

/* Constant while a request runs.  moge_sample_params_default() then override. */
struct moge_sample_params {
    float temperature;        /* >= 0; 0 is greedy */
    float top_p;              /* (0, 1]; 1 keeps all */
    float min_p;              /* [0, 1); 0 keeps all */
    int32_t top_k;            /* >= 1, or 0 for all */
    float repetition_penalty; /* > 0; 1 is none; over prompt and output */
    float presence_penalty;   /* [-2, 2]; over the output */
    float frequency_penalty;  /* [-2, 2]; over the output */
    uint64_t seed;
    int32_t min_tokens; /* stop ids are masked until this many tokens were generated */
    int32_t n_logprobs; /* -1: none; 0..MOGE_LOGPROBS_MAX alternatives beside the chosen token */
    int32_t n_bias;
    const struct moge_logit_bias *bias; /* [n_bias] */
    int32_t n_stop_ids;
    const int32_t *stop_ids; /* [n_stop_ids] EOS included unless the request ignores it */
};

struct moge_sample_params moge_sample_params_default(void);

/* Checks ranges and ids against n_vocab; err names the field, its value and what is allowed. */
int moge_sample_params_check(const struct moge_sample_params *params, int32_t n_vocab,
                             struct moge_err *err);

struct moge_logprobs { /* of the model's own logits, before penalties and temperature */
    float chosen;
    int32_t rank; /* 1 is the most likely */
    int32_t n_top;
    struct {
        int32_t id;
        float logprob;
    } top[MOGE_LOGPROBS_MAX]; /* most likely first */
};

struct moge_sampler;

int moge_sampler_new(struct moge_sampler **out, int32_t n_vocab, struct moge_err *err);
void moge_sampler_free(struct moge_sampler *sampler);

/* Picks the token at position n_tokens from logits [n_vocab], given tokens [n_tokens] of which the
 * first n_prompt are the prompt.  Leaves logits untouched.  Allocates nothing.  A NaN counts as
 * minus infinity; when all are minus infinity (everything is banned) the first that is not NaN is
 * picked, or token 0, so that the result is always a token. */
int32_t moge_sampler_pick(struct moge_sampler *sampler, const struct moge_sample_params *params,
                          const float *logits, const int32_t *tokens, int32_t n_prompt,
                          int32_t n_tokens);

/* Log-probabilities of `token` and the n_top (at most MOGE_LOGPROBS_MAX) most likely under the
 * untouched logits; minus infinity for what cannot be. */
void moge_sampler_logprobs(struct moge_sampler *sampler, const float *logits, int32_t token,
                           int32_t n_top, struct moge_logprobs *out);

/* The noise, for tests: standard Gumbel for (seed, position, token id). */
float moge_gumbel(uint64_t seed, int32_t pos, int32_t id);

#endif
