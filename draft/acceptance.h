/* SPDX-License-Identifier: Apache-2.0 */
/* How likely the drafter's guess at a position is right: from the request's own recent guesses at
 * that position, leaning on its guesses at all positions, leaning on everybody's. */
#ifndef MOGE_DRAFT_ACCEPTANCE_H
#define MOGE_DRAFT_ACCEPTANCE_H

#include <stdbool.h>
#include <stdint.h>
#include "draft/evidence.h"
#include "moge/draft.h"

/* Everybody's guesses. */
struct moge_acceptance {
    struct moge_evidence at[MOGE_DRAFT_LEN_MAX], all; /* by position; at any */
};

/* Those of one request. */
struct moge_own_acceptance {
    struct moge_evidence at[MOGE_DRAFT_LEN_MAX];
    struct moge_evidence all, fast; /* at any position; long and short memory */
};

/* Probability that the guess at position j is right, given that those before it were. */
double moge_acceptance_rate(const struct moge_acceptance *everybody,
                            const struct moge_own_acceptance *own, int32_t j);

/* own NULL: the request has ended. */
void moge_acceptance_learn(struct moge_acceptance *everybody, struct moge_own_acceptance *own,
                           int32_t j, bool hit);

/* The text moves on while the drafter says nothing. */
void moge_acceptance_idle(struct moge_own_acceptance *own);

#endif
