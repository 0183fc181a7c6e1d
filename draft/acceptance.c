/* SPDX-License-Identifier: Apache-2.0 */
#include "draft/acceptance.h"

/* Evidence fades to 1/e after this many guesses: a request's own, everybody's together, and the
 * short memory that tells when a request's text has changed its nature. */
#define FADE_SLOT   128.0
#define FADE_GLOBAL 400.0
#define FADE_FAST   8.0
/* The text has changed when the short memory is this many standard deviations off the long one. */
#define CHANGE_SIGMAS 3.5
#define VARIANCE_MIN  0.02
/* Evidence also fades with steps that guessed nothing: the text has moved on. */
#define FADE_IDLE 64.0
/* The level above counts as much as this many guesses; everybody's less with a request whose short
 * memory is as far off it. */
#define LEVEL_WEIGHT  16.0
#define UNLIKE_WEIGHT 2.0
/* Before anything is known. */
#define PRIOR_ACCEPT 0.6
/* Nobody is always right. */
#define ACCEPT_MAX 0.99

/* What was hit lately does not come from this rate. */
static bool is_off(const struct moge_evidence *fast, double rate) {
    if (fast->n < FADE_FAST / 2)
        return false;
    double off = fast->hits / fast->n - rate, variance = rate * (1 - rate);
    variance = variance > VARIANCE_MIN ? variance : VARIANCE_MIN;
    return off * off * fast->n >= CHANGE_SIGMAS * CHANGE_SIGMAS * variance;
}

double moge_acceptance_rate(const struct moge_acceptance *everybody,
                            const struct moge_own_acceptance *own, int32_t j) {
    double all = moge_evidence_rate(&everybody->all, PRIOR_ACCEPT, LEVEL_WEIGHT);
    double here = moge_evidence_rate(&everybody->at[j], all, LEVEL_WEIGHT);
    /* What is special about the position is known from everybody; deep ones have little evidence.
     */
    double weight = is_off(&own->fast, all) ? UNLIKE_WEIGHT : LEVEL_WEIGHT;
    double rate = moge_evidence_rate(&own->all, all, weight) * here / all;
    rate = moge_evidence_rate(&own->at[j], rate < ACCEPT_MAX ? rate : ACCEPT_MAX, LEVEL_WEIGHT);
    return rate < ACCEPT_MAX ? rate : ACCEPT_MAX;
}

static void scale_one(struct moge_evidence *evidence, double factor) {
    evidence->n *= factor;
    evidence->hits *= factor;
}

static void scale(struct moge_own_acceptance *own, double factor) {
    scale_one(&own->all, factor);
    for (int j = 0; j < MOGE_DRAFT_LEN_MAX; j++)
        scale_one(&own->at[j], factor);
}

static void learn_own(struct moge_own_acceptance *own, int32_t j, bool hit) {
    moge_evidence_add(&own->at[j], hit, FADE_SLOT);
    moge_evidence_add(&own->all, hit, FADE_SLOT);
    moge_evidence_add(&own->fast, hit, FADE_FAST);
    if (!is_off(&own->fast, own->all.hits / own->all.n))
        return;
    scale(own, 0.1);
    own->all = own->fast;
}

void moge_acceptance_learn(struct moge_acceptance *everybody, struct moge_own_acceptance *own,
                           int32_t j, bool hit) {
    moge_evidence_add(&everybody->at[j], hit, FADE_GLOBAL);
    moge_evidence_add(&everybody->all, hit, FADE_GLOBAL);
    if (own)
        learn_own(own, j, hit);
}

void moge_acceptance_idle(struct moge_own_acceptance *own) {
    scale(own, 1 - 1 / FADE_IDLE);
}
