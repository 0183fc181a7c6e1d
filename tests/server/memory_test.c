/* SPDX-License-Identifier: Apache-2.0 */
#include "server/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "../test.h"

static char place[] = "/tmp/test-memory-XXXXXX";

/* Writes a file below the place, and the directories on the way. */
static void put(const char *name, const char *text) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", place, name);
    for (char *slash = path + sizeof place; (slash = strchr(slash, '/')); slash++) {
        *slash = '\0';
        mkdir(path, 0700);
        *slash = '/';
    }
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static int64_t limit(const char *groups) {
    char path[256];
    put("groups", groups);
    snprintf(path, sizeof path, "%s/groups", place);
    return moge_memory_group_limit(path, place);
}

static void the_least_limit_on_the_way_up_counts(void **state) {
    (void)state;
    put("a/b/memory.max", "max\n");
    put("a/memory.max", "3000\n");
    assert_int_equal(limit("0::/a/b\n"), 3000);
    put("a/b/memory.high", "2000\n");
    assert_int_equal(limit("0::/a/b\n"), 2000);
    assert_int_equal(limit("0::/a\n"), 3000);
    put("memory.max", "1000\n");
    assert_int_equal(limit("0::/a/b\n"), 1000);
    assert_int_equal(limit("0::/\n"), 1000);
    put("memory.max", "max\n");
}

static void older_hierarchies_count_too(void **state) {
    (void)state;
    put("memory/c/memory.limit_in_bytes", "500\n");
    put("memory/memory.limit_in_bytes", "9223372036854771712\n");
    assert_int_equal(limit("2:cpu,cpuacct:/\n4:memory:/c\n0::/\n"), 500);
    assert_int_equal(limit("4:memory:/elsewhere\n"), 9223372036854771712);
}

static void what_cannot_be_read_limits_nothing(void **state) {
    (void)state;
    put("e/memory.max", "-5\n");
    put("f/memory.max", "");
    put("g/memory.max", "99999999999999999999999\n");
    assert_int_equal(limit("0::/e\n0::/f\n0::/g\n0::/none\n"), INT64_MAX);
    assert_int_equal(limit("no line of ours\n\n::\n:\n"), INT64_MAX);
    assert_int_equal(moge_memory_group_limit("/nowhere", "/nowhere"), INT64_MAX);
    assert_true(moge_memory_limit() > 0);
}

static int place_make(void **state) {
    (void)state;
    return mkdtemp(place) ? 0 : -1;
}

static int place_remove(void **state) {
    (void)state;
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", place);
    return system(command) == 0 ? 0 : -1;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_least_limit_on_the_way_up_counts),
        cmocka_unit_test(older_hierarchies_count_too),
        cmocka_unit_test(what_cannot_be_read_limits_nothing),
    };
    return cmocka_run_group_tests(tests, place_make, place_remove);
}
