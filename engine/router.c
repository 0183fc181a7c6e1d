/* SPDX-License-Identifier: Apache-2.0 */
/* One router for all: score every expert, choose, weigh the chosen.
 *
 *   MoGE (Pangu Pro MoE)   softmax; the best n_used / n_groups of EVERY group; weight = score x
 * scale[e] plain top-k            the same with one group group-limited          best n_groups_kept
 * groups by max or by the sum of their two best; then top-k in them
 *
 * Selection may use score + bias; weights never do.  Ties go to the lower id.  Formulas and models:
 * Pangu Pro MoE, arXiv 2505.21411, equations 5 to 7, and the released code for router_scale. */
#include <math.h>

#include "engine/engine_state.h"

/* Index of the largest allowed score in [begin, end), the lowest on ties; -1 if none is left. */
static int32_t best_of(const float *scores, const bool *taken, int32_t begin, int32_t end) {
    int32_t best = -1;
    for (int32_t e = begin; e < end; e++)
        if (!taken[e] && (best < 0 || scores[e] > scores[best]))
            best = e;
    return best;
}

static void take_best(const float *scores, bool *taken, int32_t begin, int32_t end, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        int32_t e = best_of(scores, taken, begin, end);
        MOGE_ASSERT(e >= 0); /* NaN scores compare false and leave the first free one */
        taken[e] = true;
    }
}

static float group_score(const struct moge_router *router, const float *scores, int32_t begin,
                         int32_t end) {
    float first = -INFINITY, second = -INFINITY;
    for (int32_t e = begin; e < end; e++) {
        if (scores[e] > first) {
            second = first;
            first = scores[e];
        } else if (scores[e] > second) {
            second = scores[e];
        }
    }
    return router->group_score == MOGE_GROUP_MAX ? first : first + second;
}

/* Marks the experts of groups that are not kept as not to be had. */
static void drop_groups(const struct moge_router *router, const float *scores, bool *dropped) {
    int32_t size = router->n_experts / router->n_groups;
    bool kept[MOGE_EXPERTS_MAX] = {0};
    float group_scores[MOGE_EXPERTS_MAX];
    for (int32_t g = 0; g < router->n_groups; g++)
        group_scores[g] = group_score(router, scores, g * size, (g + 1) * size);
    take_best(group_scores, kept, 0, router->n_groups, router->n_groups_kept);
    for (int32_t e = 0; e < router->n_experts; e++)
        dropped[e] = !kept[e / size];
}

/* taken[e] for the chosen experts. */
static void choose(const struct moge_router *router, const float *scores, bool *taken) {
    int32_t size = router->n_experts / router->n_groups;
    if (router->per_group) {
        for (int32_t g = 0; g < router->n_groups; g++)
            take_best(scores, taken, g * size, (g + 1) * size, router->n_used / router->n_groups);
        return;
    }
    bool dropped[MOGE_EXPERTS_MAX] = {0}, busy[MOGE_EXPERTS_MAX];
    if (router->n_groups_kept < router->n_groups)
        drop_groups(router, scores, dropped);
    for (int32_t e = 0; e < router->n_experts; e++)
        busy[e] = dropped[e];
    take_best(scores, busy, 0, router->n_experts, router->n_used);
    for (int32_t e = 0; e < router->n_experts; e++)
        taken[e] = busy[e] && !dropped[e];
}

static void score(const struct moge_router *router, const struct moge_kernels *kernels,
                  float *logits) {
    if (router->score == MOGE_SCORE_SOFTMAX) {
        kernels->softmax(logits, router->n_experts);
        return;
    }
    for (int32_t e = 0; e < router->n_experts; e++) {
        float z;
        kernels->exp_sum(&logits[e], 0, -1, 1, &z);
        logits[e] = 1 / (1 + z);
    }
}

void moge_router_choose(const struct moge_router *router, const struct moge_kernels *kernels,
                        float *logits, const float *bias, const float *scale, int32_t *chosen,
                        float *weights) {
    bool taken[MOGE_EXPERTS_MAX] = {0};
    float biased[MOGE_EXPERTS_MAX] = {0};
    score(router, kernels, logits);
    for (int32_t e = 0; e < router->n_experts; e++)
        biased[e] = logits[e] + (bias ? bias[e] : 0);
    choose(router, biased, taken);
    int32_t n = 0;
    float sum = 0;
    for (int32_t e = 0; e < router->n_experts; e++)
        if (taken[e]) {
            chosen[n] = e;
            weights[n++] = logits[e];
            sum += logits[e];
        }
    MOGE_ASSERT(n == router->n_used);
    for (int32_t i = 0; i < n; i++) {
        if (router->renorm)
            weights[i] /= sum + 1e-20f;
        weights[i] *= router->scale * (scale ? scale[chosen[i]] : 1);
    }
}
