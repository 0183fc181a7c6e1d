/* SPDX-License-Identifier: Apache-2.0 */
/* The GGUF writer.  Metadata and tensor descriptions are collected in memory and written when the
 * first data arrives; data then streams through.  Declarations return nothing: the first failure is
 * kept and reported by the next call that can.  The file appears under its name only when it is
 * complete. */
#include "moge/gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/kernels/kernels.h"

#define ALIGNMENT     32u
#define TENSORS_FIRST 64u

struct buffer {
    unsigned char *data;
    size_t len, cap;
};

struct moge_gguf_writer {
    char *path, *temporary;
    FILE *file;
    struct buffer values, tensors; /* as they will lie in the file */
    uint64_t n_values, n_tensors, n_tensors_cap;
    uint64_t *bytes;         /* [n_tensors] data bytes of each */
    uint32_t alignment;      /* of tensor data */
    uint64_t next_offset;    /* where the next declared tensor begins */
    uint64_t i_tensor, left; /* tensor being written and what it still lacks */
    bool begun;
    struct moge_err failed; /* the first failure of a call that returns nothing */
};

static void append(struct moge_gguf_writer *w, struct buffer *buffer, const void *data,
                   size_t bytes) {
    if (w->failed.code || bytes == 0)
        return;
    if (bytes > buffer->cap - buffer->len) {
        size_t cap = buffer->cap ? buffer->cap : 4096;
        while (cap - buffer->len < bytes && cap <= SIZE_MAX / 2)
            cap *= 2;
        unsigned char *grown = cap - buffer->len >= bytes ? realloc(buffer->data, cap) : NULL;
        if (!grown) {
            moge_fail(&w->failed, MOGE_NOMEM, "no memory for a file header of %zu bytes", cap);
            return;
        }
        buffer->data = grown;
        buffer->cap = cap;
    }
    memcpy(buffer->data + buffer->len, data, bytes);
    buffer->len += bytes;
}

static void append_u32(struct moge_gguf_writer *w, struct buffer *buffer, uint32_t value) {
    append(w, buffer, &value, sizeof value);
}

static void append_u64(struct moge_gguf_writer *w, struct buffer *buffer, uint64_t value) {
    append(w, buffer, &value, sizeof value);
}

static void append_str(struct moge_gguf_writer *w, struct buffer *buffer, struct moge_str text) {
    append_u64(w, buffer, text.len);
    append(w, buffer, text.data, text.len);
}

uint32_t moge_gguf_file_type(enum moge_type type) {
    switch (moge_type_plain(type)) {
    case MOGE_TYPE_F32:
        return 0;
    case MOGE_TYPE_F16:
        return 1;
    case MOGE_TYPE_Q4_0:
        return 2;
    case MOGE_TYPE_Q8_0:
        return 7;
    case MOGE_TYPE_BF16:
        return 32;
    default:
        return 0;
    }
}

int moge_gguf_create(struct moge_gguf_writer **out, const char *path, struct moge_err *err) {
    int rc = 0;
    struct moge_gguf_writer *w = calloc(1, sizeof *w);
    if (!w)
        return moge_fail(err, MOGE_NOMEM, "no memory for a writer");
    w->alignment = ALIGNMENT;
    w->path = strdup(path);
    if (!w->path || asprintf(&w->temporary, "%s.%ld.tmp", path, (long)getpid()) < 0) {
        w->temporary = NULL;
        rc = moge_fail(err, MOGE_NOMEM, "no memory for a writer");
        goto fail;
    }
    int fd = open(w->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    w->file = fd < 0 ? NULL : fdopen(fd, "wb");
    if (!w->file) {
        rc = moge_fail(err, MOGE_IO, "cannot create %s: %s", w->temporary, strerror(errno));
        if (fd >= 0)
            close(fd);
        goto fail;
    }
    *out = w;
    return 0;
fail:
    moge_gguf_abandon(w);
    return rc;
}

/* Key and kind of the next metadata entry. */
static void begin_value(struct moge_gguf_writer *w, struct moge_str key, enum moge_gguf_kind kind) {
    if (w->begun)
        moge_fail(&w->failed, MOGE_INVALID, "metadata %.*s is declared after data was written",
                  (int)(key.len < 80 ? key.len : 80), key.data);
    append_str(w, &w->values, key);
    append_u32(w, &w->values, (uint32_t)kind);
    w->n_values++;
}

static void put_scalar(struct moge_gguf_writer *w, const char *key, enum moge_gguf_kind kind,
                       const void *value, size_t bytes) {
    begin_value(w, (struct moge_str){key, strlen(key)}, kind);
    append(w, &w->values, value, bytes);
}

static void put_array(struct moge_gguf_writer *w, const char *key, enum moge_gguf_kind item_kind,
                      const void *items, uint64_t n, size_t item_bytes) {
    begin_value(w, (struct moge_str){key, strlen(key)}, MOGE_GGUF_ARRAY);
    append_u32(w, &w->values, (uint32_t)item_kind);
    append_u64(w, &w->values, n);
    append(w, &w->values, items, (size_t)n * item_bytes);
}

void moge_gguf_put_u32(struct moge_gguf_writer *w, const char *key, uint32_t value) {
    put_scalar(w, key, MOGE_GGUF_U32, &value, sizeof value);
}

void moge_gguf_put_f32(struct moge_gguf_writer *w, const char *key, float value) {
    put_scalar(w, key, MOGE_GGUF_F32, &value, sizeof value);
}

void moge_gguf_put_bool(struct moge_gguf_writer *w, const char *key, bool value) {
    unsigned char byte = value;
    put_scalar(w, key, MOGE_GGUF_BOOL, &byte, sizeof byte);
}

void moge_gguf_put_str(struct moge_gguf_writer *w, const char *key, const char *value) {
    begin_value(w, (struct moge_str){key, strlen(key)}, MOGE_GGUF_STRING);
    append_str(w, &w->values, (struct moge_str){value, strlen(value)});
}

void moge_gguf_put_strs(struct moge_gguf_writer *w, const char *key, const struct moge_str *items,
                        uint64_t n) {
    put_array(w, key, MOGE_GGUF_STRING, NULL, n, 0);
    for (uint64_t i = 0; i < n; i++)
        append_str(w, &w->values, items[i]);
}

void moge_gguf_put_f32s(struct moge_gguf_writer *w, const char *key, const float *items,
                        uint64_t n) {
    put_array(w, key, MOGE_GGUF_F32, items, n, sizeof *items);
}

void moge_gguf_put_i32s(struct moge_gguf_writer *w, const char *key, const int32_t *items,
                        uint64_t n) {
    put_array(w, key, MOGE_GGUF_I32, items, n, sizeof *items);
}

/* Bytes of n items as they lie in a file that was checked when it was opened. */
static size_t items_bytes(const unsigned char *data, enum moge_gguf_kind kind, uint64_t n) {
    static const unsigned char bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (kind != MOGE_GGUF_STRING)
        return (size_t)n * bytes[kind];
    const unsigned char *at = data;
    for (uint64_t i = 0; i < n; i++)
        moge_gguf_next_str(&at);
    return (size_t)(at - data);
}

void moge_gguf_put_copy(struct moge_gguf_writer *w, const struct moge_gguf_value *value) {
    begin_value(w, value->key, value->kind);
    if (value->kind == MOGE_GGUF_ARRAY) {
        append_u32(w, &w->values, (uint32_t)value->item_kind);
        append_u64(w, &w->values, value->n_items);
    }
    append(w, &w->values, value->data, items_bytes(value->data, value->item_kind, value->n_items));
}

/* Remembers the size of one more tensor. */
static bool push_bytes(struct moge_gguf_writer *w, uint64_t bytes) {
    if (w->n_tensors == w->n_tensors_cap) {
        uint64_t cap = w->n_tensors_cap ? 2 * w->n_tensors_cap : TENSORS_FIRST;
        uint64_t *grown = realloc(w->bytes, (size_t)cap * sizeof *grown);
        if (!grown)
            return false;
        w->bytes = grown;
        w->n_tensors_cap = cap;
    }
    w->bytes[w->n_tensors++] = bytes;
    return true;
}

void moge_gguf_put_panel_layout(struct moge_gguf_writer *w) {
    if (w->n_tensors > 0 && !w->failed.code)
        moge_fail(&w->failed, MOGE_INVALID, "the panel layout is declared after a tensor");
    w->alignment = MOGE_PANEL_ALIGNMENT;
    moge_gguf_put_u32(w, "general.alignment", MOGE_PANEL_ALIGNMENT);
    moge_gguf_put_u32(w, "moge.panel_layout", MOGE_PANEL_LAYOUT);
}

void moge_gguf_put_tensor(struct moge_gguf_writer *w, const char *name, const uint64_t *ne,
                          uint32_t n_dims, enum moge_type type) {
    const struct moge_type_traits *traits = moge_type_traits((uint32_t)type);
    uint64_t n = 1, bytes = 0, end = 0;
    bool valid = !w->begun && traits && n_dims >= 1 && n_dims <= MOGE_GGUF_DIMS_MAX;
    for (uint32_t i = 0; valid && i < n_dims; i++)
        valid = ne[i] > 0 && !__builtin_mul_overflow(n, ne[i], &n);
    if (valid && moge_type_is_panel(type))
        valid = n_dims >= 2 && ne[1] % MOGE_PANEL_ROWS == 0 && w->alignment == MOGE_PANEL_ALIGNMENT;
    valid = valid && ne[0] % (uint64_t)traits->block_values == 0 &&
            !__builtin_mul_overflow(n / (uint64_t)traits->block_values,
                                    (uint64_t)traits->block_bytes, &bytes) &&
            !__builtin_add_overflow(w->next_offset, bytes, &end) && end <= INT64_MAX;
    if (!valid) {
        if (!w->failed.code)
            moge_fail(&w->failed, MOGE_INVALID, "tensor %.80s cannot be declared with this shape",
                      name);
        return;
    }
    append_str(w, &w->tensors, (struct moge_str){name, strlen(name)});
    append_u32(w, &w->tensors, n_dims);
    append(w, &w->tensors, ne, n_dims * sizeof *ne);
    append_u32(w, &w->tensors, (uint32_t)type);
    append_u64(w, &w->tensors, w->next_offset);
    w->next_offset = (end + w->alignment - 1) & ~(uint64_t)(w->alignment - 1);
    if (!push_bytes(w, bytes) && !w->failed.code)
        moge_fail(&w->failed, MOGE_NOMEM, "no memory for tensor descriptions");
}

static int write_all(struct moge_gguf_writer *w, const void *data, size_t bytes,
                     struct moge_err *err) {
    if (bytes && fwrite(data, 1, bytes, w->file) != bytes)
        return moge_fail(err, MOGE_IO, "cannot write %s: %s", w->temporary, strerror(errno));
    return 0;
}

/* Zeros up to the next multiple of the alignment after `bytes`. */
static int write_padding(struct moge_gguf_writer *w, uint64_t bytes, struct moge_err *err) {
    static const unsigned char zeros[MOGE_PANEL_ALIGNMENT];
    return write_all(w, zeros, (size_t)(-bytes & (w->alignment - 1)), err);
}

/* Writes everything that was declared. */
static int begin_data(struct moge_gguf_writer *w, struct moge_err *err) {
    struct buffer head = {0};
    int rc = 0;
    if (w->begun)
        return 0;
    append(w, &head, "GGUF", 4);
    append_u32(w, &head, 3);
    append_u64(w, &head, w->n_tensors);
    append_u64(w, &head, w->n_values);
    if (w->failed.code) {
        rc = moge_fail(err, w->failed.code, "%s", w->failed.text);
        goto done;
    }
    w->begun = true;
    w->left = w->n_tensors ? w->bytes[0] : 0;
    rc = write_all(w, head.data, head.len, err);
    if (rc == 0)
        rc = write_all(w, w->values.data, w->values.len, err);
    if (rc == 0)
        rc = write_all(w, w->tensors.data, w->tensors.len, err);
    if (rc == 0)
        rc = write_padding(w, head.len + w->values.len + w->tensors.len, err);
done:
    free(head.data);
    return rc;
}

int moge_gguf_write_data(struct moge_gguf_writer *w, const void *data, size_t bytes,
                         struct moge_err *err) {
    const unsigned char *at = data;
    int rc = begin_data(w, err);
    while (rc == 0 && bytes > 0) {
        if (w->i_tensor == w->n_tensors)
            return moge_fail(err, MOGE_INVALID, "%zu bytes more than the tensors declared", bytes);
        size_t part = w->left < bytes ? (size_t)w->left : bytes;
        rc = write_all(w, at, part, err);
        at += part;
        bytes -= part;
        w->left -= part;
        if (rc == 0 && w->left == 0) {
            rc = write_padding(w, w->bytes[w->i_tensor], err);
            w->i_tensor++;
            w->left = w->i_tensor < w->n_tensors ? w->bytes[w->i_tensor] : 0;
        }
    }
    return rc;
}

int moge_gguf_finish(struct moge_gguf_writer *w, struct moge_err *err) {
    int rc = begin_data(w, err);
    if (rc == 0 && w->failed.code)
        rc = moge_fail(err, w->failed.code, "%s", w->failed.text);
    if (rc == 0 && w->i_tensor < w->n_tensors)
        rc = moge_fail(err, MOGE_INVALID, "only %llu of %llu tensors were written",
                       (unsigned long long)w->i_tensor, (unsigned long long)w->n_tensors);
    if (rc == 0) {
        int failed = fclose(w->file);
        w->file = NULL;
        if (failed)
            rc = moge_fail(err, MOGE_IO, "cannot write %s: %s", w->temporary, strerror(errno));
        else if (rename(w->temporary, w->path) != 0)
            rc = moge_fail(err, MOGE_IO, "cannot rename %s: %s", w->temporary, strerror(errno));
    }
    if (rc == 0) { /* the temporary is gone: nothing to remove */
        free(w->temporary);
        w->temporary = NULL;
    }
    moge_gguf_abandon(w);
    return rc;
}

void moge_gguf_abandon(struct moge_gguf_writer *w) {
    if (!w)
        return;
    if (w->file)
        fclose(w->file);
    if (w->temporary)
        unlink(w->temporary);
    free(w->values.data);
    free(w->tensors.data);
    free(w->bytes);
    free(w->path);
    free(w->temporary);
    free(w);
}
