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

/* Only fields of 8 bytes: they are copied as words. */
struct moge_stats {
    int64_t n_running, n_waiting;                  /* requests */
    int64_t pages_free, pages_used, pages_cached;  /* KV pages now */
    uint64_t pages_evicted;                        /* cached pages given to others */
    uint64_t n_steps, n_rows, n_logits, n_emitted; /* n_emitted: tokens that requests were given */
    double tokens_per_s;                           /* of the last seconds, as of at_us */
    int64_t at_us;                                 /* when this was published, monotonic */
    int64_t step_ns;                               /* sums over all steps */
    int64_t phase_ns[MOGE_PHASES];
    uint64_t offered[MOGE_DRAFT_LEN_MAX], accepted[MOGE_DRAFT_LEN_MAX]; /* by position */
    uint64_t draft_len[MOGE_DRAFT_LEN_MAX + 1];    /* decode rows that carried so many guesses */
    double guess_ns, row_ns[2];                    /* what the policy believes: see moge/draft.h */
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
