/* SPDX-License-Identifier: Apache-2.0 */
/* The index against a naive search, on texts that repeat themselves at every scale. */
#include "tests/test.h"
#include "draft/ngram.c"

#include <stdbool.h>

#define CONTEXT 600

/* What ngram.c promises, by looking everywhere. */
static int32_t naive_match(const int32_t *tokens, int32_t n_known) {
    for (int i = 0; i < N_SIZES; i++) {
        int32_t n = sizes[i];
        for (int32_t end = n_known - 2; end >= n - 1 && n_known >= n; end--)
            if (memcmp(tokens + end - n + 1, tokens + n_known - n, (size_t)n * sizeof *tokens) == 0)
                return end;
    }
    return ENTRY_EMPTY;
}

static void check_guess(struct moge_drafter *drafter, int32_t slot, int32_t *tokens,
                        int32_t n_known, int32_t want) {
    int32_t expected[MOGE_DRAFT_LEN_MAX], end = naive_match(tokens, n_known);
    for (int32_t j = 0; end != ENTRY_EMPTY && j < want; j++)
        expected[j] = end + 1 + j < n_known ? tokens[end + 1 + j] : expected[end + 1 + j - n_known];
    int32_t guard = tokens[n_known + want];
    struct moge_span span = {.tokens = tokens, .slot = slot, .n_known = n_known};
    struct moge_span *spans[] = {&span};
    drafter->ops->guess(drafter->self, spans, &want, 1);
    assert_int_equal(span.n_guess, end == ENTRY_EMPTY ? 0 : want);
    assert_memory_equal(tokens + n_known, expected, (size_t)span.n_guess * sizeof *tokens);
    assert_int_equal(tokens[n_known + want], guard);
}

/* Few symbols and copied passages: matches of every length, at every distance. */
static void text_grow(struct test_rng *rng, int32_t *tokens, int32_t n, int32_t n_symbols) {
    for (int32_t i = 0; i < n;) {
        int32_t from = i > 8 ? test_below(rng, i) : 0, len = 1 + test_below(rng, 12);
        bool copy = i > 8 && test_below(rng, 3) == 0;
        for (int32_t j = 0; j < len && i < n; j++, i++)
            tokens[i] = copy ? tokens[from + j] : test_below(rng, n_symbols);
    }
}

static void finds_what_a_naive_search_finds(void **state) {
    (void)state;
    struct moge_drafter drafter;
    struct moge_err err;
    TEST_OK(moge_draft_ngram_new(&drafter, 3, CONTEXT, &err), err);
    struct test_rng rng = test_rng_init(1);
    int32_t n_found = 0;
    for (int round = 0; round < 60; round++) {
        int32_t text[CONTEXT + 64], tokens[CONTEXT + 64], slot = round % 3;
        text_grow(&rng, text, CONTEXT + 64, 2 + test_below(&rng, 40));
        memcpy(tokens, text, sizeof tokens);
        int32_t n_known = 1;
        while (n_known < CONTEXT) {
            check_guess(&drafter, slot, tokens, n_known, 1 + test_below(&rng, MOGE_DRAFT_LEN_MAX));
            n_found += naive_match(tokens, n_known) != ENTRY_EMPTY;
            /* Guesses written in place must not get into the index: the text decides otherwise. */
            memcpy(tokens, text, sizeof tokens);
            n_known += 1 + (test_below(&rng, 8) == 0 ? test_below(&rng, 40) : 0);
        }
        drafter.ops->forget(drafter.self, slot);
    }
    assert_true(n_found > 5000);
    drafter.ops->free(drafter.self);
}

static void a_repetition_goes_on_repeating(void **state) {
    (void)state;
    struct moge_drafter drafter;
    struct moge_err err;
    TEST_OK(moge_draft_ngram_new(&drafter, 1, CONTEXT, &err), err);
    int32_t tokens[32] = {7, 8, 7, 8, 7}, want = 6;
    struct moge_span span = {.tokens = tokens, .n_known = 5}, *spans[] = {&span};
    drafter.ops->guess(drafter.self, spans, &want, 1);
    const int32_t expected[] = {8, 7, 8, 7, 8, 7};
    assert_int_equal(span.n_guess, 6);
    assert_memory_equal(tokens + 5, expected, sizeof expected);
    drafter.ops->free(drafter.self);
}

static void a_reused_slot_remembers_nothing(void **state) {
    (void)state;
    struct moge_drafter drafter;
    struct moge_err err;
    TEST_OK(moge_draft_ngram_new(&drafter, 2, CONTEXT, &err), err);
    int32_t a[32] = {1, 2, 3, 4, 1, 2, 3}, b[32] = {9, 1, 2}, want = 2;
    struct moge_span span = {.tokens = a, .slot = 1, .n_known = 7}, *spans[] = {&span};
    drafter.ops->guess(drafter.self, spans, &want, 1);
    assert_int_equal(span.n_guess, 2);
    drafter.ops->forget(drafter.self, 1);
    span = (struct moge_span){.tokens = b, .slot = 1, .n_known = 3};
    drafter.ops->guess(drafter.self, spans, &want, 1);
    assert_int_equal(span.n_guess, 0);
    /* Even when nobody said that the sequence has changed, a shorter one is noticed. */
    span = (struct moge_span){.tokens = a, .slot = 1, .n_known = 7};
    drafter.ops->guess(drafter.self, spans, &want, 1);
    span = (struct moge_span){.tokens = b, .slot = 1, .n_known = 3};
    drafter.ops->guess(drafter.self, spans, &want, 1);
    assert_int_equal(span.n_guess, 0);
    /* A span that wants nothing costs nothing and gets nothing. */
    want = 0;
    span = (struct moge_span){.tokens = a, .slot = 0, .n_known = 7};
    drafter.ops->guess(drafter.self, spans, &want, 1);
    assert_int_equal(span.n_guess, 0);
    drafter.ops->free(drafter.self);
}

static void bad_sizes_are_refused(void **state) {
    (void)state;
    struct moge_drafter drafter;
    struct moge_err err = {0};
    assert_int_equal(moge_draft_ngram_new(&drafter, 0, 100, &err), MOGE_INVALID);
    assert_int_equal(moge_draft_ngram_new(&drafter, 4, 0, &err), MOGE_INVALID);
    assert_int_equal(moge_draft_ngram_new(&drafter, INT32_MAX, 1 << 28, &err), MOGE_NOMEM);
    assert_non_null(strstr(err.text, "n-gram"));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(finds_what_a_naive_search_finds),
                                       cmocka_unit_test(a_repetition_goes_on_repeating),
                                       cmocka_unit_test(a_reused_slot_remembers_nothing),
                                       cmocka_unit_test(bad_sizes_are_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
