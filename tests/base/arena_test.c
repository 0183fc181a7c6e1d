/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/test.h"
#include "engine/base/arena.c"

static void take_aligns_and_bounds(void **state) {
    (void)state;
    struct moge_arena arena = {0};
    struct moge_err err;
    TEST_OK(moge_arena_init(&arena, 10000, &err), err);
    char *a = moge_arena_take(&arena, 3, 5);
    char *b = moge_arena_take(&arena, 100, 8);
    assert_int_equal((uintptr_t)a % MOGE_ARENA_ALIGN, 0);
    assert_int_equal((uintptr_t)b % MOGE_ARENA_ALIGN, 0);
    assert_true(b >= a + 15);
    memset(b, 1, 800);
    size_t mark = moge_arena_mark(&arena);
    assert_null(moge_arena_take(&arena, 1, arena.cap_bytes));
    assert_null(moge_arena_take(&arena, SIZE_MAX, 2));
    assert_null(moge_arena_take(&arena, SIZE_MAX / 2, 2));
    assert_non_null(moge_arena_take(&arena, 1, 64));
    moge_arena_reset(&arena, mark);
    assert_int_equal(arena.used_bytes, mark);
    moge_arena_fini(&arena);
    moge_arena_fini(&arena);
}

static void absurd_size_is_an_error(void **state) {
    (void)state;
    struct moge_arena arena = {0};
    struct moge_err err = {0};
    assert_int_equal(moge_arena_init(&arena, SIZE_MAX - 10, &err), MOGE_NOMEM);
    assert_null(arena.base);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(take_aligns_and_bounds),
                                       cmocka_unit_test(absurd_size_is_an_error)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
