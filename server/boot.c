/* SPDX-License-Identifier: Apache-2.0 */
#include "server/boot.h"

#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/kernels/kernels.h"
#include "moge/log.h"

#define CONTEXT_AUTO_MAX 32768
#define THREADS_AUTO_MAX 32
#define REQS_SPARE       8 /* finished requests whose readers are slow still hold a place */
#define WARM_UP_TOKENS   4
#define WARM_UP_STEPS    64 /* far more than it takes */
#define CALIBRATE_SHARE  5  /* a start may take longer by one part in so many */

#define EMBEDDED_TARGET "moge-embedded-target.gguf"
#define EMBEDDED_DRAFT  "moge-embedded-draft.gguf"

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* ---- models ---- */

/* Where the embedded pair may be: beside an installed program, in the tree it was built in, or
 * where the build said it would be installed. */
static bool embedded_find(char *path, size_t cap, const char *file) {
    char exe[MOGE_PATH_BYTES] = "";
    ssize_t len = readlink("/proc/self/exe", exe, sizeof exe - 1);
    char *slash = len > 0 ? strrchr(exe, '/') : NULL;
    if (slash)
        *slash = '\0';
    char beside[MOGE_PATH_BYTES + 32], tree[MOGE_PATH_BYTES + 32];
    snprintf(beside, sizeof beside, "%s/../share/moged", exe);
    snprintf(tree, sizeof tree, "%s/../../models", exe);
    const char *const places[] = {beside, tree, MOGE_DATA_DIR, MOGE_MODELS_DIR};
    for (size_t i = slash ? 0 : 2; i < sizeof places / sizeof places[0]; i++) {
        int n = snprintf(path, cap, "%s/%s", places[i], file);
        if (n > 0 && (size_t)n < cap && access(path, R_OK) == 0)
            return true;
    }
    return false;
}

struct progress {
    const struct moge_boot *boot;
    const char *path;
    int64_t said_ns;
};

static bool model_progress(void *arg, double done) {
    struct progress *progress = arg;
    int64_t now = now_ns();
    if (now - progress->said_ns >= 2000000000) {
        progress->said_ns = now;
        moge_log(MOGE_LOG_INFO, "loading %s: %.0f%%", progress->path, 100 * done);
    }
    return progress->boot->loading(progress->boot->loading_arg, progress->path, done);
}

static int model_load(const struct moge_boot *boot, struct moge_model **out, const char *path,
                      struct moge_err *err) {
    static const enum moge_weights kinds[] = {[MOGE_CONFIG_WEIGHTS_AS_STORED] =
                                                  MOGE_WEIGHTS_AS_STORED,
                                              [MOGE_CONFIG_WEIGHTS_Q8_0] = MOGE_WEIGHTS_Q8_0,
                                              [MOGE_CONFIG_WEIGHTS_Q4_0] = MOGE_WEIGHTS_Q4_0,
                                              [MOGE_CONFIG_WEIGHTS_F32] = MOGE_WEIGHTS_F32};
    int32_t weights = boot->config->weights;
    if (weights == MOGE_CONFIG_WEIGHTS_AUTO)
        weights = boot->embedded ? MOGE_CONFIG_WEIGHTS_Q8_0 : MOGE_CONFIG_WEIGHTS_AS_STORED;
    struct progress progress = {.boot = boot, .path = path, .said_ns = now_ns()};
    struct moge_model_options options = {.weights = kinds[weights],
                                         .mlock = boot->config->mlock,
                                         .huge_pages = boot->config->huge_pages,
                                         .progress = model_progress,
                                         .progress_arg = &progress};
    int64_t begin_ns = now_ns();
    int rc = moge_model_open(out, path, &options, err);
    if (rc)
        return rc;
    const struct moge_model_info *info = moge_model_info(*out);
    moge_log(MOGE_LOG_INFO,
             "%s: %s, %s, %.1f M parameters (%.1f M for a token), %s weights of %.1f MiB, read in "
             "%.1f s",
             path, info->name, info->architecture, (double)info->n_params / 1e6,
             (double)info->n_params_active / 1e6, info->weights,
             (double)info->weight_bytes / 1048576.0, (double)(now_ns() - begin_ns) / 1e9);
    return 0;
}

/* The draft must speak the target's language. */
static int draft_check(const struct moge_boot *boot, const char *path, struct moge_err *err) {
    struct moge_err difference = {0};
    int rc = moge_tokenizer_compare(moge_model_tokenizer(boot->model),
                                    moge_model_tokenizer(boot->draft_model), &difference);
    if (rc)
        return moge_fail(err, rc, "the draft %.60s has another vocabulary than the model: %s", path,
                         difference.text);
    /* The draft samples with the request's parameters, which may name any token of the model. */
    int32_t n_draft = moge_model_info(boot->draft_model)->n_vocab;
    int32_t n_model = moge_model_info(boot->model)->n_vocab;
    if (n_draft < n_model)
        return moge_fail(err, MOGE_INVALID, "the draft %.60s has %d tokens; the model has %d", path,
                         n_draft, n_model);
    return 0;
}

static int models_open(struct moge_boot *boot, struct moge_err *err) {
    const struct moge_config *config = boot->config;
    char target[MOGE_PATH_BYTES * 2], draft[MOGE_PATH_BYTES * 2] = "";
    boot->embedded = config->model[0] == '\0';
    snprintf(target, sizeof target, "%s", config->model);
    if (boot->embedded && !embedded_find(target, sizeof target, EMBEDDED_TARGET))
        return moge_fail(err, MOGE_IO,
                         "the embedded model pair was not found (%s in %s, %s or beside the "
                         "program): give a model with --model FILE",
                         EMBEDDED_TARGET, MOGE_DATA_DIR, MOGE_MODELS_DIR);
    if (boot->embedded)
        moge_log(MOGE_LOG_INFO, "no --model was given: serving the embedded model pair");
    bool automatic = strcmp(config->draft, "auto") == 0;
    if (!automatic && strcmp(config->draft, "none") != 0)
        snprintf(draft, sizeof draft, "%s", config->draft);
    else if (automatic && boot->embedded && !embedded_find(draft, sizeof draft, EMBEDDED_DRAFT))
        draft[0] = '\0';
    bool needed =
        config->drafter == MOGE_CONFIG_DRAFTER_MODEL || config->drafter == MOGE_CONFIG_DRAFTER_BOTH;
    bool wanted = needed || config->drafter == MOGE_CONFIG_DRAFTER_AUTO;
    if (needed && !draft[0])
        return moge_fail(err, MOGE_INVALID,
                         "drafter is %s, but there is no draft model: give "
                         "one with --draft FILE",
                         config->drafter == MOGE_CONFIG_DRAFTER_MODEL ? "model" : "both");
    int rc = model_load(boot, &boot->model, target, err);
    if (rc == 0 && draft[0] && wanted)
        rc = model_load(boot, &boot->draft_model, draft, err);
    if (rc == 0 && boot->draft_model)
        rc = draft_check(boot, draft, err);
    return rc;
}

/* ---- sizes ---- */

static int context_choose(const struct moge_boot *boot, int32_t *out, struct moge_err *err) {
    int32_t made_for = moge_model_info(boot->model)->n_context;
    int32_t wanted = boot->config->context;
    if (wanted > made_for)
        return moge_fail(err, MOGE_INVALID, "context is %d, but the model was made for %d tokens",
                         wanted, made_for);
    if (wanted == 0)
        wanted = made_for < CONTEXT_AUTO_MAX ? made_for : CONTEXT_AUTO_MAX;
    if (wanted < 2)
        return moge_fail(err, MOGE_INVALID, "context is %d; it must be at least 2", wanted);
    *out = wanted;
    return 0;
}

static enum moge_kv_type kv_type(int32_t choice) {
    return choice == MOGE_CONFIG_KV_Q8_0 ? MOGE_KV_Q8_0 : MOGE_KV_F16;
}

/* Pages that kv-memory pays for; by default those of max-running whole contexts, as far as a
 * quarter of the machine's memory goes. */
static int pages_choose(const struct moge_boot *boot, int32_t n_context, int32_t *out,
                        struct moge_err *err) {
    const struct moge_config *config = boot->config;
    int64_t page_bytes = moge_engine_page_bytes(boot->model, kv_type(config->kv_type));
    if (boot->draft_model)
        page_bytes += moge_engine_page_bytes(boot->draft_model, kv_type(config->draft_kv_type));
    int64_t per_context = moge_kv_pages_for(n_context), memory = config->kv_memory;
    int64_t n_pages = per_context * config->max_running;
    if (memory == 0)
        memory = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE) / 4;
    if (config->kv_memory > 0 || n_pages > memory / page_bytes)
        n_pages = memory / page_bytes;
    if (n_pages < per_context)
        return moge_fail(err, MOGE_INVALID,
                         "kv-memory has room for %" PRId64 " tokens, but a context has %d: raise "
                         "kv-memory to %.1f MiB or lower context",
                         n_pages * MOGE_PAGE_TOKENS, n_context,
                         (double)(per_context * page_bytes) / 1048576.0);
    if (n_pages > INT32_MAX / MOGE_PAGE_TOKENS)
        n_pages = INT32_MAX / MOGE_PAGE_TOKENS;
    *out = (int32_t)n_pages;
    moge_log(MOGE_LOG_INFO, "KV cache: %d tokens in %.1f MiB (%s); context %d",
             *out * MOGE_PAGE_TOKENS, (double)(n_pages * page_bytes) / 1048576.0,
             config->kv_type == MOGE_CONFIG_KV_Q8_0 ? "q8_0" : "f16", n_context);
    return 0;
}

static int threads_choose(const struct moge_config *config) {
    cpu_set_t set;
    if (config->threads > 0)
        return config->threads;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    return n < THREADS_AUTO_MAX ? n : THREADS_AUTO_MAX;
}

/* ---- parts ---- */

static int kernels_check(const struct moge_config *config, struct moge_err *err) {
    if (config->isa > 0)
        moge_kernels_set_max((enum moge_isa)(config->isa - 1));
    const struct moge_kernels *kernels = moge_kernels();
    const char *wrong = moge_kernels_self_test(kernels);
    if (wrong)
        return moge_fail(err, MOGE_INTERNAL,
                         "the %s kernel \"%s\" computes wrongly on this machine: try a lower isa",
                         kernels->isa, wrong);
    moge_log(MOGE_LOG_INFO, "kernels: %s", kernels->isa);
    return 0;
}

/* Who guesses: the draft model, lookup, both or nobody. */
static enum moge_drafters drafters_choose(const struct moge_boot *boot) {
    switch (boot->config->drafter) {
    case MOGE_CONFIG_DRAFTER_NONE:
        return MOGE_DRAFTERS_ANY;
    case MOGE_CONFIG_DRAFTER_MODEL:
        return MOGE_DRAFTERS_MODEL;
    case MOGE_CONFIG_DRAFTER_NGRAM:
        return MOGE_DRAFTERS_NGRAM;
    case MOGE_CONFIG_DRAFTER_BOTH:
        return MOGE_DRAFTERS_BOTH;
    default:
        return boot->draft_model ? MOGE_DRAFTERS_BOTH : MOGE_DRAFTERS_NGRAM;
    }
}

static int drafters_open(struct moge_boot *boot, int32_t n_context, int32_t n_pages,
                         struct moge_draft_options *out, struct moge_err *err) {
    static const char *const names[] = {[MOGE_DRAFTERS_ANY] = "none",
                                        [MOGE_DRAFTERS_MODEL] = "model",
                                        [MOGE_DRAFTERS_NGRAM] = "ngram",
                                        [MOGE_DRAFTERS_BOTH] = "both"};
    const struct moge_config *config = boot->config;
    struct moge_draft_lm_options options = {.n_pages = n_pages,
                                            .n_slots = config->max_running,
                                            .n_rows_max = config->step_rows,
                                            .n_context_max = n_context,
                                            .kv_type = kv_type(config->draft_kv_type)};
    int drafters = (int)drafters_choose(boot), rc = 0;
    boot->service.drafters = (enum moge_drafters)drafters;
    boot->service.drafter = names[drafters];
    if (drafters & (int)MOGE_DRAFTERS_MODEL)
        rc = moge_draft_lm_new(&out->drafter, boot->draft_model, boot->threads, &options, err);
    if (rc == 0 && (drafters & (int)MOGE_DRAFTERS_NGRAM))
        rc = moge_draft_ngram_new(&out->lookup, config->max_running, n_context, err);
    return rc;
}

static void drafter_free(struct moge_drafter *drafter) {
    if (drafter->ops)
        drafter->ops->free(drafter->self);
}

static int draft_open(struct moge_boot *boot, int32_t n_context, int32_t n_pages,
                      struct moge_err *err) {
    struct moge_draft_options options = {.n_slots = boot->config->max_running,
                                         .draft_len_max = boot->config->draft_len_max,
                                         .now_ns = now_ns};
    int rc = drafters_open(boot, n_context, n_pages, &options, err);
    if (rc == 0)
        rc = moge_draft_new(&boot->draft, &options, err);
    if (rc) {
        drafter_free(&options.drafter);
        drafter_free(&options.lookup);
    }
    return rc;
}

/* Rows of logits of a step: all sequences with guesses, or one prompt's scores beside them. */
static int32_t logits_max(const struct moge_config *config) {
    int64_t n_guesses = (int64_t)config->max_running * config->draft_len_max;
    int64_t n = config->max_running + (n_guesses > MOGE_RING_TOKENS ? n_guesses : MOGE_RING_TOKENS);
    return n < config->step_rows ? (int32_t)n : config->step_rows;
}

static int engine_open(struct moge_boot *boot, int32_t n_context, int32_t n_pages,
                       struct moge_err *err) {
    const struct moge_config *config = boot->config;
    struct moge_kv_options kv = {.n_pages = n_pages,
                                 .n_slots = config->max_running,
                                 .pages_per_slot_max = moge_kv_pages_for(n_context),
                                 .prefix_cache = config->prefix_cache};
    struct moge_engine_options engine = {.n_pages = n_pages,
                                         .n_rows_max = config->step_rows,
                                         .n_logits_max = logits_max(config),
                                         .n_context_max = n_context,
                                         .kv_type = kv_type(config->kv_type)};
    int rc = moge_kv_new(&boot->kv, &kv, err);
    if (rc == 0)
        rc = moge_engine_new(&boot->engine, boot->model, boot->threads, &engine, err);
    if (rc == 0)
        rc = draft_open(boot, n_context, n_pages, err);
    if (rc == 0)
        rc = moge_accept_new(&boot->accept, moge_model_info(boot->model)->n_vocab, boot->threads,
                             err);
    return rc;
}

static int sched_open(struct moge_boot *boot, int32_t n_context, struct moge_err *err) {
    const struct moge_config *config = boot->config;
    struct moge_queue_options queue = {.n_reqs_max = config->max_queued,
                                       .n_tokens_max = config->max_queued_tokens};
    int rc = moge_reqs_new(&boot->reqs, config->max_queued + config->max_running + REQS_SPARE,
                           n_context, err);
    if (rc == 0)
        rc = moge_queue_new(&boot->queue, &queue, err);
    if (rc)
        return rc;
    struct moge_sched_options sched = {.kv = boot->kv,
                                       .reqs = boot->reqs,
                                       .draft = boot->draft,
                                       .tokenizer = moge_model_tokenizer(boot->model),
                                       .n_running_max = config->max_running,
                                       .step_rows_max = config->step_rows,
                                       .prefill_chunk_max = config->prefill_chunk,
                                       .n_context = n_context,
                                       .admission = (enum moge_admission)config->admission,
                                       .prefill_rows_beside_decodes =
                                           config->prefill_beside_decodes,
                                       .itl_target_us = config->itl_target_us,
                                       .aging_us = config->priority_aging_us,
                                       .queue_age_max_us = config->queue_age_max_us};
    return moge_sched_new(&boot->sched, &sched, err);
}

static int step_open(struct moge_boot *boot, struct moge_err *err) {
    const struct moge_config *config = boot->config;
    struct moge_span *spans = calloc((size_t)config->max_running, sizeof *spans);
    if (!spans)
        return moge_fail(err, MOGE_NOMEM, "no memory for a batch");
    boot->step.sched = boot->sched;
    boot->step.queue = boot->queue;
    boot->step.draft = boot->draft;
    boot->step.engine = boot->engine;
    boot->step.accept = boot->accept;
    boot->step.now_ns = now_ns;
    boot->step.batch = (struct moge_batch){.spans = spans,
                                           .n_spans_cap = config->max_running,
                                           .n_rows_cap = config->step_rows,
                                           .n_logits_cap = logits_max(config),
                                           .n_vocab = moge_model_info(boot->model)->n_vocab};
    return 0;
}

static void service_fill(struct moge_boot *boot, int32_t n_context, int32_t n_pages) {
    const struct moge_config *config = boot->config;
    struct moge_service *service = &boot->service;
    int32_t speculation = config->speculation;
    service->tokenizer = moge_model_tokenizer(boot->model);
    service->target = *moge_model_info(boot->model);
    if (boot->draft_model)
        service->draft = *moge_model_info(boot->draft_model);
    service->isa = moge_kernels()->isa;
    service->n_threads = moge_threads_count(boot->threads);
    service->n_samples_max =
        config->max_samples < config->max_queued ? config->max_samples : config->max_queued;
    service->reqs = boot->reqs;
    service->queue = boot->queue;
    service->metrics = boot->metrics;
    service->started_us = moge_service_now_us();
    service->n_context = n_context;
    service->n_running_max = config->max_running;
    service->kv_tokens = (int64_t)n_pages * MOGE_PAGE_TOKENS;
    service->spec_mode = speculation == MOGE_CONFIG_SPECULATION_OFF    ? MOGE_SPEC_OFF
                         : speculation == MOGE_CONFIG_SPECULATION_AUTO ? MOGE_SPEC_AUTO
                                                                       : MOGE_SPEC_FIXED;
    service->spec_len = speculation > 0 ? speculation : 0;
    service->draft_len_max = config->draft_len_max;
    service->max_message_bytes = config->max_message_bytes;
}

/* ---- warm-up ---- */

/* A few tokens through the real path, guesses included: pages are touched, and what cannot work
 * fails now. */
static int warm_up(struct moge_boot *boot, struct moge_err *err) {
    struct moge_req *req = moge_reqs_take(boot->reqs);
    int32_t bos = moge_tokenizer_bos(boot->service.tokenizer), n_context = boot->service.n_context;
    MOGE_ASSERT(req);
    req->tokens[0] = bos >= 0 ? bos : 0;
    req->n_prompt = 1;
    req->sample.temperature = 0;
    req->max_tokens = n_context - 1 < WARM_UP_TOKENS ? n_context - 1 : WARM_UP_TOKENS;
    req->spec_mode = MOGE_SPEC_FIXED;
    req->spec_len = req->spec_len_max = 1;
    req->submitted_us = moge_service_now_us();
    int rc = moge_queue_submit(boot->queue, req, err);
    for (int i = 0; i < WARM_UP_STEPS && rc == 0 && atomic_load(&req->finish) == MOGE_FINISH_NONE;
         i++)
        rc = moge_step_run(&boot->step);
    if (rc == 0 && atomic_load(&req->finish) != MOGE_FINISH_LENGTH)
        rc = MOGE_INTERNAL;
    if (rc)
        moge_fail(err, rc, "the warm-up step failed: %s",
                  req->err.text[0] ? req->err.text : moge_code_name(rc));
    moge_req_release(boot->reqs, req);
    return rc;
}

/* The warm-up was nobody's request.  What steps cost here is tried, so that the first request is
 * already guessed for as it pays; loading_ns says how long the start may be felt to take. */
static void calibrate(struct moge_boot *boot, int32_t n_pages, int64_t loading_ns) {
    struct moge_draft_stats costs;
    struct moge_calibration with = {.engine = boot->engine,
                                    .accept = boot->accept,
                                    .batch = &boot->step.batch,
                                    .n_pages = n_pages,
                                    .budget_ns = loading_ns / CALIBRATE_SHARE};
    int64_t begin_ns = now_ns();
    moge_draft_restart(boot->draft);
    if (!boot->config->calibrate)
        return;
    if (with.budget_ns > MOGE_CALIBRATION_MAX_NS)
        with.budget_ns = MOGE_CALIBRATION_MAX_NS;
    int n = moge_draft_calibrate(boot->draft, &with);
    moge_draft_stats(boot->draft, &costs);
    if (n > 0)
        moge_log(MOGE_LOG_INFO, "steps of 1..%d rows take %.2f..%.2f ms here; tried for %.0f ms",
                 1 << (n - 1), costs.step_ns[0] / 1e6, costs.step_ns[n - 1] / 1e6,
                 (double)(now_ns() - begin_ns) / 1e6);
}

/* ---- all of it ---- */

static void measured(void *arg, const struct moge_step *step) {
    struct moge_boot *boot = arg;
    moge_metrics_step(boot->metrics, step, boot->kv);
}

static int parts_open(struct moge_boot *boot, struct moge_err *err) {
    int32_t n_context = 0, n_pages = 0;
    int64_t begin_ns = now_ns();
    int rc = kernels_check(boot->config, err);
    if (rc == 0)
        rc = moge_threads_new(&boot->threads, threads_choose(boot->config), err);
    if (rc == 0)
        rc = models_open(boot, err);
    if (rc == 0)
        rc = context_choose(boot, &n_context, err);
    if (rc == 0)
        rc = pages_choose(boot, n_context, &n_pages, err);
    if (rc == 0)
        rc = engine_open(boot, n_context, n_pages, err);
    if (rc == 0)
        rc = sched_open(boot, n_context, err);
    if (rc == 0)
        rc = step_open(boot, err);
    if (rc)
        return rc;
    service_fill(boot, n_context, n_pages);
    rc = warm_up(boot, err);
    if (rc == 0)
        calibrate(boot, n_pages, now_ns() - begin_ns);
    return rc;
}

int moge_boot_open(struct moge_boot **out, const struct moge_config *config,
                   moge_boot_loading *loading, void *arg, struct moge_err *err) {
    struct moge_boot *boot = calloc(1, sizeof *boot);
    struct moge_metrics *metrics = calloc(1, sizeof *metrics);
    if (!boot || !metrics) {
        free(boot);
        free(metrics);
        return moge_fail(err, MOGE_NOMEM, "no memory to start with");
    }
    boot->config = config;
    boot->loading = loading;
    boot->loading_arg = arg;
    boot->metrics = metrics;
    int rc = parts_open(boot, err);
    if (rc) {
        moge_boot_close(boot);
        return rc;
    }
    boot->step.measured = measured; /* after the warm-up, which is nobody's request */
    boot->step.measured_arg = boot;
    boot->step.batch.n_spans = 0;
    measured(boot, &boot->step); /* what is known so far: pages, and what steps cost */
    *out = boot;
    return 0;
}

int moge_boot_start(struct moge_boot *boot, struct moge_err *err) {
    int rc = pthread_create(&boot->engine_thread, NULL, moge_step_loop, &boot->step);
    boot->engine_started = rc == 0;
    if (rc)
        return moge_fail(err, MOGE_NOMEM, "the engine thread cannot be started: %s", strerror(rc));
    pthread_setname_np(boot->engine_thread, "moge-engine"); /* for top -H and perf */
    return 0;
}

void moge_boot_stop(struct moge_boot *boot, bool abort) {
    atomic_store_explicit(&boot->step.stop, abort ? 2 : 1, memory_order_relaxed);
    moge_queue_wake(boot->queue);
}

void moge_boot_join(struct moge_boot *boot) {
    if (!boot || !boot->engine_started)
        return;
    if (atomic_load_explicit(&boot->step.stop, memory_order_relaxed) == 0)
        moge_boot_stop(boot, false);
    pthread_join(boot->engine_thread, NULL);
    boot->engine_started = false;
}

void moge_boot_close(struct moge_boot *boot) {
    if (!boot)
        return;
    moge_boot_join(boot);
    if (boot->sched) /* a failed warm-up leaves its request behind */
        moge_sched_abort(boot->sched, boot->queue, MOGE_FINISH_SHUTDOWN, 0);
    free(boot->step.batch.spans);
    moge_sched_free(boot->sched);
    moge_queue_free(boot->queue);
    moge_reqs_free(boot->reqs);
    moge_accept_free(boot->accept);
    moge_draft_free(boot->draft);
    moge_engine_free(boot->engine);
    moge_kv_free(boot->kv);
    moge_model_close(boot->draft_model);
    moge_model_close(boot->model);
    moge_threads_free(boot->threads);
    free(boot->metrics);
    free(boot);
}
