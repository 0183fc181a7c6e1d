/* SPDX-License-Identifier: Apache-2.0 */
/* A scheduler and everything it steps with, over the fake engine: what its tests and simulations
 * begin from.  Whoever includes this has included fake_engine.h, and defines SLOTS_MAX. */
#ifndef TEST_SCHEDULE_RIG_H
#define TEST_SCHEDULE_RIG_H

struct rig {
    struct moge_engine engine;
    struct moge_draft draft;
    struct moge_kv *kv;
    struct moge_reqs *reqs;
    struct moge_queue *queue;
    struct moge_sched *sched;
    struct moge_step step;
    struct moge_span spans[SLOTS_MAX];
};

/* Pager, pool and queue as asked for. */
static void rig_parts(struct rig *rig, const struct moge_kv_options *kv, int32_t n_reqs,
                      const struct moge_queue_options *queue) {
    struct moge_err err;
    TEST_OK(moge_kv_new(&rig->kv, kv, &err), err);
    TEST_OK(moge_reqs_new(&rig->reqs, n_reqs, CONTEXT, &err), err);
    TEST_OK(moge_queue_new(&rig->queue, queue, &err), err);
}

/* The scheduler over these parts, which are filled into its options, and the step. */
static void rig_open(struct rig *rig, struct moge_sched_options *options, int32_t n_logits_cap) {
    struct moge_err err;
    options->kv = rig->kv;
    options->reqs = rig->reqs;
    options->draft = &rig->draft;
    options->n_context = CONTEXT;
    TEST_OK(moge_sched_new(&rig->sched, options, &err), err);
    rig->step = (struct moge_step){.sched = rig->sched,
                                   .queue = rig->queue,
                                   .draft = &rig->draft,
                                   .engine = &rig->engine,
                                   .now_ns = fake_now_ns,
                                   .batch = {.spans = rig->spans,
                                             .n_spans_cap = SLOTS_MAX,
                                             .n_rows_cap = ROWS_MAX,
                                             .n_logits_cap = n_logits_cap}};
}

static void rig_close(struct rig *rig) {
    assert_int_equal(moge_kv_pages_free(rig->kv), moge_kv_pages_total(rig->kv));
    moge_sched_free(rig->sched);
    moge_queue_free(rig->queue);
    moge_reqs_free(rig->reqs);
    moge_kv_free(rig->kv);
}

#endif
