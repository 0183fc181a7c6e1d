/* SPDX-License-Identifier: Apache-2.0 */
#include "server/schedule/step.h"

/* How long the engine thread sleeps before it looks at deadlines again. */
#define IDLE_WAIT_US    1000000
#define STALLED_WAIT_US 20000

static int64_t clock_us(const struct moge_step *step) {
    return step->now_ns() / 1000;
}

/* The call that just returned took the time since the one before it did. */
static void lap(struct moge_step *step, enum moge_phase phase) {
    int64_t now_ns = step->now_ns();
    step->phase_ns[phase] = now_ns - step->lap_ns;
    step->lap_ns = now_ns;
}

#define TIMED(phase, call) ((void)(call), lap(step, MOGE_PHASE_##phase))

/* Readers are woken for all requests at once. */
static void wake(const struct moge_step *step) {
    if (step->wake)
        step->wake(step->wake_arg);
}

/* What the step took goes to the draft policy, the scheduler and the metrics. */
static void measure(struct moge_step *step, int rc, int64_t begin_ns) {
    if (rc == 0) {
        moge_draft_observe(step->draft, &step->batch,
                           step->phase_ns[MOGE_PHASE_FORWARD] + step->phase_ns[MOGE_PHASE_ACCEPT]);
        moge_sched_observe(step->sched, &step->batch, step->lap_ns - begin_ns);
    }
    lap(step, MOGE_PHASE_OBSERVE);
    step->step_ns = step->lap_ns - begin_ns;
    step->forward_rc = rc;
    if (step->measured)
        step->measured(step->measured_arg, step);
}

/* clang-format off */
int moge_step_run(struct moge_step *step) {
    struct moge_batch *batch = &step->batch;
    int rc = 0;
    int64_t begin_ns = step->lap_ns = step->now_ns(), begin_us = begin_ns / 1000;
    moge_sched_admit(step->sched, step->queue, begin_us);          /* take pages, or wait */
    TIMED(ADMIT, wake(step));                                      /* whoever ended meanwhile */
    TIMED(PLAN, moge_sched_plan(step->sched, batch));              /* decode rows, prompt chunks */
    if (batch->n_spans == 0)
        return 0;                                                  /* all wait for a reader */
    TIMED(PROPOSE, moge_draft_propose(step->draft, batch));        /* guesses follow decode rows */
    TIMED(FORWARD, rc = moge_engine_forward(step->engine, batch)); /* logits of rows; KV grows */
    if (rc == 0)
        moge_accept_batch(step->accept, batch);                    /* agreeing guesses, plus one */
    lap(step, MOGE_PHASE_ACCEPT);
    moge_sched_commit(step->sched, batch, rc, clock_us(step));     /* tokens out */
    TIMED(COMMIT, wake(step));                                     /* to all readers */
    measure(step, rc, begin_ns);
    return rc;
}
/* clang-format on */

static void beat(struct moge_step *step) {
    atomic_store_explicit(&step->beat_us, clock_us(step), memory_order_relaxed);
}

void *moge_step_loop(void *arg) {
    struct moge_step *step = arg;
    for (;;) {
        beat(step);
        int stop = atomic_load_explicit(&step->stop, memory_order_relaxed);
        if (stop == 2)
            moge_sched_abort(step->sched, step->queue, MOGE_FINISH_SHUTDOWN, clock_us(step));
        moge_step_run(step); /* a failed forward has already been told to its requests */
        bool idle = moge_sched_idle(step->sched);
        if (idle)
            moge_sched_check(step->sched);
        if (idle && stop && moge_queue_len(step->queue) == 0)
            return NULL;
        if (step->batch.n_spans > 0)
            continue;
        if (step->measured) /* cancelled requests leave without a step */
            step->measured(step->measured_arg, step);
        moge_queue_wait(step->queue, idle ? IDLE_WAIT_US : STALLED_WAIT_US);
    }
}
