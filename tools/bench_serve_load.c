/* SPDX-License-Identifier: Apache-2.0 */
/* Requests are sent when they are due, whatever the server does: a server that falls behind sees
 * the queue that its users would make, and the latency of a request counts from when it was due.
 * In a closed loop a request is due when one before it has ended. */
#include "tools/bench_serve.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "moge/splitmix.h"
#include "tools/clock.h"
#include "tools/progress.h"

#define LOOK_NS 50000000ll /* how often the progress bar moves while nothing happens */

struct run {
    struct moge_serve_load *load;
    struct moge_client_calls *calls;
    struct stream {
        struct run *run;
        struct moge_serve_sample *sample;
        struct moge_client_finish finish;
    } * streams; /* [n_requests] */
    int32_t n_sent;
};

/* ---- streams ---- */

static int gap_add(struct moge_serve_load *load, double ms, struct moge_err *err) {
    if (load->n_gaps == load->cap_gaps) {
        size_t cap = load->cap_gaps == 0 ? 4096 : 2 * load->cap_gaps;
        double *grown = realloc(load->gaps_ms, cap * sizeof *grown);
        if (grown == NULL)
            return moge_fail(err, MOGE_NOMEM, "out of memory");
        load->gaps_ms = grown;
        load->cap_gaps = cap;
    }
    load->gaps_ms[load->n_gaps++] = ms;
    return 0;
}

static int tokens_take(void *arg, const char *text, size_t text_len, const uint32_t *ids,
                       size_t n_ids, struct moge_err *err) {
    struct stream *stream = arg;
    struct moge_serve_sample *sample = stream->sample;
    (void)text, (void)text_len, (void)ids;
    if (n_ids == 0)
        return 0;
    int64_t now_ns = moge_clock_ns();
    int rc = 0;
    if (sample->n_messages == 0)
        sample->first_ns = now_ns;
    else
        rc = gap_add(stream->run->load, (double)(now_ns - sample->last_ns) / 1e6, err);
    sample->last_ns = now_ns;
    sample->n_messages++;
    sample->n_output += (int32_t)n_ids;
    return rc;
}

static void stream_end(void *arg, int rc, const char *status, const struct moge_err *err) {
    struct stream *stream = arg;
    struct moge_serve_sample *sample = stream->sample;
    struct moge_serve_load *load = stream->run->load;
    sample->end_ns = moge_clock_ns();
    sample->status = status;
    load->n_open--;
    load->n_ended++;
    if (rc != 0) { /* the status may be OK, with a stream that makes no sense */
        sample->status = strcmp(status, "OK") == 0 ? "INTERNAL" : status;
        snprintf(sample->sentence, sizeof sample->sentence, "%s", err->text);
        return;
    }
    if (sample->n_messages == 0) /* an answer of no tokens */
        sample->first_ns = sample->last_ns = sample->end_ns;
    sample->n_prompt = stream->finish.n_prompt;
    sample->n_offered = stream->finish.guesses.n_offered;
    sample->n_accepted = stream->finish.guesses.n_accepted;
}

static int request_send(struct run *run, int64_t now_ns, struct moge_err *err) {
    struct moge_serve_load *load = run->load;
    int32_t i = run->n_sent++;
    struct stream *stream = &run->streams[i];
    struct moge_client_request request = load->request;
    *stream = (struct stream){.run = run, .sample = &load->samples[i]};
    moge_serve_data_get(load->data, load->first + i, load->output_len, &request);
    request.has_seed = true;
    request.seed = load->seed + (uint64_t)(load->first + i);
    stream->sample->sent_ns = now_ns;
    if (load->rate == 0)
        stream->sample->due_ns = now_ns;
    load->n_open++;
    if (load->n_open > load->n_open_max)
        load->n_open_max = load->n_open;
    return moge_client_generate_start(run->calls, &request, tokens_take, stream_end, stream,
                                      &stream->finish, err);
}

/* ---- arrivals ---- */

/* Independent arrivals: the gaps of a Poisson process, of which the first arrival is now. */
static void arrivals_plan(struct moge_serve_load *load) {
    uint64_t state = load->seed;
    double at_s = 0;
    for (int32_t i = 0; i < load->n_requests; i++) {
        load->samples[i].due_ns = load->begin_ns + (int64_t)(at_s * 1e9);
        double u = (double)(moge_splitmix(&state) >> 11) * 0x1p-53; /* [0, 1) */
        at_s += -log1p(-u) / load->rate;
    }
}

static bool is_due(const struct run *run, int64_t now_ns) {
    const struct moge_serve_load *load = run->load;
    if (run->n_sent == load->n_requests)
        return false;
    return load->rate == 0 ? load->n_open < load->concurrency
                           : load->samples[run->n_sent].due_ns <= now_ns;
}

static int run_all(struct run *run, struct moge_err *err) {
    struct moge_serve_load *load = run->load;
    struct moge_progress progress = moge_progress_init(load->what);
    int rc = 0;
    while (rc == 0 && load->n_ended < load->n_requests) {
        int64_t now_ns = moge_clock_ns(), wake_ns = now_ns + LOOK_NS;
        if (is_due(run, now_ns)) {
            rc = request_send(run, now_ns, err);
            wake_ns = 0; /* what has come in is not left lying while many are due */
        } else if (load->rate > 0 && run->n_sent < load->n_requests &&
                   load->samples[run->n_sent].due_ns < wake_ns)
            wake_ns = load->samples[run->n_sent].due_ns;
        while (moge_client_poll(run->calls, wake_ns))
            wake_ns = 0;
        moge_progress_show(&progress, (double)load->n_ended / load->n_requests);
        if (atomic_load(load->request.cancelled))
            rc = moge_fail(err, MOGE_CANCELLED, "interrupted");
    }
    load->end_ns = moge_clock_ns();
    moge_progress_done(&progress);
    return rc;
}

int moge_serve_load_run(struct moge_serve_load *load, struct moge_err *err) {
    struct run run = {.load = load};
    int rc = moge_client_calls_new(&run.calls, load->client, err);
    if (rc != 0)
        return rc;
    load->samples = calloc((size_t)load->n_requests, sizeof *load->samples);
    run.streams = calloc((size_t)load->n_requests, sizeof *run.streams);
    if (load->samples == NULL || run.streams == NULL) {
        rc = moge_fail(err, MOGE_NOMEM, "out of memory");
    } else {
        load->begin_ns = moge_clock_ns();
        if (load->rate > 0)
            arrivals_plan(load);
        rc = run_all(&run, err);
    }
    moge_client_calls_free(run.calls); /* before the streams that its calls point at */
    free(run.streams);
    return rc;
}
