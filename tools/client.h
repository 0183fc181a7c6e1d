/* SPDX-License-Identifier: Apache-2.0 */
/* A small gRPC client on the C core: one connection, any number of calls at once, each blocking the
 * thread that makes it, or many of them driven by one thread.  It knows bytes and statuses, no
 * messages; client_generate.h speaks our protocol on top of it. */
#ifndef MOGE_CLIENT_H
#define MOGE_CLIENT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "moge/err.h"

/* Where moged listens unless it is told otherwise. */
#define MOGE_DEFAULT_ADDRESS "unix:/run/moged/moged.sock"

struct moge_client;

/* address: unix:/path, /path or host:port.  Connects at the first call, not here: MOGE_INVALID only
 * says that this cannot be an address.  No proxy is ever used. */
int moge_client_open(struct moge_client **out, const char *address, struct moge_err *err);
void moge_client_close(struct moge_client *client);
const char *moge_client_address(const struct moge_client *client);

/* One message from the server, borrowed for the call.  Non-zero cancels the stream and becomes the
 * result of moge_client_call; err is then the callback's to fill. */
typedef int moge_client_message_fn(void *arg, const void *data, size_t len, struct moge_err *err);

struct moge_client_call {
    const char *method;           /* "/moge.v1.Moge/Generate" */
    const void *request;          /* [request_len] */
    size_t request_len;           /* bytes */
    int64_t timeout_us;           /* 0: none */
    const atomic_bool *cancelled; /* looked at ten times a second; may be NULL */
    moge_client_message_fn *on_message;
    void *arg; /* handed to on_message */
};

/* Sends one request and hands every response to on_message, until the server ends the call.  Any
 * thread.  0 when the status is OK; otherwise the code that fits the status, and err has the
 * server's sentence, or says that nobody answers at the address. */
int moge_client_call(struct moge_client *client, const struct moge_client_call *call,
                     struct moge_err *err);

/* ---- many calls on one thread ---- */

/* The calls that one thread has under way.  That thread only. */
struct moge_client_calls;

int moge_client_calls_new(struct moge_client_calls **out, struct moge_client *client,
                          struct moge_err *err);
/* Cancels what is under way and hears it out: every on_end has come when this returns. */
void moge_client_calls_free(struct moge_client_calls *calls);

/* The end of a call, once: rc and err as moge_client_call would give them, status the gRPC status
 * as it is written, such as "RESOURCE_EXHAUSTED"; a constant.  May start other calls. */
typedef void moge_client_end_fn(void *arg, int rc, const char *status, const struct moge_err *err);

/* Begins a call; what call points at is not needed any more, except cancelled and arg.  MOGE_NOMEM:
 * it did not begin, and there will be no on_end. */
int moge_client_start(struct moge_client_calls *calls, const struct moge_client_call *call,
                      moge_client_end_fn *on_end, struct moge_err *err);

/* Waits for something to happen to a call, until the monotonic clock says until_ns at the latest
 * (gRPC rounds up to milliseconds), and deals with it.  False when nothing happened. */
bool moge_client_poll(struct moge_client_calls *calls, int64_t until_ns);

#endif
