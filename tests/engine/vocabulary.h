/* SPDX-License-Identifier: Apache-2.0 */
/* Vocabularies for tests: an array of pieces, or a SentencePiece .model file, becomes the metadata
 * of a GGUF file in memory and is opened as the daemon opens it. */
#ifndef MOGE_TEST_VOCABULARY_H
#define MOGE_TEST_VOCABULARY_H

#include "tests/test.h"

#include "moge/gguf.h"
#include "moge/tokenizer.h"

struct test_piece {
    const char *text;
    size_t len;
    float score;
    int32_t type;
};

#define PIECE(text, score, type)                                                                   \
    { text, sizeof(text) - 1, score, type }

struct test_vocabulary {
    const struct test_piece *pieces; /* [n] */
    uint32_t n;
    int64_t bos, eos, unknown;                     /* -1: the key is left out */
    int add_bos, add_space_prefix, remove_extra;   /* -1: the key is left out */
    const char *model;                             /* NULL: "llama" */
    uint32_t n_scores_less, n_types_less;          /* entries left out of these arrays */
    bool no_tokens, no_scores, no_types, no_model; /* keys left out */
};

static inline struct test_vocabulary test_vocabulary_of(const struct test_piece *pieces, size_t n) {
    return (struct test_vocabulary){.pieces = pieces,
                                    .n = (uint32_t)n,
                                    .bos = -1,
                                    .eos = -1,
                                    .unknown = -1,
                                    .add_bos = -1,
                                    .add_space_prefix = -1,
                                    .remove_extra = -1};
}

struct test_bytes {
    unsigned char *data;
    size_t len, cap;
};

static inline void test_put(struct test_bytes *out, const void *data, size_t len) {
    if (out->len + len > out->cap) {
        out->cap = 2 * (out->len + len);
        out->data = realloc(out->data, out->cap);
        assert_non_null(out->data);
    }
    if (len > 0)
        memcpy(out->data + out->len, data, len);
    out->len += len;
}

static inline void test_put_u32(struct test_bytes *out, uint32_t value) {
    test_put(out, &value, sizeof value);
}

static inline void test_put_u64(struct test_bytes *out, uint64_t value) {
    test_put(out, &value, sizeof value);
}

static inline void test_put_str(struct test_bytes *out, const char *text, size_t len) {
    test_put_u64(out, len);
    test_put(out, text, len);
}

static inline void test_put_key(struct test_bytes *out, uint64_t *n_keys, const char *key,
                                enum moge_gguf_kind kind) {
    test_put_str(out, key, strlen(key));
    test_put_u32(out, kind);
    ++*n_keys;
}

static inline void test_put_array(struct test_bytes *out, uint64_t *n_keys, const char *key,
                                  enum moge_gguf_kind kind, uint64_t n) {
    test_put_key(out, n_keys, key, MOGE_GGUF_ARRAY);
    test_put_u32(out, kind);
    test_put_u64(out, n);
}

static inline void test_put_settings(struct test_bytes *out, uint64_t *n_keys,
                                     const struct test_vocabulary *v) {
    const struct {
        const char *key;
        int64_t value;
    } ids[] = {{"tokenizer.ggml.bos_token_id", v->bos},
               {"tokenizer.ggml.eos_token_id", v->eos},
               {"tokenizer.ggml.unknown_token_id", v->unknown}};
    const struct {
        const char *key;
        int value;
    } flags[] = {{"tokenizer.ggml.add_bos_token", v->add_bos},
                 {"tokenizer.ggml.add_space_prefix", v->add_space_prefix},
                 {"tokenizer.ggml.remove_extra_whitespaces", v->remove_extra}};
    for (int i = 0; i < 3; i++) {
        if (ids[i].value >= 0) {
            test_put_key(out, n_keys, ids[i].key, MOGE_GGUF_U32);
            test_put_u32(out, (uint32_t)ids[i].value);
        }
        if (flags[i].value >= 0) {
            test_put_key(out, n_keys, flags[i].key, MOGE_GGUF_BOOL);
            test_put(out, &(char){(char)flags[i].value}, 1);
        }
    }
}

/* The bytes of a GGUF file without tensors. */
static inline struct test_bytes test_vocabulary_gguf(const struct test_vocabulary *v) {
    struct test_bytes keys = {0}, out = {0};
    uint64_t n_keys = 0;
    const char *model = v->model ? v->model : "llama";
    if (!v->no_model) {
        test_put_key(&keys, &n_keys, "tokenizer.ggml.model", MOGE_GGUF_STRING);
        test_put_str(&keys, model, strlen(model));
    }
    if (!v->no_tokens) {
        test_put_array(&keys, &n_keys, "tokenizer.ggml.tokens", MOGE_GGUF_STRING, v->n);
        for (uint32_t i = 0; i < v->n; i++)
            test_put_str(&keys, v->pieces[i].text, v->pieces[i].len);
    }
    if (!v->no_scores) {
        uint32_t n = v->n - v->n_scores_less;
        test_put_array(&keys, &n_keys, "tokenizer.ggml.scores", MOGE_GGUF_F32, n);
        for (uint32_t i = 0; i < n; i++)
            test_put(&keys, &v->pieces[i].score, 4);
    }
    if (!v->no_types) {
        uint32_t n = v->n - v->n_types_less;
        test_put_array(&keys, &n_keys, "tokenizer.ggml.token_type", MOGE_GGUF_I32, n);
        for (uint32_t i = 0; i < n; i++)
            test_put(&keys, &v->pieces[i].type, 4);
    }
    test_put_settings(&keys, &n_keys, v);
    test_put(&out, "GGUF", 4);
    test_put_u32(&out, 3);
    test_put_u64(&out, 0);
    test_put_u64(&out, n_keys);
    test_put(&out, keys.data, keys.len);
    free(keys.data);
    return out;
}

/* What moge_tokenizer_open says; *out stays NULL on failure. */
static inline int test_vocabulary_open(const struct test_vocabulary *v, struct moge_tokenizer **out,
                                       struct moge_err *err) {
    struct test_bytes file = test_vocabulary_gguf(v);
    struct moge_gguf *gguf = NULL;
    *out = NULL;
    TEST_OK(moge_gguf_parse(&gguf, file.data, file.len, err), *err);
    int rc = moge_tokenizer_open(out, gguf, err);
    moge_gguf_close(gguf);
    free(file.data);
    return rc;
}

/* ---- SentencePiece's own file: a protocol buffer, of which we want field 1, the pieces ---- */

static inline struct test_bytes test_file_read(const char *name) {
    char path[512];
    snprintf(path, sizeof path, MOGE_SOURCE_DIR "/%s", name);
    struct test_bytes file = {0};
    FILE *f = fopen(path, "rb");
    if (!f)
        fail_msg("%s is missing", name);
    char chunk[65536];
    for (size_t n; (n = fread(chunk, 1, sizeof chunk, f)) > 0;)
        test_put(&file, chunk, n);
    fclose(f);
    return file;
}

static inline uint64_t test_varint(const unsigned char **at) {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
        unsigned char byte = *(*at)++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80)
            return value;
    }
}

static inline struct test_piece test_piece_parse(const unsigned char *at,
                                                 const unsigned char *end) {
    struct test_piece piece = {.type = 1};
    while (at < end) {
        uint64_t tag = test_varint(&at);
        if (tag == (1 << 3 | 2)) {
            piece.len = (size_t)test_varint(&at);
            piece.text = (const char *)at;
            at += piece.len;
        } else if (tag == (2 << 3 | 5)) {
            memcpy(&piece.score, at, 4);
            at += 4;
        } else {
            assert_int_equal(tag, 3 << 3);
            piece.type = (int32_t)test_varint(&at);
        }
    }
    return piece;
}

/* A tokenizer of a .model file that was trained with the identity normalisation and a dummy prefix,
 * BOS 1 and EOS 2. */
static inline struct moge_tokenizer *test_model_open(const char *name) {
    struct test_bytes file = test_file_read(name);
    struct test_piece *pieces = calloc(file.len, sizeof *pieces);
    const unsigned char *at = file.data, *end = file.data + file.len;
    uint32_t n = 0;
    while (at < end && *at == (1 << 3 | 2)) {
        at++;
        size_t len = (size_t)test_varint(&at);
        pieces[n++] = test_piece_parse(at, at + len);
        at += len;
    }
    struct test_vocabulary v = test_vocabulary_of(pieces, n);
    v.bos = 1;
    v.eos = 2;
    v.unknown = 0;
    struct moge_tokenizer *tok;
    struct moge_err err;
    TEST_OK(test_vocabulary_open(&v, &tok, &err), err);
    free(pieces);
    free(file.data);
    return tok;
}

#endif
