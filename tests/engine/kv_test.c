/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/test.h"

#include "engine/kv.c"
#include "moge/siphash.h"

/* The index with a hash that collides nearly always, where a test wants that. */
static bool hash_is_weak;
static uint64_t siphash_hooked(const uint64_t key[2], const void *data, size_t len) {
    uint64_t hash = moge_siphash(key, data, len);
    return hash_is_weak ? hash & 1 : hash;
}
#define moge_siphash siphash_hooked
#include "engine/kv_prefix.c"
#undef moge_siphash

static struct moge_kv *kv_make(int32_t n_pages, int32_t n_slots, int32_t per_slot) {
    struct moge_kv *kv = NULL;
    struct moge_err err;
    struct moge_kv_options options = {n_pages, n_slots, per_slot, true};
    TEST_OK(moge_kv_new(&kv, &options, &err), err);
    return kv;
}

static void reserve_is_all_or_nothing(void **state) {
    (void)state;
    struct moge_kv *kv = kv_make(5, 3, 4);
    int32_t a = moge_kv_slot_take(kv), b = moge_kv_slot_take(kv);
    assert_int_equal(moge_kv_reserve(kv, a, 33), 0);
    assert_int_equal(moge_kv_slot_pages(kv, a), 3);
    assert_int_equal(moge_kv_reserve(kv, a, 10), 0); /* never shrinks */
    assert_int_equal(moge_kv_slot_pages(kv, a), 3);
    assert_int_equal(moge_kv_reserve(kv, b, 48), MOGE_BUSY);
    assert_int_equal(moge_kv_slot_pages(kv, b), 0);
    assert_int_equal(moge_kv_reserve(kv, b, 32), 0);
    assert_int_equal(moge_kv_pages_free(kv), 0);
    assert_int_equal(moge_kv_reserve(kv, a, 65), MOGE_LIMIT);
    moge_kv_check(kv);
    moge_kv_truncate(kv, a, 17);
    assert_int_equal(moge_kv_slot_pages(kv, a), 2);
    assert_int_equal(moge_kv_slot_take(kv), 2);
    assert_int_equal(moge_kv_slot_take(kv), MOGE_BUSY);
    moge_kv_slot_give(kv, b);
    assert_int_equal(moge_kv_pages_free(kv), 3);
    moge_kv_check(kv);
    moge_kv_free(kv);
    moge_kv_free(NULL);
}

static void shared_pages_outlive_their_first_owner(void **state) {
    (void)state;
    struct moge_kv *kv = kv_make(8, 3, 8);
    int32_t a = moge_kv_slot_take(kv), b = moge_kv_slot_take(kv);
    assert_int_equal(moge_kv_reserve(kv, a, 40), 0);
    assert_int_equal(moge_kv_share(kv, a, b, 40), 32);
    assert_int_equal(moge_kv_pages_free(kv), 5);
    assert_int_equal(moge_kv_table(kv, a)[1], moge_kv_table(kv, b)[1]);
    moge_kv_check(kv);
    moge_kv_slot_give(kv, a);
    assert_int_equal(moge_kv_pages_free(kv), 6);
    moge_kv_check(kv);
    moge_kv_slot_give(kv, b);
    assert_int_equal(moge_kv_pages_free(kv), 8);
    moge_kv_check(kv);
    moge_kv_free(kv);
}

/* ---- the prefix cache, by hand ---- */

static int32_t open_slot(struct moge_kv *kv, const char *salt, const int32_t *tokens, int32_t n,
                         int32_t n_hit) {
    int32_t slot = moge_kv_slot_take(kv);
    assert_true(slot >= 0);
    assert_int_equal(moge_kv_attach(kv, slot, salt, strlen(salt), tokens, n), n_hit);
    return slot;
}

static void count(int32_t *tokens, int32_t n) {
    for (int32_t i = 0; i < n; i++)
        tokens[i] = i;
}

/* A slot that has computed and published tokens [n], in a pager that knew none of them. */
static int32_t open_published(struct moge_kv *kv, const int32_t *tokens, int32_t n) {
    int32_t slot = open_slot(kv, "", tokens, n, 0);
    assert_int_equal(moge_kv_reserve(kv, slot, n), 0);
    moge_kv_publish(kv, slot, tokens, n);
    return slot;
}

static void published_pages_are_found_again(void **state) {
    (void)state;
    struct moge_kv *kv = kv_make(6, 3, 6);
    int32_t tokens[64];
    count(tokens, 64);
    int32_t a = open_slot(kv, "", tokens, 64, 0);
    assert_int_equal(moge_kv_reserve(kv, a, 50), 0);
    moge_kv_publish(kv, a, tokens, 50);
    int32_t first = moge_kv_table(kv, a)[0];
    moge_kv_slot_give(kv, a);
    moge_kv_check(kv);
    struct moge_kv_stats stats;
    moge_kv_stats(kv, &stats);
    assert_int_equal(stats.n_cached, 3);
    assert_int_equal(stats.n_free, 3);
    assert_int_equal(moge_kv_pages_free(kv), 6); /* cached pages can be taken */
    a = open_slot(kv, "", tokens, 47, 32);       /* the third page is not wanted whole */
    assert_int_equal(moge_kv_table(kv, a)[0], first);
    int32_t b = open_slot(kv, "other tenant", tokens, 48, 0);
    tokens[17] = -1;
    int32_t c = open_slot(kv, "", tokens, 48, 16);
    moge_kv_check(kv);
    moge_kv_slot_give(kv, a);
    moge_kv_slot_give(kv, b);
    moge_kv_slot_give(kv, c);
    moge_kv_free(kv);
}

static void the_cache_gives_way_leaves_first(void **state) {
    (void)state;
    struct moge_kv *kv = kv_make(4, 2, 4);
    int32_t tokens[64];
    count(tokens, 64);
    int32_t a = open_published(kv, tokens, 64);
    moge_kv_slot_give(kv, a);
    int32_t b = moge_kv_slot_take(kv);
    assert_int_equal(moge_kv_reserve(kv, b, 20), 0);
    moge_kv_check(kv);
    a = open_slot(kv, "", tokens, 64, 32); /* two pages were taken: the last two */
    assert_int_equal(moge_kv_reserve(kv, a, 33), MOGE_BUSY);
    struct moge_kv_stats stats;
    moge_kv_stats(kv, &stats);
    assert_int_equal(stats.n_evicted, 2);
    assert_int_equal(stats.n_used, 4);
    moge_kv_free(kv);
}

static void equal_pages_become_one(void **state) {
    (void)state;
    struct moge_kv *kv = kv_make(8, 2, 4);
    int32_t tokens[64];
    count(tokens, 64);
    int32_t a = open_slot(kv, "", tokens, 64, 0), b = open_slot(kv, "", tokens, 64, 0);
    assert_int_equal(moge_kv_reserve(kv, a, 40), 0);
    assert_int_equal(moge_kv_reserve(kv, b, 40), 0);
    moge_kv_publish(kv, a, tokens, 40);
    assert_int_equal(moge_kv_pages_free(kv), 2);
    moge_kv_publish(kv, b, tokens, 40);
    assert_int_equal(moge_kv_pages_free(kv), 4);
    assert_memory_equal(moge_kv_table(kv, a), moge_kv_table(kv, b), 2 * sizeof(int32_t));
    assert_int_not_equal(moge_kv_table(kv, a)[2], moge_kv_table(kv, b)[2]);
    moge_kv_check(kv);
    moge_kv_free(kv);
}

static void without_a_cache_nothing_is_kept(void **state) {
    (void)state;
    struct moge_kv *kv = NULL;
    struct moge_err err;
    struct moge_kv_options options = {4, 2, 4, false};
    TEST_OK(moge_kv_new(&kv, &options, &err), err);
    int32_t tokens[32];
    count(tokens, 32);
    int32_t a = open_published(kv, tokens, 32);
    moge_kv_slot_give(kv, a);
    open_slot(kv, "", tokens, 32, 0);
    moge_kv_check(kv);
    moge_kv_free(kv);
}

/* ---- random operations ---- */

enum { SLOTS = 6, PAGES = 20, PER_SLOT = 9, LEN = PER_SLOT * MOGE_PAGE_TOKENS };

/* Sequences that share beginnings, and what a model would have written into the pages: for every
 * position a hash of the history up to it. */
struct rig {
    struct moge_kv *kv;
    struct test_rng rng;
    uint64_t cells[PAGES][MOGE_PAGE_TOKENS];
    bool taken[SLOTS];
    int32_t tokens[SLOTS][LEN], n_computed[SLOTS];
    int64_t n_hit;
};

static uint64_t history_hash(const int32_t *tokens, int32_t n) {
    uint64_t hash = 1;
    for (int32_t i = 0; i < n; i++)
        hash = (hash ^ (uint64_t)tokens[i]) * 0x9e3779b97f4a7c15u + 1;
    return hash;
}

static uint64_t *cell_of(struct rig *rig, int32_t slot, int32_t pos) {
    int32_t page = moge_kv_table(rig->kv, slot)[pos / MOGE_PAGE_TOKENS];
    return &rig->cells[page][pos % MOGE_PAGE_TOKENS];
}

static void check_contents(struct rig *rig) {
    moge_kv_check(rig->kv);
    for (int32_t slot = 0; slot < SLOTS; slot++)
        for (int32_t pos = 0; rig->taken[slot] && pos < rig->n_computed[slot]; pos++)
            assert_true(*cell_of(rig, slot, pos) == history_hash(rig->tokens[slot], pos + 1));
}

/* One of three texts, from a random position on something else. */
static void rig_open(struct rig *rig) {
    int slot = moge_kv_slot_take(rig->kv);
    if (slot < 0)
        return;
    struct test_rng text = test_rng_init((uint64_t)test_below(&rig->rng, 3));
    int32_t n_common = test_below(&rig->rng, LEN);
    for (int32_t i = 0; i < LEN; i++)
        rig->tokens[slot][i] = test_below(i < n_common ? &text : &rig->rng, 3);
    rig->taken[slot] = true;
    rig->n_computed[slot] = 0;
    if (test_below(&rig->rng, 8) == 0)
        return; /* never attached: publishes nothing */
    const char *salt = test_below(&rig->rng, 4) ? "" : "salt";
    rig->n_computed[slot] = moge_kv_attach(rig->kv, slot, salt, strlen(salt), rig->tokens[slot],
                                           test_below(&rig->rng, LEN));
    rig->n_hit += rig->n_computed[slot];
}

/* Room, and perhaps rows that are computed and published. */
static void rig_extend(struct rig *rig, int32_t slot, int32_t n) {
    int32_t n_pages = moge_kv_slot_pages(rig->kv, slot), n_free = moge_kv_pages_free(rig->kv);
    if (moge_kv_reserve(rig->kv, slot, n) != 0) {
        assert_int_equal(moge_kv_slot_pages(rig->kv, slot), n_pages);
        assert_int_equal(moge_kv_pages_free(rig->kv), n_free);
        return;
    }
    assert_true(moge_kv_slot_pages(rig->kv, slot) >= moge_kv_pages_for(n));
    for (; rig->n_computed[slot] < n; rig->n_computed[slot]++) {
        int32_t pos = rig->n_computed[slot];
        const struct moge_kv_page *page =
            &rig->kv->pages[moge_kv_table(rig->kv, slot)[pos / MOGE_PAGE_TOKENS]];
        assert_true(page->refs == 1 && !page->indexed); /* nobody else's to be written */
        *cell_of(rig, slot, pos) = history_hash(rig->tokens[slot], pos + 1);
    }
    if (test_below(&rig->rng, 2))
        moge_kv_publish(rig->kv, slot, rig->tokens[slot],
                        test_below(&rig->rng, rig->n_computed[slot] + 1));
}

static void rig_truncate(struct rig *rig, int32_t slot, int32_t n) {
    /* A page that others hold or may find is not written again: it stays whole or goes. */
    const int32_t *table = moge_kv_table(rig->kv, slot);
    int32_t i = n / MOGE_PAGE_TOKENS;
    if (i < moge_kv_slot_pages(rig->kv, slot) &&
        (rig->kv->pages[table[i]].indexed || rig->kv->pages[table[i]].refs > 1))
        n = i * MOGE_PAGE_TOKENS;
    moge_kv_truncate(rig->kv, slot, n);
    assert_true(moge_kv_slot_pages(rig->kv, slot) <= moge_kv_pages_for(n));
    if (rig->n_computed[slot] > n)
        rig->n_computed[slot] = n;
}

static void rig_share(struct rig *rig, int32_t source, int32_t target, int32_t n) {
    if (source == target || !rig->taken[target] || moge_kv_slot_pages(rig->kv, target) > 0)
        return;
    n = n < rig->n_computed[source] ? n : rig->n_computed[source];
    memcpy(rig->tokens[target], rig->tokens[source], sizeof rig->tokens[source]);
    rig->n_computed[target] = moge_kv_share(rig->kv, source, target, n);
}

static void random_operation(struct rig *rig) {
    int32_t slot = test_below(&rig->rng, SLOTS), n = test_below(&rig->rng, LEN);
    int action = test_below(&rig->rng, 6);
    if (action == 0)
        rig_open(rig);
    else if (!rig->taken[slot])
        return;
    else if (action <= 2)
        rig_extend(rig, slot, n);
    else if (action == 3)
        rig_truncate(rig, slot, n);
    else if (action == 4) {
        moge_kv_slot_give(rig->kv, slot);
        rig->taken[slot] = false;
    } else
        rig_share(rig, slot, test_below(&rig->rng, SLOTS), n);
}

/* Whatever the order of operations, pages are conserved and hold what they are known for. */
static void random_operations(void) {
    static struct rig rig;
    int64_t n_hit = 0;
    for (uint64_t seed = 0; seed < 60; seed++) {
        rig = (struct rig){.kv = kv_make(PAGES, SLOTS, PER_SLOT), .rng = test_rng_init(seed)};
        for (int i = 0; i < 400; i++) {
            random_operation(&rig);
            check_contents(&rig);
        }
        for (int32_t i = 0; i < SLOTS; i++)
            if (rig.taken[i])
                moge_kv_slot_give(rig.kv, i);
        assert_int_equal(moge_kv_pages_free(rig.kv), PAGES);
        moge_kv_check(rig.kv);
        moge_kv_free(rig.kv);
        n_hit += rig.n_hit;
    }
    assert_true(n_hit > 10000); /* else nothing was shown */
}

static void random_operations_keep_pages_and_contents(void **state) {
    (void)state;
    random_operations();
}

static void collisions_serve_nothing_wrong(void **state) {
    (void)state;
    hash_is_weak = true;
    random_operations();
    hash_is_weak = false;
}

static void bad_sizes_are_refused(void **state) {
    (void)state;
    struct moge_kv *kv = NULL;
    struct moge_err err = {0};
    assert_int_equal(moge_kv_new(&kv, &(struct moge_kv_options){0, 1, 1, true}, &err),
                     MOGE_INVALID);
    assert_int_equal(moge_kv_new(&kv, &(struct moge_kv_options){1, 0, 1, true}, &err),
                     MOGE_INVALID);
    assert_int_equal(moge_kv_new(&kv, &(struct moge_kv_options){1, 1, 0, true}, &err),
                     MOGE_INVALID);
    assert_null(kv);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(reserve_is_all_or_nothing),
                                       cmocka_unit_test(shared_pages_outlive_their_first_owner),
                                       cmocka_unit_test(published_pages_are_found_again),
                                       cmocka_unit_test(the_cache_gives_way_leaves_first),
                                       cmocka_unit_test(equal_pages_become_one),
                                       cmocka_unit_test(without_a_cache_nothing_is_kept),
                                       cmocka_unit_test(random_operations_keep_pages_and_contents),
                                       cmocka_unit_test(collisions_serve_nothing_wrong),
                                       cmocka_unit_test(bad_sizes_are_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
