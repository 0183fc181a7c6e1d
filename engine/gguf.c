/* SPDX-License-Identifier: Apache-2.0 */
/* The GGUF reader.
 *
 *      magic, version, n_tensors, n_values         24 bytes
 *      n_values x   { key, kind, value }           strings carry a u64 length, arrays kind and
 * count n_tensors x  { name, n_dims, dims, type, offset } padding to the alignment tensor data
 * offsets count from here
 *
 * Everything is read through a cursor that knows how many bytes are left: no pointer is formed
 * before its extent is known to lie in the file.  Tables grow with the entries that were actually
 * read, never by a count that the file merely claims. */
#include "moge/gguf.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/kernels/kernels.h"

#define VALUES_MAX     65536u   /* entries of metadata; files have about 40 */
#define TENSORS_MAX    1048576u /* files have some thousand */
#define KEY_LEN_MAX    65535u   /* of GGUF's specification */
#define NAME_LEN_MAX   255u
#define ALIGNMENT      32u /* unless general.alignment says otherwise */
#define ALIGNMENT_MAX  65536u
#define FILE_BYTES_MIN 24u

struct moge_gguf {
    const unsigned char *data;
    size_t bytes;
    bool mapped; /* data is our own mapping of fd */
    int fd;      /* or -1 */
    struct moge_gguf_value *values;
    struct moge_gguf_tensor *tensors;
    uint64_t n_values, n_tensors;
    const struct moge_gguf_value **values_by_key;    /* [n_values] sorted */
    const struct moge_gguf_tensor **tensors_by_name; /* [n_tensors] sorted */
};

struct cursor {
    const unsigned char *at, *end;
};

static bool take(struct cursor *in, void *target, size_t bytes) {
    if ((size_t)(in->end - in->at) < bytes)
        return false;
    memcpy(target, in->at, bytes);
    in->at += bytes;
    return true;
}

static bool take_u32(struct cursor *in, uint32_t *out) {
    return take(in, out, sizeof *out);
}

static bool take_u64(struct cursor *in, uint64_t *out) {
    return take(in, out, sizeof *out);
}

static bool advance(struct cursor *in, uint64_t bytes) {
    if ((uint64_t)(in->end - in->at) < bytes)
        return false;
    in->at += bytes;
    return true;
}

static bool take_str(struct cursor *in, struct moge_str *out) {
    uint64_t len;
    if (!take_u64(in, &len))
        return false;
    const char *data = (const char *)in->at;
    if (!advance(in, len))
        return false;
    *out = (struct moge_str){data, (size_t)len};
    return true;
}

/* Names appear in messages and are compared as C strings, so they are printable ASCII. */
static bool is_name(struct moge_str s, size_t len_max) {
    if (s.len == 0 || s.len > len_max)
        return false;
    for (size_t i = 0; i < s.len; i++)
        if (s.data[i] <= ' ' || s.data[i] > '~')
            return false;
    return true;
}

/* Bytes of one item of a kind, 0 for strings, arrays and unknown kinds. */
static uint64_t kind_bytes(uint32_t kind) {
    static const unsigned char bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return kind < sizeof bytes ? bytes[kind] : 0;
}

static int compare_str(struct moge_str a, struct moge_str b) {
    size_t len = a.len < b.len ? a.len : b.len;
    int order = len ? memcmp(a.data, b.data, len) : 0;
    return order ? order : (a.len > b.len) - (a.len < b.len);
}

/* How names are shown in messages: never longer than leaves room for the sentence. */
#define SHOW(s) (int)((s).len < 80 ? (s).len : 80), (s).data

static int truncated(struct moge_err *err, const char *what, uint64_t i, uint64_t n) {
    return moge_fail(err, MOGE_FORMAT, "the file ends inside %s %llu of %llu", what,
                     (unsigned long long)(i + 1), (unsigned long long)n);
}

/* Makes room for one more entry of `size` bytes in a table of n, which doubles when it is full. */
static void *grow(void *table, uint64_t n, size_t size) {
    const uint64_t n_first = 16;
    if (n == 0)
        return realloc(table, (size_t)n_first * size);
    bool full = n >= n_first && (n & (n - 1)) == 0;
    return full ? realloc(table, (size_t)(2 * n) * size) : table;
}

/* Steps over an array's items and checks them. */
static int read_array(struct cursor *in, struct moge_gguf_value *value, struct moge_err *err) {
    uint32_t item_kind;
    uint64_t n, total;
    if (!take_u32(in, &item_kind) || !take_u64(in, &n))
        return moge_fail(err, MOGE_FORMAT, "the file ends inside the array %.*s", SHOW(value->key));
    value->n_items = n;
    value->data = in->at;
    if (item_kind == MOGE_GGUF_ARRAY || (item_kind != MOGE_GGUF_STRING && !kind_bytes(item_kind)))
        return moge_fail(err, MOGE_FORMAT, "the array %.*s has items of kind %u, which is %s",
                         SHOW(value->key), item_kind,
                         item_kind == MOGE_GGUF_ARRAY ? "refused (arrays of arrays)" : "unknown");
    value->item_kind = (enum moge_gguf_kind)item_kind;
    uint64_t item_bytes = item_kind == MOGE_GGUF_STRING ? 8 : kind_bytes(item_kind);
    if (__builtin_mul_overflow(n, item_bytes, &total) || total > (uint64_t)(in->end - in->at))
        return moge_fail(err, MOGE_FORMAT,
                         "the array %.*s claims %llu items, more than the file holds",
                         SHOW(value->key), (unsigned long long)n);
    if (item_kind != MOGE_GGUF_STRING) {
        advance(in, total);
        return 0;
    }
    for (uint64_t i = 0; i < n; i++) {
        struct moge_str item;
        if (!take_str(in, &item))
            return moge_fail(err, MOGE_FORMAT,
                             "item %llu of the array %.*s reaches past the end of the file",
                             (unsigned long long)i, SHOW(value->key));
    }
    return 0;
}

static int read_value(struct cursor *in, struct moge_gguf_value *value, uint64_t i, uint64_t n,
                      struct moge_err *err) {
    uint32_t kind;
    if (!take_str(in, &value->key))
        return truncated(err, "metadata entry", i, n);
    if (!is_name(value->key, KEY_LEN_MAX))
        return moge_fail(err, MOGE_FORMAT,
                         "the key of metadata entry %llu is not 1 to %u printable characters",
                         (unsigned long long)(i + 1), KEY_LEN_MAX);
    if (!take_u32(in, &kind))
        return truncated(err, "metadata entry", i, n);
    if (kind > MOGE_GGUF_F64)
        return moge_fail(err, MOGE_FORMAT, "the key %.*s has a value of unknown kind %u",
                         SHOW(value->key), kind);
    value->kind = (enum moge_gguf_kind)kind;
    value->item_kind = value->kind;
    value->n_items = 1;
    value->data = in->at;
    if (kind == MOGE_GGUF_ARRAY)
        return read_array(in, value, err);
    struct moge_str text;
    if (kind == MOGE_GGUF_STRING ? !take_str(in, &text) : !advance(in, kind_bytes(kind)))
        return moge_fail(err, MOGE_FORMAT, "the value of %.*s reaches past the end of the file",
                         SHOW(value->key));
    if (kind == MOGE_GGUF_BOOL && *value->data > 1)
        return moge_fail(err, MOGE_FORMAT, "%.*s is a truth value but holds %d", SHOW(value->key),
                         *value->data);
    return 0;
}

/* Types that files may hold and we cannot compute with, so that a message can name them. */
static const char *type_name(uint32_t type) {
    static const char *const names[] = {
        "f32",     "f16",    "q4_0",    "q4_1",  "(4)",    "(5)",   "q5_0",  "q5_1",
        "q8_0",    "q8_1",   "q2_k",    "q3_k",  "q4_k",   "q5_k",  "q6_k",  "q8_k",
        "iq2_xxs", "iq2_xs", "iq3_xxs", "iq1_s", "iq4_nl", "iq3_s", "iq2_s", "iq4_xs",
        "i8",      "i16",    "i32",     "i64",   "f64",    "iq1_m", "bf16"};
    return type < sizeof names / sizeof *names ? names[type] : "unknown";
}

/* Bytes of a tensor, or an error naming what is wrong with its type or dimensions. */
static int check_shape(struct moge_gguf_tensor *tensor, uint32_t type, struct moge_err *err) {
    const struct moge_type_traits *traits = moge_type_traits(type);
    if (!traits)
        return moge_fail(err, MOGE_FORMAT,
                         "tensor %.*s has type %u (%s), which this build cannot read; it reads "
                         "f32, f16, bf16, q8_0, q4_0, q8_0_p8 and q4_0_p8",
                         SHOW(tensor->name), type, type_name(type));
    tensor->type = (enum moge_type)type;
    bool is_panel = moge_type_is_panel(tensor->type);
    uint64_t n = 1;
    for (uint32_t i = 0; i < tensor->n_dims; i++)
        if (tensor->ne[i] == 0 || __builtin_mul_overflow(n, tensor->ne[i], &n) || n > INT64_MAX)
            return moge_fail(err, MOGE_FORMAT, "dimension %u of tensor %.*s is %llu", i,
                             SHOW(tensor->name), (unsigned long long)tensor->ne[i]);
    uint64_t block_values = (uint64_t)traits->block_values;
    if (tensor->ne[0] % block_values != 0)
        return moge_fail(err, MOGE_FORMAT,
                         "rows of tensor %.*s have %llu values, not a multiple of the %d of a %s "
                         "block",
                         SHOW(tensor->name), (unsigned long long)tensor->ne[0],
                         traits->block_values, traits->name);
    if (is_panel && tensor->ne[1] % MOGE_PANEL_ROWS != 0)
        return moge_fail(
            err, MOGE_FORMAT, "tensor %.*s has %llu rows, not a multiple of the %d of a %s panel",
            SHOW(tensor->name), (unsigned long long)tensor->ne[1], MOGE_PANEL_ROWS, traits->name);
    if (__builtin_mul_overflow(n / block_values, (uint64_t)traits->block_bytes, &tensor->bytes))
        return moge_fail(err, MOGE_FORMAT, "the size of tensor %.*s overflows", SHOW(tensor->name));
    return 0;
}

/* Reads one tensor's description.  Its offset is kept apart until the data section is known. */
static int read_tensor(struct cursor *in, struct moge_gguf_tensor *tensor, uint64_t *offset,
                       uint64_t i, uint64_t n, struct moge_err *err) {
    uint32_t type;
    if (!take_str(in, &tensor->name))
        return truncated(err, "tensor description", i, n);
    if (!is_name(tensor->name, NAME_LEN_MAX))
        return moge_fail(err, MOGE_FORMAT,
                         "the name of tensor %llu is not 1 to %u printable characters",
                         (unsigned long long)(i + 1), NAME_LEN_MAX);
    if (!take_u32(in, &tensor->n_dims))
        return truncated(err, "tensor description", i, n);
    if (tensor->n_dims < 1 || tensor->n_dims > MOGE_GGUF_DIMS_MAX)
        return moge_fail(err, MOGE_FORMAT, "tensor %.*s has %u dimensions; 1 to %d are possible",
                         SHOW(tensor->name), tensor->n_dims, MOGE_GGUF_DIMS_MAX);
    for (uint32_t d = 0; d < MOGE_GGUF_DIMS_MAX; d++) {
        tensor->ne[d] = 1;
        if (d < tensor->n_dims && !take_u64(in, &tensor->ne[d]))
            return truncated(err, "tensor description", i, n);
    }
    if (!take_u32(in, &type) || !take_u64(in, offset))
        return truncated(err, "tensor description", i, n);
    return check_shape(tensor, type, err);
}

static int read_alignment(const struct moge_gguf *gguf, uint64_t *out, struct moge_err *err) {
    int64_t alignment = ALIGNMENT;
    if (moge_gguf_find(gguf, "general.alignment")) {
        int rc = moge_gguf_get_int(gguf, "general.alignment", 8, ALIGNMENT_MAX, &alignment, err);
        if (rc)
            return rc;
        if ((alignment & (alignment - 1)) != 0)
            return moge_fail(err, MOGE_FORMAT, "general.alignment is %lld, not a power of two",
                             (long long)alignment);
    }
    *out = (uint64_t)alignment;
    return 0;
}

/* Panels are used as they lie, so the file must hold the very layout that this build computes
 * with. */
static int check_panels(const struct moge_gguf *gguf, uint64_t alignment, struct moge_err *err) {
    const struct moge_gguf_tensor *panels = NULL;
    int64_t layout = 0;
    for (uint64_t i = 0; i < gguf->n_tensors && !panels; i++)
        if (moge_type_is_panel(gguf->tensors[i].type))
            panels = &gguf->tensors[i];
    if (!panels)
        return 0;
    if (!moge_gguf_find(gguf, "moge.panel_layout"))
        return moge_fail(err, MOGE_FORMAT,
                         "tensor %.*s is stored in panels, but the key moge.panel_layout, which "
                         "says how they are laid out, is missing",
                         SHOW(panels->name));
    int rc = moge_gguf_get_int(gguf, "moge.panel_layout", 0, INT64_MAX, &layout, err);
    if (rc)
        return rc;
    if (layout != MOGE_PANEL_LAYOUT)
        return moge_fail(err, MOGE_FORMAT,
                         "moge.panel_layout is %lld, but this build computes with layout %d: "
                         "quantize the model again with --layout panels",
                         (long long)layout, MOGE_PANEL_LAYOUT);
    if (alignment % MOGE_PANEL_ALIGNMENT != 0)
        return moge_fail(err, MOGE_FORMAT,
                         "tensor %.*s is stored in panels, which need a general.alignment of %d, "
                         "not %llu",
                         SHOW(panels->name), MOGE_PANEL_ALIGNMENT, (unsigned long long)alignment);
    return 0;
}

/* Turns offsets into pointers. */
static int place_tensors(struct moge_gguf *gguf, const uint64_t *offsets, uint64_t infos_end,
                         struct moge_err *err) {
    uint64_t alignment = ALIGNMENT;
    int rc = read_alignment(gguf, &alignment, err);
    if (rc == 0)
        rc = check_panels(gguf, alignment, err);
    if (rc || gguf->n_tensors == 0)
        return rc;
    uint64_t begin = (infos_end + alignment - 1) & ~(alignment - 1);
    uint64_t room = begin < gguf->bytes ? gguf->bytes - begin : 0;
    for (uint64_t i = 0; i < gguf->n_tensors; i++) {
        struct moge_gguf_tensor *tensor = &gguf->tensors[i];
        if (offsets[i] % alignment != 0)
            return moge_fail(
                err, MOGE_FORMAT, "tensor %.*s begins at offset %llu, not a multiple of %llu",
                SHOW(tensor->name), (unsigned long long)offsets[i], (unsigned long long)alignment);
        if (offsets[i] > room || tensor->bytes > room - offsets[i])
            return moge_fail(err, MOGE_FORMAT,
                             "tensor %.*s (%llu bytes at offset %llu) reaches past the end of the "
                             "file: it is truncated or lies",
                             SHOW(tensor->name), (unsigned long long)tensor->bytes,
                             (unsigned long long)offsets[i]);
        tensor->data = gguf->data + begin + offsets[i];
    }
    return 0;
}

static int by_key(const void *a, const void *b) {
    return compare_str((*(const struct moge_gguf_value *const *)a)->key,
                       (*(const struct moge_gguf_value *const *)b)->key);
}

static int by_name(const void *a, const void *b) {
    return compare_str((*(const struct moge_gguf_tensor *const *)a)->name,
                       (*(const struct moge_gguf_tensor *const *)b)->name);
}

static int by_data(const void *a, const void *b) {
    const unsigned char *x = (*(const struct moge_gguf_tensor *const *)a)->data;
    const unsigned char *y = (*(const struct moge_gguf_tensor *const *)b)->data;
    return (x > y) - (x < y);
}

static int sort_values(struct moge_gguf *gguf, struct moge_err *err) {
    uint64_t n = gguf->n_values;
    gguf->values_by_key = calloc(n ? (size_t)n : 1, sizeof *gguf->values_by_key);
    if (!gguf->values_by_key)
        return moge_fail(err, MOGE_NOMEM, "no memory for %llu metadata entries",
                         (unsigned long long)n);
    for (uint64_t i = 0; i < n; i++)
        gguf->values_by_key[i] = &gguf->values[i];
    qsort(gguf->values_by_key, (size_t)n, sizeof *gguf->values_by_key, by_key);
    for (uint64_t i = 1; i < n; i++)
        if (by_key(&gguf->values_by_key[i - 1], &gguf->values_by_key[i]) == 0)
            return moge_fail(err, MOGE_FORMAT, "the key %.*s appears twice",
                             SHOW(gguf->values_by_key[i]->key));
    return 0;
}

/* Sorts by place to see that no two share bytes, then by name for lookups. */
static int sort_tensors(struct moge_gguf *gguf, struct moge_err *err) {
    uint64_t n = gguf->n_tensors;
    const struct moge_gguf_tensor **sorted = calloc(n ? (size_t)n : 1, sizeof *sorted);
    gguf->tensors_by_name = sorted;
    if (!sorted)
        return moge_fail(err, MOGE_NOMEM, "no memory for %llu tensors", (unsigned long long)n);
    for (uint64_t i = 0; i < n; i++)
        sorted[i] = &gguf->tensors[i];
    qsort(sorted, (size_t)n, sizeof *sorted, by_data);
    for (uint64_t i = 1; i < n; i++)
        if (sorted[i - 1]->data + sorted[i - 1]->bytes > sorted[i]->data)
            return moge_fail(err, MOGE_FORMAT, "tensors %.*s and %.*s overlap in the file",
                             SHOW(sorted[i - 1]->name), SHOW(sorted[i]->name));
    qsort(sorted, (size_t)n, sizeof *sorted, by_name);
    for (uint64_t i = 1; i < n; i++)
        if (by_name(&sorted[i - 1], &sorted[i]) == 0)
            return moge_fail(err, MOGE_FORMAT, "tensor %.*s appears twice", SHOW(sorted[i]->name));
    return 0;
}

static int read_header(struct cursor *in, uint64_t *n_tensors, uint64_t *n_values,
                       struct moge_err *err) {
    char magic[4];
    uint32_t version;
    if (!take(in, magic, sizeof magic) || memcmp(magic, "GGUF", sizeof magic) != 0)
        return moge_fail(err, MOGE_FORMAT, "not a GGUF file: it does not begin with \"GGUF\"");
    if (!take_u32(in, &version) || !take_u64(in, n_tensors) || !take_u64(in, n_values))
        return moge_fail(err, MOGE_FORMAT, "the file ends inside its header");
    if (version == 0x02000000u || version == 0x03000000u)
        return moge_fail(err, MOGE_FORMAT, "the file is big-endian; only little-endian is read");
    if (version != 2 && version != 3) /* 3 only added big-endian files to 2 */
        return moge_fail(err, MOGE_FORMAT, "GGUF version %u is not supported, only 2 and 3",
                         version);
    if (*n_values > VALUES_MAX || *n_tensors > TENSORS_MAX)
        return moge_fail(err, MOGE_FORMAT,
                         "the header claims %llu metadata entries and %llu tensors; at most %u "
                         "and %u are read",
                         (unsigned long long)*n_values, (unsigned long long)*n_tensors, VALUES_MAX,
                         TENSORS_MAX);
    return 0;
}

static int read_values(struct moge_gguf *gguf, struct cursor *in, uint64_t n,
                       struct moge_err *err) {
    for (uint64_t i = 0; i < n; i++) {
        struct moge_gguf_value *values = grow(gguf->values, i, sizeof *values);
        if (!values)
            return moge_fail(err, MOGE_NOMEM, "no memory for metadata");
        gguf->values = values;
        int rc = read_value(in, &values[i], i, n, err);
        if (rc)
            return rc;
        gguf->n_values = i + 1;
    }
    return sort_values(gguf, err);
}

static int read_tensors(struct moge_gguf *gguf, struct cursor *in, uint64_t n,
                        struct moge_err *err) {
    uint64_t *offsets = NULL;
    int rc = 0;
    for (uint64_t i = 0; i < n && rc == 0; i++) {
        struct moge_gguf_tensor *tensors = grow(gguf->tensors, i, sizeof *tensors);
        if (tensors)
            gguf->tensors = tensors;
        uint64_t *grown = grow(offsets, i, sizeof *offsets);
        if (grown)
            offsets = grown;
        if (!tensors || !grown)
            rc = moge_fail(err, MOGE_NOMEM, "no memory for tensor descriptions");
        else
            rc = read_tensor(in, &tensors[i], &offsets[i], i, n, err);
        gguf->n_tensors = i + (rc == 0);
    }
    if (rc == 0)
        rc = place_tensors(gguf, offsets, (uint64_t)(in->at - gguf->data), err);
    free(offsets);
    return rc ? rc : sort_tensors(gguf, err);
}

int moge_gguf_parse(struct moge_gguf **out, const void *data, size_t bytes, struct moge_err *err) {
    uint64_t n_tensors = 0, n_values = 0;
    struct cursor in = {data, (const unsigned char *)data + bytes};
    struct moge_gguf *gguf = calloc(1, sizeof *gguf);
    if (!gguf)
        return moge_fail(err, MOGE_NOMEM, "no memory for a file description");
    gguf->fd = -1;
    gguf->data = data;
    gguf->bytes = bytes;
    int rc = read_header(&in, &n_tensors, &n_values, err);
    if (rc)
        goto fail;
    rc = read_values(gguf, &in, n_values, err);
    if (rc)
        goto fail;
    rc = read_tensors(gguf, &in, n_tensors, err);
    if (rc)
        goto fail;
    *out = gguf;
    return 0;
fail:
    moge_gguf_close(gguf);
    return rc;
}

/* Maps a regular file.  The mapping is private and read-only; a file that somebody shortens while
 * it is in use still raises SIGBUS, so model files are replaced by renaming. */
static int map_file(const char *path, int *out, void **data, size_t *bytes, struct moge_err *err) {
    int rc = 0;
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return moge_fail(err, MOGE_IO, "cannot open %s: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0)
        rc = moge_fail(err, MOGE_IO, "cannot look at %s: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode))
        rc = moge_fail(err, MOGE_IO, "%s is not a regular file", path);
    else if (st.st_size < (off_t)FILE_BYTES_MIN)
        rc = moge_fail(err, MOGE_FORMAT, "%s has %lld bytes: too short for a GGUF file", path,
                       (long long)st.st_size);
    if (rc == 0) {
        *bytes = (size_t)st.st_size;
        *data = mmap(NULL, *bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (*data == MAP_FAILED)
            rc = moge_fail(err, MOGE_IO, "cannot map %s: %s", path, strerror(errno));
    }
    if (rc == 0)
        *out = fd;
    else
        close(fd);
    return rc;
}

int moge_gguf_open(struct moge_gguf **out, const char *path, struct moge_err *err) {
    void *data = NULL;
    size_t bytes = 0;
    int fd = -1;
    struct moge_err inner = {0};
    int rc = map_file(path, &fd, &data, &bytes, err);
    if (rc)
        return rc;
    rc = moge_gguf_parse(out, data, bytes, &inner);
    if (rc) {
        munmap(data, bytes);
        close(fd);
        const char *base = strrchr(path, '/');
        return moge_fail(err, rc, "%.60s: %s", base ? base + 1 : path, inner.text);
    }
    (*out)->mapped = true;
    (*out)->fd = fd;
    return 0;
}

int moge_gguf_read(const struct moge_gguf *gguf, const unsigned char *at, size_t bytes,
                   void *target, struct moge_err *err) {
    unsigned char *to = target;
    MOGE_ASSERT(at >= gguf->data && bytes <= gguf->bytes &&
                (size_t)(at - gguf->data) <= gguf->bytes - bytes);
    if (gguf->fd < 0) {
        memcpy(target, at, bytes);
        return 0;
    }
    while (bytes > 0) {
        ssize_t got = pread(gguf->fd, to, bytes, (off_t)(at - gguf->data));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return moge_fail(err, MOGE_IO, "the file cannot be read: %s",
                             got < 0 ? strerror(errno) : "it was shortened meanwhile");
        to += got;
        at += got;
        bytes -= (size_t)got;
    }
    return 0;
}

void moge_gguf_close(struct moge_gguf *gguf) {
    if (!gguf)
        return;
    if (gguf->mapped)
        munmap((void *)gguf->data, gguf->bytes);
    if (gguf->fd >= 0)
        close(gguf->fd);
    free(gguf->values);
    free(gguf->tensors);
    free(gguf->values_by_key);
    free(gguf->tensors_by_name);
    free(gguf);
}

uint64_t moge_gguf_n_values(const struct moge_gguf *gguf) {
    return gguf->n_values;
}

const struct moge_gguf_value *moge_gguf_value_at(const struct moge_gguf *gguf, uint64_t i) {
    return i < gguf->n_values ? &gguf->values[i] : NULL;
}

uint64_t moge_gguf_n_tensors(const struct moge_gguf *gguf) {
    return gguf->n_tensors;
}

const struct moge_gguf_tensor *moge_gguf_tensor_at(const struct moge_gguf *gguf, uint64_t i) {
    return i < gguf->n_tensors ? &gguf->tensors[i] : NULL;
}

size_t moge_gguf_file_bytes(const struct moge_gguf *gguf) {
    return gguf->bytes;
}

const struct moge_gguf_value *moge_gguf_find(const struct moge_gguf *gguf, const char *key) {
    struct moge_gguf_value wanted = {.key = {key, strlen(key)}};
    const struct moge_gguf_value *probe = &wanted;
    const struct moge_gguf_value **found =
        gguf->n_values ? bsearch(&probe, gguf->values_by_key, (size_t)gguf->n_values,
                                 sizeof *gguf->values_by_key, by_key)
                       : NULL;
    return found ? *found : NULL;
}

const struct moge_gguf_tensor *moge_gguf_find_tensor(const struct moge_gguf *gguf,
                                                     const char *name) {
    struct moge_gguf_tensor wanted = {.name = {name, strlen(name)}};
    const struct moge_gguf_tensor *probe = &wanted;
    const struct moge_gguf_tensor **found =
        gguf->n_tensors ? bsearch(&probe, gguf->tensors_by_name, (size_t)gguf->n_tensors,
                                  sizeof *gguf->tensors_by_name, by_name)
                        : NULL;
    return found ? *found : NULL;
}
