/* SPDX-License-Identifier: Apache-2.0 */
/* moge bench quality: what rounding costs on real text.
 *
 * The text is cut into windows of the context; each begins with BOS, if the model has one, and is
 * computed once with every KV type asked for.  Bits per byte: the loss of all tokens over all bytes
 * of the text.  Agreement: the share of places where the most likely token is the first type's. */
#include "tools/commands.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench_engine.h"
#include "tools/options.h"
#include "moge/engine.h"
#include "moge/kv.h"
#include "moge/tokenizer.h"

#define TYPES_MAX  3
#define CHUNK      64 /* rows of one forward */
#define TEXT_BYTES ((size_t)64 << 20)

static const char usage_text[] =
    "Usage: moge bench quality --model FILE --text FILE [options]\n"
    "Bits per byte of a text, and how often the best token stays the same.\n"
    "\n"
    "  --model FILE      GGUF file\n"
    "  --text FILE       UTF-8 text that the model has not seen\n"
    "  --kv LIST         KV types to compare: f16, q8_0, f32 (f16,q8_0)\n"
    "  --weights TYPE    as-stored, f32, q8_0 or q4_0 (as-stored)\n"
    "  --window N        tokens of a window (the model's context, at most 4096)\n"
    "  --threads N       worker threads (1)\n"
    "  --json            one JSON object a line instead of a table\n"
    "\n"
    "Exit status: 0 done, 1 failed, 2 wrong options.\n";

struct quality {
    /* ---- options ---- */
    const char *model_path, *text_path;
    enum moge_weights weights;
    enum moge_kv_type types[TYPES_MAX];
    int n_types, n_threads;
    int32_t window;
    bool json;
    /* ---- the run ---- */
    struct moge_model *model;
    struct moge_threads *threads;
    struct moge_engine *engines[TYPES_MAX];
    size_t n_bytes;
    int32_t *ids, n_ids; /* of the whole text */
    int32_t *tokens;     /* [window + MOGE_DRAFT_LEN_MAX + 1] */
    int32_t *pages;
    int32_t *best;  /* [window] the first type's most likely token */
    float *scratch; /* [n_vocab] */
    double nats[TYPES_MAX];
    int64_t n_places, n_same[TYPES_MAX], n_right[TYPES_MAX];
};

/* ---- options ---- */

static bool type_parse(const char *text, int32_t *out) {
    *out = moge_option_name(text, moge_bench_kv_names, 3);
    return *out >= 0;
}

static bool types_parse(struct quality *quality, const char *text) {
    int32_t types[TYPES_MAX];
    if (!moge_option_list(text, type_parse, types, TYPES_MAX, &quality->n_types))
        return false;
    for (int i = 0; i < quality->n_types; i++)
        quality->types[i] = (enum moge_kv_type)types[i];
    return true;
}

static bool option_take(void *arg, int option, const char *value) {
    struct quality *quality = arg;
    switch (option) {
    case 'm':
        quality->model_path = value;
        return true;
    case 'x':
        quality->text_path = value;
        return true;
    case 'k':
        return types_parse(quality, value);
    case 'w':
        return moge_option_weights(value, &quality->weights);
    case 'n':
        return moge_option_int(value, 2, 1 << 20, &quality->window);
    case 't':
        return moge_option_int(value, 1, MOGE_THREADS_MAX, &quality->n_threads);
    default:
        quality->json = true;
        return true;
    }
}

/* -1: go on; otherwise the exit status. */
static int options_parse(struct quality *quality, int argc, char **argv) {
    static const struct option options[] = {{"model", required_argument, NULL, 'm'},
                                            {"text", required_argument, NULL, 'x'},
                                            {"kv", required_argument, NULL, 'k'},
                                            {"weights", required_argument, NULL, 'w'},
                                            {"window", required_argument, NULL, 'n'},
                                            {"threads", required_argument, NULL, 't'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    static const struct moge_options of_quality = {"quality", usage_text, options, option_take};
    int status = moge_options_parse(&of_quality, argc, argv, quality);
    if (status >= 0)
        return status;
    if (optind < argc || !quality->model_path || !quality->text_path) {
        fputs(optind < argc
                  ? "moge bench quality: there is an argument too many\n"
                  : "moge bench quality: --model and --text are needed; --help says more\n",
              stderr);
        return 2;
    }
    return -1;
}

/* ---- the text ---- */

static int text_read(struct quality *quality, struct moge_err *err) {
    const struct moge_tokenizer *tokenizer = moge_model_tokenizer(quality->model);
    char *text = malloc(TEXT_BYTES);
    FILE *file = fopen(quality->text_path, "r");
    int rc = 0;
    quality->n_bytes = text && file ? fread(text, 1, TEXT_BYTES, file) : 0;
    if (!file || ferror(file) || quality->n_bytes == 0 || quality->n_bytes == TEXT_BYTES)
        rc = moge_fail(err, MOGE_IO, "%.120s cannot be read, is empty or has 64 MiB or more",
                       quality->text_path);
    if (file)
        fclose(file);
    /* No token is shorter than a byte; SentencePiece adds one leading space. */
    int32_t cap = (int32_t)quality->n_bytes + 2;
    quality->ids = rc == 0 ? malloc((size_t)cap * sizeof *quality->ids) : NULL;
    if (rc == 0 && !quality->ids)
        rc = moge_fail(err, MOGE_NOMEM, "no memory for the tokens of the text");
    if (rc == 0) {
        rc = moge_tokenizer_encode(tokenizer, text, quality->n_bytes, 0, quality->ids, cap);
        if (rc < 0)
            moge_fail(err, rc, "%.120s cannot be encoded: is it UTF-8?", quality->text_path);
        else
            quality->n_ids = rc;
    }
    free(text);
    return rc < 0 ? rc : 0;
}

/* ---- one window ---- */

/* Scores of the tokens after rows pos..pos + n - 1 of the window in quality->tokens. */
static void chunk_score(struct quality *quality, int i_type, const float *logits, int32_t pos,
                        int32_t n) {
    const struct moge_kernels *kernels = moge_kernels();
    int32_t n_vocab = moge_model_info(quality->model)->n_vocab;
    for (int32_t i = 0; i < n; i++) {
        const float *row = logits + (size_t)i * (size_t)n_vocab;
        int32_t best = kernels->argmax(row, n_vocab), next = quality->tokens[pos + i + 1];
        double sum = (double)kernels->exp_sum(row, row[best], 1.0f, n_vocab, quality->scratch);
        quality->nats[i_type] += log(sum) - (double)(row[next] - row[best]);
        if (i_type == 0)
            quality->best[pos + i] = best;
        quality->n_same[i_type] += best == quality->best[pos + i];
        quality->n_right[i_type] += best == next;
    }
}

/* n tokens stand in quality->tokens; the last is predicted, but not computed. */
static int window_run(struct quality *quality, int i_type, int32_t n) {
    for (int32_t pos = 0; pos < n - 1; pos += CHUNK) {
        int32_t n_rows = n - 1 - pos < CHUNK ? n - 1 - pos : CHUNK;
        struct moge_span span = {.tokens = quality->tokens,
                                 .pages = quality->pages,
                                 .pos = pos,
                                 .n_rows = n_rows,
                                 .n_known = pos + n_rows,
                                 .n_logits = n_rows};
        struct moge_batch batch = {.spans = &span, .n_spans = 1};
        int rc = moge_engine_forward(quality->engines[i_type], &batch);
        if (rc != 0)
            return rc;
        chunk_score(quality, i_type, batch.logits, pos, n_rows);
    }
    return 0;
}

static int text_run(struct quality *quality) {
    int32_t bos = moge_tokenizer_bos(moge_model_tokenizer(quality->model)), at = 0;
    while (at < quality->n_ids) {
        int32_t n = 0;
        /* Without BOS the last token of a window begins the next, to be predicted from. */
        quality->tokens[n++] = bos >= 0 ? bos : quality->ids[at > 0 ? at - 1 : at++];
        while (n < quality->window && at < quality->n_ids)
            quality->tokens[n++] = quality->ids[at++];
        for (int i = 0; i < quality->n_types; i++) {
            int rc = window_run(quality, i, n);
            if (rc != 0)
                return rc;
        }
        quality->n_places += n - 1;
    }
    return 0;
}

/* ---- the run ---- */

static int setup(struct quality *quality, struct moge_err *err) {
    struct moge_model_options options = {.weights = quality->weights};
    int rc = moge_model_open(&quality->model, quality->model_path, &options, err);
    if (rc != 0)
        return rc;
    const struct moge_model_info *info = moge_model_info(quality->model);
    if (quality->window > info->n_context)
        return moge_fail(err, MOGE_INVALID, "a window of %d is more than the model's context of %d",
                         quality->window, info->n_context);
    if (quality->window == 0)
        quality->window = info->n_context < 4096 ? info->n_context : 4096;
    if (quality->window < 2)
        return moge_fail(err, MOGE_INVALID, "the model has a context of %d tokens",
                         quality->window);
    int32_t n_pages = moge_kv_pages_for(quality->window);
    quality->tokens =
        calloc((size_t)quality->window + MOGE_DRAFT_LEN_MAX + 1, sizeof *quality->tokens);
    quality->best = calloc((size_t)quality->window, sizeof *quality->best);
    quality->pages = calloc((size_t)n_pages, sizeof *quality->pages);
    quality->scratch = calloc((size_t)info->n_vocab, sizeof *quality->scratch);
    if (!quality->tokens || !quality->best || !quality->pages || !quality->scratch)
        return moge_fail(err, MOGE_NOMEM, "no memory for a window of %d", quality->window);
    for (int32_t i = 0; i < n_pages; i++)
        quality->pages[i] = i;
    rc = moge_threads_new(&quality->threads, quality->n_threads, err);
    for (int i = 0; rc == 0 && i < quality->n_types; i++) {
        struct moge_engine_options engine = {.n_pages = n_pages,
                                             .n_rows_max = CHUNK,
                                             .n_logits_max = CHUNK,
                                             .n_context_max = quality->window,
                                             .kv_type = quality->types[i]};
        rc = moge_engine_new(&quality->engines[i], quality->model, quality->threads, &engine, err);
    }
    return rc == 0 ? text_read(quality, err) : rc;
}

static void report(const struct quality *quality) {
    const struct moge_model_info *info = moge_model_info(quality->model);
    if (!quality->json)
        printf("%s, weights %s: %zu bytes, %lld tokens predicted, windows of %d\n\n%-6s %13s %14s "
               "%10s %10s\n",
               info->name, info->weights, quality->n_bytes, (long long)quality->n_places,
               quality->window, "KV", "bits per byte", "nats per token", "same best", "right");
    for (int i = 0; i < quality->n_types; i++) {
        double places = (double)quality->n_places;
        double bits = quality->nats[i] / log(2.0) / (double)quality->n_bytes;
        double same = (double)quality->n_same[i] / places;
        double right = (double)quality->n_right[i] / places;
        printf(quality->json ? "{\"kv\":\"%s\",\"bits_per_byte\":%.6f,\"nats_per_token\":%.6f,"
                               "\"same_best\":%.6f,\"right\":%.6f"
                             : "%-6s %13.5f %14.5f %10.5f %10.5f",
               moge_bench_kv_names[quality->types[i]], bits, quality->nats[i] / places, same,
               right);
        if (quality->json)
            printf(",\"weights\":\"%s\",\"tokens\":%lld,\"bytes\":%zu,\"window\":%d}",
                   info->weights, (long long)quality->n_places, quality->n_bytes, quality->window);
        putchar('\n');
    }
}

int moge_bench_quality(int argc, char **argv) {
    struct quality quality = {.types = {MOGE_KV_F16, MOGE_KV_Q8_0}, .n_types = 2, .n_threads = 1};
    struct moge_err err = {0};
    int status = options_parse(&quality, argc, argv);
    if (status >= 0)
        return status;
    int rc = setup(&quality, &err);
    if (rc == 0 && (rc = text_run(&quality)) != 0)
        moge_fail(&err, rc, "a forward pass failed with code %d", rc);
    if (rc == 0)
        report(&quality);
    else
        fprintf(stderr, "moge bench quality: %s\n", err.text);
    for (int i = 0; i < TYPES_MAX; i++)
        moge_engine_free(quality.engines[i]);
    if (quality.threads)
        moge_threads_free(quality.threads);
    moge_model_close(quality.model);
    free(quality.ids), free(quality.tokens), free(quality.best);
    free(quality.pages), free(quality.scratch);
    return rc == 0 ? 0 : 1;
}
