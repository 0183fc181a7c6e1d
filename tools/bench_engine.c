/* SPDX-License-Identifier: Apache-2.0 */
/* moge bench engine: how long a forward pass takes, for the four kinds of work a step is made of,
 * and how near that comes to what the machine can do.
 *
 *      prefill   N tokens of one sequence, logits of the last         what a new prompt costs
 *      decode    1 row behind `depth` positions                       one token without guesses
 *      verify    n rows of ONE sequence behind `depth` positions      n - 1 guesses checked
 *      batch     1 row of each of n sequences, each at `depth`        n streams decoding together
 */
#include "tools/bench_engine.h"

#include <stdlib.h>
#include <string.h>

#include "tools/commands.h"
#include "tools/options.h"

static const char usage_text[] =
    "Usage: moge bench engine --model FILE [options]\n"
    "Measures forward passes: prefill, decode, verification, batches, as a fraction of what this\n"
    "machine can do: its read bandwidth and arithmetic peaks are measured in turns with them.\n"
    "\n"
    "  --model FILE      GGUF file\n"
    "  --threads N       worker threads (1)\n"
    "  --rows LIST       rows of a pass, as 1,4,8,32 (1,4,8,32)\n"
    "  --prefill N       tokens of a prefill pass, 0 for none (512)\n"
    "  --depth N         positions already there when decoding (128)\n"
    "  --sequences N     batches of at most so many sequences, 1 for none (all of --rows)\n"
    "  --weights TYPE    as-stored, f32, q8_0 or q4_0 (as-stored)\n"
    "  --kv TYPE         f16, q8_0 or f32: how keys and values are kept (f16)\n"
    "  --isa LEVEL       at most scalar, avx2, avx512 or vnni (the best there is)\n"
    "  --repeats N       at least so many passes of each kind (5)\n"
    "  --seconds S       and at least for so long (0.5)\n"
    "  --json            one JSON object a line instead of a table\n"
    "  --csv FILE        append a row for each line to a CSV file\n"
    "  --machine NAME    the machine's name in it (this)\n"
    "  --commit NAME     the commit's name in it (the version)\n"
    "  --stdin           measure what the lines of standard input ask for: prefill N, decode,\n"
    "                    verify N, batch N (N within --rows and --prefill); greedy N ID ID ...\n"
    "                    continues a prompt with the N likeliest tokens\n"
    "\n"
    "Exit status: 0 done, 1 failed, 2 wrong options.\n";

/* ---- options ---- */

static bool parse_count(const char *text, int32_t *out) {
    return moge_option_int(text, 1, 65536, out);
}

static bool parse_seconds(const char *text, double *out) {
    char *end;
    *out = strtod(text, &end);
    return end != text && *end == '\0' && *out >= 0 && *out <= 3600;
}

static bool option_take(void *arg, int option, const char *value) {
    struct moge_bench *bench = arg;
    int index;
    switch (option) {
    case 'm':
        bench->path = value;
        return true;
    case 't':
        return moge_option_int(value, 1, MOGE_THREADS_MAX, &bench->n_threads);
    case 'r':
        return moge_option_list(value, parse_count, bench->counts, MOGE_BENCH_COUNTS_MAX,
                                &bench->n_counts);
    case 'p':
        return moge_option_int(value, 0, 65536, &bench->n_prefill);
    case 'd':
        return moge_option_int(value, 0, 1 << 24, &bench->depth);
    case 'q':
        return moge_option_int(value, 1, 65536, &bench->n_seqs_max);
    case 'n':
        return moge_option_int(value, 1, MOGE_BENCH_REPEATS_MAX, &bench->repeats);
    case 's':
        return parse_seconds(value, &bench->seconds);
    case 'w':
        return moge_option_weights(value, &bench->weights);
    case 'k':
        index = moge_option_name(value, moge_bench_kv_names, 3);
        bench->kv_type = (enum moge_kv_type)index;
        return index >= 0;
    case 'i':
        return moge_option_isa(value);
    case 'c':
        bench->csv_path = value;
        return true;
    case 'M':
        bench->machine = value;
        return value[strcspn(value, ",\"\n")] == '\0';
    case 'C':
        bench->commit = value;
        return value[strcspn(value, ",\"\n")] == '\0';
    case 'S':
        bench->from_stdin = true;
        return true;
    default:
        bench->json = true;
        return true;
    }
}

/* -1: go on; otherwise the exit status. */
static int options_parse(struct moge_bench *bench, int argc, char **argv) {
    static const struct option options[] = {
        {"model", required_argument, NULL, 'm'},   {"threads", required_argument, NULL, 't'},
        {"rows", required_argument, NULL, 'r'},    {"prefill", required_argument, NULL, 'p'},
        {"depth", required_argument, NULL, 'd'},   {"repeats", required_argument, NULL, 'n'},
        {"seconds", required_argument, NULL, 's'}, {"weights", required_argument, NULL, 'w'},
        {"kv", required_argument, NULL, 'k'},      {"sequences", required_argument, NULL, 'q'},
        {"isa", required_argument, NULL, 'i'},     {"json", no_argument, NULL, 'j'},
        {"csv", required_argument, NULL, 'c'},     {"machine", required_argument, NULL, 'M'},
        {"commit", required_argument, NULL, 'C'},  {"stdin", no_argument, NULL, 'S'},
        {"help", no_argument, NULL, 'h'},          {0}};
    static const struct moge_options engine = {"engine", usage_text, options, option_take};
    int status = moge_options_parse(&engine, argc, argv, bench);
    if (status >= 0)
        return status;
    if (optind < argc || !bench->path) {
        fputs(bench->path ? "moge bench engine: there is an argument too many\n"
                          : "moge bench engine: --model is missing; --help says more\n",
              stderr);
        return 2;
    }
    return -1;
}

/* ---- what to measure ---- */

static int measure(struct moge_bench *bench, const char *name, int32_t n) {
    if (strcmp(name, "prefill") == 0)
        return moge_bench_measure(bench, &(struct moge_bench_work){"prefill", 1, n, 0, 1});
    if (strcmp(name, "batch") == 0)
        return moge_bench_measure(bench, &(struct moge_bench_work){"batch", n, 1, bench->depth, 1});
    return moge_bench_measure(
        bench, &(struct moge_bench_work){n == 1 ? "decode" : "verify", 1, n, bench->depth, n});
}

static int measure_all(struct moge_bench *bench) {
    int rc = bench->n_prefill > 0 ? measure(bench, "prefill", bench->n_prefill) : 0;
    if (rc == 0)
        rc = moge_bench_histories(bench, bench->n_seqs);
    for (int32_t i = 0; i < bench->n_counts && rc == 0; i++) {
        int32_t n = bench->counts[i];
        rc = measure(bench, "verify", n);
        if (rc == 0 && n > 1 && n <= bench->n_seqs)
            rc = measure(bench, "batch", n);
    }
    return rc;
}

/* "greedy N ID ID ..." */
static int greedy(struct moge_bench *bench, char *rest) {
    int32_t n = 0, n_prompt = 0, n_vocab = moge_model_info(bench->model)->n_vocab;
    const char *item = strsep(&rest, " ");
    if (!item || !moge_option_int(item, 1, bench->n_context, &n))
        return MOGE_INVALID;
    while ((item = strsep(&rest, " ")))
        if (n_prompt == bench->n_context ||
            !moge_option_int(item, 0, n_vocab - 1, &bench->tokens[n_prompt++]))
            return MOGE_INVALID;
    int rc = moge_bench_greedy(bench, n_prompt, n);
    return rc != 0 ? rc : moge_bench_histories(bench, 1);
}

static int measure_line(struct moge_bench *bench, char *line) {
    line[strcspn(line, "\n")] = '\0';
    char *rest = line;
    const char *name = strsep(&rest, " ");
    if (strcmp(name, "greedy") == 0)
        return greedy(bench, rest);
    int32_t n = 1;
    bool decode = strcmp(name, "decode") == 0, prefill = strcmp(name, "prefill") == 0;
    bool verify = strcmp(name, "verify") == 0;
    int32_t n_max = prefill ? bench->n_prefill : verify ? bench->n_rows_max : bench->n_seqs;
    if (decode && !rest)
        return measure(bench, "verify", 1);
    if (decode || (!prefill && !verify && strcmp(name, "batch") != 0) || !rest ||
        !moge_option_int(rest, 1, n_max, &n))
        return MOGE_INVALID;
    int rc = measure(bench, name, n);
    return rc == 0 && prefill ? moge_bench_histories(bench, 1) : rc;
}

static int measure_stdin(struct moge_bench *bench, struct moge_err *err) {
    char *line = NULL;
    size_t cap = 0;
    int rc = moge_bench_histories(bench, bench->n_seqs);
    while (rc == 0 && getline(&line, &cap, stdin) > 0) {
        char asked[61];
        snprintf(asked, sizeof asked, "%.*s", (int)strcspn(line, "\n"), line);
        rc = measure_line(bench, line);
        if (rc == MOGE_INVALID)
            moge_fail(err, rc, "standard input asks for \"%s\", which is no work", asked);
    }
    free(line);
    return rc;
}

static int run(struct moge_bench *bench, struct moge_err *err) {
    int rc = bench->csv_path ? moge_bench_csv_open(bench, err) : 0;
    if (rc == 0)
        rc = moge_bench_setup(bench, err);
    if (rc != 0)
        return rc;
    if (!bench->json)
        moge_bench_header(bench);
    rc = bench->from_stdin ? measure_stdin(bench, err) : measure_all(bench);
    if (rc != 0 && err->text[0] == '\0')
        moge_fail(err, rc, "a forward pass failed: %s", moge_code_name(rc));
    return rc;
}

int moge_bench_engine(int argc, char **argv) {
    struct moge_bench bench = {.n_threads = 1,
                               .counts = {1, 4, 8, 32},
                               .n_counts = 4,
                               .n_prefill = 512,
                               .depth = 128,
                               .repeats = 5,
                               .seconds = 0.5,
                               .machine = "this",
                               .commit = MOGE_VERSION,
                               .rng = 1};
    struct moge_err err = {0};
    int status = options_parse(&bench, argc, argv);
    if (status >= 0)
        return status;
    int rc = run(&bench, &err);
    if (rc != 0)
        fprintf(stderr, "moge bench engine: %s\n", err.text);
    moge_bench_fini(&bench);
    return rc == 0 ? 0 : 1;
}
