/* SPDX-License-Identifier: Apache-2.0 */
/* moge quantize: the same model with its matrices in another type.  Metadata and tokenizer are
 * copied; vectors, the router and whatever the new type's blocks do not divide stay as they are.
 * The same values may also be written in another layout, panels or rows. */
#include "tools/commands.h"

#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/kernels/kernels.h"
#include "engine/panel_layout.h"
#include "moge/gguf.h"
#include "tools/progress.h"

static const char usage_text[] =
    "Usage: moge quantize IN.gguf OUT.gguf [--type TYPE] [--layout LAYOUT]\n"
    "Writes the model again with its weight matrices as TYPE and in LAYOUT; at least one is "
    "given.\n"
    "\n"
    "  --type TYPE      q8_0, q4_0, f16, bf16 or f32; otherwise types stay as they are\n"
    "  --layout LAYOUT  rows, which every reader knows, or panels: q8_0 and q4_0 as moged "
    "computes\n"
    "                   with them, to be used where the file is mapped; otherwise rows with a new\n"
    "                   type\n"
    "\n"
    "Exit status: 0 written, 1 failed, 2 wrong options.\n";

enum layout { LAYOUT_ROWS, LAYOUT_PANELS };

/* What is asked for. */
struct wish {
    bool has_type;
    enum moge_type type;
    enum layout layout;
};

static bool str_is(struct moge_str s, const char *text) {
    return s.len == strlen(text) && memcmp(s.data, text, s.len) == 0;
}

static bool str_has(struct moge_str s, const char *part) {
    return memmem(s.data, s.len, part, strlen(part)) != NULL;
}

/* The router decides which experts run: it stays in full precision, as everywhere.  The embedding
 * is looked up row by row, so it stays in rows. */
static enum moge_type type_for(const struct moge_gguf_tensor *tensor, const struct wish *wish) {
    bool is_matrix = tensor->ne[1] > 1 && !str_has(tensor->name, "ffn_gate_inp");
    enum moge_type type = moge_type_plain(tensor->type);
    if (is_matrix && wish->has_type &&
        tensor->ne[0] % (uint64_t)moge_type_traits(wish->type)->block_values == 0)
        type = wish->type;
    bool fits = is_matrix && tensor->ne[1] % MOGE_PANEL_ROWS == 0 &&
                !str_is(tensor->name, "token_embd.weight");
    return fits && wish->layout == LAYOUT_PANELS ? moge_type_panel(type) : type;
}

/* Some rows on their way into the new type: 1, or the 8 of a panel. */
struct rows {
    const struct moge_gguf_tensor *tensor;
    enum moge_type from, to; /* plain */
    bool from_panel, to_panel;
    unsigned char *source, *target; /* rows of either type */
    unsigned char *panel;
    float *wide;                                     /* one row */
    size_t n_in, n_rows, source_bytes, target_bytes; /* bytes of a row */
};

static int row_convert(const struct rows *rows, size_t i, struct moge_err *err) {
    const struct moge_type_traits *from = moge_type_traits(rows->from);
    const struct moge_type_traits *to = moge_type_traits(rows->to);
    unsigned char *target = rows->target + i * rows->target_bytes;
    from->to_f32(rows->source + i * rows->source_bytes, rows->wide, rows->n_in);
    to->from_f32(rows->wide, target, rows->n_in);
    to->to_f32(target, rows->wide, rows->n_in); /* shows NaN and what the type cannot hold */
    for (size_t k = 0; k < rows->n_in; k++)
        if (!isfinite(rows->wide[k]))
            return moge_fail(err, MOGE_FORMAT, "tensor %.*s holds a value that %s cannot hold",
                             (int)(rows->tensor->name.len < 80 ? rows->tensor->name.len : 80),
                             rows->tensor->name.data, to->name);
    return 0;
}

static int rows_write(struct moge_gguf_writer *writer, struct rows *rows, const unsigned char *data,
                      struct moge_err *err) {
    int32_t n_in = (int32_t)rows->n_in;
    int rc = 0;
    if (rows->from_panel)
        moge_panel_unpack(rows->from, data, n_in, rows->source);
    else
        memcpy(rows->source, data, rows->n_rows * rows->source_bytes);
    for (size_t i = 0; i < rows->n_rows && rc == 0 && rows->from != rows->to; i++)
        rc = row_convert(rows, i, err);
    if (rc != 0)
        return rc;
    const unsigned char *made = rows->from == rows->to ? rows->source : rows->target;
    if (rows->to_panel) {
        moge_panels_pack(rows->to, made, MOGE_PANEL_ROWS, n_in, rows->panel);
        made = rows->panel;
    }
    return moge_gguf_write_data(writer, made, rows->n_rows * rows->target_bytes, err);
}

static size_t type_row_bytes(enum moge_type type, size_t n_in) {
    const struct moge_type_traits *traits = moge_type_traits(type);
    return n_in / (size_t)traits->block_values * (size_t)traits->block_bytes;
}

static int tensor_write(struct moge_gguf_writer *writer, const struct moge_gguf_tensor *tensor,
                        enum moge_type to, struct moge_err *err) {
    if (to == tensor->type)
        return moge_gguf_write_data(writer, tensor->data, tensor->bytes, err);
    size_t n_in = tensor->ne[0], n_rows = tensor->ne[1] * tensor->ne[2] * tensor->ne[3];
    if (n_in > INT32_MAX)
        return moge_fail(err, MOGE_LIMIT, "rows of %zu values are too long", n_in);
    struct rows rows = {.tensor = tensor,
                        .from = moge_type_plain(tensor->type),
                        .to = moge_type_plain(to),
                        .from_panel = moge_type_is_panel(tensor->type),
                        .to_panel = moge_type_is_panel(to),
                        .n_in = n_in,
                        .source_bytes = type_row_bytes(tensor->type, n_in),
                        .target_bytes = type_row_bytes(to, n_in)};
    rows.n_rows = rows.from_panel || rows.to_panel ? MOGE_PANEL_ROWS : 1;
    rows.source = malloc(rows.n_rows * rows.source_bytes);
    rows.target = malloc(rows.n_rows * rows.target_bytes);
    rows.panel = malloc(rows.n_rows * rows.target_bytes);
    rows.wide = malloc(n_in * sizeof(float));
    int rc = 0;
    if (!rows.source || !rows.target || !rows.panel || !rows.wide)
        rc = moge_fail(err, MOGE_NOMEM, "no memory for rows of %zu values", n_in);
    for (size_t i = 0; i < n_rows && rc == 0; i += rows.n_rows)
        rc = rows_write(writer, &rows, tensor->data + i * rows.source_bytes, err);
    free(rows.source);
    free(rows.target);
    free(rows.panel);
    free(rows.wide);
    return rc;
}

/* Keys that say how the file is written rather than what the model is. */
static bool is_of_file(struct moge_str key, const struct wish *wish) {
    return (wish->has_type && str_is(key, "general.file_type")) ||
           str_is(key, "general.alignment") || str_is(key, "moge.panel_layout");
}

/* The number of them that become panels. */
static uint64_t tensors_declare(struct moge_gguf_writer *writer, const struct moge_gguf *gguf,
                                const struct wish *wish) {
    uint64_t n_panels = 0;
    for (uint64_t i = 0; i < moge_gguf_n_tensors(gguf); i++) {
        const struct moge_gguf_tensor *tensor = moge_gguf_tensor_at(gguf, i);
        char name[256];
        snprintf(name, sizeof name, "%.*s", (int)tensor->name.len, tensor->name.data);
        moge_gguf_put_tensor(writer, name, tensor->ne, tensor->n_dims, type_for(tensor, wish));
        n_panels += moge_type_is_panel(type_for(tensor, wish));
    }
    return n_panels;
}

static int model_write(const struct moge_gguf *gguf, const struct wish *wish, const char *path,
                       struct moge_err *err) {
    struct moge_gguf_writer *writer = NULL;
    int rc = moge_gguf_create(&writer, path, err);
    if (rc != 0)
        return rc;
    for (uint64_t i = 0; i < moge_gguf_n_values(gguf); i++) {
        const struct moge_gguf_value *value = moge_gguf_value_at(gguf, i);
        if (!is_of_file(value->key, wish))
            moge_gguf_put_copy(writer, value);
    }
    if (wish->has_type)
        moge_gguf_put_u32(writer, "general.file_type", moge_gguf_file_type(wish->type));
    if (wish->layout == LAYOUT_PANELS)
        moge_gguf_put_panel_layout(writer);
    if (tensors_declare(writer, gguf, wish) == 0 && wish->layout == LAYOUT_PANELS)
        rc = moge_fail(err, MOGE_INVALID,
                       "no matrix is q8_0 or q4_0: there is nothing to store in panels");
    uint64_t n_tensors = moge_gguf_n_tensors(gguf);
    struct moge_progress progress = moge_progress_init("writing");
    for (uint64_t i = 0; i < n_tensors && rc == 0; i++) {
        const struct moge_gguf_tensor *tensor = moge_gguf_tensor_at(gguf, i);
        rc = tensor_write(writer, tensor, type_for(tensor, wish), err);
        moge_progress_show(&progress, (double)(i + 1) / (double)n_tensors);
    }
    moge_progress_done(&progress);
    if (rc == 0)
        return moge_gguf_finish(writer, err);
    moge_gguf_abandon(writer);
    return rc;
}

static int quantize(const char *in, const char *out, const struct wish *wish) {
    struct moge_gguf *gguf = NULL;
    struct moge_err err = {0};
    int rc = moge_gguf_open(&gguf, in, &err);
    if (rc == 0)
        rc = model_write(gguf, wish, out, &err);
    moge_gguf_close(gguf);
    if (rc != 0)
        fprintf(stderr, "moge quantize: %s\n", err.text);
    return rc == 0 ? 0 : 1;
}

static bool layout_parse(const char *name, enum layout *out) {
    *out = strcmp(name, "panels") == 0 ? LAYOUT_PANELS : LAYOUT_ROWS;
    return *out == LAYOUT_PANELS || strcmp(name, "rows") == 0;
}

int moge_command_quantize(int argc, char **argv) {
    static const struct option options[] = {{"type", required_argument, NULL, 't'},
                                            {"layout", required_argument, NULL, 'l'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    struct wish wish = {0};
    bool has_layout = false, valid = true;
    int option;
    optind = 1;
    opterr = 0;
    while (valid && (option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'h') {
            fputs(usage_text, stdout);
            return 0;
        }
        if (option == 't')
            valid = wish.has_type = moge_type_parse(optarg, &wish.type) == 0;
        else if (option == 'l')
            valid = has_layout = layout_parse(optarg, &wish.layout);
        else
            valid = false;
    }
    if (!valid) {
        fputs("moge quantize: wrong option, type or layout; moge quantize --help says more\n",
              stderr);
        return 2;
    }
    if (optind != argc - 2 || (!wish.has_type && !has_layout)) {
        fputs(
            "moge quantize: give IN, OUT and --type or --layout; moge quantize --help says more\n",
            stderr);
        return 2;
    }
    if (wish.has_type && wish.layout == LAYOUT_PANELS && moge_type_panel(wish.type) == wish.type) {
        fprintf(stderr, "moge quantize: only q8_0 and q4_0 have panels, not %s\n",
                moge_type_traits(wish.type)->name);
        return 2;
    }
    return quantize(argv[optind], argv[optind + 1], &wish);
}
