/* SPDX-License-Identifier: Apache-2.0 */
#include "draft/cost.h"

#include <stdbool.h>

/* One measurement fades to 1/e after this many others. */
#define FADE_LINE  256.0
#define FADE_KNOT  16.0
#define FADE_GUESS 64.0
/* A knot that nothing is measured near fades to 1/e after this many measurements elsewhere. */
#define FADE_ELSEWHERE 200.0
/* A knot with less than this share of a measurement in memory is unknown. */
#define KNOWN_WEIGHT 0.05
/* A measurement further off than this factor is a disturbance (another process ran). */
#define OUTLIER 3.0
/* Beyond everything measured, a row costs this share of a step of one row. */
#define SLOPE_PRIOR 0.35
/* A row of drafting, as a share of a round, where measurements cannot tell them apart. */
#define ROW_SHARE 0.1

/* 1 2 .. 8 | 10 12 14 16 | 20 24 28 32 | ...  Dense where steps are short and a single row matters:
 * with wider gaps, always meeting the same row count between two knots would say nothing about the
 * slope there. */
static double knot_rows(int i) {
    return i < 8 ? i + 1 : (double)(1 << (i / 4)) * (2.5 + 0.5 * (i % 4));
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

/* What a step of `to` rows takes, by the one of `from` rows and nothing else. */
static double extrapolate(double ns, double from, double to) {
    return ns * (1 - SLOPE_PRIOR + SLOPE_PRIOR * to) / (1 - SLOPE_PRIOR + SLOPE_PRIOR * from);
}

/* Steps never get faster by more rows: what says so is noise, and would make guesses look free.
 * Known knots that contradict each other are averaged (pool adjacent violators). */
static int knots_pool(const struct moge_step_cost *cost, int *known, double *ns) {
    double weight[MOGE_COST_KNOTS];
    int len[MOGE_COST_KNOTS], n_known = 0, n_pools = 0;
    double pool_ns[MOGE_COST_KNOTS];
    for (int i = 0; i < MOGE_COST_KNOTS; i++) {
        if (cost->knot_weight[i] < KNOWN_WEIGHT)
            continue;
        known[n_known++] = i;
        pool_ns[n_pools] = cost->knot_ns[i];
        weight[n_pools] = cost->knot_weight[i];
        len[n_pools++] = 1;
        while (n_pools > 1 && pool_ns[n_pools - 2] > pool_ns[n_pools - 1]) {
            int to = n_pools - 2, from = n_pools - 1;
            double sum = weight[to] + weight[from];
            pool_ns[to] = (weight[to] * pool_ns[to] + weight[from] * pool_ns[from]) / sum;
            weight[to] = sum;
            len[to] += len[from];
            n_pools--;
        }
    }
    for (int i = 0, at = 0; i < n_pools; i++)
        for (int j = 0; j < len[i]; j++)
            ns[at++] = pool_ns[i];
    return n_known;
}

/* The curve at every knot: known, between two known ones, or beyond them. */
static void knots_fit(struct moge_step_cost *cost) {
    int known[MOGE_COST_KNOTS];
    double ns[MOGE_COST_KNOTS];
    int n_known = knots_pool(cost, known, ns), above = 0;
    for (int i = 0; i < MOGE_COST_KNOTS && n_known > 0; i++) {
        double rows = knot_rows(i);
        while (above < n_known && known[above] < i)
            above++;
        int last = n_known - 1;
        if (above == 0) {
            cost->fit_ns[i] = extrapolate(ns[0], knot_rows(known[0]), rows);
        } else if (above <= last) {
            double from = knot_rows(known[above - 1]), to = knot_rows(known[above]);
            double share = (rows - from) / (to - from);
            cost->fit_ns[i] = ns[above - 1] + share * (ns[above] - ns[above - 1]);
        } else {
            double from = knot_rows(known[last]);
            cost->fit_ns[i] = extrapolate(ns[last], from, rows);
            if (last > 0) { /* the slope does not rise from here on */
                double slope = (ns[last] - ns[last - 1]) / (from - knot_rows(known[last - 1]));
                double ns_by_slope = ns[last] + slope * (rows - from);
                cost->fit_ns[i] = ns_by_slope < cost->fit_ns[i] ? ns_by_slope : cost->fit_ns[i];
            }
        }
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
    for (int i = 0; i < MOGE_COST_KNOTS; i++)
        cost->knot_weight[i] *= 1 - 1 / FADE_ELSEWHERE;
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
    /* Measured in proportion to size: a few long prompts must not decide what one row costs. */
    if (cost->n_seen == 0) {
        /* An imagined second measurement gives the line a slope until there is a true one. */
        double one = ns / (1 - SLOPE_PRIOR + SLOPE_PRIOR * x);
        double x2 = x < 8 ? 16 : 1;
        line_add(cost, x2, one * (1 - SLOPE_PRIOR + SLOPE_PRIOR * x2), 0.05 / x2);
    } else {
        double expected = moge_step_cost_ns(cost, n_rows);
        if (cost->n_seen > 8 && ns > OUTLIER * expected)
            ns = OUTLIER * expected;
        double keep = 1 - 1 / FADE_LINE;
        cost->sum_w *= keep;
        cost->sum_x *= keep;
        cost->sum_y *= keep;
        cost->sum_xx *= keep;
        cost->sum_xy *= keep;
    }
    line_add(cost, x, ns, 1 / x);
    cost->n_seen += cost->n_seen < INT32_MAX;
    line_fit(cost);
    knots_fit(cost);
    knots_add(cost, n_rows, ns);
    knots_fit(cost);
}

double moge_step_cost_ns(const struct moge_step_cost *cost, int32_t n_rows) {
    return cost->n_seen > 0 ? interpolate(cost->fit_ns, n_rows) : 0;
}

double moge_step_cost_weight(const struct moge_step_cost *cost, int32_t n_rows) {
    return interpolate(cost->knot_weight, n_rows);
}

/* Two unknowns, no intercept, none negative.  Rounds and rows are often proportional (one sequence,
 * probes): a little weight on a row being ROW_SHARE of a round, as reading weights outweighs
 * arithmetic, decides what the measurements do not. */
static void guess_fit(struct moge_guess_cost *cost) {
    double xx = cost->sum_rounds2, xz = cost->sum_rounds_rows * ROW_SHARE;
    double zz = cost->sum_rows2 * ROW_SHARE * ROW_SHARE, zy = cost->sum_rows_y * ROW_SHARE;
    double ridge = 1e-3 * (xx + zz), xy = cost->sum_rounds_y;
    xx += ridge;
    zz += ridge;
    double det = xx * zz - xz * xz;
    double rounds = (zz * xy - xz * zy) / det, rows = (xx * zy - xz * xy) / det;
    if (rounds < 0) {
        rounds = 0;
        rows = zy / zz;
    } else if (rows < 0) {
        rows = 0;
        rounds = xy / xx;
    }
    cost->ns_per_round = rounds;
    cost->ns_per_row = rows * ROW_SHARE;
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
