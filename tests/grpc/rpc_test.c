/* SPDX-License-Identifier: Apache-2.0 */
/* Real calls over a unix socket to the real server, with a made-up engine behind the queue: what it
 * does with a request is chosen by the request's priority. */
#include "server/grpc/rpc.c"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "../test.h"
#include "fixture.h"
#include "grpc/health/v1/health.pb-c.h"
#include "moge/v1/moge.pb-c.h"
#include "tools/client.h"

enum behaviour { ORDINARY, FAILING, SILENT, ENDLESS, LEISURELY, HELD };

#define STALL_US   1000000
#define LARGE_TEXT 500

/* ---- the made-up engine ---- */

static struct fixture fixture;
static struct moge_rpc *rpc;
static struct moge_client *client;
static atomic_int engine_stop, n_cancelled, n_expired;
static atomic_bool held; /* requests that are HELD stay at one token while this is set */
static pthread_t engine_thread, accept_thread;

static void engine_finish(struct moge_req *req, enum moge_finish reason) {
    req->usage.n_prompt = req->n_prompt;
    atomic_store_explicit(&req->finish, (int)reason, memory_order_release);
    req->gained(req);
    moge_req_release(fixture.service.reqs, req);
}

/* One look at a request; true while it lives. */
static bool engine_serve(struct moge_req *req) {
    if (atomic_load(&req->cancelled)) {
        n_cancelled++;
        engine_finish(req, MOGE_FINISH_CANCELLED);
        return false;
    }
    if (moge_service_now_us() >= req->deadline_us) {
        n_expired++;
        engine_finish(req, MOGE_FINISH_DEADLINE);
        return false;
    }
    if (req->priority == FAILING) {
        moge_fail(&req->err, MOGE_INTERNAL, "the engine failed: on purpose");
        engine_finish(req, MOGE_FINISH_ERROR);
        return false;
    }
    static char text[LARGE_TEXT];
    memset(text, 'x', sizeof text);
    int32_t n = req->priority == SILENT ? 0 : req->priority == LEISURELY ? 1 : 64;
    if (req->priority == HELD && held)
        n = req->usage.n_output == 0;
    for (; n > 0 && moge_req_room(req) > 1; n--) {
        struct moge_token_out out = {.id = 5 + req->usage.n_output % 100,
                                     .logprobs = {.n_top = -1}};
        out.text_len = req->priority == ENDLESS ? LARGE_TEXT : 1;
        moge_req_push(req, &out, text);
        req->usage.n_output++;
        if (req->priority != ENDLESS && req->usage.n_output == req->max_tokens) {
            engine_finish(req, MOGE_FINISH_LENGTH);
            return false;
        }
    }
    if (req->priority != SILENT)
        req->gained(req);
    return true;
}

static void *engine_main(void *arg) {
    (void)arg;
    struct moge_req *live[FIXTURE_REQS];
    int n = 0;
    while (!engine_stop || n > 0) {
        struct moge_req *next;
        for (struct moge_req *req = moge_queue_drain(fixture.service.queue); req; req = next) {
            next = req->next;
            moge_queue_admitted(fixture.service.queue, req);
            live[n++] = req;
        }
        int kept = 0;
        for (int i = 0; i < n; i++)
            if (engine_serve(live[i]))
                live[kept++] = live[i];
        n = kept;
        moge_rpc_wake(rpc);
        moge_queue_wait(fixture.service.queue, 2000);
    }
    return NULL;
}

/* ---- the server ---- */

static char place[] = "/tmp/test-rpc-XXXXXX";
static char address[64];
static int listen_fd, stop_fd;

static void *accept_main(void *arg) {
    (void)arg;
    struct pollfd fds[] = {{listen_fd, POLLIN, 0}, {stop_fd, POLLIN, 0}};
    while (poll(fds, 2, -1) > 0 && !(fds[1].revents & POLLIN)) {
        int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0)
            moge_rpc_adopt(rpc, fd);
    }
    return NULL;
}

static void server_open(int n_cqs) {
    struct moge_err err = {0};
    struct moge_rpc_options options = {.service = &fixture.service,
                                       .n_cqs = n_cqs,
                                       .n_calls_max = 200,
                                       .stall_timeout_us = STALL_US};
    TEST_OK(fixture_open(&fixture, &err), err);
    TEST_OK(moge_rpc_new(&rpc, &options, &err), err);
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    snprintf(at.sun_path, sizeof at.sun_path, "%s/s", place);
    snprintf(address, sizeof address, "unix:%s/s", place);
    listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    stop_fd = eventfd(0, EFD_CLOEXEC);
    unlink(at.sun_path);
    assert_int_equal(bind(listen_fd, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(listen_fd, 64), 0);
    engine_stop = n_cancelled = n_expired = 0;
    pthread_create(&engine_thread, NULL, engine_main, NULL);
    pthread_create(&accept_thread, NULL, accept_main, NULL);
    TEST_OK(moge_client_open(&client, address, &err), err);
}

static void accept_end(void) {
    if (listen_fd < 0)
        return;
    uint64_t one = 1;
    assert_int_equal(write(stop_fd, &one, sizeof one), sizeof one);
    pthread_join(accept_thread, NULL);
    close(listen_fd);
    close(stop_fd);
    listen_fd = -1;
}

static int reqs_in_use(void) {
    struct moge_req *taken[FIXTURE_REQS];
    int n = 0;
    while (n < FIXTURE_REQS && (taken[n] = moge_reqs_take(fixture.service.reqs)))
        n++;
    for (int i = 0; i < n; i++)
        moge_req_release(fixture.service.reqs, taken[i]);
    return FIXTURE_REQS - n;
}

/* Everything comes back: requests, calls, threads, memory (the sanitizers watch). */
static void server_close(void) {
    accept_end();
    moge_client_close(client);
    engine_stop = 1;
    pthread_join(engine_thread, NULL);
    moge_rpc_free(rpc);
    assert_int_equal(reqs_in_use(), 0);
    assert_int_equal(fixture.metrics.num_calls, 0);
    fixture_close(&fixture);
    memset(&fixture, 0, sizeof fixture);
}

static int each_server(void **state) {
    (void)state;
    server_open(2);
    return 0;
}

static int each_close(void **state) {
    (void)state;
    server_close();
    return 0;
}

/* ---- a client's view ---- */

struct stream {
    struct moge_err err;
    int n_messages, n_tokens, n_finish, n_after_finish, reason;
    size_t text_len;
    int32_t n_output;
    int cancel_after; /* messages; 0: never */
    bool stalls; /* takes no second message until the server has had enough of it */
    atomic_bool cancelled, begun;
};

static void stall(void) {
    for (int i = 0; i < 20000 && !fixture.metrics.request_stalled_total; i++)
        usleep(1000);
}

static int on_message(void *arg, const void *data, size_t len, struct moge_err *err) {
    (void)err;
    struct stream *s = arg;
    Moge__V1__GenerateResponse *r = moge__v1__generate_response__unpack(NULL, len, data);
    assert_non_null(r);
    s->n_after_finish += s->n_finish;
    s->n_tokens += (int)r->n_token_ids;
    s->text_len += r->text.len;
    if (r->finish) {
        s->n_finish++;
        s->reason = (int)r->finish->reason;
        s->n_output = r->finish->usage->output_tokens;
    }
    moge__v1__generate_response__free_unpacked(r, NULL);
    if (++s->n_messages == 1 && s->stalls)
        stall();
    s->begun = true;
    if (s->n_messages == s->cancel_after)
        s->cancelled = true;
    return 0;
}

static int generate(struct stream *s, enum behaviour behaviour, int32_t max_tokens,
                    int64_t timeout_us) {
    uint32_t ids[] = {5, 6, 7};
    Moge__V1__GenerateRequest request = MOGE__V1__GENERATE_REQUEST__INIT;
    Moge__V1__TokenIds token_ids = MOGE__V1__TOKEN_IDS__INIT;
    Moge__V1__Stopping stopping = MOGE__V1__STOPPING__INIT;
    token_ids.n_ids = 3;
    token_ids.ids = ids;
    request.prompt_case = MOGE__V1__GENERATE_REQUEST__PROMPT_TOKEN_IDS;
    request.token_ids = &token_ids;
    request.priority = behaviour;
    request.stopping = &stopping;
    stopping._max_tokens_case = MOGE__V1__STOPPING___MAX_TOKENS_MAX_TOKENS;
    stopping.max_tokens = max_tokens;
    uint8_t data[128];
    struct moge_client_call call = {.method = "/moge.v1.Moge/Generate",
                                    .request = data,
                                    .timeout_us = timeout_us,
                                    .cancelled = &s->cancelled,
                                    .on_message = on_message,
                                    .arg = s};
    call.request_len = moge__v1__generate_request__pack(&request, data);
    return moge_client_call(client, &call, &s->err);
}

struct reply {
    struct moge_err err;
    size_t len;
    unsigned char data[1 << 16];
};

static int on_reply(void *arg, const void *data, size_t len, struct moge_err *err) {
    (void)err;
    struct reply *reply = arg;
    assert_true(len <= sizeof reply->data);
    memcpy(reply->data, data, len);
    reply->len = len;
    return 0;
}

static int unary(const char *method, const void *data, size_t len, struct reply *reply) {
    struct moge_client_call call = {.method = method,
                                    .request = data,
                                    .request_len = len,
                                    .timeout_us = 20000000,
                                    .on_message = on_reply,
                                    .arg = reply};
    return moge_client_call(client, &call, &reply->err);
}

/* Waits for something that another thread brings about; the bound only ends a hopeless wait. */
#define EVENTUALLY(condition)                                                                      \
    do {                                                                                           \
        for (int i_ = 0; i_ < 20000 && !(condition); i_++)                                         \
            usleep(1000);                                                                          \
        assert_true(condition);                                                                    \
    } while (0)

/* ---- tests ---- */

static void test_a_stream_is_whole(void **state) {
    (void)state;
    struct stream s = {0};
    TEST_OK(generate(&s, ORDINARY, 50, 0), s.err);
    assert_int_equal(s.n_tokens, 50);
    assert_int_equal(s.text_len, 50);
    assert_int_equal(s.n_finish, 1);
    assert_int_equal(s.n_after_finish, 0);
    assert_int_equal(s.n_output, 50);
    assert_int_equal(s.reason, MOGE__V1__FINISH__REASON__REASON_LENGTH);
    assert_true(s.n_messages <= 50);
    assert_int_equal(fixture.metrics.request_success_length_total, 1);
}

static void test_refusals(void **state) {
    (void)state;
    struct reply reply = {0};
    assert_int_equal(unary("/moge.v1.Moge/Generate", "", 0, &reply), MOGE_INVALID);
    assert_non_null(strstr(reply.err.text, "there is no prompt"));
    assert_int_equal(unary("/moge.v1.Moge/Generate", "\x07", 1, &reply), MOGE_INVALID);
    assert_non_null(strstr(reply.err.text, "well-formed"));
    assert_int_not_equal(unary("/moge.v1.Moge/Nothing", "", 0, &reply), 0);
    assert_non_null(strstr(reply.err.text, "no method /moge.v1.Moge/Nothing"));
    assert_int_equal(fixture.metrics.request_invalid_total, 2);
    test_a_stream_is_whole(state); /* nothing else is disturbed */
}

static void test_an_engine_fault_is_internal(void **state) {
    (void)state;
    struct stream s = {0};
    assert_int_equal(generate(&s, FAILING, 5, 0), MOGE_INTERNAL);
    assert_non_null(strstr(s.err.text, "on purpose"));
    assert_int_equal(s.n_finish, 1);
    assert_int_equal(s.reason, MOGE__V1__FINISH__REASON__REASON_ABORTED);
}

static void test_pool_empty(void **state) {
    (void)state;
    struct moge_req *taken[FIXTURE_REQS];
    struct stream s = {0};
    for (int i = 0; i < FIXTURE_REQS; i++)
        taken[i] = moge_reqs_take(fixture.service.reqs);
    assert_int_equal(generate(&s, ORDINARY, 5, 0), MOGE_LIMIT);
    assert_non_null(strstr(s.err.text, "queue is full"));
    for (int i = 0; i < FIXTURE_REQS; i++)
        moge_req_release(fixture.service.reqs, taken[i]);
    assert_int_equal(fixture.metrics.request_refused_total, 1);
    test_a_stream_is_whole(state);
}

static void test_cancel_reaches_the_engine(void **state) {
    (void)state;
    struct stream s = {.cancel_after = 1};
    assert_int_equal(generate(&s, ENDLESS, 5, 0), MOGE_CANCELLED);
    EVENTUALLY(n_cancelled == 1);
    EVENTUALLY(reqs_in_use() == 0);
}

static void test_deadline_reaches_the_engine(void **state) {
    (void)state;
    struct stream s = {0};
    assert_int_equal(generate(&s, SILENT, 5, 100000), MOGE_DEADLINE);
    EVENTUALLY(n_cancelled + n_expired == 1);
    EVENTUALLY(reqs_in_use() == 0);
}

static void *slow_main(void *arg) {
    struct stream *s = arg;
    generate(s, ENDLESS, 5, 0);
    return NULL;
}

/* A reader that stops reading: its stream ends after the stall time, and others do not notice. */
static void test_a_stalled_reader_stalls_alone(void **state) {
    (void)state;
    struct stream slow = {.stalls = true};
    pthread_t thread;
    pthread_create(&thread, NULL, slow_main, &slow);
    while (!fixture.metrics.request_stalled_total && !slow.begun) {
        struct stream s = {0};
        TEST_OK(generate(&s, ORDINARY, 50, 0), s.err);
        assert_int_equal(s.n_tokens, 50);
    }
    pthread_join(thread, NULL);
    assert_int_equal(fixture.metrics.request_stalled_total, 1);
    assert_int_equal(slow.err.code, MOGE_LIMIT);
    EVENTUALLY(reqs_in_use() == 0);
}

/* More than the CQ thread decodes by itself: the worker's path, right and wrong. */
static void test_large_messages(void **state) {
    (void)state;
    size_t n = 300000;
    struct reply reply = {0};
    uint8_t *data = malloc(n + 8), head[] = {0x0a, 0xe0, 0xa7, 0x12}; /* field 1, 300,000 bytes */
    memcpy(data, head, sizeof head);
    memset(data + 4, 'a', n);
    assert_int_equal(unary("/moge.v1.Moge/Generate", data, n + 4, &reply), MOGE_INVALID);
    assert_non_null(strstr(reply.err.text, "more than 63 tokens"));
    data[n] = 0xff;
    assert_int_equal(unary("/moge.v1.Moge/Tokenize", data, n + 4, &reply), MOGE_INVALID);
    assert_non_null(strstr(reply.err.text, "UTF-8"));
    /* 20,000 ids there, their text back. */
    uint8_t *ids = malloc(20004);
    memcpy(ids, (uint8_t[]){0x0a, 0xa0, 0x9c, 0x01}, 4);
    memset(ids + 4, 100, 20000);
    TEST_OK(unary("/moge.v1.Moge/Detokenize", ids, 20004, &reply), reply.err);
    assert_true(reply.len > 19000);
    free(ids);
    free(data);
    EVENTUALLY(reqs_in_use() == 0);
}

static int health(const void *request, size_t len, struct reply *reply) {
    int rc = unary("/grpc.health.v1.Health/Check", request, len, reply);
    return rc ? rc : reply->len == 2 ? reply->data[1] : 0;
}

static void test_health_check(void **state) {
    (void)state;
    struct reply reply = {0};
    assert_int_equal(health("", 0, &reply), MOGE_HEALTH_NOT_SERVING);
    moge_rpc_set_serving(rpc, true);
    assert_int_equal(health("", 0, &reply), MOGE_HEALTH_SERVING);
    assert_int_equal(health("\x0a\x0cmoge.v1.Moge", 14, &reply), MOGE_HEALTH_SERVING);
    assert_true(health("\x0a\x05other", 7, &reply) < 0);
    assert_non_null(strstr(reply.err.text, "does not know"));
}

struct watch {
    struct moge_err err;
    int rc;
    atomic_int n, seen[8];
};

static int on_health(void *arg, const void *data, size_t len, struct moge_err *err) {
    (void)err;
    struct watch *watch = arg;
    watch->seen[watch->n % 8] = len == 2 ? ((const unsigned char *)data)[1] : 0;
    watch->n++;
    return 0;
}

static void *watch_main(void *arg) {
    struct watch *watch = arg;
    struct moge_client_call call = {.method = "/grpc.health.v1.Health/Watch",
                                    .request = "",
                                    .on_message = on_health,
                                    .arg = watch};
    watch->rc = moge_client_call(client, &call, &watch->err);
    return NULL;
}

static atomic_int n_drained;

static void on_drained(void *arg) {
    (void)arg;
    n_drained++;
}

static void *leisurely_main(void *arg) {
    struct stream *s = arg;
    generate(s, LEISURELY, 60, 0);
    return NULL;
}

/* A drain: the watcher hears of it and is let go, the running stream ends whole, then it is over.
 */
static void test_watch_and_drain(void **state) {
    (void)state;
    struct watch watch = {0};
    struct stream s = {0};
    pthread_t watcher, reader;
    n_drained = 0;
    pthread_create(&watcher, NULL, watch_main, &watch);
    EVENTUALLY(watch.n == 1);
    moge_rpc_set_serving(rpc, true);
    EVENTUALLY(watch.n == 2);
    pthread_create(&reader, NULL, leisurely_main, &s);
    EVENTUALLY(s.begun);
    accept_end();
    moge_rpc_drain(rpc, on_drained, NULL);
    pthread_join(watcher, NULL);
    pthread_join(reader, NULL);
    EVENTUALLY(n_drained == 1);
    assert_int_equal(watch.seen[0], MOGE_HEALTH_NOT_SERVING);
    assert_int_equal(watch.seen[1], MOGE_HEALTH_SERVING);
    assert_int_equal(watch.seen[2], MOGE_HEALTH_NOT_SERVING);
    assert_int_not_equal(watch.rc, 0);
    assert_int_equal(s.err.code, 0);
    assert_int_equal(s.n_tokens, 60);
    assert_int_equal(s.n_finish, 1);
}

static void *held_main(void *arg) {
    struct stream *s = arg;
    generate(s, HELD, 60, 0);
    return NULL;
}

/* While a drain waits for running streams, latecomers on open connections get the true reason; gRPC
 * left to itself would tell them CANCELLED. */
static void test_latecomers_are_told(void **state) {
    (void)state;
    static struct stream s; /* outlives a failed assertion, as its thread may */
    pthread_t reader;
    memset(&s, 0, sizeof s);
    held = true;
    pthread_create(&reader, NULL, held_main, &s);
    EVENTUALLY(s.begun);
    accept_end();
    moge_rpc_drain(rpc, NULL, NULL);
    int n_told = 0;
    for (int i = 0; i < 5; i++) {
        struct stream late = {0};
        n_told += generate(&late, ORDINARY, 5, 20000000) == MOGE_IO && /* UNAVAILABLE */
                  strstr(late.err.text, "takes no new requests");
    }
    held = false;
    pthread_join(reader, NULL);
    assert_int_equal(n_told, 5);
    assert_int_equal(s.err.code, 0);
    assert_int_equal(s.n_tokens, 60);
}

static void *crowd_main(void *arg) {
    struct test_rng rng = test_rng_init((uint64_t)(uintptr_t)arg);
    for (int i = 0; i < 6; i++) {
        struct stream s = {.cancel_after = test_below(&rng, 2)};
        enum behaviour behaviour = test_below(&rng, 3) ? ORDINARY : LEISURELY;
        int rc = generate(&s, behaviour, 1 + test_below(&rng, 60), 0);
        if (rc && rc != MOGE_CANCELLED)
            return (void *)(uintptr_t)1;
        if (rc == 0 && (s.n_finish != 1 || s.n_tokens != s.n_output))
            return (void *)(uintptr_t)2;
    }
    return NULL;
}

static void test_a_crowd(void **state) {
    (void)state;
    pthread_t threads[24];
    for (uintptr_t i = 0; i < 24; i++)
        pthread_create(&threads[i], NULL, crowd_main, (void *)i);
    for (int i = 0; i < 24; i++) {
        void *failed = NULL;
        pthread_join(threads[i], &failed);
        assert_null(failed);
    }
    EVENTUALLY(reqs_in_use() == 0);
    EVENTUALLY(fixture.metrics.num_calls == 0);
}

/* Taken down while streams run: everybody is told, nothing is left. */
static void test_free_with_streams_running(void **state) {
    (void)state;
    struct stream s = {0};
    pthread_t thread;
    pthread_create(&thread, NULL, slow_main, &s);
    EVENTUALLY(s.begun);
    accept_end();
    moge_rpc_drain(rpc, NULL, NULL);
    moge_rpc_cancel_all(rpc);
    pthread_join(thread, NULL);
    assert_int_not_equal(s.err.code, 0);
}

static void test_every_code_has_a_status(void **state) {
    (void)state;
    assert_int_equal(moge_rpc_status(0), GRPC_STATUS_OK);
    for (int code = MOGE_INVALID; code >= MOGE_INTERNAL; code--)
        assert_int_not_equal(moge_rpc_status(code), GRPC_STATUS_OK);
    assert_int_equal(moge_rpc_status(1), GRPC_STATUS_INTERNAL);
    assert_int_equal(moge_rpc_status(-100), GRPC_STATUS_INTERNAL);
    assert_int_equal(moge_rpc_status(MOGE_SHUTDOWN), GRPC_STATUS_UNAVAILABLE);
}

#define WITH_SERVER(test) cmocka_unit_test_setup_teardown(test, each_server, each_close)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH_SERVER(test_a_stream_is_whole),
        WITH_SERVER(test_refusals),
        WITH_SERVER(test_an_engine_fault_is_internal),
        WITH_SERVER(test_pool_empty),
        WITH_SERVER(test_cancel_reaches_the_engine),
        WITH_SERVER(test_deadline_reaches_the_engine),
        WITH_SERVER(test_a_stalled_reader_stalls_alone),
        WITH_SERVER(test_large_messages),
        WITH_SERVER(test_health_check),
        WITH_SERVER(test_watch_and_drain),
        WITH_SERVER(test_latecomers_are_told),
        WITH_SERVER(test_a_crowd),
        WITH_SERVER(test_free_with_streams_running),
        cmocka_unit_test(test_every_code_has_a_status),
    };
    if (!mkdtemp(place))
        return 1;
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    char path[sizeof place + 2];
    snprintf(path, sizeof path, "%s/s", place);
    unlink(path);
    rmdir(place);
    return rc;
}
