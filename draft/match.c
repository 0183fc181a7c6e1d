/* SPDX-License-Identifier: Apache-2.0 */
#include "draft/match.h"

/* Outcomes after which evidence has faded to 1/e: everybody's, a request's own. */
#define FADE_ALL 400.0
#define FADE_OWN 32.0
/* The level above counts as much as this many outcomes. */
#define PRIOR_WEIGHT 8.0
#define RATE_MAX     0.99

/* Classes of match lengths, and what to expect of them before anything is known. */
static const struct {
    int32_t len_max;
    double prior;
} classes[MOGE_MATCH_CLASSES] = {{2, 0.25}, {3, 0.35},  {4, 0.45},  {6, 0.55},
                                 {9, 0.65}, {14, 0.75}, {23, 0.85}, {INT32_MAX, 0.9}};

static int class_of(int32_t match_len) {
    int i = 0;
    while (match_len > classes[i].len_max)
        i++;
    return i;
}

static double all_rate(const struct moge_matches *all, int i_class) {
    return moge_evidence_rate(&all->by_class[i_class], classes[i_class].prior, PRIOR_WEIGHT);
}

static double rate_of(const struct moge_matches *all, const struct moge_own_matches *own,
                      int i_class) {
    /* A request whose text repeats itself does so after matches of every length. */
    double everybody = all_rate(all, i_class);
    double factor = (own->hits + PRIOR_WEIGHT / 2) / (own->expected + PRIOR_WEIGHT / 2);
    double expected = everybody * factor < RATE_MAX ? everybody * factor : RATE_MAX;
    double rate = moge_evidence_rate(&own->by_class[i_class], expected, PRIOR_WEIGHT);
    return rate < RATE_MAX ? rate : RATE_MAX;
}

double moge_match_rate(const struct moge_matches *all, const struct moge_own_matches *own,
                       int32_t match_len) {
    return rate_of(all, own, class_of(match_len));
}

void moge_match_learn(struct moge_matches *all, struct moge_own_matches *own, int32_t match_len,
                      bool hit) {
    int i = class_of(match_len);
    own->hits = own->hits * (1 - 1 / FADE_OWN) + hit;
    own->expected = own->expected * (1 - 1 / FADE_OWN) + all_rate(all, i);
    moge_evidence_add(&own->by_class[i], hit, FADE_OWN);
    moge_evidence_add(&all->by_class[i], hit, FADE_ALL);
}
