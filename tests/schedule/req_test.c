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
    const struct CMUnitTest tests[] = {cmocka_unit_test(pool_is_bounded_and_refs_count),
                                       cmocka_unit_test(ring_keeps_order_and_text_between_threads),
                                       cmocka_unit_test(queue_refuses_with_a_sentence),
                                       cmocka_unit_test(wait_ends_by_wake_and_by_time)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
