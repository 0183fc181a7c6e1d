/* SPDX-License-Identifier: Apache-2.0 */
#include "draft/cost.h"

#include <stdbool.h>

/* One measurement fades to 1/e after this many others. */
#define FADE_LINE  256.0
#define FADE_KNOT  24.0
#define FADE_GUESS 64.0
/* The line counts as much as this many measurements at a knot. */
#define LINE_WEIGHT 0.5
/* A measurement further off than this factor is a disturbance (another process ran). */
#define OUTLIER 3.0
/* Before two different row counts were seen: a row costs this share of what a step costs. */
#define SLOPE_PRIOR 0.35

static double knot_rows(int i) {
    static const double rows[MOGE_COST_KNOTS] = {1,  2,  3,  4,   6,   8,   12,  16,  24,   32,
                                                 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048};
    return rows[i];
}

/* The knot at or below n_rows, and how far n_rows is on the way to the next. */
static int knot_below(int32_t n_rows, double *share) {
    int i = 0;
    while (i < MOGE_COST_KNOTS - 2 && knot_rows(i + 1) <= (double)n_rows)
        i++;
    *share = ((double)n_rows - knot_rows(i)) / (knot_rows(i + 1) - knot_rows(i));
    return i;
}

static double interpolate(const double *values, int32_t n_rows) {
    double share;
    int i = knot_below(n_rows, &share);
    return values[i] + share * (values[i + 1] - values[i]);
}

/* Weighted least squares; a negative slope or intercept is noise and is clamped away. */
static void line_fit(struct moge_step_cost *cost) {
    double mean_x = cost->sum_x / cost->sum_w, mean_y = cost->sum_y / cost->sum_w;
    double var = cost->sum_xx / cost->sum_w - mean_x * mean_x;
    double cov = cost->sum_xy / cost->sum_w - mean_x * mean_y;
    double slope = var > 1e-9 ? cov / var : 0;
    double slope_max = mean_y / mean_x;
    if (slope < 0)
        slope = 0;
    if (slope > slope_max)
        slope = slope_max;
    cost->ns_per_row = slope;
    cost->ns = mean_y - slope * mean_x;
}

/* Steps never get faster by more rows: what says so is noise, and would make guesses look free. */
static void knots_fit(struct moge_step_cost *cost) {
    double floor_ns = 0;
    for (int i = 0; i < MOGE_COST_KNOTS; i++) {
        double line_ns = cost->ns + cost->ns_per_row * knot_rows(i);
        double w = cost->knot_weight[i];
        double ns = (w * cost->knot_ns[i] + LINE_WEIGHT * line_ns) / (w + LINE_WEIGHT);
        cost->fit_ns[i] = floor_ns = ns > floor_ns ? ns : floor_ns;
    }
}

static void line_add(struct moge_step_cost *cost, double x, double y, double w) {
    cost->sum_w += w;
    cost->sum_x += w * x;
    cost->sum_y += w * y;
    cost->sum_xx += w * x * x;
    cost->sum_xy += w * x * y;
}

/* Moves the knots on both sides towards the measurement, each by its share of it. */
static void knots_add(struct moge_step_cost *cost, int32_t n_rows, double ns) {
    double share;
    int below = knot_below(n_rows, &share);
    if (share > 1)
        share = 1;
    double error = ns - moge_step_cost_ns(cost, n_rows);
    for (int i = below; i <= below + 1; i++) {
        double w = i == below ? 1 - share : share;
        if (w <= 0)
            continue;
        double *weight = &cost->knot_weight[i];
        *weight = *weight * (1 - w / FADE_KNOT) + w;
        double target = cost->fit_ns[i] + error;
        cost->knot_ns[i] += (target - cost->knot_ns[i]) * w / *weight;
    }
}

void moge_step_cost_observe(struct moge_step_cost *cost, int32_t n_rows, double ns) {
    if (n_rows < 1 || ns <= 0)
        return;
    double x = n_rows;
    if (cost->sum_w == 0) {
        /* An imagined second measurement gives the line a slope until there is a true one. */
        double one = ns / (1 - SLOPE_PRIOR + SLOPE_PRIOR * x);
        double x2 = x < 8 ? 16 : 1;
        line_add(cost, x2, one * (1 - SLOPE_PRIOR + SLOPE_PRIOR * x2), 0.05);
    } else {
        double expected = moge_step_cost_ns(cost, n_rows);
        if (cost->sum_w > 8 && ns > OUTLIER * expected)
            ns = OUTLIER * expected;
        double keep = 1 - 1 / FADE_LINE;
        cost->sum_w *= keep;
        cost->sum_x *= keep;
        cost->sum_y *= keep;
        cost->sum_xx *= keep;
        cost->sum_xy *= keep;
    }
    line_add(cost, x, ns, 1);
    line_fit(cost);
    knots_fit(cost);
    knots_add(cost, n_rows, ns);
    knots_fit(cost);
}

double moge_step_cost_ns(const struct moge_step_cost *cost, int32_t n_rows) {
    return cost->sum_w > 0 ? interpolate(cost->fit_ns, n_rows) : 0;
}

/* Two unknowns, no intercept, none negative.  Rounds and rows are often proportional (one
 * sequence): a little weight on both being equal decides what the measurements do not. */
static void guess_fit(struct moge_guess_cost *cost) {
    double ridge = 1e-3 * (cost->sum_rounds2 + cost->sum_rows2);
    double a = cost->sum_rounds2 + ridge, b = cost->sum_rounds_rows, c = cost->sum_rows2 + ridge;
    double det = a * c - b * b;
    double rounds = (c * cost->sum_rounds_y - b * cost->sum_rows_y) / det;
    double rows = (a * cost->sum_rows_y - b * cost->sum_rounds_y) / det;
    if (rounds < 0) {
        rounds = 0;
        rows = cost->sum_rows_y / c;
    } else if (rows < 0) {
        rows = 0;
        rounds = cost->sum_rounds_y / a;
    }
    cost->ns_per_round = rounds;
    cost->ns_per_row = rows;
}

void moge_guess_cost_observe(struct moge_guess_cost *cost, int32_t n_rounds, int32_t n_rows,
                             double ns) {
    if (n_rounds < 1 || n_rows < 1 || ns < 0)
        return;
    double expected = cost->ns_per_round * n_rounds + cost->ns_per_row * n_rows;
    if (cost->sum_weight > 8 && ns > OUTLIER * expected && expected > 0)
        ns = OUTLIER * expected;
    double keep = 1 - 1 / FADE_GUESS, rounds = n_rounds, rows = n_rows;
    /* In proportion to size, so that one long catch-up does not drown a hundred short rounds. */
    double w = 1 / (rounds + rows);
    cost->sum_weight = cost->sum_weight * keep + 1;
    cost->sum_rounds2 = cost->sum_rounds2 * keep + w * rounds * rounds;
    cost->sum_rounds_rows = cost->sum_rounds_rows * keep + w * rounds * rows;
    cost->sum_rows2 = cost->sum_rows2 * keep + w * rows * rows;
    cost->sum_rounds_y = cost->sum_rounds_y * keep + w * rounds * ns;
    cost->sum_rows_y = cost->sum_rows_y * keep + w * rows * ns;
    guess_fit(cost);
}
