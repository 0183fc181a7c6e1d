/* SPDX-License-Identifier: Apache-2.0 */
#include "server/stats.h"

#include <math.h>
#include <string.h>

#define RATE_SECONDS 2.0 /* tokens_per_s forgets with this time constant */

_Static_assert(sizeof(struct moge_stats) % sizeof(uint64_t) == 0, "copied as words");

const char *moge_phase_name(enum moge_phase phase) {
    static const char *const names[MOGE_PHASES] = {
        [MOGE_PHASE_ADMIT] = "admit",     [MOGE_PHASE_PLAN] = "plan",
        [MOGE_PHASE_PROPOSE] = "propose", [MOGE_PHASE_FORWARD] = "forward",
        [MOGE_PHASE_ACCEPT] = "accept",   [MOGE_PHASE_COMMIT] = "commit",
        [MOGE_PHASE_OBSERVE] = "observe",
    };
    return names[phase];
}

static double faded(double rate, int64_t us) {
    return us > 0 ? rate * exp(-(double)us / (RATE_SECONDS * 1e6)) : rate;
}

static void count_experts(struct moge_stats *stats, const struct moge_engine *engine) {
    const struct moge_model_info *info = moge_model_info(moge_engine_model(engine));
    const struct moge_forward_stats *last = moge_engine_last(engine);
    stats->weight_bytes += (uint64_t)last->weight_bytes;
    if (info->n_experts == 0)
        return;
    stats->n_layers =
        (uint64_t)(info->n_layers < MOGE_STATS_LAYERS_MAX ? info->n_layers : MOGE_STATS_LAYERS_MAX);
    stats->n_groups =
        (uint64_t)(info->n_groups < MOGE_STATS_GROUPS_MAX ? info->n_groups : MOGE_STATS_GROUPS_MAX);
    for (uint64_t i = 0; i < stats->n_layers; i++)
        stats->layer_experts[i] += (uint64_t)last->layer_experts[i];
    for (uint64_t i = 0; i < stats->n_groups; i++)
        stats->group_pairs[i] += (uint64_t)last->group_pairs[i];
}

static void count_step(struct moge_stats *stats, const struct moge_step *step, int64_t now_us) {
    uint64_t n_emitted = 0;
    for (int32_t i = 0; i < step->batch.n_spans && step->forward_rc == 0; i++)
        n_emitted += (uint64_t)step->batch.spans[i].n_emitted;
    stats->n_steps++;
    stats->n_failed += step->forward_rc != 0;
    stats->n_rows += (uint64_t)moge_batch_rows(&step->batch);
    stats->n_logits += (uint64_t)moge_batch_logits(&step->batch);
    stats->n_emitted += n_emitted;
    stats->tokens_per_s =
        faded(stats->tokens_per_s, now_us - stats->at_us) + (double)n_emitted / RATE_SECONDS;
    stats->at_us = now_us;
    stats->step_ns += step->step_ns;
    for (int i = 0; i < MOGE_PHASES; i++)
        stats->phase_ns[i] += step->phase_ns[i];
    if (step->engine && step->forward_rc == 0)
        count_experts(stats, step->engine);
}

static void publish(struct moge_stats_cell *cell) {
    uint64_t words[MOGE_STATS_WORDS];
    memcpy(words, &cell->engine, sizeof words);
    uint64_t sequence = atomic_load_explicit(&cell->sequence, memory_order_relaxed);
    atomic_store_explicit(&cell->sequence, sequence + 1, memory_order_relaxed);
    for (size_t i = 0; i < MOGE_STATS_WORDS; i++)
        atomic_store_explicit(&cell->words[i], words[i], memory_order_release);
    atomic_store_explicit(&cell->sequence, sequence + 2, memory_order_release);
}

static void take_sched(struct moge_stats *stats, const struct moge_sched *from) {
    struct moge_sched_stats sched;
    moge_sched_stats(from, &sched);
    stats->n_running = sched.n_running;
    stats->n_prefilling = sched.n_prefilling;
    stats->n_waiting = sched.n_waiting;
    stats->n_preempted = sched.n_preempted;
    stats->n_recomputed = sched.n_recomputed;
    stats->n_prefix_queried = sched.n_prefix_queried;
    stats->n_prefix_hit = sched.n_prefix_hit;
    stats->n_refused_age = sched.n_refused_age;
    stats->n_refused_deadline = sched.n_refused_deadline;
    stats->prefill_rows_max = sched.prefill_rows_max;
    stats->prefill_row_ns = sched.prefill_row_ns;
}

static void take_pages(struct moge_stats *stats, const struct moge_kv *kv) {
    struct moge_kv_stats pages;
    moge_kv_stats(kv, &pages);
    stats->pages_free = pages.n_free;
    stats->pages_used = pages.n_used;
    stats->pages_cached = pages.n_cached;
    stats->pages_evicted = pages.n_evicted;
    stats->n_pages = stats->pages_free + stats->pages_used + stats->pages_cached;
}

static void take_guesses(struct moge_stats *stats, const struct moge_draft_stats *draft) {
    memcpy(stats->offered, draft->offered, sizeof stats->offered);
    memcpy(stats->accepted, draft->accepted, sizeof stats->accepted);
    memcpy(stats->ngram_offered, draft->ngram_offered, sizeof stats->ngram_offered);
    memcpy(stats->ngram_accepted, draft->ngram_accepted, sizeof stats->ngram_accepted);
    memcpy(stats->draft_len, draft->len_chosen, sizeof stats->draft_len);
    memcpy(stats->expected_step_ns, draft->step_ns, sizeof stats->expected_step_ns);
    stats->guess_ns = draft->guess_ns;
    stats->guess_round_ns = draft->guess_round_ns;
    stats->guess_row_ns = draft->guess_row_ns;
    stats->row_ns[0] = draft->row_ns[0];
    stats->row_ns[1] = draft->row_ns[1];
    stats->n_drafts = stats->n_offered = stats->n_accepted = 0;
    for (int i = 0; i < MOGE_DRAFT_LEN_MAX; i++) {
        stats->n_drafts += stats->draft_len[i + 1];
        stats->n_offered += stats->offered[i];
        stats->n_accepted += stats->accepted[i];
    }
}

void moge_stats_step(struct moge_stats_cell *cell, const struct moge_step *step,
                     const struct moge_kv *kv) {
    struct moge_stats *stats = &cell->engine;
    take_sched(stats, step->sched);
    if (kv)
        take_pages(stats, kv);
    if (step->batch.n_spans > 0)
        count_step(stats, step, step->now_ns() / 1000);
    if (step->batch.n_spans > 0 || stats->n_steps == 0) { /* before the first step: as calibrated */
        struct moge_draft_stats draft;
        moge_draft_stats(step->draft, &draft);
        take_guesses(stats, &draft);
    }
    publish(cell);
}

/* Words are read with acquire: one that belongs to a later publication makes its odd sequence
 * visible, too. */
void moge_stats_read(const struct moge_stats_cell *cell, int64_t now_us, struct moge_stats *out) {
    uint64_t words[MOGE_STATS_WORDS], before, after;
    do {
        before = atomic_load_explicit(&cell->sequence, memory_order_acquire);
        for (size_t i = 0; i < MOGE_STATS_WORDS; i++)
            words[i] = atomic_load_explicit(&cell->words[i], memory_order_acquire);
        after = atomic_load_explicit(&cell->sequence, memory_order_relaxed);
    } while (before != after || (before & 1) != 0);
    memcpy(out, words, sizeof *out);
    out->tokens_per_s = faded(out->tokens_per_s, now_us - out->at_us);
}
