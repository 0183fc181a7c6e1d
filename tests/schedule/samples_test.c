/* SPDX-License-Identifier: Apache-2.0 */
/* Samples of one prompt in the scheduler: which pages they share, and what each computes itself. */
#include "tests/test.h"

#include "tests/schedule/scheduler.h"

enum { CONTEXT = 192, ROWS_MAX = 64, PAGES_MAX = 64, SLOTS_MAX = 8, N_REQS = 4 };
#include "tests/schedule/fake_engine.h"
#include "tests/schedule/rig.h"

static void open_without_cache(struct rig *rig) {
    struct moge_kv_options kv = {PAGES_MAX, SLOTS_MAX, CONTEXT / MOGE_PAGE_TOKENS, false};
    struct moge_queue_options queue = {N_REQS, 4 * CONTEXT};
    struct moge_sched_options options = {
        .n_running_max = SLOTS_MAX, .step_rows_max = ROWS_MAX, .prefill_chunk_max = 40};
    rig->draft = (struct moge_draft){test_rng_init(1), 70};
    rig_parts(rig, &kv, N_REQS, &queue);
    rig_open(rig, &options, ROWS_MAX);
}

/* Four samples of one prompt, without a prefix cache: its full pages are computed once. */
static void samples_share_their_prompt(void **state) {
    (void)state;
    enum { N_PROMPT = 100, N_FULL = (N_PROMPT - 1) / MOGE_PAGE_TOKENS };
    static struct rig w;
    struct moge_err err = {0};
    open_without_cache(&w);
    struct moge_req *first = moge_reqs_take(w.reqs);
    first->n_samples = 4;
    first->n_prompt = N_PROMPT;
    first->max_tokens = 20;
    for (int32_t i = 0; i < N_PROMPT; i++)
        first->tokens[i] = i % VOCAB;
    TEST_OK(moge_req_fan_out(w.reqs, first, &err), err);
    TEST_OK(moge_queue_submit(w.queue, first, &err), err);
    for (int i = 0; i < 3; i++) { /* chunks of the first; the others wait */
        assert_int_equal(moge_step_run(&w.step), 0);
        assert_int_equal(moge_sched_n_running(w.sched), 1);
    }
    assert_int_equal(moge_step_run(&w.step), 0);
    assert_int_equal(moge_sched_n_running(w.sched), 4);
    const int32_t *table = moge_kv_table(w.kv, first->slot);
    for (struct moge_req *req = first->next_sample; req; req = req->next_sample) {
        const int32_t *other = moge_kv_table(w.kv, req->slot);
        assert_memory_equal(other, table, N_FULL * sizeof *table);
        assert_true(other[N_FULL] != table[N_FULL]);
    }
    for (int32_t i = 1; i < w.step.batch.n_spans; i++)
        assert_int_equal(w.step.batch.spans[i].pos, N_FULL * MOGE_PAGE_TOKENS);
    moge_kv_check(w.kv);
    /* Whose pages are the others' must be able to go first. */
    atomic_store(&first->cancelled, true);
    while (!moge_sched_idle(w.sched)) {
        assert_int_equal(moge_step_run(&w.step), 0);
        moge_sched_check(w.sched);
    }
    assert_int_equal(first->usage.n_prompt, N_PROMPT);
    assert_int_equal(first->next_sample->usage.n_prompt, 0);
    assert_int_equal(first->next_sample->usage.n_output, 20);
    moge_req_release_samples(w.reqs, first);
    assert_int_equal(moge_kv_pages_free(w.kv), PAGES_MAX);
    rig_close(&w);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(samples_share_their_prompt)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
