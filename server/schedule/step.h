/* SPDX-License-Identifier: Apache-2.0 */
/* The heart: one iteration of the engine thread, and the thread that repeats it. */
#ifndef MOGE_STEP_H
#define MOGE_STEP_H

#include <stdatomic.h>
#include "moge/draft.h"
#include "moge/engine.h"
#include "server/schedule/sched.h"

/* The six calls of a step, and what measuring them takes. */
enum moge_phase {
    MOGE_PHASE_ADMIT,
    MOGE_PHASE_PLAN,
    MOGE_PHASE_PROPOSE,
    MOGE_PHASE_FORWARD,
    MOGE_PHASE_ACCEPT,
    MOGE_PHASE_COMMIT,
    MOGE_PHASE_OBSERVE, /* the draft policy learns from the step */
    MOGE_PHASES
};

struct moge_step {
    /* ---- constant after init ---- */
    struct moge_sched *sched;
    struct moge_queue *queue;
    struct moge_draft *draft;
    struct moge_engine *engine;
    struct moge_accept *accept;
    int64_t (*now_ns)(void); /* monotonic; injected, so that simulations own time */
    /* Called after every step that had work, with the measurements below, and without spans before
     * the thread sleeps; metrics live there.  May be NULL. */
    void (*measured)(void *arg, const struct moge_step *step);
    void *measured_arg;
    /* Wakes the readers of all requests noted by moge_req.gained: called when those that ended
     * before the step have been, and again when all that the step gave something have.  May be
     * NULL. */
    void (*wake)(void *arg);
    void *wake_arg;
    /* ---- engine thread ---- */
    struct moge_batch batch;
    int64_t phase_ns[MOGE_PHASES]; /* the last step's calls */
    int64_t step_ns;               /* the last step, all of it */
    int64_t lap_ns;                /* when the last call ended */
    int forward_rc;                /* of the last step */
    /* ---- shared ---- */
    atomic_int stop; /* main sets: 0 run, 1 finish what is there, 2 abort what is there (relaxed) */
    _Atomic int64_t
        beat_us; /* engine thread writes at every step or idle wake-up; the watchdog reads */
};

/* One iteration.  Everything a request experiences between two tokens happens in these six calls.
 */
int moge_step_run(struct moge_step *step);

/* The engine thread: runs steps while there is work, sleeps on the queue otherwise, returns when
 * `stop` is set and nothing is left. */
void *moge_step_loop(void *step);

#endif
