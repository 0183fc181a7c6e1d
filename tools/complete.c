/* SPDX-License-Identifier: Apache-2.0 */
/* moge complete: one prompt, its continuation on stdout as it comes. */
#include "tools/commands.h"

#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "tools/client_generate.h"

#define PROMPT_BYTES_MAX (64 << 20)

static const char usage_text[] =
    "Usage: moge complete --prompt TEXT [options]\n"
    "Streams one continuation of the prompt to standard output: the text and nothing else.\n"
    "\n"
    "  --connect ADDR        unix:/path or host:port of moged (" MOGE_DEFAULT_ADDRESS ")\n"
    "  --prompt TEXT         the prompt; - reads it from standard input\n"
    "  --max-tokens N        stop after N tokens (default: as many as fit)\n"
    "  -n, --samples N       with --json: N continuations, each with a seed of its own\n"
    "  --temperature T       0 takes the most likely token (default 1)\n"
    "  --top-p P             choose among the most likely tokens that make up P (default 1)\n"
    "  --seed S              the same seed gives the same text (default: a new one)\n"
    "  --prompt-logprobs N   with --json: how likely the model finds each token of the prompt but\n"
    "                        the first, and N alternatives, 0..20\n"
    "  --stop TEXT           end before this text; up to 16 times\n"
    "  --cache-salt TEXT     share computed beginnings only with requests of the same salt\n"
    "  --speculation MODE    off, auto, or guesses at each step, 1..16; changes the speed alone\n"
    "  --max-guesses N       with --speculation auto: at most N guesses at each step\n"
    "  --drafter NAME        model, ngram or both: where guesses come from (default: as moged is\n"
    "                        configured); changes the speed alone\n"
    "  --special             let the prompt spell control tokens\n"
    "  --timeout SECONDS     give up after this long\n"
    "  --json                one JSON object at the end instead of text: text, token_ids,\n"
    "                        finish_reason, usage, timings, guesses, seed, prompt_tokens;\n"
    "                        with several samples a list of these, in samples\n"
    "\n"
    "Exit status: 0 done, 1 failed (one sentence on standard error says why), 2 wrong options,\n"
    "130 cancelled.\n";

struct sample {
    json_t *ids;
    char *text; /* [text_len], gathered for --json */
    size_t text_len, text_cap;
    struct moge_client_finish finish;
};

struct completion {
    const char *address;
    struct moge_client_request request;
    char *input; /* the prompt when it was read from standard input */
    bool json, help;
    json_t *prompt_tokens;
    int32_t n_samples, i_sample; /* i_sample: whose delta comes */
    struct sample samples[MOGE_CLIENT_SAMPLES_MAX];
};

/* ---- Ctrl-C: the handler may only set a flag ---- */

static atomic_bool interrupted;

static void interrupt(int signal) {
    (void)signal;
    atomic_store(&interrupted, true);
}

/* The second Ctrl-C ends the process at once. */
static void interrupt_catch(void) {
    struct sigaction action = {.sa_handler = interrupt, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

/* ---- options ---- */

static int number_read(const char *name, const char *text, double min, double max, double *out,
                       struct moge_err *err) {
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || errno != 0 || !isfinite(value) || value < min || value > max)
        return moge_fail(err, MOGE_INVALID, "--%s is '%s'; it must be a number from %g to %g", name,
                         text, min, max);
    *out = value;
    return 0;
}

static int count_read(const char *name, const char *text, int32_t *out, struct moge_err *err) {
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || value < INT32_MIN || value > INT32_MAX)
        return moge_fail(err, MOGE_INVALID, "--%s is '%s'; it must be a whole number", name, text);
    *out = (int32_t)value;
    return 0;
}

static int seed_read(const char *text, uint64_t *out, struct moge_err *err) {
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0)
        return moge_fail(err, MOGE_INVALID, "--seed is '%s'; it must be a number from 0 to 2^64-1",
                         text);
    *out = value;
    return 0;
}

static int speculation_read(const char *text, struct moge_client_request *request,
                            struct moge_err *err) {
    request->has_speculation = true;
    request->spec_mode = MOGE_SPEC_FIXED;
    if (strcmp(text, "off") == 0 || strcmp(text, "0") == 0) {
        request->spec_mode = MOGE_SPEC_OFF;
        return 0;
    }
    if (strcmp(text, "auto") == 0) {
        request->spec_mode = MOGE_SPEC_AUTO;
        return 0;
    }
    char *end;
    long length = strtol(text, &end, 10);
    if (end == text || *end != '\0' || length < 1 || length > MOGE_DRAFT_LEN_MAX)
        return moge_fail(err, MOGE_INVALID,
                         "--speculation is '%s'; it must be off, auto or a length from 1 to %d",
                         text, MOGE_DRAFT_LEN_MAX);
    request->spec_len = (int32_t)length;
    return 0;
}

static int drafter_read(const char *text, struct moge_client_request *request,
                        struct moge_err *err) {
    static const char *const names[] = {[MOGE_DRAFTERS_MODEL] = "model",
                                        [MOGE_DRAFTERS_NGRAM] = "ngram",
                                        [MOGE_DRAFTERS_BOTH] = "both"};
    for (int i = MOGE_DRAFTERS_MODEL; i <= MOGE_DRAFTERS_BOTH; i++)
        if (strcmp(text, names[i]) == 0) {
            request->drafters = (enum moge_drafters)i;
            return 0;
        }
    return moge_fail(err, MOGE_INVALID, "--drafter is '%s'; it must be model, ngram or both", text);
}

static int prompt_read(struct completion *c, const char *text, struct moge_err *err) {
    c->request.prompt = text;
    c->request.prompt_len = strlen(text);
    if (strcmp(text, "-") != 0)
        return 0;
    free(c->input);
    if ((c->input = malloc(PROMPT_BYTES_MAX)) == NULL)
        return moge_fail(err, MOGE_NOMEM, "out of memory");
    c->request.prompt = c->input;
    c->request.prompt_len = fread(c->input, 1, PROMPT_BYTES_MAX, stdin);
    if (ferror(stdin))
        return moge_fail(err, MOGE_IO, "standard input cannot be read: %s", strerror(errno));
    if (!feof(stdin) && getc(stdin) != EOF)
        return moge_fail(err, MOGE_LIMIT, "the prompt on standard input is larger than %d MiB",
                         PROMPT_BYTES_MAX >> 20);
    return 0;
}

static const struct option long_options[] = {
    {"connect", required_argument, NULL, 'c'},
    {"prompt", required_argument, NULL, 'p'},
    {"max-tokens", required_argument, NULL, 'x'},
    {"samples", required_argument, NULL, 'n'},
    {"temperature", required_argument, NULL, 't'},
    {"top-p", required_argument, NULL, 'P'},
    {"seed", required_argument, NULL, 's'},
    {"stop", required_argument, NULL, 'S'},
    {"prompt-logprobs", required_argument, NULL, 'L'},
    {"cache-salt", required_argument, NULL, 'k'},
    {"speculation", required_argument, NULL, 'g'},
    {"max-guesses", required_argument, NULL, 'm'},
    {"drafter", required_argument, NULL, 'd'},
    {"special", no_argument, NULL, 'C'},
    {"timeout", required_argument, NULL, 'T'},
    {"json", no_argument, NULL, 'j'},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

static int stop_add(struct moge_client_request *request, const char *text, struct moge_err *err) {
    if (request->n_stops == MOGE_CLIENT_STOPS_MAX)
        return moge_fail(err, MOGE_LIMIT, "--stop can be given at most %d times",
                         MOGE_CLIENT_STOPS_MAX);
    request->stops[request->n_stops++] = text;
    return 0;
}

/* Ranges of the parameters are the server's to check: it knows them best. */
static int option_take(struct completion *c, int option, struct moge_err *err) {
    struct moge_client_request *request = &c->request;
    double value = 0;
    int rc = 0;
    switch (option) {
    case 'c':
        c->address = optarg;
        return 0;
    case 'p':
        return prompt_read(c, optarg, err);
    case 'n':
        return count_read("samples", optarg, &c->n_samples, err);
    case 'x':
        request->has_max_tokens = true;
        return count_read("max-tokens", optarg, &request->max_tokens, err);
    case 't':
        rc = number_read("temperature", optarg, -1e6, 1e6, &value, err);
        request->has_temperature = true;
        request->temperature = (float)value;
        return rc;
    case 'P':
        rc = number_read("top-p", optarg, -1e6, 1e6, &value, err);
        request->has_top_p = true;
        request->top_p = (float)value;
        return rc;
    case 's':
        request->has_seed = true;
        return seed_read(optarg, &request->seed, err);
    case 'S':
        return stop_add(request, optarg, err);
    case 'L':
        request->has_prompt_logprobs = true;
        return count_read("prompt-logprobs", optarg, &request->n_prompt_logprobs, err);
    case 'k':
        request->cache_salt = optarg;
        return 0;
    case 'g':
        return speculation_read(optarg, request, err);
    case 'm':
        return count_read("max-guesses", optarg, &request->spec_len_max, err);
    case 'd':
        return drafter_read(optarg, request, err);
    case 'C':
        request->parse_special = true;
        return 0;
    case 'T':
        rc = number_read("timeout", optarg, 0.001, 1e6, &value, err);
        request->timeout_us = (int64_t)(value * 1e6);
        return rc;
    case 'j':
        c->json = true;
        return 0;
    default:
        c->help = true;
        return 0;
    }
}

static int options_read(struct completion *c, int argc, char **argv, struct moge_err *err) {
    int option;
    optind = 1;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "n:", long_options, NULL)) != -1) {
        if (option == '?')
            return moge_fail(err, MOGE_INVALID, "%s is no option, or lacks its value",
                             argv[optind - 1]);
        int rc = option_take(c, option, err);
        if (rc != 0 || c->help)
            return rc;
    }
    if (optind < argc)
        return moge_fail(err, MOGE_INVALID, "'%s' stands alone: the prompt follows --prompt",
                         argv[optind]);
    if (c->request.spec_len_max != 0 &&
        (!c->request.has_speculation || c->request.spec_mode != MOGE_SPEC_AUTO))
        return moge_fail(err, MOGE_INVALID, "--max-guesses is for --speculation auto");
    if (c->request.spec_len_max < 0 || c->request.spec_len_max > MOGE_DRAFT_LEN_MAX)
        return moge_fail(err, MOGE_INVALID, "--max-guesses is %d; it must be from 1 to %d",
                         (int)c->request.spec_len_max, MOGE_DRAFT_LEN_MAX);
    if (c->n_samples < 1 || c->n_samples > MOGE_CLIENT_SAMPLES_MAX)
        return moge_fail(err, MOGE_INVALID, "--samples is %d; it must be from 1 to %d",
                         (int)c->n_samples, MOGE_CLIENT_SAMPLES_MAX);
    if (c->n_samples > 1 && !c->json)
        return moge_fail(err, MOGE_INVALID, "--samples is for --json when there are several");
    if (c->request.has_prompt_logprobs && !c->json)
        return moge_fail(err, MOGE_INVALID, "--prompt-logprobs is for --json");
    if (c->request.prompt == NULL)
        return moge_fail(err, MOGE_INVALID, "--prompt is missing");
    return 0;
}

/* ---- output ---- */

static int text_print(void *arg, const char *text, size_t text_len, const uint32_t *ids,
                      size_t n_ids, struct moge_err *err) {
    (void)arg, (void)ids, (void)n_ids;
    if (text_len == 0)
        return 0;
    if (fwrite(text, 1, text_len, stdout) != text_len || fflush(stdout) != 0)
        return moge_fail(err, MOGE_IO, "standard output cannot be written: %s", strerror(errno));
    return 0;
}

static int text_gather(void *arg, const char *text, size_t text_len, const uint32_t *ids,
                       size_t n_ids, struct moge_err *err) {
    struct completion *c = arg;
    struct sample *s = &c->samples[c->i_sample];
    if (s->text_cap - s->text_len < text_len) {
        size_t cap = 2 * (s->text_len + text_len);
        char *grown = realloc(s->text, cap);
        if (grown == NULL)
            return moge_fail(err, MOGE_NOMEM, "out of memory");
        s->text = grown;
        s->text_cap = cap;
    }
    if (text_len > 0)
        memcpy(s->text + s->text_len, text, text_len);
    s->text_len += text_len;
    for (size_t i = 0; i < n_ids; i++)
        json_array_append_new(s->ids, json_integer(ids[i]));
    return 0;
}

/* A piece may be part of a character: then it has no place in JSON but as null. */
static json_t *piece_json(const char *piece, size_t len) {
    json_t *string = json_stringn(piece != NULL ? piece : "", len);
    return string != NULL ? string : json_null();
}

/* JSON has no infinity: what cannot be is null. */
static json_t *logprob_json(float logprob) {
    return isfinite(logprob) ? json_real((double)logprob) : json_null();
}

static int prompt_gather(void *arg, const struct moge_client_score *scores, size_t n_scores,
                         struct moge_err *err) {
    (void)err;
    struct completion *c = arg;
    for (size_t i = 0; i < n_scores; i++) {
        const struct moge_client_score *score = &scores[i];
        json_t *top = json_array();
        for (size_t j = 0; j < score->n_top; j++)
            json_array_append_new(
                top, json_pack("{s:i, s:o, s:o}", "id", (int)score->top[j].id, "piece",
                               piece_json(score->top[j].piece, score->top[j].piece_len), "logprob",
                               logprob_json(score->top[j].logprob)));
        json_array_append_new(c->prompt_tokens,
                              json_pack("{s:i, s:o, s:o, s:i, s:o}", "id", (int)score->id, "piece",
                                        piece_json(score->piece, score->piece_len), "logprob",
                                        logprob_json(score->logprob), "rank", (int)score->rank,
                                        "top", top));
    }
    return 0;
}

static json_t *positions_json(const int32_t *counts, int32_t n) {
    json_t *list = json_array();
    for (int32_t i = 0; i < n; i++)
        json_array_append_new(list, json_integer(counts[i]));
    return list;
}

static json_t *guesses_json(const struct moge_client_guesses *guesses) {
    return json_pack(
        "{s:i, s:i, s:o, s:o}", "offered", guesses->n_offered, "accepted", guesses->n_accepted,
        "offered_by_position", positions_json(guesses->offered_at, guesses->n_positions),
        "accepted_by_position", positions_json(guesses->accepted_at, guesses->n_positions));
}

/* All guesses, and those of each drafter that offered any. */
static json_t *all_guesses_json(const struct moge_client_finish *finish) {
    json_t *all = guesses_json(&finish->guesses), *by_drafter = json_object();
    if (finish->by_model.n_offered > 0)
        json_object_set_new(by_drafter, "model", guesses_json(&finish->by_model));
    if (finish->by_ngram.n_offered > 0)
        json_object_set_new(by_drafter, "ngram", guesses_json(&finish->by_ngram));
    json_object_set_new(all, "by_drafter", by_drafter);
    return all;
}

static json_t *sample_json(const struct sample *s, struct moge_err *err) {
    const struct moge_client_finish *finish = &s->finish;
    json_error_t why;
    char seed[24]; /* JSON numbers are not exact up to 2^64 */
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)finish->seed);
    json_t *object = json_pack_ex(
        &why, 0, "{s:s%, s:O, s:s, s:{s:i, s:i}, s:{s:I, s:I, s:I}, s:o, s:s}", "text",
        s->text_len > 0 ? s->text : "", s->text_len, "token_ids", s->ids, "finish_reason",
        finish->reason, "usage", "prompt_tokens", finish->n_prompt, "output_tokens",
        finish->n_output, "timings", "queue_us", (json_int_t)finish->queue_us, "prefill_us",
        (json_int_t)finish->prefill_us, "decode_us", (json_int_t)finish->decode_us, "guesses",
        all_guesses_json(finish), "seed", seed);
    if (object == NULL)
        moge_fail(err, MOGE_INTERNAL, "the answer cannot be put in JSON: %s", why.text);
    return object;
}

/* One sample, or a list of several. */
static json_t *samples_json(const struct completion *c, struct moge_err *err) {
    if (c->n_samples == 1)
        return sample_json(&c->samples[0], err);
    json_t *list = json_array();
    for (int32_t i = 0; i < c->n_samples; i++)
        if (json_array_append_new(list, sample_json(&c->samples[i], err)) != 0) {
            json_decref(list);
            return NULL;
        }
    return json_pack("{s:o}", "samples", list);
}

static int json_print(const struct completion *c, struct moge_err *err) {
    json_t *object = samples_json(c, err);
    if (object == NULL)
        return MOGE_INTERNAL;
    if (c->request.has_prompt_logprobs)
        json_object_set(object, "prompt_tokens", c->prompt_tokens);
    int rc = json_dumpf(object, stdout, JSON_COMPACT);
    json_decref(object);
    if (rc != 0 || putchar('\n') == EOF || fflush(stdout) != 0)
        return moge_fail(err, MOGE_IO, "standard output cannot be written: %s", strerror(errno));
    return 0;
}

static int completion_run(struct completion *c, struct moge_err *err) {
    struct moge_client *client = NULL;
    struct moge_client_finish finishes[MOGE_CLIENT_SAMPLES_MAX];
    int rc = moge_client_open(&client, c->address, err);
    if (rc != 0)
        return rc;
    interrupt_catch();
    c->request.cancelled = &interrupted;
    for (int32_t i = 0; i < c->n_samples; i++)
        c->samples[i].ids = json_array();
    c->prompt_tokens = json_array();
    c->request.on_prompt = prompt_gather;
    c->request.n_samples = c->n_samples;
    c->request.i_sample = &c->i_sample;
    rc = moge_client_generate(client, &c->request, c->json ? text_gather : text_print, c, finishes,
                              err);
    moge_client_close(client);
    /* A terminal's next prompt belongs on a line of its own; a file gets the text alone. */
    if (!c->json && isatty(STDOUT_FILENO) == 1 && isatty(STDERR_FILENO) == 1)
        fputc('\n', stderr);
    for (int32_t i = 0; rc == 0 && i < c->n_samples; i++)
        c->samples[i].finish = finishes[i];
    if (rc == 0 && c->json)
        rc = json_print(c, err);
    return rc;
}

int moge_command_complete(int argc, char **argv) {
    struct completion c = {.address = MOGE_DEFAULT_ADDRESS, .n_samples = 1};
    struct moge_err err = {0};
    int status = 0;
    int rc = options_read(&c, argc, argv, &err);
    if (rc != 0)
        status = 2;
    else if (c.help)
        fputs(usage_text, stdout);
    else if ((rc = completion_run(&c, &err)) != 0)
        status = rc == MOGE_CANCELLED && atomic_load(&interrupted) ? 130 : 1;
    if (rc != 0)
        fprintf(stderr, "moge complete: %s\n", err.text);
    free(c.input);
    for (int32_t i = 0; i < MOGE_CLIENT_SAMPLES_MAX; i++) {
        free(c.samples[i].text);
        json_decref(c.samples[i].ids);
    }
    json_decref(c.prompt_tokens);
    return status;
}
