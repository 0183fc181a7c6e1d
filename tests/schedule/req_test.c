/* SPDX-License-Identifier: Apache-2.0 */
/* The pool, the ring between two real threads, and the submit queue's bounds. */
#include "tests/test.h"

#include <pthread.h>
#include <sched.h>

#include "server/schedule/queue.c"
#include "server/schedule/req.c"

struct moge_sample_params moge_sample_params_default(void) {
    return (struct moge_sample_params){.temperature = 1, .top_p = 1, .n_logprobs = -1};
}

static struct moge_reqs *reqs_make(int32_t n) {
    struct moge_reqs *reqs = NULL;
    struct moge_err err;
    TEST_OK(moge_reqs_new(&reqs, n, 100, &err), err);
    return reqs;
}

static void pool_is_bounded_and_refs_count(void **state) {
    (void)state;
    struct moge_reqs *reqs = reqs_make(2);
    struct moge_req *a = moge_reqs_take(reqs), *b = moge_reqs_take(reqs);
    assert_non_null(a);
    assert_non_null(b);
    assert_null(moge_reqs_take(reqs));
    assert_true(a->tokens != b->tokens && a->sample.bias == a->bias && a->slot == -1);
    a->n_prompt = 7;
    atomic_fetch_add(&a->refs, 1);
    moge_req_release(reqs, a);
    assert_null(moge_reqs_take(reqs)); /* one reference is left */
    moge_req_release(reqs, a);
    struct moge_req *again = moge_reqs_take(reqs);
    assert_ptr_equal(again, a);
    assert_int_equal(again->n_prompt, 0); /* cleared */
    moge_reqs_free(reqs);
    moge_reqs_free(NULL);
}

enum { N_SENT = 20000 };

static int32_t text_len_of(int32_t i) {
    return (i * 7) % 40;
}

static void *produce(void *arg) {
    struct moge_req *req = arg;
    for (int32_t i = 0; i < N_SENT; i++) {
        char text[64];
        memset(text, 'a' + i % 26, sizeof text);
        struct moge_token_out out = {.id = i, .text_len = text_len_of(i)};
        while (moge_req_room(req) == 0)
            sched_yield();
        moge_req_push(req, &out, text);
    }
    return NULL;
}

static void ring_keeps_order_and_text_between_threads(void **state) {
    (void)state;
    static char text[MOGE_RING_TEXT_BYTES];
    struct moge_reqs *reqs = reqs_make(1);
    struct moge_req *req = moge_reqs_take(reqs);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, produce, req), 0);
    for (int32_t i = 0; i < N_SENT;) {
        struct moge_token_out out;
        size_t len;
        if (!moge_req_pop(req, &out, text, &len)) {
            sched_yield();
            continue;
        }
        assert_int_equal(out.id, i);
        assert_int_equal(len, text_len_of(i));
        for (size_t j = 0; j < len; j++)
            assert_int_equal(text[j], 'a' + i % 26);
        i++;
    }
    pthread_join(thread, NULL);
    moge_reqs_free(reqs);
}

static void queue_refuses_with_a_sentence(void **state) {
    (void)state;
    struct moge_reqs *reqs = reqs_make(4);
    struct moge_queue *queue = NULL;
    struct moge_err err = {0};
    TEST_OK(moge_queue_new(&queue, &(struct moge_queue_options){2, 100}, &err), err);
    struct moge_req *req[4];
    for (int i = 0; i < 4; i++) {
        req[i] = moge_reqs_take(reqs);
        req[i]->n_prompt = 45;
    }
    TEST_OK(moge_queue_submit(queue, req[0], &err), err);
    req[1]->n_prompt = 90;
    assert_int_equal(moge_queue_submit(queue, req[1], &err), MOGE_LIMIT);
    assert_non_null(strstr(err.text, "45 prompt tokens are waiting"));
    assert_int_equal(atomic_load(&req[1]->refs), 1); /* untouched */
    TEST_OK(moge_queue_submit(queue, req[2], &err), err);
    req[3]->n_prompt = 1;
    assert_int_equal(moge_queue_submit(queue, req[3], &err), MOGE_LIMIT);
    assert_non_null(strstr(err.text, "2 requests are waiting"));
    struct moge_req *list = moge_queue_drain(queue);
    assert_ptr_equal(list, req[0]);
    assert_ptr_equal(list->next, req[2]);
    assert_null(list->next->next);
    assert_int_equal(moge_queue_submit(queue, req[3], &err),
                     MOGE_LIMIT); /* drained is not yet admitted */
    moge_queue_admitted(queue, req[0]);
    TEST_OK(moge_queue_submit(queue, req[3], &err), err);
    moge_queue_close(queue);
    assert_int_equal(moge_queue_submit(queue, req[1], &err), MOGE_SHUTDOWN);
    assert_ptr_equal(moge_queue_drain(queue), req[3]);
    moge_queue_free(queue);
    moge_reqs_free(reqs);
}

static void samples_are_filled_alike_but_for_their_seeds(void **state) {
    (void)state;
    struct moge_reqs *reqs = reqs_make(4);
    struct moge_req *req = moge_reqs_take(reqs);
    struct moge_err err = {0};
    req->n_samples = 3;
    req->n_prompt = 2;
    req->tokens[0] = 8;
    req->tokens[1] = 9;
    req->bias[0].id = 7;
    req->sample.seed = 5;
    req->n_prompt_logprobs = 4;
    TEST_OK(moge_req_fan_out(reqs, req, &err), err);
    assert_true(req->sample.seed == 5 && req->n_prompt_logprobs == 4);
    struct moge_req *second = req->next_sample, *third = second->next_sample;
    assert_null(third->next_sample);
    assert_int_equal(third->i_sample, 2);
    assert_true(second->tokens != req->tokens && second->sample.bias == second->bias);
    assert_true(second->sample.stop_ids == second->stop_ids && second->bias[0].id == 7);
    assert_memory_equal(third->tokens, req->tokens, 2 * sizeof *req->tokens);
    assert_int_equal(second->n_prompt_logprobs, -1);
    assert_true(second->sample.seed == moge_sample_seed(5, 1));
    assert_true(second->sample.seed != third->sample.seed && second->sample.seed != 5);
    /* What clients may have noted must not change. */
    assert_true(moge_sample_seed(0, 1) == 0xe220a8397b1dcdafu);
    moge_req_release_samples(reqs, req);
    /* The pool's end leaves nothing behind. */
    req = moge_reqs_take(reqs);
    req->n_samples = 5;
    assert_int_equal(moge_req_fan_out(reqs, req, &err), MOGE_LIMIT);
    moge_req_release_samples(reqs, req);
    for (int i = 0; i < 4; i++)
        assert_non_null(moge_reqs_take(reqs));
    moge_reqs_free(reqs);
}

static void samples_are_queued_together_or_not_at_all(void **state) {
    (void)state;
    struct moge_reqs *reqs = reqs_make(6);
    struct moge_queue *queue = NULL;
    struct moge_err err = {0};
    TEST_OK(moge_queue_new(&queue, &(struct moge_queue_options){4, 100}, &err), err);
    struct moge_req *a = moge_reqs_take(reqs), *b = moge_reqs_take(reqs);
    a->n_prompt = 60;
    a->n_samples = 3;
    TEST_OK(moge_req_fan_out(reqs, a, &err), err);
    b->n_prompt = 1;
    b->n_samples = 2;
    TEST_OK(moge_req_fan_out(reqs, b, &err), err);
    TEST_OK(moge_queue_submit(queue, a, &err), err); /* its prompt counts once */
    assert_int_equal(moge_queue_submit(queue, b, &err), MOGE_LIMIT);
    assert_int_equal(moge_queue_len(queue), 3);
    assert_int_equal(atomic_load(&b->refs), 1);
    assert_int_equal(atomic_load(&b->next_sample->refs), 1);
    struct moge_req *first = moge_queue_drain(queue);
    assert_ptr_equal(first, a);
    assert_null(a->fork_of);
    assert_ptr_equal(a->next->fork_of, a);
    assert_ptr_equal(a->next->next, a->next_sample->next_sample);
    for (struct moge_req *req = a; req; req = req->next_sample)
        moge_queue_admitted(queue, req);
    b->n_prompt = 100; /* all the room is back */
    TEST_OK(moge_queue_submit(queue, b, &err), err);
    moge_queue_drain(queue);
    moge_queue_free(queue);
    moge_reqs_free(reqs);
}

static void *wake_later(void *queue) {
    moge_queue_wake(queue);
    return NULL;
}

static void wait_ends_by_wake_and_by_time(void **state) {
    (void)state;
    struct moge_queue *queue = NULL;
    struct moge_err err;
    TEST_OK(moge_queue_new(&queue, &(struct moge_queue_options){2, 100}, &err), err);
    moge_queue_wait(queue, 1000); /* returns although nothing happened */
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, wake_later, queue), 0);
    moge_queue_wait(queue, -1); /* would never return without the wake */
    pthread_join(thread, NULL);
    moge_queue_free(queue);
    moge_queue_free(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pool_is_bounded_and_refs_count),
        cmocka_unit_test(ring_keeps_order_and_text_between_threads),
        cmocka_unit_test(queue_refuses_with_a_sentence),
        cmocka_unit_test(samples_are_filled_alike_but_for_their_seeds),
        cmocka_unit_test(samples_are_queued_together_or_not_at_all),
        cmocka_unit_test(wait_ends_by_wake_and_by_time)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
