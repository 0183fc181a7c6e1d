/* SPDX-License-Identifier: Apache-2.0 */
#include "server/grpc/worker.h"

#include <pthread.h>
#include <stdlib.h>

struct moge_worker {
    pthread_t thread;
    size_t bytes_max; /* constant after new */
    /* under the mutex */
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    struct moge_job *first, *last;
    size_t bytes;
    bool stop;
};

static void *worker_main(void *arg) {
    struct moge_worker *worker = arg;
    pthread_mutex_lock(&worker->mutex);
    for (;;) {
        while (!worker->first && !worker->stop)
            pthread_cond_wait(&worker->cond, &worker->mutex);
        struct moge_job *job = worker->first;
        if (!job)
            break;
        worker->first = job->next;
        if (!worker->first)
            worker->last = NULL;
        size_t bytes = job->bytes;
        pthread_mutex_unlock(&worker->mutex);
        job->run(job);
        pthread_mutex_lock(&worker->mutex);
        worker->bytes -= bytes;
    }
    pthread_mutex_unlock(&worker->mutex);
    return NULL;
}

int moge_worker_new(struct moge_worker **out, size_t bytes_max, struct moge_err *err) {
    struct moge_worker *worker = calloc(1, sizeof *worker);
    if (!worker)
        return moge_fail(err, MOGE_NOMEM, "no memory for the decoding thread");
    worker->bytes_max = bytes_max;
    pthread_mutex_init(&worker->mutex, NULL);
    pthread_cond_init(&worker->cond, NULL);
    if (pthread_create(&worker->thread, NULL, worker_main, worker) != 0) {
        pthread_cond_destroy(&worker->cond);
        pthread_mutex_destroy(&worker->mutex);
        free(worker);
        return moge_fail(err, MOGE_NOMEM, "the decoding thread cannot be started");
    }
    *out = worker;
    return 0;
}

void moge_worker_free(struct moge_worker *worker) {
    if (!worker)
        return;
    pthread_mutex_lock(&worker->mutex);
    worker->stop = true;
    pthread_cond_signal(&worker->cond);
    pthread_mutex_unlock(&worker->mutex);
    pthread_join(worker->thread, NULL);
    pthread_cond_destroy(&worker->cond);
    pthread_mutex_destroy(&worker->mutex);
    free(worker);
}

bool moge_worker_submit(struct moge_worker *worker, struct moge_job *job) {
    pthread_mutex_lock(&worker->mutex);
    bool fits = job->bytes <= worker->bytes_max - worker->bytes;
    if (fits) {
        job->next = NULL;
        if (worker->last)
            worker->last->next = job;
        else
            worker->first = job;
        worker->last = job;
        worker->bytes += job->bytes;
        pthread_cond_signal(&worker->cond);
    }
    pthread_mutex_unlock(&worker->mutex);
    return fits;
}
