/* SPDX-License-Identifier: Apache-2.0 */
/* Keys of the JSON object are those of vLLM's serving bench where it has the number. */
#include "tools/bench_serve.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/quantile.h"

#define STATUSES_MAX 17 /* gRPC has no more */

const char *moge_serve_metric_name(enum moge_serve_metric metric) {
    static const char *const names[MOGE_SERVE_METRICS] = {"ttft", "tpot", "itl", "e2el"};
    return names[metric];
}

/* ---- statistics ---- */

struct moge_serve_spread moge_serve_spread_of(double *values, size_t n) {
    struct moge_serve_spread spread = {0};
    if (n == 0)
        return spread;
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++)
        sum += values[i];
    spread.mean = sum / (double)n;
    for (size_t i = 0; i < n; i++)
        squares += (values[i] - spread.mean) * (values[i] - spread.mean);
    spread.std = sqrt(squares / (double)n);
    moge_values_sort(values, n);
    spread.p50 = spread.median = moge_quantile(values, n, 0.5);
    spread.p90 = moge_quantile(values, n, 0.9);
    spread.p99 = moge_quantile(values, n, 0.99);
    return spread;
}

struct totals {
    int32_t n_completed, n_good;
    int64_t n_prompt, n_output, n_messages, n_offered, n_accepted;
    double seconds;
    struct moge_serve_spread spreads[MOGE_SERVE_METRICS], send_delay;
    struct failures {
        const char *status, *sentence; /* of the first */
        int32_t n;
    } failures[STATUSES_MAX];
    int n_statuses;
};

static double ms_between(int64_t from_ns, int64_t to_ns) {
    return (double)(to_ns - from_ns) / 1e6;
}

static bool is_completed(const struct moge_serve_sample *sample) {
    return strcmp(sample->status, "OK") == 0;
}

/* A request's own values, its mean gap among them. */
static void values_of(const struct moge_serve_sample *sample, double *values) {
    values[MOGE_SERVE_TTFT] = ms_between(sample->due_ns, sample->first_ns);
    values[MOGE_SERVE_E2EL] = ms_between(sample->due_ns, sample->last_ns);
    double decoding = ms_between(sample->first_ns, sample->last_ns);
    values[MOGE_SERVE_TPOT] = sample->n_output > 1 ? decoding / (sample->n_output - 1) : 0;
    values[MOGE_SERVE_ITL] = sample->n_messages > 1 ? decoding / (sample->n_messages - 1) : 0;
}

static bool is_good(const double *values, const double *limits) {
    for (int i = 0; i < MOGE_SERVE_METRICS; i++)
        if (limits[i] > 0 && values[i] > limits[i])
            return false;
    return true;
}

static void failure_count(struct totals *totals, const struct moge_serve_sample *sample) {
    int i = 0;
    while (i < totals->n_statuses && strcmp(totals->failures[i].status, sample->status) != 0)
        i++;
    if (i == STATUSES_MAX)
        return;
    if (i == totals->n_statuses)
        totals->failures[totals->n_statuses++] =
            (struct failures){sample->status, sample->sentence, 0};
    totals->failures[i].n++;
}

/* values: room for n_requests numbers */
static void metric_sum(struct totals *totals, const struct moge_serve_load *load,
                       enum moge_serve_metric metric, double *values) {
    size_t n = 0;
    for (int32_t i = 0; i < load->n_requests; i++) {
        double of[MOGE_SERVE_METRICS];
        const struct moge_serve_sample *sample = &load->samples[i];
        if (!is_completed(sample) || (metric == MOGE_SERVE_TPOT && sample->n_output < 2))
            continue;
        values_of(sample, of);
        values[n++] = of[metric];
    }
    totals->spreads[metric] = moge_serve_spread_of(values, n);
}

static int totals_sum(struct totals *totals, const struct moge_serve_load *load,
                      const double *limits) {
    double of[MOGE_SERVE_METRICS];
    double *values = malloc((size_t)load->n_requests * sizeof *values);
    if (values == NULL)
        return MOGE_NOMEM;
    *totals = (struct totals){.seconds = (double)(load->end_ns - load->begin_ns) / 1e9};
    for (int32_t i = 0; i < load->n_requests; i++) {
        const struct moge_serve_sample *sample = &load->samples[i];
        values[i] = ms_between(sample->due_ns, sample->sent_ns);
        if (!is_completed(sample)) {
            failure_count(totals, sample);
            continue;
        }
        values_of(sample, of);
        totals->n_completed++;
        totals->n_good += is_good(of, limits);
        totals->n_prompt += sample->n_prompt;
        totals->n_output += sample->n_output;
        totals->n_messages += sample->n_messages;
        totals->n_offered += sample->n_offered;
        totals->n_accepted += sample->n_accepted;
    }
    totals->send_delay = moge_serve_spread_of(values, (size_t)load->n_requests);
    metric_sum(totals, load, MOGE_SERVE_TTFT, values);
    metric_sum(totals, load, MOGE_SERVE_TPOT, values);
    metric_sum(totals, load, MOGE_SERVE_E2EL, values);
    totals->spreads[MOGE_SERVE_ITL] = moge_serve_spread_of(load->gaps_ms, load->n_gaps);
    free(values);
    return 0;
}

/* ---- table ---- */

static bool has_goodput(const struct moge_serve_report *report) {
    for (int i = 0; i < MOGE_SERVE_METRICS; i++)
        if (report->goodput_ms[i] > 0)
            return true;
    return false;
}

static void table_print(const struct moge_serve_report *report, const struct moge_serve_load *load,
                        const struct totals *totals) {
    static const char *const titles[MOGE_SERVE_METRICS] = {
        "first token (TTFT)", "per output token (TPOT)", "between messages (ITL)",
        "end to end (E2EL)"};
    double s = totals->seconds;
    printf("%s, %d threads: %d of %d requests completed in %.2f s, at most %d at once\n",
           report->info.target.name, report->info.n_threads, totals->n_completed, load->n_requests,
           s, load->n_open_max);
    printf("requests   %.2f a second", totals->n_completed / s);
    if (has_goodput(report))
        printf(", %.2f within the limits (%d)", totals->n_good / s, totals->n_good);
    printf("\ntokens     %lld in, %lld out: %.1f out a second, %.1f in all\n",
           (long long)totals->n_prompt, (long long)totals->n_output, (double)totals->n_output / s,
           (double)(totals->n_prompt + totals->n_output) / s);
    printf("guesses    %lld of %lld accepted; %.2f tokens in a message\n",
           (long long)totals->n_accepted, (long long)totals->n_offered,
           totals->n_messages > 0 ? (double)totals->n_output / (double)totals->n_messages : 0);
    printf("\n%-24s %9s %9s %9s %9s %9s\n", "milliseconds", "mean", "std", "p50", "p90", "p99");
    for (int i = 0; i < MOGE_SERVE_METRICS; i++) {
        const struct moge_serve_spread *spread = &totals->spreads[i];
        printf("%-24s %9.2f %9.2f %9.2f %9.2f %9.2f\n", titles[i], spread->mean, spread->std,
               spread->p50, spread->p90, spread->p99);
    }
    if (load->rate > 0)
        printf("%-24s %9.2f %9.2f %9.2f %9.2f %9.2f\n", "sent late", totals->send_delay.mean,
               totals->send_delay.std, totals->send_delay.p50, totals->send_delay.p90,
               totals->send_delay.p99);
    for (int i = 0; i < totals->n_statuses; i++)
        printf("%sfailed     %d with %s, the first: %s\n", i == 0 ? "\n" : "",
               totals->failures[i].n, totals->failures[i].status, totals->failures[i].sentence);
}

/* ---- JSON ---- */

static void number_set(json_t *object, const char *prefix, const char *name, double value) {
    char key[64];
    snprintf(key, sizeof key, "%s_%s_ms", prefix, name);
    json_object_set_new(object, key, json_real(value));
}

static void spread_set(json_t *object, const char *name, const struct moge_serve_spread *spread) {
    number_set(object, "mean", name, spread->mean);
    number_set(object, "median", name, spread->median);
    number_set(object, "std", name, spread->std);
    number_set(object, "p50", name, spread->p50);
    number_set(object, "p90", name, spread->p90);
    number_set(object, "p99", name, spread->p99);
}

static json_t *failures_json(const struct totals *totals) {
    json_t *object = json_object();
    for (int i = 0; i < totals->n_statuses; i++)
        json_object_set_new(object, totals->failures[i].status,
                            json_integer(totals->failures[i].n));
    return object;
}

/* What was asked for. */
static json_t *setting_json(const struct moge_serve_report *report,
                            const struct moge_serve_load *load) {
    json_t *rate = load->rate == 0          ? json_null()
                   : isinf(load->rate) != 0 ? json_string("inf")
                                            : json_real(load->rate);
    json_t *concurrency = load->rate == 0 ? json_integer(load->concurrency) : json_null();
    const struct moge_client_info *info = &report->info;
    return json_pack("{s:s, s:s, s:s, s:s, s:i, s:s, s:s, s:i, s:i, s:o, s:o, s:f, s:I}", "backend",
                     "moged", "model_id", info->target.name, "version", info->version, "isa",
                     info->isa, "threads", info->n_threads, "dataset", report->dataset,
                     "speculation", report->speculation, "num_prompts", load->n_requests,
                     "num_warmups", report->n_warmup, "request_rate", rate, "max_concurrency",
                     concurrency, "temperature", (double)load->request.temperature, "seed",
                     (json_int_t)load->seed);
}

static int json_print(const struct moge_serve_report *report, const struct moge_serve_load *load,
                      const struct totals *totals, struct moge_err *err) {
    double s = totals->seconds;
    json_t *object = setting_json(report, load);
    json_t *result = json_pack(
        "{s:f, s:i, s:i, s:o, s:I, s:I, s:f, s:o, s:f, s:f, s:i, s:f, s:I, s:I, s:f}", "duration",
        s, "completed", totals->n_completed, "failed", load->n_requests - totals->n_completed,
        "failed_by_status", failures_json(totals), "total_input_tokens",
        (json_int_t)totals->n_prompt, "total_output_tokens", (json_int_t)totals->n_output,
        "request_throughput", totals->n_completed / s, "request_goodput",
        has_goodput(report) ? json_real(totals->n_good / s) : json_null(), "output_throughput",
        (double)totals->n_output / s, "total_token_throughput",
        (double)(totals->n_prompt + totals->n_output) / s, "max_concurrent_requests",
        load->n_open_max, "tokens_per_message",
        (double)totals->n_output / (double)(totals->n_messages > 0 ? totals->n_messages : 1),
        "offered_guesses", (json_int_t)totals->n_offered, "accepted_guesses",
        (json_int_t)totals->n_accepted, "p99_send_delay_ms", totals->send_delay.p99);
    int rc = object == NULL || result == NULL || json_object_update(object, result) != 0;
    for (int i = 0; i < MOGE_SERVE_METRICS && rc == 0; i++)
        spread_set(object, moge_serve_metric_name((enum moge_serve_metric)i), &totals->spreads[i]);
    if (rc == 0)
        rc = json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9)) != 0 ||
             putchar('\n') == EOF || fflush(stdout) != 0;
    json_decref(object);
    json_decref(result);
    return rc ? moge_fail(err, MOGE_IO, "the result cannot be written") : 0;
}

int moge_serve_report_print(const struct moge_serve_report *report,
                            const struct moge_serve_load *load, struct moge_err *err) {
    struct totals totals;
    if (totals_sum(&totals, load, report->goodput_ms) != 0)
        return moge_fail(err, MOGE_NOMEM, "out of memory");
    if (totals.n_completed == 0)
        return moge_fail(err, MOGE_INTERNAL, "none of %d requests completed; the first: %s",
                         load->n_requests, totals.failures[0].sentence);
    if (report->json)
        return json_print(report, load, &totals, err);
    table_print(report, load, &totals);
    return 0;
}
