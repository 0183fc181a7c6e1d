/* SPDX-License-Identifier: Apache-2.0 */
/* Waking a CQ from another thread: gRPC's C interface has no alarm, but an empty batch on a call
 * that was never started completes at once on the call's CQ.  Each CQ keeps one such call, on a
 * channel that leads nowhere, and `woken` says that its batch is under way, so any number of posts
 * cost one wake.  The engine thread notes all calls of a step first and wakes then: woken by the
 * first one, the CQ's thread would compete with it for the list and for the processor. */
#include "server/grpc/call.h"

#include <stdlib.h>
#include <string.h>

#include <grpc/grpc_posix.h>
#include <grpc/grpc_security.h>
#include <grpc/support/log.h>

#include "moge/log.h"

#define TICK_US          250000     /* how often slow readers are looked for */
#define WORKER_BYTES_MAX (64 << 20) /* messages waiting to be decoded */

static const struct {
    const char *path;
} methods[] = {
    [MOGE_METHOD_GENERATE] = {"/moge.v1.Moge/Generate"},
    [MOGE_METHOD_TOKENIZE] = {"/moge.v1.Moge/Tokenize"},
    [MOGE_METHOD_DETOKENIZE] = {"/moge.v1.Moge/Detokenize"},
    [MOGE_METHOD_MODEL_INFO] = {"/moge.v1.Moge/GetModelInfo"},
    [MOGE_METHOD_STATS] = {"/moge.v1.Moge/GetStats"},
    [MOGE_METHOD_HEALTH_CHECK] = {"/grpc.health.v1.Health/Check"},
    [MOGE_METHOD_HEALTH_WATCH] = {"/grpc.health.v1.Health/Watch"},
};

grpc_status_code moge_rpc_status(int code) {
    static const grpc_status_code table[] = {
        [-MOGE_OK] = GRPC_STATUS_OK,
        [-MOGE_INVALID] = GRPC_STATUS_INVALID_ARGUMENT,
        [-MOGE_LIMIT] = GRPC_STATUS_RESOURCE_EXHAUSTED,
        [-MOGE_NOMEM] = GRPC_STATUS_RESOURCE_EXHAUSTED,
        [-MOGE_IO] = GRPC_STATUS_INTERNAL,
        [-MOGE_FORMAT] = GRPC_STATUS_INTERNAL,
        [-MOGE_BUSY] = GRPC_STATUS_RESOURCE_EXHAUSTED,
        [-MOGE_CANCELLED] = GRPC_STATUS_CANCELLED,
        [-MOGE_DEADLINE] = GRPC_STATUS_DEADLINE_EXCEEDED,
        [-MOGE_SHUTDOWN] = GRPC_STATUS_UNAVAILABLE,
        [-MOGE_INTERNAL] = GRPC_STATUS_INTERNAL,
    };
    return code > 0 || code < MOGE_INTERNAL ? GRPC_STATUS_INTERNAL : table[-code];
}

struct moge_ending moge_rpc_ending(const struct moge_req *req) {
    switch ((enum moge_finish)atomic_load_explicit(&req->finish, memory_order_acquire)) {
    case MOGE_FINISH_STOP:
    case MOGE_FINISH_LENGTH:
        return (struct moge_ending){GRPC_STATUS_OK, NULL};
    case MOGE_FINISH_CANCELLED:
        return (struct moge_ending){moge_rpc_status(MOGE_CANCELLED), "the request was cancelled"};
    case MOGE_FINISH_DEADLINE:
        return (struct moge_ending){moge_rpc_status(MOGE_DEADLINE),
                                    "the request's deadline passed"};
    case MOGE_FINISH_SHUTDOWN:
        return (struct moge_ending){
            moge_rpc_status(MOGE_SHUTDOWN),
            "the server is shutting down and could not finish this request"};
    case MOGE_FINISH_REFUSED:
        return (struct moge_ending){moge_rpc_status(req->err.code), req->err.text};
    default:
        return (struct moge_ending){moge_rpc_status(MOGE_INTERNAL), req->err.text};
    }
}

/* ---- the ready list ---- */

static void cq_wake(struct moge_cq *cq) {
    grpc_call_error error = grpc_call_start_batch(cq->wake_call, NULL, 0, &cq->wake_tag, NULL);
    MOGE_ASSERT(error == GRPC_CALL_OK);
}

/* Wakes the CQ if it has something to do and no wake is under way. */
static void cq_look(struct moge_cq *cq) {
    pthread_mutex_lock(&cq->mutex);
    bool wake = !cq->woken && (cq->ready_first || cq->health_changed);
    cq->woken = cq->woken || wake;
    pthread_mutex_unlock(&cq->mutex);
    if (wake)
        cq_wake(cq);
}

void moge_cq_note(struct moge_cq *cq, struct moge_call *call, unsigned ready) {
    pthread_mutex_lock(&cq->mutex);
    moge_call_push(cq, call, ready);
    pthread_mutex_unlock(&cq->mutex);
}

void moge_cq_post(struct moge_cq *cq, struct moge_call *call, unsigned ready) {
    moge_cq_note(cq, call, ready);
    cq_look(cq);
}

void moge_rpc_wake(void *rpc) {
    struct moge_rpc *self = rpc;
    for (int i = 0; i < self->options.n_cqs; i++)
        cq_look(&self->cqs[i]);
}

static void cq_health_changed(struct moge_cq *cq) {
    pthread_mutex_lock(&cq->mutex);
    cq->health_changed = true;
    pthread_mutex_unlock(&cq->mutex);
    cq_look(cq);
}

/* The wake arrived.  `woken` falls first: what is posted from now on wakes again. */
static void cq_woken(void *owner, bool ok) {
    (void)ok;
    struct moge_cq *cq = owner;
    pthread_mutex_lock(&cq->mutex);
    cq->woken = false;
    bool health_changed = cq->health_changed;
    cq->health_changed = false;
    pthread_mutex_unlock(&cq->mutex);
    for (;;) {
        unsigned ready = 0;
        pthread_mutex_lock(&cq->mutex);
        struct moge_call *call = moge_call_pop(cq, &ready);
        pthread_mutex_unlock(&cq->mutex);
        if (!call)
            break;
        moge_call_ready(call, ready);
    }
    if (health_changed)
        moge_call_health(cq);
}

static void *cq_main(void *arg) {
    struct moge_cq *cq = arg;
    int64_t ticked_us = 0;
    for (;;) {
        gpr_timespec until = gpr_inf_future(GPR_CLOCK_MONOTONIC);
        if (cq->n_sending > 0)
            until = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                 gpr_time_from_micros(TICK_US, GPR_TIMESPAN));
        grpc_event event = grpc_completion_queue_next(cq->queue, until, NULL);
        if (event.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        if (event.type == GRPC_OP_COMPLETE) {
            struct moge_tag *tag = event.tag;
            MOGE_ASSERT(tag->magic == MOGE_TAG_MAGIC);
            tag->fired(tag->owner, event.success != 0);
        }
        if (cq->n_sending == 0)
            continue;
        int64_t now_us = moge_service_now_us(); /* a busy queue never times out */
        if (now_us - ticked_us >= TICK_US) {
            ticked_us = now_us;
            moge_call_tick(cq, now_us);
        }
    }
}

/* ---- start ---- */

/* What gRPC calls an error is often a client's doing, and a client must not be able to fill the
 * log.
 */
static void library_log(gpr_log_func_args *args) {
    moge_log(MOGE_LOG_DEBUG, "gRPC: %s", args->message);
}

static grpc_arg arg_int(const char *key, int64_t value) {
    grpc_arg arg = {.type = GRPC_ARG_INTEGER, .key = (char *)(uintptr_t)key};
    arg.value.integer = value > INT32_MAX ? INT32_MAX : (int)value;
    return arg;
}

/* Limits on day one: a dead client is noticed within 40 s, and no peer may ask for more than it
 * needs.  Compression is off: tokens are short, and a compressed request could unfold without
 * bound. */
static grpc_server *server_create(const struct moge_rpc_options *options) {
    grpc_arg args[] = {
        arg_int(GRPC_ARG_MAX_CONCURRENT_STREAMS, 128),
        arg_int(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, options->service->max_message_bytes),
        arg_int(GRPC_ARG_MAX_METADATA_SIZE, 16384),
        arg_int(GRPC_ARG_KEEPALIVE_TIME_MS, 30000),
        arg_int(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000),
        arg_int(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        arg_int(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
        arg_int(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10000),
        arg_int(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1 << GRPC_COMPRESS_NONE),
        arg_int(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0),
        arg_int(GRPC_ARG_ENABLE_CHANNELZ, 0),
    };
    grpc_channel_args channel_args = {sizeof args / sizeof args[0], args};
    return grpc_server_create(&channel_args, NULL);
}

static void methods_register(struct moge_rpc *rpc) {
    for (int kind = 0; kind < MOGE_METHOD_UNKNOWN; kind++) {
        rpc->methods[kind] = grpc_server_register_method(
            rpc->server, methods[kind].path, NULL, GRPC_SRM_PAYLOAD_READ_INITIAL_BYTE_BUFFER, 0);
        MOGE_ASSERT(rpc->methods[kind]);
    }
}

static void cq_init(struct moge_cq *cq, struct moge_rpc *rpc) {
    cq->rpc = rpc;
    pthread_mutex_init(&cq->mutex, NULL);
    cq->queue = grpc_completion_queue_create_for_next(NULL);
    cq->wake_tag = (struct moge_tag){MOGE_TAG_MAGIC, cq_woken, cq};
    cq->wake_call = grpc_channel_create_call(rpc->lame, NULL, 0, cq->queue,
                                             grpc_slice_from_static_string("/wake"), NULL,
                                             gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    grpc_server_register_completion_queue(rpc->server, cq->queue, NULL);
}

int moge_rpc_new(struct moge_rpc **out, const struct moge_rpc_options *options,
                 struct moge_err *err) {
    gpr_set_log_function(library_log);
    grpc_init();
    struct moge_rpc *rpc = calloc(1, sizeof *rpc);
    struct moge_cq *cqs = calloc((size_t)options->n_cqs, sizeof *cqs);
    if (!rpc || !cqs) {
        free(rpc);
        free(cqs);
        grpc_shutdown();
        return moge_fail(err, MOGE_NOMEM, "no memory for the gRPC server");
    }
    rpc->options = *options;
    rpc->cqs = cqs;
    pthread_mutex_init(&rpc->mutex, NULL);
    pthread_cond_init(&rpc->cond, NULL);
    rpc->server = server_create(options);
    rpc->credentials = grpc_insecure_server_credentials_create();
    rpc->lame = grpc_lame_client_channel_create("wake", GRPC_STATUS_UNAVAILABLE, "");
    methods_register(rpc);
    for (int i = 0; i < options->n_cqs; i++)
        cq_init(&cqs[i], rpc);
    grpc_server_start(rpc->server);
    int rc = moge_worker_new(&rpc->worker, WORKER_BYTES_MAX, err);
    for (int i = 0; i < options->n_cqs && rc == 0; i++) {
        for (int kind = 0; kind < MOGE_METHOD_COUNT; kind++)
            moge_call_post(&cqs[i], (enum moge_method_kind)kind);
        cqs[i].started = pthread_create(&cqs[i].thread, NULL, cq_main, &cqs[i]) == 0;
        if (!cqs[i].started)
            rc = moge_fail(err, MOGE_NOMEM, "a gRPC thread cannot be started");
        else
            pthread_setname_np(cqs[i].thread, "moge-grpc");
    }
    MOGE_ASSERT(rc == 0); /* a process that cannot start a handful of threads cannot go on */
    *out = rpc;
    return 0;
}

void moge_rpc_adopt(struct moge_rpc *rpc, int fd) {
    grpc_server_add_channel_from_fd(rpc->server, fd, rpc->credentials);
}

void moge_rpc_set_serving(struct moge_rpc *rpc, bool serving) {
    atomic_store(&rpc->serving, serving);
    for (int i = 0; i < rpc->options.n_cqs; i++)
        cq_health_changed(&rpc->cqs[i]);
}

/* ---- the way out ---- */

static void drained(void *owner, bool ok) {
    (void)ok;
    struct moge_rpc *rpc = owner;
    if (rpc->drained)
        rpc->drained(rpc->drained_arg);
    pthread_mutex_lock(&rpc->mutex);
    rpc->drain_done = true;
    pthread_cond_signal(&rpc->cond);
    pthread_mutex_unlock(&rpc->mutex);
}

void moge_rpc_drain(struct moge_rpc *rpc, void (*done)(void *arg), void *arg) {
    MOGE_ASSERT(!atomic_load(&rpc->draining));
    rpc->drained = done;
    rpc->drained_arg = arg;
    rpc->drained_tag = (struct moge_tag){MOGE_TAG_MAGIC, drained, rpc};
    atomic_store(&rpc->draining, true);
    moge_rpc_set_serving(rpc, false);
    moge_rpc_call_gone(rpc);
}

static void shutdown_begin(struct moge_rpc *rpc) {
    if (!atomic_exchange(&rpc->shutdown_begun, true))
        grpc_server_shutdown_and_notify(rpc->server, rpc->cqs[0].queue, &rpc->drained_tag);
}

/* gRPC's own shutdown ends calls that arrive after it with a bare CANCELLED.  So it begins when the
 * last call is gone; until then latecomers are refused by us, with the reason. */
void moge_rpc_call_gone(struct moge_rpc *rpc) {
    if (atomic_load(&rpc->draining) && atomic_load(&rpc->n_calls) == 0)
        shutdown_begin(rpc);
}

void moge_rpc_cancel_all(struct moge_rpc *rpc) {
    shutdown_begin(rpc);
    grpc_server_cancel_all_calls(rpc->server);
}

/* The order matters: no batch may start on a CQ that is shut down. */
void moge_rpc_free(struct moge_rpc *rpc) {
    if (!rpc)
        return;
    if (!atomic_load(&rpc->draining))
        moge_rpc_drain(rpc, NULL, NULL);
    moge_rpc_cancel_all(rpc);
    pthread_mutex_lock(&rpc->mutex);
    while (!rpc->drain_done)
        pthread_cond_wait(&rpc->cond, &rpc->mutex);
    pthread_mutex_unlock(&rpc->mutex);
    moge_worker_free(rpc->worker);
    for (int i = 0; i < rpc->options.n_cqs; i++) {
        grpc_call_unref(rpc->cqs[i].wake_call);
        grpc_completion_queue_shutdown(rpc->cqs[i].queue);
        pthread_join(rpc->cqs[i].thread, NULL);
        MOGE_ASSERT(!rpc->cqs[i].live && !rpc->cqs[i].ready_first);
    }
    grpc_server_destroy(rpc->server);
    for (int i = 0; i < rpc->options.n_cqs; i++) {
        grpc_completion_queue_destroy(rpc->cqs[i].queue);
        pthread_mutex_destroy(&rpc->cqs[i].mutex);
    }
    grpc_channel_destroy(rpc->lame);
    grpc_server_credentials_release(rpc->credentials);
    pthread_cond_destroy(&rpc->cond);
    pthread_mutex_destroy(&rpc->mutex);
    free(rpc->cqs);
    free(rpc);
    grpc_shutdown_blocking();
}
