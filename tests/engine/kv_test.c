/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/test.h"
#include "engine/kv.c"

static struct moge_kv *kv_make(int32_t n_pages, int32_t n_slots, int32_t per_slot) {
    struct moge_kv *kv = NULL;
    struct moge_err err;
    struct moge_kv_options options = {n_pages, n_slots, per_slot};
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

enum { SLOTS = 6, PAGES = 20, PER_SLOT = 9 };

static void reserve_checked(struct moge_kv *kv, int32_t slot, int32_t n_tokens) {
    int32_t n_pages = moge_kv_slot_pages(kv, slot), n_free = moge_kv_pages_free(kv);
    if (moge_kv_reserve(kv, slot, n_tokens) == 0) {
        assert_true(moge_kv_slot_pages(kv, slot) >= moge_kv_pages_for(n_tokens));
        return;
    }
    assert_int_equal(moge_kv_slot_pages(kv, slot), n_pages);
    assert_int_equal(moge_kv_pages_free(kv), n_free);
}

static void random_operation(struct moge_kv *kv, struct test_rng *rng, bool *taken) {
    int32_t slot = test_below(rng, SLOTS), n = test_below(rng, PER_SLOT * 16 + 20);
    int action = test_below(rng, 5);
    if (action == 0) {
        int got = moge_kv_slot_take(kv);
        if (got >= 0)
            taken[got] = true;
    } else if (!taken[slot]) {
        return;
    } else if (action == 1) {
        reserve_checked(kv, slot, n);
    } else if (action == 2) {
        moge_kv_truncate(kv, slot, n);
        assert_true(moge_kv_slot_pages(kv, slot) <= moge_kv_pages_for(n));
    } else if (action == 3) {
        moge_kv_slot_give(kv, slot);
        taken[slot] = false;
    } else {
        int32_t other = test_below(rng, SLOTS);
        if (other != slot && taken[other] && moge_kv_slot_pages(kv, other) == 0)
            moge_kv_share(kv, slot, other, n);
    }
}

/* Whatever the order of operations, pages are conserved. */
static void random_operations_conserve_pages(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 60; seed++) {
        struct test_rng rng = test_rng_init(seed);
        struct moge_kv *kv = kv_make(PAGES, SLOTS, PER_SLOT);
        bool taken[SLOTS] = {0};
        for (int i = 0; i < 400; i++) {
            random_operation(kv, &rng, taken);
            moge_kv_check(kv);
        }
        for (int32_t i = 0; i < SLOTS; i++)
            if (taken[i])
                moge_kv_slot_give(kv, i);
        assert_int_equal(moge_kv_pages_free(kv), PAGES);
        moge_kv_free(kv);
    }
}

static void bad_sizes_are_refused(void **state) {
    (void)state;
    struct moge_kv *kv = NULL;
    struct moge_err err = {0};
    assert_int_equal(moge_kv_new(&kv, &(struct moge_kv_options){0, 1, 1}, &err), MOGE_INVALID);
    assert_int_equal(moge_kv_new(&kv, &(struct moge_kv_options){1, 0, 1}, &err), MOGE_INVALID);
    assert_int_equal(moge_kv_new(&kv, &(struct moge_kv_options){1, 1, 0}, &err), MOGE_INVALID);
    assert_null(kv);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(reserve_is_all_or_nothing),
                                       cmocka_unit_test(shared_pages_outlive_their_first_owner),
                                       cmocka_unit_test(random_operations_conserve_pages),
                                       cmocka_unit_test(bad_sizes_are_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
