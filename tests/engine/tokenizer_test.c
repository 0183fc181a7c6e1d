/* SPDX-License-Identifier: Apache-2.0 */
/* Opening: what is missing, contradictory or out of range is refused with a sentence; and the
 * comparison of two tokenizers names what differs first. */
#include "tests/engine/vocabulary.h"
#include "engine/tokenizer.c"

#define LONG_64   "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define LONG_1024 LONG_512 LONG_512
#define LONG_512  LONG_64 LONG_64 LONG_64 LONG_64 LONG_64 LONG_64 LONG_64 LONG_64

static const struct test_piece plain[] = {
    PIECE("<unk>", 0, 2), PIECE("<s>", 0, 3), PIECE("</s>", 0, 3), PIECE("\xe2\x96\x81", -1, 1),
    PIECE("a", -2, 1),    PIECE("b", -3, 1),  PIECE("ab", -4, 1)};
enum { N_PLAIN = sizeof plain / sizeof plain[0] };

static struct test_vocabulary vocabulary(struct test_piece *pieces) {
    memcpy(pieces, plain, sizeof plain);
    struct test_vocabulary v = test_vocabulary_of(pieces, N_PLAIN);
    v.bos = 1;
    v.eos = 2;
    v.unknown = 0;
    return v;
}

static void refused(const struct test_vocabulary *v, const char *expected) {
    struct moge_tokenizer *tok;
    struct moge_err err = {0};
    int rc = test_vocabulary_open(v, &tok, &err);
    assert_int_equal(rc, MOGE_FORMAT);
    assert_null(tok);
    assert_string_equal(err.text, expected);
}

#define REFUSED(expected, ...)                                                                     \
    do {                                                                                           \
        struct test_piece pieces[N_PLAIN];                                                         \
        struct test_vocabulary v = vocabulary(pieces);                                             \
        __VA_ARGS__;                                                                               \
        refused(&v, expected);                                                                     \
    } while (0)

static void broken_metadata_is_refused(void **state) {
    (void)state;
    REFUSED("the file lacks metadata key tokenizer.ggml.tokens", v.no_tokens = true);
    REFUSED("the file lacks metadata key tokenizer.ggml.scores", v.no_scores = true);
    REFUSED("the file lacks metadata key tokenizer.ggml.token_type", v.no_types = true);
    REFUSED("tokenizer.ggml.scores has 6 entries; the vocabulary has 7", v.n_scores_less = 1);
    REFUSED("tokenizer.ggml.token_type has 0 entries; the vocabulary has 7", v.n_types_less = 7);
    REFUSED("tokenizer.ggml.tokens has 0 tokens; it must be 1..16777216", v.n = 0);
    REFUSED("tokenizer.ggml.model is \"gpt2\"; only \"llama\" (SentencePiece BPE) is supported",
            v.model = "gpt2");
    REFUSED("tokenizer.ggml.model is \"\\x0A\\xFF\\x22\"; only \"llama\" (SentencePiece BPE) is "
            "supported",
            v.model = "\n\xff\"");
    REFUSED("token 4 has type 7, which does not exist", pieces[4].type = 7);
    REFUSED("token 4 has type 0, which does not exist", pieces[4].type = 0);
    REFUSED("token 4 has type -2147483648, which does not exist", pieces[4].type = INT32_MIN);
    REFUSED("the score of token 5 is not a number", pieces[5].score = __builtin_nanf(""));
    REFUSED("token 5 is not valid UTF-8", pieces[5].text = "\xed\xa0\x80", pieces[5].len = 3);
    REFUSED("token 6 is 1025 bytes long; at most 1024 are possible", pieces[6].text = LONG_1024 "a",
            pieces[6].len = 1025);
    REFUSED("token 4 is a byte token but is spelled \"a\"", pieces[4].type = 6);
    REFUSED("token 4 is a byte token but is spelled \"<0x4g>\"", pieces[4].type = 6,
            pieces[4].text = "<0x4g>", pieces[4].len = 6);
    REFUSED("the vocabulary has byte tokens, but none for byte 0x00", pieces[4].type = 6,
            pieces[4].text = "<0x41>", pieces[4].len = 6);
    REFUSED("the vocabulary has neither byte tokens nor an unknown token", pieces[0].type = 1,
            v.unknown = -1);
    struct test_piece pieces[N_PLAIN];
    struct test_vocabulary v = vocabulary(pieces);
    struct moge_tokenizer *tok;
    struct moge_err err = {0};
    v.no_model = true;
    assert_int_equal(test_vocabulary_open(&v, &tok, &err), MOGE_FORMAT);
    assert_non_null(strstr(err.text, "tokenizer.ggml.model"));
    for (int i = 0; i < 3; i++) {
        v = vocabulary(pieces);
        *(i == 0 ? &v.bos : i == 1 ? &v.eos : &v.unknown) = N_PLAIN;
        assert_int_equal(test_vocabulary_open(&v, &tok, &err), MOGE_FORMAT);
        assert_non_null(strstr(err.text, i == 0   ? "bos_token_id"
                                         : i == 1 ? "eos_token_id"
                                                  : "unknown_token_id"));
    }
}

static void unusual_but_sound_is_opened(void **state) {
    (void)state;
    struct test_piece pieces[N_PLAIN];
    struct test_vocabulary v = vocabulary(pieces);
    struct moge_tokenizer *tok;
    struct moge_err err = {0};
    int32_t ids[8];
    pieces[6].text = LONG_1024; /* the longest there may be */
    pieces[6].len = 1024;
    pieces[5] = pieces[4]; /* twice the same: the first counts */
    pieces[3].len = 0;     /* an empty piece is never found */
    v.unknown = -1;        /* the piece of that type serves */
    v.bos = v.eos = -1;
    TEST_OK(test_vocabulary_open(&v, &tok, &err), err);
    assert_int_equal(moge_tokenizer_n_vocab(tok), N_PLAIN);
    assert_int_equal(moge_tokenizer_bos(tok), -1);
    assert_int_equal(moge_tokenizer_eos(tok), -1);
    assert_false(moge_tokenizer_add_bos(tok)); /* there is none to add */
    assert_int_equal(moge_tokenizer_encode(tok, "aa", 2, MOGE_TOKENIZE_BOS, ids, 8), 3);
    assert_int_equal(ids[0], 0);
    assert_int_equal(ids[1], 4);
    assert_int_equal(ids[2], 4);
    moge_tokenizer_close(tok);
    moge_tokenizer_close(NULL);
}

static void quoted_text_is_short_and_printable(void **state) {
    (void)state;
    char quoted[QUOTED_MAX];
    assert_string_equal(quote(quoted, "a\xc3\xa9\n\"\\\x7f", 7), "a\xc3\xa9\\x0A\\x22\\x5C\\x7F");
    assert_string_equal(quote(quoted, "\xc3", 1), "\\xC3");
    for (int n = 0; n < 200; n++) { /* the cut may fall anywhere */
        char text[800];
        size_t len = 0;
        for (int i = 0; i < n; i++) {
            const char *unit = i % 3 == 0 ? "\xf0\x9f\x98\x80" : i % 3 == 1 ? "x" : "\n";
            memcpy(text + len, unit, strlen(unit));
            len += strlen(unit);
        }
        for (size_t from = 0; from < 8 && from <= len; from++) {
            quote(quoted, text + from, len - from);
            assert_true(strlen(quoted) < QUOTED_MAX);
            assert_true(moge_text_is_utf8(quoted, strlen(quoted)));
        }
    }
}

/* ---- comparison ---- */

static int compare(const struct test_vocabulary *a, const struct test_vocabulary *b,
                   struct moge_err *err) {
    struct moge_tokenizer *x, *y;
    TEST_OK(test_vocabulary_open(a, &x, err), *err);
    TEST_OK(test_vocabulary_open(b, &y, err), *err);
    int rc = moge_tokenizer_compare(x, y, err), reverse = moge_tokenizer_compare(y, x, NULL);
    assert_int_equal(rc, reverse);
    moge_tokenizer_close(x);
    moge_tokenizer_close(y);
    return rc;
}

#define DIFFERS(expected, ...)                                                                     \
    do {                                                                                           \
        struct test_piece left[N_PLAIN], pieces[N_PLAIN + 2] = {0};                                \
        struct test_vocabulary a = vocabulary(left), v = vocabulary(pieces);                       \
        struct moge_err err = {0};                                                                 \
        __VA_ARGS__;                                                                               \
        assert_int_equal(compare(&a, &v, &err), MOGE_INVALID);                                     \
        assert_string_equal(err.text, expected);                                                   \
    } while (0)

static void equal_vocabularies_compare_equal(void **state) {
    (void)state;
    struct test_piece left[N_PLAIN], right[N_PLAIN];
    struct test_vocabulary a = vocabulary(left), b = vocabulary(right);
    struct moge_err err = {0};
    TEST_OK(compare(&a, &b, &err), err);
}

static void comparison_names_the_first_difference(void **state) {
    (void)state;
    DIFFERS("token 5 is \"b\" in one vocabulary and \"\\x0A\" in the other", pieces[5].text = "\n");
    DIFFERS("token 6 is \"ab\" in one vocabulary and \"a\" in the other", pieces[6].len = 1);
    DIFFERS("token 4 (\"a\") has type 1 in one vocabulary and 4 in the other", pieces[4].type = 4);
    DIFFERS("token 4 (\"a\") has score -2 in one vocabulary and -2.5 in the other",
            pieces[4].score = -2.5f, pieces[6].score = 9);
    DIFFERS("one vocabulary has 7 tokens and the other 6: token 6 (\"ab\") is in one only",
            v.n = 6);
    DIFFERS("the BOS token is 1 in one tokenizer and 2 in the other", v.bos = 2);
    DIFFERS("the EOS token is 2 in one tokenizer and -1 in the other", v.eos = -1);
    DIFFERS("the unknown token is 0 in one tokenizer and 4 in the other", v.unknown = 4);
    DIFFERS("add_bos_token is 1 in one tokenizer and 0 in the other", v.add_bos = 0);
    DIFFERS("add_space_prefix is 1 in one tokenizer and 0 in the other", v.add_space_prefix = 0);
    DIFFERS("remove_extra_whitespaces is 0 in one tokenizer and 1 in the other",
            v.remove_extra = 1);
}

static void padding_does_no_harm_but_reachable_tokens_do(void **state) {
    (void)state;
    struct test_piece left[N_PLAIN], pieces[N_PLAIN + 2];
    struct test_vocabulary a = vocabulary(left), v = vocabulary(pieces);
    struct moge_err err = {0};
    v.n = N_PLAIN + 2;
    pieces[N_PLAIN] = (struct test_piece)PIECE("[PAD7]", 0, 5);
    pieces[N_PLAIN + 1] = (struct test_piece)PIECE("", 0, 5);
    TEST_OK(compare(&a, &v, &err), err);
    static const struct test_piece harmful[] = {
        PIECE("bb", 0, 5), /* unused, but merging goes through it */
        PIECE("x", 0, 5),  /* unused, but a character stands for itself */
        PIECE("xy", 0, 1), PIECE("<c>", 0, 3), PIECE("[u]", 0, 4)};
    for (size_t i = 0; i < sizeof harmful / sizeof harmful[0]; i++) {
        pieces[N_PLAIN + 1] = harmful[i];
        assert_int_equal(compare(&a, &v, &err), MOGE_INVALID);
        assert_non_null(strstr(err.text, "token 8"));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(broken_metadata_is_refused),
        cmocka_unit_test(unusual_but_sound_is_opened),
        cmocka_unit_test(quoted_text_is_short_and_printable),
        cmocka_unit_test(equal_vocabularies_compare_equal),
        cmocka_unit_test(comparison_names_the_first_difference),
        cmocka_unit_test(padding_does_no_harm_but_reachable_tokens_do)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
