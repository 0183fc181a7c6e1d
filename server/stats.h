/* SPDX-License-Identifier: Apache-2.0 */
/* What the engine thread knows about itself, as of the end of one step: the one picture that the
 * stats RPC, the metrics text and the benches read.  The engine thread publishes it once a step and
 * never waits for a reader; a reader that was overtaken reads again, so all numbers of a copy
 * belong to the same step.  Totals count from the start of the daemon. */
#ifndef MOGE_STATS_H
#define MOGE_STATS_H

#include <stdatomic.h>
#include <stdint.h>
#include "moge/draft.h"
#include "moge/kv.h"
#include "server/schedule/step.h"

#define MOGE_STATS_LAYERS_MAX 128 /* layers beyond are not told apart */
#define MOGE_STATS_GROUPS_MAX 64

/* Counters and gauges of the snapshot, as the metrics and GetStats name them: metric, field,
 * meaning. */
#define MOGE_STATS_COUNTERS(X)                                                                     \
    X(engine_steps_total, n_steps, "Steps that had work")                                          \
    X(engine_step_errors_total, n_failed, "Steps whose forward failed")                            \
    X(engine_rows_total, n_rows, "Rows computed")                                                  \
    X(engine_tokens_total, n_emitted, "Tokens that requests were given")                           \
    X(engine_weight_bytes_total, weight_bytes, "Weight bytes that had to be read")                 \
    X(num_preemptions_total, n_preempted, "Times a request lost its pages to others")              \
    X(recomputed_tokens_total, n_recomputed, "Tokens to be computed again after a preemption")     \
    X(prefix_cache_queries_total, n_prefix_queried, "Prompt tokens of admitted requests")          \
    X(prefix_cache_hits_total, n_prefix_hit, "Of which the prefix cache had so many")              \
    X(prefix_cache_evicted_pages_total, pages_evicted, "Cached pages given to others")             \
    X(request_refused_age_total, n_refused_age, "Refused because they had waited too long")        \
    X(request_refused_deadline_total, n_refused_deadline, "Refused because they would be late")    \
    X(spec_decode_num_drafts_total, n_drafts, "Decode rows that carried guesses")                  \
    X(spec_decode_num_draft_tokens_total, n_offered, "Guesses offered")                            \
    X(spec_decode_num_accepted_tokens_total, n_accepted, "Guesses accepted")

#define MOGE_STATS_GAUGES(X)                                                                       \
    X(num_requests_running, n_running, "Requests in the batch")                                    \
    X(num_requests_prefilling, n_prefilling, "Of these, such that have no token yet")              \
    X(num_requests_waiting, n_waiting, "Requests waiting for pages or a slot")                     \
    X(kv_cache_pages, n_pages, "KV pages in all")                                                  \
    X(kv_cache_pages_free, pages_free, "KV pages that hold nothing")                               \
    X(kv_cache_pages_used, pages_used, "KV pages that running requests hold")                      \
    X(kv_cache_pages_cached, pages_cached, "KV pages of prefixes that may come again")             \
    X(prefill_rows_limit, prefill_rows_max, "Prompt rows that a step may have beside decodes")

/* Only fields of 8 bytes: they are copied as words. */
struct moge_stats {
    int64_t n_running, n_prefilling, n_waiting;            /* requests */
    int64_t n_pages, pages_free, pages_used, pages_cached; /* KV pages now */
    uint64_t pages_evicted;                                /* cached pages given to others */
    uint64_t n_preempted, n_recomputed, n_prefix_queried, n_prefix_hit; /* see sched.h */
    uint64_t n_refused_age, n_refused_deadline;
    int64_t prefill_rows_max;
    double prefill_row_ns; /* what a prompt row adds to a step, as the scheduler believes */
    uint64_t n_steps, n_failed, n_rows, n_logits, n_emitted;
    double tokens_per_s; /* of the last seconds, as of at_us */
    int64_t at_us;       /* when this was published, monotonic */
    int64_t step_ns;     /* sums over all steps */
    int64_t phase_ns[MOGE_PHASES];
    uint64_t n_drafts, n_offered, n_accepted; /* decode rows with guesses; guesses */
    uint64_t offered[MOGE_DRAFT_LEN_MAX], accepted[MOGE_DRAFT_LEN_MAX]; /* by position */
    uint64_t ngram_offered[MOGE_DRAFT_LEN_MAX], ngram_accepted[MOGE_DRAFT_LEN_MAX]; /* looked up */
    uint64_t draft_len[MOGE_DRAFT_LEN_MAX + 1]; /* decode rows that carried so many guesses */
    /* What the policy believes, see moge/draft.h: steps of 1, 2, 4, 8, ... rows, and guesses. */
    double expected_step_ns[MOGE_STEP_COSTS];
    double guess_round_ns, guess_row_ns, guess_ns, row_ns[2];
    uint64_t n_layers, n_groups;                   /* entries of the two below */
    uint64_t weight_bytes;                         /* that had to be read */
    uint64_t layer_experts[MOGE_STATS_LAYERS_MAX]; /* experts touched */
    uint64_t group_pairs[MOGE_STATS_GROUPS_MAX];   /* (row, expert) pairs */
};

#define MOGE_STATS_WORDS (sizeof(struct moge_stats) / sizeof(uint64_t))

struct moge_stats_cell {
    struct moge_stats engine;  /* engine thread: what it publishes next */
    _Atomic uint64_t sequence; /* odd while the words are being written */
    _Atomic uint64_t words[MOGE_STATS_WORDS];
};

/* Counts a step (one without spans: only the gauges) and publishes.  The step's parts are the ones
 * it ran with; kv may be NULL.  Engine thread; never waits. */
void moge_stats_step(struct moge_stats_cell *cell, const struct moge_step *step,
                     const struct moge_kv *kv);

/* A copy as of one step; all zero before the first.  tokens_per_s fades with the time since.  Any
 * thread. */
void moge_stats_read(const struct moge_stats_cell *cell, int64_t now_us, struct moge_stats *out);

/* "admit", "plan", "propose", "forward", "accept", "commit", "observe" */
const char *moge_phase_name(enum moge_phase phase);

#endif
