/* SPDX-License-Identifier: Apache-2.0 */
/* moge quantize: the same model with its matrices in another type.  Metadata and tokenizer are
 * copied; vectors, the router and whatever the new type's blocks do not divide stay as they are. */
#include "tools/commands.h"

#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moge/gguf.h"
#include "tools/progress.h"

static const char usage_text[] = "Usage: moge quantize IN.gguf OUT.gguf --type TYPE\n"
                                 "Writes the model again with its weight matrices as TYPE.\n"
                                 "\n"
                                 "  --type TYPE   q8_0, q4_0, f16, bf16 or f32\n"
                                 "\n"
                                 "Exit status: 0 written, 1 failed, 2 wrong options.\n";

static bool str_is(struct moge_str s, const char *text) {
    return s.len == strlen(text) && memcmp(s.data, text, s.len) == 0;
}

static bool str_has(struct moge_str s, const char *part) {
    return memmem(s.data, s.len, part, strlen(part)) != NULL;
}

/* The router decides which experts run: it stays in full precision, as everywhere. */
static enum moge_type type_for(const struct moge_gguf_tensor *tensor, enum moge_type wanted) {
    bool is_matrix = tensor->ne[1] > 1 && !str_has(tensor->name, "ffn_gate_inp");
    bool divides = tensor->ne[0] % (uint64_t)moge_type_traits(wanted)->block_values == 0;
    return is_matrix && divides ? wanted : tensor->type;
}

/* One row in the new type, by way of f32. */
struct row {
    unsigned char *source, *target;
    float *wide;
    size_t n;
};

static int row_convert(const struct row *row, const struct moge_gguf_tensor *tensor,
                       enum moge_type to, const unsigned char *data, struct moge_err *err) {
    const struct moge_type_traits *source = moge_type_traits(tensor->type);
    const struct moge_type_traits *target = moge_type_traits(to);
    memcpy(row->source, data, row->n / (size_t)source->block_values * (size_t)source->block_bytes);
    source->to_f32(row->source, row->wide, row->n);
    target->from_f32(row->wide, row->target, row->n);
    target->to_f32(row->target, row->wide, row->n); /* shows NaN and what the type cannot hold */
    for (size_t i = 0; i < row->n; i++)
        if (!isfinite(row->wide[i]))
            return moge_fail(err, MOGE_FORMAT, "tensor %.*s holds a value that %s cannot hold",
                             (int)(tensor->name.len < 80 ? tensor->name.len : 80),
                             tensor->name.data, target->name);
    return 0;
}

static int tensor_write(struct moge_gguf_writer *writer, const struct moge_gguf_tensor *tensor,
                        enum moge_type to, struct moge_err *err) {
    if (to == tensor->type)
        return moge_gguf_write_data(writer, tensor->data, tensor->bytes, err);
    const struct moge_type_traits *target = moge_type_traits(to);
    size_t n = tensor->ne[0], n_rows = tensor->ne[1] * tensor->ne[2] * tensor->ne[3];
    size_t source_bytes = tensor->bytes / n_rows;
    size_t target_bytes = n / (size_t)target->block_values * (size_t)target->block_bytes;
    struct row row = {malloc(source_bytes), malloc(target_bytes), malloc(n * sizeof(float)), n};
    int rc = 0;
    if (!row.source || !row.target || !row.wide)
        rc = moge_fail(err, MOGE_NOMEM, "no memory for a row of %zu values", n);
    for (size_t i = 0; i < n_rows && rc == 0; i++) {
        rc = row_convert(&row, tensor, to, tensor->data + i * source_bytes, err);
        if (rc == 0)
            rc = moge_gguf_write_data(writer, row.target, target_bytes, err);
    }
    free(row.source);
    free(row.target);
    free(row.wide);
    return rc;
}

static int model_write(const struct moge_gguf *gguf, enum moge_type type, const char *path,
                       struct moge_err *err) {
    struct moge_gguf_writer *writer = NULL;
    int rc = moge_gguf_create(&writer, path, err);
    if (rc != 0)
        return rc;
    for (uint64_t i = 0; i < moge_gguf_n_values(gguf); i++) {
        const struct moge_gguf_value *value = moge_gguf_value_at(gguf, i);
        if (!str_is(value->key, "general.file_type") && !str_is(value->key, "general.alignment"))
            moge_gguf_put_copy(writer, value);
    }
    moge_gguf_put_u32(writer, "general.file_type", moge_gguf_file_type(type));
    uint64_t n_tensors = moge_gguf_n_tensors(gguf);
    for (uint64_t i = 0; i < n_tensors; i++) {
        const struct moge_gguf_tensor *tensor = moge_gguf_tensor_at(gguf, i);
        char name[256];
        snprintf(name, sizeof name, "%.*s", (int)tensor->name.len, tensor->name.data);
        moge_gguf_put_tensor(writer, name, tensor->ne, tensor->n_dims, type_for(tensor, type));
    }
    struct moge_progress progress = moge_progress_init("writing");
    for (uint64_t i = 0; i < n_tensors && rc == 0; i++) {
        const struct moge_gguf_tensor *tensor = moge_gguf_tensor_at(gguf, i);
        rc = tensor_write(writer, tensor, type_for(tensor, type), err);
        moge_progress_show(&progress, (double)(i + 1) / (double)n_tensors);
    }
    moge_progress_done(&progress);
    if (rc == 0)
        return moge_gguf_finish(writer, err);
    moge_gguf_abandon(writer);
    return rc;
}

static int quantize(const char *in, const char *out, enum moge_type type) {
    struct moge_gguf *gguf = NULL;
    struct moge_err err = {0};
    int rc = moge_gguf_open(&gguf, in, &err);
    if (rc == 0)
        rc = model_write(gguf, type, out, &err);
    moge_gguf_close(gguf);
    if (rc != 0)
        fprintf(stderr, "moge quantize: %s\n", err.text);
    return rc == 0 ? 0 : 1;
}

int moge_command_quantize(int argc, char **argv) {
    static const struct option options[] = {
        {"type", required_argument, NULL, 't'}, {"help", no_argument, NULL, 'h'}, {0}};
    enum moge_type type = MOGE_TYPE_F32;
    bool has_type = false;
    int option;
    optind = 1;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'h') {
            fputs(usage_text, stdout);
            return 0;
        }
        if (option != 't' || moge_type_parse(optarg, &type) != 0) {
            fprintf(stderr,
                    "moge quantize: wrong option or type; moge quantize --help says more\n");
            return 2;
        }
        has_type = true;
    }
    if (optind != argc - 2 || !has_type) {
        fputs("moge quantize: give IN, OUT and --type; moge quantize --help says more\n", stderr);
        return 2;
    }
    return quantize(argv[optind], argv[optind + 1], type);
}
