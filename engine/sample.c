/* SPDX-License-Identifier: Apache-2.0 */
/* How a row of logits becomes a token.
 *
 *   greedy or nothing to cut:   one pass (argmax, or Gumbel argmax) over the row
 *   top_k, top_p, min_p:        candidates are gathered, cut by selection, and raced
 *
 * Orders are total (larger logit first, lower id on ties) and sums run in a fixed order, so the
 * outcome is a pure function of the row.  NaN logits count as minus infinity.  Sorting is our own:
 * the C library's may allocate. */
#include "moge/sample.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/kernels/kernels.h"

#define RANKED_AT_ONCE 32

struct candidate {
    float logit; /* divided by the temperature */
    int32_t id;
};

struct moge_sampler {
    int32_t n_vocab;
    const struct moge_kernels *kernels;
    float *logits;          /* [n_vocab] adjusted copy of the row */
    struct candidate *kept; /* [n_vocab] */
    float *kept_logits;     /* [n_vocab] the same as columns, for the race */
    int32_t *kept_ids;      /* [n_vocab] */
    float *weights;         /* [n_vocab] */
    int32_t *counts;        /* [n_vocab] occurrences in the output; all 0 between calls */
    uint8_t *seen;          /* [n_vocab] occurs in prompt or output; all 0 between calls */
};

/* ---- life ---- */

int moge_sampler_new(struct moge_sampler **out, int32_t n_vocab, struct moge_err *err) {
    if (n_vocab < 1)
        return moge_fail(err, MOGE_INVALID, "a vocabulary of %d tokens cannot be sampled from",
                         n_vocab);
    struct moge_sampler *sampler = calloc(1, sizeof *sampler);
    if (!sampler)
        return moge_fail(err, MOGE_NOMEM, "no memory for a sampler");
    size_t n = (size_t)n_vocab;
    sampler->n_vocab = n_vocab;
    sampler->kernels = moge_kernels();
    sampler->logits = calloc(n, sizeof *sampler->logits);
    sampler->kept = calloc(n, sizeof *sampler->kept);
    sampler->kept_logits = calloc(n, sizeof *sampler->kept_logits);
    sampler->kept_ids = calloc(n, sizeof *sampler->kept_ids);
    sampler->weights = calloc(n, sizeof *sampler->weights);
    sampler->counts = calloc(n, sizeof *sampler->counts);
    sampler->seen = calloc(n, sizeof *sampler->seen);
    if (!sampler->logits || !sampler->kept || !sampler->kept_logits || !sampler->kept_ids ||
        !sampler->weights || !sampler->counts || !sampler->seen) {
        moge_sampler_free(sampler);
        return moge_fail(err, MOGE_NOMEM, "no memory to sample from %d tokens", n_vocab);
    }
    *out = sampler;
    return 0;
}

void moge_sampler_free(struct moge_sampler *sampler) {
    if (!sampler)
        return;
    free(sampler->logits);
    free(sampler->kept);
    free(sampler->kept_logits);
    free(sampler->kept_ids);
    free(sampler->weights);
    free(sampler->counts);
    free(sampler->seen);
    free(sampler);
}

/* ---- adjustments: penalties, bias, min_tokens ---- */

static bool has_penalties(const struct moge_sample_params *params) {
    return params->repetition_penalty != 1 || params->presence_penalty != 0 ||
           params->frequency_penalty != 0;
}

/* Each distinct token of the history once; counts and seen are zero again afterwards. */
static void penalise(struct moge_sampler *sampler, const struct moge_sample_params *params,
                     const int32_t *tokens, int32_t n_prompt, int32_t n_tokens) {
    for (int32_t i = 0; i < n_tokens; i++) {
        sampler->seen[tokens[i]] = 1;
        if (i >= n_prompt)
            sampler->counts[tokens[i]]++;
    }
    for (int32_t i = 0; i < n_tokens; i++) {
        int32_t id = tokens[i], count = sampler->counts[id];
        if (!sampler->seen[id])
            continue;
        float *logit = &sampler->logits[id];
        *logit =
            *logit > 0 ? *logit / params->repetition_penalty : *logit * params->repetition_penalty;
        if (count > 0)
            *logit -= params->presence_penalty + params->frequency_penalty * (float)count;
        sampler->seen[id] = 0;
        sampler->counts[id] = 0;
    }
}

/* The row to choose from: the engine's own when nothing is to be changed, else an adjusted copy. */
static const float *adjust(struct moge_sampler *sampler, const struct moge_sample_params *params,
                           const float *logits, const int32_t *tokens, int32_t n_prompt,
                           int32_t n_tokens) {
    bool masks = n_tokens - n_prompt < params->min_tokens && params->n_stop_ids > 0;
    if (!has_penalties(params) && params->n_bias == 0 && !masks)
        return logits;
    memcpy(sampler->logits, logits, (size_t)sampler->n_vocab * sizeof *logits);
    if (has_penalties(params))
        penalise(sampler, params, tokens, n_prompt, n_tokens);
    for (int32_t i = 0; i < params->n_bias; i++)
        sampler->logits[params->bias[i].id] += params->bias[i].bias;
    for (int32_t i = 0; i < params->n_stop_ids && masks; i++)
        sampler->logits[params->stop_ids[i]] = -INFINITY;
    return sampler->logits;
}

/* ---- the keep set ---- */

static bool better(const struct candidate *a, const struct candidate *b) {
    return a->logit > b->logit || (a->logit == b->logit && a->id < b->id);
}

/* Lets the candidate at i sink in a heap of n whose top is the worst. */
static void sink(struct candidate *heap, int32_t n, int32_t i) {
    struct candidate sinking = heap[i];
    for (;;) {
        int32_t child = 2 * i + 1;
        if (child >= n)
            break;
        if (child + 1 < n && better(&heap[child], &heap[child + 1]))
            child++;
        if (!better(&sinking, &heap[child]))
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = sinking;
}

/* Best first (heapsort). */
static void sort_best(struct candidate *kept, int32_t n) {
    for (int32_t i = n / 2 - 1; i >= 0; i--)
        sink(kept, n, i);
    for (int32_t last = n - 1; last > 0; last--) {
        struct candidate worst = kept[0];
        kept[0] = kept[last];
        kept[last] = worst;
        sink(kept, last, 0);
    }
}

/* Moves the better ones of kept[low..high), at least 2, to its front: returns where the others
 * begin, which is neither end (Hoare, middle pivot). */
static int32_t partition(struct candidate *kept, int32_t low, int32_t high) {
    struct candidate pivot = kept[low + (high - 1 - low) / 2];
    int32_t i = low, j = high - 1;
    while (i <= j) {
        while (better(&kept[i], &pivot))
            i++;
        while (better(&pivot, &kept[j]))
            j--;
        if (i <= j) {
            struct candidate swap = kept[i];
            kept[i++] = kept[j];
            kept[j--] = swap;
        }
    }
    return i;
}

/* Moves the n best of kept[0..n_all) to the front, in no order. */
static void select_best(struct candidate *kept, int32_t n_all, int32_t n) {
    int32_t low = 0, high = n_all;
    while (low < n && n < high && high - low > 1) {
        int32_t middle = partition(kept, low, high);
        if (n <= middle)
            high = middle;
        else
            low = middle;
    }
}

/* Every token that is not banned, by id. */
static int32_t gather(struct moge_sampler *sampler, const float *logits, float inverse) {
    int32_t n = 0;
    for (int32_t id = 0; id < sampler->n_vocab; id++)
        if (logits[id] > -INFINITY) /* false for NaN */
            sampler->kept[n++] = (struct candidate){logits[id] * inverse, id};
    return n;
}

/* weights[i] = exp(logit - largest) for i in [low, high); returns their sum, in order. */
static double weigh(struct moge_sampler *sampler, int32_t low, int32_t high, float largest) {
    for (int32_t i = low; i < high; i++)
        sampler->kept_logits[i] = sampler->kept[i].logit;
    if (low < high)
        sampler->kernels->exp_sum(sampler->kept_logits + low, largest, 1, high - low,
                                  sampler->weights + low);
    double sum = 0;
    for (int32_t i = low; i < high; i++)
        sum += (double)sampler->weights[i];
    return sum;
}

/* The shortest beginning of the ranking with at least top_p of the mass, moved to the front.  Only
 * the neighbourhood of its end is ranked: selection by mass, O(n). */
static int32_t cut_top_p(struct moge_sampler *sampler, int32_t n, float top_p, float largest) {
    double wanted = (double)top_p * weigh(sampler, 0, n, largest), sum = 0;
    int32_t low = 0, high = n; /* all before low are kept and have `sum`; none from high on is */
    while (high - low > RANKED_AT_ONCE) {
        int32_t middle = partition(sampler->kept, low, high);
        double mass = weigh(sampler, low, middle, largest);
        if (sum + mass >= wanted) {
            high = middle;
        } else {
            sum += mass;
            low = middle;
        }
    }
    sort_best(sampler->kept + low, high - low);
    weigh(sampler, low, high, largest);
    for (int32_t i = low; i < high; i++) {
        sum += (double)sampler->weights[i];
        if (sum >= wanted)
            return i + 1;
    }
    return high;
}

/* min_p: at least min_p times as likely as the best. */
static int32_t cut_min_p(struct moge_sampler *sampler, int32_t n, float min_p, float largest) {
    weigh(sampler, 0, n, largest);
    int32_t n_kept = 0;
    for (int32_t i = 0; i < n; i++)
        if (sampler->weights[i] >= min_p)
            sampler->kept[n_kept++] = sampler->kept[i];
    return n_kept;
}

static int32_t pick_from_kept(struct moge_sampler *sampler, const struct moge_sample_params *params,
                              const float *logits, int32_t best, int32_t pos) {
    float inverse = 1 / params->temperature, largest = logits[best] * inverse;
    int32_t n = gather(sampler, logits, inverse);
    if (params->top_k > 0 && params->top_k < n) {
        select_best(sampler->kept, n, params->top_k);
        n = params->top_k;
        sort_best(sampler->kept, n); /* one order for the sums below */
    }
    if (params->top_p < 1)
        n = cut_top_p(sampler, n, params->top_p, largest);
    if (params->min_p > 0)
        n = cut_min_p(sampler, n, params->min_p, largest);
    for (int32_t i = 0; i < n; i++) {
        sampler->kept_logits[i] = sampler->kept[i].logit;
        sampler->kept_ids[i] = sampler->kept[i].id;
    }
    int32_t winner = sampler->kernels->gumbel_argmax(sampler->kept_logits, sampler->kept_ids, n, 1,
                                                     params->seed, pos);
    return sampler->kept_ids[winner];
}

int32_t moge_sampler_pick(struct moge_sampler *sampler, const struct moge_sample_params *params,
                          const float *logits, const int32_t *tokens, int32_t n_prompt,
                          int32_t n_tokens) {
    const float *row = adjust(sampler, params, logits, tokens, n_prompt, n_tokens);
    int32_t best = sampler->kernels->argmax(row, sampler->n_vocab);
    /* Nothing to race: all are banned, or the best is infinitely ahead. */
    if (params->temperature < MOGE_TEMPERATURE_MIN || !(row[best] > -INFINITY) ||
        row[best] * (1 / params->temperature) == INFINITY)
        return best;
    bool cuts = (params->top_k > 0 && params->top_k < sampler->n_vocab) || params->top_p < 1 ||
                params->min_p > 0;
    if (cuts)
        return pick_from_kept(sampler, params, row, best, n_tokens);
    return sampler->kernels->gumbel_argmax(row, NULL, sampler->n_vocab, 1 / params->temperature,
                                           params->seed, n_tokens);
}

float moge_gumbel(uint64_t seed, int32_t pos, int32_t id) {
    return moge_kernel_gumbel(seed, pos, id);
}

/* ---- log-probabilities ---- */

/* The row without NaN and plus infinity, which no sum survives: itself, or a mended copy. */
static const float *mend(struct moge_sampler *sampler, const float *logits) {
    bool whole = true;
    for (int32_t id = 0; id < sampler->n_vocab; id++)
        whole = whole && logits[id] <= FLT_MAX;
    if (whole)
        return logits;
    for (int32_t id = 0; id < sampler->n_vocab; id++)
        sampler->logits[id] = isnan(logits[id]) ? -INFINITY : fminf(logits[id], FLT_MAX);
    return sampler->logits;
}

void moge_sampler_logprobs(struct moge_sampler *sampler, const float *logits, int32_t token,
                           int32_t n_top, struct moge_logprobs *out) {
    MOGE_ASSERT(token >= 0 && token < sampler->n_vocab && n_top >= 0 && n_top <= MOGE_LOGPROBS_MAX);
    const float *row = mend(sampler, logits);
    float largest = row[sampler->kernels->argmax(row, sampler->n_vocab)];
    double log_sum = 0; /* of the whole softmax: 0 as well when every logit is minus infinity */
    if (largest > -INFINITY) {
        double sum = 0; /* in float the tail of a large vocabulary would be lost */
        sampler->kernels->exp_sum(row, largest, 1, sampler->n_vocab, sampler->weights);
        for (int32_t id = 0; id < sampler->n_vocab; id++)
            sum += (double)sampler->weights[id];
        log_sum = (double)largest + log(sum);
    }
    *out = (struct moge_logprobs){.chosen = (float)((double)row[token] - log_sum), .rank = 1};
    struct candidate chosen = {row[token], token};
    for (int32_t id = 0; id < sampler->n_vocab; id++) {
        sampler->kept[id] = (struct candidate){row[id], id};
        out->rank += better(&sampler->kept[id], &chosen);
    }
    out->n_top = n_top < sampler->n_vocab ? n_top : sampler->n_vocab;
    if (out->n_top == 0)
        return;
    select_best(sampler->kept, sampler->n_vocab, out->n_top);
    sort_best(sampler->kept, out->n_top);
    for (int32_t i = 0; i < out->n_top; i++) {
        out->top[i].id = sampler->kept[i].id;
        out->top[i].logprob = (float)((double)sampler->kept[i].logit - log_sum);
    }
}
