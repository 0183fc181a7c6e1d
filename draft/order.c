/* SPDX-License-Identifier: Apache-2.0 */
#include "draft/order.h"

#include <stdlib.h>

#include "moge/batch.h"
#include "moge/err.h"

/* Guessing must promise at least this much more tokens per second. */
#define MARGIN 1.01
/* A step may be so many standard deviations faster than believed. */
#define HOPE_SPREADS 2.0
/* More rounds of drafting are not tried where so many reach this share of the best. */
#define ROUNDS_WORSE 0.9

int moge_order_init(struct moge_order *order, int32_t n_max) {
    order->n_max = n_max;
    order->guesses = calloc((size_t)n_max, sizeof *order->guesses);
    order->step_ns = calloc((size_t)n_max + 1, sizeof *order->step_ns);
    order->hope_ns = calloc((size_t)n_max + 1, sizeof *order->hope_ns);
    return order->guesses && order->step_ns && order->hope_ns ? 0 : MOGE_NOMEM;
}

void moge_order_fini(struct moge_order *order) {
    free(order->guesses);
    free(order->step_ns);
    free(order->hope_ns);
}

/* The best beginning by what is believed, and by what may be hoped. */
struct best {
    struct moge_beginning known, hope;
};

/* Steps with the first 0, 1 .. n guesses. */
static void curve_fill(struct moge_order *order, const struct moge_step_cost *cost, int32_t n,
                       int32_t n_rows) {
    for (int32_t i = 0; i <= n; i++) {
        order->step_ns[i] = moge_step_cost_ns(cost, n_rows + i);
        order->hope_ns[i] =
            HOPE_SPREADS * order->step_ns[i] * moge_step_cost_spread(cost, n_rows + i);
    }
}

static void best_update(const struct moge_outlook *outlook, double hope_ns, int32_t n,
                        int32_t n_rounds, struct best *best) {
    struct moge_beginning here = {
        n_rounds,        n,           outlook->tokens / outlook->ns * (n == 0 ? MARGIN : 1),
        outlook->tokens, outlook->ns, outlook->unpaid_ns};
    if (here.rate > best->known.rate)
        best->known = here;
    here.rate = outlook->tokens / (outlook->ns - hope_ns);
    if (outlook->ns > hope_ns && here.rate > best->hope.rate)
        best->hope = here;
}

/* The best of up to n_max guesses that the drafter makes in n_rounds. */
static struct best walk(const struct moge_order *order, double round_ns, int32_t n_rounds,
                        int32_t n_max, struct moge_outlook outlook) {
    struct best best = {0};
    double other_ns = outlook.ns - order->step_ns[0];
    for (int32_t i = 0, n = 0; i < order->n && n < n_max; i++) {
        const struct moge_guess *guess = &order->guesses[i];
        if (guess->depth > n_rounds)
            continue;
        if (guess->depth > outlook.n_rounds) {
            outlook.n_rounds = guess->depth;
            other_ns += round_ns;
        }
        n++;
        other_ns += guess->draft_ns;
        outlook.unpaid_ns += guess->unpaid_ns;
        outlook.tokens += guess->reached;
        outlook.ns = other_ns + order->step_ns[n];
        best_update(&outlook, order->hope_ns[n], n, n_rounds, &best);
    }
    return best;
}

struct moge_beginning moge_order_best(struct moge_order *order, const struct moge_step_cost *cost,
                                      double round_ns, int32_t room,
                                      const struct moge_outlook *outlook,
                                      struct moge_beginning *hopes, int *n_hopes) {
    static const int32_t rounds[MOGE_HOPES - 1] = {0, 1, 2, 3, 4, 6, 8, 11, MOGE_DRAFT_LEN_MAX};
    struct best none = {0};
    room = room < order->n ? room : order->n;
    curve_fill(order, cost, room, outlook->n_rows);
    best_update(outlook, order->hope_ns[0], 0, 0, &none);
    struct moge_beginning known = none.known;
    hopes[0] = none.hope;
    *n_hopes = 1;
    for (int i = 0; i < MOGE_HOPES - 1; i++) {
        struct best here = walk(order, round_ns, rounds[i], room, *outlook);
        if (here.known.rate > known.rate)
            known = here.known;
        hopes[(*n_hopes)++] = here.hope;
        if (rounds[i] >= order->depth ||
            (rounds[i] > 1 && here.hope.rate < ROUNDS_WORSE * known.rate))
            break;
    }
    return known;
}
