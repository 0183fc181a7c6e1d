/* SPDX-License-Identifier: Apache-2.0 */
/* How likely a looked-up guess is right.
 *
 * What decides is how long the match is: after two known tokens anything may follow, after twenty
 * the text is a copy.  If a guess is right the match has become one token longer, so the position
 * in the chain needs no counts of its own: position j of a match of n tokens is a match of n + j.
 *
 * Looking up costs nothing, so every lookup is compared with what was decided in the end, offered
 * or not: these rates are always fresh and need no probing. */
#ifndef MOGE_DRAFT_MATCH_H
#define MOGE_DRAFT_MATCH_H

#include <stdint.h>
#include "draft/evidence.h"

#define MOGE_MATCH_CLASSES 8 /* of match lengths */

/* Everybody's matches. */
struct moge_matches {
    struct moge_evidence by_class[MOGE_MATCH_CLASSES];
};

/* Those of one request. */
struct moge_own_matches {
    struct moge_evidence by_class[MOGE_MATCH_CLASSES];
    double hits, expected; /* fading; what was hit, and what everybody's rates promised */
};

double moge_match_rate(const struct moge_matches *all, const struct moge_own_matches *own,
                       int32_t match_len);

void moge_match_learn(struct moge_matches *all, struct moge_own_matches *own, int32_t match_len,
                      bool hit);

#endif
