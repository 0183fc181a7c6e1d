/* SPDX-License-Identifier: Apache-2.0 */
/* Encoding: the rules one by one, random text there and back, many threads at once, no memory, and
 * no text that takes more than its share of work.  Equality with SentencePiece is
 * tokenizer_golden's. */
#include "tests/engine/vocabulary.h"

#include <pthread.h>

/* Counts the look-ups of encode.c, the only part of it that could be quadratic. */
static _Thread_local uint64_t n_finds, n_find_bytes;
static int32_t counted_find(const struct moge_tokenizer *tok, const char *text, size_t len);
#define moge_piece_find counted_find
#include "engine/encode.c"
#undef moge_piece_find
int32_t moge_piece_find(const struct moge_tokenizer *tok, const char *text, size_t len);

static int32_t counted_find(const struct moge_tokenizer *tok, const char *text, size_t len) {
    n_finds++;
    n_find_bytes += len;
    return moge_piece_find(tok, text, len);
}

/* ---- memory that runs out ---- */

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *old, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *old, size_t size);

static _Thread_local long allocations_left = -1; /* -1: any number */
static _Thread_local uint64_t n_allocated_bytes;

static bool may_allocate(size_t size) {
    n_allocated_bytes += size;
    if (allocations_left == 0)
        return false;
    allocations_left -= allocations_left > 0;
    return true;
}

void *__wrap_malloc(size_t size) {
    return may_allocate(size) ? __real_malloc(size) : NULL;
}

void *__wrap_calloc(size_t n, size_t size) {
    return may_allocate(n * size) ? __real_calloc(n, size) : NULL;
}

void *__wrap_realloc(void *old, size_t size) {
    return may_allocate(size) ? __real_realloc(old, size) : NULL;
}

/* ---- a small vocabulary ---- */

enum { UNK, BOS, EOS, MARK, A, B, AB, B_A, SPACE_A, USER, USER_LONG, CONTROL, CONTROL_LONG, MIXED };

static const struct test_piece small[] = {
    PIECE("<unk>", 0, 2),        PIECE("<s>", 0, 3),    PIECE("</s>", 0, 3),
    PIECE("\xe2\x96\x81", 0, 1), PIECE("a", 0, 1),      PIECE("b", 0, 1),
    PIECE("ab", -1, 1),          PIECE("ba", -1, 1),    PIECE("\xe2\x96\x81\x61", -2, 1),
    PIECE("[u]", 0, 4),          PIECE("[u][v]", 0, 4), PIECE("<c>", 0, 3),
    PIECE("<c><d>", 0, 3),       PIECE("<s>[u]", 0, 4),
};

static struct moge_tokenizer *small_open(int add_space_prefix) {
    struct test_vocabulary v = test_vocabulary_of(small, sizeof small / sizeof small[0]);
    v.bos = BOS;
    v.eos = EOS;
    v.add_space_prefix = add_space_prefix;
    struct moge_tokenizer *tok;
    struct moge_err err;
    TEST_OK(test_vocabulary_open(&v, &tok, &err), err);
    return tok;
}

static void expect(const struct moge_tokenizer *tok, const char *text, int flags, int n,
                   const int32_t *expected) {
    int32_t ids[64];
    int got = moge_tokenizer_encode(tok, text, strlen(text), flags, ids, 64);
    if (got != n || memcmp(ids, expected, (size_t)n * sizeof *ids) != 0)
        fail_msg("\"%s\": %d tokens (%d %d %d ...), expected %d (%d %d %d ...)", text, got, ids[0],
                 ids[1], ids[2], n, expected[0], n > 1 ? expected[1] : 0, n > 2 ? expected[2] : 0);
}

#define EXPECT(tok, text, flags, ...)                                                              \
    expect(tok, text, flags, (int)(sizeof(int32_t[]){__VA_ARGS__} / sizeof(int32_t)),              \
           (const int32_t[]){__VA_ARGS__})

static void merges_go_by_score_then_leftmost(void **state) {
    (void)state;
    struct moge_tokenizer *tok = small_open(1);
    EXPECT(tok, "a", 0, SPACE_A);
    EXPECT(tok, "ab", 0, MARK, AB);      /* the better score wins over the leftmost */
    EXPECT(tok, "bab", 0, MARK, B_A, B); /* on ties the leftmost */
    EXPECT(tok, "aa  a", 0, SPACE_A, A, MARK, SPACE_A);
    moge_tokenizer_close(tok);
    tok = small_open(0);
    EXPECT(tok, "a", 0, A);
    EXPECT(tok, " a", 0, SPACE_A);
    moge_tokenizer_close(tok);
}

static void unknown_runs_are_one_token(void **state) {
    (void)state;
    struct moge_tokenizer *tok = small_open(0);
    EXPECT(tok, "xyz", 0, UNK);
    EXPECT(tok, "xaxx", 0, UNK, A, UNK);
    EXPECT(tok, "x[u]y", 0, UNK, USER, UNK);
    moge_tokenizer_close(tok);
}

static void user_pieces_come_first_and_never_merge(void **state) {
    (void)state;
    struct moge_tokenizer *tok = small_open(0);
    EXPECT(tok, "a[u]b", 0, A, USER, B);
    EXPECT(tok, "[u][v][u]", 0, USER_LONG, USER); /* the longest */
    EXPECT(tok, "<s>[u]", 0, MIXED);
    moge_tokenizer_close(tok);
}

static void control_pieces_need_the_flag(void **state) {
    (void)state;
    struct moge_tokenizer *tok = small_open(1);
    EXPECT(tok, "<s>a", 0, MARK, UNK, A); /* ordinary text: three unknown characters */
    EXPECT(tok, "<s>a", MOGE_TOKENIZE_SPECIAL, BOS, SPACE_A);
    EXPECT(tok, "<c><d><c>", MOGE_TOKENIZE_SPECIAL, CONTROL_LONG, CONTROL);
    EXPECT(tok, "a<c>b", MOGE_TOKENIZE_SPECIAL, SPACE_A, CONTROL, MARK, B);
    EXPECT(tok, "<s>[u]", MOGE_TOKENIZE_SPECIAL, MARK, MIXED); /* longer than <s> */
    EXPECT(tok, "<s", MOGE_TOKENIZE_SPECIAL, MARK, UNK);
    EXPECT(tok, "x<c>y", MOGE_TOKENIZE_SPECIAL, MARK, UNK, CONTROL, MARK, UNK);
    moge_tokenizer_close(tok);
}

static void bos_when_asked_for_and_expected(void **state) {
    (void)state;
    struct moge_tokenizer *tok = small_open(1);
    EXPECT(tok, "a", MOGE_TOKENIZE_BOS, BOS, SPACE_A);
    EXPECT(tok, "", MOGE_TOKENIZE_BOS, BOS);
    EXPECT(tok, "a<c>", MOGE_TOKENIZE_BOS | MOGE_TOKENIZE_SPECIAL, BOS, SPACE_A, CONTROL);
    moge_tokenizer_close(tok);
    struct test_vocabulary v = test_vocabulary_of(small, sizeof small / sizeof small[0]);
    struct moge_err err;
    v.bos = BOS;
    v.add_bos = 0;
    TEST_OK(test_vocabulary_open(&v, &tok, &err), err);
    EXPECT(tok, "a", MOGE_TOKENIZE_BOS, SPACE_A);
    moge_tokenizer_close(tok);
}

static void cap_is_respected(void **state) {
    (void)state;
    struct moge_tokenizer *tok = small_open(1);
    int32_t ids[8];
    for (int cap = 0; cap < 8; cap++) { /* "ab ab ab" is six tokens */
        memset(ids, 0x55, sizeof ids);
        int n = moge_tokenizer_encode(tok, "ab ab ab", 8, 0, ids, cap);
        assert_int_equal(n, cap < 6 ? MOGE_LIMIT : 6);
        for (int i = cap; i < 8; i++)
            assert_int_equal(ids[i], 0x55555555);
    }
    assert_int_equal(moge_tokenizer_encode(tok, "", 0, 0, NULL, 0), 0);
    assert_int_equal(moge_tokenizer_encode(tok, NULL, 0, MOGE_TOKENIZE_SPECIAL, ids, 8), 0);
    assert_int_equal(moge_tokenizer_encode(tok, "", (size_t)1 << 30, 0, ids, 8), MOGE_LIMIT);
    moge_tokenizer_close(tok);
}

static void only_utf8_is_text(void **state) {
    (void)state;
    struct moge_tokenizer *tok = test_model_open("tests/golden/tiny-tokenizer.model");
    static const char *const good[] = {"\x7f",         "\xc2\x80",         "\xdf\xbf",
                                       "\xe0\xa0\x80", "\xed\x9f\xbf",     "\xee\x80\x80",
                                       "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"};
    static const char *const bad[] = {"\x80",
                                      "\xbf",
                                      "\xc0\x80",
                                      "\xc1\xbf",
                                      "\xc2",
                                      "\xc2\x41",
                                      "\xe0\x9f\xbf",
                                      "\xe0\xa0",
                                      "\xed\xa0\x80",
                                      "\xed\xbf\xbf",
                                      "\xe1\x80\xc0",
                                      "\xf0\x8f\xbf\xbf",
                                      "\xf0\x90\x80",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "\xff",
                                      "\xfe",
                                      "\xf8\x88\x80\x80\x80"};
    int32_t ids[64];
    char text[16];
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        assert_true(moge_tokenizer_encode(tok, good[i], strlen(good[i]), 0, ids, 64) > 0);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        for (int place = 0; place < 3; place++) { /* alone, at the end, in the middle */
            int n = snprintf(text, sizeof text, "%s%s%s", place ? "ok" : "", bad[i],
                             place == 2 ? "ok" : "");
            assert_int_equal(moge_tokenizer_encode(tok, text, (size_t)n, 0, ids, 64), MOGE_INVALID);
        }
    moge_tokenizer_close(tok);
}

/* ---- there and back ---- */

static size_t put_char(char *out, uint32_t c) {
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    int n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (int i = n - 1; i > 0; i--, c >>= 6)
        out[i] = (char)(0x80 | (c & 0x3f));
    out[0] = (char)(lead[n] | c);
    return (size_t)n;
}

/* Random text without U+2581, which SentencePiece takes for a space. */
static size_t random_text(char *text, struct test_rng *rng) {
    static const uint32_t tops[] = {0x80, 0x80, 0x80, 0x250, 0x800, 0x3100, 0xffff, 0x10ffff};
    static const char *const words[] = {" ",         "  ",   "the ",    "<s>",     "</s>",
                                        "[unused9]", "\n\n", "select ", "        "};
    size_t len = 0;
    int n = test_below(rng, 40);
    for (int i = 0; i < n; i++) {
        if (test_below(rng, 4) == 0) {
            const char *word = words[test_below(rng, 9)];
            memcpy(text + len, word, strlen(word));
            len += strlen(word);
            continue;
        }
        uint32_t c = (uint32_t)test_below(rng, (int32_t)tops[test_below(rng, 8)] + 1);
        if (c != 0x2581 && (c < 0xd800 || c > 0xdfff))
            len += put_char(text + len, c);
    }
    return len;
}

static size_t decode(const struct moge_tokenizer *tok, const int32_t *ids, int n, char *out) {
    struct moge_detok detok;
    size_t len = 0;
    moge_detok_init(&detok, tok, false);
    for (int i = 0; i < n; i++)
        len += moge_detok_push(&detok, ids[i], out + len);
    return len + moge_detok_finish(&detok, out + len);
}

static void random_text_comes_back(void **state) {
    (void)state;
    static const char *const models[] = {"models/tokenizer.model",
                                         "tests/golden/tiny-tokenizer.model"};
    struct test_rng rng = test_rng_init(21);
    for (int m = 0; m < 2; m++) {
        struct moge_tokenizer *tok = test_model_open(models[m]);
        for (int round = 0; round < 10000; round++) {
            char text[1024], back[2048];
            int32_t ids[2048];
            size_t len = random_text(text, &rng);
            int n = moge_tokenizer_encode(tok, text, len, 0, ids, 2048);
            assert_true(n >= 0);
            size_t n_back = decode(tok, ids, n, back);
            if (n_back != len || memcmp(text, back, len) != 0)
                fail_msg("\"%.*s\" came back as \"%.*s\"", (int)len, text, (int)n_back, back);
        }
        moge_tokenizer_close(tok);
    }
}

/* ---- many threads ---- */

struct shared {
    const struct moge_tokenizer *tok;
    int32_t ids[64][512];
    int n[64];
};

static void *encode_all(void *argument) {
    const struct shared *shared = argument;
    struct test_rng rng = test_rng_init(22);
    for (int round = 0; round < 20; round++) {
        rng = test_rng_init(22);
        for (int i = 0; i < 64; i++) {
            char text[1024];
            int32_t ids[512];
            size_t len = random_text(text, &rng);
            int n = moge_tokenizer_encode(shared->tok, text, len, MOGE_TOKENIZE_SPECIAL, ids, 512);
            if (n != shared->n[i] || memcmp(ids, shared->ids[i], (size_t)n * sizeof *ids) != 0)
                return argument;
        }
    }
    return NULL;
}

static void threads_share_a_tokenizer(void **state) {
    (void)state;
    static struct shared shared;
    struct moge_tokenizer *tok = test_model_open("tests/golden/tiny-tokenizer.model");
    struct test_rng rng = test_rng_init(22);
    shared.tok = tok;
    for (int i = 0; i < 64; i++) {
        char text[1024];
        size_t len = random_text(text, &rng);
        shared.n[i] =
            moge_tokenizer_encode(tok, text, len, MOGE_TOKENIZE_SPECIAL, shared.ids[i], 512);
        assert_true(shared.n[i] >= 0);
    }
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, encode_all, &shared), 0);
    for (int i = 0; i < 4; i++) {
        void *differs;
        pthread_join(threads[i], &differs);
        assert_null(differs);
    }
    moge_tokenizer_close(tok);
}

/* ---- limits ---- */

static void no_memory_is_an_error(void **state) {
    (void)state;
    struct moge_tokenizer *tok = test_model_open("models/tokenizer.model");
    static char text[100000];
    static int32_t ids[100016];
    memset(text, ' ', sizeof text); /* one part, so that scratch grows several times */
    bool succeeded = false;
    long n_allowed = 0;
    for (; !succeeded && n_allowed < 100; n_allowed++) {
        allocations_left = n_allowed;
        int n = moge_tokenizer_encode(tok, text, sizeof text, 0, ids, 100016);
        allocations_left = -1;
        succeeded = n > 0;
        if (!succeeded)
            assert_int_equal(n, MOGE_NOMEM);
    }
    assert_true(succeeded && n_allowed > 5);
    moge_tokenizer_close(tok);
}

/* Work and memory grow as the text does, for the texts that hurt: one long part, all spaces, all
 * newlines, a run that merges up to the longest piece. */
static void work_is_proportional_to_the_text(void **state) {
    (void)state;
    static const char *const units[] = {
        "a", " ", "\n", "ab", "=", "x y", "\xe4\xb8\xad", "\xf0\x9f\x98\x80", "<", "[unused9", "e"};
    struct moge_tokenizer *tok = test_model_open("models/tokenizer.model");
    enum { LEN = 1 << 20 };
    char *text = malloc(LEN + 16);
    int32_t *ids = malloc((LEN + 16) * sizeof *ids);
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        size_t n = strlen(units[i]), len = 0;
        for (; len < LEN; len += n)
            memcpy(text + len, units[i], n);
        n_finds = n_find_bytes = n_allocated_bytes = 0;
        assert_true(moge_tokenizer_encode(tok, text, len, MOGE_TOKENIZE_SPECIAL, ids, LEN + 16) >
                    0);
        /* A neighbourhood is looked up once at first and twice for each merge, then each symbol. */
        assert_true(n_finds <= 4 * (len + 2));
        assert_true(n_find_bytes <= 64 * 4 * (len + 2));
        assert_true(n_allocated_bytes <= 320 * (len + SYMBOLS_FIRST));
    }
    free(text);
    free(ids);
    moge_tokenizer_close(tok);
}

/* Unused pieces "aa", "aaa", ... nest as deep as a piece is long; taking them apart needs no deep
 * stack. */
static void unused_pieces_nest_deeply(void **state) {
    (void)state;
    enum { DEPTH = 1000 };
    static struct test_piece pieces[DEPTH + 2];
    static char text[2 * DEPTH];
    static int32_t ids[2 * DEPTH];
    memset(text, 'a', sizeof text);
    pieces[0] = (struct test_piece)PIECE("<unk>", 0, 2);
    pieces[1] = (struct test_piece)PIECE("a", 0, 1);
    for (int i = 2; i < DEPTH + 2; i++)
        pieces[i] = (struct test_piece){text, (size_t)i, (float)i, 5};
    struct test_vocabulary v = test_vocabulary_of(pieces, DEPTH + 2);
    v.add_space_prefix = 0;
    struct moge_tokenizer *tok;
    struct moge_err err;
    TEST_OK(test_vocabulary_open(&v, &tok, &err), err);
    assert_int_equal(moge_tokenizer_encode(tok, text, sizeof text, 0, ids, 2 * DEPTH), 2 * DEPTH);
    for (int i = 0; i < 2 * DEPTH; i++)
        assert_int_equal(ids[i], 1);
    moge_tokenizer_close(tok);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(merges_go_by_score_then_leftmost),
                                       cmocka_unit_test(unknown_runs_are_one_token),
                                       cmocka_unit_test(user_pieces_come_first_and_never_merge),
                                       cmocka_unit_test(control_pieces_need_the_flag),
                                       cmocka_unit_test(bos_when_asked_for_and_expected),
                                       cmocka_unit_test(cap_is_respected),
                                       cmocka_unit_test(only_utf8_is_text),
                                       cmocka_unit_test(random_text_comes_back),
                                       cmocka_unit_test(threads_share_a_tokenizer),
                                       cmocka_unit_test(no_memory_is_an_error),
                                       cmocka_unit_test(work_is_proportional_to_the_text),
                                       cmocka_unit_test(unused_pieces_nest_deeply)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
