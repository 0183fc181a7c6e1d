/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/client.h"

#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/support/alloc.h>
#include <grpc/support/log.h>
#include <grpc/support/time.h>
#include <stdlib.h>
#include <string.h>
#include "tools/clock.h"

#define MESSAGE_BYTES_MAX (64 << 20)
#define POLL_NS           100000000ll

struct moge_client {
    grpc_channel *channel;
    char *address;
};

/* gRPC's own log repeats in jargon what a status says in one sentence. */
static void grpc_log_drop(gpr_log_func_args *args) {
    (void)args;
}

static int address_check(const char *address, struct moge_err *err) {
    if (address[0] == '/' || strncmp(address, "unix:", 5) == 0)
        return 0;
    const char *colon = strrchr(address, ':');
    if (colon == NULL || colon == address || strspn(colon + 1, "0123456789") != strlen(colon + 1) ||
        colon[1] == '\0')
        return moge_fail(err, MOGE_INVALID, "'%s' is not an address: give unix:/path or host:port",
                         address);
    return 0;
}

int moge_client_open(struct moge_client **out, const char *address, struct moge_err *err) {
    int rc = address_check(address, err);
    if (rc != 0)
        return rc;
    struct moge_client *client = calloc(1, sizeof *client);
    size_t address_bytes = strlen(address) + sizeof "unix:";
    if (client == NULL || (client->address = malloc(address_bytes)) == NULL) {
        free(client);
        return moge_fail(err, MOGE_NOMEM, "out of memory");
    }
    client->address[0] = '\0';
    if (address[0] == '/')
        memcpy(client->address, "unix:", sizeof "unix:");
    memcpy(client->address + strlen(client->address), address, strlen(address) + 1);

    gpr_set_log_function(grpc_log_drop);
    grpc_init();
    grpc_arg list[] = {
        {.type = GRPC_ARG_INTEGER,
         .key = (char *)(uintptr_t)GRPC_ARG_ENABLE_HTTP_PROXY,
         .value.integer = 0},
        {.type = GRPC_ARG_INTEGER,
         .key = (char *)(uintptr_t)GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH,
         .value.integer = MESSAGE_BYTES_MAX},
    };
    grpc_channel_args args = {sizeof list / sizeof list[0], list};
    grpc_channel_credentials *credentials = grpc_insecure_credentials_create();
    client->channel = grpc_channel_create(client->address, credentials, &args);
    grpc_channel_credentials_release(credentials);
    *out = client;
    return 0;
}

void moge_client_close(struct moge_client *client) {
    if (client == NULL)
        return;
    grpc_channel_destroy(client->channel);
    grpc_shutdown_blocking();
    free(client->address);
    free(client);
}

const char *moge_client_address(const struct moge_client *client) {
    return client->address;
}

/* ---- calls ---- */

enum batch { BATCH_SENT, BATCH_MESSAGE, BATCH_STATUS, BATCHES };

/* A call under way.  The completion queue's tags are pointers into it. */
struct exchange {
    struct moge_client_calls *calls;
    struct exchange *prev, *next;
    struct moge_client_call spec;
    moge_client_end_fn *on_end;
    grpc_call *call;
    struct tag {
        struct exchange *exchange;
        enum batch batch;
    } tags[BATCHES];
    int n_pending; /* batches started and not yet completed */
    int rc;        /* of on_message */
    bool cancelled;
    struct moge_err err;
    grpc_metadata_array headers, trailers;
    grpc_byte_buffer *message;
    grpc_status_code status;
    grpc_slice details;
};

struct moge_client_calls {
    struct moge_client *client;
    grpc_completion_queue *cq;
    struct exchange *first;
    int64_t look_ns; /* when to look at the flags that cancel calls */
};

static void batch_start(struct exchange *x, const grpc_op *ops, size_t n_ops, enum batch batch) {
    x->tags[batch] = (struct tag){x, batch};
    grpc_call_error e = grpc_call_start_batch(x->call, ops, n_ops, &x->tags[batch], NULL);
    MOGE_ASSERT(e == GRPC_CALL_OK);
    x->n_pending++;
}

static void request_send(struct exchange *x) {
    grpc_slice slice = grpc_slice_from_copied_buffer(x->spec.request, x->spec.request_len);
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_op ops[4] = {{.op = GRPC_OP_SEND_INITIAL_METADATA},
                      {.op = GRPC_OP_SEND_MESSAGE},
                      {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
                      {.op = GRPC_OP_RECV_INITIAL_METADATA}};
    ops[1].data.send_message.send_message = buffer;
    ops[3].data.recv_initial_metadata.recv_initial_metadata = &x->headers;
    batch_start(x, ops, 4, BATCH_SENT);
    grpc_byte_buffer_destroy(buffer);
    grpc_slice_unref(slice);

    grpc_op status = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT};
    status.data.recv_status_on_client.trailing_metadata = &x->trailers;
    status.data.recv_status_on_client.status = &x->status;
    status.data.recv_status_on_client.status_details = &x->details;
    batch_start(x, &status, 1, BATCH_STATUS);
}

static void message_receive(struct exchange *x) {
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
    op.data.recv_message.recv_message = &x->message;
    batch_start(x, &op, 1, BATCH_MESSAGE);
}

static void exchange_cancel(struct exchange *x) {
    if (!x->cancelled)
        grpc_call_cancel(x->call, NULL);
    x->cancelled = true;
}

static void message_deliver(struct exchange *x) {
    if (x->message == NULL)
        return; /* the end of the stream: the status follows */
    grpc_byte_buffer_reader reader;
    if (x->rc == 0 && grpc_byte_buffer_reader_init(&reader, x->message)) {
        grpc_slice slice = grpc_byte_buffer_reader_readall(&reader);
        grpc_byte_buffer_reader_destroy(&reader);
        x->rc = x->spec.on_message(x->spec.arg, GRPC_SLICE_START_PTR(slice),
                                   GRPC_SLICE_LENGTH(slice), &x->err);
        grpc_slice_unref(slice);
    }
    grpc_byte_buffer_destroy(x->message);
    x->message = NULL;
    if (x->rc != 0)
        exchange_cancel(x);
    message_receive(x);
}

static int code_of(grpc_status_code status) {
    switch (status) {
    case GRPC_STATUS_CANCELLED:
        return MOGE_CANCELLED;
    case GRPC_STATUS_DEADLINE_EXCEEDED:
        return MOGE_DEADLINE;
    case GRPC_STATUS_RESOURCE_EXHAUSTED:
        return MOGE_LIMIT;
    case GRPC_STATUS_UNAVAILABLE:
        return MOGE_IO;
    case GRPC_STATUS_INVALID_ARGUMENT:
    case GRPC_STATUS_OUT_OF_RANGE:
    case GRPC_STATUS_NOT_FOUND:
    case GRPC_STATUS_UNIMPLEMENTED:
        return MOGE_INVALID;
    default:
        return MOGE_INTERNAL;
    }
}

static const char *status_name(grpc_status_code status) {
    static const char *const names[] = {
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    };
    bool known = status >= 0 && (size_t)status < sizeof names / sizeof names[0];
    return known ? names[status] : "UNKNOWN";
}

static int exchange_result(struct exchange *x) {
    if (x->rc != 0 || x->status == GRPC_STATUS_OK)
        return x->rc;
    struct moge_err *err = &x->err;
    int len = (int)GRPC_SLICE_LENGTH(x->details);
    const char *details = (const char *)GRPC_SLICE_START_PTR(x->details);
    if (x->cancelled)
        return moge_fail(err, MOGE_CANCELLED, "cancelled");
    /* The core's sentence for an address where nobody listens begins like this. */
    if (x->status == GRPC_STATUS_UNAVAILABLE && len >= 17 &&
        memcmp(details, "failed to connect", 17) == 0)
        return moge_fail(err, MOGE_IO, "nobody answers at %s: is moged running there?",
                         x->calls->client->address);
    if (x->status == GRPC_STATUS_DEADLINE_EXCEEDED)
        return moge_fail(err, MOGE_DEADLINE, "the time for the request ran out");
    return moge_fail(err, code_of(x->status), "%.*s", len, details);
}

static void exchange_end(struct exchange *x) {
    struct moge_client_calls *calls = x->calls;
    int rc = exchange_result(x);
    grpc_slice_unref(x->details);
    grpc_metadata_array_destroy(&x->headers);
    grpc_metadata_array_destroy(&x->trailers);
    grpc_call_unref(x->call);
    *(x->prev ? &x->prev->next : &calls->first) = x->next;
    if (x->next)
        x->next->prev = x->prev;
    x->on_end(x->spec.arg, rc, status_name(x->status), &x->err);
    free(x);
}

int moge_client_calls_new(struct moge_client_calls **out, struct moge_client *client,
                          struct moge_err *err) {
    struct moge_client_calls *calls = calloc(1, sizeof *calls);
    if (calls == NULL)
        return moge_fail(err, MOGE_NOMEM, "out of memory");
    calls->client = client;
    calls->cq = grpc_completion_queue_create_for_next(NULL);
    *out = calls;
    return 0;
}

void moge_client_calls_free(struct moge_client_calls *calls) {
    if (calls == NULL)
        return;
    while (calls->first) {
        for (struct exchange *x = calls->first; x; x = x->next)
            exchange_cancel(x);
        moge_client_poll(calls, moge_clock_ns() + POLL_NS);
    }
    grpc_completion_queue_shutdown(calls->cq);
    while (grpc_completion_queue_next(calls->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type !=
           GRPC_QUEUE_SHUTDOWN)
        continue;
    grpc_completion_queue_destroy(calls->cq);
    free(calls);
}

int moge_client_start(struct moge_client_calls *calls, const struct moge_client_call *spec,
                      moge_client_end_fn *on_end, struct moge_err *err) {
    struct exchange *x = calloc(1, sizeof *x);
    if (x == NULL)
        return moge_fail(err, MOGE_NOMEM, "out of memory");
    *x = (struct exchange){.calls = calls,
                           .next = calls->first,
                           .spec = *spec,
                           .on_end = on_end,
                           .details = grpc_empty_slice()};
    if (x->next)
        x->next->prev = x;
    calls->first = x;
    gpr_timespec deadline = spec->timeout_us > 0
                                ? gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                               gpr_time_from_micros(spec->timeout_us, GPR_TIMESPAN))
                                : gpr_inf_future(GPR_CLOCK_MONOTONIC);
    grpc_slice method = grpc_slice_from_copied_string(spec->method);
    x->call = grpc_channel_create_call(calls->client->channel, NULL, GRPC_PROPAGATE_DEFAULTS,
                                       calls->cq, method, NULL, deadline, NULL);
    grpc_slice_unref(method);
    grpc_metadata_array_init(&x->headers);
    grpc_metadata_array_init(&x->trailers);
    request_send(x);
    message_receive(x);
    return 0;
}

static void flags_look(struct moge_client_calls *calls) {
    int64_t now_ns = moge_clock_ns();
    if (now_ns < calls->look_ns)
        return;
    calls->look_ns = now_ns + POLL_NS;
    for (struct exchange *x = calls->first; x; x = x->next)
        if (x->spec.cancelled != NULL && atomic_load(x->spec.cancelled))
            exchange_cancel(x);
}

bool moge_client_poll(struct moge_client_calls *calls, int64_t until_ns) {
    gpr_timespec wake = {until_ns / 1000000000, (int32_t)(until_ns % 1000000000),
                         GPR_CLOCK_MONOTONIC};
    grpc_event event = grpc_completion_queue_next(calls->cq, wake, NULL);
    if (event.type == GRPC_OP_COMPLETE) {
        struct tag *tag = event.tag;
        struct exchange *x = tag->exchange;
        x->n_pending--;
        if (tag->batch == BATCH_MESSAGE)
            message_deliver(x);
        if (x->n_pending == 0)
            exchange_end(x);
    }
    flags_look(calls);
    return event.type == GRPC_OP_COMPLETE;
}

/* ---- one call, waited for ---- */

struct waited {
    void *arg; /* of the caller */
    moge_client_message_fn *on_message;
    bool ended;
    int rc;
    struct moge_err *err;
};

static int waited_message(void *arg, const void *data, size_t len, struct moge_err *err) {
    struct waited *waited = arg;
    return waited->on_message(waited->arg, data, len, err);
}

static void waited_end(void *arg, int rc, const char *status, const struct moge_err *err) {
    struct waited *waited = arg;
    (void)status;
    waited->ended = true;
    waited->rc = rc;
    if (rc != 0 && waited->err != NULL)
        *waited->err = *err;
}

int moge_client_call(struct moge_client *client, const struct moge_client_call *spec,
                     struct moge_err *err) {
    struct moge_client_calls *calls = NULL;
    struct waited waited = {.arg = spec->arg, .on_message = spec->on_message, .err = err};
    struct moge_client_call call = *spec;
    call.on_message = waited_message;
    call.arg = &waited;
    int rc = moge_client_calls_new(&calls, client, err);
    if (rc != 0)
        return rc;
    rc = moge_client_start(calls, &call, waited_end, err);
    while (rc == 0 && !waited.ended)
        moge_client_poll(calls, moge_clock_ns() + POLL_NS);
    moge_client_calls_free(calls);
    return rc != 0 ? rc : waited.rc;
}
