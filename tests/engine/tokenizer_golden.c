/* SPDX-License-Identifier: Apache-2.0 */
/* The tokenizer against SentencePiece: the strings of tests/golden/README.md, and back again. */
#include "tests/test.h"

#include "moge/gguf.h"
#include "moge/tokenizer.h"

static unsigned char *file_read(const char *name, size_t *bytes) {
    char path[512];
    snprintf(path, sizeof path, MOGE_SOURCE_DIR "/%s", name);
    FILE *f = fopen(path, "rb");
    if (!f)
        return NULL;
    fseek(f, 0, SEEK_END);
    *bytes = (size_t)ftell(f);
    rewind(f);
    unsigned char *data = malloc(*bytes);
    assert_int_equal(fread(data, 1, *bytes, f), *bytes);
    fclose(f);
    return data;
}

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

static uint32_t take_u32(const unsigned char **at) {
    uint32_t value;
    memcpy(&value, *at, sizeof value);
    *at += sizeof value;
    return value;
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

static uint32_t compare(const char *golden, const char *model) {
    size_t bytes;
    unsigned char *file = file_read(golden, &bytes);
    if (!file)
        fail_msg("%s is missing: tools/train/golden.sh makes it", golden);
    struct moge_tokenizer *tok = tokenizer_open(model);
    const unsigned char *at = file + 4;
    assert_memory_equal(file, "MGTK", 4);
    assert_int_equal(take_u32(&at), 1);
    uint32_t n_strings = take_u32(&at);
    static int32_t ids[1 << 18];
    for (uint32_t i = 0; i < n_strings; i++) {
        uint32_t len = take_u32(&at);
        const char *text = (const char *)at;
        at += len;
        uint32_t n_ids = take_u32(&at);
        int n = moge_tokenizer_encode(tok, text, len, 0, ids, (int)(sizeof ids / sizeof ids[0]));
        if (n != (int)n_ids)
            fail_msg("string %u \"%.*s\": %d tokens, SentencePiece makes %u", i, (int)len, text, n,
                     n_ids);
        for (uint32_t j = 0; j < n_ids; j++, at += 2) {
            uint16_t id;
            memcpy(&id, at, sizeof id);
            if (ids[j] != id)
                fail_msg("string %u \"%.*s\": token %u is %d, SentencePiece says %u", i, (int)len,
                         text, j, ids[j], id);
        }
        round_trip(tok, ids, n, text, len);
    }
    assert_ptr_equal(at, file + bytes);
    print_message("%s: %u strings\n", golden, n_strings);
    moge_tokenizer_close(tok);
    free(file);
    return n_strings;
}

static void tiny_tokenizer_equals_sentencepiece(void **state) {
    (void)state;
    assert_true(compare("tests/golden/tiny-tokenizer.golden", "tests/golden/tiny-target.gguf") >
                100);
}

static void embedded_tokenizer_equals_sentencepiece(void **state) {
    (void)state;
    assert_true(compare("tests/golden/tokenizer.golden", "models/moge-embedded-target.gguf") >=
                10000);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(tiny_tokenizer_equals_sentencepiece),
                                       cmocka_unit_test(embedded_tokenizer_equals_sentencepiece)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
