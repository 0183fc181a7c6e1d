/* SPDX-License-Identifier: Apache-2.0 */
/* The submit queue: how requests cross from RPC threads to the engine thread.  A mutex-protected
 * list; the engine thread detaches the whole list at once, and sleeps on it when it has nothing to
 * do.  Bounded by requests and by prompt tokens: what does not fit is refused at once, never
 * dropped later. */
#ifndef MOGE_QUEUE_H
#define MOGE_QUEUE_H

#include "server/schedule/req.h"

struct moge_queue;

struct moge_queue_options {
    int32_t n_reqs_max;   /* requests submitted but not yet admitted */
    int64_t n_tokens_max; /* prompt tokens in them */
};

int moge_queue_new(struct moge_queue **out, const struct moge_queue_options *options,
                   struct moge_err *err);
void moge_queue_free(struct moge_queue *queue);

/* Hands req and the samples behind it to the engine thread, which gets a reference of its own to
 * each.  All or none: MOGE_LIMIT with a sentence when full, MOGE_SHUTDOWN when closed; the requests
 * are then untouched.  Any thread. */
int moge_queue_submit(struct moge_queue *queue, struct moge_req *req, struct moge_err *err);

/* Wakes the engine thread: a cancel flag was set, or a reader made room in a ring.  Any thread. */
void moge_queue_wake(struct moge_queue *queue);

/* No more submissions: MOGE_SHUTDOWN from now on.  What is queued stays. */
void moge_queue_close(struct moge_queue *queue);

/* Engine thread: detaches everything submitted, oldest first (linked by next), NULL if nothing. */
struct moge_req *moge_queue_drain(struct moge_queue *queue);

/* Engine thread: tells the queue that a drained request has been admitted or dropped, making room.
 */
void moge_queue_admitted(struct moge_queue *queue, const struct moge_req *req);

/* Engine thread: sleeps until something is submitted or woken, or timeout_us passed (-1: for ever).
 */
void moge_queue_wait(struct moge_queue *queue, int64_t timeout_us);

/* Submitted and not yet admitted.  Any thread. */
int32_t moge_queue_len(struct moge_queue *queue);

#endif
