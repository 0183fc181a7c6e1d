/* SPDX-License-Identifier: Apache-2.0 */
/* moge bench serve: how a running moged serves many streams. */
#include "tools/bench_serve.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tools/commands.h"

#define INFO_TIMEOUT_US 10000000

static const char usage_text[] =
    "Usage: moge bench serve (--rate R | --concurrency N) [options]\n"
    "Measures how a running moged serves many streams at once: throughput, and the times to the\n"
    "first token (TTFT), per output token after it (TPOT), between messages (ITL) and end to end\n"
    "(E2EL).  --json has the keys of vLLM's serving bench.\n"
    "\n"
    "  --connect ADDR      unix:/path or host:port of moged (" MOGE_DEFAULT_ADDRESS ")\n"
    "  --rate R            requests a second that arrive independently of each other (Poisson)\n"
    "                      and of the server; inf: all at once.  Times count from when a request\n"
    "                      was due, sent late or not\n"
    "  --concurrency N     instead: N streams, each sending its next request after an answer\n"
    "  --requests N        requests measured (100)\n"
    "  --warmup N          requests sent before, not measured (0)\n"
    "  --dataset FILE      JSON objects, one a line: {\"prompt\": TEXT, \"output_len\": N}; they "
    "come\n"
    "                      round again.  An output_len is kept; without one the answer ends where\n"
    "                      it ends, at the latest after --output-len.  synthetic: random tokens\n"
    "                      (synthetic)\n"
    "  --input-len N       tokens of a synthetic prompt (128)\n"
    "  --output-len N      tokens of an answer (64)\n"
    "  --goodput LIMITS    count the requests within limits in ms, such as ttft:500,tpot:50; of\n"
    "                      ttft, tpot, itl (a request's mean) and e2el\n"
    "  --temperature T     0 takes the likeliest token (0)\n"
    "  --speculation MODE  off, auto, or guesses at each step, 1..16 (as the daemon is "
    "configured)\n"
    "  --timeout SECONDS   deadline of each request (none)\n"
    "  --seed S            of arrivals, prompts and sampling (0)\n"
    "  --json              one JSON object instead of a table\n"
    "\n"
    "Exit status: 0 measured (failed requests are counted, by status), 1 nothing could be "
    "measured,\n"
    "2 wrong options, 130 interrupted.\n";

struct bench {
    const char *address;
    struct moge_serve_load load;
    struct moge_serve_report report;
    int32_t input_len;
    bool help;
};

static atomic_bool interrupted;

static void interrupt(int signal) {
    (void)signal;
    atomic_store(&interrupted, true);
}

/* ---- options ---- */

static int wrong(const char *name, const char *text, const char *wanted, struct moge_err *err) {
    return moge_fail(err, MOGE_INVALID, "--%s is '%s'; it must be %s", name, text, wanted);
}

static int count_read(const char *name, const char *text, int32_t min, int32_t max, int32_t *out,
                      struct moge_err *err) {
    char *end, wanted[64];
    errno = 0;
    long value = strtol(text, &end, 10);
    snprintf(wanted, sizeof wanted, "a number from %d to %d", min, max);
    if (end == text || *end != '\0' || errno != 0 || value < min || value > max)
        return wrong(name, text, wanted, err);
    *out = (int32_t)value;
    return 0;
}

static bool real_parse(const char *text, double min, double max, double *out) {
    char *end;
    *out = strtod(text, &end);
    return end != text && *end == '\0' && *out >= min && *out <= max;
}

static int seed_read(const char *text, uint64_t *out, struct moge_err *err) {
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || value > INT64_MAX)
        return wrong("seed", text, "a number from 0 to 2^63-1", err);
    *out = value;
    return 0;
}

static int goodput_read(const char *text, double *limits, struct moge_err *err) {
    char copy[128];
    if (snprintf(copy, sizeof copy, "%s", text) >= (int)sizeof copy)
        return wrong("goodput", text, "shorter", err);
    char *rest = copy;
    for (char *item; (item = strsep(&rest, ",")) != NULL;) {
        char *value = item;
        const char *name = strsep(&value, ":");
        int i = 0;
        while (i < MOGE_SERVE_METRICS &&
               strcmp(name, moge_serve_metric_name((enum moge_serve_metric)i)) != 0)
            i++;
        if (i == MOGE_SERVE_METRICS || value == NULL || !real_parse(value, 1e-6, 1e12, &limits[i]))
            return wrong("goodput", text, "pairs such as ttft:500,tpot:50 of ttft, tpot, itl, e2el",
                         err);
    }
    return 0;
}

static int speculation_read(struct bench *bench, const char *text, struct moge_err *err) {
    struct moge_client_request *request = &bench->load.request;
    bench->report.speculation = text;
    request->has_speculation = true;
    request->spec_mode = MOGE_SPEC_FIXED;
    if (strcmp(text, "off") == 0)
        request->spec_mode = MOGE_SPEC_OFF;
    else if (strcmp(text, "auto") == 0)
        request->spec_mode = MOGE_SPEC_AUTO;
    else if (count_read("speculation", text, 1, MOGE_DRAFT_LEN_MAX, &request->spec_len, NULL) != 0)
        return wrong("speculation", text, "off, auto or a length from 1 to 16", err);
    return 0;
}

static const struct option long_options[] = {
    {"connect", required_argument, NULL, 'c'},
    {"rate", required_argument, NULL, 'r'},
    {"concurrency", required_argument, NULL, 'C'},
    {"requests", required_argument, NULL, 'n'},
    {"warmup", required_argument, NULL, 'w'},
    {"dataset", required_argument, NULL, 'd'},
    {"input-len", required_argument, NULL, 'i'},
    {"output-len", required_argument, NULL, 'o'},
    {"goodput", required_argument, NULL, 'g'},
    {"temperature", required_argument, NULL, 't'},
    {"speculation", required_argument, NULL, 'S'},
    {"timeout", required_argument, NULL, 'T'},
    {"seed", required_argument, NULL, 's'},
    {"json", no_argument, NULL, 'j'},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

static int option_take(struct bench *bench, int option, struct moge_err *err) {
    struct moge_serve_load *load = &bench->load;
    double value = 0;
    switch (option) {
    case 'c':
        bench->address = optarg;
        return 0;
    case 'r':
        return real_parse(optarg, 1e-3, INFINITY, &load->rate)
                   ? 0
                   : wrong("rate", optarg, "inf or a number from 0.001", err);
    case 'C':
        return count_read("concurrency", optarg, 1, 100000, &load->concurrency, err);
    case 'n':
        return count_read("requests", optarg, 1, 10000000, &load->n_requests, err);
    case 'w':
        return count_read("warmup", optarg, 0, 10000000, &bench->report.n_warmup, err);
    case 'd':
        bench->report.dataset = optarg;
        return 0;
    case 'i':
        return count_read("input-len", optarg, 1, 10000000, &bench->input_len, err);
    case 'o':
        return count_read("output-len", optarg, 1, 10000000, &load->output_len, err);
    case 'g':
        return goodput_read(optarg, bench->report.goodput_ms, err);
    case 't':
        if (!real_parse(optarg, 0, 100, &value))
            return wrong("temperature", optarg, "a number from 0 to 100", err);
        load->request.temperature = (float)value;
        return 0;
    case 'S':
        return speculation_read(bench, optarg, err);
    case 'T':
        if (!real_parse(optarg, 0.001, 1e6, &value))
            return wrong("timeout", optarg, "a number from 0.001 to 1000000", err);
        load->request.timeout_us = (int64_t)(value * 1e6);
        return 0;
    case 's':
        return seed_read(optarg, &load->seed, err);
    case 'j':
        bench->report.json = true;
        return 0;
    default:
        bench->help = true;
        return 0;
    }
}

static int options_read(struct bench *bench, int argc, char **argv, struct moge_err *err) {
    int option;
    optind = 1;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        if (option == '?')
            return moge_fail(err, MOGE_INVALID, "%s is no option, or lacks its value",
                             argv[optind - 1]);
        int rc = option_take(bench, option, err);
        if (rc != 0 || bench->help)
            return rc;
    }
    if (optind < argc)
        return moge_fail(err, MOGE_INVALID, "'%s' is no option", argv[optind]);
    if ((bench->load.rate > 0) == (bench->load.concurrency > 0))
        return moge_fail(err, MOGE_INVALID, "give --rate or --concurrency, one of the two");
    return 0;
}

/* ---- the run ---- */

static int data_get(struct bench *bench, struct moge_serve_data *data, struct moge_err *err) {
    if (strcmp(bench->report.dataset, "synthetic") != 0)
        return moge_serve_data_read(data, bench->report.dataset, err);
    return moge_serve_data_random(data, bench->input_len, bench->report.info.target.n_vocab,
                                  bench->load.seed, err);
}

/* Other requests than the measured ones, which could otherwise find their prompts computed. */
static int warm_up(const struct bench *bench, struct moge_err *err) {
    struct moge_serve_load load = bench->load;
    if (bench->report.n_warmup == 0)
        return 0;
    load.first = load.n_requests;
    load.n_requests = bench->report.n_warmup;
    load.what = "warming up";
    int rc = moge_serve_load_run(&load, err);
    free(load.samples);
    free(load.gaps_ms);
    return rc;
}

static int bench_run(struct bench *bench, struct moge_err *err) {
    struct moge_client *client = NULL;
    struct moge_serve_data data = {0};
    struct moge_serve_load *load = &bench->load;
    int rc = moge_client_open(&client, bench->address, err);
    if (rc == 0)
        rc = moge_client_info(client, INFO_TIMEOUT_US, &bench->report.info, err);
    if (rc == 0)
        rc = data_get(bench, &data, err);
    load->client = client;
    load->data = &data;
    if (rc == 0)
        rc = warm_up(bench, err);
    if (rc == 0)
        rc = moge_serve_load_run(load, err);
    if (rc == 0)
        rc = moge_serve_report_print(&bench->report, load, err);
    free(load->samples);
    free(load->gaps_ms);
    moge_serve_data_free(&data);
    moge_client_close(client);
    return rc;
}

int moge_bench_serve(int argc, char **argv) {
    struct bench bench = {
        .address = MOGE_DEFAULT_ADDRESS,
        .load = {.n_requests = 100,
                 .output_len = 64,
                 .what = "serving",
                 .request = {.has_temperature = true, .cancelled = &interrupted}},
        .report = {.dataset = "synthetic", .speculation = "default"},
        .input_len = 128,
    };
    struct moge_err err = {0};
    if (options_read(&bench, argc, argv, &err) != 0) {
        fprintf(stderr, "moge bench serve: %s\n", err.text);
        return 2;
    }
    if (bench.help) {
        fputs(usage_text, stdout);
        return 0;
    }
    /* The second Ctrl-C ends the process at once. */
    struct sigaction action = {.sa_handler = interrupt, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    int rc = bench_run(&bench, &err);
    if (rc != 0)
        fprintf(stderr, "moge bench serve: %s\n", err.text);
    return rc == 0 ? 0 : rc == MOGE_CANCELLED && atomic_load(&interrupted) ? 130 : 1;
}
