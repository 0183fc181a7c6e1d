/* SPDX-License-Identifier: Apache-2.0 */
/* One thread for work that would hold a CQ thread up: decoding and tokenising large messages.
 * Bounded by the bytes that wait.  Any thread submits. */
#ifndef MOGE_WORKER_H
#define MOGE_WORKER_H

#include <stdbool.h>
#include <stddef.h>
#include "moge/err.h"

struct moge_job {
    void (*run)(struct moge_job *job); /* on the worker thread; the job may be gone afterwards */
    size_t bytes;
    struct moge_job *next;
};

struct moge_worker;

int moge_worker_new(struct moge_worker **out, size_t bytes_max, struct moge_err *err);

/* Finishes what was submitted, stops; accepts NULL. */
void moge_worker_free(struct moge_worker *worker);

/* False when too much waits already. */
bool moge_worker_submit(struct moge_worker *worker, struct moge_job *job);

#endif
