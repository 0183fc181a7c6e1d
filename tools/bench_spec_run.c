/* SPDX-License-Identifier: Apache-2.0 */
/* The loop that is measured: guesses, forward, verification, learning, as in the scheduler's step.
 *
 * All modes are on their way through the same sequences at once, each with its own copy of them,
 * and the one that has the fewest tokens makes the next step: so all come past the same tokens at
 * about the same moment, and whatever else the machine does meets them alike.  All start from the
 * same prompts and must yield the same tokens. */
#include "tools/bench_spec.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moge/kv.h"
#include "moge/tokenizer.h"
#include "tools/clock.h"
#include "tools/quantile.h"

#define WARM_STEPS 8

static size_t stride_of(const struct spec_bench *bench) {
    return (size_t)bench->n_context + MOGE_DRAFT_LEN_MAX + 1;
}

static int32_t *tokens_of(const struct spec_bench *bench, int32_t slot) {
    return bench->tokens + (size_t)slot * stride_of(bench);
}

/* Positions of full pages that hold nothing but prompt: all modes share them.  The prompt's last
 * token, which each computes for itself, comes out the same. */
static int32_t shared_of(const struct spec_bench *bench) {
    return bench->options.n_prompt / MOGE_PAGE_TOKENS * MOGE_PAGE_TOKENS;
}

/* Pages: one for each sequence that calibration makes up, then those of the slots. */
static int32_t n_pages_of(const struct spec_bench *bench) {
    return bench->n_seqs + bench->n_slots * bench->pages_each;
}

/* ---- drafters are lent to two policies ---- */

static void lent_guess(void *self, struct moge_span *const *spans, const int32_t *want,
                       int32_t n_spans) {
    const struct moge_drafter *drafter = self;
    drafter->ops->guess(drafter->self, spans, want, n_spans);
}
static int32_t lent_debt(void *self, const struct moge_span *span) {
    const struct moge_drafter *drafter = self;
    return drafter->ops->debt ? drafter->ops->debt(drafter->self, span) : 0;
}
static void lent_look(void *self, const struct moge_span *span, int32_t n_max,
                      struct moge_lookup *out) {
    const struct moge_drafter *drafter = self;
    drafter->ops->look(drafter->self, span, n_max, out);
}
static void lent_forget(void *self, int32_t slot) {
    const struct moge_drafter *drafter = self;
    drafter->ops->forget(drafter->self, slot);
}
static void lent_free(void *self) {
    (void)self;
}
static const struct moge_drafter_ops lent_ops = {.name = "lent",
                                                 .guess = lent_guess,
                                                 .debt = lent_debt,
                                                 .look = lent_look,
                                                 .forget = lent_forget,
                                                 .free = lent_free};

/* ---- opening ---- */

static int drafter_open(struct spec_bench *bench, struct moge_err *err) {
    const struct spec_options *options = &bench->options;
    struct moge_draft_lm_options lm = {.n_pages = n_pages_of(bench),
                                       .n_slots = bench->n_slots,
                                       .n_rows_max = 512,
                                       .n_context_max = bench->n_context};
    if (options->drafter == SPEC_DRAFTER_ORACLE)
        return moge_spec_oracle_new(&bench->drafter, bench, err);
    int rc = 0;
    if (options->drafter != SPEC_DRAFTER_MODEL)
        rc = moge_draft_ngram_new(&bench->lookup, bench->n_slots, bench->n_context, err);
    if (rc == 0 && options->drafter != SPEC_DRAFTER_NGRAM)
        rc = moge_draft_lm_new(&bench->drafter, bench->draft_model, bench->threads, &lm, err);
    return rc;
}

static int policies_open(struct spec_bench *bench, struct moge_err *err) {
    struct moge_draft_options options = {
        .n_slots = bench->n_slots, .draft_len_max = MOGE_DRAFT_LEN_MAX, .now_ns = moge_clock_ns};
    if (bench->drafter.ops)
        options.drafter = (struct moge_drafter){&lent_ops, &bench->drafter};
    if (bench->lookup.ops)
        options.lookup = (struct moge_drafter){&lent_ops, &bench->lookup};
    int rc = moge_draft_new(&bench->fixed, &options, err);
    return rc ? rc : moge_draft_new(&bench->adaptive, &options, err);
}

static int models_open(struct spec_bench *bench, struct moge_err *err) {
    const struct spec_options *options = &bench->options;
    struct moge_model_options open = {.weights = options->weights, .huge_pages = true};
    int rc = moge_model_open(&bench->model, options->model, &open, err);
    if (rc == 0 && options->draft)
        rc = moge_model_open(&bench->draft_model, options->draft, &open, err);
    if (rc == 0 && options->draft)
        rc = moge_tokenizer_compare(moge_model_tokenizer(bench->model),
                                    moge_model_tokenizer(bench->draft_model), err);
    if (rc == 0 && options->draft &&
        moge_model_info(bench->draft_model)->n_vocab < moge_model_info(bench->model)->n_vocab)
        rc = moge_fail(err, MOGE_INVALID, "the draft has fewer tokens than the model");
    int32_t made_for = rc == 0 ? moge_model_info(bench->model)->n_context : 0;
    if (rc == 0 && bench->n_context > made_for)
        rc = moge_fail(err, MOGE_INVALID, "%d tokens are needed, but the model was made for %d",
                       bench->n_context, made_for);
    return rc;
}

static int memory_open(struct spec_bench *bench, struct moge_err *err) {
    size_t n_seqs = (size_t)bench->n_seqs, n_slots = (size_t)bench->n_slots;
    bench->pages = calloc(n_slots * (size_t)bench->pages_each, sizeof *bench->pages);
    bench->tokens = calloc(n_slots * stride_of(bench), sizeof *bench->tokens);
    bench->truth = calloc(n_seqs * stride_of(bench), sizeof *bench->truth);
    bench->n_known = calloc(n_slots, sizeof *bench->n_known);
    bench->params = calloc(n_seqs, sizeof *bench->params);
    bench->batch.spans = calloc(n_seqs, sizeof *bench->batch.spans);
    if (!bench->pages || !bench->tokens || !bench->truth || !bench->n_known || !bench->params ||
        !bench->batch.spans)
        return moge_fail(err, MOGE_NOMEM, "no memory for %d sequences of %d tokens", bench->n_slots,
                         bench->n_context);
    for (int32_t i = 0; i < bench->n_seqs; i++) {
        bench->params[i] = moge_sample_params_default();
        bench->params[i].temperature = bench->options.temperature;
        bench->params[i].seed = bench->options.seed + (uint64_t)i;
    }
    for (int32_t i = 0; i < bench->n_slots * bench->pages_each; i++) {
        bool shared = i % bench->pages_each < shared_of(bench) / MOGE_PAGE_TOKENS;
        bench->pages[i] = bench->n_seqs + (shared ? i % (bench->n_seqs * bench->pages_each) : i);
    }
    return 0;
}

static int parts_open(struct spec_bench *bench, struct moge_err *err) {
    int32_t n_rows = bench->n_seqs * (1 + MOGE_DRAFT_LEN_MAX);
    n_rows = n_rows < bench->options.n_prompt ? bench->options.n_prompt : n_rows;
    int32_t n_vocab = moge_model_info(bench->model)->n_vocab;
    struct moge_engine_options engine = {.n_pages = n_pages_of(bench),
                                         .n_rows_max = n_rows,
                                         .n_logits_max = n_rows,
                                         .n_context_max = bench->n_context};
    int rc = moge_engine_new(&bench->engine, bench->model, bench->threads, &engine, err);
    if (rc == 0)
        rc = moge_accept_new(&bench->accept, n_vocab, bench->threads, err);
    bench->batch.n_spans_cap = bench->n_seqs;
    bench->batch.n_rows_cap = bench->batch.n_logits_cap = n_rows;
    bench->batch.n_vocab = n_vocab;
    if (rc == 0)
        rc = drafter_open(bench, err);
    return rc ? rc : policies_open(bench, err);
}

/* ---- prompts ---- */

/* Whole text in ids, cut into prompts at even distances. */
static int prompts_from_text(struct spec_bench *bench, struct moge_err *err) {
    FILE *file = fopen(bench->options.text, "rb");
    char *text = file ? malloc(1 << 20) : NULL;
    int32_t *ids = text ? malloc((1 << 20) * sizeof *ids) : NULL,
            n_prompt = bench->options.n_prompt;
    int n = 0;
    if (ids) {
        size_t len = fread(text, 1, 1 << 20, file);
        n = moge_tokenizer_encode(moge_model_tokenizer(bench->model), text, len, 0, ids, 1 << 20);
    }
    int64_t apart = n > n_prompt ? (n - n_prompt) / bench->n_seqs : 0;
    for (int32_t i = 0; i < bench->n_seqs && apart > 0; i++)
        memcpy(tokens_of(bench, i), ids + apart * i, (size_t)n_prompt * sizeof *ids);
    free(ids);
    free(text);
    if (file)
        fclose(file);
    return apart > 0 ? 0
                     : moge_fail(err, MOGE_IO, "%s cannot be read, or is too short for %d prompts",
                                 bench->options.text, bench->n_seqs);
}

static int prompts_make(struct spec_bench *bench, struct moge_err *err) {
    if (bench->options.text)
        return prompts_from_text(bench, err);
    uint64_t state = bench->options.seed;
    for (int32_t i = 0; i < bench->n_seqs; i++)
        for (int32_t j = 0; j < bench->options.n_prompt; j++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            tokens_of(bench, i)[j] =
                (int32_t)((state >> 33) % (uint64_t)(bench->batch.n_vocab - 3)) + 3;
        }
    return 0;
}

/* ---- steps ---- */

static struct moge_draft *draft_of(const struct spec_bench *bench, int32_t mode) {
    return mode == SPEC_AUTO ? bench->adaptive : bench->fixed;
}

static void span_add(struct spec_bench *bench, int32_t slot, int32_t mode) {
    int32_t n_known = bench->n_known[slot], room = bench->n_context - n_known - 1;
    bench->batch.spans[bench->batch.n_spans++] =
        (struct moge_span){.tokens = tokens_of(bench, slot),
                           .pages = bench->pages + (ptrdiff_t)slot * bench->pages_each,
                           .slot = slot,
                           .pos = n_known - 1,
                           .n_rows = 1,
                           .n_known = n_known,
                           .n_prompt = bench->options.n_prompt,
                           .n_logits = 1,
                           .guess_max = room < MOGE_DRAFT_LEN_MAX ? room : MOGE_DRAFT_LEN_MAX,
                           .spec_mode = mode == SPEC_AUTO ? MOGE_SPEC_AUTO
                                        : mode            ? MOGE_SPEC_FIXED
                                                          : MOGE_SPEC_OFF,
                           .spec_len = mode,
                           .sample = &bench->params[slot % bench->n_seqs]};
}

/* One step of those of n_batch sequences from `slot` on that have room left. */
static int step(struct spec_bench *bench, int32_t slot, int32_t n_batch, int32_t mode,
                struct spec_sample *sum, struct moge_err *err) {
    struct moge_draft *draft = draft_of(bench, mode);
    struct moge_batch *batch = &bench->batch;
    batch->n_spans = 0;
    for (int32_t i = slot; i < slot + n_batch; i++)
        if (bench->n_known[i] < bench->n_context)
            span_add(bench, i, mode);
    int64_t begin_ns = moge_clock_ns();
    moge_draft_propose(draft, batch);
    int64_t proposed_ns = moge_clock_ns();
    if (moge_engine_forward(bench->engine, batch) != 0)
        return moge_fail(err, MOGE_INTERNAL, "a forward pass failed");
    moge_accept_batch(bench->accept, batch);
    moge_draft_observe(draft, batch, moge_clock_ns() - proposed_ns);
    sum->ns += moge_clock_ns() - begin_ns;
    for (int32_t i = 0; i < batch->n_spans; i++) {
        const struct moge_span *span = &batch->spans[i];
        bench->n_known[span->slot] += span->n_out;
        sum->n_tokens += span->n_out;
        sum->n_offered += span->n_guess;
        sum->n_accepted += span->n_accepted;
        sum->lengths[span->n_guess]++;
    }
    return 0;
}

/* All but the prompts' last tokens, one sequence a pass: every round begins with those rows. */
static int prompts_compute(struct spec_bench *bench, struct moge_err *err) {
    for (int32_t i = 0; i < bench->n_slots; i++) {
        int32_t begin = i < bench->n_seqs ? 0 : shared_of(bench);
        bench->n_known[i] = bench->options.n_prompt;
        bench->batch.n_spans = 0;
        span_add(bench, i, 0);
        struct moge_span *span = &bench->batch.spans[0];
        memcpy(span->tokens, tokens_of(bench, i % bench->n_seqs),
               (size_t)span->n_known * sizeof *span->tokens);
        span->pos = begin;
        span->n_rows = span->n_known - 1 - begin;
        span->n_logits = 0;
        if (span->n_rows > 0 && moge_engine_forward(bench->engine, &bench->batch) != 0)
            return moge_fail(err, MOGE_INTERNAL, "a forward pass failed");
    }
    return 0;
}

/* The true continuations, and what a step of one row takes. */
static int truth_make(struct spec_bench *bench, struct moge_err *err) {
    double ns[WARM_STEPS];
    int rc = 0;
    for (int32_t i = 0; i < WARM_STEPS && rc == 0; i++) {
        struct spec_sample sample = {0};
        rc = step(bench, 0, 1, 0, &sample, err);
        ns[i] = (double)sample.ns;
    }
    moge_values_sort(ns, WARM_STEPS);
    bench->step_ns = ns[WARM_STEPS / 2];
    struct spec_sample unused = {0};
    bench->n_known[0] = bench->options.n_prompt;
    for (int32_t i = 0; i < 2 * bench->options.n_tokens && rc == 0; i++)
        rc = step(bench, 0, bench->n_seqs, 0, &unused, err);
    memcpy(bench->truth, bench->tokens,
           (size_t)bench->n_seqs * stride_of(bench) * sizeof *bench->truth);
    return rc;
}

/* Auto begins as in a daemon that has just started. */
static void calibrate(struct spec_bench *bench) {
    struct moge_calibration with = {.engine = bench->engine,
                                    .accept = bench->accept,
                                    .batch = &bench->batch,
                                    .n_pages = bench->n_seqs,
                                    .budget_ns = MOGE_CALIBRATION_MAX_NS};
    moge_draft_calibrate(bench->adaptive, &with);
}

int moge_spec_open(struct spec_bench *bench, struct moge_err *err) {
    const struct spec_options *options = &bench->options;
    bench->n_context = options->n_prompt + 2 * options->n_tokens;
    bench->pages_each = moge_kv_pages_for(bench->n_context);
    for (int32_t i = 0; i < options->n_batches; i++)
        if (options->batches[i] > bench->n_seqs)
            bench->n_seqs = options->batches[i];
    bench->n_slots = bench->n_seqs * options->n_modes;
    int rc = moge_threads_new(&bench->threads, options->n_threads, err);
    if (rc == 0)
        rc = models_open(bench, err);
    if (rc == 0)
        rc = memory_open(bench, err);
    if (rc == 0)
        rc = parts_open(bench, err);
    if (rc == 0)
        rc = prompts_make(bench, err);
    if (rc == 0)
        rc = prompts_compute(bench, err);
    if (rc == 0)
        rc = truth_make(bench, err);
    if (rc == 0)
        calibrate(bench);
    return rc;
}

void moge_spec_close(struct spec_bench *bench) {
    moge_draft_free(bench->fixed);
    moge_draft_free(bench->adaptive);
    if (bench->drafter.ops)
        bench->drafter.ops->free(bench->drafter.self);
    if (bench->lookup.ops)
        bench->lookup.ops->free(bench->lookup.self);
    moge_accept_free(bench->accept);
    moge_engine_free(bench->engine);
    moge_model_close(bench->draft_model);
    moge_model_close(bench->model);
    moge_threads_free(bench->threads);
    free(bench->pages);
    free(bench->tokens);
    free(bench->truth);
    free(bench->n_known);
    free(bench->params);
    free(bench->batch.spans);
}

/* ---- rounds ---- */

/* Sets a slot back to its prompt, and takes from it what it has said. */
static void slot_restart(struct spec_bench *bench, int32_t slot, int32_t mode) {
    int32_t n_prompt = bench->options.n_prompt;
    bench->n_known[slot] = n_prompt;
    memset(tokens_of(bench, slot) + n_prompt, 0,
           (stride_of(bench) - (size_t)n_prompt) * sizeof *bench->tokens);
    moge_draft_forget(draft_of(bench, mode), slot);
}

/* What the slot has said so far is the truth. */
static bool slot_is_true(const struct spec_bench *bench, int32_t slot) {
    const int32_t *truth = bench->truth + (size_t)(slot % bench->n_seqs) * stride_of(bench);
    return memcmp(tokens_of(bench, slot), truth, (size_t)bench->n_known[slot] * sizeof *truth) == 0;
}

/* The mode with the fewest tokens; of several, nobody always comes after the same one. */
static int32_t mode_behind(const struct spec_bench *bench, const struct spec_sample *samples,
                           int32_t turn) {
    int32_t n_modes = bench->options.n_modes, first = turn + turn / n_modes,
            behind = first % n_modes;
    for (int32_t i = 1; i < n_modes; i++) {
        int32_t at = (first + i) % n_modes;
        behind = samples[at].n_tokens < samples[behind].n_tokens ? at : behind;
    }
    return behind;
}

int moge_spec_round(struct spec_bench *bench, int32_t n_batch, int32_t round,
                    struct spec_sample *samples, struct moge_err *err) {
    const struct spec_options *options = &bench->options;
    int64_t n_goal = (int64_t)n_batch * options->n_tokens;
    if (options->drafter == SPEC_DRAFTER_ORACLE)
        moge_spec_oracle_round(&bench->drafter, round);
    for (int32_t i = 0; i < options->n_modes; i++) {
        samples[i] = (struct spec_sample){0};
        for (int32_t k = 0; k < n_batch; k++)
            slot_restart(bench, i * bench->n_seqs + k, options->modes[i]);
    }
    for (int32_t turn = round;; turn++) {
        int32_t i = mode_behind(bench, samples, turn);
        if (samples[i].n_tokens >= n_goal)
            break;
        int rc = step(bench, i * bench->n_seqs, n_batch, options->modes[i], &samples[i], err);
        if (rc)
            return rc;
    }
    for (int32_t i = 0; i < options->n_modes; i++)
        for (int32_t k = 0; k < n_batch; k++)
            if (!slot_is_true(bench, i * bench->n_seqs + k))
                return moge_fail(err, MOGE_INTERNAL,
                                 "sequence %d of %d yields other tokens in mode %d", k, n_batch,
                                 options->modes[i]);
    return 0;
}
