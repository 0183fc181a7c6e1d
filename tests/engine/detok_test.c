/* SPDX-License-Identifier: Apache-2.0 */
/* The streaming detokenizer: never half a character, whatever the ids; the same text however it is
 * cut. */
#include "tests/engine/vocabulary.h"
#include "engine/detok.c"

/* Byte b is id 3 + b. */
static struct moge_tokenizer *bytes_open(int add_space_prefix) {
    static struct test_piece pieces[3 + 256 + 4] = {PIECE("<unk>", 0, 2),
                                                    PIECE("<s>", 0, 3),
                                                    PIECE("</s>", 0, 3),
                                                    [259] = PIECE("\xe2\x96\x81", 0, 1),
                                                    PIECE("\xe2\x96\x81hi", -1, 1),
                                                    PIECE("\xc3\xa9", -1, 1),
                                                    PIECE("\xe2\x96\x81[user]", 0, 4)};
    static char spelled[256][8];
    for (int b = 0; b < 256; b++) {
        snprintf(spelled[b], sizeof spelled[b], "<0x%02X>", (unsigned)b);
        pieces[3 + b] = (struct test_piece){spelled[b], 6, 0, 6};
    }
    struct test_vocabulary v = test_vocabulary_of(pieces, sizeof pieces / sizeof pieces[0]);
    v.add_space_prefix = add_space_prefix;
    struct moge_tokenizer *tok;
    struct moge_err err;
    TEST_OK(test_vocabulary_open(&v, &tok, &err), err);
    return tok;
}

static bool is_whole_utf8(const char *text, size_t len) {
    return moge_text_is_utf8(text, len);
}

/* All ids through one detokenizer; every push ends at a character boundary and fits. */
static size_t stream(const struct moge_tokenizer *tok, const int32_t *ids, int n, bool continues,
                     char *out) {
    struct moge_detok detok;
    size_t len = 0, max = moge_tokenizer_push_max(tok);
    moge_detok_init(&detok, tok, continues);
    for (int i = 0; i <= n; i++) {
        char *room = malloc(max); /* so that a sanitizer sees one byte too many */
        size_t got =
            i < n ? moge_detok_push(&detok, ids[i], room) : moge_detok_finish(&detok, room);
        assert_true(got <= (i < n ? max : 3));
        assert_true(is_whole_utf8(room, got));
        memcpy(out + len, room, got);
        len += got;
        free(room);
    }
    return len;
}

static void expect_bytes(const struct moge_tokenizer *tok, const char *bytes,
                         const char *expected) {
    int32_t ids[64];
    char out[512];
    int n = 0;
    for (; bytes[n]; n++)
        ids[n] = 3 + (unsigned char)bytes[n];
    size_t len = stream(tok, ids, n, false, out);
    if (len != strlen(expected) || memcmp(out, expected, len) != 0)
        fail_msg("\"%s\" became \"%.*s\", expected \"%s\"", bytes, (int)len, out, expected);
}

#define R "\xef\xbf\xbd"

/* Unicode 15, section 3.9: one U+FFFD for each maximal subpart. */
static void broken_bytes_become_replacement_characters(void **state) {
    (void)state;
    struct moge_tokenizer *tok = bytes_open(1);
    expect_bytes(tok, "a\xc3\xa9z", "a\xc3\xa9z");
    expect_bytes(tok, "\xf0\x9f\x98\x80", "\xf0\x9f\x98\x80");
    expect_bytes(tok, "\xff", R);
    expect_bytes(tok, "\x80\x80", R R);
    expect_bytes(tok, "\xc0\x80", R R);
    expect_bytes(tok, "\xe0\x80\x80", R R R);       /* overlong */
    expect_bytes(tok, "\xed\xa0\x80", R R R);       /* surrogate */
    expect_bytes(tok, "\xf4\x90\x80\x80", R R R R); /* beyond U+10FFFF */
    expect_bytes(tok,
                 "\xe2\x82"
                 "A",
                 R "A"); /* cut short, then text */
    expect_bytes(tok,
                 "\xf0\x9f\x98"
                 "\xe2\x82\xac",
                 R "\xe2\x82\xac");
    expect_bytes(tok, "\xf0\x9f\x98", R); /* cut short by the end */
    expect_bytes(tok, "\xc3", R);
    expect_bytes(tok, "\x61\xf1\x80\x80\xe1\x80\xc2\x62\x80\x63\x80\xbf\x64",
                 "a" R R R "b" R "c" R R "d"); /* the standard's own example */
    moge_tokenizer_close(tok);
}

static void leading_space_goes_once(void **state) {
    (void)state;
    struct moge_tokenizer *tok = bytes_open(1), *bare = bytes_open(0);
    const struct {
        int32_t ids[4];
        int n;
        const char *first, *continued;
    } cases[] = {{{260, 260}, 2, "hi hi", " hi hi"},
                 {{259, 260}, 2, " hi", "  hi"},
                 {{1, 260, 2}, 3, "hi", " hi"},
                 {{262}, 1, "[user]", " [user]"},
                 {{3 + ' ', 260}, 2, "  hi", "  hi"},
                 {{0}, 1, " \xe2\x81\x87 ", " \xe2\x81\x87 "},
                 {{261, 260}, 2, "\xc3\xa9 hi", "\xc3\xa9 hi"}};
    char out[128];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t len = stream(tok, cases[i].ids, cases[i].n, false, out);
        out[len] = 0;
        assert_string_equal(out, cases[i].first);
        len = stream(tok, cases[i].ids, cases[i].n, true, out);
        out[len] = 0;
        assert_string_equal(out, cases[i].continued);
        len = stream(bare, cases[i].ids, cases[i].n, false, out); /* nothing was put in front */
        out[len] = 0;
        assert_string_equal(out, cases[i].continued);
    }
    moge_tokenizer_close(tok);
    moge_tokenizer_close(bare);
}

static void control_tokens_show_nothing(void **state) {
    (void)state;
    struct moge_tokenizer *tok = bytes_open(1);
    size_t len;
    moge_tokenizer_piece(tok, 1, &len);
    assert_int_equal(len, 0);
    assert_memory_equal(moge_tokenizer_piece(tok, 260, &len), " hi", 3);
    assert_int_equal(len, 3);
    assert_memory_equal(moge_tokenizer_piece(tok, 3 + 0xff, &len), "\xff", 1);
    assert_int_equal(len, 1);
    /* Not even between the bytes of one character. */
    char out[16];
    int32_t split[] = {3 + 0xc3, 1, 3 + 0xa9};
    assert_int_equal(stream(tok, split, 3, false, out), 2);
    assert_memory_equal(out, "\xc3\xa9", 2);
    moge_tokenizer_close(tok);
}

/* Any ids: valid text comes out, and what a whole stream says, its halves say where no character is
 * unfinished. */
static void any_ids_stream_cleanly(void **state) {
    (void)state;
    struct moge_tokenizer *tok = test_model_open("tests/golden/tiny-tokenizer.model");
    struct test_rng rng = test_rng_init(31);
    int32_t n_vocab = moge_tokenizer_n_vocab(tok);
    for (int round = 0; round < 4000; round++) {
        int32_t ids[40];
        static char whole[65536], halves[65536];
        int n = 1 + test_below(&rng, 40), cut = test_below(&rng, n);
        for (int i = 0; i < n; i++) /* mostly bytes, mostly of long characters */
            ids[i] = round % 3 == 0 ? test_below(&rng, n_vocab) : 3 + 128 + test_below(&rng, 128);
        size_t len = stream(tok, ids, n, round % 2, whole);
        assert_true(is_whole_utf8(whole, len));
        struct moge_detok detok;
        size_t n_halves = 0;
        moge_detok_init(&detok, tok, round % 2);
        for (int i = 0; i < cut; i++)
            n_halves += moge_detok_push(&detok, ids[i], halves + n_halves);
        if (detok.n_pending > 0 || !detok.started)
            continue;
        n_halves += stream(tok, ids + cut, n - cut, true, halves + n_halves);
        assert_int_equal(n_halves, len);
        assert_memory_equal(halves, whole, len);
    }
    moge_tokenizer_close(tok);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(broken_bytes_become_replacement_characters),
                                       cmocka_unit_test(leading_space_goes_once),
                                       cmocka_unit_test(control_tokens_show_nothing),
                                       cmocka_unit_test(any_ids_stream_cleanly)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
