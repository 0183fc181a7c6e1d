/* SPDX-License-Identifier: Apache-2.0 */
/* One RPC, from the accept that waits for it to the last of its tags.
 *
 *      WAITING --accepted--> WORKING --decoded--> QUIET <--> SENDING      Generate
 *                               |                   | last message
 *                               |                   v
 *                               +---- reply ----> ENDING --> OVER --> freed
 *                               |                              ^
 *                               +--> WATCHING (health) --------+  client gone: any state -> OVER
 *
 * Events (a tag fired, a post arrived) only note a fact: send_busy, engine_busy, gone.  Then
 * call_run asks the function of the state what follows from the facts, until nothing does.  A call
 * is freed when it is OVER and nobody else may still touch it: no tag is out, the worker and the
 * engine thread have let go.
 *
 * Back-pressure: one message is under way at a time; what the engine decides meanwhile gathers in
 * the ring and goes out as one.  A reader that takes nothing thus stalls its own ring and nothing
 * else, and is cancelled after a while. */
#include "server/grpc/call.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>

#include "moge/log.h"

#define INLINE_BYTES_MAX 16384 /* longer messages are decoded by the worker */

enum call_state {
    CALL_WAITING,  /* posted; no RPC has come yet */
    CALL_WORKING,  /* its request is being decoded */
    CALL_QUIET,    /* streaming, nothing to send right now */
    CALL_SENDING,  /* streaming, a message is under way */
    CALL_WATCHING, /* health: waits for a change */
    CALL_ENDING,   /* the status is under way */
    CALL_OVER,     /* nothing more is sent */
};

struct moge_call {
    struct moge_cq *cq;
    enum moge_method_kind kind;
    enum call_state state;
    /* filled by the accept */
    grpc_call *handle;
    gpr_timespec deadline;
    grpc_metadata_array metadata;
    grpc_call_details details; /* MOGE_METHOD_UNKNOWN */
    grpc_byte_buffer *payload;
    /* facts */
    struct moge_tag accept_tag, send_tag, close_tag;
    bool send_busy, close_busy; /* tags that are out */
    bool engine_busy;           /* the engine thread may still note it */
    bool worker_busy;
    bool gone;        /* the client left, or the deadline passed: nothing can be sent */
    bool stalled;     /* cancelled by us for that */
    bool headers_out; /* initial metadata was sent */
    int cancelled;    /* written by gRPC before close_tag fires */
    int64_t send_since_us;
    /* the work: worker thread while worker_busy */
    struct moge_job job;
    grpc_slice message;
    int rc;
    struct moge_err err;
    struct moge_bytes reply;
    /* Generate */
    struct moge_req *req;  /* sample 0; the others are linked behind it */
    struct moge_req *turn; /* whose tokens go out next */
    int32_t n_told;        /* samples whose end was sent */
    int32_t n_done;        /* samples that the engine thread will not touch again */
    /* health */
    bool health_known;
    enum moge_health health_sent;
    struct moge_call *prev, *next; /* cq->live */
    /* under cq->mutex */
    struct moge_call *ready_next;
    unsigned ready;
    int32_t n_final; /* MOGE_READY_FINAL so far */
    bool in_ready;
};

/* ---- lists ---- */

void moge_call_push(struct moge_cq *cq, struct moge_call *call, unsigned ready) {
    call->ready |= ready;
    call->n_final += (ready & MOGE_READY_FINAL) != 0;
    if (call->in_ready)
        return;
    call->in_ready = true;
    call->ready_next = NULL;
    if (cq->ready_last)
        cq->ready_last->ready_next = call;
    else
        cq->ready_first = call;
    cq->ready_last = call;
}

struct moge_call *moge_call_pop(struct moge_cq *cq, unsigned *ready) {
    struct moge_call *call = cq->ready_first;
    if (!call)
        return NULL;
    cq->ready_first = call->ready_next;
    if (!cq->ready_first)
        cq->ready_last = NULL;
    *ready = call->ready;
    call->ready = 0;
    call->n_done = call->n_final;
    call->in_ready = false;
    return call;
}

static void live_add(struct moge_call *call) {
    struct moge_cq *cq = call->cq;
    call->next = cq->live;
    if (cq->live)
        cq->live->prev = call;
    cq->live = call;
    atomic_fetch_add(&cq->rpc->n_calls, 1);
    moge_metrics_shift(&cq->rpc->options.service->metrics->num_calls, 1);
}

static void live_remove(struct moge_call *call) {
    struct moge_cq *cq = call->cq;
    *(call->prev ? &call->prev->next : &cq->live) = call->next;
    if (call->next)
        call->next->prev = call->prev;
    atomic_fetch_sub(&cq->rpc->n_calls, 1);
    moge_metrics_shift(&cq->rpc->options.service->metrics->num_calls, -1);
}

/* ---- sending ---- */

static void call_free(struct moge_call *call) {
    if (call->handle)
        grpc_call_unref(call->handle);
    if (call->payload)
        grpc_byte_buffer_destroy(call->payload);
    moge_req_release_samples(call->cq->rpc->options.service->reqs, call->req);
    grpc_slice_unref(call->message);
    grpc_metadata_array_destroy(&call->metadata);
    if (call->kind == MOGE_METHOD_UNKNOWN)
        grpc_call_details_destroy(&call->details);
    free(call->reply.data);
    free(call);
}

/* One batch: headers if they are not out yet, the message if there is one (taken over), the status
 * if this is the end. */
static void call_send(struct moge_call *call, struct moge_bytes *message,
                      const struct moge_ending *ending) {
    grpc_op ops[3];
    size_t n = 0;
    grpc_byte_buffer *buffer = NULL;
    grpc_slice text = grpc_empty_slice();
    memset(ops, 0, sizeof ops);
    MOGE_ASSERT(!call->send_busy);
    if (!call->headers_out)
        ops[n++].op = GRPC_OP_SEND_INITIAL_METADATA;
    call->headers_out = true;
    if (message) {
        grpc_slice slice = grpc_slice_new(message->data, message->len, free);
        *message = (struct moge_bytes){0};
        buffer = grpc_raw_byte_buffer_create(&slice, 1);
        grpc_slice_unref(slice);
        ops[n].op = GRPC_OP_SEND_MESSAGE;
        ops[n++].data.send_message.send_message = buffer;
    }
    if (ending) {
        if (ending->text)
            text = grpc_slice_from_copied_string(ending->text);
        ops[n].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
        ops[n].data.send_status_from_server.status = ending->status;
        ops[n++].data.send_status_from_server.status_details = ending->text ? &text : NULL;
    }
    call->send_busy = true;
    call->send_since_us = moge_service_now_us();
    call->cq->n_sending++;
    grpc_call_error error = grpc_call_start_batch(call->handle, ops, n, &call->send_tag, NULL);
    MOGE_ASSERT(error == GRPC_CALL_OK);
    grpc_byte_buffer_destroy(buffer);
    grpc_slice_unref(text);
}

static enum call_state call_end(struct moge_call *call, grpc_status_code status, const char *text) {
    struct moge_ending ending = {status, text};
    call_send(call, NULL, &ending);
    return CALL_ENDING;
}

/* ---- the work of a method: CQ thread or worker thread ---- */

static void call_work(struct moge_call *call) {
    const struct moge_service *service = call->cq->rpc->options.service;
    const void *data = GRPC_SLICE_START_PTR(call->message);
    size_t len = GRPC_SLICE_LENGTH(call->message);
    char name[64];
    switch (call->kind) {
    case MOGE_METHOD_GENERATE:
        call->rc = moge_codec_generate(service, data, len, call->req, &call->err);
        if (call->rc == 0)
            call->rc = moge_req_fan_out(service->reqs, call->req, &call->err);
        return;
    case MOGE_METHOD_TOKENIZE:
        call->rc = moge_codec_tokenize(service, data, len, &call->reply, &call->err);
        return;
    case MOGE_METHOD_DETOKENIZE:
        call->rc = moge_codec_detokenize(service, data, len, &call->reply, &call->err);
        return;
    case MOGE_METHOD_MODEL_INFO:
        call->rc = moge_codec_model_info(service, data, len, &call->reply, &call->err);
        return;
    case MOGE_METHOD_STATS:
        call->rc = moge_codec_stats(service, data, len, &call->reply, &call->err);
        return;
    default:
        call->rc = moge_codec_health_request(data, len, name, sizeof name, &call->err);
        call->health_known = name[0] == '\0' || strcmp(name, "moge.v1.Moge") == 0;
    }
}

static void worker_run(struct moge_job *job) {
    struct moge_call *call = (struct moge_call *)((char *)job - offsetof(struct moge_call, job));
    call_work(call);
    moge_cq_post(call->cq, call, MOGE_READY_WORKED);
}

/* ---- Generate ---- */

static void engine_gained(struct moge_req *req) {
    struct moge_call *call = req->rpc;
    bool final = atomic_load_explicit(&req->finish, memory_order_relaxed) != MOGE_FINISH_NONE;
    moge_cq_note(call->cq, call, MOGE_READY_TOKENS | (final ? MOGE_READY_FINAL : 0u));
}

static int64_t deadline_us(const struct moge_call *call, int64_t now_us) {
    if (gpr_time_cmp(call->deadline, gpr_inf_future(call->deadline.clock_type)) == 0)
        return INT64_MAX;
    gpr_timespec left = gpr_time_sub(call->deadline, gpr_now(call->deadline.clock_type));
    return now_us + (int64_t)gpr_timespec_to_micros(left);
}

/* A request from the pool, with what the message does not say. */
static int call_take_req(struct moge_call *call) {
    struct moge_rpc *rpc = call->cq->rpc;
    if (atomic_load(&rpc->draining))
        return moge_fail(&call->err, MOGE_SHUTDOWN,
                         "the server is shutting down and takes no new requests");
    call->req = moge_reqs_take(rpc->options.service->reqs);
    if (!call->req)
        return moge_fail(&call->err, MOGE_LIMIT,
                         "the queue is full: too many requests are under way");
    call->req->id = atomic_fetch_add(&rpc->next_id, 1);
    call->req->rpc = call;
    call->req->gained = engine_gained;
    call->req->submitted_us = moge_service_now_us();
    call->req->deadline_us = deadline_us(call, call->req->submitted_us);
    return 0;
}

static int call_submit(struct moge_call *call) {
    call->engine_busy = true;
    call->turn = call->req;
    int rc = moge_queue_submit(call->cq->rpc->options.service->queue, call->req, &call->err);
    if (rc)
        call->engine_busy = false;
    return rc;
}

/* The first sample that did not end well says how the call ends. */
static struct moge_ending call_ending(const struct moge_call *call) {
    struct moge_ending ending = {GRPC_STATUS_OK, NULL};
    for (const struct moge_req *req = call->req; req && ending.status == GRPC_STATUS_OK;
         req = req->next_sample)
        ending = moge_rpc_ending(req);
    return ending;
}

static bool ring_empty(const struct moge_req *req) {
    return atomic_load_explicit(&req->head, memory_order_acquire) ==
           atomic_load_explicit(&req->tail, memory_order_relaxed);
}

static enum moge_health health_now(const struct moge_call *call) {
    if (!call->health_known)
        return MOGE_HEALTH_SERVICE_UNKNOWN;
    return atomic_load(&call->cq->rpc->serving) ? MOGE_HEALTH_SERVING : MOGE_HEALTH_NOT_SERVING;
}

/* ---- one function a state: what follows from the facts ---- */

static enum call_state state_working(struct moge_call *call) {
    if (call->worker_busy)
        return CALL_WORKING;
    if (call->gone)
        return CALL_OVER;
    if (call->rc == 0 && call->kind == MOGE_METHOD_GENERATE)
        call->rc = call_submit(call);
    if (call->rc) {
        if (call->kind == MOGE_METHOD_GENERATE)
            moge_metrics_refused(call->cq->rpc->options.service->metrics, call->rc);
        return call_end(call, moge_rpc_status(call->rc), call->err.text);
    }
    if (call->kind == MOGE_METHOD_GENERATE)
        return CALL_QUIET;
    if (call->kind == MOGE_METHOD_HEALTH_WATCH)
        return CALL_WATCHING;
    if (call->kind == MOGE_METHOD_HEALTH_CHECK && !call->health_known)
        return call_end(call, GRPC_STATUS_NOT_FOUND, "the server does not know this service");
    if (call->kind == MOGE_METHOD_HEALTH_CHECK &&
        moge_codec_health_reply(health_now(call), &call->reply) != 0)
        return call_end(call, GRPC_STATUS_RESOURCE_EXHAUSTED, "no memory for a response");
    struct moge_ending ok = {GRPC_STATUS_OK, NULL};
    call_send(call, &call->reply, &ok);
    return CALL_ENDING;
}

/* What one sample has to say, with its end if that is all. */
static enum call_state sample_send(struct moge_call *call, struct moge_req *req) {
    const struct moge_service *service = call->cq->rpc->options.service;
    struct moge_chunk *chunk = &call->cq->chunk;
    if (req->told)
        return CALL_QUIET;
    /* The end is written after the last push: then what the ring holds is all. */
    bool final = atomic_load_explicit(&req->finish, memory_order_acquire) != MOGE_FINISH_NONE;
    bool was_full = moge_req_room(req) <= 2;
    bool some = moge_chunk_fill(chunk, req);
    if (was_full && !final)
        moge_queue_wake(service->queue); /* the engine may be waiting for this reader alone */
    bool ends = final && ring_empty(req);
    if (!some && !ends)
        return CALL_QUIET;
    struct moge_bytes message;
    if (moge_codec_chunk(service, chunk, ends ? req : NULL, &message) != 0)
        return call_end(call, GRPC_STATUS_RESOURCE_EXHAUSTED, "no memory for a response");
    req->told = ends;
    call->n_told += ends;
    bool last = call->n_told == call->req->n_samples && !call->engine_busy;
    struct moge_ending ending = {GRPC_STATUS_OK, NULL};
    if (last)
        ending = call_ending(call);
    call_send(call, &message, last ? &ending : NULL);
    return last ? CALL_ENDING : CALL_SENDING;
}

/* Samples take turns; the end of the last one may have gone out before the engine let go of it. */
static enum call_state state_quiet(struct moge_call *call) {
    if (call->gone)
        return CALL_OVER;
    enum call_state state = CALL_QUIET;
    for (int32_t i = 0; i < call->req->n_samples && state == CALL_QUIET; i++) {
        struct moge_req *req = call->turn;
        call->turn = req->next_sample ? req->next_sample : call->req;
        state = sample_send(call, req);
    }
    if (state != CALL_QUIET || call->engine_busy || call->n_told < call->req->n_samples)
        return state;
    struct moge_ending ending = call_ending(call);
    return call_end(call, ending.status, ending.text);
}

static enum call_state state_sending(struct moge_call *call) {
    if (call->gone)
        return CALL_OVER;
    return call->send_busy ? CALL_SENDING : CALL_QUIET;
}

static enum call_state state_watching(struct moge_call *call) {
    if (call->gone)
        return CALL_OVER;
    if (call->send_busy)
        return CALL_WATCHING;
    enum moge_health health = health_now(call);
    if (health != call->health_sent) {
        struct moge_bytes message;
        if (moge_codec_health_reply(health, &message) != 0)
            return call_end(call, GRPC_STATUS_RESOURCE_EXHAUSTED, "no memory for a response");
        call->health_sent = health;
        call_send(call, &message, NULL);
        return CALL_WATCHING;
    }
    /* A watch would otherwise hold up the drain for ever. */
    if (atomic_load(&call->cq->rpc->draining))
        return call_end(call, GRPC_STATUS_UNAVAILABLE, "the server is shutting down");
    return CALL_WATCHING;
}

static enum call_state state_ending(struct moge_call *call) {
    return call->send_busy ? CALL_ENDING : CALL_OVER;
}

static enum call_state state_over(struct moge_call *call) {
    if (!call->engine_busy || atomic_load_explicit(&call->req->cancelled, memory_order_relaxed))
        return CALL_OVER;
    for (struct moge_req *req = call->req; req; req = req->next_sample)
        atomic_store_explicit(&req->cancelled, true, memory_order_relaxed);
    moge_queue_wake(call->cq->rpc->options.service->queue);
    return CALL_OVER;
}

static void call_run(struct moge_call *call) {
    static enum call_state (*const functions[])(struct moge_call *) = {
        [CALL_WORKING] = state_working, [CALL_QUIET] = state_quiet,
        [CALL_SENDING] = state_sending, [CALL_WATCHING] = state_watching,
        [CALL_ENDING] = state_ending,   [CALL_OVER] = state_over,
    };
    enum call_state before;
    do {
        before = call->state;
        call->state = functions[before](call);
    } while (call->state != before);
    if (call->state == CALL_OVER && !call->send_busy && !call->close_busy && !call->engine_busy &&
        !call->worker_busy) {
        struct moge_rpc *rpc = call->cq->rpc;
        live_remove(call);
        call_free(call);
        moge_rpc_call_gone(rpc);
    }
}

/* ---- events ---- */

/* Into the metrics, once, when it has ended. */
static void sample_count(const struct moge_call *call, struct moge_req *req) {
    int finish = atomic_load_explicit(&req->finish, memory_order_acquire);
    if (finish == MOGE_FINISH_NONE || req->counted)
        return;
    req->counted = true;
    moge_metrics_request(call->cq->rpc->options.service->metrics, req);
    if (finish == MOGE_FINISH_ERROR)
        moge_log(MOGE_LOG_ERROR, "request %llu failed: %s", (unsigned long long)req->id,
                 req->err.text);
}

void moge_call_ready(struct moge_call *call, unsigned ready) {
    if (ready & MOGE_READY_WORKED)
        call->worker_busy = false;
    if (ready & MOGE_READY_FINAL) {
        call->engine_busy = call->n_done < call->req->n_samples;
        for (struct moge_req *req = call->req; req; req = req->next_sample)
            sample_count(call, req);
    }
    call_run(call);
}

static void call_sent(void *owner, bool ok) {
    struct moge_call *call = owner;
    call->send_busy = false;
    call->cq->n_sending--;
    if (!ok)
        call->gone = true;
    call_run(call);
}

/* Comes with every end of a call, and may overtake the tags of messages. */
static void call_closed(void *owner, bool ok) {
    (void)ok;
    struct moge_call *call = owner;
    call->close_busy = false;
    if (call->cancelled)
        call->gone = true;
    call_run(call);
}

void moge_call_tick(struct moge_cq *cq, int64_t now_us) {
    const struct moge_rpc_options *options = &cq->rpc->options;
    for (struct moge_call *call = cq->live; call; call = call->next) {
        if (!call->send_busy || call->stalled || call->gone ||
            now_us - call->send_since_us < options->stall_timeout_us)
            continue;
        call->stalled = true;
        moge_metrics_add(&options->service->metrics->request_stalled_total, 1);
        moge_log(MOGE_LOG_INFO, "a stream was cancelled: its reader took nothing for %.1f s",
                 (double)(now_us - call->send_since_us) / 1e6);
        grpc_call_cancel_with_status(call->handle, GRPC_STATUS_RESOURCE_EXHAUSTED,
                                     "the reader took nothing for too long", NULL);
    }
}

void moge_call_health(struct moge_cq *cq) {
    struct moge_call *next;
    for (struct moge_call *call = cq->live; call; call = next) {
        next = call->next;
        if (call->state == CALL_WATCHING)
            call_run(call);
    }
}

/* ---- accept ---- */

static void close_expect(struct moge_call *call) {
    grpc_op op;
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_CLOSE_ON_SERVER;
    op.data.recv_close_on_server.cancelled = &call->cancelled;
    call->close_busy = true;
    grpc_call_error error = grpc_call_start_batch(call->handle, &op, 1, &call->close_tag, NULL);
    MOGE_ASSERT(error == GRPC_CALL_OK);
}

/* The bytes of the request, in one slice. */
static int message_read(struct moge_call *call) {
    if (!call->payload)
        return moge_fail(&call->err, MOGE_INVALID, "the call carries no request message");
    if (call->payload->data.raw.compression != GRPC_COMPRESS_NONE)
        return moge_fail(&call->err, MOGE_INVALID, "compressed requests are not accepted");
    grpc_byte_buffer_reader reader;
    if (!grpc_byte_buffer_reader_init(&reader, call->payload))
        return moge_fail(&call->err, MOGE_INVALID, "the request message cannot be read");
    call->message = grpc_byte_buffer_reader_readall(&reader);
    grpc_byte_buffer_reader_destroy(&reader);
    return 0;
}

/* Decodes here or on the worker, by size; afterwards state_working knows what to do. */
static void call_begin(struct moge_call *call) {
    call->rc = message_read(call);
    if (call->rc == 0 && call->kind == MOGE_METHOD_GENERATE)
        call->rc = call_take_req(call);
    if (call->rc)
        return;
    call->job = (struct moge_job){.run = worker_run, .bytes = GRPC_SLICE_LENGTH(call->message)};
    if (call->job.bytes <= INLINE_BYTES_MAX)
        call_work(call);
    else if (moge_worker_submit(call->cq->rpc->worker, &call->job))
        call->worker_busy = true;
    else
        call->rc =
            moge_fail(&call->err, MOGE_LIMIT, "too many large requests are waiting to be decoded");
}

static enum call_state call_refuse_unknown(struct moge_call *call) {
    char text[MOGE_ERR_TEXT_MAX];
    int len = (int)GRPC_SLICE_LENGTH(call->details.method);
    snprintf(text, sizeof text, "there is no method %.*s", len < 100 ? len : 100,
             (const char *)GRPC_SLICE_START_PTR(call->details.method));
    return call_end(call, GRPC_STATUS_UNIMPLEMENTED, text);
}

static void call_accepted(void *owner, bool ok) {
    struct moge_call *call = owner;
    struct moge_rpc *rpc = call->cq->rpc;
    if (!ok) { /* the server is shutting down */
        call_free(call);
        return;
    }
    moge_call_post(call->cq, call->kind); /* first of all: the next one must not wait */
    live_add(call);
    close_expect(call);
    if (atomic_load(&rpc->n_calls) > rpc->options.n_calls_max)
        call->state =
            call_end(call, GRPC_STATUS_RESOURCE_EXHAUSTED, "too many calls are under way");
    else if (call->kind == MOGE_METHOD_UNKNOWN)
        call->state = call_refuse_unknown(call);
    else {
        call_begin(call);
        call->state = CALL_WORKING;
    }
    call_run(call);
}

void moge_call_post(struct moge_cq *cq, enum moge_method_kind kind) {
    struct moge_rpc *rpc = cq->rpc;
    struct moge_call *call = calloc(1, sizeof *call);
    MOGE_ASSERT(call);
    call->cq = cq;
    call->kind = kind;
    call->state = CALL_WAITING;
    call->message = grpc_empty_slice();
    call->accept_tag = (struct moge_tag){MOGE_TAG_MAGIC, call_accepted, call};
    call->send_tag = (struct moge_tag){MOGE_TAG_MAGIC, call_sent, call};
    call->close_tag = (struct moge_tag){MOGE_TAG_MAGIC, call_closed, call};
    grpc_metadata_array_init(&call->metadata);
    grpc_call_error error;
    if (kind == MOGE_METHOD_UNKNOWN) {
        grpc_call_details_init(&call->details);
        error = grpc_server_request_call(rpc->server, &call->handle, &call->details,
                                         &call->metadata, cq->queue, cq->queue, &call->accept_tag);
    } else {
        error = grpc_server_request_registered_call(
            rpc->server, rpc->methods[kind], &call->handle, &call->deadline, &call->metadata,
            &call->payload, cq->queue, cq->queue, &call->accept_tag);
    }
    MOGE_ASSERT(error == GRPC_CALL_OK);
}
