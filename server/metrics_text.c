/* SPDX-License-Identifier: Apache-2.0 */
/* The text that Prometheus reads.  Names are vLLM's where vLLM has the number; the prefix is ours.
 * A histogram shows every fourth of its buckets: the powers of two. */
#include "server/metrics.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define PREFIX "moge:"

static void head(FILE *out, const char *name, const char *type, const char *help) {
    fprintf(out, "# HELP " PREFIX "%s %s.\n# TYPE " PREFIX "%s %s\n", name, help, name, type);
}

static void counter(FILE *out, const char *name, const char *help, uint64_t value) {
    head(out, name, "counter", help);
    fprintf(out, PREFIX "%s %" PRIu64 "\n", name, value);
}

static void gauge(FILE *out, const char *name, const char *help, double value) {
    head(out, name, "gauge", help);
    fprintf(out, PREFIX "%s %.17g\n", name, value);
}

/* One number for each of several things: label="0", label="1", ... */
static void family(FILE *out, const char *name, const char *help, const char *label,
                   const uint64_t *values, size_t n) {
    head(out, name, "counter", help);
    for (size_t i = 0; i < n; i++)
        fprintf(out, PREFIX "%s{%s=\"%zu\"} %" PRIu64 "\n", name, label, i, values[i]);
}

static void histogram(FILE *out, const char *name, const char *help,
                      const struct moge_histogram *from) {
    uint64_t below = 0;
    head(out, name, "histogram", help);
    for (int i = 0; i < MOGE_HISTOGRAM_BUCKETS; i++) {
        uint64_t n = atomic_load_explicit(&from->buckets[i], memory_order_relaxed);
        below += n;
        bool whole = i + 1 < MOGE_HISTOGRAM_BUCKETS && (i < 8 || (i - 8) % 4 == 3);
        if (whole && below > 0 && moge_histogram_bound(i + 1) <= (int64_t)1 << 33)
            fprintf(out, PREFIX "%s_bucket{le=\"%" PRId64 "\"} %" PRIu64 "\n", name,
                    moge_histogram_bound(i + 1) - 1, below);
    }
    fprintf(out, PREFIX "%s_bucket{le=\"+Inf\"} %" PRIu64 "\n", name, below);
    fprintf(out, PREFIX "%s_sum %" PRId64 "\n" PREFIX "%s_count %" PRIu64 "\n", name,
            atomic_load_explicit(&from->sum, memory_order_relaxed), name, below);
}

static void position_family(FILE *out, const char *name, const char *help, const uint64_t *values) {
    family(out, name, help, "position", values, MOGE_DRAFT_LEN_MAX);
}

static void engine_text(FILE *out, const struct moge_stats *stats) {
#define X(name, field, help) counter(out, #name, help, stats->field);
    MOGE_STATS_COUNTERS(X)
#undef X
#define X(name, field, help) gauge(out, #name, help, (double)stats->field);
    MOGE_STATS_GAUGES(X)
#undef X
    gauge(out, "generation_tokens_per_second", "Tokens a second, lately", stats->tokens_per_s);
    head(out, "engine_phase_microseconds_total", "counter", "Time in each call of a step");
    for (int i = 0; i < MOGE_PHASES; i++)
        fprintf(out, PREFIX "engine_phase_microseconds_total{phase=\"%s\"} %" PRId64 "\n",
                moge_phase_name((enum moge_phase)i), stats->phase_ns[i] / 1000);
    position_family(out, "spec_decode_num_draft_tokens_per_pos_total", "Guesses offered",
                    stats->offered);
    position_family(out, "spec_decode_num_accepted_tokens_per_pos_total", "Guesses accepted",
                    stats->accepted);
    position_family(out, "spec_decode_num_ngram_tokens_per_pos_total",
                    "Guesses offered that were looked up", stats->ngram_offered);
    position_family(out, "spec_decode_num_accepted_ngram_tokens_per_pos_total",
                    "Guesses accepted that were looked up", stats->ngram_accepted);
    family(out, "spec_decode_draft_length_total", "Decode rows that carried so many guesses",
           "length", stats->draft_len, MOGE_DRAFT_LEN_MAX + 1);
    gauge(out, "spec_decode_guess_microseconds", "Believed time of a guess", stats->guess_ns / 1e3);
    gauge(out, "spec_decode_round_microseconds", "Believed time of a round of drafting",
          stats->guess_round_ns / 1e3);
    gauge(out, "spec_decode_row_microseconds", "Believed time that a sequence adds to a round",
          stats->guess_row_ns / 1e3);
    head(out, "engine_expected_step_microseconds", "gauge",
         "Believed time of a step of so many rows");
    for (int i = 0; i < MOGE_STEP_COSTS; i++)
        fprintf(out, PREFIX "engine_expected_step_microseconds{rows=\"%d\"} %.17g\n", 1 << i,
                stats->expected_step_ns[i] / 1e3);
    gauge(out, "engine_step_microseconds", "Believed time of a step beside its rows",
          stats->row_ns[0] / 1e3);
    gauge(out, "engine_row_microseconds", "Believed time of a row", stats->row_ns[1] / 1e3);
    gauge(out, "prefill_row_microseconds", "Believed time that a prompt row adds to a step",
          stats->prefill_row_ns / 1e3);
    family(out, "experts_touched_total", "Experts whose weights were read", "layer",
           stats->layer_experts, stats->n_layers);
    family(out, "expert_group_rows_total", "Rows that went through the experts of a group", "group",
           stats->group_pairs, stats->n_groups);
}

char *moge_metrics_text(const struct moge_metrics *metrics, int64_t now_us) {
    struct moge_stats stats;
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);
    if (!out)
        return NULL;
    moge_stats_read(&metrics->stats, now_us, &stats);
#define X(name, help)                                                                              \
    counter(out, #name, help, atomic_load_explicit(&metrics->name, memory_order_relaxed));
    MOGE_COUNTERS(X)
#undef X
#define X(name, help)                                                                              \
    gauge(out, #name, help, (double)atomic_load_explicit(&metrics->name, memory_order_relaxed));
    MOGE_GAUGES(X)
#undef X
    engine_text(out, &stats);
#define X(name, help) histogram(out, #name, help, &metrics->name);
    MOGE_HISTOGRAMS(X)
#undef X
    if (fclose(out) != 0) {
        free(text);
        return NULL;
    }
    return text;
}
