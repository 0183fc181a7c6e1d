/* SPDX-License-Identifier: Apache-2.0 */
/* The scheduler: which rows go into the next step, and what becomes of its result.  Continuous
 * batching: decode spans of all running sequences first, then prompt chunks, shared out fairly, in
 * what is left of the token budget.
 *
 * One order decides who is served first: priority, and arrival within it; with aging, a level of
 * priority is worth a fixed time of waiting.  A request is admitted only when pages for its history
 * and a margin are there.  No clock (time is handed in), no RPC, no allocation after new.  Engine
 * thread. */
#ifndef MOGE_SCHED_H
#define MOGE_SCHED_H

#include "moge/draft.h"
#include "moge/kv.h"
#include "server/schedule/queue.h"
#include "server/schedule/req.h"

struct moge_sched;

enum moge_admission {
    MOGE_ADMISSION_OPTIMISTIC, /* pages for the history; who runs out of pages preempts another */
    MOGE_ADMISSION_RESERVE,    /* pages for prompt + max_tokens: nobody is ever preempted */
};

struct moge_sched_options {
    struct moge_kv *kv;                     /* keeps */
    struct moge_reqs *reqs;                 /* keeps */
    struct moge_draft *draft;               /* keeps; told when a slot is given up */
    const struct moge_tokenizer *tokenizer; /* keeps */
    int32_t n_running_max;                  /* sequences decoding or prefilling at once */
    int32_t step_rows_max;                  /* token budget of one step, guesses included */
    int32_t prefill_chunk_max;              /* most prompt tokens of one sequence in one step */
    int32_t n_context;
    enum moge_admission admission;
    /* The rest is optional: 0 turns it off. */
    int32_t prefill_rows_beside_decodes; /* most prompt rows of a step that has decode rows */
    int64_t itl_target_us;               /* the same, such that a step takes about this long */
    int64_t aging_us;         /* waiting this long is worth one level of priority; 0: strict */
    int64_t queue_age_max_us; /* a request that has waited longer for its first page is refused */
};
int moge_sched_new(struct moge_sched **out, const struct moge_sched_options *options,
                   struct moge_err *err);
void moge_sched_free(struct moge_sched *sched);

/* Takes over what was submitted; reaps cancelled and expired requests; admits the oldest waiting
 * requests while slots and pages last. */
void moge_sched_admit(struct moge_sched *sched, struct moge_queue *queue, int64_t now_us);

/* Fills the batch: rows, spans and room for guesses. */
void moge_sched_plan(struct moge_sched *sched, struct moge_batch *batch);

/* After the forward (forward_rc is its result): appends decided tokens up to a stop, pushes them to
 * the rings, publishes full pages and truncates KV to what is accepted, retires finished requests.
 */
void moge_sched_commit(struct moge_sched *sched, struct moge_batch *batch, int forward_rc,
                       int64_t now_us);

/* How long the step took that has just been committed: what the limits on time go by.  Reads the
 * batch's spans, not their owners. */
void moge_sched_observe(struct moge_sched *sched, const struct moge_batch *batch, int64_t step_ns);

/* Cancels everything, waiting and running (the drain timer ran out). */
void moge_sched_abort(struct moge_sched *sched, struct moge_queue *queue, enum moge_finish finish,
                      int64_t now_us);

int32_t moge_sched_n_waiting(const struct moge_sched *sched);
int32_t moge_sched_n_running(const struct moge_sched *sched);
bool moge_sched_idle(const struct moge_sched *sched); /* nothing waiting, nothing running */

struct moge_sched_stats {
    int32_t n_waiting, n_running, n_prefilling;
    uint64_t n_preempted, n_recomputed; /* preemptions; positions to be computed again for them */
    uint64_t n_prefix_queried, n_prefix_hit; /* prompt tokens admitted; found in the cache */
    uint64_t n_refused_age, n_refused_deadline;
    double step_ns, prefill_row_ns; /* a step without prompt rows; what each such row adds */
    int32_t prefill_rows_max;       /* prompt rows that a step may now have beside decodes */
};
void moge_sched_stats(const struct moge_sched *sched, struct moge_sched_stats *out);

/* Aborts unless lists, slots, pages and token counts agree. */
void moge_sched_check(const struct moge_sched *sched);

#endif
