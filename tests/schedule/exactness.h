/* SPDX-License-Identifier: Apache-2.0 */
/* Drives the real scheduler, engine, drafters and verification in-process, without RPC: submits
 * requests, pumps steps, reads rings.  Used by the exactness suite only. */
#ifndef MOGE_TESTS_EXACTNESS_H
#define MOGE_TESTS_EXACTNESS_H

#include "tests/test.h"

#include <math.h>
#include <stdbool.h>

#include "moge/draft.h"
#include "moge/engine.h"
#include "moge/sample.h"
#include "server/schedule/sched_state.h"

/* What a run may be made to do wrong, to prove that the suite would notice. */
enum mutation {
    MUTATION_NONE,
    MUTATION_LOGITS,  /* one bit of one logit differs when rows share a batch */
    MUTATION_HISTORY, /* now and then a pick depends on how many guesses there are */
};
static enum mutation mutation;
static uint64_t n_mutated;
static int32_t n_preempted_here, n_steps_run;

static int forward_hooked(struct moge_engine *engine, struct moge_batch *batch) {
    int rc = moge_engine_forward(engine, batch);
    if (rc != 0 || mutation != MUTATION_LOGITS || moge_batch_rows(batch) == 1)
        return rc;
    for (int32_t i = 0; i < batch->n_spans; i++) {
        const struct moge_span *span = &batch->spans[i];
        if (span->n_guess == 0 || n_mutated++ % 16 != 0)
            continue;
        float *row = batch->logits + (size_t)span->logits_row * (size_t)batch->n_vocab;
        int32_t best = 0;
        for (int32_t id = 1; id < batch->n_vocab; id++)
            best = row[id] > row[best] ? id : best;
        uint32_t bits;
        memcpy(&bits, &row[best], sizeof bits);
        bits ^= 1u << 8;
        memcpy(&row[best], &bits, sizeof bits);
    }
    return 0;
}

static int32_t pick_hooked(struct moge_sampler *sampler, const struct moge_sample_params *params,
                           const float *logits, const int32_t *tokens, int32_t n_prompt,
                           int32_t n_tokens, int32_t n_guess) {
    int32_t id = moge_sampler_pick(sampler, params, logits, tokens, n_prompt, n_tokens);
    if (mutation == MUTATION_HISTORY && n_guess > 0 && n_mutated++ % 64 == 0)
        return id > 3 ? id - 1 : id + 1;
    return id;
}

/* The real files, with a hook where the mutations are. */
#define moge_engine_forward forward_hooked
#include "server/schedule/step.c"
#undef moge_engine_forward
#define moge_sampler_pick(sampler, params, logits, tokens, n_prompt, n_tokens)                     \
    pick_hooked(sampler, params, logits, tokens, n_prompt, n_tokens, span->n_guess)
#include "draft/accept.c"
#undef moge_sampler_pick

#define N_CONTEXT     176
#define OUT_MAX       160
#define N_RUNNING_MAX 16
#define N_SPECS       28
#define SAMPLES       4 /* specs of one group */
#define TEXT_MAX      8192

/* ---- requests and what they must yield ---- */

struct spec {
    int32_t n_prompt, prompt[N_CONTEXT];
    struct moge_sample_params sample;
    struct moge_logit_bias bias[4];
    int32_t stop_ids[2];
    int32_t n_stop_strings;
    char stop_string[64];
    size_t stop_string_len;
    bool include_stop;
    int32_t max_tokens, n_prompt_logprobs;
};

struct outcome {
    int32_t n_scored, n_out;
    struct moge_token_out scored[N_CONTEXT]; /* of the prompt */
    struct moge_token_out out[OUT_MAX];
    size_t text_len;
    char text[TEXT_MAX];
    int finish, stop_id, stop_string;
    int32_t n_offered, n_accepted, n_cached;
};

/* ---- one way to run them ---- */

enum drafter_kind {
    DRAFTER_NONE,
    DRAFTER_MODEL,  /* the small model */
    DRAFTER_TARGET, /* the target drafts for itself: everything is accepted */
    DRAFTER_ORACLE, /* the true continuation, spoilt now and then */
    DRAFTER_NGRAM,
    DRAFTER_RANDOM,
    DRAFTER_BOTH,         /* n-grams and the small model */
    DRAFTER_ORACLE_NGRAM, /* n-grams and the oracle: long chains of both */
    N_DRAFTERS
};
static const char *const drafter_names[] = {"none",  "model",  "target", "oracle",
                                            "ngram", "random", "both",   "oracle and ngram"};

struct config {
    enum drafter_kind drafter;
    enum moge_spec_mode mode;
    int32_t len;
    int32_t n_concurrent, prefill_chunk, n_threads, step_rows, n_pages;
    bool prefix_cache, warm; /* warm: everything has been asked once before */
    bool cancels;            /* a third of the requests is cancelled somewhere */
    int32_t n_specs;         /* the first so many only; 0: all */
    bool grouped;            /* spec 0 of each SAMPLES asks for all of them at once */
    int32_t preempt_at;      /* somebody loses its pages before that step; 0: never */
    uint64_t seed;
};

struct models {
    const char *name;
    struct moge_model *target, *draft;
    enum moge_kv_type kv_type, draft_kv_type;
};

/* ---- the oracle: knows what each request yields ---- */

struct oracle {
    const struct spec *specs;
    const struct outcome *truth; /* [N_SPECS] */
    int32_t n_vocab;
    struct test_rng rng;
};

static void oracle_guess(void *self, struct moge_span *const *spans, const int32_t *want,
                         int32_t n_spans) {
    struct oracle *oracle = self;
    for (int32_t i = 0; i < n_spans; i++) {
        struct moge_span *span = spans[i];
        const struct moge_req *req = span->owner;
        const struct outcome *truth = &oracle->truth[req->id];
        for (int32_t j = span->n_guess; j < want[i]; j++) {
            int32_t at = span->n_known - span->n_prompt + j;
            bool right =
                at < truth->n_out && truth->out[at].id >= 0 && test_below(&oracle->rng, 5) > 0;
            span->tokens[span->n_known + j] =
                right ? truth->out[at].id : test_below(&oracle->rng, oracle->n_vocab);
        }
        span->n_guess = want[i];
    }
}

static void oracle_forget(void *self, int32_t slot) {
    (void)self;
    (void)slot;
}

static const struct moge_drafter_ops oracle_ops = {
    .name = "oracle", .guess = oracle_guess, .forget = oracle_forget, .free = free};

/* ---- the world of one run ---- */

struct world {
    const struct models *models;
    const struct spec *specs;
    struct config config;
    struct test_rng rng;
    struct moge_threads *threads;
    struct moge_kv *kv;
    struct moge_reqs *reqs;
    struct moge_queue *queue;
    struct moge_sched *sched;
    struct moge_draft *draft;
    struct moge_step step;
    struct moge_span spans[N_RUNNING_MAX];
    struct moge_req *running[N_SPECS]; /* by spec */
    int32_t cancel_at[N_SPECS];        /* cancelled once that many tokens were read; -1: never */
    struct outcome *outcomes;          /* [N_SPECS] */
};

/* Time passes in jumps of changing size, so that the policy sees costs that make it guess a lot, a
 * little or not at all. */
static int64_t world_ns;
static struct test_rng world_clock;
static int64_t world_now(void) {
    int64_t scale = (world_ns >> 22) % 3 == 0 ? 200 : 4000;
    world_ns += 100 + test_below(&world_clock, (int32_t)scale);
    return world_ns;
}

static void drafter_new(struct world *world, const struct outcome *truth,
                        struct moge_draft_options *options) {
    struct moge_drafter *out = &options->drafter;
    const struct config *config = &world->config;
    struct moge_draft_lm_options lm = {.n_pages = config->n_pages,
                                       .n_slots = N_RUNNING_MAX,
                                       .n_rows_max = config->step_rows,
                                       .n_context_max = N_CONTEXT,
                                       .kv_type = config->drafter == DRAFTER_MODEL
                                                      ? world->models->draft_kv_type
                                                      : world->models->kv_type};
    int32_t n_vocab = moge_model_info(world->models->target)->n_vocab;
    struct moge_err err = {0};
    if (config->drafter == DRAFTER_NGRAM || config->drafter == DRAFTER_BOTH ||
        config->drafter == DRAFTER_ORACLE_NGRAM)
        TEST_OK(moge_draft_ngram_new(&options->lookup, N_RUNNING_MAX, N_CONTEXT, &err), err);
    if (config->drafter == DRAFTER_MODEL || config->drafter == DRAFTER_TARGET ||
        config->drafter == DRAFTER_BOTH) {
        const struct moge_model *model =
            config->drafter == DRAFTER_TARGET ? world->models->target : world->models->draft;
        TEST_OK(moge_draft_lm_new(out, model, world->threads, &lm, &err), err);
    } else if (config->drafter == DRAFTER_RANDOM) {
        TEST_OK(moge_draft_random_new(out, n_vocab, config->seed, &err), err);
    } else if (config->drafter == DRAFTER_ORACLE || config->drafter == DRAFTER_ORACLE_NGRAM) {
        struct oracle *oracle = malloc(sizeof *oracle);
        assert_non_null(oracle);
        *oracle = (struct oracle){world->specs, truth, n_vocab, test_rng_init(config->seed)};
        *out = (struct moge_drafter){&oracle_ops, oracle};
    }
}

static void world_new_parts(struct world *world) {
    const struct config *config = &world->config;
    struct moge_err err = {0};
    struct moge_kv_options kv = {config->n_pages, N_RUNNING_MAX, moge_kv_pages_for(N_CONTEXT),
                                 config->prefix_cache};
    TEST_OK(moge_kv_new(&world->kv, &kv, &err), err);
    TEST_OK(moge_reqs_new(&world->reqs, N_SPECS, N_CONTEXT, &err), err);
    struct moge_queue_options queue = {N_SPECS, N_SPECS * N_CONTEXT};
    TEST_OK(moge_queue_new(&world->queue, &queue, &err), err);
    struct moge_sched_options sched = {.kv = world->kv,
                                       .reqs = world->reqs,
                                       .draft = world->draft,
                                       .tokenizer = moge_model_tokenizer(world->models->target),
                                       .n_running_max = N_RUNNING_MAX,
                                       .step_rows_max = config->step_rows,
                                       .prefill_chunk_max = config->prefill_chunk,
                                       .n_context = N_CONTEXT};
    TEST_OK(moge_sched_new(&world->sched, &sched, &err), err);
}

static void world_init(struct world *world, const struct models *models, const struct spec *specs,
                       const struct config *config, const struct outcome *truth,
                       struct outcome *outcomes) {
    memset(world, 0, sizeof *world);
    world->models = models;
    world->specs = specs;
    world->config = *config;
    world->outcomes = outcomes;
    world->rng = test_rng_init(config->seed);
    world_clock = test_rng_init(config->seed + 1);
    struct moge_err err = {0};
    TEST_OK(moge_threads_new(&world->threads, config->n_threads, &err), err);
    struct moge_draft_options draft = {
        .n_slots = N_RUNNING_MAX, .draft_len_max = MOGE_DRAFT_LEN_MAX, .now_ns = world_now};
    drafter_new(world, truth, &draft);
    TEST_OK(moge_draft_new(&world->draft, &draft, &err), err);
    world_new_parts(world);
    struct moge_engine_options engine = {.n_pages = config->n_pages,
                                         .n_rows_max = config->step_rows,
                                         .n_logits_max = config->step_rows,
                                         .n_context_max = N_CONTEXT,
                                         .kv_type = models->kv_type};
    struct moge_step *step = &world->step;
    TEST_OK(moge_engine_new(&step->engine, models->target, world->threads, &engine, &err), err);
    int32_t n_vocab = moge_model_info(models->target)->n_vocab;
    TEST_OK(moge_accept_new(&step->accept, n_vocab, world->threads, &err), err);
    step->sched = world->sched;
    step->queue = world->queue;
    step->draft = world->draft;
    step->now_ns = world_now;
    step->batch = (struct moge_batch){.spans = world->spans,
                                      .n_spans_cap = N_RUNNING_MAX,
                                      .n_rows_cap = config->step_rows,
                                      .n_logits_cap = config->step_rows,
                                      .n_vocab = n_vocab};
}

static void world_fini(struct world *world) {
    assert_true(moge_sched_idle(world->sched));
    assert_int_equal(moge_kv_pages_free(world->kv), world->config.n_pages);
    moge_sched_check(world->sched);
    moge_accept_free(world->step.accept);
    moge_engine_free(world->step.engine);
    moge_sched_free(world->sched);
    moge_queue_free(world->queue);
    moge_reqs_free(world->reqs);
    moge_draft_free(world->draft);
    moge_kv_free(world->kv);
    moge_threads_free(world->threads);
}

/* Specs i .. i + SAMPLES - 1 as samples of one request. */
static void samples_begin(struct world *world, struct moge_req *req, int32_t i) {
    struct moge_err err = {0};
    req->n_samples = SAMPLES;
    TEST_OK(moge_req_fan_out(world->reqs, req, &err), err);
    for (; req; req = req->next_sample, i++) {
        assert_true(req->sample.seed == world->specs[i].sample.seed);
        req->id = (uint64_t)i;
        world->running[i] = req;
    }
}

/* Returns how many requests that is. */
static int32_t submit(struct world *world, int32_t i) {
    if (world->config.grouped && i % SAMPLES != 0)
        return 0;
    const struct spec *spec = &world->specs[i];
    struct moge_req *req = moge_reqs_take(world->reqs);
    assert_non_null(req);
    req->id = (uint64_t)i;
    req->sample = spec->sample;
    memcpy(req->bias, spec->bias, sizeof spec->bias);
    memcpy(req->stop_ids, spec->stop_ids, sizeof spec->stop_ids);
    req->sample.bias = req->bias;
    req->sample.stop_ids = req->stop_ids;
    req->n_stop_strings = spec->n_stop_strings;
    memcpy(req->stop_strings[0], spec->stop_string, sizeof spec->stop_string);
    req->stop_string_len[0] = (uint16_t)spec->stop_string_len;
    req->include_stop = spec->include_stop;
    req->max_tokens = spec->max_tokens;
    req->n_prompt_logprobs = spec->n_prompt_logprobs;
    req->spec_mode = world->config.mode;
    req->spec_len = world->config.len;
    if (world->config.drafter == DRAFTER_BOTH) /* some ask for one of the two */
        req->drafters = (enum moge_drafters)(i % 4);
    req->n_prompt = spec->n_prompt;
    memcpy(req->tokens, spec->prompt, (size_t)spec->n_prompt * sizeof *req->tokens);
    world->running[i] = req;
    if (world->config.grouped)
        samples_begin(world, req, i);
    struct moge_err err = {0};
    TEST_OK(moge_queue_submit(world->queue, req, &err), err);
    return req->n_samples;
}

/* Takes everything out of a request's ring. */
static void drain(struct moge_req *req, struct outcome *outcome) {
    char text[MOGE_RING_TEXT_BYTES];
    size_t len;
    struct moge_token_out out;
    while (moge_req_pop(req, &out, text, &len)) {
        assert_true(outcome->n_out < OUT_MAX && outcome->text_len + len < TEXT_MAX);
        if (out.scored) {
            assert_true(outcome->n_out == 0 && outcome->n_scored < req->n_prompt - 1);
            outcome->scored[outcome->n_scored++] = out;
            continue;
        }
        outcome->out[outcome->n_out++] = out;
        memcpy(outcome->text + outcome->text_len, text, len);
        outcome->text_len += len;
    }
}

/* Reads what there is, cancels who is to be cancelled, lets go of who has finished.  Returns how
 * many are still there. */
static int32_t read_all(struct world *world) {
    int32_t n = 0;
    for (int32_t i = 0; i < N_SPECS; i++) {
        struct moge_req *req = world->running[i];
        struct outcome *outcome = &world->outcomes[i];
        if (!req)
            continue;
        int finish = atomic_load_explicit(&req->finish, memory_order_acquire);
        /* Slow readers let their rings fill up, which stalls their requests. */
        bool reads = test_below(&world->rng, i % 5 == 0 ? 60 : 3) == 0;
        if (finish == MOGE_FINISH_NONE && world->config.n_concurrent > 1 && !reads) {
            n++;
            continue;
        }
        drain(req, outcome);
        if (world->cancel_at[i] >= 0 && outcome->n_scored + outcome->n_out >= world->cancel_at[i])
            atomic_store_explicit(&req->cancelled, true, memory_order_relaxed);
        if (finish == MOGE_FINISH_NONE) {
            n++;
            continue;
        }
        outcome->finish = finish;
        outcome->stop_id = req->stop_id;
        outcome->stop_string = req->stop_string;
        outcome->n_offered = req->usage.n_offered;
        outcome->n_accepted = req->usage.n_accepted;
        outcome->n_cached = req->usage.n_cached;
        moge_req_release(world->reqs, req);
        world->running[i] = NULL;
    }
    return n;
}

/* One of the running, in turns, gives its pages back. */
static void preempt_one(struct world *world, int32_t turn) {
    struct moge_req *req = world->sched->running.first;
    if (!req)
        return;
    for (int32_t i = turn % world->sched->running.n; i > 0; i--)
        req = req->next;
    moge_sched_preempt(world->sched, req);
    moge_sched_check(world->sched);
    n_preempted_here++;
}

static int32_t n_specs_of(const struct config *config) {
    return config->n_specs > 0 ? config->n_specs : N_SPECS;
}

/* Every spec once, in random order, at most n_concurrent at a time. */
static void run_round(struct world *world) {
    const struct config *config = &world->config;
    int32_t order[N_SPECS], n_submitted = 0, n_running = 0, n_steps = 0;
    int32_t n_specs = n_specs_of(config);
    memset(world->outcomes, 0, N_SPECS * sizeof *world->outcomes);
    for (int32_t i = 0; i < n_specs; i++) {
        int32_t j = test_below(&world->rng, i + 1);
        order[i] = order[j];
        order[j] = i;
        world->cancel_at[i] = config->cancels && i % 3 == 0 ? test_below(&world->rng, 20) : -1;
    }
    while (n_submitted < n_specs || n_running > 0) {
        while (n_submitted < n_specs && n_running < config->n_concurrent &&
               (n_running == 0 || test_below(&world->rng, 3) > 0)) {
            n_running += submit(world, order[n_submitted++]);
        }
        if (config->preempt_at > 0 && n_steps + 1 == config->preempt_at)
            preempt_one(world, n_steps);
        assert_int_equal(moge_step_run(&world->step), 0);
        if (n_steps % 8 == 0)
            moge_sched_check(world->sched);
        n_running = read_all(world);
        assert_true(++n_steps < 200000);
    }
    n_steps_run = n_steps;
}

static void run_all(const struct models *models, const struct spec *specs,
                    const struct config *config, const struct outcome *truth,
                    struct outcome *outcomes) {
    struct world *world = malloc(sizeof *world);
    assert_non_null(world);
    world_init(world, models, specs, config, truth, outcomes);
    if (config->warm)
        run_round(world);
    run_round(world);
    world_fini(world);
    free(world);
}

#endif
