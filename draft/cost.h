/* SPDX-License-Identifier: Apache-2.0 */
/* What things cost, learned while serving.
 *
 * A step of r rows takes t(r): concave at first (rows share expert weights), then linear (compute
 * binds).  t is kept at knots, each an average of what was measured near it lately.  Between
 * measured knots it is interpolated: for a concave curve that is too low, so an unknown number of
 * rows looks a little too cheap, is tried, and is known.  Drafting takes
 * t = per_round * rounds + per_row * rows.  Old measurements fade, so both follow the machine.
 * Engine thread. */
#ifndef MOGE_DRAFT_COST_H
#define MOGE_DRAFT_COST_H

#include <stdint.h>

#define MOGE_COST_KNOTS 36 /* every row count up to 8, then 4 an octave up to 1024 */

struct moge_step_cost {
    double sum_w, sum_x, sum_y, sum_xx, sum_xy; /* of the straight line, fading */
    double knot_weight[MOGE_COST_KNOTS];        /* measurements near the knot, fading */
    double knot_ns[MOGE_COST_KNOTS];            /* what they say */
    double fit_ns[MOGE_COST_KNOTS];             /* the curve through them; never falls with rows */
    double ns, ns_per_row;                      /* a straight line through everything, to report */
    int32_t n_seen;
};

void moge_step_cost_observe(struct moge_step_cost *cost, int32_t n_rows, double ns);

/* Expected time of a step; 0 as long as nothing was observed. */
double moge_step_cost_ns(const struct moge_step_cost *cost, int32_t n_rows);

/* How many measurements near n_rows are in memory. */
double moge_step_cost_weight(const struct moge_step_cost *cost, int32_t n_rows);

struct moge_guess_cost {
    double sum_rounds2, sum_rounds_rows, sum_rows2, sum_rounds_y, sum_rows_y; /* fading */
    double ns_per_round, ns_per_row;
    double sum_weight; /* 0: never measured */
};

void moge_guess_cost_observe(struct moge_guess_cost *cost, int32_t n_rounds, int32_t n_rows,
                             double ns);

#endif
