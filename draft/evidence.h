/* SPDX-License-Identifier: Apache-2.0 */
/* Counts of hits and misses that fade, and the rate they suggest when little is known. */
#ifndef MOGE_DRAFT_EVIDENCE_H
#define MOGE_DRAFT_EVIDENCE_H

#include <stdbool.h>

struct moge_evidence {
    double n, hits; /* fading counts */
};

/* After `fade` further outcomes this one counts 1/e. */
static inline void moge_evidence_add(struct moge_evidence *evidence, bool hit, double fade) {
    evidence->n = evidence->n * (1 - 1 / fade) + 1;
    evidence->hits = evidence->hits * (1 - 1 / fade) + hit;
}

/* The prior counts as much as `weight` outcomes. */
static inline double moge_evidence_rate(const struct moge_evidence *evidence, double prior,
                                        double weight) {
    return (evidence->hits + weight * prior) / (evidence->n + weight);
}

#endif
