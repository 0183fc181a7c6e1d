/* SPDX-License-Identifier: Apache-2.0 */
/* moge stats: how a running moged is doing, once or live. */
#include "tools/commands.h"

#include <getopt.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "tools/client_stats.h"
#include "tools/screen.h"

#define TIMEOUT_US 5000000

static const char usage_text[] =
    "Usage: moge stats [--connect ADDR] [--watch [SECONDS] | --json | --prometheus]\n"
    "Says how the moged at ADDR is doing.  ADDR is unix:/path or host:port\n"
    "(" MOGE_DEFAULT_ADDRESS ").\n"
    "\n"
    "  --watch [SECONDS]   again and again, in place on a terminal (default: every second);\n"
    "                      rates and times are those of the interval\n"
    "  --count N           with --watch: end after so many (default: until interrupted)\n"
    "  --json              one JSON object with everything\n"
    "  --prometheus        the metrics as Prometheus reads them\n"
    "\n"
    "Exit status: 0 it answered, 1 it did not, 2 wrong options.\n";

enum format { FORMAT_TEXT, FORMAT_JSON, FORMAT_PROMETHEUS };

struct options {
    const char *address;
    enum format format;
    double seconds; /* 0: once */
    long count;     /* 0: until interrupted */
};

static volatile sig_atomic_t interrupted;

static void interrupt(int signal) {
    (void)signal;
    interrupted = 1;
}

/* ---- text ---- */

static void line_print(struct moge_screen *screen, const char *label, const char *text) {
    if (screen->live)
        moge_screen_line(screen, label, text, strlen(text));
    else
        printf("%s%s\n", label, text);
}

static double share(int64_t part, int64_t whole) {
    return whole > 0 ? 100 * (double)part / (double)whole : 0;
}

static void steps_print(struct moge_screen *screen, const struct moge_client_stats *now,
                        const struct moge_client_stats *before) {
    char text[256];
    int64_t n_steps = now->n_steps - before->n_steps, step_us = now->step_us - before->step_us;
    snprintf(text, sizeof text, "%lld, %.2f ms each, %.1f rows; %.2f GB of weights a step",
             (long long)n_steps, n_steps ? (double)step_us / 1e3 / (double)n_steps : 0,
             n_steps ? (double)(now->n_rows - before->n_rows) / (double)n_steps : 0,
             n_steps ? (double)(now->weight_bytes - before->weight_bytes) / 1e9 / (double)n_steps
                     : 0);
    line_print(screen, "steps     ", text);
    size_t at = 0;
    text[0] = '\0';
    for (int i = 0; i < now->n_phases && at < sizeof text - 1; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, "%s%s %.2f%%", i ? ", " : "",
                               now->phases[i].name,
                               share(now->phases[i].value - before->phases[i].value, step_us));
    line_print(screen, "time      ", text);
}

static void guesses_print(struct moge_screen *screen, const struct moge_client_stats *now,
                          const struct moge_client_stats *before) {
    char text[256];
    int64_t offered = 0, accepted = 0;
    size_t at = 0;
    text[0] = '\0';
    for (int i = 0; i < now->n_positions; i++) {
        offered += now->offered[i] - before->offered[i];
        accepted += now->accepted[i] - before->accepted[i];
        if (now->offered[i] > before->offered[i] && at < sizeof text - 1)
            at += (size_t)snprintf(text + at, sizeof text - at, " %.0f%%",
                                   share(now->accepted[i] - before->accepted[i],
                                         now->offered[i] - before->offered[i]));
    }
    char line[384];
    snprintf(line, sizeof line, "%lld of %lld right%s%s", (long long)accepted, (long long)offered,
             text[0] ? "; by position" : "", text);
    line_print(screen, "guesses   ", line);
}

static void experts_print(struct moge_screen *screen, const struct moge_client_stats *now,
                          const struct moge_client_stats *before) {
    char text[128];
    int64_t n_steps = now->n_steps - before->n_steps, touched = 0, low = INT64_MAX, high = 0;
    for (int i = 0; i < now->n_layers; i++)
        touched += now->layer_experts[i] - before->layer_experts[i];
    for (int i = 0; i < now->n_groups; i++) {
        int64_t rows = now->group_rows[i] - before->group_rows[i];
        low = rows < low ? rows : low;
        high = rows > high ? rows : high;
    }
    if (now->n_layers == 0 || n_steps == 0)
        return;
    snprintf(text, sizeof text, "%.1f a layer and step; busiest group has %.2f of the idlest",
             (double)touched / (double)now->n_layers / (double)n_steps,
             low > 0 ? (double)high / (double)low : 0);
    line_print(screen, "experts   ", text);
}

/* What the policy believes: the prices that it weighs guesses by. */
static void costs_print(struct moge_screen *screen, const struct moge_client_stats *now) {
    const double *step_us = now->expected_step_us;
    char text[256];
    if (now->n_step_costs < 6 || step_us[0] <= 0)
        return; /* nothing is known yet */
    snprintf(text, sizeof text,
             "%.2f / %.2f / %.2f / %.2f / %.2f / %.2f ms for a step of 1 / 2 / 4 / 8 / 16 / 32 "
             "rows; %.3f ms for a round of drafting, %.3f for each sequence in it",
             step_us[0] / 1e3, step_us[1] / 1e3, step_us[2] / 1e3, step_us[3] / 1e3,
             step_us[4] / 1e3, step_us[5] / 1e3, now->guess_round_us / 1e3,
             now->guess_row_us / 1e3);
    line_print(screen, "costs     ", text);
}

static void latency_print(struct moge_screen *screen, const struct moge_client_stats *now) {
    static const char *const names[][2] = {{"time_to_first_token", "first token"},
                                           {"inter_token_latency", "next tokens"},
                                           {"e2e_request_latency", "request"}};
    char text[256];
    size_t at = 0;
    text[0] = '\0';
    for (size_t k = 0; k < sizeof names / sizeof names[0]; k++)
        for (int i = 0; i < now->n_spreads && at < sizeof text - 1; i++)
            if (strcmp(now->spreads[i].name, names[k][0]) == 0)
                at += (size_t)snprintf(
                    text + at, sizeof text - at, "%s%s %.1f / %.1f", at ? ", " : "", names[k][1],
                    (double)now->spreads[i].p50 / 1e3, (double)now->spreads[i].p99 / 1e3);
    line_print(screen, "ms p50/p99 ", text);
}

static int64_t counted(const struct moge_client_stats *now, const struct moge_client_stats *before,
                       const char *name) {
    return moge_client_count_of(now->counters, now->n_counters, name) -
           moge_client_count_of(before->counters, before->n_counters, name);
}

static void pages_print(struct moge_screen *screen, const struct moge_client_stats *now,
                        const struct moge_client_stats *before) {
    char text[256];
    snprintf(text, sizeof text,
             "%lld used, %lld cached, %lld free; %lld preemptions, %lld evicted; prefixes found: "
             "%.0f%% of prompt tokens",
             (long long)now->pages_used, (long long)now->pages_cached, (long long)now->pages_free,
             (long long)counted(now, before, "num_preemptions_total"),
             (long long)(now->pages_evicted - before->pages_evicted),
             share(counted(now, before, "prefix_cache_hits_total"),
                   counted(now, before, "prefix_cache_queries_total")));
    line_print(screen, "KV pages  ", text);
}

/* Differences to `before`, which is all zero for the time since the start. */
static void stats_print(struct moge_screen *screen, const struct moge_client_stats *now,
                        const struct moge_client_stats *before) {
    char text[256];
    snprintf(text, sizeof text,
             "%lld running (%lld at their prompt), %lld waiting; %lld calls, %lld connections; "
             "heap %.1f MiB; up %.0f s",
             (long long)now->n_running, (long long)now->n_prefilling, (long long)now->n_waiting,
             (long long)now->n_calls, (long long)now->n_connections,
             (double)now->heap_bytes / (1 << 20), (double)now->uptime_us / 1e6);
    line_print(screen, "requests  ", text);
    snprintf(text, sizeof text, "%.1f tokens/s lately; %lld since %s", now->tokens_per_s,
             (long long)(now->n_tokens - before->n_tokens),
             before->uptime_us ? "the last look" : "the start");
    line_print(screen, "output    ", text);
    pages_print(screen, now, before);
    steps_print(screen, now, before);
    guesses_print(screen, now, before);
    costs_print(screen, now);
    experts_print(screen, now, before);
    latency_print(screen, now);
    fflush(stdout);
}

/* ---- JSON ---- */

static json_t *list_json(const int64_t *values, int n) {
    json_t *list = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(list, json_integer(values[i]));
    return list;
}

static json_t *reals_json(const double *values, int n) {
    json_t *list = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(list, json_real(values[i]));
    return list;
}

static json_t *counts_json(const struct moge_client_count *list, int n) {
    json_t *object = json_object();
    for (int i = 0; i < n; i++)
        json_object_set_new(object, list[i].name, json_integer(list[i].value));
    return object;
}

static json_t *spreads_json(const struct moge_client_spread *list, int n) {
    json_t *object = json_object();
    for (int i = 0; i < n; i++) {
        const struct moge_client_spread *s = &list[i];
        json_object_set_new(object, s->name,
                            json_pack("{s:I, s:I, s:I, s:I, s:I}", "count", (json_int_t)s->count,
                                      "sum", (json_int_t)s->sum, "p50", (json_int_t)s->p50, "p90",
                                      (json_int_t)s->p90, "p99", (json_int_t)s->p99));
    }
    return object;
}

static json_t *stats_json(const struct moge_client_stats *s) {
    const struct {
        const char *name;
        int64_t value;
    } numbers[] = {
        {"uptime_us", s->uptime_us},
        {"running", s->n_running},
        {"prefilling", s->n_prefilling},
        {"waiting", s->n_waiting},
        {"calls", s->n_calls},
        {"connections", s->n_connections},
        {"pages_free", s->pages_free},
        {"pages_used", s->pages_used},
        {"pages_cached", s->pages_cached},
        {"pages_evicted", s->pages_evicted},
        {"heap_bytes", s->heap_bytes},
        {"steps", s->n_steps},
        {"rows", s->n_rows},
        {"tokens", s->n_tokens},
        {"step_us", s->step_us},
        {"weight_bytes", s->weight_bytes},
    };
    json_t *object = json_object();
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        json_object_set_new(object, numbers[i].name, json_integer(numbers[i].value));
    json_object_set_new(object, "tokens_per_second", json_real(s->tokens_per_s));
    json_object_set_new(object, "expected_step_us",
                        reals_json(s->expected_step_us, s->n_step_costs));
    json_object_set_new(object, "guess_us", json_real(s->guess_us));
    json_object_set_new(object, "guess_round_us", json_real(s->guess_round_us));
    json_object_set_new(object, "guess_row_us", json_real(s->guess_row_us));
    json_object_set_new(object, "step_base_us", json_real(s->step_base_us));
    json_object_set_new(object, "step_row_us", json_real(s->step_row_us));
    json_object_set_new(object, "prefill_row_us", json_real(s->prefill_row_us));
    json_object_set_new(object, "phase_us", counts_json(s->phases, s->n_phases));
    json_object_set_new(object, "offered_by_position", list_json(s->offered, s->n_positions));
    json_object_set_new(object, "accepted_by_position", list_json(s->accepted, s->n_positions));
    json_object_set_new(object, "ngram_offered_by_position",
                        list_json(s->ngram_offered, s->n_positions));
    json_object_set_new(object, "ngram_accepted_by_position",
                        list_json(s->ngram_accepted, s->n_positions));
    json_object_set_new(object, "draft_length", list_json(s->draft_len, s->n_lengths));
    json_object_set_new(object, "experts_touched", list_json(s->layer_experts, s->n_layers));
    json_object_set_new(object, "group_rows", list_json(s->group_rows, s->n_groups));
    json_object_set_new(object, "counters", counts_json(s->counters, s->n_counters));
    json_object_set_new(object, "distributions", spreads_json(s->spreads, s->n_spreads));
    return object;
}

/* ---- the command ---- */

static void pause_for(double seconds) {
    struct timespec time = {.tv_sec = (time_t)seconds};
    time.tv_nsec = (long)((seconds - (double)time.tv_sec) * 1e9);
    nanosleep(&time, NULL);
}

static int watch(struct moge_client *client, const struct options *options, struct moge_err *err) {
    static struct moge_client_stats before, now;
    struct moge_screen screen = moge_screen_init();
    for (long i = 0; !interrupted && (options->count == 0 || i < options->count); i++) {
        int rc = moge_client_stats(client, false, TIMEOUT_US, &now, err);
        if (rc != 0)
            return rc;
        moge_screen_rewind(&screen);
        stats_print(&screen, &now, &before);
        if (!screen.live)
            puts("");
        before = now;
        if (options->count == 0 || i + 1 < options->count)
            pause_for(options->seconds);
    }
    return 0;
}

static int stats_run(const struct options *options, struct moge_err *err) {
    static const struct moge_client_stats start;
    static struct moge_client_stats stats;
    struct moge_screen plain = {0};
    struct moge_client *client = NULL;
    int rc = moge_client_open(&client, options->address, err);
    if (rc == 0 && options->seconds > 0) {
        rc = watch(client, options, err);
    } else if (rc == 0) {
        rc = moge_client_stats(client, options->format == FORMAT_PROMETHEUS, TIMEOUT_US, &stats,
                               err);
        if (rc == 0 && options->format == FORMAT_TEXT)
            stats_print(&plain, &stats, &start);
        if (rc == 0 && options->format == FORMAT_PROMETHEUS)
            fputs(stats.prometheus ? stats.prometheus : "", stdout);
        if (rc == 0 && options->format == FORMAT_JSON) {
            json_t *object = stats_json(&stats);
            json_dumpf(object, stdout, JSON_COMPACT);
            json_decref(object);
            puts("");
        }
        free(stats.prometheus);
    }
    moge_client_close(client);
    return rc;
}

static int number_read(const char *text, double min, double max, double *out) {
    char *end;
    *out = strtod(text, &end);
    return end != text && *end == '\0' && *out >= min && *out <= max ? 0 : MOGE_INVALID;
}

static int options_read(struct options *o, int argc, char **argv, struct moge_err *err) {
    static const struct option options[] = {{"connect", required_argument, NULL, 'c'},
                                            {"watch", no_argument, NULL, 'w'},
                                            {"count", required_argument, NULL, 'n'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"prometheus", no_argument, NULL, 'p'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    int option;
    double number;
    optind = 1;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "+", options, NULL)) != -1) {
        switch (option) {
        case 'c':
            o->address = optarg;
            break;
        case 'w':
            o->seconds = 1;
            if (optind < argc && argv[optind][0] != '-' &&
                number_read(argv[optind++], 0.05, 3600, &o->seconds) != 0)
                return moge_fail(err, MOGE_INVALID, "--watch takes 0.05 to 3600 seconds");
            break;
        case 'n':
            if (number_read(optarg, 1, 1e9, &number) != 0)
                return moge_fail(err, MOGE_INVALID, "--count takes a number from 1");
            o->count = (long)number;
            break;
        case 'j':
            o->format = FORMAT_JSON;
            break;
        case 'p':
            o->format = FORMAT_PROMETHEUS;
            break;
        case 'h':
            fputs(usage_text, stdout);
            exit(0);
        default:
            return moge_fail(err, MOGE_INVALID, "%s is no option, or lacks its value",
                             argv[optind - 1]);
        }
    }
    if (optind < argc)
        return moge_fail(err, MOGE_INVALID, "'%s' is no option", argv[optind]);
    if (o->seconds > 0 && o->format != FORMAT_TEXT)
        return moge_fail(err, MOGE_INVALID,
                         "--watch shows text: no --json or --prometheus with it");
    return 0;
}

int moge_command_stats(int argc, char **argv) {
    struct options options = {.address = MOGE_DEFAULT_ADDRESS};
    struct moge_err err = {0};
    int status = 0;
    signal(SIGINT, interrupt);
    if (options_read(&options, argc, argv, &err) != 0)
        status = 2;
    else if (stats_run(&options, &err) != 0)
        status = 1;
    if (status != 0)
        fprintf(stderr, "moge stats: %s\n", err.text);
    return status;
}
