/* SPDX-License-Identifier: Apache-2.0 */
/* What is never done is never measured: a wrong belief that a step is slow would last for ever.  So
 * if another one may be better as far as anybody knows, it is done now and then, paid from what is
 * saved up for probing. */
#ifndef MOGE_DRAFT_HOPE_H
#define MOGE_DRAFT_HOPE_H

#include <stdbool.h>
#include <stdint.h>

/* A hope must be so much better than the best that is known. */
#define MOGE_HOPE_MIN 1.02

/* The first n guesses in the order of gain per cost, where the drafter makes n_rounds at most. */
struct moge_beginning {
    int32_t n_rounds, n;
    double rate;       /* tokens per ns: believed, or hoped */
    double tokens, ns; /* of the step, by what is believed */
    double unpaid_ns;  /* catch-up that is left to the steps to come, if they guess */
};

/* Put aside for probing. */
struct moge_savings {
    double ns, most_ns;
    bool awaited; /* a hope that cannot be paid for yet, but will be */
};

/* The most hopeful that can be paid for, and pays; the one that is known to be best if there is
 * none.  The hopes are of several sizes: a far one may be too dear to try, and one nearby tells
 * more about it than nothing. */
static inline struct moge_beginning moge_best_or_hope(struct moge_beginning known,
                                                      const struct moge_beginning *hopes,
                                                      int n_hopes, struct moge_savings *saved) {
    struct moge_beginning best = known;
    double best_rate = MOGE_HOPE_MIN * known.rate, best_cost_ns = 0;
    saved->awaited = false;
    for (int i = 0; i < n_hopes; i++) {
        double cost_ns = hopes[i].ns + hopes[i].unpaid_ns - hopes[i].tokens / known.rate;
        if (hopes[i].rate < best_rate ||
            (hopes[i].n == known.n && hopes[i].n_rounds == known.n_rounds))
            continue;
        if (cost_ns > saved->ns) {
            saved->awaited = saved->awaited || cost_ns <= saved->most_ns;
            continue;
        }
        best = hopes[i];
        best_rate = best.rate;
        best_cost_ns = cost_ns > 0 ? cost_ns : 0;
    }
    saved->ns -= best_cost_ns;
    return best;
}

#endif
