/* SPDX-License-Identifier: Apache-2.0 */
/* What things cost, learned while serving.
 *
 * A step of r rows takes t(r): concave at first (rows share expert weights), then linear (compute
 * binds).  t is kept at knots, as logarithms above a level common to all: what slows the machine
 * down as a whole moves the level, what a single size takes compared with the one before it moves
 * their knots.  Unknown knots are interpolated: for a concave curve that is too low, so an unknown
 * number of rows looks a little too cheap, is tried, and is known.  Drafting takes
 * t = per_round * rounds + per_row * rows.  Old measurements fade, so both follow the machine.
 *
 * A calibration at start seeds both: knots in between are interpolated from the beginning, and the
 * trial counts no more than its uncertainty allows, so a few dozen steps of real work outweigh it.
 * Engine thread. */
#ifndef MOGE_DRAFT_COST_H
#define MOGE_DRAFT_COST_H

#include <stdint.h>

#define MOGE_COST_KNOTS 36 /* every row count up to 8, then 4 an octave up to 1024 */

struct moge_step_cost {
    /* What is believed: a logarithm above the level at each knot, and the level, log ns, last. */
    double mean[MOGE_COST_KNOTS + 1];
    double cov[MOGE_COST_KNOTS + 1][MOGE_COST_KNOTS + 1]; /* a knot's own 0: never measured */
    double fit_ns[MOGE_COST_KNOTS]; /* the curve through them; never falls with rows */
    double apart[MOGE_COST_KNOTS];  /* how uncertain, compared with the last size */
    double spread;                  /* relative, of measurements about the curve */
    int32_t off_side;               /* the last one was far off: 1 above, -1 below */
    int32_t last_rows;              /* of the last step, or trial */
    int32_t n_seen;
};

void moge_step_cost_observe(struct moge_step_cost *cost, int32_t n_rows, double ns);

/* Before anything is observed: what a step of n_rows (a knot's) took in trials. */
void moge_step_cost_seed(struct moge_step_cost *cost, int32_t n_rows, double ns);

/* Expected time of a step; 0 as long as nothing was observed. */
double moge_step_cost_ns(const struct moge_step_cost *cost, int32_t n_rows);

/* How uncertain that is compared with the last size: relative, one standard deviation. */
double moge_step_cost_spread(const struct moge_step_cost *cost, int32_t n_rows);

struct moge_guess_cost {
    double sum_rounds2, sum_rounds_rows, sum_rows2, sum_rounds_y, sum_rows_y; /* fading */
    double ns_per_round, ns_per_row;
    double sum_weight; /* 0: never measured */
};

void moge_guess_cost_observe(struct moge_guess_cost *cost, int32_t n_rounds, int32_t n_rows,
                             double ns);

#endif
