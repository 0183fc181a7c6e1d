/* SPDX-License-Identifier: Apache-2.0 */
/* Inside server/grpc only: what rpc.c and call.c share.
 *
 * A completion queue (CQ) owns its calls: every field of a call that is not marked otherwise
 * belongs to the CQ's thread, and only that thread starts batches.  Others reach a call by
 * moge_cq_post. */
#ifndef MOGE_CALL_H
#define MOGE_CALL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <grpc/grpc.h>
#include "server/grpc/codec.h"
#include "server/grpc/rpc.h"
#include "server/grpc/worker.h"

/* What gRPC hands back when an operation is done. */
#define MOGE_TAG_MAGIC 0x7a67a6e5u
struct moge_tag {
    uint32_t magic;
    void (*fired)(void *owner, bool ok);
    void *owner;
};

enum moge_method_kind {
    MOGE_METHOD_GENERATE,
    MOGE_METHOD_TOKENIZE,
    MOGE_METHOD_DETOKENIZE,
    MOGE_METHOD_MODEL_INFO,
    MOGE_METHOD_STATS,
    MOGE_METHOD_HEALTH_CHECK,
    MOGE_METHOD_HEALTH_WATCH,
    MOGE_METHOD_UNKNOWN, /* every name that is not in the table */
    MOGE_METHOD_COUNT
};

/* Why a call is on the ready list: bits. */
enum moge_ready {
    MOGE_READY_TOKENS = 1, /* its ring gained something */
    MOGE_READY_FINAL = 2,  /* the engine thread will not touch the call again */
    MOGE_READY_WORKED = 4, /* the worker is done with it */
};

struct moge_call;

struct moge_cq {
    struct moge_rpc *rpc;
    grpc_completion_queue *queue;
    pthread_t thread;
    bool started;
    /* CQ thread */
    struct moge_call *live; /* accepted calls */
    int32_t n_sending;      /* calls with a message under way: somebody to look after */
    struct moge_chunk chunk;
    /* ready list: any thread, under the mutex */
    pthread_mutex_t mutex;
    struct moge_call *ready_first, *ready_last;
    bool woken;           /* a wake is under way */
    bool health_changed;  /* watchers have something to say */
    grpc_call *wake_call; /* never started: its empty batches complete at once */
    struct moge_tag wake_tag;
};

struct moge_rpc {
    struct moge_rpc_options options;
    grpc_server *server;
    grpc_server_credentials *credentials;
    grpc_channel *lame; /* parent of the wake calls */
    void *methods[MOGE_METHOD_COUNT];
    struct moge_worker *worker;
    struct moge_cq *cqs; /* [n_cqs] */
    atomic_bool serving, draining;
    atomic_int n_calls;
    _Atomic uint64_t next_id;
    /* drain */
    atomic_bool shutdown_begun;
    struct moge_tag drained_tag;
    void (*drained)(void *arg);
    void *drained_arg;
    pthread_mutex_t mutex; /* of the two below */
    pthread_cond_t cond;
    bool drain_done;
};

/* ---- rpc.c ---- */

/* Puts a call on its CQ's ready list: to note it is cheap, and moge_rpc_wake wakes the CQ for all
 * that were noted; to post it wakes the CQ at once.  Any thread. */
void moge_cq_note(struct moge_cq *cq, struct moge_call *call, unsigned ready);
void moge_cq_post(struct moge_cq *cq, struct moge_call *call, unsigned ready);

/* The one table from our codes to gRPC's. */
grpc_status_code moge_rpc_status(int code);

/* How a request that the engine has finished ends as an RPC.  The text is the request's. */
struct moge_ending {
    grpc_status_code status;
    const char *text; /* NULL: none */
};
struct moge_ending moge_rpc_ending(const struct moge_req *req);

/* A call was taken off the live list: during a drain the last one ends it.  Any thread. */
void moge_rpc_call_gone(struct moge_rpc *rpc);

/* ---- call.c ---- */

/* Posts an accept for one RPC of this kind. */
void moge_call_post(struct moge_cq *cq, enum moge_method_kind kind);

/* Takes what was posted for a call off the list. */
void moge_call_ready(struct moge_call *call, unsigned ready);

/* Every live call has a look: at the clock, or at the health that changed. */
void moge_call_tick(struct moge_cq *cq, int64_t now_us);
void moge_call_health(struct moge_cq *cq);

/* The ready list is linked through the calls. */
struct moge_call *moge_call_pop(struct moge_cq *cq, unsigned *ready);
void moge_call_push(struct moge_cq *cq, struct moge_call *call, unsigned ready);

#endif
