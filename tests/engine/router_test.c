/* SPDX-License-Identifier: Apache-2.0 */
/* The router against a naive one that follows the papers' words: it sorts, masks and divides in
 * double, knows every parameter, and shares no code with the real one. */
#include "tests/test.h"
#include "engine/router.c"

#define E_MAX 128

/* Models and their parameters; what each does is in the comment of router.c. */
static const struct {
    const char *name;
    struct moge_router router;
    bool bias, scale;
} models[] = {
    {"Pangu Pro MoE",
     {.n_experts = 64,
      .n_groups = 8,
      .n_used = 8,
      .n_groups_kept = 8,
      .per_group = true,
      .scale = 1},
     false,
     true},
    {"grouped greedy, two of every group, renormalised",
     {.n_experts = 128,
      .n_groups = 4,
      .n_used = 8,
      .n_groups_kept = 4,
      .per_group = true,
      .renorm = true,
      .scale = 1},
     false,
     false},
    {"grouped with sigmoid and bias",
     {.n_experts = 32,
      .n_groups = 8,
      .n_used = 8,
      .n_groups_kept = 8,
      .per_group = true,
      .score = MOGE_SCORE_SIGMOID,
      .renorm = true,
      .scale = 1},
     true,
     false},
    {"Pangu V2",
     {.n_experts = 80,
      .n_groups = 1,
      .n_used = 8,
      .n_groups_kept = 1,
      .score = MOGE_SCORE_SIGMOID,
      .renorm = true,
      .scale = 2.5f},
     true,
     false},
    {"DeepSeek-V3, Bailing V2",
     {.n_experts = 128,
      .n_groups = 8,
      .n_used = 8,
      .n_groups_kept = 4,
      .score = MOGE_SCORE_SIGMOID,
      .group_score = MOGE_GROUP_TOP2_SUM,
      .renorm = true,
      .scale = 2.5f},
     true,
     false},
    {"DeepSeek-V2",
     {.n_experts = 128, .n_groups = 8, .n_used = 6, .n_groups_kept = 3, .scale = 16},
     false,
     false},
    {"DeepSeek-V2-Lite",
     {.n_experts = 64, .n_groups = 1, .n_used = 6, .n_groups_kept = 1, .scale = 1},
     false,
     false},
    {"Qwen3-MoE",
     {.n_experts = 128, .n_groups = 1, .n_used = 8, .n_groups_kept = 1, .renorm = true, .scale = 1},
     false,
     false},
    {"Qwen2-MoE, OLMoE",
     {.n_experts = 60, .n_groups = 1, .n_used = 4, .n_groups_kept = 1, .scale = 1},
     false,
     false},
    {"Mixtral",
     {.n_experts = 8, .n_groups = 1, .n_used = 2, .n_groups_kept = 1, .renorm = true, .scale = 1},
     false,
     false},
    {"one expert",
     {.n_experts = 1, .n_groups = 1, .n_used = 1, .n_groups_kept = 1, .scale = 1},
     false,
     false},
};
#define N_MODELS (sizeof models / sizeof models[0])

/* ---- the naive router ---- */

static const double *order_key;

static int by_key(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    if (order_key[x] != order_key[y])
        return order_key[x] > order_key[y] ? -1 : 1;
    return x < y ? -1 : 1;
}

static int by_id(const void *a, const void *b) {
    return *(const int32_t *)a - *(const int32_t *)b;
}

/* The n ids of [begin, end) with the largest keys, best first. */
static void top(const double *key, int32_t begin, int32_t end, int32_t n, int32_t *out) {
    int32_t ids[E_MAX];
    for (int32_t e = begin; e < end; e++)
        ids[e - begin] = e;
    order_key = key;
    qsort(ids, (size_t)(end - begin), sizeof ids[0], by_key);
    memcpy(out, ids, (size_t)n * sizeof ids[0]);
}

static void naive_score(const struct moge_router *r, const float *logits, double *s) {
    double sum = 0, max = -INFINITY;
    for (int32_t e = 0; e < r->n_experts; e++)
        max = fmax(max, (double)logits[e]);
    for (int32_t e = 0; e < r->n_experts; e++)
        sum += exp((double)logits[e] - max);
    for (int32_t e = 0; e < r->n_experts; e++)
        s[e] = r->score == MOGE_SCORE_SOFTMAX ? exp((double)logits[e] - max) / sum
                                              : 1 / (1 + exp(-(double)logits[e]));
}

static void naive(const struct moge_router *r, const float *logits, const float *bias,
                  const float *scale, int32_t *chosen, double *weights) {
    double s[E_MAX], key[E_MAX], group[E_MAX], sum = 0;
    int32_t size = r->n_experts / r->n_groups, best[2], kept[E_MAX];
    naive_score(r, logits, s);
    for (int32_t e = 0; e < r->n_experts; e++)
        key[e] = s[e] + (bias ? (double)bias[e] : 0);
    if (r->per_group) {
        int32_t k = r->n_used / r->n_groups;
        for (int32_t g = 0; g < r->n_groups; g++)
            top(key, g * size, (g + 1) * size, k, chosen + (ptrdiff_t)g * k);
    } else {
        for (int32_t g = 0; g < r->n_groups; g++) {
            top(key, g * size, (g + 1) * size, size < 2 ? 1 : 2, best);
            group[g] = key[best[0]];
            if (r->group_score == MOGE_GROUP_TOP2_SUM)
                group[g] += key[best[1]];
        }
        top(group, 0, r->n_groups, r->n_groups_kept, kept);
        for (int32_t e = 0; e < r->n_experts; e++) {
            bool in = false;
            for (int32_t i = 0; i < r->n_groups_kept; i++)
                in |= kept[i] == e / size;
            key[e] = in ? key[e] : -INFINITY;
        }
        top(key, 0, r->n_experts, r->n_used, chosen);
    }
    qsort(chosen, (size_t)r->n_used, sizeof *chosen, by_id);
    for (int32_t i = 0; i < r->n_used; i++)
        sum += s[chosen[i]];
    for (int32_t i = 0; i < r->n_used; i++)
        weights[i] = s[chosen[i]] / (r->renorm ? sum : 1) * (double)r->scale *
                     (scale ? (double)scale[chosen[i]] : 1);
}

/* ---- tests ---- */

static void every_model_routes_like_the_naive_one(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(11);
    for (size_t m = 0; m < N_MODELS; m++)
        for (int round = 0; round < 300; round++) {
            const struct moge_router *r = &models[m].router;
            float logits[E_MAX], bias[E_MAX], scale[E_MAX], weights[E_MAX];
            int32_t chosen[E_MAX], want[E_MAX];
            double want_weights[E_MAX];
            for (int32_t e = 0; e < r->n_experts; e++) {
                logits[e] = 4 * test_float(&rng);
                bias[e] = 0.3f * test_float(&rng);
                scale[e] = 2 + test_float(&rng);
            }
            const float *b = models[m].bias ? bias : NULL, *s = models[m].scale ? scale : NULL;
            naive(r, logits, b, s, want, want_weights);
            moge_router_choose(r, moge_kernels(), logits, b, s, chosen, weights);
            for (int32_t i = 0; i < r->n_used; i++) {
                if (chosen[i] != want[i])
                    fail_msg("%s, round %d: choice %d is %d, not %d", models[m].name, round, i,
                             chosen[i], want[i]);
                assert_true(fabs((double)weights[i] - want_weights[i]) <
                            1e-5 * fabs(want_weights[i]) + 1e-7);
            }
        }
}

/* XTuner's vector for grouped routing: 16 experts, 8 groups, logits 10, 9, ..., -5. */
static void grouped_vector(void **state) {
    (void)state;
    const struct moge_router router = {.n_experts = 16,
                                       .n_groups = 8,
                                       .n_used = 8,
                                       .n_groups_kept = 8,
                                       .per_group = true,
                                       .scale = 1};
    float logits[16], weights[8];
    int32_t chosen[8];
    for (int e = 0; e < 16; e++)
        logits[e] = (float)(10 - e);
    moge_router_choose(&router, moge_kernels(), logits, NULL, NULL, chosen, weights);
    for (int i = 0; i < 8; i++)
        assert_int_equal(chosen[i], 2 * i);
    for (int i = 0; i < 7; i++) /* a softmax: steps of two are factors of e squared */
        assert_true(fabs((double)(weights[i] / weights[i + 1]) - exp(2)) < 1e-4);
}

static void ties_go_to_the_lower_id(void **state) {
    (void)state;
    for (size_t m = 0; m < N_MODELS; m++) {
        const struct moge_router *r = &models[m].router;
        float logits[E_MAX], weights[E_MAX];
        int32_t chosen[E_MAX];
        for (int32_t e = 0; e < r->n_experts; e++)
            logits[e] = 1;
        moge_router_choose(r, moge_kernels(), logits, NULL, NULL, chosen, weights);
        int32_t k = r->per_group ? r->n_used / r->n_groups : r->n_used;
        int32_t size = r->n_experts / r->n_groups;
        for (int32_t i = 0; i < r->n_used; i++)
            assert_int_equal(chosen[i], r->per_group ? i / k * size + i % k : i);
    }
}

/* The scale multiplies weights; it must not lead to another choice (fastllm's fused path does). */
static void scale_does_not_choose(void **state) {
    (void)state;
    const struct moge_router *r = &models[0].router;
    float logits[64] = {0}, scale[64], weights[8];
    int32_t chosen[8];
    for (int e = 0; e < 64; e++) {
        logits[e] = e % 8 == 3 ? 1 : 0;
        scale[e] = e % 8 == 5 ? 100 : 1;
    }
    moge_router_choose(r, moge_kernels(), logits, NULL, scale, chosen, weights);
    for (int i = 0; i < 8; i++)
        assert_int_equal(chosen[i], 8 * i + 3);
}

/* The bias chooses; it must not weigh. */
static void bias_does_not_weigh(void **state) {
    (void)state;
    const struct moge_router router = {.n_experts = 4,
                                       .n_groups = 1,
                                       .n_used = 1,
                                       .n_groups_kept = 1,
                                       .score = MOGE_SCORE_SIGMOID,
                                       .scale = 1};
    float logits[4] = {0, 0, 0, 3}, bias[4] = {0, 5, 0, 0}, weight;
    int32_t chosen;
    moge_router_choose(&router, moge_kernels(), logits, bias, NULL, &chosen, &weight);
    assert_int_equal(chosen, 1);
    assert_true(fabs((double)weight - 0.5) < 1e-6);
}

/* A broken model must not take the process down: NaN scores still give n_used distinct experts. */
static void numbers_that_are_none(void **state) {
    (void)state;
    static const float values[] = {NAN, INFINITY, -INFINITY, 0};
    struct test_rng rng = test_rng_init(12);
    for (size_t m = 0; m < N_MODELS; m++)
        for (int round = 0; round < 200; round++) {
            const struct moge_router *r = &models[m].router;
            float logits[E_MAX], weights[E_MAX];
            int32_t chosen[E_MAX];
            for (int32_t e = 0; e < r->n_experts; e++)
                logits[e] = round == 0 ? NAN : values[test_below(&rng, 4)];
            moge_router_choose(r, moge_kernels(), logits, NULL, NULL, chosen, weights);
            for (int32_t i = 0; i < r->n_used; i++)
                assert_true(chosen[i] < r->n_experts && chosen[i] > (i == 0 ? -1 : chosen[i - 1]));
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_model_routes_like_the_naive_one),
        cmocka_unit_test(grouped_vector),
        cmocka_unit_test(ties_go_to_the_lower_id),
        cmocka_unit_test(scale_does_not_choose),
        cmocka_unit_test(bias_does_not_weigh),
        cmocka_unit_test(numbers_that_are_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
