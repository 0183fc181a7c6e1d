/* SPDX-License-Identifier: Apache-2.0 */
/* The scheduler: which rows go into the next step, and what becomes of its result.  Continuous
 * batching: decode spans of all running sequences first, then prefill chunks of the oldest prompts
 * in what is left of the token budget.  First come, first served; a request is admitted only when
 * pages for its whole prompt and a margin are there.  No clock (time is handed in), no RPC, no
 * allocation after new.  Engine thread. */
#ifndef MOGE_SCHED_H
#define MOGE_SCHED_H

#include "moge/draft.h"
#include "moge/kv.h"
#include "server/schedule/queue.h"
#include "server/schedule/req.h"

struct moge_sched;

struct moge_sched_options {
    struct moge_kv *kv;                     /* keeps */
    struct moge_reqs *reqs;                 /* keeps */
    struct moge_draft *draft;               /* keeps; told when a slot is given up */
    const struct moge_tokenizer *tokenizer; /* keeps */
    int32_t n_running_max;                  /* sequences decoding or prefilling at once */
    int32_t step_rows_max;                  /* token budget of one step, guesses included */
    int32_t prefill_chunk_max;              /* most prompt tokens of one sequence in one step */
    int32_t n_context;
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
 * the rings, truncates KV to what is accepted, retires finished requests. */
void moge_sched_commit(struct moge_sched *sched, struct moge_batch *batch, int forward_rc,
                       int64_t now_us);

/* Cancels everything, waiting and running (the drain timer ran out). */
void moge_sched_abort(struct moge_sched *sched, struct moge_queue *queue, enum moge_finish finish,
                      int64_t now_us);

int32_t moge_sched_n_waiting(const struct moge_sched *sched);
int32_t moge_sched_n_running(const struct moge_sched *sched);
bool moge_sched_idle(const struct moge_sched *sched); /* nothing waiting, nothing running */

/* Aborts unless lists, slots, pages and token counts agree. */
void moge_sched_check(const struct moge_sched *sched);

#endif
