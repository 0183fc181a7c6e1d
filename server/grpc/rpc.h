/* SPDX-License-Identifier: Apache-2.0 */
/* The gRPC server: completion queues and the threads that serve them, the methods, and the way in
 * and out.  It listens on nothing itself: accepted sockets are handed to it, because the library's
 * own accept loop dies for good when descriptors run out.
 *
 * A CQ thread does I/O and small work only; a large message is decoded on the worker thread.  The
 * engine thread reaches a call through moge_req.gained, which puts it on a list, and wakes the CQs
 * with moge_rpc_wake afterwards.  Main thread, unless said otherwise. */
#ifndef MOGE_RPC_H
#define MOGE_RPC_H

#include <stdbool.h>
#include <stdint.h>
#include "moge/err.h"
#include "server/service.h"

struct moge_rpc;

struct moge_rpc_options {
    const struct moge_service *service; /* keeps */
    int n_cqs;                          /* completion queues, one thread each */
    int32_t n_calls_max;                /* RPCs at once; more are refused */
    int64_t stall_timeout_us;           /* a message that is not taken for so long ends its call */
};

/* Starts the threads.  Signals must be blocked before: the library starts threads of its own. */
int moge_rpc_new(struct moge_rpc **out, const struct moge_rpc_options *options,
                 struct moge_err *err);

/* Drains if that was not done, stops the threads and frees everything.  The engine thread must have
 * ended.  Accepts NULL. */
void moge_rpc_free(struct moge_rpc *rpc);

/* Every CQ looks at the calls that were noted for it.  rpc is a struct moge_rpc.  Engine thread. */
void moge_rpc_wake(void *rpc);

/* Takes over a connected, non-blocking socket. */
void moge_rpc_adopt(struct moge_rpc *rpc, int fd);

/* What grpc.health.v1 says.  Any thread. */
void moge_rpc_set_serving(struct moge_rpc *rpc, bool serving);

/* No new requests: NOT_SERVING, and UNAVAILABLE for whoever comes; running streams go on. done(arg)
 * is called once, on a CQ thread, when the last one has ended and connections are closed.  Stop
 * handing in sockets before. */
void moge_rpc_drain(struct moge_rpc *rpc, void (*done)(void *arg), void *arg);

/* Ends what still runs; after moge_rpc_drain. */
void moge_rpc_cancel_all(struct moge_rpc *rpc);

#endif
