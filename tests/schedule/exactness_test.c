/* SPDX-License-Identifier: Apache-2.0 */
/* The project's gate: the same request yields the same bytes (tokens, text, log-probabilities, why
 * it ended) with speculation off, of any length or auto, with any drafter, alone or in company,
 * with any prefill chunking, thread count, page famine or slow reader, greedy and sampled.
 *
 * Truth is each request run alone: no drafter, one thread, whole prompts.  Everything else must
 * equal it.  The tiny random pair of tests/golden is always run; the embedded pair when it is
 * there. MOGE_LONG=1 runs ten times as much; MOGE_SEED changes what is tried. */
#include "tests/schedule/exactness.h"

#include <unistd.h>

static struct spec specs[N_SPECS];
static struct outcome truth[N_SPECS], outcomes[N_SPECS];
static int64_t n_tokens_compared, n_offered, n_accepted, n_cached, n_scores_compared;

static struct config alone(void) {
    return (struct config){.mode = MOGE_SPEC_OFF,
                           .n_concurrent = 1,
                           .prefill_chunk = N_CONTEXT,
                           .n_threads = 1,
                           .step_rows = N_CONTEXT + MOGE_DRAFT_LEN_MAX,
                           .n_pages = 2 * moge_kv_pages_for(N_CONTEXT)};
}

/* ---- requests ---- */

static float pick_float(struct test_rng *rng, const float *values, int32_t n) {
    return values[test_below(rng, n)];
}

/* Every parameter takes part, alone and together with others; a third of the requests is greedy. */
static void spec_fill(struct spec *spec, int32_t i, const struct moge_model *model,
                      struct test_rng *rng) {
    static const float temperatures[] = {0.3f, 0.7f, 1, 1.5f}, top_ps[] = {1, 0.9f, 0.5f};
    static const float min_ps[] = {0, 0, 0.05f, 0.2f}, repetitions[] = {1, 1, 1.2f, 0.9f};
    static const float presences[] = {0, 0, 0.5f, -0.5f};
    static const int32_t top_ks[] = {0, 0, 1, 5, 40};
    int32_t n_vocab = moge_model_info(model)->n_vocab;
    memset(spec, 0, sizeof *spec);
    spec->n_prompt = 1 + test_below(rng, i % 4 == 0 ? 150 : 40);
    /* Half of the requests begin as an earlier one does. */
    const struct spec *other = &specs[i % 2 ? test_below(rng, i) : i];
    int32_t n_shared = i % 2 ? test_below(rng, other->n_prompt + 1) : 0;
    for (int32_t j = 0; j < spec->n_prompt; j++)
        spec->prompt[j] =
            j >= 6 && test_below(rng, 2) ? spec->prompt[j - 6] : 3 + test_below(rng, n_vocab - 3);
    if (n_shared > spec->n_prompt)
        spec->n_prompt = n_shared;
    memcpy(spec->prompt, other->prompt, (size_t)n_shared * sizeof *spec->prompt);
    struct moge_sample_params *sample = &spec->sample;
    *sample = moge_sample_params_default();
    sample->temperature = i % 3 == 0 ? 0 : pick_float(rng, temperatures, 4);
    sample->top_p = pick_float(rng, top_ps, 3);
    sample->min_p = pick_float(rng, min_ps, 4);
    sample->top_k = top_ks[test_below(rng, 5)];
    sample->repetition_penalty = pick_float(rng, repetitions, 4);
    sample->presence_penalty = pick_float(rng, presences, 4);
    sample->frequency_penalty = pick_float(rng, presences, 4);
    sample->seed = test_u64(rng);
    sample->n_logprobs = i % 2 ? -1 : test_below(rng, 6);
    spec->n_prompt_logprobs = i % 5 < 2 ? test_below(rng, 6) : -1;
    sample->n_bias = test_below(rng, 5);
    for (int32_t j = 0; j < sample->n_bias; j++)
        spec->bias[j] = (struct moge_logit_bias){test_below(rng, n_vocab),
                                                 j == 0 ? -INFINITY : 3 * test_float(rng)};
    spec->max_tokens = 1 + test_below(rng, i % 5 == 0 ? 120 : 50);
}

/* Adds stops that the truth runs into: a stop id, or a stop string that begins in the middle of one
 * token and ends in another. */
static void spec_add_stop(struct spec *spec, int32_t i, const struct outcome *outcome,
                          struct test_rng *rng) {
    if (outcome->n_out < 8)
        return;
    if (i % 4 == 1) {
        spec->stop_ids[0] = outcome->out[4 + test_below(rng, outcome->n_out - 4)].id;
        spec->sample.n_stop_ids = spec->stop_ids[0] >= 0;
        spec->sample.min_tokens = i % 8 == 1 ? test_below(rng, outcome->n_out) : 0;
    } else if (i % 4 == 2 && outcome->text_len > 12) {
        size_t at = outcome->text_len / 2, len = 2 + (size_t)test_below(rng, 6);
        if (at + len > outcome->text_len)
            len = outcome->text_len - at;
        memcpy(spec->stop_string, outcome->text + at, len);
        spec->stop_string_len = len;
        spec->n_stop_strings = 1;
        spec->sample.min_tokens = i % 8 == 2 ? test_below(rng, outcome->n_out / 2) : 0;
    }
    spec->include_stop = test_below(rng, 3) == 0;
}

static void check_params(const struct spec *spec, int32_t n_vocab) {
    struct moge_sample_params sample = spec->sample;
    sample.bias = spec->bias;
    sample.stop_ids = spec->stop_ids;
    struct moge_err err = {0};
    TEST_OK(moge_sample_params_check(&sample, n_vocab, &err), err);
}

/* New requests and their truth.  Returns how many of them end by a stop. */
static int32_t specs_make(const struct models *models, uint64_t seed) {
    struct test_rng rng = test_rng_init(seed);
    struct config config = alone();
    for (int32_t i = 0; i < N_SPECS; i++)
        spec_fill(&specs[i], i, models->target, &rng);
    run_all(models, specs, &config, NULL, truth);
    int32_t n_stopped = 0;
    for (int32_t i = 0; i < N_SPECS; i++) {
        spec_add_stop(&specs[i], i, &truth[i], &rng);
        check_params(&specs[i], moge_model_info(models->target)->n_vocab);
    }
    run_all(models, specs, &config, NULL, truth);
    for (int32_t i = 0; i < N_SPECS; i++)
        n_stopped += truth[i].finish == MOGE_FINISH_STOP;
    return n_stopped;
}

/* ---- comparison ---- */

static bool logprobs_equal(const struct moge_logprobs *a, const struct moge_logprobs *b) {
    if (a->n_top != b->n_top || a->n_top < 0)
        return a->n_top == b->n_top;
    bool equal = memcmp(&a->chosen, &b->chosen, sizeof a->chosen) == 0 && a->rank == b->rank;
    for (int32_t j = 0; j < a->n_top; j++)
        equal = equal && memcmp(&a->top[j], &b->top[j], sizeof a->top[j]) == 0;
    return equal;
}

static bool token_equal(const struct moge_token_out *a, const struct moge_token_out *b) {
    return a->id == b->id && a->text_len == b->text_len && a->hidden == b->hidden &&
           logprobs_equal(&a->logprobs, &b->logprobs);
}

static bool scores_equal(const struct outcome *expected, const struct outcome *got) {
    bool cancelled = got->finish == MOGE_FINISH_CANCELLED;
    if (cancelled ? got->n_scored > expected->n_scored : got->n_scored != expected->n_scored)
        return false;
    for (int32_t j = 0; j < got->n_scored; j++)
        if (!token_equal(&expected->scored[j], &got->scored[j]))
            return false;
    return true;
}

/* The first token that differs, n_out when only the end does, -1 when nothing does.  A cancelled
 * request must have yielded a beginning of the truth. */
static int32_t first_difference(const struct outcome *expected, const struct outcome *got) {
    bool cancelled = got->finish == MOGE_FINISH_CANCELLED;
    int32_t n = got->n_out;
    if (!scores_equal(expected, got))
        return n;
    size_t text_len = got->text_len;
    if (cancelled && n > 0 && got->out[n - 1].id < 0)
        /* Text that was held back: the truth may have turned it into a stop or a character. */
        text_len -= (size_t)got->out[--n].text_len;
    for (int32_t j = 0; j < n; j++)
        if (j >= expected->n_out || !token_equal(&expected->out[j], &got->out[j]))
            return j;
    if (cancelled)
        return text_len <= expected->text_len && memcmp(expected->text, got->text, text_len) == 0
                   ? -1
                   : n;
    bool equal = expected->n_out == n && expected->text_len == text_len &&
                 memcmp(expected->text, got->text, text_len) == 0 &&
                 expected->finish == got->finish && expected->stop_id == got->stop_id &&
                 expected->stop_string == got->stop_string;
    return equal ? -1 : n;
}

static void describe(const struct models *models, const struct config *config, int32_t i,
                     int32_t at) {
    print_message("%s: drafter %s, mode %d, length %d, %d at once, chunk %d, %d threads, %d rows, "
                  "%d pages, seed %llu: request %d differs at token %d (prompt %d, expected id %d, "
                  "got %d, finish %d/%d)\n",
                  models->name, drafter_names[config->drafter], (int)config->mode, config->len,
                  config->n_concurrent, config->prefill_chunk, config->n_threads, config->step_rows,
                  config->n_pages, (unsigned long long)config->seed, i, at, specs[i].n_prompt,
                  at < truth[i].n_out ? truth[i].out[at].id : -1,
                  at < outcomes[i].n_out ? outcomes[i].out[at].id : -1, truth[i].finish,
                  outcomes[i].finish);
}

/* Runs all requests one way; returns how many of them differ from the truth. */
static int32_t differences(const struct models *models, const struct config *config, bool tell) {
    run_all(models, specs, config, truth, outcomes);
    int32_t n = 0;
    for (int32_t i = 0; i < n_specs_of(config); i++) {
        int32_t at = first_difference(&truth[i], &outcomes[i]);
        n_tokens_compared += outcomes[i].n_out;
        n_scores_compared += outcomes[i].n_scored;
        n_offered += outcomes[i].n_offered;
        n_accepted += outcomes[i].n_accepted;
        n_cached += outcomes[i].n_cached;
        if (at >= 0 && tell && n < 5)
            describe(models, config, i, at);
        n += at >= 0;
        /* A target that guesses for itself is always right, or its draft state is not what the
         * accepted tokens make it.  (Guesses behind a stop do not count as accepted.) */
        if (config->drafter == DRAFTER_TARGET && outcomes[i].finish == MOGE_FINISH_LENGTH &&
            mutation == MUTATION_NONE)
            assert_int_equal(outcomes[i].n_accepted, outcomes[i].n_offered);
    }
    return n;
}

/* ---- ways to run ---- */

static const struct {
    enum moge_spec_mode mode;
    int32_t len;
} lengths[] = {{MOGE_SPEC_OFF, 0},   {MOGE_SPEC_FIXED, 1}, {MOGE_SPEC_FIXED, 2},
               {MOGE_SPEC_FIXED, 4}, {MOGE_SPEC_FIXED, 8}, {MOGE_SPEC_AUTO, 0},
               {MOGE_SPEC_FIXED, 16}};
#define N_LENGTHS ((int32_t)(sizeof lengths / sizeof lengths[0]))

/* Way number n: the rest is drawn, but N_DRAFTERS and N_LENGTHS have no common divisor, so as many
 * ways as their product meet every drafter with every length. */
static struct config config_make(int32_t n, uint64_t seed) {
    static const int32_t chunks[] = {1, 7, 16, 64, N_CONTEXT}, concurrents[] = {1, 2, 3, 5, 9, 16};
    struct test_rng rng = test_rng_init(seed * 1000003 + (uint64_t)n);
    struct config config = {.drafter = (enum drafter_kind)(n % N_DRAFTERS),
                            .mode = lengths[n % N_LENGTHS].mode,
                            .len = lengths[n % N_LENGTHS].len,
                            .n_concurrent = concurrents[test_below(&rng, 6)],
                            .prefill_chunk = chunks[test_below(&rng, 5)],
                            .n_threads = 1 + test_below(&rng, 2),
                            .cancels = test_below(&rng, 4) == 0,
                            .prefix_cache = test_below(&rng, 5) > 0,
                            .warm = test_below(&rng, 3) == 0,
                            .seed = test_u64(&rng)};
    /* Whole prompts need a step that holds them; else steps may be so narrow that guesses are cut.
     */
    config.step_rows = config.prefill_chunk == N_CONTEXT
                           ? N_CONTEXT + 64
                           : N_RUNNING_MAX + 4 + test_below(&rng, 120);
    /* Just enough pages for one context: sequences preempt each other. */
    int32_t n_min = moge_kv_pages_for(N_CONTEXT);
    config.n_pages = test_below(&rng, 3) == 0 ? n_min + test_below(&rng, 6) : 8 * n_min;
    return config;
}

static uint64_t seed_of_run(void) {
    const char *seed = getenv("MOGE_SEED");
    return seed ? strtoull(seed, NULL, 10) : 1;
}

static void check_models(const struct models *models, int32_t n_ways, int64_t n_tokens_min) {
    int32_t n_rounds = test_long() ? 10 : 1;
    n_ways /= TEST_SHARE;
    n_tokens_min /= TEST_SHARE == 1 ? 1 : 2 * TEST_SHARE;
    n_tokens_compared = n_offered = n_accepted = n_cached = n_scores_compared = 0;
    for (int32_t round = 0; round < n_rounds; round++) {
        uint64_t seed = seed_of_run() + (uint64_t)round;
        assert_true(specs_make(models, seed) >= 3);
        for (int32_t n = 0; n < n_ways; n++) {
            struct config config = config_make(n + round * n_ways, seed);
            if (differences(models, &config, true) > 0)
                fail_msg("output differs: see above");
        }
    }
    print_message("%s: %lld tokens and %lld scores compared, %lld guesses offered, %lld accepted, "
                  "%lld prompt "
                  "tokens cached\n",
                  models->name, (long long)n_tokens_compared, (long long)n_scores_compared,
                  (long long)n_offered, (long long)n_accepted, (long long)n_cached);
    assert_true(n_scores_compared > n_tokens_min / 20);
    assert_true(n_tokens_compared >= n_tokens_min && n_cached > 0);
    if (TEST_SHARE > 1) /* a few ways may all have had the random drafter */
        return;
    assert_true(n_cached > n_tokens_compared / 40);
    assert_true(n_accepted > n_tokens_compared / 20 && n_offered > n_accepted);
}

/* ---- models ---- */

static void models_open(struct models *models, const char *name, const char *target,
                        const char *draft, enum moge_weights weights) {
    *models = (struct models){.name = name};
    struct moge_model_options options = {.weights = weights};
    struct moge_err err = {0};
    TEST_OK(moge_model_open(&models->target, target, &options, &err), err);
    TEST_OK(moge_model_open(&models->draft, draft, &options, &err), err);
    TEST_OK(moge_tokenizer_compare(moge_model_tokenizer(models->target),
                                   moge_model_tokenizer(models->draft), &err),
            err);
}

static void models_close(struct models *models) {
    moge_model_close(models->target);
    moge_model_close(models->draft);
}

#define TINY(file)     MOGE_SOURCE_DIR "/tests/golden/tiny-" file ".gguf"
#define EMBEDDED(file) MOGE_SOURCE_DIR "/models/moge-embedded-" file ".gguf"

static void tiny_pair_in_q8_0(void **state) {
    (void)state;
    struct models models;
    models_open(&models, "tiny q8_0", TINY("target"), TINY("draft"), MOGE_WEIGHTS_Q8_0);
    check_models(&models, N_DRAFTERS * N_LENGTHS, 20000);
    models_close(&models);
}

static void tiny_pair_with_kv_in_q8_0(void **state) {
    (void)state;
    struct models models;
    models_open(&models, "tiny q8_0, KV q8_0", TINY("target"), TINY("draft"), MOGE_WEIGHTS_Q8_0);
    models.kv_type = MOGE_KV_Q8_0;
    check_models(&models, N_DRAFTERS * N_LENGTHS / 3, 5000);
    models.draft_kv_type = MOGE_KV_Q8_0;
    check_models(&models, N_DRAFTERS * 2, 1000);
    models_close(&models);
}

static void tiny_pair_as_stored(void **state) {
    (void)state;
    struct models models;
    models_open(&models, "tiny f32", TINY("target"), TINY("draft"), MOGE_WEIGHTS_AS_STORED);
    check_models(&models, N_DRAFTERS * N_LENGTHS / 3, 5000);
    models_close(&models);
}

static void embedded_pair(void **state) {
    (void)state;
    if (access(EMBEDDED("target"), R_OK) != 0 || access(EMBEDDED("draft"), R_OK) != 0) {
        print_message("SKIP: the embedded pair is not under models/; tools/train makes it\n");
        skip();
    }
    struct models models;
    models_open(&models, "embedded q8_0", EMBEDDED("target"), EMBEDDED("draft"), MOGE_WEIGHTS_Q8_0);
    check_models(&models, N_DRAFTERS * N_LENGTHS / 3, 5000);
    models_close(&models);
}

/* ---- preemption at every step ---- */

/* A few requests together, as often as they take steps: each time somebody loses its pages before
 * another step, while its prompt is computed, between tokens, or behind accepted guesses. */
static void preemption_at_every_step(void **state) {
    (void)state;
    struct models models;
    models_open(&models, "tiny q8_0", TINY("target"), TINY("draft"), MOGE_WEIGHTS_Q8_0);
    assert_true(specs_make(&models, 5) >= 3);
    static const enum drafter_kind drafters[] = {DRAFTER_NONE, DRAFTER_MODEL, DRAFTER_ORACLE,
                                                 DRAFTER_BOTH};
    int32_t n_runs = 0;
    n_preempted_here = 0;
    for (int32_t d = 0; d < 4; d++) {
        struct config config = alone();
        config.drafter = drafters[d];
        config.mode = d == 0 ? MOGE_SPEC_OFF : MOGE_SPEC_FIXED;
        config.len = 4;
        config.n_concurrent = 3;
        config.prefill_chunk = 16;
        config.n_pages = 8 * moge_kv_pages_for(N_CONTEXT);
        config.n_specs = 6;
        config.seed = 3;
        do {
            config.preempt_at += TEST_SHARE;
            if (differences(&models, &config, true) > 0)
                fail_msg("output differs after a preemption before step %d", config.preempt_at);
            n_runs++;
        } while (config.preempt_at < n_steps_run);
    }
    print_message("%d runs, %d preemptions\n", n_runs, n_preempted_here);
    assert_true(n_preempted_here > n_runs / 2);
    models_close(&models);
}

/* ---- a prefix hit ---- */

/* Everything is asked twice in one world: the second time no prompt is computed but for its last
 * page, by any drafter. */
static void prefix_hit_against_cold(void **state) {
    (void)state;
    struct models models;
    models_open(&models, "tiny q8_0", TINY("target"), TINY("draft"), MOGE_WEIGHTS_Q8_0);
    assert_true(specs_make(&models, 9) >= 3);
    for (int32_t drafter = 0; drafter < N_DRAFTERS; drafter++) {
        struct config config = alone();
        config.drafter = (enum drafter_kind)drafter;
        config.mode = MOGE_SPEC_FIXED;
        config.len = 3;
        config.n_concurrent = 4;
        config.n_threads = 2;
        config.prefill_chunk = 24;
        config.n_pages = N_SPECS * moge_kv_pages_for(N_CONTEXT);
        config.prefix_cache = config.warm = true;
        config.seed = 4;
        if (differences(&models, &config, true) > 0)
            fail_msg("output differs after a prefix hit");
        for (int32_t i = 0; i < N_SPECS; i++)
            assert_int_equal(outcomes[i].n_cached,
                             specs[i].n_prompt_logprobs >= 0
                                 ? 0
                                 : (specs[i].n_prompt - 1) / MOGE_PAGE_TOKENS * MOGE_PAGE_TOKENS);
    }
    models_close(&models);
}

/* ---- samples of one prompt ---- */

/* Each of n samples is what a request of its own yields with its seed; alone that is the truth. */
static void samples_are_requests_of_their_own(void **state) {
    (void)state;
    struct models models;
    models_open(&models, "tiny q8_0", TINY("target"), TINY("draft"), MOGE_WEIGHTS_Q8_0);
    specs_make(&models, 21);
    for (int32_t i = 0; i < N_SPECS; i++) {
        const struct spec *first = &specs[i - i % SAMPLES];
        if (i % SAMPLES == 0)
            continue;
        specs[i] = *first;
        specs[i].sample.seed = moge_sample_seed(first->sample.seed, i % SAMPLES);
        specs[i].n_prompt_logprobs = -1;
    }
    struct config config = alone();
    run_all(&models, specs, &config, NULL, truth);
    for (int32_t n = 0; n < N_DRAFTERS * (TEST_SHARE > 1 ? 1 : 6); n++) {
        config = config_make(n, 33);
        config.grouped = true;
        if (differences(&models, &config, true) > 0)
            fail_msg("a sample differs from a request of its own");
    }
    /* Somebody loses its pages before another step each time. */
    config = alone();
    config.grouped = true;
    config.n_concurrent = 5;
    config.n_pages = 8 * moge_kv_pages_for(N_CONTEXT);
    config.prefill_chunk = 16;
    config.n_specs = 2 * SAMPLES;
    config.seed = 3;
    do {
        config.preempt_at += TEST_SHARE;
        if (differences(&models, &config, true) > 0)
            fail_msg("a sample differs after a preemption before step %d", config.preempt_at);
    } while (config.preempt_at < n_steps_run);
    models_close(&models);
}

/* ---- the suite can fail ---- */

static void a_wrong_bit_or_pick_is_noticed(void **state) {
    (void)state;
    struct models models;
    models_open(&models, "tiny q8_0", TINY("target"), TINY("draft"), MOGE_WEIGHTS_Q8_0);
    specs_make(&models, 77);
    struct config config = alone();
    config.drafter = DRAFTER_ORACLE;
    config.mode = MOGE_SPEC_FIXED;
    config.len = 4;
    config.n_concurrent = 3;
    const enum mutation mutations[] = {MUTATION_LOGITS, MUTATION_HISTORY};
    assert_int_equal(differences(&models, &config, true), 0);
    for (int i = 0; i < 2; i++) {
        n_mutated = 0;
        mutation = mutations[i];
        int32_t n = differences(&models, &config, false);
        mutation = MUTATION_NONE;
        assert_true(n_mutated > 0 && n > 0);
    }
    models_close(&models);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(tiny_pair_in_q8_0),
                                       cmocka_unit_test(tiny_pair_with_kv_in_q8_0),
                                       cmocka_unit_test(tiny_pair_as_stored),
                                       cmocka_unit_test(embedded_pair),
                                       cmocka_unit_test(preemption_at_every_step),
                                       cmocka_unit_test(prefix_hit_against_cold),
                                       cmocka_unit_test(samples_are_requests_of_their_own),
                                       cmocka_unit_test(a_wrong_bit_or_pick_is_noticed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
