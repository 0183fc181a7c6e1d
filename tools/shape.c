/* SPDX-License-Identifier: Apache-2.0 */
/* Shape files: `key = value` lines under [model]. */
#include <errno.h>
#include <math.h>
#include <ini.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tools/synth.h"

static const struct number {
    const char *key;
    size_t offset;
    int32_t min, max;
} numbers[] = {
    {"vocabulary", offsetof(struct moge_shape, n_vocab), MOGE_SYNTH_VOCAB_MIN, 1 << 20},
    {"layers", offsetof(struct moge_shape, n_layers), 1, 1024},
    {"hidden", offsetof(struct moge_shape, dim), 1, 65536},
    {"heads", offsetof(struct moge_shape, n_heads), 1, 1024},
    {"kv_heads", offsetof(struct moge_shape, n_kv_heads), 1, 1024},
    {"head_dim", offsetof(struct moge_shape, head_dim), 2, 1024},
    {"context", offsetof(struct moge_shape, n_context), 16, 1 << 20},
    {"experts", offsetof(struct moge_shape, n_experts), 0, 512},
    {"experts_used", offsetof(struct moge_shape, n_experts_used), 0, 512},
    {"groups", offsetof(struct moge_shape, n_groups), 0, 512},
    {"expert_ffn", offsetof(struct moge_shape, expert_dim), 0, 65536},
    {"ffn", offsetof(struct moge_shape, ffn_dim), 0, 262144},
};

struct reading {
    struct moge_shape shape;
    struct moge_err *err;
    int rc;
    const char *path;
};

/* Remembers the first thing that is wrong; libinih wants 0 for "bad line". */
static int bad(struct reading *reading, const char *key, const char *why) {
    if (reading->rc == 0)
        reading->rc = moge_fail(reading->err, MOGE_INVALID, "%s: %s: %s", reading->path, key, why);
    return 0;
}

static int number_set(struct reading *reading, const struct number *number, const char *text) {
    char *end, why[96];
    errno = 0;
    long value = strtol(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || value < number->min || value > number->max) {
        snprintf(why, sizeof why, "\"%.24s\" is not a number from %d to %d", text, number->min,
                 number->max);
        return bad(reading, number->key, why);
    }
    *(int32_t *)(void *)((char *)&reading->shape + number->offset) = (int32_t)value;
    return 1;
}

static int float_set(struct reading *reading, const char *key, const char *text, float *out) {
    char *end;
    float value = strtof(text, &end);
    if (end == text || *end != '\0' || !isfinite(value) || value < 0)
        return bad(reading, key, "not a positive number");
    *out = value;
    return 1;
}

static int text_set(struct reading *reading, const char *key, const char *text, char *out,
                    size_t cap) {
    if (strlen(text) >= cap)
        return bad(reading, key, "too long");
    memcpy(out, text, strlen(text) + 1);
    return 1;
}

static int line_read(void *arg, const char *section, const char *key, const char *value) {
    struct reading *reading = arg;
    struct moge_shape *shape = &reading->shape;
    if (strcmp(section, "model") != 0)
        return bad(reading, section, "no such section; everything is under [model]");
    if (strcmp(key, "name") == 0)
        return text_set(reading, key, value, shape->name, sizeof shape->name);
    if (strcmp(key, "architecture") == 0)
        return text_set(reading, key, value, shape->architecture, sizeof shape->architecture);
    if (strcmp(key, "rope_base") == 0)
        return float_set(reading, key, value, &shape->rope_base);
    if (strcmp(key, "norm_epsilon") == 0)
        return float_set(reading, key, value, &shape->norm_eps);
    if (strcmp(key, "tied") == 0) {
        shape->tied = strcmp(value, "true") == 0;
        return shape->tied || strcmp(value, "false") == 0 || bad(reading, key, "true or false");
    }
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (strcmp(key, numbers[i].key) == 0)
            return number_set(reading, &numbers[i], value);
    return bad(reading, key, "no such key");
}

static int32_t number_of(const struct moge_shape *shape, const struct number *number) {
    return *(const int32_t *)(const void *)((const char *)shape + number->offset);
}

int moge_shape_check(const struct moge_shape *shape, struct moge_err *err) {
    static const char *const moe[] = {"pangu-moe", "qwen2moe"};
    static const char *const dense[] = {"pangu-embedded", "llama"};
    bool is_moe = false, is_dense = false;
    for (int i = 0; i < 2; i++) {
        is_moe = is_moe || strcmp(shape->architecture, moe[i]) == 0;
        is_dense = is_dense || strcmp(shape->architecture, dense[i]) == 0;
    }
    if (!is_moe && !is_dense)
        return moge_fail(err, MOGE_INVALID,
                         "architecture \"%s\" is none of pangu-moe, qwen2moe, pangu-embedded and "
                         "llama",
                         shape->architecture);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        int32_t value = number_of(shape, &numbers[i]);
        if (value < numbers[i].min || value > numbers[i].max)
            return moge_fail(err, MOGE_INVALID, "%s is %d; %d to %d is possible", numbers[i].key,
                             value, numbers[i].min, numbers[i].max);
    }
    if (shape->n_heads % shape->n_kv_heads != 0 || shape->head_dim % 2 != 0)
        return moge_fail(err, MOGE_INVALID,
                         "%d heads must be a multiple of %d KV heads, and head_dim %d even",
                         shape->n_heads, shape->n_kv_heads, shape->head_dim);
    if (is_dense && (shape->n_experts != 0 || shape->ffn_dim == 0))
        return moge_fail(err, MOGE_INVALID, "a dense model has ffn and no experts");
    if (is_moe &&
        (shape->n_experts == 0 || shape->expert_dim == 0 || shape->n_groups == 0 ||
         shape->n_experts_used == 0 || shape->n_experts_used > shape->n_experts ||
         shape->n_experts % shape->n_groups != 0 || shape->n_experts_used % shape->n_groups != 0))
        return moge_fail(err, MOGE_INVALID,
                         "%d experts, %d of them used, do not fall into %d equal groups",
                         shape->n_experts, shape->n_experts_used, shape->n_groups);
    return 0;
}

int moge_shape_read(struct moge_shape *out, const char *path, struct moge_err *err) {
    struct reading reading = {.err = err, .path = path};
    reading.shape.rope_base = 10000;
    reading.shape.norm_eps = 1e-5f;
    int line = ini_parse(path, line_read, &reading);
    if (reading.rc != 0)
        return reading.rc;
    if (line < 0)
        return moge_fail(err, MOGE_IO, "cannot read %s: %s", path, strerror(errno));
    if (line > 0)
        return moge_fail(err, MOGE_INVALID, "%s: line %d is not key = value", path, line);
    struct moge_err why = {0};
    int rc = moge_shape_check(&reading.shape, &why);
    if (rc != 0)
        return moge_fail(err, rc, "%s: %.*s", path, (int)sizeof why.text, why.text);
    *out = reading.shape;
    return 0;
}
