/* SPDX-License-Identifier: Apache-2.0 */
/* Everything that is needed to serve, put together in order and taken apart in reverse: threads,
 * models (models.h), KV cache, engine, draft, scheduler (parts.h), one warm-up step through all of
 * them (warm.h), and then the engine thread.  Knows nothing of sockets.  Main thread. */
#ifndef MOGE_BOOT_H
#define MOGE_BOOT_H

#include <pthread.h>
#include "server/config.h"
#include "server/service.h"

/* Told while a file is loaded, some thousand times, how much of it is there (0..1).  False ends
 * the start with MOGE_CANCELLED. */
typedef bool moge_boot_loading(void *arg, const char *path, double done);

struct moge_boot {
    const struct moge_config *config; /* keeps */
    moge_boot_loading *loading;
    void *loading_arg;
    bool embedded; /* serves the pair that comes with moged */
    struct moge_threads *threads;
    struct moge_model *model, *draft_model;
    int32_t n_context, n_pages; /* KV pages of all requests */
    struct moge_kv *kv;
    struct moge_engine *engine;
    struct moge_draft *draft;
    struct moge_accept *accept;
    struct moge_reqs *reqs;
    struct moge_queue *queue;
    struct moge_sched *sched;
    struct moge_metrics *metrics;
    struct moge_step step;
    struct moge_service service;
    pthread_t engine_thread;
    bool engine_started;
};

/* Loads and warms up; err says in one sentence what is in the way. */
int moge_boot_open(struct moge_boot **out, const struct moge_config *config,
                   moge_boot_loading *loading, void *arg, struct moge_err *err);

int moge_boot_start(struct moge_boot *boot, struct moge_err *err); /* the engine thread */

/* Tells the engine thread to finish what is there, or (abort) to give it up, and wakes it. */
void moge_boot_stop(struct moge_boot *boot, bool abort);

/* Waits for the engine thread to finish what is there, unless told before to give it up.  Accepts
 * NULL. */
void moge_boot_join(struct moge_boot *boot);

int64_t moge_boot_now_ns(void); /* of the monotonic clock */

/* Joins the engine thread and frees everything; accepts NULL and what a failed open left. */
void moge_boot_close(struct moge_boot *boot);

#endif
