/* SPDX-License-Identifier: Apache-2.0 */
#include <unistd.h>
#include "tests/test.h"
#include "engine/gguf.c"

/* A file under construction in memory, so that each lie can be told by itself. */
struct image {
    unsigned char bytes[8192];
    size_t len;
};

static void add(struct image *im, const void *data, size_t bytes) {
    assert_true(im->len + bytes <= sizeof im->bytes);
    memcpy(im->bytes + im->len, data, bytes);
    im->len += bytes;
}

static void add_u32(struct image *im, uint32_t v) {
    add(im, &v, sizeof v);
}

static void add_u64(struct image *im, uint64_t v) {
    add(im, &v, sizeof v);
}

static void add_str(struct image *im, const char *s) {
    add_u64(im, strlen(s));
    add(im, s, strlen(s));
}

static void add_head(struct image *im, uint64_t n_tensors, uint64_t n_values) {
    add(im, "GGUF", 4);
    add_u32(im, 3);
    add_u64(im, n_tensors);
    add_u64(im, n_values);
}

static void add_tensor(struct image *im, const char *name, uint32_t n_dims, const uint64_t *ne,
                       uint32_t type, uint64_t offset) {
    add_str(im, name);
    add_u32(im, n_dims);
    for (uint32_t i = 0; i < n_dims; i++)
        add_u64(im, ne[i]);
    add_u32(im, type);
    add_u64(im, offset);
}

static void add_data(struct image *im, size_t bytes) {
    while (im->len % ALIGNMENT)
        add(im, "", 1);
    for (size_t i = 0; i < bytes; i++)
        add(im, "x", 1);
}

/* The image is refused with a sentence that contains `part`.  It is parsed from a heap copy of its
 * exact size, so that the address sanitizer sees any read past the end. */
static void refused(const struct image *im, const char *part) {
    struct moge_gguf *gguf = NULL;
    struct moge_err err = {0};
    unsigned char *copy = malloc(im->len);
    memcpy(copy, im->bytes, im->len);
    int rc = moge_gguf_parse(&gguf, copy, im->len, &err);
    free(copy);
    assert_int_equal(rc, MOGE_FORMAT);
    assert_int_equal(err.code, MOGE_FORMAT);
    assert_null(gguf);
    if (!strstr(err.text, part))
        fail_msg("\"%s\" does not contain \"%s\"", err.text, part);
}

static void lying_headers(void **state) {
    (void)state;
    struct image im = {0};
    add(&im, "GGU", 3);
    refused(&im, "not a GGUF file");
    im = (struct image){0};
    add(&im, "GGUF\3\0\0\0", 8);
    refused(&im, "inside its header");
    im = (struct image){0};
    add(&im, "GGUF", 4), add_u32(&im, 1), add_u64(&im, 0), add_u64(&im, 0);
    refused(&im, "version 1");
    im.bytes[4] = 0, im.bytes[7] = 3;
    refused(&im, "big-endian");
    const uint64_t counts[] = {1, 65536, 1u << 20, UINT64_MAX, (uint64_t)INT64_MAX + 1};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        im = (struct image){0};
        add_head(&im, 0, counts[i]);
        refused(&im, counts[i] <= VALUES_MAX ? "metadata entry 1" : "claims");
        im = (struct image){0};
        add_head(&im, counts[i], 0);
        refused(&im, counts[i] <= TENSORS_MAX ? "tensor description 1" : "claims");
    }
}

static void lying_metadata(void **state) {
    (void)state;
    struct image im = {0};
    add_head(&im, 0, 1), add_u64(&im, UINT64_MAX), add(&im, "key", 3);
    refused(&im, "metadata entry 1 of 1");
    im = (struct image){0};
    add_head(&im, 0, 1), add_str(&im, ""), add_u32(&im, MOGE_GGUF_U8), add(&im, "", 1);
    refused(&im, "key of metadata entry 1");
    im = (struct image){0};
    add_head(&im, 0, 1), add_str(&im, "bad\nkey"), add_u32(&im, MOGE_GGUF_U8), add(&im, "", 1);
    refused(&im, "printable");
    im = (struct image){0};
    add_head(&im, 0, 1), add_str(&im, "k"), add_u32(&im, 13), add_u64(&im, 0);
    refused(&im, "unknown kind 13");
    im = (struct image){0};
    add_head(&im, 0, 1), add_str(&im, "k"), add_u32(&im, MOGE_GGUF_STRING),
        add_u64(&im, UINT64_MAX - 7);
    refused(&im, "value of k reaches past");
    im = (struct image){0};
    add_head(&im, 0, 1), add_str(&im, "k"), add_u32(&im, MOGE_GGUF_BOOL), add(&im, "\2", 1);
    refused(&im, "truth value but holds 2");
    im = (struct image){0};
    add_head(&im, 0, 2);
    for (int i = 0; i < 2; i++)
        add_str(&im, "twin"), add_u32(&im, MOGE_GGUF_U32), add_u32(&im, 7);
    refused(&im, "twin appears twice");
    const uint64_t counts[] = {3, 1u << 30, UINT64_MAX / 4 + 1, UINT64_MAX};
    for (size_t i = 0; i < 4; i++) { /* n * 4 wraps around for the last two */
        im = (struct image){0};
        add_head(&im, 0, 1), add_str(&im, "k"), add_u32(&im, MOGE_GGUF_ARRAY);
        add_u32(&im, MOGE_GGUF_U32), add_u64(&im, counts[i]), add_u64(&im, 0);
        refused(&im, "more than the file holds");
    }
    im = (struct image){0};
    add_head(&im, 0, 1), add_str(&im, "k"), add_u32(&im, MOGE_GGUF_ARRAY);
    add_u32(&im, MOGE_GGUF_ARRAY), add_u64(&im, 0);
    refused(&im, "arrays of arrays");
    im = (struct image){0};
    add_head(&im, 0, 1), add_str(&im, "k"), add_u32(&im, MOGE_GGUF_ARRAY);
    add_u32(&im, MOGE_GGUF_STRING), add_u64(&im, 2), add_str(&im, "one"), add_u64(&im, 5);
    refused(&im, "item 1 of the array k");
}

static void lying_tensors(void **state) {
    (void)state;
    const uint64_t square[] = {32, 4}, odd[] = {33, 2}, zero[] = {32, 0};
    const uint64_t huge[] = {(uint64_t)1 << 62, 4}, wrap[] = {(uint64_t)1 << 32, (uint64_t)1 << 32};
    struct {
        uint32_t n_dims, type;
        const uint64_t *ne;
        uint64_t offset;
        const char *part;
    } cases[] = {
        {0, 0, square, 0, "0 dimensions"},
        {5, 0, (const uint64_t[]){1, 1, 1, 1, 1}, 0, "5 dimensions"},
        {2, 0, zero, 0, "dimension 1 of tensor t is 0"},
        {2, 0, huge, 0, "dimension 1 of tensor t"},
        {2, 0, wrap, 0, "dimension 1 of tensor t"},
        {1, 0, (const uint64_t[]){INT64_MAX}, 0, "overflows"},
        {2, 14, square, 0, "type 14 (q6_k)"},
        {2, 4000000000u, square, 0, "type 4000000000 (unknown)"},
        {2, MOGE_TYPE_Q8_0, odd, 0, "not a multiple of the 32"},
        {2, 0, square, 16, "not a multiple of 32"},
        {2, 0, square, 32, "reaches past the end"},
        {2, 0, square, UINT64_MAX - 31, "reaches past the end"},
        {1, 0, (const uint64_t[]){1 << 20}, 0, "reaches past the end"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct image im = {0};
        add_head(&im, 1, 0);
        add_tensor(&im, "t", cases[i].n_dims, cases[i].ne, cases[i].type, cases[i].offset);
        add_data(&im, 512);
        refused(&im, cases[i].part);
    }
    struct image im = {0};
    add_head(&im, 2, 0);
    add_tensor(&im, "a", 2, square, 0, 0), add_tensor(&im, "b", 2, square, 0, 480);
    add_data(&im, 1024);
    refused(&im, "a and b overlap");
    im = (struct image){0};
    add_head(&im, 2, 0);
    add_tensor(&im, "a", 2, square, 0, 0), add_tensor(&im, "a", 2, square, 0, 512);
    add_data(&im, 1024);
    refused(&im, "a appears twice");
}

static void alignment_is_checked(void **state) {
    (void)state;
    const uint64_t ne[] = {16};
    const uint32_t bad[] = {0, 1, 4, 24, 1u << 20, UINT32_MAX};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct image im = {0};
        add_head(&im, 1, 1), add_str(&im, "general.alignment"), add_u32(&im, MOGE_GGUF_U32);
        add_u32(&im, bad[i]), add_tensor(&im, "t", 1, ne, 0, 0), add_data(&im, 512);
        refused(&im, "general.alignment");
    }
    struct image im = {0};
    struct moge_gguf *gguf = NULL;
    struct moge_err err = {0};
    add_head(&im, 1, 1), add_str(&im, "general.alignment"), add_u32(&im, MOGE_GGUF_U32);
    add_u32(&im, 256), add_tensor(&im, "t", 1, ne, 0, 0);
    size_t begin = (im.len + 255) / 256 * 256;
    while (im.len < begin)
        add(&im, "", 1);
    add_data(&im, 64);
    TEST_OK(moge_gguf_parse(&gguf, im.bytes, im.len, &err), err);
    assert_ptr_equal(moge_gguf_find_tensor(gguf, "t")->data, im.bytes + begin);
    moge_gguf_close(gguf);
}

static void temp_path(char *path, size_t cap) {
    snprintf(path, cap, "%s/gguf_test.%ld.gguf", MOGE_BINARY_DIR, (long)getpid());
}

/* Writes one of everything. */
static void write_sample(const char *path, const float *matrix, const unsigned char *blocks) {
    struct moge_gguf_writer *w = NULL;
    struct moge_err err = {0};
    const struct moge_str words[] = {{"", 0}, {"a\0b", 3}, {"word", 4}};
    const float scores[] = {0.5f, -1.0f};
    const int32_t types[] = {1, 2, -3};
    TEST_OK(moge_gguf_create(&w, path, &err), err);
    moge_gguf_put_str(w, "general.architecture", "pangu-moe");
    moge_gguf_put_u32(w, "u32", 4000000000u);
    moge_gguf_put_f32(w, "f32", 1e-5f);
    moge_gguf_put_bool(w, "bool", true);
    moge_gguf_put_strs(w, "words", words, 3);
    moge_gguf_put_f32s(w, "scores", scores, 2);
    moge_gguf_put_i32s(w, "types", types, 3);
    moge_gguf_put_tensor(w, "odd", (const uint64_t[]){7, 3}, 2, MOGE_TYPE_F32);
    moge_gguf_put_tensor(w, "blocks", (const uint64_t[]){64, 2}, 2, MOGE_TYPE_Q8_0);
    TEST_OK(moge_gguf_write_data(w, matrix, 40, &err), err); /* any cut will do */
    TEST_OK(moge_gguf_write_data(w, (const char *)matrix + 40, 84 - 40, &err), err);
    TEST_OK(moge_gguf_write_data(w, blocks, 4 * 34, &err), err);
    TEST_OK(moge_gguf_finish(w, &err), err);
}

static void written_files_read_back(void **state) {
    (void)state;
    char path[4096];
    float matrix[21];
    unsigned char blocks[4 * 34];
    struct moge_err err = {0};
    struct moge_gguf *gguf = NULL;
    temp_path(path, sizeof path);
    for (int i = 0; i < 21; i++)
        matrix[i] = (float)i;
    memset(blocks, 5, sizeof blocks);
    write_sample(path, matrix, blocks);
    TEST_OK(moge_gguf_open(&gguf, path, &err), err);
    unlink(path);
    int64_t n;
    double x;
    bool flag;
    struct moge_str text;
    TEST_OK(moge_gguf_get_int(gguf, "u32", 0, UINT32_MAX, &n, &err), err);
    assert_int_equal(n, 4000000000u);
    assert_int_equal(moge_gguf_get_int(gguf, "u32", 0, 100, &n, &err), MOGE_FORMAT);
    assert_string_equal(err.text, "u32 is 4000000000; it must be between 0 and 100");
    assert_int_equal(moge_gguf_get_int(gguf, "f32", 0, 100, &n, &err), MOGE_FORMAT);
    assert_string_equal(err.text, "f32 must be an integer");
    assert_int_equal(moge_gguf_get_int(gguf, "absent", 0, 100, &n, &err), MOGE_FORMAT);
    assert_string_equal(err.text, "the key absent is missing");
    TEST_OK(moge_gguf_get_float(gguf, "f32", &x, &err), err);
    assert_true(x == (double)1e-5f);
    assert_int_equal(moge_gguf_get_float(gguf, "words", &x, &err), MOGE_FORMAT);
    TEST_OK(moge_gguf_get_bool(gguf, "bool", &flag, &err), err);
    assert_true(flag);
    TEST_OK(moge_gguf_get_str(gguf, "general.architecture", &text, &err), err);
    assert_true(text.len == 9 && memcmp(text.data, "pangu-moe", 9) == 0);
    assert_int_equal(moge_gguf_get_str(gguf, "bool", &text, &err), MOGE_FORMAT);
    const struct moge_gguf_value *words = moge_gguf_find(gguf, "words");
    assert_int_equal(words->n_items, 3);
    const unsigned char *at = words->data;
    assert_int_equal(moge_gguf_next_str(&at).len, 0);
    text = moge_gguf_next_str(&at);
    assert_true(text.len == 3 && memcmp(text.data, "a\0b", 3) == 0);
    const struct moge_gguf_tensor *odd = moge_gguf_find_tensor(gguf, "odd");
    assert_int_equal(odd->bytes, sizeof matrix);
    assert_memory_equal(odd->data, matrix, sizeof matrix);
    assert_int_equal((uintptr_t)odd->data % ALIGNMENT, 0);
    assert_memory_equal(moge_gguf_find_tensor(gguf, "blocks")->data, blocks, sizeof blocks);
    assert_null(moge_gguf_find_tensor(gguf, "block"));
    assert_null(moge_gguf_tensor_at(gguf, 2));
    moge_gguf_close(gguf);
}

/* Any prefix of a good file is refused or, at worst, lacks nothing that it describes. */
static void every_truncation_is_noticed(void **state) {
    (void)state;
    char path[4096];
    float matrix[21] = {0};
    unsigned char blocks[4 * 34] = {0};
    struct moge_err err = {0};
    struct moge_gguf *gguf = NULL;
    temp_path(path, sizeof path);
    write_sample(path, matrix, blocks);
    TEST_OK(moge_gguf_open(&gguf, path, &err), err);
    unlink(path);
    size_t used = (size_t)(moge_gguf_find_tensor(gguf, "blocks")->data - gguf->data) + 4 * 34;
    for (size_t len = 0; len < used; len++) {
        unsigned char *copy = malloc(len ? len : 1);
        memcpy(copy, gguf->data, len);
        struct moge_gguf *part = NULL;
        assert_int_equal(moge_gguf_parse(&part, copy, len, &err), MOGE_FORMAT);
        assert_null(part);
        free(copy);
    }
    moge_gguf_close(gguf);
}

static void integers_of_any_width(void **state) {
    (void)state;
    struct image im = {0};
    struct moge_err err = {0};
    struct moge_gguf *gguf = NULL;
    int64_t n;
    const uint64_t minus = (uint64_t)-5;
    const struct {
        const char *key;
        uint32_t kind;
        size_t bytes;
    } items[] = {{"u8", 0, 1},  {"i8", 1, 1},  {"u16", 2, 2},  {"i16", 3, 2},
                 {"u32", 4, 4}, {"i32", 5, 4}, {"u64", 10, 8}, {"i64", 11, 8}};
    add_head(&im, 0, 8);
    for (int i = 0; i < 8; i++)
        add_str(&im, items[i].key), add_u32(&im, items[i].kind), add(&im, &minus, items[i].bytes);
    TEST_OK(moge_gguf_parse(&gguf, im.bytes, im.len, &err), err);
    const int64_t want[] = {251, -5, 65531, -5, 4294967291, -5, 0, -5};
    for (int i = 0; i < 8; i++) {
        int rc = moge_gguf_get_int(gguf, items[i].key, INT64_MIN, INT64_MAX, &n, &err);
        assert_int_equal(rc, i == 6 ? MOGE_FORMAT : 0); /* 2^64 - 5 is no int64 */
        if (rc == 0)
            assert_int_equal(n, want[i]);
    }
    moge_gguf_close(gguf);
}

static void unreadable_paths(void **state) {
    (void)state;
    struct moge_gguf *gguf = NULL;
    struct moge_err err = {0};
    assert_int_equal(moge_gguf_open(&gguf, "/nonexistent/x.gguf", &err), MOGE_IO);
    assert_non_null(strstr(err.text, "/nonexistent/x.gguf: No such file"));
    assert_int_equal(moge_gguf_open(&gguf, "/", &err), MOGE_IO);
    assert_int_equal(moge_gguf_open(&gguf, "/dev/null", &err), MOGE_IO);
    assert_null(gguf);
}

static void the_writer_refuses_incomplete_files(void **state) {
    (void)state;
    char path[4096];
    struct moge_gguf_writer *w = NULL;
    struct moge_err err = {0};
    const float x[8] = {0};
    temp_path(path, sizeof path);
    TEST_OK(moge_gguf_create(&w, path, &err), err);
    moge_gguf_put_tensor(w, "t", (const uint64_t[]){8}, 1, MOGE_TYPE_F32);
    TEST_OK(moge_gguf_write_data(w, x, 16, &err), err);
    assert_int_equal(moge_gguf_finish(w, &err), MOGE_INVALID);
    assert_int_equal(access(path, F_OK), -1);
    TEST_OK(moge_gguf_create(&w, path, &err), err);
    moge_gguf_put_tensor(w, "t", (const uint64_t[]){8}, 1, MOGE_TYPE_F32);
    assert_int_equal(moge_gguf_write_data(w, x, 33, &err), MOGE_INVALID);
    moge_gguf_abandon(w);
    TEST_OK(moge_gguf_create(&w, path, &err), err);
    moge_gguf_put_tensor(w, "t", (const uint64_t[]){8}, 1, MOGE_TYPE_Q8_0);
    assert_int_equal(moge_gguf_finish(w, &err), MOGE_INVALID);
    assert_non_null(strstr(err.text, "tensor t"));
    assert_int_equal(moge_gguf_create(&w, "/nonexistent/x.gguf", &err), MOGE_IO);
    moge_gguf_abandon(NULL);
    moge_gguf_close(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lying_headers),
        cmocka_unit_test(lying_metadata),
        cmocka_unit_test(lying_tensors),
        cmocka_unit_test(alignment_is_checked),
        cmocka_unit_test(written_files_read_back),
        cmocka_unit_test(every_truncation_is_noticed),
        cmocka_unit_test(integers_of_any_width),
        cmocka_unit_test(unreadable_paths),
        cmocka_unit_test(the_writer_refuses_incomplete_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
