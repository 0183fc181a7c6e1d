/* SPDX-License-Identifier: Apache-2.0 */
/* GGUF v3 files: reader (mmap, read-only) and writer.
 *
 * The reader trusts nothing: magic, version, counts, string and array lengths, alignment,
 * dimensions, types, offsets and sizes are checked with overflow-safe arithmetic against what is
 * left of the file before they are used or memory is allocated for them; duplicate keys and
 * tensors, and overlapping tensors are refused. Strings are borrowed from the mapping and not
 * zero-terminated.  An open file is immutable: any thread. */
#ifndef MOGE_GGUF_H
#define MOGE_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "moge/err.h"
#include "moge/quant.h"

#define MOGE_GGUF_DIMS_MAX 4

enum moge_gguf_kind { /* GGUF's metadata value types */
                      MOGE_GGUF_U8,
                      MOGE_GGUF_I8,
                      MOGE_GGUF_U16,
                      MOGE_GGUF_I16,
                      MOGE_GGUF_U32,
                      MOGE_GGUF_I32,
                      MOGE_GGUF_F32,
                      MOGE_GGUF_BOOL,
                      MOGE_GGUF_STRING,
                      MOGE_GGUF_ARRAY,
                      MOGE_GGUF_U64,
                      MOGE_GGUF_I64,
                      MOGE_GGUF_F64,
};

struct moge_str {
    const char *data;
    size_t len;
};

struct moge_gguf_value {
    struct moge_str key;
    enum moge_gguf_kind kind;
    enum moge_gguf_kind item_kind; /* of an array; arrays of arrays are refused */
    uint64_t n_items;              /* of an array, else 1 */
    const unsigned char *data;     /* first byte of the value or of the array's first item */
};

struct moge_gguf_tensor {
    struct moge_str name;
    uint32_t n_dims;
    uint64_t
        ne[MOGE_GGUF_DIMS_MAX]; /* ne[0] is contiguous (the input dimension); unused ones are 1 */
    enum moge_type type;
    const unsigned char *data;
    uint64_t bytes;
};

struct moge_gguf;

int moge_gguf_open(struct moge_gguf **out, const char *path, struct moge_err *err);

/* The same over memory that the caller keeps (tests, fuzzing). */
int moge_gguf_parse(struct moge_gguf **out, const void *data, size_t bytes, struct moge_err *err);
void moge_gguf_close(struct moge_gguf *gguf);

uint64_t moge_gguf_n_values(const struct moge_gguf *gguf);
const struct moge_gguf_value *moge_gguf_value_at(const struct moge_gguf *gguf, uint64_t i);
const struct moge_gguf_value *moge_gguf_find(const struct moge_gguf *gguf,
                                             const char *key); /* or NULL */
uint64_t moge_gguf_n_tensors(const struct moge_gguf *gguf);
const struct moge_gguf_tensor *moge_gguf_tensor_at(const struct moge_gguf *gguf, uint64_t i);
const struct moge_gguf_tensor *moge_gguf_find_tensor(const struct moge_gguf *gguf,
                                                     const char *name);
size_t moge_gguf_file_bytes(const struct moge_gguf *gguf);

/* Copies bytes of tensor data, `at` as a tensor's data points into the file, without mapping their
 * pages.  MOGE_IO when the file cannot be read or was shortened. */
int moge_gguf_read(const struct moge_gguf *gguf, const unsigned char *at, size_t bytes,
                   void *target, struct moge_err *err);

/* Typed access: 0 and *out, or MOGE_FORMAT with err naming the key: missing, or of another kind, or
 * out of [min, max].  Any integer kind is accepted for an integer. */
int moge_gguf_get_int(const struct moge_gguf *gguf, const char *key, int64_t min, int64_t max,
                      int64_t *out, struct moge_err *err);
int moge_gguf_get_float(const struct moge_gguf *gguf, const char *key, double *out,
                        struct moge_err *err);
int moge_gguf_get_str(const struct moge_gguf *gguf, const char *key, struct moge_str *out,
                      struct moge_err *err);
int moge_gguf_get_bool(const struct moge_gguf *gguf, const char *key, bool *out,
                       struct moge_err *err);

/* Walks a string array: call n_items times, starting with *at = value->data; bounds were checked at
 * open. */
struct moge_str moge_gguf_next_str(const unsigned char **at);

/* The value of general.file_type for a file whose matrices are mostly of this type. */
uint32_t moge_gguf_file_type(enum moge_type type);

/* Writer: declare metadata and tensors, then begin, then the data of each tensor in the order
 * declared. */
struct moge_gguf_writer;
int moge_gguf_create(struct moge_gguf_writer **out, const char *path, struct moge_err *err);
void moge_gguf_put_u32(struct moge_gguf_writer *w, const char *key, uint32_t value);
void moge_gguf_put_f32(struct moge_gguf_writer *w, const char *key, float value);
void moge_gguf_put_bool(struct moge_gguf_writer *w, const char *key, bool value);
void moge_gguf_put_str(struct moge_gguf_writer *w, const char *key, const char *value);
void moge_gguf_put_copy(struct moge_gguf_writer *w,
                        const struct moge_gguf_value *value); /* any kind */
void moge_gguf_put_strs(struct moge_gguf_writer *w, const char *key, const struct moge_str *items,
                        uint64_t n);
void moge_gguf_put_f32s(struct moge_gguf_writer *w, const char *key, const float *items,
                        uint64_t n);
void moge_gguf_put_i32s(struct moge_gguf_writer *w, const char *key, const int32_t *items,
                        uint64_t n);
/* Says that panels follow, before any tensor: their layout, and the alignment that they need. */
void moge_gguf_put_panel_layout(struct moge_gguf_writer *w);
void moge_gguf_put_tensor(struct moge_gguf_writer *w, const char *name, const uint64_t *ne,
                          uint32_t n_dims, enum moge_type type);
/* Writes `bytes` more bytes of tensor data (in order, padding is inserted by itself). */
int moge_gguf_write_data(struct moge_gguf_writer *w, const void *data, size_t bytes,
                         struct moge_err *err);
/* Ends the file: checks that every tensor got all its bytes, renames a temporary into place.  Frees
 * w. */
int moge_gguf_finish(struct moge_gguf_writer *w, struct moge_err *err);
void moge_gguf_abandon(
    struct moge_gguf_writer *w); /* frees w and removes the temporary; accepts NULL */

#endif
