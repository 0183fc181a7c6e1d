/* SPDX-License-Identifier: Apache-2.0 */
/* The tokenizer against SentencePiece: the strings of tests/golden/README.md, and back again, with
 * the vocabulary of the embedded pair, a tiny one, and many random ones. */
#include "tests/engine/vocabulary.h"

static struct moge_tokenizer *tokenizer_open(const char *name) {
    char path[512];
    struct moge_gguf *gguf;
    struct moge_tokenizer *tok = NULL;
    struct moge_err err;
    snprintf(path, sizeof path, MOGE_SOURCE_DIR "/%s", name);
    TEST_OK(moge_gguf_open(&gguf, path, &err), err);
    TEST_OK(moge_tokenizer_open(&tok, gguf, &err), err);
    moge_gguf_close(gguf);
    return tok;
}

static uint32_t take(const unsigned char **at, size_t bytes) {
    uint32_t value = 0;
    memcpy(&value, *at, bytes);
    *at += bytes;
    return value;
}

static uint32_t take_u32(const unsigned char **at) {
    return take(at, 4);
}

/* Decoding gives the text back, except that U+2581 is a space. */
static void round_trip(const struct moge_tokenizer *tok, const int32_t *ids, int n,
                       const char *text, size_t len) {
    static char out[1 << 20], expected[1 << 20];
    size_t n_out = 0, n_expected = 0;
    struct moge_detok detok;
    moge_detok_init(&detok, tok, false);
    for (int i = 0; i < n; i++)
        n_out += moge_detok_push(&detok, ids[i], out + n_out);
    n_out += moge_detok_finish(&detok, out + n_out);
    for (size_t i = 0; i < len;) {
        bool mark = len - i >= 3 && memcmp(text + i, "\xe2\x96\x81", 3) == 0;
        expected[n_expected++] = mark ? ' ' : text[i];
        i += mark ? 3 : 1;
    }
    assert_int_equal(n_out, n_expected);
    assert_memory_equal(out, expected, n_expected);
}

/* Encodes and compares with n_ids ids at *at, which it passes. */
static int check(const struct moge_tokenizer *tok, const char *text, size_t len, uint32_t n_ids,
                 const unsigned char **at, int32_t *ids, int cap, const char *where) {
    int n = moge_tokenizer_encode(tok, text, len, 0, ids, cap);
    if (n != (int)n_ids)
        fail_msg("%s \"%.*s\": %d tokens, SentencePiece makes %u", where, (int)len, text, n, n_ids);
    for (uint32_t j = 0; j < n_ids; j++) {
        int32_t id = (int32_t)take(at, 2);
        if (ids[j] != id)
            fail_msg("%s \"%.*s\": token %u is %d, SentencePiece says %d", where, (int)len, text, j,
                     ids[j], id);
    }
    return n;
}

static uint32_t compare(const char *golden, const struct moge_tokenizer *tok) {
    struct test_bytes file = test_file_read(golden);
    const unsigned char *at = file.data + 4;
    assert_memory_equal(file.data, "MGTK", 4);
    assert_int_equal(take_u32(&at), 1);
    uint32_t n_strings = take_u32(&at);
    static int32_t ids[1 << 18];
    for (uint32_t i = 0; i < n_strings; i++) {
        char where[32];
        snprintf(where, sizeof where, "string %u", i);
        uint32_t len = take_u32(&at);
        const char *text = (const char *)at;
        at += len;
        uint32_t n_ids = take_u32(&at);
        int n = check(tok, text, len, n_ids, &at, ids, (int)(sizeof ids / sizeof ids[0]), where);
        round_trip(tok, ids, n, text, len);
    }
    assert_ptr_equal(at, file.data + file.len);
    print_message("%s: %u strings\n", golden, n_strings);
    free(file.data);
    return n_strings;
}

/* The model file's tokenizer, which must also be the one of SentencePiece's own file. */
static uint32_t compare_both(const char *golden, const char *gguf, const char *model) {
    struct moge_tokenizer *tok = tokenizer_open(gguf), *same = test_model_open(model);
    struct moge_err err;
    TEST_OK(moge_tokenizer_compare(tok, same, &err), err);
    uint32_t n_strings = compare(golden, tok);
    moge_tokenizer_close(tok);
    moge_tokenizer_close(same);
    return n_strings;
}

static void tiny_tokenizer_equals_sentencepiece(void **state) {
    (void)state;
    assert_true(compare_both("tests/golden/tiny-tokenizer.golden", "tests/golden/tiny-target.gguf",
                             "tests/golden/tiny-tokenizer.model") >= 2000);
}

static void embedded_tokenizer_equals_sentencepiece(void **state) {
    (void)state;
    assert_true(compare_both("tests/golden/tokenizer.golden", "models/moge-embedded-target.gguf",
                             "models/tokenizer.model") >= 10000);
}

static struct moge_tokenizer *vocabulary_take(const unsigned char **at) {
    struct test_vocabulary v = test_vocabulary_of(NULL, 0);
    v.add_space_prefix = (int)take(at, 1);
    v.remove_extra = (int)take(at, 1);
    v.n = take_u32(at);
    struct test_piece *pieces = calloc(v.n, sizeof *pieces);
    for (uint32_t i = 0; i < v.n; i++) {
        uint32_t score;
        pieces[i].type = (int32_t)take(at, 1);
        score = take_u32(at);
        memcpy(&pieces[i].score, &score, sizeof score);
        pieces[i].len = take(at, 2);
        pieces[i].text = (const char *)*at;
        *at += pieces[i].len;
    }
    v.pieces = pieces;
    struct moge_tokenizer *tok;
    struct moge_err err;
    TEST_OK(test_vocabulary_open(&v, &tok, &err), err);
    free(pieces);
    return tok;
}

static void random_vocabularies_equal_sentencepiece(void **state) {
    (void)state;
    struct test_bytes file = test_file_read("tests/golden/vocabularies.golden");
    const unsigned char *at = file.data + 4;
    assert_memory_equal(file.data, "MGVC", 4);
    assert_int_equal(take_u32(&at), 1);
    uint32_t n_vocabularies = take_u32(&at);
    assert_true(n_vocabularies >= 100);
    for (uint32_t i = 0; i < n_vocabularies; i++) {
        struct moge_tokenizer *tok = vocabulary_take(&at);
        uint32_t n_strings = take_u32(&at);
        for (uint32_t j = 0; j < n_strings; j++) {
            int32_t ids[1024];
            char where[64];
            snprintf(where, sizeof where, "vocabulary %u, string %u", i, j);
            uint32_t len = take(&at, 2);
            const char *text = (const char *)at;
            at += len;
            uint32_t n_ids = take(&at, 2);
            check(tok, text, len, n_ids, &at, ids, 1024, where);
        }
        moge_tokenizer_close(tok);
    }
    assert_ptr_equal(at, file.data + file.len);
    free(file.data);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(tiny_tokenizer_equals_sentencepiece),
                                       cmocka_unit_test(embedded_tokenizer_equals_sentencepiece),
                                       cmocka_unit_test(random_vocabularies_equal_sentencepiece)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
