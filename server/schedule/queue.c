/* SPDX-License-Identifier: Apache-2.0 */
/* The list is intrusive (req->next) and detached whole, so the engine thread holds the lock for a
 * moment only. Counters of what was submitted and not yet admitted live here, because that is what
 * the bound is about. */
#include "server/schedule/queue.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

struct moge_queue {
    /* constant after new */
    struct moge_queue_options options;
    /* under the mutex */
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    struct moge_req *first, *last;
    int32_t n_reqs;
    int64_t n_tokens;
    bool woken, closed;
};

int moge_queue_new(struct moge_queue **out, const struct moge_queue_options *options,
                   struct moge_err *err) {
    struct moge_queue *queue = calloc(1, sizeof *queue);
    if (!queue)
        return moge_fail(err, MOGE_NOMEM, "no memory for the submit queue");
    queue->options = *options;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&queue->mutex, NULL);
    pthread_cond_init(&queue->cond, &attr);
    pthread_condattr_destroy(&attr);
    *out = queue;
    return 0;
}

void moge_queue_free(struct moge_queue *queue) {
    if (!queue)
        return;
    MOGE_ASSERT(!queue->first);
    pthread_cond_destroy(&queue->cond);
    pthread_mutex_destroy(&queue->mutex);
    free(queue);
}

/* What stands against taking req, as a code; err gets the sentence. */
static int refusal(const struct moge_queue *queue, const struct moge_req *req,
                   struct moge_err *err) {
    if (queue->closed)
        return moge_fail(err, MOGE_SHUTDOWN,
                         "the server is shutting down and takes no new requests");
    if (queue->n_reqs > queue->options.n_reqs_max - req->n_samples)
        return moge_fail(err, MOGE_LIMIT, "the queue is full: %d requests are waiting",
                         queue->n_reqs);
    if (queue->n_tokens + req->n_prompt > queue->options.n_tokens_max)
        return moge_fail(
            err, MOGE_LIMIT,
            "the queue is full: %lld prompt tokens are waiting and this request has %d more",
            (long long)queue->n_tokens, req->n_prompt);
    return 0;
}

/* Samples of one prompt count it once. */
static int32_t prompt_tokens(const struct moge_req *req) {
    return req->i_sample == 0 ? req->n_prompt : 0;
}

static void append(struct moge_queue *queue, struct moge_req *req) {
    atomic_fetch_add_explicit(&req->refs, 1,
                              memory_order_relaxed); /* the engine thread's reference */
    req->next = NULL;
    if (queue->last)
        queue->last->next = req;
    else
        queue->first = req;
    queue->last = req;
    queue->n_reqs++;
    queue->n_tokens += prompt_tokens(req);
}

int moge_queue_submit(struct moge_queue *queue, struct moge_req *req, struct moge_err *err) {
    pthread_mutex_lock(&queue->mutex);
    int rc = refusal(queue, req, err);
    if (rc == 0) {
        for (struct moge_req *sample = req; sample; sample = sample->next_sample) {
            sample->fork_of = sample == req ? NULL : req;
            append(queue, sample);
        }
        pthread_cond_signal(&queue->cond);
    }
    pthread_mutex_unlock(&queue->mutex);
    return rc;
}

void moge_queue_wake(struct moge_queue *queue) {
    pthread_mutex_lock(&queue->mutex);
    queue->woken = true;
    pthread_cond_signal(&queue->cond);
    pthread_mutex_unlock(&queue->mutex);
}

void moge_queue_close(struct moge_queue *queue) {
    pthread_mutex_lock(&queue->mutex);
    queue->closed = true;
    pthread_cond_signal(&queue->cond);
    pthread_mutex_unlock(&queue->mutex);
}

struct moge_req *moge_queue_drain(struct moge_queue *queue) {
    pthread_mutex_lock(&queue->mutex);
    struct moge_req *list = queue->first;
    queue->first = queue->last = NULL;
    queue->woken = false;
    pthread_mutex_unlock(&queue->mutex);
    return list;
}

void moge_queue_admitted(struct moge_queue *queue, const struct moge_req *req) {
    pthread_mutex_lock(&queue->mutex);
    queue->n_reqs--;
    queue->n_tokens -= prompt_tokens(req);
    MOGE_ASSERT(queue->n_reqs >= 0 && queue->n_tokens >= 0);
    pthread_mutex_unlock(&queue->mutex);
}

void moge_queue_wait(struct moge_queue *queue, int64_t timeout_us) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    if (timeout_us >= 0) {
        int64_t ns = until.tv_nsec + timeout_us % 1000000 * 1000;
        until.tv_sec += (time_t)(timeout_us / 1000000 + ns / 1000000000);
        until.tv_nsec = (long)(ns % 1000000000);
    }
    pthread_mutex_lock(&queue->mutex);
    int rc = 0;
    while (!queue->first && !queue->woken && rc != ETIMEDOUT)
        rc = timeout_us < 0 ? pthread_cond_wait(&queue->cond, &queue->mutex)
                            : pthread_cond_timedwait(&queue->cond, &queue->mutex, &until);
    queue->woken = false;
    pthread_mutex_unlock(&queue->mutex);
}

int32_t moge_queue_len(struct moge_queue *queue) {
    pthread_mutex_lock(&queue->mutex);
    int32_t n = queue->n_reqs;
    pthread_mutex_unlock(&queue->mutex);
    return n;
}
