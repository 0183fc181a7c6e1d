/* SPDX-License-Identifier: Apache-2.0 */
/* moge inspect: what a GGUF file holds: metadata, tensors, sizes. */
#include "tools/commands.h"

#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moge/gguf.h"

#define ITEMS_SHOWN 8

static const char usage_text[] =
    "Usage: moge inspect FILE.gguf [--json]\n"
    "Shows a model file: its metadata, its tensors and how large they are.\n"
    "\n"
    "  --json    one JSON object instead of text\n"
    "\n"
    "Exit status: 0 done, 1 the file cannot be read, 2 wrong options.\n";

/* JSON has no word for NaN and infinity; null keeps an array's length. */
static json_t *real_json(double x) {
    json_t *number = json_real(x);
    return number ? number : json_null();
}

/* One item of a value as JSON; *at moves behind it. */
static json_t *item_json(enum moge_gguf_kind kind, const unsigned char **at) {
    static const uint8_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (kind == MOGE_GGUF_STRING) {
        struct moge_str s = moge_gguf_next_str(at);
        json_t *text = json_stringn(s.data, s.len); /* NULL unless it is UTF-8 */
        return text ? text : json_string("(not UTF-8)");
    }
    union {
        uint8_t u8;
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        uint64_t u64;
        int64_t i64;
        float f32;
        double f64;
    } v = {0};
    memcpy(&v, *at, sizes[kind]);
    *at += sizes[kind];
    switch (kind) {
    case MOGE_GGUF_U8:
        return json_integer(v.u8);
    case MOGE_GGUF_I8:
        return json_integer(v.i8);
    case MOGE_GGUF_U16:
        return json_integer(v.u16);
    case MOGE_GGUF_I16:
        return json_integer(v.i16);
    case MOGE_GGUF_U32:
        return json_integer(v.u32);
    case MOGE_GGUF_I32:
        return json_integer(v.i32);
    case MOGE_GGUF_U64:
        return json_integer((json_int_t)v.u64);
    case MOGE_GGUF_I64:
        return json_integer(v.i64);
    case MOGE_GGUF_BOOL:
        return json_boolean(v.u8);
    case MOGE_GGUF_F32:
        return real_json((double)v.f32);
    default:
        return real_json(v.f64);
    }
}

/* A value; of an array at most n_max items. */
static json_t *value_json(const struct moge_gguf_value *value, uint64_t n_max) {
    const unsigned char *at = value->data;
    if (value->kind != MOGE_GGUF_ARRAY)
        return item_json(value->kind, &at);
    json_t *items = json_array();
    for (uint64_t i = 0; i < value->n_items && i < n_max; i++)
        json_array_append_new(items, item_json(value->item_kind, &at));
    return items;
}

static void values_print(const struct moge_gguf *gguf) {
    for (uint64_t i = 0; i < moge_gguf_n_values(gguf); i++) {
        const struct moge_gguf_value *value = moge_gguf_value_at(gguf, i);
        json_t *json = value_json(value, ITEMS_SHOWN);
        char *text = json_dumps(json, JSON_ENCODE_ANY | JSON_REAL_PRECISION(7));
        printf("  %-48.*s %s", (int)value->key.len, value->key.data, text ? text : "?");
        if (value->n_items > ITEMS_SHOWN)
            printf(" ... %" PRIu64 " in all", value->n_items);
        putchar('\n');
        free(text);
        json_decref(json);
    }
}

static void shape_write(const struct moge_gguf_tensor *tensor, char *out, size_t cap) {
    size_t len = 0;
    out[0] = 0;
    for (uint32_t i = 0; i < tensor->n_dims && len < cap; i++)
        len +=
            (size_t)snprintf(out + len, cap - len, i ? " x %" PRIu64 : "%" PRIu64, tensor->ne[i]);
}

static uint64_t tensor_values(const struct moge_gguf_tensor *tensor) {
    return tensor->ne[0] * tensor->ne[1] * tensor->ne[2] * tensor->ne[3];
}

static void tensors_print(const struct moge_gguf *gguf) {
    uint64_t n_values = 0, n_bytes = 0;
    for (uint64_t i = 0; i < moge_gguf_n_tensors(gguf); i++) {
        const struct moge_gguf_tensor *tensor = moge_gguf_tensor_at(gguf, i);
        char shape[128];
        shape_write(tensor, shape, sizeof shape);
        printf("  %-40.*s %-8s %-24s %12.2f KiB\n", (int)tensor->name.len, tensor->name.data,
               moge_type_traits(tensor->type)->name, shape, (double)tensor->bytes / 1024);
        n_values += tensor_values(tensor);
        n_bytes += tensor->bytes;
    }
    printf("%" PRIu64 " tensors, %.2f M values, %.2f MiB of %.2f MiB\n", moge_gguf_n_tensors(gguf),
           (double)n_values / 1e6, (double)n_bytes / (1 << 20),
           (double)moge_gguf_file_bytes(gguf) / (1 << 20));
}

static void json_print(const struct moge_gguf *gguf) {
    json_t *metadata = json_object(), *tensors = json_array();
    for (uint64_t i = 0; i < moge_gguf_n_values(gguf); i++) {
        const struct moge_gguf_value *value = moge_gguf_value_at(gguf, i);
        json_object_setn_new(metadata, value->key.data, value->key.len,
                             value_json(value, UINT64_MAX));
    }
    for (uint64_t i = 0; i < moge_gguf_n_tensors(gguf); i++) {
        const struct moge_gguf_tensor *tensor = moge_gguf_tensor_at(gguf, i);
        json_t *ne = json_array();
        for (uint32_t d = 0; d < tensor->n_dims; d++)
            json_array_append_new(ne, json_integer((json_int_t)tensor->ne[d]));
        json_array_append_new(tensors, json_pack("{s:o, s:s, s:o, s:I}", "name",
                                                 json_stringn(tensor->name.data, tensor->name.len),
                                                 "type", moge_type_traits(tensor->type)->name, "ne",
                                                 ne, "bytes", (json_int_t)tensor->bytes));
    }
    json_t *all = json_pack("{s:o, s:o, s:I}", "metadata", metadata, "tensors", tensors,
                            "file_bytes", (json_int_t)moge_gguf_file_bytes(gguf));
    json_dumpf(all, stdout, JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(all);
}

int moge_command_inspect(int argc, char **argv) {
    static const struct option options[] = {
        {"json", no_argument, NULL, 'j'}, {"help", no_argument, NULL, 'h'}, {0}};
    bool as_json = false;
    int option;
    optind = 1;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'j') {
            as_json = true;
        } else if (option == 'h') {
            fputs(usage_text, stdout);
            return 0;
        } else {
            fprintf(stderr, "moge inspect: unknown option %s\n", argv[optind - 1]);
            return 2;
        }
    }
    if (optind != argc - 1) {
        fputs("moge inspect: give one file; moge inspect --help says more\n", stderr);
        return 2;
    }
    struct moge_gguf *gguf = NULL;
    struct moge_err err = {0};
    if (moge_gguf_open(&gguf, argv[optind], &err) != 0) {
        fprintf(stderr, "moge inspect: %s\n", err.text);
        return 1;
    }
    if (as_json) {
        json_print(gguf);
    } else {
        values_print(gguf);
        tensors_print(gguf);
    }
    moge_gguf_close(gguf);
    return 0;
}
