/* SPDX-License-Identifier: Apache-2.0 */
/* Limits on time, with a clock that the fake engine moves by the rows it is given: what running
 * streams, short prompts and deadlines experience while a prompt of 30,000 tokens comes in.  And
 * what the scheduler itself costs, on the real clock. */
#include "tests/test.h"

#include <stdbool.h>
#include <time.h>

#include "tests/schedule/scheduler.h"

enum {
    CONTEXT = 32768,
    ROWS_MAX = 512,
    PAGES_MAX = 3 * CONTEXT / MOGE_PAGE_TOKENS,
    SLOTS_MAX = 256,
    N_STREAMS = 8,
    LONG_PROMPT = 30000,
    N_COST_STEPS = 400
};
#include "tests/schedule/fake_engine.h"
#include "tests/schedule/rig.h"

struct world {
    struct rig rig;
    struct moge_req *streams[SLOTS_MAX];
    int32_t n_streams;
};

static struct world world;

static void world_open(const struct moge_sched_options *limits) {
    struct world *w = &world;
    memset(w, 0, sizeof *w);
    fake_now_us = 0;
    w->rig.engine.step_us = 20000;
    w->rig.engine.row_us = 1000;
    struct moge_kv_options kv = {PAGES_MAX, SLOTS_MAX, CONTEXT / MOGE_PAGE_TOKENS, false};
    struct moge_queue_options queue = {SLOTS_MAX, 10 * CONTEXT};
    rig_parts(&w->rig, &kv, SLOTS_MAX, &queue);
    struct moge_sched_options options = *limits;
    options.n_running_max = SLOTS_MAX;
    options.step_rows_max = ROWS_MAX;
    options.prefill_chunk_max = ROWS_MAX;
    rig_open(&w->rig, &options, ROWS_MAX);
}

static void world_close(void) {
    struct world *w = &world;
    moge_sched_abort(w->rig.sched, w->rig.queue, MOGE_FINISH_SHUTDOWN, fake_now_us);
    for (int32_t i = 0; i < w->n_streams; i++)
        moge_req_release(w->rig.reqs, w->streams[i]);
    rig_close(&w->rig);
}

static struct moge_req *submit(int32_t n_prompt, int64_t timeout_us) {
    struct world *w = &world;
    struct moge_req *req = moge_reqs_take(w->rig.reqs);
    assert_non_null(req);
    struct test_rng rng = test_rng_init((uint64_t)(w->n_streams + 1));
    for (int32_t i = 0; i < n_prompt; i++)
        req->tokens[i] = test_below(&rng, VOCAB);
    req->n_prompt = n_prompt;
    req->max_tokens = CONTEXT;
    req->spec_mode = MOGE_SPEC_OFF;
    req->submitted_us = fake_now_us;
    req->deadline_us = timeout_us == INT64_MAX ? INT64_MAX : fake_now_us + timeout_us;
    struct moge_err err;
    TEST_OK(moge_queue_submit(w->rig.queue, req, &err), err);
    w->streams[w->n_streams++] = req;
    return req;
}

static void everybody_reads(void) {
    static char text[MOGE_RING_TEXT_BYTES];
    struct moge_token_out token;
    size_t len;
    for (int32_t i = 0; i < world.n_streams; i++)
        while (moge_req_pop(world.streams[i], &token, text, &len)) {
        }
}

static void step_run(void) {
    assert_int_equal(moge_step_run(&world.rig.step), 0);
    everybody_reads();
}

static void streams_start(void) {
    for (int32_t i = 0; i < N_STREAMS; i++)
        submit(40, INT64_MAX);
    for (int32_t i = 0; i < 20; i++)
        step_run();
}

static const struct moge_sched_options timely = {.itl_target_us = 100000};

/* The longest step while the prompt comes in, past the first few that show what a row costs. */
static int64_t longest_gap_us(const struct moge_sched_options *limits, int64_t page_ns,
                              int64_t *mean_us) {
    world_open(limits);
    world.rig.engine.page_ns = page_ns;
    streams_start();
    const struct moge_req *req = submit(LONG_PROMPT, INT64_MAX);
    int64_t longest_us = 0, begin_us = 0;
    int32_t n_steps = 0;
    for (; req->first_token_us == 0; n_steps++) {
        if (n_steps == 3)
            begin_us = fake_now_us;
        int64_t before_us = fake_now_us;
        step_run();
        int64_t gap_us = fake_now_us - before_us;
        longest_us = n_steps >= 3 && gap_us > longest_us ? gap_us : longest_us;
        assert_true(n_steps < 10000);
    }
    *mean_us = (fake_now_us - begin_us) / (n_steps - 3);
    world_close();
    return longest_us;
}

static void gaps_stay_near_the_target(void **state) {
    (void)state;
    int64_t mean_us, free_mean_us;
    struct moge_sched_options none = {0};
    int64_t longest_us = longest_gap_us(&timely, 0, &mean_us);
    int64_t free_us = longest_gap_us(&none, 0, &free_mean_us);
    print_message("30000 tokens beside %d streams: gaps at most %lld us, mean %lld us; without a "
                  "target %lld us\n",
                  N_STREAMS, (long long)longest_us, (long long)mean_us, (long long)free_us);
    assert_true(longest_us <= timely.itl_target_us * 11 / 10);
    assert_true(mean_us >= timely.itl_target_us * 8 / 10); /* and makes use of it */
    assert_true(free_us > 3 * timely.itl_target_us);
    /* The same when rows grow dearer with what lies before them: three times, at the end. */
    longest_us = longest_gap_us(&timely, 1100, &mean_us);
    assert_true(longest_us <= timely.itl_target_us * 11 / 10);
    assert_true(mean_us >= timely.itl_target_us * 8 / 10);
    /* A number of rows instead of a time. */
    struct moge_sched_options few = {.prefill_rows_beside_decodes = 32};
    longest_us = longest_gap_us(&few, 0, &mean_us);
    assert_int_equal(longest_us, 20000 + 1000 * (N_STREAMS + 32));
}

/* A target that cannot be met must not stop prompts. */
static void an_impossible_target_leaves_prompts_a_page_a_step(void **state) {
    (void)state;
    struct moge_sched_options hasty = {.itl_target_us = 1};
    world_open(&hasty);
    streams_start();
    const struct moge_req *req = submit(1000, INT64_MAX);
    int32_t n_steps = 0;
    for (; req->first_token_us == 0; n_steps++)
        step_run();
    assert_true(n_steps <= 1000 / MOGE_PAGE_TOKENS + 1);
    world_close();
}

/* Steps until a prompt of n tokens, coming in while the long one is in, has its first token. */
static int32_t steps_to_first_token(int32_t n_prompt) {
    const struct moge_req *req = submit(n_prompt, INT64_MAX);
    int32_t n_steps = 0;
    for (; req->first_token_us == 0; n_steps++) {
        step_run();
        assert_true(n_steps < 2000);
    }
    return n_steps;
}

static void short_prompts_do_not_wait_for_a_long_one(void **state) {
    (void)state;
    world_open(&timely);
    streams_start();
    const struct moge_req *big = submit(LONG_PROMPT, INT64_MAX);
    for (int32_t i = 0; i < 20; i++)
        step_run();
    /* Some 70 rows a step, half of them its own. */
    assert_true(steps_to_first_token(20) <= 2);
    assert_true(steps_to_first_token(350) <= 14);
    assert_int_equal(big->first_token_us, 0);
    /* More prompts than pages of rows: all advance in turns. */
    const struct moge_req *many[12];
    for (int32_t i = 0; i < 12; i++)
        many[i] = submit(2000, INT64_MAX);
    for (int32_t i = 0; i < 60; i++)
        step_run();
    int32_t least = CONTEXT, most = 0;
    for (int32_t i = 0; i < 12; i++) {
        least = sched_min(least, many[i]->n_computed);
        most = many[i]->n_computed > most ? many[i]->n_computed : most;
    }
    assert_true(least > 0 && most - least <= 2 * MOGE_PAGE_TOKENS);
    world_close();
}

/* The time to the first token of 2000 tokens beside a long prompt; -1: refused, in the first step.
 */
static int64_t time_to_first_token(int64_t timeout_us) {
    world_open(&timely);
    streams_start();
    submit(LONG_PROMPT, INT64_MAX);
    for (int32_t i = 0; i < 20; i++)
        step_run();
    const struct moge_req *req = submit(2000, timeout_us);
    int64_t begin_us = fake_now_us, taken_us = -1;
    step_run();
    if (atomic_load(&req->finish) == MOGE_FINISH_REFUSED) {
        assert_int_equal(req->err.code, MOGE_DEADLINE);
        print_message("%s\n", req->err.text);
    } else {
        while (req->first_token_us == 0 && atomic_load(&req->finish) == MOGE_FINISH_NONE)
            step_run();
        taken_us = req->first_token_us - begin_us;
    }
    world_close();
    return taken_us;
}

static void hopeless_deadlines_are_refused_at_once(void **state) {
    (void)state;
    int64_t taken_us = time_to_first_token(INT64_MAX);
    assert_true(taken_us > 0);
    assert_int_equal(time_to_first_token(taken_us * 7 / 10), -1);
    assert_int_equal(time_to_first_token(taken_us * 14 / 10), taken_us);
}

static int64_t real_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* What admit, plan and commit take for n decoding streams; told, not judged. */
static void cost_tell(int32_t n) {
    struct moge_sched_options none = {0};
    world_open(&none);
    for (int32_t i = 0; i < n; i++)
        submit(1, INT64_MAX);
    struct moge_step *step = &world.rig.step;
    int64_t total_ns = 0, n_rows = 0;
    for (int32_t i = 0; i < N_COST_STEPS; i++) {
        int64_t begin_ns = real_ns();
        moge_sched_admit(step->sched, step->queue, fake_now_us);
        moge_sched_plan(step->sched, &step->batch);
        int64_t planned_ns = real_ns();
        moge_engine_forward(step->engine, &step->batch);
        moge_accept_batch(step->accept, &step->batch);
        n_rows += moge_batch_rows(&step->batch);
        int64_t decided_ns = real_ns();
        moge_sched_commit(step->sched, &step->batch, 0, fake_now_us);
        total_ns += real_ns() - decided_ns + planned_ns - begin_ns;
        if (i % 16 == 0)
            everybody_reads();
    }
    assert_int_equal(n_rows, N_COST_STEPS * n);
    print_message("%d streams: admit + plan + commit %lld ns a step, %lld ns a token\n", n,
                  (long long)(total_ns / N_COST_STEPS), (long long)(total_ns / n_rows));
    world_close();
}

static void scheduling_costs(void **state) {
    (void)state;
    cost_tell(1);
    cost_tell(32);
    cost_tell(200);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gaps_stay_near_the_target),
        cmocka_unit_test(an_impossible_target_leaves_prompts_a_page_a_step),
        cmocka_unit_test(short_prompts_do_not_wait_for_a_long_one),
        cmocka_unit_test(hopeless_deadlines_are_refused_at_once),
        cmocka_unit_test(scheduling_costs)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
