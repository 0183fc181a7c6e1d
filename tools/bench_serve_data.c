/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/bench_serve.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moge/splitmix.h"

#define LINE_BYTES_MAX (64 << 20)
#define PROMPTS_MAX    10000000
#define OUTPUT_LEN_MAX 10000000

int moge_serve_data_random(struct moge_serve_data *data, int32_t input_len, int32_t n_vocab,
                           uint64_t seed, struct moge_err *err) {
    *data = (struct moge_serve_data){.input_len = input_len, .n_vocab = n_vocab, .seed = seed};
    if (n_vocab < 4)
        return moge_fail(err, MOGE_FORMAT, "the server says that its vocabulary has %d tokens",
                         n_vocab);
    if ((data->ids = malloc((size_t)input_len * sizeof *data->ids)) == NULL)
        return moge_fail(err, MOGE_NOMEM, "out of memory");
    return 0;
}

/* *prompt from the JSON object of a line. */
static int prompt_read(struct moge_serve_prompt *prompt, const char *line, size_t len,
                       struct moge_err *err) {
    json_error_t why;
    int rc = 0;
    json_t *object = json_loadb(line, len, JSON_ALLOW_NUL, &why);
    if (object == NULL)
        return moge_fail(err, MOGE_FORMAT, "is no JSON object: %s", why.text);
    json_t *text = json_object_get(object, "prompt"),
           *wanted = json_object_get(object, "output_len");
    json_int_t output_len = json_integer_value(wanted);
    if (!json_is_string(text) || json_string_length(text) == 0)
        rc = moge_fail(err, MOGE_FORMAT, "has no text as its \"prompt\"");
    else if (wanted != NULL && (output_len < 1 || output_len > OUTPUT_LEN_MAX))
        rc = moge_fail(err, MOGE_FORMAT, "has an \"output_len\" that is no number from 1 to %d",
                       OUTPUT_LEN_MAX);
    else if ((prompt->text = malloc(json_string_length(text))) == NULL)
        rc = moge_fail(err, MOGE_NOMEM, "takes more memory than there is");
    if (rc == 0) {
        prompt->text_len = json_string_length(text);
        prompt->output_len = (int32_t)output_len;
        memcpy(prompt->text, json_string_value(text), prompt->text_len);
    }
    json_decref(object);
    return rc;
}

static int prompt_add(struct moge_serve_data *data, const char *line, size_t len,
                      struct moge_err *err) {
    int32_t n = data->n_prompts;
    if (n == PROMPTS_MAX)
        return moge_fail(err, MOGE_LIMIT, "is one prompt too many");
    if ((n & (n - 1)) == 0) { /* the array has room for the next power of two */
        size_t cap = n == 0 ? 1 : 2 * (size_t)n;
        struct moge_serve_prompt *grown = realloc(data->prompts, cap * sizeof *grown);
        if (grown == NULL)
            return moge_fail(err, MOGE_NOMEM, "takes more memory than there is");
        data->prompts = grown;
    }
    int rc = prompt_read(&data->prompts[n], line, len, err);
    data->n_prompts += rc == 0;
    return rc;
}

int moge_serve_data_read(struct moge_serve_data *data, const char *path, struct moge_err *err) {
    *data = (struct moge_serve_data){0};
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return moge_fail(err, MOGE_IO, "%s cannot be read: %s", path, strerror(errno));
    char *line = NULL;
    size_t cap = 0;
    ssize_t len;
    int rc = 0;
    struct moge_err why = {0};
    long long n_lines = 0;
    while (rc == 0 && (errno = 0, len = getline(&line, &cap, file)) >= 0) {
        n_lines++;
        if (len > LINE_BYTES_MAX)
            rc = moge_fail(&why, MOGE_LIMIT, "is longer than %d MiB", LINE_BYTES_MAX >> 20);
        else if (strspn(line, " \t\r\n") < (size_t)len)
            rc = prompt_add(data, line, (size_t)len, &why);
    }
    if (rc != 0)
        moge_fail(err, rc, "line %lld of %s %s", n_lines, path, why.text);
    else if (ferror(file))
        rc = moge_fail(err, MOGE_IO, "%s cannot be read: %s", path, strerror(errno));
    else if (data->n_prompts == 0)
        rc = moge_fail(err, MOGE_FORMAT, "%s holds no prompts", path);
    free(line);
    fclose(file);
    return rc;
}

void moge_serve_data_free(struct moge_serve_data *data) {
    if (data == NULL)
        return;
    for (int32_t i = 0; i < data->n_prompts; i++)
        free(data->prompts[i].text);
    free(data->prompts);
    free(data->ids);
}

void moge_serve_data_get(struct moge_serve_data *data, int64_t i, int32_t output_len,
                         struct moge_client_request *request) {
    request->has_max_tokens = true;
    request->max_tokens = output_len;
    if (data->n_prompts > 0) {
        const struct moge_serve_prompt *prompt = &data->prompts[i % data->n_prompts];
        request->prompt = prompt->text;
        request->prompt_len = prompt->text_len;
        /* A length that the file asks for is meant; without one the answer ends where it ends. */
        request->ignore_eos = prompt->output_len > 0;
        if (prompt->output_len > 0)
            request->max_tokens = prompt->output_len;
        return;
    }
    /* Control tokens stand at the ends of a vocabulary. */
    uint32_t from = (uint32_t)data->n_vocab / 4, n = (uint32_t)data->n_vocab / 2;
    uint64_t state = data->seed + (uint64_t)i * 0x2545f4914f6cdd1du;
    state = moge_splitmix(&state); /* neighbours in seed and index part ways */
    for (int32_t j = 0; j < data->input_len; j++)
        data->ids[j] = from + (uint32_t)(moge_splitmix(&state) % n);
    request->prompt_ids = data->ids;
    request->n_prompt_ids = (size_t)data->input_len;
    request->ignore_eos = true;
}
