/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of `moge bench serve`:
 *
 *      bench_serve.c           options, the run as a whole
 *      bench_serve_data.c      what is asked for: prompts of a file, or random tokens
 *      bench_serve_load.c      when it is asked for: arrivals, streams, time stamps
 *      bench_serve_report.c    what came of it: statistics, table, JSON
 *
 * All on one thread. */
#ifndef MOGE_BENCH_SERVE_H
#define MOGE_BENCH_SERVE_H

#include "tools/client_generate.h"

/* Prompts that come round again once all have been asked for. */
struct moge_serve_data {
    struct moge_serve_prompt {
        char *text; /* [text_len] */
        size_t text_len;
        int32_t output_len; /* 0: not said */
    } * prompts;
    int32_t n_prompts; /* 0: synthetic */
    /* synthetic: */
    int32_t input_len, n_vocab;
    uint64_t seed;
    uint32_t *ids; /* [input_len], the prompt asked for last */
};

/* Reads a file of JSON objects, one a line, each with a "prompt" and maybe an "output_len". */
int moge_serve_data_read(struct moge_serve_data *data, const char *path, struct moge_err *err);
/* input_len random tokens for each request, others for each, the same for the same seed. */
int moge_serve_data_random(struct moge_serve_data *data, int32_t input_len, int32_t n_vocab,
                           uint64_t seed, struct moge_err *err);
void moge_serve_data_free(struct moge_serve_data *data);

/* The prompt of request i and how long its answer shall be, output_len where the file does not
 * say.  What request points at lives until the next call. */
void moge_serve_data_get(struct moge_serve_data *data, int64_t i, int32_t output_len,
                         struct moge_client_request *request);

/* ---- load ---- */

struct moge_serve_sample { /* one request; times on the monotonic clock */
    int64_t due_ns;        /* when it should have been sent: what latencies count from */
    int64_t sent_ns, first_ns, last_ns, end_ns;
    int32_t n_prompt, n_output, n_messages; /* messages that held tokens */
    int32_t n_offered, n_accepted;          /* guesses */
    const char *status;                     /* of gRPC; "OK" when it completed */
    char sentence[MOGE_ERR_TEXT_MAX];       /* why it failed */
};

struct moge_serve_load {
    /* ---- what to do ---- */
    struct moge_client *client;
    struct moge_serve_data *data;
    struct moge_client_request request; /* what all requests have in common */
    int32_t n_requests, output_len;
    int64_t first;       /* index of the first request's prompt */
    double rate;         /* arrivals a second, INFINITY for all at once; 0: a closed loop of */
    int32_t concurrency; /* so many streams */
    uint64_t seed;       /* of arrivals; request i samples with seed + i */
    const char *what;    /* for the progress bar */
    /* ---- what came of it ---- */
    struct moge_serve_sample *samples; /* [n_requests] */
    double *gaps_ms;                   /* [n_gaps] between messages of a stream */
    size_t n_gaps, cap_gaps;
    int64_t begin_ns, end_ns;
    int32_t n_ended, n_open, n_open_max;
};

/* Sends all requests and hears them out.  MOGE_CANCELLED when request.cancelled was set.  The
 * caller frees samples and gaps_ms. */
int moge_serve_load_run(struct moge_serve_load *load, struct moge_err *err);

/* ---- report ---- */

enum moge_serve_metric {
    MOGE_SERVE_TTFT, /* time to the first token */
    MOGE_SERVE_TPOT, /* time per output token after the first */
    MOGE_SERVE_ITL,  /* between messages of a stream */
    MOGE_SERVE_E2EL, /* end to end */
    MOGE_SERVE_METRICS
};
/* "ttft" and so on */
const char *moge_serve_metric_name(enum moge_serve_metric metric);

struct moge_serve_spread {
    double mean, median, std, p50, p90, p99;
};
/* Sorts values; zeros when there are none.  Percentiles are interpolated between neighbours, std is
 * that of the whole population, as numpy does both. */
struct moge_serve_spread moge_serve_spread_of(double *values, size_t n);

struct moge_serve_report {
    double goodput_ms[MOGE_SERVE_METRICS]; /* limits; 0: none */
    struct moge_client_info info;
    int32_t n_warmup;
    const char *dataset;
    const char *speculation;
    bool json;
};
/* Prints the measured load.  MOGE_INTERNAL with the first failure's sentence when no request
 * completed. */
int moge_serve_report_print(const struct moge_serve_report *report,
                            const struct moge_serve_load *load, struct moge_err *err);

#endif
