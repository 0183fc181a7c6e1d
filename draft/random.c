/* SPDX-License-Identifier: Apache-2.0 */
/* The drafter of tests: uniformly random ids.  It is right by chance only, so every step exercises
 * rejection, and the output must not change all the same. */
#include "moge/draft.h"

#include <stdlib.h>

#include "moge/splitmix.h"

struct random {
    int32_t n_vocab;
    uint64_t state;
};

static void random_guess(void *self, struct moge_span *const *spans, const int32_t *want,
                         int32_t n_spans) {
    struct random *random = self;
    for (int32_t i = 0; i < n_spans; i++) {
        for (int32_t j = spans[i]->n_guess; j < want[i]; j++)
            spans[i]->tokens[spans[i]->n_known + j] =
                (int32_t)(moge_splitmix(&random->state) % (uint64_t)random->n_vocab);
        spans[i]->n_guess = want[i];
    }
}

static void random_forget(void *self, int32_t slot) {
    (void)self;
    (void)slot;
}

static const struct moge_drafter_ops random_ops = {
    .name = "random", .guess = random_guess, .forget = random_forget, .free = free};

int moge_draft_random_new(struct moge_drafter *out, int32_t n_vocab, uint64_t seed,
                          struct moge_err *err) {
    if (n_vocab < 1)
        return moge_fail(err, MOGE_INVALID, "a vocabulary of %d tokens cannot be guessed from",
                         n_vocab);
    struct random *random = calloc(1, sizeof *random);
    if (!random)
        return moge_fail(err, MOGE_NOMEM, "no memory for the random drafter");
    random->n_vocab = n_vocab;
    random->state = seed;
    *out = (struct moge_drafter){&random_ops, random};
    return 0;
}
