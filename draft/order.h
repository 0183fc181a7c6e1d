/* SPDX-License-Identifier: Apache-2.0 */
/* The guesses of a step in the order of gain per cost, and which beginnings of that order make a
 * fast step. */
#ifndef MOGE_DRAFT_ORDER_H
#define MOGE_DRAFT_ORDER_H

#include <stdint.h>
#include "draft/cost.h"
#include "draft/hope.h"

struct moge_guess {
    double reached;   /* probability that it and all before it in its span are right */
    double draft_ns;  /* what making it takes, rounds aside */
    double unpaid_ns; /* of the catch-up before it, what is left to the steps to come */
    int32_t i_span;
    int32_t depth; /* the round of drafting that makes it; 0: looked up */
};

struct moge_order {
    struct moge_guess *guesses; /* [n_max]; of one span, those that come first are made first */
    int32_t n, n_max, depth;    /* depth: the largest */
    double *step_ns,
        *hope_ns; /* [n_max + 1] a step with so many of them; as much faster it may be */
};

/* What the step yields and takes before any of them. */
struct moge_outlook {
    double tokens, ns, unpaid_ns;
    int32_t n_rows, n_rounds;
};

int moge_order_init(struct moge_order *order, int32_t n_max); /* 0 or MOGE_NOMEM */
void moge_order_fini(struct moge_order *order);

/* A round of drafting is shared by all spans that go so deep, so numbers of rounds are tried one by
 * one, until more of them are clearly worse.  At most `room` guesses.  hopes[0] is of none. */
#define MOGE_HOPES 10
struct moge_beginning moge_order_best(struct moge_order *order, const struct moge_step_cost *cost,
                                      double round_ns, int32_t room,
                                      const struct moge_outlook *outlook,
                                      struct moge_beginning *hopes, int *n_hopes);

#endif
