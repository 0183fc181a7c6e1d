/* SPDX-License-Identifier: Apache-2.0 */
/* What the rooms that speak to clients need of the daemon.  Filled by boot before anybody is
 * served, constant while anybody is. */
#ifndef MOGE_SERVICE_H
#define MOGE_SERVICE_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>
#include "moge/engine.h"
#include "moge/tokenizer.h"
#include "server/metrics.h"
#include "server/schedule/queue.h"
#include "server/schedule/req.h"

struct moge_service {
    const struct moge_tokenizer *tokenizer;
    struct moge_model_info target, draft; /* draft.name is "" when there is none */
    const char *isa, *drafter;
    int32_t n_threads;
    struct moge_reqs *reqs;
    struct moge_queue *queue;
    struct moge_metrics *metrics;
    int64_t started_us; /* monotonic */

    int32_t n_context; /* prompt and output of one request together */
    int32_t n_running_max;
    int64_t kv_tokens;
    enum moge_spec_mode spec_mode; /* of a request that does not say */
    int32_t spec_len, draft_len_max;
    enum moge_drafters drafters; /* whom a request may ask for */
    int64_t max_message_bytes;
    int32_t n_samples_max; /* of one request */
};

/* Microseconds of the monotonic clock: the time base of every request. */
static inline int64_t moge_service_now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

#endif
