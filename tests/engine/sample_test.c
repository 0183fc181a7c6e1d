/* SPDX-License-Identifier: Apache-2.0 */
/* The sampler against naive double-precision definitions: frequencies, keep sets, penalties,
 * log-probabilities; and that a pick is a pure function of what it is given. */
#include "tests/test.h"
#include "engine/sample.c"

#define N_SMALL 40

static struct moge_sampler *sampler_of(int32_t n_vocab) {
    struct moge_sampler *sampler = NULL;
    struct moge_err err;
    TEST_OK(moge_sampler_new(&sampler, n_vocab, &err), err);
    return sampler;
}

static void fill(float *logits, int32_t n, float spread, struct test_rng *rng) {
    for (int32_t i = 0; i < n; i++)
        logits[i] = spread * (test_float(rng) + test_float(rng) + test_float(rng));
}

/* ---- the definition, naively ---- */

struct naive {
    double p[N_SMALL]; /* probability of being picked */
    int32_t order[N_SMALL];
    int32_t n_kept;
};

static const float *naive_logits;

static int naive_order(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    if (naive_logits[x] != naive_logits[y])
        return naive_logits[x] > naive_logits[y] ? -1 : 1;
    return x - y;
}

static struct naive naive_of(const float *logits, const struct moge_sample_params *params) {
    struct naive naive = {.n_kept = N_SMALL};
    double mass = 0, sum = 0, kept = 0;
    naive_logits = logits;
    for (int32_t i = 0; i < N_SMALL; i++)
        naive.order[i] = i;
    qsort(naive.order, N_SMALL, sizeof naive.order[0], naive_order);
    double best = (double)logits[naive.order[0]], t = (double)params->temperature;
    double w[N_SMALL]; /* by rank */
    for (int32_t i = 0; i < N_SMALL; i++)
        w[i] = exp(((double)logits[naive.order[i]] - best) / t);
    if (params->top_k > 0 && params->top_k < naive.n_kept)
        naive.n_kept = params->top_k;
    for (int32_t i = 0; i < naive.n_kept; i++)
        mass += w[i];
    for (int32_t i = 0; i < naive.n_kept; i++) {
        sum += w[i];
        if (params->top_p < 1 && sum >= (double)params->top_p * mass)
            naive.n_kept = i + 1;
    }
    while (w[naive.n_kept - 1] < (double)params->min_p)
        naive.n_kept--;
    for (int32_t i = 0; i < naive.n_kept; i++)
        kept += w[i];
    for (int32_t i = 0; i < naive.n_kept; i++)
        naive.p[naive.order[i]] = w[i] / kept;
    return naive;
}

/* ---- frequencies ---- */

/* Chi-square of n picks at as many positions; classes expected fewer than 5 times are one. */
static double chi_square(const int32_t *counts, const struct naive *naive, int32_t n, int *dof) {
    double chi = 0, rare_expected = 0, rare_count = 0;
    *dof = -1;
    for (int32_t i = 0; i < N_SMALL; i++) {
        double expected = naive->p[i] * n;
        if (expected == 0 && counts[i] != 0)
            fail_msg("token %d was picked %d times and is not in the keep set", i, counts[i]);
        if (expected < 5) {
            rare_expected += expected;
            rare_count += counts[i];
            continue;
        }
        chi += (counts[i] - expected) * (counts[i] - expected) / expected;
        ++*dof;
    }
    if (rare_expected >= 5) {
        chi += (rare_count - rare_expected) * (rare_count - rare_expected) / rare_expected;
        ++*dof;
    }
    return chi;
}

/* The 1 - 1e-6 quantile of chi-square (Wilson and Hilferty's approximation). */
static double chi_limit(int dof) {
    double c = 2.0 / (9.0 * dof);
    return dof * pow(1 - c + 4.753 * sqrt(c), 3);
}

static void frequencies_match_softmax(void **state) {
    (void)state;
    static const struct {
        float temperature, top_p, min_p;
        int32_t top_k;
    } settings[] = {{1, 1, 0, 0},        {0.7f, 1, 0, 0},        {2.5f, 1, 0, 0},
                    {1, 1, 0, 7},        {1, 0.8f, 0, 0},        {1, 1, 0.1f, 0},
                    {1.3f, 0.9f, 0, 12}, {0.8f, 1, 0.05f, 20},   {1, 0.95f, 0.02f, 0},
                    {2, 0.7f, 0.2f, 30}, {1, 0.01f, 0, 0},       {1, 1, 0, 1},
                    {1, 1, 0.999f, 0},   {1, 0.999f, 0.001f, 39}};
    enum { N = 40000 };
    struct moge_sampler *sampler = sampler_of(N_SMALL);
    struct test_rng rng = test_rng_init(5);
    for (size_t s = 0; s < sizeof settings / sizeof settings[0]; s++) {
        float logits[N_SMALL];
        int32_t counts[N_SMALL] = {0};
        struct moge_sample_params params = moge_sample_params_default();
        fill(logits, N_SMALL, 2, &rng);
        params.temperature = settings[s].temperature;
        params.top_p = settings[s].top_p;
        params.min_p = settings[s].min_p;
        params.top_k = settings[s].top_k;
        params.seed = 1000 + s;
        for (int32_t pos = 0; pos < N; pos++)
            counts[moge_sampler_pick(sampler, &params, logits, NULL, pos, pos)]++;
        struct naive naive = naive_of(logits, &params);
        int dof;
        double chi = chi_square(counts, &naive, N, &dof);
        if (dof > 0 && chi > chi_limit(dof))
            fail_msg("setting %zu: chi-square %g for %d degrees of freedom", s, chi, dof);
    }
    moge_sampler_free(sampler);
}

/* The same over seeds at one position: a client that asks once with each seed. */
static void seeds_are_independent(void **state) {
    (void)state;
    enum { N = 40000 };
    struct moge_sampler *sampler = sampler_of(N_SMALL);
    struct test_rng rng = test_rng_init(6);
    float logits[N_SMALL];
    int32_t counts[N_SMALL] = {0}, pairs[4] = {0};
    fill(logits, N_SMALL, 1, &rng);
    struct moge_sample_params params = moge_sample_params_default();
    struct naive naive = naive_of(logits, &params);
    int32_t likely = naive.order[0];
    for (int32_t i = 0; i < N; i++) {
        params.seed = (uint64_t)i;
        int32_t first = moge_sampler_pick(sampler, &params, logits, NULL, 9, 9);
        int32_t second = moge_sampler_pick(sampler, &params, logits, NULL, 10, 10);
        counts[first]++;
        pairs[2 * (first == likely) + (second == likely)]++;
    }
    int dof;
    double chi = chi_square(counts, &naive, N, &dof);
    assert_true(chi < chi_limit(dof));
    double p = naive.p[likely],
           both = p * p * N; /* neighbouring positions do not know each other */
    assert_true(fabs(pairs[3] - both) < 5 * sqrt(both));
    moge_sampler_free(sampler);
}

/* ---- keep sets, exactly, in vocabularies of real size ---- */

static void keep_sets_of_large_vocabularies(void **state) {
    (void)state;
    enum { N = 32000 };
    struct moge_sampler *sampler = sampler_of(N);
    struct test_rng rng = test_rng_init(7);
    static float logits[N];
    for (int round = 0; round < 30; round++) {
        for (int32_t i = 0; i < N; i++) /* coarse values, so that ties are everywhere */
            logits[i] = (float)test_below(&rng, 50) / (round % 2 ? 4 : 40);
        struct moge_sample_params params = moge_sample_params_default();
        params.seed = (uint64_t)round;
        params.top_k = 1 + test_below(&rng, round % 3 == 0 ? N : 300);
        params.top_p = round % 5 == 0 ? 0.9f : 1;
        int32_t best = sampler->kernels->argmax(logits, N);
        int32_t picked = pick_from_kept(sampler, &params, logits, best, 5);
        /* Each kept candidate is better than each that is not, ties going to the lower id. */
        static bool is_kept[N];
        memset(is_kept, 0, sizeof is_kept);
        int32_t n_kept = 0, worst = best;
        for (int32_t i = 0; i < params.top_k; i++) {
            int32_t id = sampler->kept[i].id;
            assert_false(is_kept[id]);
            is_kept[id] = true;
            n_kept++;
            if (logits[id] < logits[worst] || (logits[id] == logits[worst] && id > worst))
                worst = id;
        }
        assert_true(is_kept[picked]);
        for (int32_t id = 0; id < N; id++)
            if (!is_kept[id] &&
                (logits[id] > logits[worst] || (logits[id] == logits[worst] && id < worst)))
                fail_msg("round %d: token %d is better than %d, which was kept", round, id, worst);
        assert_int_equal(n_kept, params.top_k);
    }
    moge_sampler_free(sampler);
}

static void top_p_is_the_shortest_beginning(void **state) {
    (void)state;
    enum { N = 5000 };
    struct moge_sampler *sampler = sampler_of(N);
    struct test_rng rng = test_rng_init(8);
    static float logits[N];
    for (int round = 0; round < 40; round++) {
        fill(logits, N, round % 4 == 0 ? 0.0f : 0.2f * (float)round, &rng);
        float top_p = round % 7 == 0 ? 0.9999f : 0.02f + 0.024f * (float)round;
        int32_t best = sampler->kernels->argmax(logits, N);
        int32_t n_all = gather(sampler, logits, 1);
        assert_int_equal(n_all, N);
        int32_t n = cut_top_p(sampler, n_all, top_p, logits[best]);
        double mass = 0, kept = 0;
        struct candidate worst = sampler->kept[0];
        for (int32_t i = 0; i < N; i++)
            mass += exp((double)logits[i] - (double)logits[best]);
        for (int32_t i = 0; i < n; i++) {
            if (better(&worst, &sampler->kept[i]))
                worst = sampler->kept[i];
            kept += exp((double)sampler->kept[i].logit - (double)logits[best]);
        }
        double of_worst = exp((double)worst.logit - (double)logits[best]);
        for (int32_t i = n; i < N; i++)
            assert_true(better(&worst, &sampler->kept[i]));
        assert_true(kept / mass >= (double)top_p - 1e-6);
        assert_true((kept - of_worst) / mass < (double)top_p + 1e-6);
    }
    moge_sampler_free(sampler);
}

static void sort_and_select_agree_with_the_definition(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(9);
    for (int round = 0; round < 300; round++) {
        struct candidate a[200], b[200];
        int32_t n = 1 + test_below(&rng, 200), k = 1 + test_below(&rng, n);
        for (int32_t i = 0; i < n; i++)
            a[i] = b[i] = (struct candidate){(float)test_below(&rng, 1 + round % 20), i};
        sort_best(a, n);
        for (int32_t i = 1; i < n; i++)
            assert_true(better(&a[i - 1], &a[i]));
        select_best(b, n, k);
        sort_best(b, k);
        assert_memory_equal(a, b, (size_t)k * sizeof a[0]);
    }
}

/* ---- greedy ---- */

static void greedy_takes_the_lowest_of_the_best(void **state) {
    (void)state;
    struct moge_sampler *sampler = sampler_of(N_SMALL);
    struct moge_sample_params params = moge_sample_params_default();
    params.temperature = 0;
    float logits[N_SMALL] = {0};
    assert_int_equal(moge_sampler_pick(sampler, &params, logits, NULL, 3, 3), 0);
    logits[39] = logits[17] = logits[23] = 2;
    assert_int_equal(moge_sampler_pick(sampler, &params, logits, NULL, 3, 3), 17);
    params.temperature = MOGE_TEMPERATURE_MIN / 2; /* counts as 0 */
    params.seed = 99;
    for (int32_t pos = 0; pos < 50; pos++)
        assert_int_equal(moge_sampler_pick(sampler, &params, logits, NULL, pos, pos), 17);
    moge_sampler_free(sampler);
}

static void tiny_temperatures_are_greedy(void **state) {
    (void)state;
    struct moge_sampler *sampler = sampler_of(N_SMALL);
    struct moge_sample_params params = moge_sample_params_default();
    struct test_rng rng = test_rng_init(10);
    float logits[N_SMALL];
    params.temperature = MOGE_TEMPERATURE_MIN;
    for (int round = 0; round < 200; round++) {
        fill(logits, N_SMALL, round % 2 ? 1 : 3e37f, &rng); /* the quotient overflows */
        params.top_k = round % 3 ? 0 : 5;
        params.min_p = round % 5 ? 0 : 0.5f;
        int32_t best = sampler->kernels->argmax(logits, N_SMALL);
        assert_int_equal(moge_sampler_pick(sampler, &params, logits, NULL, round, round), best);
    }
    moge_sampler_free(sampler);
}

/* ---- penalties, bias, min_tokens ---- */

static void penalties_match_the_definition(void **state) {
    (void)state;
    struct moge_sampler *sampler = sampler_of(N_SMALL);
    struct test_rng rng = test_rng_init(11);
    for (int round = 0; round < 2000; round++) {
        float logits[N_SMALL], expected[N_SMALL];
        int32_t tokens[60], n_prompt = test_below(&rng, 30), n = n_prompt + test_below(&rng, 30);
        struct moge_sample_params params = moge_sample_params_default();
        fill(logits, N_SMALL, 2, &rng);
        for (int32_t i = 0; i < n; i++)
            tokens[i] = test_below(&rng, round % 2 ? N_SMALL : 6);
        params.temperature = 0;
        params.repetition_penalty = round % 3 ? 1 : 0.5f + (float)test_below(&rng, 20) / 10;
        params.presence_penalty = round % 4 ? 0 : 2 * test_float(&rng);
        params.frequency_penalty = round % 5 ? 0 : 2 * test_float(&rng);
        for (int32_t id = 0; id < N_SMALL; id++) {
            int32_t in_all = 0, in_output = 0;
            for (int32_t i = 0; i < n; i++) {
                in_all += tokens[i] == id;
                in_output += i >= n_prompt && tokens[i] == id;
            }
            double x = (double)logits[id], r = (double)params.repetition_penalty;
            if (in_all > 0)
                x = x > 0 ? x / r : x * r;
            x -= (double)params.frequency_penalty * in_output;
            x -= (double)params.presence_penalty * (in_output > 0);
            expected[id] = (float)x;
        }
        const float *row = adjust(sampler, &params, logits, tokens, n_prompt, n);
        for (int32_t id = 0; id < N_SMALL; id++)
            if (fabsf(row[id] - expected[id]) > 1e-5f)
                fail_msg("round %d: token %d has %g, not %g", round, id, (double)row[id],
                         (double)expected[id]);
        for (int32_t id = 0; id < N_SMALL; id++) { /* nothing stays for the next request */
            assert_int_equal(sampler->counts[id], 0);
            assert_int_equal(sampler->seen[id], 0);
        }
    }
    moge_sampler_free(sampler);
}

static void bias_steers_and_bans(void **state) {
    (void)state;
    struct moge_sampler *sampler = sampler_of(N_SMALL);
    struct test_rng rng = test_rng_init(12);
    float logits[N_SMALL];
    fill(logits, N_SMALL, 1, &rng);
    struct moge_logit_bias bias[N_SMALL];
    struct moge_sample_params params = moge_sample_params_default();
    for (int32_t i = 0; i < N_SMALL; i++)
        bias[i] = (struct moge_logit_bias){i, i == 7 || i == 30 ? 0.0f : -INFINITY};
    params.bias = bias;
    params.n_bias = N_SMALL;
    int32_t n_seven = 0;
    enum { N = 20000 };
    for (int32_t pos = 0; pos < N; pos++) {
        params.top_k = pos % 2 ? 5 : 0; /* more than there are left */
        int32_t id = moge_sampler_pick(sampler, &params, logits, NULL, pos, pos);
        assert_true(id == 7 || id == 30);
        n_seven += id == 7;
    }
    double p = 1 / (1 + exp((double)logits[30] - (double)logits[7]));
    assert_true(fabs(n_seven - p * N) < 5 * sqrt(N * p * (1 - p)));
    bias[0] = (struct moge_logit_bias){3, 50};
    params.n_bias = 1;
    assert_int_equal(moge_sampler_pick(sampler, &params, logits, NULL, 1, 1), 3);
    moge_sampler_free(sampler);
}

static void min_tokens_masks_stops(void **state) {
    (void)state;
    struct moge_sampler *sampler = sampler_of(N_SMALL);
    float logits[N_SMALL] = {[4] = 9, [5] = 8, [6] = 7};
    int32_t tokens[20] = {0}, stops[] = {4, 5};
    struct moge_sample_params params = moge_sample_params_default();
    struct moge_logit_bias favour = {4, 100}; /* the mask comes after the bias */
    params.stop_ids = stops;
    params.n_stop_ids = 2;
    params.min_tokens = 3;
    params.bias = &favour;
    for (int greedy = 0; greedy < 2; greedy++)
        for (params.n_bias = 0; params.n_bias < 2; params.n_bias++)
            for (int32_t n = 10; n < 16; n++) {
                params.temperature = greedy ? 0 : 0.01f;
                int32_t expected = n - 10 < 3 ? 6 : 4;
                assert_int_equal(moge_sampler_pick(sampler, &params, logits, tokens, 10, n),
                                 expected);
            }
    moge_sampler_free(sampler);
}

/* ---- rows that should not be ---- */

static void hostile_rows_give_a_token(void **state) {
    (void)state;
    static const float odd[] = {NAN, INFINITY, -INFINITY, FLT_MAX, -FLT_MAX, 0, 1, 1e30f};
    struct moge_sampler *sampler = sampler_of(N_SMALL);
    struct test_rng rng = test_rng_init(13);
    for (int round = 0; round < 20000; round++) {
        float logits[N_SMALL], before[N_SMALL];
        int32_t tokens[8];
        int n_kinds = 1 + test_below(&rng, 8), kinds[8];
        for (int i = 0; i < n_kinds; i++)
            kinds[i] = test_below(&rng, 8);
        for (int32_t i = 0; i < N_SMALL; i++)
            logits[i] = odd[kinds[test_below(&rng, n_kinds)]];
        for (int i = 0; i < 8; i++)
            tokens[i] = test_below(&rng, N_SMALL);
        memcpy(before, logits, sizeof before);
        struct moge_logit_bias bias = {test_below(&rng, N_SMALL), round % 2 ? -INFINITY : 5};
        struct moge_sample_params params = moge_sample_params_default();
        params.temperature = (float)test_below(&rng, 4) / 2;
        params.top_k = test_below(&rng, 4) * 3;
        params.top_p = test_below(&rng, 2) ? 1 : 0.6f;
        params.min_p = test_below(&rng, 2) ? 0 : 0.3f;
        params.repetition_penalty = test_below(&rng, 2) ? 1 : 1.5f;
        params.frequency_penalty = test_below(&rng, 2) ? 0 : 0.5f;
        params.bias = &bias;
        params.n_bias = test_below(&rng, 2);
        int32_t id = moge_sampler_pick(sampler, &params, logits, tokens, 4, 8);
        assert_true(id >= 0 && id <= N_SMALL - 1);
        assert_memory_equal(logits, before, sizeof before);
        struct moge_logprobs out;
        moge_sampler_logprobs(sampler, logits, id, 5, &out);
        assert_memory_equal(logits, before, sizeof before);
        assert_true(!isnan(out.chosen));
        assert_true(out.rank >= 1 && out.rank <= N_SMALL);
        for (int32_t i = 0; i < out.n_top; i++) {
            assert_true(out.top[i].id >= 0 && out.top[i].id <= N_SMALL - 1);
            assert_true(out.top[i].logprob <= 0);
        }
    }
    moge_sampler_free(sampler);
}

static void nan_is_never_picked_beside_numbers(void **state) {
    (void)state;
    struct moge_sampler *sampler = sampler_of(N_SMALL);
    struct moge_sample_params params = moge_sample_params_default();
    float logits[N_SMALL];
    for (int32_t i = 0; i < N_SMALL; i++)
        logits[i] = NAN;
    assert_int_equal(moge_sampler_pick(sampler, &params, logits, NULL, 0, 0), 0);
    for (int32_t i = 0; i < N_SMALL; i += 2)
        logits[i] = -INFINITY;
    logits[0] = NAN; /* everything is banned: the first that is not NaN */
    assert_int_equal(moge_sampler_pick(sampler, &params, logits, NULL, 0, 0), 2);
    logits[20] = -50;
    logits[22] = -51;
    for (int32_t pos = 0; pos < 300; pos++) {
        params.top_p = pos % 2 ? 1 : 0.9f;
        int32_t id = moge_sampler_pick(sampler, &params, logits, NULL, pos, pos);
        assert_true(id == 20 || id == 22);
    }
    moge_sampler_free(sampler);
}

/* ---- purity ---- */

static struct moge_sample_params random_params(struct test_rng *rng, struct moge_logit_bias *bias,
                                               const int32_t *stops) {
    struct moge_sample_params params = moge_sample_params_default();
    params.temperature = (float)test_below(rng, 5) / 3;
    params.top_k = test_below(rng, 3) * 10;
    params.top_p = test_below(rng, 2) ? 1 : 0.5f + 0.4f * test_float(rng);
    params.min_p = test_below(rng, 2) ? 0 : 0.05f;
    params.repetition_penalty = test_below(rng, 2) ? 1 : 1.3f;
    params.presence_penalty = test_below(rng, 2) ? 0 : 0.7f;
    params.frequency_penalty = test_below(rng, 2) ? 0 : -0.4f;
    params.seed = test_u64(rng);
    params.min_tokens = test_below(rng, 5);
    params.bias = bias;
    params.n_bias = test_below(rng, 3);
    params.stop_ids = stops;
    params.n_stop_ids = 1;
    return params;
}

/* A sampler that has served many others picks what a fresh one picks, and the row may lie
 * anywhere. */
static void a_pick_depends_on_its_arguments_alone(void **state) {
    (void)state;
    enum { N = 777 };
    struct moge_sampler *used = sampler_of(N);
    struct test_rng rng = test_rng_init(14);
    struct moge_logit_bias bias[2] = {{5, -INFINITY}, {6, 1.5f}};
    int32_t stops[1] = {2};
    for (int round = 0; round < 400; round++) {
        float rows[2][N + 3];
        int32_t tokens[50], n_prompt = 1 + test_below(&rng, 20),
                            n = n_prompt + test_below(&rng, 30);
        fill(rows[0], N, 2, &rng);
        memcpy(rows[1] + 3, rows[0], sizeof(float[N]));
        for (int i = 0; i < 50; i++)
            tokens[i] = test_below(&rng, N);
        struct moge_sample_params params = random_params(&rng, bias, stops);
        struct moge_sampler *fresh = sampler_of(N);
        int32_t a = moge_sampler_pick(used, &params, rows[0], tokens, n_prompt, n);
        int32_t b = moge_sampler_pick(fresh, &params, rows[1] + 3, tokens, n_prompt, n);
        int32_t c = moge_sampler_pick(used, &params, rows[1] + 3, tokens, n_prompt, n);
        assert_int_equal(a, b);
        assert_int_equal(a, c);
        struct moge_logprobs out;
        moge_sampler_logprobs(used, rows[0], a, 3, &out); /* its scratch is the same memory */
        assert_int_equal(moge_sampler_pick(used, &params, rows[0], tokens, n_prompt, n), a);
        moge_sampler_free(fresh);
    }
    moge_sampler_free(used);
}

/* ---- coupling: what makes a draft's guesses coincide ---- */

static void shared_noise_couples_two_models(void **state) {
    (void)state;
    enum { N = 20000 };
    struct moge_sampler *sampler = sampler_of(N_SMALL);
    struct test_rng rng = test_rng_init(15);
    for (int round = 0; round < 8; round++) {
        float target[N_SMALL], draft[N_SMALL];
        struct moge_sample_params params = moge_sample_params_default();
        params.seed = (uint64_t)round;
        params.top_k = round % 2 ? 0 : 15;
        fill(target, N_SMALL, 2, &rng);
        fill(draft, N_SMALL, 0.2f * (float)(round + 1), &rng);
        for (int32_t i = 0; i < N_SMALL; i++)
            draft[i] += target[i];
        struct naive p = naive_of(target, &params), q = naive_of(draft, &params);
        double d = 0; /* total variation distance */
        for (int32_t i = 0; i < N_SMALL; i++)
            d += fabs(p.p[i] - q.p[i]) / 2;
        int32_t n_agree = 0;
        for (int32_t pos = 0; pos < N; pos++)
            n_agree += moge_sampler_pick(sampler, &params, target, NULL, pos, pos) ==
                       moge_sampler_pick(sampler, &params, draft, NULL, pos, pos);
        double agree = (double)n_agree / N, error = 5 * 0.5 / sqrt(N);
        if (agree < (1 - d) / (1 + d) - error || agree > 1 - d + error)
            fail_msg("distance %g: %g agree, bounds %g and %g", d, agree, (1 - d) / (1 + d), 1 - d);
    }
    moge_sampler_free(sampler);
}

/* ---- log-probabilities ---- */

static void logprobs_match_log_softmax(void **state) {
    (void)state;
    static const int32_t sizes[] = {1, 2, 19, 512, 32000, 153376};
    struct test_rng rng = test_rng_init(16);
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        int32_t n = sizes[s];
        struct moge_sampler *sampler = sampler_of(n);
        float *logits = malloc((size_t)n * sizeof *logits);
        fill(logits, n, 4, &rng);
        for (int32_t i = 0; i < n; i += 7)
            logits[i] = logits[n / 2]; /* ties */
        double sum = 0;
        for (int32_t i = 0; i < n; i++)
            sum += exp((double)logits[i]);
        for (int round = 0; round < 10; round++) {
            struct moge_logprobs out;
            int32_t token = test_below(&rng, n), rank = 1;
            for (int32_t i = 0; i < n; i++)
                rank += logits[i] > logits[token] || (logits[i] == logits[token] && i < token);
            moge_sampler_logprobs(sampler, logits, token, round * 2, &out);
            assert_true(fabs((double)out.chosen - ((double)logits[token] - log(sum))) < 5e-6);
            assert_int_equal(out.rank, rank);
            assert_int_equal(out.n_top, round * 2 < n ? round * 2 : n);
            for (int32_t i = 0; i < out.n_top; i++) {
                int32_t id = out.top[i].id;
                assert_true(fabs((double)out.top[i].logprob - ((double)logits[id] - log(sum))) <
                            5e-6);
                struct moge_logprobs itself;
                moge_sampler_logprobs(sampler, logits, id, 0, &itself);
                assert_int_equal(itself.rank, i + 1);
            }
        }
        free(logits);
        moge_sampler_free(sampler);
    }
}

static void absurd_vocabularies_are_refused(void **state) {
    (void)state;
    struct moge_sampler *sampler = NULL;
    struct moge_err err;
    assert_int_equal(moge_sampler_new(&sampler, 0, &err), MOGE_INVALID);
    assert_int_equal(moge_sampler_new(&sampler, -5, &err), MOGE_INVALID);
    assert_null(sampler);
    moge_sampler_free(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(frequencies_match_softmax),
                                       cmocka_unit_test(seeds_are_independent),
                                       cmocka_unit_test(keep_sets_of_large_vocabularies),
                                       cmocka_unit_test(top_p_is_the_shortest_beginning),
                                       cmocka_unit_test(sort_and_select_agree_with_the_definition),
                                       cmocka_unit_test(greedy_takes_the_lowest_of_the_best),
                                       cmocka_unit_test(tiny_temperatures_are_greedy),
                                       cmocka_unit_test(penalties_match_the_definition),
                                       cmocka_unit_test(bias_steers_and_bans),
                                       cmocka_unit_test(min_tokens_masks_stops),
                                       cmocka_unit_test(hostile_rows_give_a_token),
                                       cmocka_unit_test(nan_is_never_picked_beside_numbers),
                                       cmocka_unit_test(a_pick_depends_on_its_arguments_alone),
                                       cmocka_unit_test(shared_noise_couples_two_models),
                                       cmocka_unit_test(logprobs_match_log_softmax),
                                       cmocka_unit_test(absurd_vocabularies_are_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
