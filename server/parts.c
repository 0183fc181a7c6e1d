/* SPDX-License-Identifier: Apache-2.0 */
#include "server/parts.h"

#include <inttypes.h>
#include <stdlib.h>

#include "engine/kernels/kernels.h"
#include "moge/log.h"
#include "server/memory.h"

#define CONTEXT_AUTO_MAX 32768
#define REQS_SPARE       8 /* finished requests whose readers are slow still hold a place */

/* ---- sizes ---- */

static int context_choose(struct moge_boot *boot, struct moge_err *err) {
    int32_t made_for = moge_model_info(boot->model)->n_context;
    int32_t wanted = boot->config->context;
    if (wanted > made_for)
        return moge_fail(err, MOGE_INVALID, "context is %d, but the model was made for %d tokens",
                         wanted, made_for);
    if (wanted == 0)
        wanted = made_for < CONTEXT_AUTO_MAX ? made_for : CONTEXT_AUTO_MAX;
    if (wanted < 2)
        return moge_fail(err, MOGE_INVALID, "context is %d; it must be at least 2", wanted);
    boot->n_context = wanted;
    return 0;
}

static enum moge_kv_type kv_type(int32_t choice) {
    return choice == MOGE_CONFIG_KV_Q8_0 ? MOGE_KV_Q8_0 : MOGE_KV_F16;
}

/* Pages that kv-memory pays for; by default those of max-running whole contexts, as far as a
 * quarter of the memory goes that the process may have. */
static int pages_choose(struct moge_boot *boot, struct moge_err *err) {
    const struct moge_config *config = boot->config;
    int64_t page_bytes = moge_engine_page_bytes(boot->model, kv_type(config->kv_type));
    if (boot->draft_model)
        page_bytes += moge_engine_page_bytes(boot->draft_model, kv_type(config->draft_kv_type));
    int64_t per_context = moge_kv_pages_for(boot->n_context), memory = config->kv_memory;
    int64_t n_pages = per_context * config->max_running;
    if (memory == 0)
        memory = moge_memory_limit() / 4;
    if (config->kv_memory > 0 || n_pages > memory / page_bytes)
        n_pages = memory / page_bytes;
    if (n_pages < per_context)
        return moge_fail(err, MOGE_INVALID,
                         "kv-memory has room for %" PRId64 " tokens, but a context has %d: raise "
                         "kv-memory to %.1f MiB or lower context",
                         n_pages * MOGE_PAGE_TOKENS, boot->n_context,
                         (double)(per_context * page_bytes) / 1048576.0);
    if (n_pages > INT32_MAX / MOGE_PAGE_TOKENS)
        n_pages = INT32_MAX / MOGE_PAGE_TOKENS;
    boot->n_pages = (int32_t)n_pages;
    moge_log(MOGE_LOG_INFO, "KV cache: %d tokens in %.1f MiB (%s); context %d",
             boot->n_pages * MOGE_PAGE_TOKENS, (double)(n_pages * page_bytes) / 1048576.0,
             config->kv_type == MOGE_CONFIG_KV_Q8_0 ? "q8_0" : "f16", boot->n_context);
    return 0;
}

/* ---- who guesses ---- */

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

static int drafters_open(struct moge_boot *boot, struct moge_draft_options *out,
                         struct moge_err *err) {
    static const char *const names[] = {[MOGE_DRAFTERS_ANY] = "none",
                                        [MOGE_DRAFTERS_MODEL] = "model",
                                        [MOGE_DRAFTERS_NGRAM] = "ngram",
                                        [MOGE_DRAFTERS_BOTH] = "both"};
    const struct moge_config *config = boot->config;
    struct moge_draft_lm_options options = {.n_pages = boot->n_pages,
                                            .n_slots = config->max_running,
                                            .n_rows_max = config->step_rows,
                                            .n_context_max = boot->n_context,
                                            .kv_type = kv_type(config->draft_kv_type)};
    int drafters = (int)drafters_choose(boot), rc = 0;
    boot->service.drafters = (enum moge_drafters)drafters;
    boot->service.drafter = names[drafters];
    if (drafters & (int)MOGE_DRAFTERS_MODEL)
        rc = moge_draft_lm_new(&out->drafter, boot->draft_model, boot->threads, &options, err);
    if (rc == 0 && (drafters & (int)MOGE_DRAFTERS_NGRAM))
        rc = moge_draft_ngram_new(&out->lookup, config->max_running, boot->n_context, err);
    return rc;
}

static void drafter_free(struct moge_drafter *drafter) {
    if (drafter->ops)
        drafter->ops->free(drafter->self);
}

static int draft_open(struct moge_boot *boot, struct moge_err *err) {
    struct moge_draft_options options = {.n_slots = boot->config->max_running,
                                         .draft_len_max = boot->config->draft_len_max,
                                         .now_ns = moge_boot_now_ns};
    int rc = drafters_open(boot, &options, err);
    if (rc == 0)
        rc = moge_draft_new(&boot->draft, &options, err);
    if (rc) {
        drafter_free(&options.drafter);
        drafter_free(&options.lookup);
    }
    return rc;
}

/* ---- engine, scheduler, step ---- */

/* Rows of logits of a step: all sequences with guesses, or one prompt's scores beside them. */
static int32_t logits_max(const struct moge_config *config) {
    int64_t n_guesses = (int64_t)config->max_running * config->draft_len_max;
    int64_t n = config->max_running + (n_guesses > MOGE_RING_TOKENS ? n_guesses : MOGE_RING_TOKENS);
    return n < config->step_rows ? (int32_t)n : config->step_rows;
}

static int engine_open(struct moge_boot *boot, struct moge_err *err) {
    const struct moge_config *config = boot->config;
    struct moge_kv_options kv = {.n_pages = boot->n_pages,
                                 .n_slots = config->max_running,
                                 .pages_per_slot_max = moge_kv_pages_for(boot->n_context),
                                 .prefix_cache = config->prefix_cache};
    struct moge_engine_options engine = {.n_pages = boot->n_pages,
                                         .n_rows_max = config->step_rows,
                                         .n_logits_max = logits_max(config),
                                         .n_context_max = boot->n_context,
                                         .kv_type = kv_type(config->kv_type)};
    int rc = moge_kv_new(&boot->kv, &kv, err);
    if (rc == 0)
        rc = moge_engine_new(&boot->engine, boot->model, boot->threads, &engine, err);
    if (rc == 0)
        rc = draft_open(boot, err);
    if (rc == 0)
        rc = moge_accept_new(&boot->accept, moge_model_info(boot->model)->n_vocab, boot->threads,
                             err);
    return rc;
}

static int sched_open(struct moge_boot *boot, struct moge_err *err) {
    const struct moge_config *config = boot->config;
    struct moge_queue_options queue = {.n_reqs_max = config->max_queued,
                                       .n_tokens_max = config->max_queued_tokens};
    int rc = moge_reqs_new(&boot->reqs, config->max_queued + config->max_running + REQS_SPARE,
                           boot->n_context, err);
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
                                       .n_context = boot->n_context,
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
    boot->step.now_ns = moge_boot_now_ns;
    boot->step.batch = (struct moge_batch){.spans = spans,
                                           .n_spans_cap = config->max_running,
                                           .n_rows_cap = config->step_rows,
                                           .n_logits_cap = logits_max(config),
                                           .n_vocab = moge_model_info(boot->model)->n_vocab};
    return 0;
}

static void service_fill(struct moge_boot *boot) {
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
    service->n_context = boot->n_context;
    service->n_running_max = config->max_running;
    service->kv_tokens = (int64_t)boot->n_pages * MOGE_PAGE_TOKENS;
    service->spec_mode = speculation == MOGE_CONFIG_SPECULATION_OFF    ? MOGE_SPEC_OFF
                         : speculation == MOGE_CONFIG_SPECULATION_AUTO ? MOGE_SPEC_AUTO
                                                                       : MOGE_SPEC_FIXED;
    service->spec_len = speculation > 0 ? speculation : 0;
    service->draft_len_max = config->draft_len_max;
    service->max_message_bytes = config->max_message_bytes;
}

int moge_parts_open(struct moge_boot *boot, struct moge_err *err) {
    int rc = context_choose(boot, err);
    if (rc == 0)
        rc = pages_choose(boot, err);
    if (rc == 0)
        rc = engine_open(boot, err);
    if (rc == 0)
        rc = sched_open(boot, err);
    if (rc == 0)
        rc = step_open(boot, err);
    if (rc == 0)
        service_fill(boot);
    return rc;
}
