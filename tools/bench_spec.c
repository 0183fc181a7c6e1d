/* SPDX-License-Identifier: Apache-2.0 */
/* moge bench spec: what guessing gains or costs.  Speculation off, auto and fixed lengths take
 * turns step by step.  Speeds are medians over rounds, a ratio is that of the summed times for a
 * token, so that what is rare and dear counts; quartiles are those of the rounds, and the JSON says
 * between which two values the ratio lies, 95 times of 100. */
#include "tools/bench_spec.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/kernels/kernels.h"
#include "tools/commands.h"
#include "tools/options.h"
#include "tools/quantile.h"

static const char usage_text[] =
    "Usage: moge bench spec --model FILE [options]\n"
    "Measures decoding with speculation off, auto and of fixed lengths, in turns.\n"
    "\n"
    "  --model FILE       GGUF file\n"
    "  --draft FILE       draft model with the same tokenizer\n"
    "  --drafter KIND     model, ngram, both or oracle (model with --draft, otherwise oracle)\n"
    "  --acceptance P     oracle: a guess is right with probability P (0.8); P/Q changes to Q\n"
    "                     halfway; real takes the drafter as it is\n"
    "  --draft-cost C     oracle: a guess takes C of the target's decode step (0)\n"
    "  --batch LIST       sequences decoding together (1,4,16,32)\n"
    "  --modes LIST       off, auto and lengths (off,auto,1,2,4,8)\n"
    "  --tokens N         tokens of a sequence in one round (64)\n"
    "  --prompt-tokens N  tokens of a prompt (32)\n"
    "  --text FILE        cut prompts out of this text; random tokens otherwise\n"
    "  --temperature T    0 is greedy (0)\n"
    "  --rounds N         rounds, after one that does not count (5)\n"
    "  --seed N           other prompts, other errors of the oracle (1)\n"
    "  --threads N        worker threads (1)\n"
    "  --weights TYPE     as-stored, f32, q8_0 or q4_0 (as-stored)\n"
    "  --isa LEVEL        at most scalar, avx2, avx512 or vnni (the best there is)\n"
    "  --json             one JSON object a line instead of a table\n"
    "\n"
    "Every mode must yield the same tokens.\n"
    "Exit status: 0 done, 1 failed, 2 wrong options.\n";

/* ---- options ---- */

static bool parse_share(const char *text, double max, const char **end_out, double *out) {
    char *end;
    *out = strtod(text, &end);
    *end_out = end;
    return end != text && *out >= 0 && *out <= max;
}

static bool parse_mode(const char *text, int32_t *out) {
    if (strcmp(text, "off") == 0)
        *out = 0;
    else if (strcmp(text, "auto") == 0)
        *out = SPEC_AUTO;
    else
        return moge_option_int(text, 1, MOGE_DRAFT_LEN_MAX, out);
    return true;
}

static bool parse_batch(const char *text, int32_t *out) {
    return moge_option_int(text, 1, 256, out);
}

static const char *const drafter_names[] = {"model", "ngram", "both", "oracle"};

static bool parse_acceptance(const char *text, struct spec_options *options, bool *real) {
    double *accept = options->oracle.accept;
    const char *end;
    *real = strcmp(text, "real") == 0;
    if (*real)
        return true;
    if (!parse_share(text, 1, &end, &accept[0]))
        return false;
    accept[1] = accept[0];
    if (*end == '/' && !parse_share(end + 1, 1, &end, &accept[1]))
        return false;
    return *end == '\0';
}

struct parsed {
    struct spec_options *options;
    int drafter; /* -1: not said */
    bool acceptance, real;
};

static bool option_take_number(struct spec_options *options, int option, const char *value) {
    const char *end;
    double number;
    int32_t seed;
    switch (option) {
    case 't':
        return moge_option_int(value, 1, MOGE_THREADS_MAX, &options->n_threads);
    case 'n':
        return moge_option_int(value, 4, 65536, &options->n_tokens);
    case 'p':
        return moge_option_int(value, 1, 65536, &options->n_prompt);
    case 'r':
        return moge_option_int(value, 1, SPEC_ROUNDS_MAX, &options->n_rounds);
    case 'c':
        return parse_share(value, 10, &end, &options->oracle.cost) && *end == '\0';
    case 'T':
        if (!parse_share(value, 10, &end, &number) || *end != '\0')
            return false;
        options->temperature = (float)number;
        return true;
    default:
        if (!moge_option_int(value, 0, INT32_MAX, &seed))
            return false;
        options->seed = (uint64_t)seed;
        return true;
    }
}

static bool option_take(void *arg, int option, const char *value) {
    struct parsed *parsed = arg;
    struct spec_options *options = parsed->options;
    switch (option) {
    case 'm':
        options->model = value;
        return true;
    case 'd':
        options->draft = value;
        return true;
    case 'x':
        options->text = value;
        return true;
    case 'D':
        return (parsed->drafter = moge_option_name(value, drafter_names, 4)) >= 0;
    case 'a':
        parsed->acceptance = true;
        return parse_acceptance(value, options, &parsed->real);
    case 'b':
        return moge_option_list(value, parse_batch, options->batches, SPEC_LIST_MAX,
                                &options->n_batches);
    case 'o':
        return moge_option_list(value, parse_mode, options->modes, SPEC_LIST_MAX,
                                &options->n_modes);
    case 'w':
        return moge_option_weights(value, &options->weights);
    case 'i':
        return moge_option_isa(value);
    case 'j':
        options->json = true;
        return true;
    default:
        return option_take_number(options, option, value);
    }
}

static int wrong(const char *text) {
    fprintf(stderr, "moge bench spec: %s; --help says more\n", text);
    return 2;
}

/* What must hold between options.  -1: go on; otherwise the exit status. */
static int options_check(const struct parsed *parsed) {
    struct spec_options *options = parsed->options;
    if (!options->model)
        return wrong("--model is missing");
    int drafter = parsed->drafter;
    if (drafter < 0)
        drafter = parsed->acceptance && !parsed->real ? SPEC_DRAFTER_ORACLE
                  : options->draft                    ? SPEC_DRAFTER_MODEL
                  : parsed->real                      ? SPEC_DRAFTER_NGRAM
                                                      : SPEC_DRAFTER_ORACLE;
    options->drafter = (enum spec_drafter)drafter;
    if (drafter == SPEC_DRAFTER_ORACLE && parsed->real)
        return wrong("the oracle has no acceptance of its own");
    if (drafter != SPEC_DRAFTER_ORACLE && parsed->acceptance && !parsed->real)
        return wrong("--acceptance P is for the oracle");
    if ((drafter == SPEC_DRAFTER_MODEL || drafter == SPEC_DRAFTER_BOTH) && !options->draft)
        return wrong("this drafter needs --draft");
    return -1;
}

/* -1: go on; otherwise the exit status. */
static int options_parse(struct spec_options *spec, int argc, char **argv) {
    static const struct option options[] = {{"model", required_argument, NULL, 'm'},
                                            {"draft", required_argument, NULL, 'd'},
                                            {"drafter", required_argument, NULL, 'D'},
                                            {"acceptance", required_argument, NULL, 'a'},
                                            {"draft-cost", required_argument, NULL, 'c'},
                                            {"batch", required_argument, NULL, 'b'},
                                            {"modes", required_argument, NULL, 'o'},
                                            {"tokens", required_argument, NULL, 'n'},
                                            {"text", required_argument, NULL, 'x'},
                                            {"prompt-tokens", required_argument, NULL, 'p'},
                                            {"rounds", required_argument, NULL, 'r'},
                                            {"temperature", required_argument, NULL, 'T'},
                                            {"seed", required_argument, NULL, 's'},
                                            {"threads", required_argument, NULL, 't'},
                                            {"weights", required_argument, NULL, 'w'},
                                            {"isa", required_argument, NULL, 'i'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    struct parsed parsed = {.options = spec, .drafter = -1};
    static const struct moge_options of_spec = {"spec", usage_text, options, option_take};
    int status = moge_options_parse(&of_spec, argc, argv, &parsed);
    if (status >= 0)
        return status;
    return optind < argc ? wrong("there is an argument too many") : options_check(&parsed);
}

/* ---- report ---- */

struct row {
    double tok_s[3], ratio[3];               /* quartiles: first, median, third */
    double ratio_all, ratio_low, ratio_high; /* of all rounds together; between which it lies */
    double acceptance_length;
    int64_t n_offered, n_accepted;
    int64_t lengths[MOGE_DRAFT_LEN_MAX + 1]; /* steps of a sequence with so many guesses */
};

static void quartiles(double *values, int32_t n, double *out) {
    moge_values_sort(values, (size_t)n);
    for (int i = 0; i < 3; i++)
        out[i] = moge_quantile(values, (size_t)n, 0.25 * (i + 1));
}

static double token_ns(const struct spec_sample *sample) {
    return (double)sample->ns / (double)sample->n_tokens;
}

/* The sum of off's times for a token over that of this mode's, and how certain it is. */
static void ratio_make(struct spec_sample samples[][SPEC_LIST_MAX], int32_t n, int32_t mode,
                       int32_t off, struct row *row) {
    double sum = 0, sum_off = 0, apart2 = 0;
    for (int32_t i = 0; i < n; i++) {
        sum += token_ns(&samples[i][mode]);
        sum_off += token_ns(&samples[i][off]);
    }
    row->ratio_all = sum_off / sum;
    for (int32_t i = 0; i < n; i++) {
        double apart = token_ns(&samples[i][off]) - row->ratio_all * token_ns(&samples[i][mode]);
        apart2 += apart * apart;
    }
    double error = n > 1 ? sqrt(apart2 * n / (n - 1)) / sum : 0;
    row->ratio_low = row->ratio_all - 2 * error;
    row->ratio_high = row->ratio_all + 2 * error;
}

static void row_make(struct spec_sample samples[][SPEC_LIST_MAX], int32_t n, int32_t mode,
                     int32_t off, struct row *row) {
    double tok_s[SPEC_ROUNDS_MAX], ratio[SPEC_ROUNDS_MAX];
    int64_t n_tokens = 0, n_steps = 0;
    *row = (struct row){0};
    for (int32_t i = 0; i < n; i++) {
        const struct spec_sample *sample = &samples[i][mode];
        tok_s[i] = 1e9 / token_ns(sample);
        ratio[i] = off >= 0 ? token_ns(&samples[i][off]) / token_ns(sample) : 0;
        n_tokens += sample->n_tokens;
        row->n_offered += sample->n_offered;
        row->n_accepted += sample->n_accepted;
        for (int j = 0; j <= MOGE_DRAFT_LEN_MAX; j++) {
            row->lengths[j] += sample->lengths[j];
            n_steps += sample->lengths[j];
        }
    }
    quartiles(tok_s, n, row->tok_s);
    quartiles(ratio, n, row->ratio);
    row->acceptance_length = (double)n_tokens / (double)n_steps;
    if (off >= 0)
        ratio_make(samples, n, mode, off, row);
}

static void row_print(const struct spec_bench *bench, int32_t batch, int32_t mode, bool has_off,
                      const struct row *row) {
    const struct spec_options *options = &bench->options;
    const char *quote = options->json && mode <= 0 ? "\"" : "";
    char name[16];
    if (mode > 0)
        snprintf(name, sizeof name, "%d", mode);
    else
        snprintf(name, sizeof name, "%s%s%s", quote, mode == 0 ? "off" : "auto", quote);
    if (!options->json) {
        printf("%5d %6s %10.1f %8.1f..%-8.1f %6.3f %6.3f..%-6.3f %8.2f %8lld %8lld\n", batch, name,
               row->tok_s[1], row->tok_s[0], row->tok_s[2], row->ratio_all, row->ratio_low,
               row->ratio_high, row->acceptance_length, (long long)row->n_offered,
               (long long)row->n_accepted);
        fflush(stdout);
        return;
    }
    printf(
        "{\"batch\": %d, \"mode\": %s, \"tok_s\": %.2f, \"tok_s_q1\": %.2f, \"tok_s_q3\": %.2f, ",
        batch, name, row->tok_s[1], row->tok_s[0], row->tok_s[2]);
    if (has_off)
        printf("\"ratio\": %.4f, \"ratio_q1\": %.4f, \"ratio_q3\": %.4f, \"ratio_low\": %.4f, "
               "\"ratio_high\": %.4f, ",
               row->ratio_all, row->ratio[0], row->ratio[2], row->ratio_low, row->ratio_high);
    printf("\"acceptance_length\": %.3f, \"offered\": %lld, \"accepted\": %lld, \"lengths\": [",
           row->acceptance_length, (long long)row->n_offered, (long long)row->n_accepted);
    for (int i = 0; i <= MOGE_DRAFT_LEN_MAX; i++)
        printf("%lld%s", (long long)row->lengths[i], i < MOGE_DRAFT_LEN_MAX ? ", " : "], ");
    printf("\"model\": \"%s\", \"weights\": \"%s\", \"drafter\": \"%s\", ",
           moge_model_info(bench->model)->name, moge_model_info(bench->model)->weights,
           drafter_names[options->drafter]);
    if (options->drafter == SPEC_DRAFTER_ORACLE)
        printf("\"acceptance\": [%g, %g], \"draft_cost\": %g, ", options->oracle.accept[0],
               options->oracle.accept[1], options->oracle.cost);
    printf(
        "\"temperature\": %g, \"threads\": %d, \"isa\": \"%s\", \"tokens\": %d, \"rounds\": %d}\n",
        (double)options->temperature, options->n_threads, moge_kernels()->isa, options->n_tokens,
        options->n_rounds);
    fflush(stdout);
}

/* ---- rounds ---- */

static int batch_measure(struct spec_bench *bench, int32_t batch, struct moge_err *err) {
    static struct spec_sample samples[SPEC_ROUNDS_MAX + 1][SPEC_LIST_MAX];
    const struct spec_options *options = &bench->options;
    int32_t off = -1;
    for (int32_t round = 0; round <= options->n_rounds; round++) {
        int rc = moge_spec_round(bench, batch, round, samples[round], err);
        if (rc)
            return rc;
    }
    for (int32_t i = 0; i < options->n_modes; i++)
        off = options->modes[i] == 0 ? i : off;
    for (int32_t i = 0; i < options->n_modes; i++) {
        struct row row;
        row_make(samples + 1, options->n_rounds, i, off, &row);
        row_print(bench, batch, options->modes[i], off >= 0, &row);
    }
    return 0;
}

static void header_print(const struct spec_bench *bench) {
    printf("%s, %s weights, drafter %s, %d threads, %s; a step of one row takes %.3f ms\n\n",
           moge_model_info(bench->model)->name, moge_model_info(bench->model)->weights,
           drafter_names[bench->options.drafter], bench->options.n_threads, moge_kernels()->isa,
           bench->step_ns / 1e6);
    printf("%5s %6s %10s %18s %6s %14s %8s %8s %8s\n", "batch", "mode", "tok/s", "quartiles",
           "ratio", "between", "length", "offered", "accepted");
}

int moge_bench_spec(int argc, char **argv) {
    struct spec_bench bench = {.options = {.oracle.accept = {0.8, 0.8},
                                           .batches = {1, 4, 16, 32},
                                           .n_batches = 4,
                                           .modes = {0, SPEC_AUTO, 1, 2, 4, 8},
                                           .n_modes = 6,
                                           .n_threads = 1,
                                           .n_prompt = 32,
                                           .n_tokens = 64,
                                           .n_rounds = 5,
                                           .seed = 1}};
    int status = options_parse(&bench.options, argc, argv);
    if (status >= 0)
        return status;
    struct moge_err err = {0};
    int rc = moge_spec_open(&bench, &err);
    if (rc == 0 && !bench.options.json)
        header_print(&bench);
    for (int32_t i = 0; i < bench.options.n_batches && rc == 0; i++)
        rc = batch_measure(&bench, bench.options.batches[i], &err);
    if (rc)
        fprintf(stderr, "moge bench spec: %s\n", err.text);
    moge_spec_close(&bench);
    return rc == 0 ? 0 : 1;
}
