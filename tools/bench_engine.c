/* SPDX-License-Identifier: Apache-2.0 */
/* moge bench engine: how long a forward pass takes, for the four kinds of work a step is made of.
 *
 *      prefill   N tokens of one sequence, logits of the last         what a new prompt costs
 *      decode    1 row behind `depth` positions                       one token without guesses
 *      verify    n rows of ONE sequence behind `depth` positions      n - 1 guesses checked
 *      batch     1 row of each of n sequences, each at `depth`        n streams decoding together
 *
 * Every repeat takes new random tokens, so that other experts are touched; the median of at least
 * five repeats is reported.  Weight bytes are those that have to be read at least once (the union
 * of the experts touched), multiply-adds those of weight matrices. */
#include "tools/commands.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/model.h"
#include "moge/engine.h"
#include "moge/kv.h"

#define COUNTS_MAX  16
#define REPEATS_MAX 1000

static const char usage_text[] =
    "Usage: moge bench engine --model FILE [options]\n"
    "Measures forward passes on this machine: prefill, decode, verification, batches.\n"
    "\n"
    "  --model FILE      GGUF file\n"
    "  --threads N       worker threads (1)\n"
    "  --rows LIST       rows of a pass, as 1,4,8,32 (1,4,8,32)\n"
    "  --prefill N       tokens of a prefill pass, 0 for none (512)\n"
    "  --depth N         positions already there when decoding (128)\n"
    "  --weights TYPE    as-stored, f32, q8_0 or q4_0 (as-stored)\n"
    "  --isa LEVEL       at most scalar, avx2, avx512 or vnni (the best there is)\n"
    "  --repeats N       at least so many passes of each kind (5)\n"
    "  --seconds S       and at least for so long (0.5)\n"
    "  --json            one JSON object a line instead of a table\n"
    "\n"
    "Exit status: 0 done, 1 failed, 2 wrong options.\n";

struct bench {
    /* ---- options ---- */
    const char *path;
    int n_threads;
    int32_t counts[COUNTS_MAX], n_counts;
    int32_t n_prefill, depth, repeats;
    double seconds;
    enum moge_weights weights;
    bool json;
    /* ---- the run ---- */
    struct moge_model *model;
    struct moge_threads *threads;
    struct moge_engine *engine;
    struct moge_batch batch;
    int32_t n_context, n_seqs;
    int32_t *tokens; /* [n_seqs, n_context] */
    int32_t *pages;  /* [n_seqs, n_pages_each] */
    uint64_t rng;
    double load_ms;
    double ms[REPEATS_MAX];
};

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static int32_t max_i32(int32_t a, int32_t b) {
    return a > b ? a : b;
}

/* ---- options ---- */

static bool parse_int(const char *text, int32_t min, int32_t max, int32_t *out) {
    char *end;
    long value = strtol(text, &end, 10);
    if (end == text || *end != '\0' || value < min || value > max)
        return false;
    *out = (int32_t)value;
    return true;
}

static bool parse_counts(const char *text, struct bench *bench) {
    char copy[256];
    if (snprintf(copy, sizeof copy, "%s", text) >= (int)sizeof copy)
        return false;
    bench->n_counts = 0;
    char *rest = copy;
    for (char *item; (item = strsep(&rest, ","));)
        if (bench->n_counts == COUNTS_MAX ||
            !parse_int(item, 1, 65536, &bench->counts[bench->n_counts++]))
            return false;
    return true;
}

static int name_index(const char *name, const char *const *names, int n) {
    for (int i = 0; i < n; i++)
        if (strcmp(name, names[i]) == 0)
            return i;
    return -1;
}

static bool parse_seconds(const char *text, double *out) {
    char *end;
    *out = strtod(text, &end);
    return end != text && *end == '\0' && *out >= 0 && *out <= 3600;
}

static bool option_take(struct bench *bench, int option, const char *value) {
    static const char *const levels[] = {"scalar", "avx2", "avx512", "vnni"};
    static const char *const weights[] = {"as-stored", "f32", "q8_0", "q4_0"};
    int index;
    switch (option) {
    case 'm':
        bench->path = value;
        return true;
    case 't':
        return parse_int(value, 1, MOGE_THREADS_MAX, &bench->n_threads);
    case 'r':
        return parse_counts(value, bench);
    case 'p':
        return parse_int(value, 0, 65536, &bench->n_prefill);
    case 'd':
        return parse_int(value, 0, 1 << 24, &bench->depth);
    case 'n':
        return parse_int(value, 1, REPEATS_MAX, &bench->repeats);
    case 's':
        return parse_seconds(value, &bench->seconds);
    case 'w':
        index = name_index(value, weights, 4);
        bench->weights = (enum moge_weights)index;
        return index >= 0;
    case 'i':
        index = name_index(value, levels, 4);
        if (index >= 0)
            moge_kernels_set_max((enum moge_isa)index);
        return index >= 0;
    default:
        bench->json = true;
        return true;
    }
}

/* -1: go on; otherwise the exit status. */
static int options_parse(struct bench *bench, int argc, char **argv) {
    static const struct option options[] = {
        {"model", required_argument, NULL, 'm'},   {"threads", required_argument, NULL, 't'},
        {"rows", required_argument, NULL, 'r'},    {"prefill", required_argument, NULL, 'p'},
        {"depth", required_argument, NULL, 'd'},   {"repeats", required_argument, NULL, 'n'},
        {"seconds", required_argument, NULL, 's'}, {"weights", required_argument, NULL, 'w'},
        {"isa", required_argument, NULL, 'i'},     {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},          {0}};
    int option, index = 0;
    optind = 1;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "", options, &index)) != -1) {
        if (option == 'h') {
            fputs(usage_text, stdout);
            return 0;
        }
        if (option == '?') {
            fprintf(stderr, "moge bench engine: %s is no option, or lacks its value\n",
                    argv[optind - 1]);
            return 2;
        }
        if (!option_take(bench, option, optarg)) {
            fprintf(stderr, "moge bench engine: --%s cannot be '%s'\n", options[index].name,
                    optarg);
            return 2;
        }
    }
    if (optind < argc || !bench->path) {
        fputs(bench->path ? "moge bench engine: there is an argument too many\n"
                          : "moge bench engine: --model is missing; --help says more\n",
              stderr);
        return 2;
    }
    return -1;
}

/* ---- one pass ---- */

static int32_t token_random(struct bench *bench) {
    bench->rng = bench->rng * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((bench->rng >> 33) % (uint64_t)moge_model_info(bench->model)->n_vocab);
}

/* n_seqs sequences, n_rows rows of each from `pos` on, with new tokens. */
static void batch_fill(struct bench *bench, int32_t n_seqs, int32_t pos, int32_t n_rows,
                       int32_t n_logits) {
    int32_t pages_each = moge_kv_pages_for(bench->n_context);
    bench->batch.n_spans = n_seqs;
    for (int32_t i = 0; i < n_seqs; i++) {
        int32_t *tokens = bench->tokens + (size_t)i * (size_t)bench->n_context;
        for (int32_t j = 0; j < n_rows; j++)
            tokens[pos + j] = token_random(bench);
        bench->batch.spans[i] =
            (struct moge_span){.tokens = tokens,
                               .pages = bench->pages + (size_t)i * (size_t)pages_each,
                               .slot = i,
                               .pos = pos,
                               .n_rows = n_rows,
                               .n_known = pos + n_rows,
                               .n_logits = n_logits};
    }
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Multiply-adds of one row in the weight matrices, without and of the output head. */
static double row_macs(const struct moge_model *model, double *head) {
    double macs = 0;
    for (int32_t i = 0; i < model->info.n_layers; i++) {
        const struct moge_layer *layer = &model->layers[i];
        const struct moge_matrix *m[] = {&layer->q,    &layer->k,  &layer->v,    &layer->o,
                                         &layer->gate, &layer->up, &layer->down, &layer->router};
        for (size_t j = 0; j < sizeof m / sizeof m[0]; j++)
            macs += (double)m[j]->n_out * m[j]->n_in;
        if (layer->router.n_out > 0)
            macs += 3.0 * model->router.n_used * model->expert_dim * model->info.dim;
    }
    *head = (double)model->output.n_out * model->output.n_in;
    return macs;
}

static void report(const struct bench *bench, const char *work, int32_t rows, int32_t n,
                   double experts, double bytes) {
    const struct moge_model_info *info = moge_model_info(bench->model);
    double head, macs = row_macs(bench->model, &head) * rows;
    macs += head * (strcmp(work, "prefill") == 0 ? 1 : rows);
    double median = bench->ms[n / 2], low = bench->ms[n / 4], high = bench->ms[n - 1 - n / 4];
    double tok_s = rows / median * 1e3, gb_s = bytes / median / 1e6, gmac_s = macs / median / 1e6;
    if (!bench->json) {
        printf("%-8s %5d %10.3f %9.3f..%-9.3f %9.1f %7.2f %8.1f %9.0f %6d\n", work, rows, median,
               low, high, tok_s, gb_s, gmac_s, experts, n);
    } else {
        printf("{\"work\":\"%s\",\"rows\":%d,\"ms_median\":%.4f,\"ms_q1\":%.4f,\"ms_q3\":%.4f,"
               "\"ms_min\":%.4f,\"ms_max\":%.4f,\"repeats\":%d,\"tok_s\":%.2f,\"gb_s\":%.3f,"
               "\"gmac_s\":%.3f,\"experts\":%.1f,\"weight_mb\":%.3f,\"depth\":%d,\"threads\":%d,"
               "\"isa\":\"%s\",\"weights\":\"%s\",\"load_ms\":%.1f}\n",
               work, rows, median, low, high, bench->ms[0], bench->ms[n - 1], n, tok_s, gb_s,
               gmac_s, experts, bytes / 1e6, strcmp(work, "prefill") == 0 ? 0 : bench->depth,
               bench->n_threads, moge_kernels()->isa, info->weights, bench->load_ms);
    }
    fflush(stdout);
}

/* Repeats one kind of pass (the first is not counted) and reports its median. */
static int measure(struct bench *bench, const char *work, int32_t n_seqs, int32_t pos,
                   int32_t n_rows, int32_t n_logits) {
    double begin = 0, experts = 0, bytes = 0;
    int32_t n = -1;
    while (n < bench->repeats || (now_ms() - begin < bench->seconds * 1e3 && n < REPEATS_MAX)) {
        batch_fill(bench, n_seqs, pos, n_rows, n_logits);
        double start = now_ms();
        int rc = moge_engine_forward(bench->engine, &bench->batch);
        if (rc != 0)
            return rc;
        if (n < 0) {
            begin = now_ms();
        } else {
            bench->ms[n] = now_ms() - start;
            experts += moge_engine_last(bench->engine)->experts_touched;
            bytes += (double)moge_engine_last(bench->engine)->weight_bytes;
        }
        n++;
    }
    qsort(bench->ms, (size_t)n, sizeof bench->ms[0], by_size);
    report(bench, work, n_seqs * n_rows, n, experts / n, bytes / n);
    return 0;
}

/* ---- the run ---- */

static int setup(struct bench *bench, struct moge_err *err) {
    struct moge_model_options model_options = {.weights = bench->weights, .huge_pages = true};
    double start = now_ms();
    int rc = moge_model_open(&bench->model, bench->path, &model_options, err);
    if (rc != 0)
        return rc;
    bench->load_ms = now_ms() - start;
    int32_t rows_max = 1;
    for (int32_t i = 0; i < bench->n_counts; i++)
        rows_max = max_i32(rows_max, bench->counts[i]);
    bench->n_seqs = rows_max;
    bench->n_context = max_i32(bench->depth + rows_max, bench->n_prefill);
    if (bench->n_context > moge_model_info(bench->model)->n_context)
        return moge_fail(err, MOGE_INVALID, "the bench needs %d positions, the model has %d",
                         bench->n_context, moge_model_info(bench->model)->n_context);
    int32_t pages_each = moge_kv_pages_for(bench->n_context);
    size_t n_pages = (size_t)pages_each * (size_t)rows_max;
    if (n_pages > INT32_MAX)
        return moge_fail(err, MOGE_LIMIT, "%zu KV pages are too many", n_pages);
    bench->tokens = calloc((size_t)rows_max * (size_t)bench->n_context, sizeof *bench->tokens);
    bench->pages = calloc(n_pages, sizeof *bench->pages);
    bench->batch.spans = calloc((size_t)rows_max, sizeof *bench->batch.spans);
    if (!bench->tokens || !bench->pages || !bench->batch.spans)
        return moge_fail(err, MOGE_NOMEM, "no memory for %d sequences of %d tokens", rows_max,
                         bench->n_context);
    for (size_t i = 0; i < n_pages; i++)
        bench->pages[i] = (int32_t)i;
    struct moge_engine_options options = {.n_pages = (int32_t)n_pages,
                                          .n_rows_max =
                                              max_i32(max_i32(rows_max, bench->n_prefill), 256),
                                          .n_logits_max = rows_max,
                                          .n_context_max = bench->n_context};
    rc = moge_threads_new(&bench->threads, bench->n_threads, err);
    if (rc == 0)
        rc = moge_engine_new(&bench->engine, bench->model, bench->threads, &options, err);
    return rc;
}

/* Computes positions 0..depth of every sequence, so that decoding reads what it would read. */
static int histories_make(struct bench *bench) {
    for (int32_t i = 0; i < bench->n_seqs; i++)
        for (int32_t pos = 0; pos < bench->depth; pos += 256) {
            int32_t n = bench->depth - pos < 256 ? bench->depth - pos : 256;
            batch_fill(bench, i + 1, pos, n, 0);
            bench->batch.spans += i; /* the last of them alone */
            bench->batch.n_spans = 1;
            int rc = moge_engine_forward(bench->engine, &bench->batch);
            bench->batch.spans -= i;
            if (rc != 0)
                return rc;
        }
    return 0;
}

static void header_print(const struct bench *bench) {
    const struct moge_model_info *info = moge_model_info(bench->model);
    printf("%s: %s, %.2f M parameters (%.2f M a token), %s, %.1f MB, loaded in %.0f ms\n",
           info->name, info->architecture, (double)info->n_params / 1e6,
           (double)info->n_params_active / 1e6, info->weights, (double)info->weight_bytes / 1e6,
           bench->load_ms);
    printf("%d threads, %s, behind %d positions\n\n", bench->n_threads, moge_kernels()->isa,
           bench->depth);
    printf("%-8s %5s %10s %20s %9s %7s %8s %9s %6s\n", "work", "rows", "ms", "quartiles", "tok/s",
           "GB/s", "GMAC/s", "experts", "n");
}

static int run(struct bench *bench, struct moge_err *err) {
    int rc = setup(bench, err);
    if (rc != 0)
        return rc;
    if (!bench->json)
        header_print(bench);
    if (bench->n_prefill > 0)
        rc = measure(bench, "prefill", 1, 0, bench->n_prefill, 1);
    if (rc == 0)
        rc = histories_make(bench);
    for (int32_t i = 0; i < bench->n_counts && rc == 0; i++) {
        int32_t n = bench->counts[i];
        rc = measure(bench, n == 1 ? "decode" : "verify", 1, bench->depth, n, n);
        if (rc == 0 && n > 1)
            rc = measure(bench, "batch", n, bench->depth, 1, 1);
    }
    return rc == 0 ? 0 : moge_fail(err, rc, "a forward pass failed: %s", moge_code_name(rc));
}

int moge_bench_engine(int argc, char **argv) {
    struct bench bench = {.n_threads = 1,
                          .counts = {1, 4, 8, 32},
                          .n_counts = 4,
                          .n_prefill = 512,
                          .depth = 128,
                          .repeats = 5,
                          .seconds = 0.5,
                          .rng = 1};
    struct moge_err err = {0};
    int status = options_parse(&bench, argc, argv);
    if (status >= 0)
        return status;
    int rc = run(&bench, &err);
    if (rc != 0)
        fprintf(stderr, "moge bench engine: %s\n", err.text);
    moge_engine_free(bench.engine);
    moge_threads_free(bench.threads);
    moge_model_close(bench.model);
    free(bench.batch.spans);
    free(bench.pages);
    free(bench.tokens);
    return rc == 0 ? 0 : 1;
}
