/* SPDX-License-Identifier: Apache-2.0 */
/* How a moged is doing: the reply of GetStats as a plain struct.  Any thread. */
#ifndef MOGE_CLIENT_STATS_H
#define MOGE_CLIENT_STATS_H

#include "moge/batch.h"
#include "moge/draft.h"
#include "tools/client.h"

/* Longer lists of a newer daemon are cut. */
#define MOGE_CLIENT_STATS_NAMES  48
#define MOGE_CLIENT_STATS_LAYERS 128
#define MOGE_CLIENT_STATS_GROUPS 64

struct moge_client_count {
    char name[48];
    int64_t value;
};

struct moge_client_spread { /* times in microseconds */
    char name[48];
    int64_t count, sum, p50, p90, p99;
};

struct moge_client_stats {
    int64_t uptime_us, n_running, n_prefilling, n_waiting, n_calls, n_connections;
    int64_t pages_free, pages_used, pages_cached, pages_evicted;
    int64_t heap_bytes;
    double tokens_per_s;
    int64_t n_steps, n_rows, n_tokens, step_us, weight_bytes;
    double guess_us, guess_round_us, guess_row_us, step_base_us, step_row_us, prefill_row_us;
    double expected_step_us[MOGE_STEP_COSTS]; /* of 1, 2, 4, ... rows */
    int n_positions, n_lengths, n_layers, n_groups, n_phases, n_counters, n_spreads, n_step_costs;
    int64_t offered[MOGE_DRAFT_LEN_MAX], accepted[MOGE_DRAFT_LEN_MAX];
    int64_t ngram_offered[MOGE_DRAFT_LEN_MAX], ngram_accepted[MOGE_DRAFT_LEN_MAX]; /* of these */
    int64_t draft_len[MOGE_DRAFT_LEN_MAX + 1];
    int64_t layer_experts[MOGE_CLIENT_STATS_LAYERS], group_rows[MOGE_CLIENT_STATS_GROUPS];
    struct moge_client_count phases[MOGE_CLIENT_STATS_NAMES]; /* microseconds */
    struct moge_client_count counters[MOGE_CLIENT_STATS_NAMES];
    struct moge_client_spread spreads[MOGE_CLIENT_STATS_NAMES];
    char *prometheus; /* malloc'ed when asked for, otherwise NULL */
};

int moge_client_stats(struct moge_client *client, bool with_prometheus, int64_t timeout_us,
                      struct moge_client_stats *stats, struct moge_err *err);

/* The counter or phase of a list by its name; 0 when there is none. */
int64_t moge_client_count_of(const struct moge_client_count *list, int n, const char *name);

#endif
