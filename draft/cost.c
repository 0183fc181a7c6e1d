/* SPDX-License-Identifier: Apache-2.0 */
#include "draft/cost.h"

#include <math.h>
#include <stdbool.h>

#include "moge/err.h"

#define LEVEL MOGE_COST_KNOTS /* where the level stands among what is believed */

/* Variances are of logarithms: relative.  How much the machine may get slower or faster from one
 * step to the next, all sizes alike; and how much a single size may, compared with the others. */
#define LEVEL_DRIFT (0.01 * 0.01)
#define KNOT_DRIFT  (0.05 * 0.05 / 500)
/* A knot that was never measured lies so far off the curve through its neighbours, or beyond all
 * that were; one that was drifts so far at most. */
#define INSIDE_VAR   (0.1 * 0.1)
#define OUTSIDE_VAR  (0.4 * 0.4)
#define KNOT_VAR_MAX (0.15 * 0.15)
/* How much trials at start leave open: of the common level (other programs, longer contexts), of
 * how sizes compare (other texts choose other experts), of how measurements scatter. */
#define SEED_LEVEL_VAR (0.1 * 0.1)
#define SEED_VAR       (0.07 * 0.07)
#define SEED_SPREAD    0.1
/* How far measurements lie off the curve; at first, and at least. */
#define SPREAD_BEGIN 0.2
#define SPREAD_MIN   0.02
#define FADE_SPREAD  32.0
/* A measurement further off is a disturbance (another process ran) and counts as this far off. */
#define OUTLIER_SPREADS 2.5
/* How much slower or faster the machine may be after two of them; and how much a size, compared
 * with others, after one that came with a change of size. */
#define CHANGED_VAR  (0.4 * 0.4)
#define SURPRISE_VAR (0.05 * 0.05)
/* The drafter's measurements fade to 1/e after so many. */
#define FADE_GUESS 64.0
#define OUTLIER    3.0
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

/* The knot at or below n_rows, and how far n_rows is on the way to the next.  Asked some thousand
 * times a step: found without a search. */
static int knot_below(int32_t n_rows, double *share) {
    int i = n_rows - 1;
    *share = 0;
    if (n_rows >= 8) {
        int octave = 31 - __builtin_clz((unsigned)n_rows), gap = 1 << (octave - 2);
        i = 7 + 4 * (octave - 3) + ((n_rows >> (octave - 2)) & 3);
        *share = (double)(n_rows & (gap - 1)) / gap;
    }
    if (i < 0 || i > MOGE_COST_KNOTS - 2) {
        i = i < 0 ? 0 : MOGE_COST_KNOTS - 2;
        *share = ((double)n_rows - knot_rows(i)) / (knot_rows(i + 1) - knot_rows(i));
    }
    return i;
}

static double interpolate(const double *values, int32_t n_rows) {
    double share;
    int i = knot_below(n_rows, &share);
    return values[i] + share * (values[i + 1] - values[i]);
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
        if (cost->cov[i][i] == 0)
            continue;
        known[n_known++] = i;
        pool_ns[n_pools] = exp(cost->mean[LEVEL] + cost->mean[i]);
        weight[n_pools] = 1 / cost->cov[i][i];
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

/* Whether a knot lies between known ones. */
static bool knot_is_inside(const struct moge_step_cost *cost, int i) {
    while (++i < MOGE_COST_KNOTS)
        if (cost->cov[i][i] > 0)
            return true;
    return false;
}

/* How far a measurement lies off the curve, no further than it is believed; learns how far they
 * usually do.  One that is far off is a disturbance; two in a row, to the same side, say that the
 * machine has become slower or faster.  var: of what is believed about the curve there. */
static double deviation(struct moge_step_cost *cost, double off, double *var) {
    double spread2 = cost->spread * cost->spread, most = OUTLIER_SPREADS * sqrt(*var + spread2);
    int32_t side = (off > most) - (off < -most);
    if (side != 0 && side == cost->off_side) {
        cost->cov[LEVEL][LEVEL] += CHANGED_VAR;
        *var += CHANGED_VAR;
    }
    cost->off_side = side;
    double sd = sqrt(*var + spread2);
    off = fmin(fmax(off, -OUTLIER_SPREADS * sd), OUTLIER_SPREADS * sd);
    double share = cost->spread / sd; /* of the deviation that is the measurement's */
    cost->spread += (1.25 * fabs(off) * share - cost->spread) / FADE_SPREAD;
    cost->spread = fmax(cost->spread, SPREAD_MIN);
    return off;
}

/* So many rows never take longer than several steps of fewer: a first measurement that says more is
 * disturbed, and would keep the size, and all above it, from being tried again. */
static double plausible(const struct moge_step_cost *cost, int below, int32_t n_rows, double ns) {
    while (below >= 0 && cost->cov[below][below] == 0)
        below--;
    return below < 0 ? ns : fmin(ns, cost->fit_ns[below] * n_rows / knot_rows(below));
}

/* What a step of n_rows is made of: the level, and the one or two knots that it lies between. */
struct parts {
    int at[3];
    double weight[3];
    int n;
};

static struct parts parts_of(int32_t n_rows) {
    double share;
    int below = knot_below(n_rows, &share);
    share = fmin(share, 1);
    struct parts parts = {.at = {LEVEL}, .weight = {1}, .n = 1};
    for (int i = 0; i < 2; i++) {
        double weight = i ? share : 1 - share;
        if (weight == 0)
            continue;
        parts.at[parts.n] = below + i;
        parts.weight[parts.n++] = weight;
    }
    return parts;
}

/* Covariance of what is believed at i with the step. */
static double parts_cov(const struct moge_step_cost *cost, const struct parts *parts, int i) {
    double sum = 0;
    for (int k = 0; k < parts->n; k++)
        sum += parts->weight[k] * cost->cov[i][parts->at[k]];
    return sum;
}

/* As time goes by. */
static void drift(struct moge_step_cost *cost) {
    for (int i = 0; i < MOGE_COST_KNOTS; i++)
        if (cost->cov[i][i] > 0 && cost->cov[i][i] < KNOT_VAR_MAX)
            cost->cov[i][i] += KNOT_DRIFT;
    cost->cov[LEVEL][LEVEL] += LEVEL_DRIFT;
}

/* Knots that are measured for the first time are known from now on.  True if there are any. */
static bool parts_begin(struct moge_step_cost *cost, const struct parts *parts) {
    bool any = false;
    for (int k = 1; k < parts->n; k++) {
        int i = parts->at[k];
        if (cost->cov[i][i] > 0)
            continue;
        cost->mean[i] = log(cost->fit_ns[i]) - cost->mean[LEVEL];
        cost->cov[i][i] = OUTSIDE_VAR;
        any = true;
    }
    return any;
}

/* A Kalman filter.  A step of the same size as the one before it says how fast the machine is now,
 * which other programs slow down for a moment or for minutes, and nothing about how sizes compare:
 * that is learned where one size follows another.  So the choice, which rests on how they compare,
 * does not follow every wave of the machine. */
static void knots_add(struct moge_step_cost *cost, int32_t n_rows, double ns) {
    struct parts parts = parts_of(n_rows);
    double gain[LEVEL + 1], var = 0;
    if (cost->cov[parts.at[parts.n - 1]][parts.at[parts.n - 1]] == 0)
        ns = plausible(cost, parts.at[1], n_rows, ns);
    drift(cost);
    bool first = parts_begin(cost, &parts);
    for (int k = 0; k < parts.n; k++)
        var += parts.weight[k] * parts_cov(cost, &parts, parts.at[k]);
    double off = log(ns / moge_step_cost_ns(cost, n_rows));
    if (!first)
        off = deviation(cost, off, &var);
    var += cost->spread * cost->spread;
    for (int i = 0; i <= LEVEL; i++)
        gain[i] = parts_cov(cost, &parts, i) / var;
    for (int i = 0; i <= LEVEL; i++) {
        cost->mean[i] += gain[i] * off;
        for (int j = 0; j <= LEVEL && gain[i] != 0; j++)
            cost->cov[i][j] -= gain[i] * gain[j] * var;
    }
    if (!first && cost->off_side != 0 && n_rows != cost->last_rows)
        for (int k = 1; k < parts.n; k++)
            cost->cov[parts.at[k]][parts.at[k]] += SURPRISE_VAR;
    cost->last_rows = n_rows;
}

/* How uncertain each knot is, compared with the last size. */
static void knots_compare(struct moge_step_cost *cost) {
    struct parts last = parts_of(cost->last_rows);
    last.weight[0] = 0; /* the level is common to both */
    double var = 0;
    for (int k = 1; k < last.n; k++)
        var += last.weight[k] * parts_cov(cost, &last, last.at[k]);
    for (int i = 0; i < MOGE_COST_KNOTS; i++) {
        double apart = cost->cov[i][i] + var - 2 * parts_cov(cost, &last, i);
        if (cost->cov[i][i] == 0)
            apart = knot_is_inside(cost, i) ? INSIDE_VAR : OUTSIDE_VAR;
        cost->apart[i] = sqrt(fmax(apart, 0));
    }
}

/* The first measurement of all: the other sizes follow from it. */
static void knots_begin(struct moge_step_cost *cost, int32_t n_rows, double ns) {
    cost->spread = SPREAD_BEGIN;
    for (int i = 0; i < MOGE_COST_KNOTS; i++)
        cost->fit_ns[i] = extrapolate(ns, n_rows, knot_rows(i));
}

void moge_step_cost_observe(struct moge_step_cost *cost, int32_t n_rows, double ns) {
    if (n_rows < 1 || ns <= 0)
        return;
    if (cost->n_seen == 0)
        knots_begin(cost, n_rows, ns);
    cost->n_seen += cost->n_seen < INT32_MAX;
    knots_add(cost, n_rows, ns);
    knots_fit(cost);
    knots_compare(cost);
}

void moge_step_cost_seed(struct moge_step_cost *cost, int32_t n_rows, double ns) {
    double share;
    int i = knot_below(n_rows, &share);
    MOGE_ASSERT(share == 0 && ns > 0);
    if (cost->n_seen == 0) {
        cost->spread = SEED_SPREAD;
        cost->cov[LEVEL][LEVEL] = SEED_LEVEL_VAR;
    }
    cost->n_seen++;
    cost->mean[i] = log(ns) - cost->mean[LEVEL];
    cost->cov[i][i] = SEED_VAR;
    cost->last_rows = n_rows;
    knots_fit(cost);
    knots_compare(cost);
}

double moge_step_cost_ns(const struct moge_step_cost *cost, int32_t n_rows) {
    return cost->n_seen > 0 ? interpolate(cost->fit_ns, n_rows) : 0;
}

double moge_step_cost_spread(const struct moge_step_cost *cost, int32_t n_rows) {
    double share;
    int below = knot_below(n_rows, &share);
    return n_rows == cost->last_rows ? 0 : cost->apart[share < 0.5 ? below : below + 1];
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
