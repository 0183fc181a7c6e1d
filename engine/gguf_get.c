/* SPDX-License-Identifier: Apache-2.0 */
/* Typed access to GGUF metadata: the errors name the key and what it should have been. */
#include "moge/gguf.h"

#include <math.h>
#include <string.h>

static int find_value(const struct moge_gguf *gguf, const char *key,
                      const struct moge_gguf_value **out, struct moge_err *err) {
    *out = moge_gguf_find(gguf, key);
    return *out ? 0 : moge_fail(err, MOGE_FORMAT, "the key %s is missing", key);
}

/* An integer of any kind and width; false for other kinds and for what no int64 holds. */
static bool integer_of(const struct moge_gguf_value *value, int64_t *out) {
    uint64_t u64;
    uint32_t u32;
    uint16_t u16;
    switch (value->kind) {
    case MOGE_GGUF_U8:
        *out = value->data[0];
        return true;
    case MOGE_GGUF_I8:
        *out = (int8_t)value->data[0];
        return true;
    case MOGE_GGUF_U16:
    case MOGE_GGUF_I16:
        memcpy(&u16, value->data, sizeof u16);
        *out = value->kind == MOGE_GGUF_I16 ? (int16_t)u16 : (int64_t)u16;
        return true;
    case MOGE_GGUF_U32:
    case MOGE_GGUF_I32:
        memcpy(&u32, value->data, sizeof u32);
        *out = value->kind == MOGE_GGUF_I32 ? (int32_t)u32 : (int64_t)u32;
        return true;
    case MOGE_GGUF_U64:
    case MOGE_GGUF_I64:
        memcpy(&u64, value->data, sizeof u64);
        *out = (int64_t)u64;
        return value->kind == MOGE_GGUF_I64 || u64 <= INT64_MAX;
    default:
        return false;
    }
}

int moge_gguf_get_int(const struct moge_gguf *gguf, const char *key, int64_t min, int64_t max,
                      int64_t *out, struct moge_err *err) {
    const struct moge_gguf_value *value;
    int64_t n;
    int rc = find_value(gguf, key, &value, err);
    if (rc)
        return rc;
    if (!integer_of(value, &n))
        return moge_fail(err, MOGE_FORMAT, "%s must be an integer", key);
    if (n < min || n > max)
        return moge_fail(err, MOGE_FORMAT, "%s is %lld; it must be between %lld and %lld", key,
                         (long long)n, (long long)min, (long long)max);
    *out = n;
    return 0;
}

int moge_gguf_get_float(const struct moge_gguf *gguf, const char *key, double *out,
                        struct moge_err *err) {
    const struct moge_gguf_value *value;
    float narrow;
    double wide;
    int rc = find_value(gguf, key, &value, err);
    if (rc)
        return rc;
    if (value->kind == MOGE_GGUF_F32) {
        memcpy(&narrow, value->data, sizeof narrow);
        wide = (double)narrow;
    } else if (value->kind == MOGE_GGUF_F64) {
        memcpy(&wide, value->data, sizeof wide);
    } else {
        return moge_fail(err, MOGE_FORMAT, "%s must be a floating-point number", key);
    }
    if (!isfinite(wide))
        return moge_fail(err, MOGE_FORMAT, "%s is not a finite number", key);
    *out = wide;
    return 0;
}

int moge_gguf_get_str(const struct moge_gguf *gguf, const char *key, struct moge_str *out,
                      struct moge_err *err) {
    const struct moge_gguf_value *value;
    int rc = find_value(gguf, key, &value, err);
    if (rc)
        return rc;
    if (value->kind != MOGE_GGUF_STRING)
        return moge_fail(err, MOGE_FORMAT, "%s must be a string", key);
    const unsigned char *at = value->data;
    *out = moge_gguf_next_str(&at);
    return 0;
}

int moge_gguf_get_bool(const struct moge_gguf *gguf, const char *key, bool *out,
                       struct moge_err *err) {
    const struct moge_gguf_value *value;
    int rc = find_value(gguf, key, &value, err);
    if (rc)
        return rc;
    if (value->kind != MOGE_GGUF_BOOL)
        return moge_fail(err, MOGE_FORMAT, "%s must be true or false", key);
    *out = *value->data != 0;
    return 0;
}

struct moge_str moge_gguf_next_str(const unsigned char **at) {
    uint64_t len;
    memcpy(&len, *at, sizeof len);
    struct moge_str text = {(const char *)*at + sizeof len, (size_t)len};
    *at += sizeof len + len;
    return text;
}
