/* SPDX-License-Identifier: Apache-2.0 */
/* The worker pool.  n_threads - 1 workers are created once; the calling thread is thread 0 of every
 * run. A forward pass is ONE run with barriers inside, because waking a worker costs far more than
 * a barrier between running threads.  Threads split output elements, never a reduction: results do
 * not depend on n_threads.  One run at a time, from one thread at a time (the engine thread). */
#ifndef MOGE_THREADS_H
#define MOGE_THREADS_H

#include <stdbool.h>
#include "moge/err.h"

#define MOGE_THREADS_MAX 256

struct moge_threads;

typedef void moge_threads_fn(void *arg, int i_thread, int n_threads);

/* n_threads in 1..MOGE_THREADS_MAX; 1 creates no worker. */
int moge_threads_new(struct moge_threads **out, int n_threads, struct moge_err *err);

/* Stops and joins the workers; accepts NULL. */
void moge_threads_free(struct moge_threads *pool);

int moge_threads_count(const struct moge_threads *pool);

/* Calls fn(arg, i, n) once on every thread of the pool and returns when all have returned. */
void moge_threads_run(struct moge_threads *pool, moge_threads_fn *fn, void *arg);

/* Inside a run: every thread of the pool waits for every other.  Spins briefly, then sleeps. */
void moge_threads_barrier(struct moge_threads *pool);

/* True while threads of the pool shared a processor at their last meeting, for want of a free one:
 * meetings then take several times as long.  A hint; between runs, from the caller's thread. */
bool moge_threads_crowded(const struct moge_threads *pool);

/* Splits n items in units of `grain` evenly: thread i gets [*begin, *end), possibly empty. */
void moge_threads_split(int n, int grain, int i_thread, int n_threads, int *begin, int *end);

#endif
