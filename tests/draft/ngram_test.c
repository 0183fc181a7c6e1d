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
    struct moge_span span = {.tokens = tokens, .slot = slot, .n_known = n_known};
    struct moge_lookup found;
    drafter->ops->look(drafter->self, &span, want, &found);
    assert_int_equal(found.n_known, n_known);
    assert_int_equal(found.n, end == ENTRY_EMPTY ? 0 : want);
    assert_memory_equal(found.tokens, expected, (size_t)found.n * sizeof *tokens);
    int32_t len = 0;
    while (end != ENTRY_EMPTY && len < MOGE_MATCH_LEN_MAX && len <= end &&
           tokens[end - len] == tokens[n_known - 1 - len])
        len++;
    if (end != ENTRY_EMPTY)
        assert_int_equal(found.match_len, len);
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

static struct moge_lookup look(struct moge_drafter *drafter, int32_t slot, int32_t *tokens,
                               int32_t n_known, int32_t n_guess, int32_t want) {
    struct moge_span span = {
        .tokens = tokens, .slot = slot, .n_known = n_known, .n_guess = n_guess};
    struct moge_lookup found;
    drafter->ops->look(drafter->self, &span, want, &found);
    return found;
}

static void a_repetition_goes_on_repeating(void **state) {
    (void)state;
    struct moge_drafter drafter;
    struct moge_err err;
    TEST_OK(moge_draft_ngram_new(&drafter, 1, CONTEXT, &err), err);
    int32_t tokens[32] = {7, 8, 7, 8, 7};
    struct moge_lookup found = look(&drafter, 0, tokens, 5, 0, 6);
    const int32_t expected[] = {8, 7, 8, 7, 8, 7};
    assert_int_equal(found.n, 6);
    assert_int_equal(found.match_len, 3);
    assert_memory_equal(found.tokens, expected, sizeof expected);
    drafter.ops->free(drafter.self);
}

/* Guesses that somebody else made are continued, but never become part of the index. */
static void guesses_are_continued(void **state) {
    (void)state;
    struct moge_drafter drafter;
    struct moge_err err;
    TEST_OK(moge_draft_ngram_new(&drafter, 1, CONTEXT, &err), err);
    int32_t tokens[32] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    assert_int_equal(look(&drafter, 0, tokens, 9, 0, 4).n, 0);
    tokens[9] = 3, tokens[10] = 4;
    struct moge_lookup found = look(&drafter, 0, tokens, 9, 2, 3);
    const int32_t expected[] = {5, 6, 7};
    assert_int_equal(found.n, 3);
    assert_int_equal(found.n_known, 11);
    assert_int_equal(found.match_len, 2);
    assert_memory_equal(found.tokens, expected, sizeof expected);
    tokens[9] = 11, tokens[10] = 12, tokens[11] = 3, tokens[12] = 4; /* decided otherwise */
    found = look(&drafter, 0, tokens, 13, 0, 1);
    assert_int_equal(found.n, 1);
    assert_int_equal(found.tokens[0], 5);
    drafter.ops->free(drafter.self);
}

static void a_reused_slot_remembers_nothing(void **state) {
    (void)state;
    struct moge_drafter drafter;
    struct moge_err err;
    TEST_OK(moge_draft_ngram_new(&drafter, 2, CONTEXT, &err), err);
    int32_t a[32] = {1, 2, 3, 4, 1, 2, 3}, b[32] = {9, 1, 2};
    assert_int_equal(look(&drafter, 1, a, 7, 0, 2).n, 2);
    drafter.ops->forget(drafter.self, 1);
    assert_int_equal(look(&drafter, 1, b, 3, 0, 2).n, 0);
    /* Even when nobody said that the sequence has changed, a shorter one is noticed. */
    assert_int_equal(look(&drafter, 1, a, 7, 0, 2).n, 2);
    assert_int_equal(look(&drafter, 1, b, 3, 0, 2).n, 0);
    /* A span that wants nothing gets nothing. */
    assert_int_equal(look(&drafter, 0, a, 7, 0, 0).n, 0);
    drafter.ops->free(drafter.self);
}

#define LONG_CONTEXT 32768

/* Entries looked at for all n-grams that end before n, once the text is indexed. */
static int64_t n_probes_of(struct moge_drafter *drafter, const int32_t *tokens, int32_t n) {
    struct ngram *ngram = drafter->self;
    int64_t n_probes = 0;
    for (int i = 0; i < N_SIZES; i++)
        for (int32_t end = sizes[i] - 1; end < n; end++) {
            const int32_t *gram = tokens + end + 1 - sizes[i];
            int32_t *table = table_of(ngram, &ngram->slots[0], i);
            uint32_t mask = ngram->n_entries - 1, first = hash(gram, sizes[i]) & mask;
            bool found;
            int32_t *entry = find(ngram, table, tokens, gram, sizes[i], &found);
            bool lost = !found && *entry != ENTRY_EMPTY;
            n_probes += lost ? PROBES_MAX : (((uint32_t)(entry - table) - first) & mask) + 1;
        }
    return n_probes;
}

/* A few entries a token, at any length and whatever the text is; the memory is that of the table.
 */
static void thirty_thousand_tokens_cost_a_few_probes_each(void **state) {
    (void)state;
    struct moge_drafter drafter;
    struct moge_err err;
    static int32_t text[LONG_CONTEXT];
    TEST_OK(moge_draft_ngram_new(&drafter, 1, LONG_CONTEXT, &err), err);
    assert_int_equal(((struct ngram *)drafter.self)->n_entries, 2 * LONG_CONTEXT);
    struct test_rng rng = test_rng_init(5);
    for (int kind = 0; kind < 4; kind++) {
        for (int32_t i = 0; i < LONG_CONTEXT; i++)
            text[i] = kind == 0   ? test_below(&rng, 150000) /* nothing repeats */
                      : kind == 1 ? 7                        /* everything does */
                      : kind == 2 ? i % 1000
                                  : i; /* counting: the hashes of neighbours are not neighbours */
        for (int32_t n = 1; n <= LONG_CONTEXT; n++)
            look(&drafter, 0, text, n, 0, MOGE_DRAFT_LEN_MAX);
        int64_t n_probes = n_probes_of(&drafter, text, LONG_CONTEXT);
        drafter.ops->forget(drafter.self, 0);
        if (n_probes > 2ll * N_SIZES * LONG_CONTEXT)
            fail_msg("text %d: %.1f probes a token", kind, (double)n_probes / LONG_CONTEXT);
    }
    drafter.ops->free(drafter.self);
}

/* A prompt made of n-grams that all belong in one place of the table: the search is bounded, and
 * what is found is still true. */
static void a_hostile_prompt_costs_no_more(void **state) {
    (void)state;
    struct moge_drafter drafter;
    struct moge_err err;
    enum { N = 4096 };
    static int32_t tokens[2 * N + MOGE_DRAFT_LEN_MAX];
    TEST_OK(moge_draft_ngram_new(&drafter, 1, 2 * N, &err), err);
    uint32_t mask = ((struct ngram *)drafter.self)->n_entries - 1;
    int32_t id = 0;
    for (int32_t i = 0; i < N; i++) { /* pairs (0, id) whose hashes agree in the table's bits */
        int32_t pair[2] = {0, 0};
        do
            pair[1] = ++id;
        while ((hash(pair, 2) & mask) > mask / 256);
        tokens[2 * i] = 0;
        tokens[2 * i + 1] = id;
    }
    for (int32_t n = 1; n <= 2 * N; n++) {
        struct moge_lookup found = look(&drafter, 0, tokens, n, 0, 1);
        if (found.n > 0)
            assert_true(found.match_len >= 2);
    }
    /* The pairs do crowd, else this test tests nothing. */
    int64_t n_probes = n_probes_of(&drafter, tokens, 2 * N);
    assert_true(n_probes > N * PROBES_MAX / 2);
    assert_true(n_probes <= 2ll * N * N_SIZES * PROBES_MAX);
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
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_what_a_naive_search_finds),
        cmocka_unit_test(a_repetition_goes_on_repeating),
        cmocka_unit_test(guesses_are_continued),
        cmocka_unit_test(thirty_thousand_tokens_cost_a_few_probes_each),
        cmocka_unit_test(a_hostile_prompt_costs_no_more),
        cmocka_unit_test(a_reused_slot_remembers_nothing),
        cmocka_unit_test(bad_sizes_are_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
