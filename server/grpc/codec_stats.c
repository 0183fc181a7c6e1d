/* SPDX-License-Identifier: Apache-2.0 */
/* GetStats: the snapshot and the counters as a message. */
#include "server/grpc/codec_message.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "moge/v1/moge.pb-c.h"

#define X(...) +1
enum {
    N_COUNTERS = 0 MOGE_COUNTERS(X) MOGE_STATS_COUNTERS(X),
    N_DISTRIBUTIONS = 0 MOGE_HISTOGRAMS(X)
};
#undef X

/* The parts of a reply, which point at each other. */
struct store {
    struct moge_stats stats;
    Moge__V1__Pages pages;
    Moge__V1__EngineStats engine;
    double expected_step_us[MOGE_STEP_COSTS];
    Moge__V1__Phase phases[MOGE_PHASES], *phase_at[MOGE_PHASES];
    Moge__V1__Counter counters[N_COUNTERS], *counter_at[N_COUNTERS];
    Moge__V1__Distribution distributions[N_DISTRIBUTIONS], *distribution_at[N_DISTRIBUTIONS];
};

/* Totals stay far below 2^63; packing never writes through. */
static int64_t *signed_of(const uint64_t *values) {
    return (int64_t *)(uintptr_t)values;
}

static void engine_fill(struct store *store) {
    const struct moge_stats *from = &store->stats;
    Moge__V1__EngineStats *to = &store->engine;
    moge__v1__engine_stats__init(to);
    to->steps = (int64_t)from->n_steps;
    to->rows = (int64_t)from->n_rows;
    to->tokens = (int64_t)from->n_emitted;
    to->step_us = from->step_ns / 1000;
    for (int i = 0; i < MOGE_PHASES; i++) {
        moge__v1__phase__init(&store->phases[i]);
        store->phases[i].name = moge_message_string(moge_phase_name((enum moge_phase)i));
        store->phases[i].total_us = from->phase_ns[i] / 1000;
        store->phase_at[i] = &store->phases[i];
    }
    to->n_phases = MOGE_PHASES;
    to->phases = store->phase_at;
    to->n_offered_by_position = to->n_accepted_by_position = MOGE_DRAFT_LEN_MAX;
    to->offered_by_position = signed_of(from->offered);
    to->accepted_by_position = signed_of(from->accepted);
    to->n_ngram_offered_by_position = to->n_ngram_accepted_by_position = MOGE_DRAFT_LEN_MAX;
    to->ngram_offered_by_position = signed_of(from->ngram_offered);
    to->ngram_accepted_by_position = signed_of(from->ngram_accepted);
    to->n_draft_length = MOGE_DRAFT_LEN_MAX + 1;
    to->draft_length = signed_of(from->draft_len);
    for (int i = 0; i < MOGE_STEP_COSTS; i++)
        store->expected_step_us[i] = from->expected_step_ns[i] / 1e3;
    to->n_expected_step_us = MOGE_STEP_COSTS;
    to->expected_step_us = store->expected_step_us;
    to->guess_us = from->guess_ns / 1e3;
    to->guess_round_us = from->guess_round_ns / 1e3;
    to->guess_row_us = from->guess_row_ns / 1e3;
    to->step_base_us = from->row_ns[0] / 1e3;
    to->step_row_us = from->row_ns[1] / 1e3;
    to->prefill_row_us = from->prefill_row_ns / 1e3;
    to->n_experts_touched = from->n_layers;
    to->experts_touched = signed_of(from->layer_experts);
    to->n_group_rows = from->n_groups;
    to->group_rows = signed_of(from->group_pairs);
    to->weight_bytes = (int64_t)from->weight_bytes;
}

static void counter_fill(Moge__V1__Counter *to, const char *name, uint64_t value) {
    moge__v1__counter__init(to);
    to->name = moge_message_string(name);
    to->value = (int64_t)value;
}

static void distribution_fill(Moge__V1__Distribution *to, const char *name,
                              const struct moge_histogram *from) {
    moge__v1__distribution__init(to);
    to->name = moge_message_string(name);
    to->count = (int64_t)atomic_load_explicit(&from->count, memory_order_relaxed);
    to->sum = atomic_load_explicit(&from->sum, memory_order_relaxed);
    to->p50 = moge_histogram_quantile(from, 0.5);
    to->p90 = moge_histogram_quantile(from, 0.9);
    to->p99 = moge_histogram_quantile(from, 0.99);
}

static void lists_fill(struct store *store, const struct moge_metrics *metrics) {
    int n = 0;
#define X(name, help)                                                                              \
    counter_fill(&store->counters[n++], #name,                                                     \
                 atomic_load_explicit(&metrics->name, memory_order_relaxed));
    MOGE_COUNTERS(X)
#undef X
#define X(name, field, help) counter_fill(&store->counters[n++], #name, store->stats.field);
    MOGE_STATS_COUNTERS(X)
#undef X
    n = 0;
#define X(name, help) distribution_fill(&store->distributions[n++], #name, &metrics->name);
    MOGE_HISTOGRAMS(X)
#undef X
    for (int i = 0; i < N_COUNTERS; i++)
        store->counter_at[i] = &store->counters[i];
    for (int i = 0; i < N_DISTRIBUTIONS; i++)
        store->distribution_at[i] = &store->distributions[i];
}

static int stats_pack(struct store *store, const struct moge_service *service, const char *text,
                      struct moge_bytes *out) {
    const struct moge_metrics *metrics = service->metrics;
    const struct moge_stats *stats = &store->stats;
    Moge__V1__GetStatsResponse reply = MOGE__V1__GET_STATS_RESPONSE__INIT;
    reply.uptime_us = moge_service_now_us() - service->started_us;
    reply.running = stats->n_running;
    reply.prefilling = stats->n_prefilling;
    reply.waiting = stats->n_waiting;
    reply.calls = atomic_load_explicit(&metrics->num_calls, memory_order_relaxed);
    reply.connections = atomic_load_explicit(&metrics->num_connections, memory_order_relaxed);
    moge__v1__pages__init(&store->pages);
    store->pages.free = stats->pages_free;
    store->pages.used = stats->pages_used;
    store->pages.cached = stats->pages_cached;
    store->pages.evicted = (int64_t)stats->pages_evicted;
    reply.pages = &store->pages;
    struct mallinfo2 heap = mallinfo2();
    reply.heap_bytes = (int64_t)(heap.uordblks + heap.hblkhd);
    reply.tokens_per_second = stats->tokens_per_s;
    engine_fill(store);
    reply.engine = &store->engine;
    lists_fill(store, metrics);
    reply.n_counters = N_COUNTERS;
    reply.counters = store->counter_at;
    reply.n_distributions = N_DISTRIBUTIONS;
    reply.distributions = store->distribution_at;
    if (text)
        reply.prometheus = moge_message_string(text);
    return moge_message_pack(&reply.base, out);
}

int moge_codec_stats_reply(const struct moge_service *service, bool with_prometheus,
                           struct moge_bytes *out, struct moge_err *err) {
    int64_t now_us = moge_service_now_us();
    struct store *store = calloc(1, sizeof *store);
    char *text = with_prometheus ? moge_metrics_text(service->metrics, now_us) : NULL;
    int rc = MOGE_NOMEM;
    if (store && (text || !with_prometheus)) {
        moge_stats_read(&service->metrics->stats, now_us, &store->stats);
        rc = stats_pack(store, service, text, out);
    }
    free(store);
    free(text);
    return rc ? moge_fail(err, rc, "no memory for a reply") : 0;
}
