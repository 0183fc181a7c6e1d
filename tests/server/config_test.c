/* SPDX-License-Identifier: Apache-2.0 */
/* Every option from file and command line, what wins, and that what is wrong is named. */
#include "server/config.c"

#include <unistd.h>

#include "../test.h"

static char path[] = "/tmp/test-config-XXXXXX";

static void file_write(const char *text) {
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static int load(struct moge_config *config, struct moge_err *err, const char *const *words) {
    enum moge_config_action action;
    char *argv[16] = {(char *)(uintptr_t) "moged"};
    int argc = 1;
    for (; *words; words++)
        argv[argc++] = (char *)(uintptr_t)*words;
    return moge_config_load(config, argc, argv, &action, err);
}

#define LOAD(config, err, ...) load(config, err, (const char *const[]){__VA_ARGS__, NULL})

static void refused(const char *word, const char *a, const char *b) {
    struct moge_config config;
    struct moge_err err = {0};
    assert_int_not_equal(LOAD(&config, &err, a, b), 0);
    if (!strstr(err.text, word))
        fail_msg("\"%s\" does not say \"%s\"", err.text, word);
}

static void test_defaults(void **state) {
    (void)state;
    struct moge_config config;
    moge_config_init(&config);
    assert_string_equal(config.model, "");
    assert_string_equal(config.draft, "auto");
    assert_int_equal(config.n_listen, 0);
    assert_int_equal(config.max_message_bytes, 4 << 20);
    assert_int_equal(config.stall_timeout_us, 60000000);
    assert_int_equal(config.speculation, MOGE_CONFIG_SPECULATION_AUTO);
    assert_int_equal(config.socket_mode, 0660);
    assert_int_equal(config.kv_memory, 0);
    assert_int_equal(config.log_level, MOGE_LOG_INFO);
    assert_false(config.mlock);
    assert_true(config.huge_pages);
    assert_true(config.calibrate);
}

static void test_values(void **state) {
    (void)state;
    struct moge_config config;
    struct moge_err err = {0};
    TEST_OK(LOAD(&config, &err, "--kv-memory=1.5GiB", "--mlock", "--huge-pages=no",
                 "--stall-timeout", "2.5", "--speculation", "7", "--listen", "unix:/a", "--listen",
                 "[::1]:1", "--socket-mode", "600"),
            err);
    assert_int_equal(config.kv_memory, 3ll << 29);
    assert_true(config.mlock);
    assert_false(config.huge_pages);
    assert_int_equal(config.stall_timeout_us, 2500000);
    assert_int_equal(config.speculation, 7);
    assert_int_equal(config.n_listen, 2);
    assert_string_equal(config.listen[1], "[::1]:1");
    assert_int_equal(config.socket_mode, 0600);
    TEST_OK(LOAD(&config, &err, "--speculation", "off", "--kv-memory", "auto", "--isa", "avx2"),
            err);
    assert_int_equal(config.speculation, MOGE_CONFIG_SPECULATION_OFF);
    assert_int_equal(config.kv_memory, 0);
    assert_int_equal(config.isa, 2);
}

static void test_file_and_command_line(void **state) {
    (void)state;
    struct moge_config config;
    struct moge_err err = {0};
    file_write(
        "# a comment\n[server]\nthreads = 3\nmax-queued=7\nlisten = unix:/a\nlisten = unix:/b\n");
    TEST_OK(LOAD(&config, &err, "--config", path), err);
    assert_int_equal(config.threads, 3);
    assert_int_equal(config.n_listen, 2);
    TEST_OK(LOAD(&config, &err, "--threads", "5", "--config", path, "--listen", "127.0.0.1:1"),
            err);
    assert_int_equal(config.threads, 5);
    assert_int_equal(config.max_queued, 7);
    assert_int_equal(config.n_listen, 1);
    assert_string_equal(config.listen[0], "127.0.0.1:1");
}

static void test_wrong_names(void **state) {
    (void)state;
    refused("\"kv-memory\"", "--kv-memroy", "1GiB");
    refused("\"kv-memory\"", "--kv-memroy=1GiB", NULL);
    refused("\"threads\"", "--treads", "1");
    refused("not an option", "stray", NULL);
    refused("not an option", "-x", NULL);
    refused("needs a value", "--threads", NULL);
    file_write("threads = 1\n\nkv_memory = 1GiB\n");
    refused("line 3", "--config", path);
    refused("nearest one is \"kv-memory\"", "--config", path);
    file_write("threads\n");
    refused("line 1", "--config", path);
    refused("no/such", "--config", "/no/such/file");
}

static void test_wrong_values(void **state) {
    (void)state;
    static const char *const pairs[][2] = {
        {"--threads", "nine"},      {"--threads", "-1"},
        {"--threads", "1.5"},       {"--threads", "257"},
        {"--threads", ""},          {"--threads", "0x10"},
        {"--max-running", "0"},     {"--max-running", "auto"},
        {"--kv-memory", "-1GiB"},   {"--kv-memory", "1XB"},
        {"--kv-memory", "1e30"},    {"--kv-memory", "nan"},
        {"--stall-timeout", "0"},   {"--stall-timeout", "1e999"},
        {"--speculation", "17"},    {"--speculation", "0"},
        {"--speculation", "maybe"}, {"--weights", "q8"},
        {"--kv-type", "q4_0"},      {"--draft-kv-type", ""},
        {"--socket-mode", "888"},   {"--socket-mode", "1777"},
        {"--log-level", "loud"},    {"--max-queued-tokens", ""},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++)
        refused(pairs[i][0] + 2, pairs[i][0], pairs[i][1]);
    refused("mlock", "--mlock=perhaps", NULL);
    char text[MOGE_PATH_BYTES + 2];
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    refused("model", "--model", text);
}

static void test_values_that_do_not_fit_together(void **state) {
    (void)state;
    struct moge_config config;
    struct moge_err err = {0};
    assert_int_not_equal(LOAD(&config, &err, "--max-running", "9", "--step-rows", "8"), 0);
    assert_non_null(strstr(err.text, "step-rows"));
    assert_int_not_equal(LOAD(&config, &err, "--speculation", "9", "--draft-len-max", "8"), 0);
    assert_non_null(strstr(err.text, "draft-len-max"));
    assert_int_not_equal(LOAD(&config, &err, "--drafter", "model", "--draft", "none"), 0);
    assert_int_not_equal(LOAD(&config, &err, "--drafter", "both", "--draft", "none"), 0);
    assert_non_null(strstr(err.text, "draft"));
}

static void test_too_many_addresses(void **state) {
    (void)state;
    struct moge_config config;
    struct moge_err err = {0};
    moge_config_init(&config);
    for (int i = 0; i < MOGE_LISTEN_MAX; i++)
        TEST_OK(moge_config_set(&config, "listen", "unix:/a", "test", &err), err);
    assert_int_equal(moge_config_set(&config, "listen", "unix:/a", "test", &err), MOGE_LIMIT);
}

/* The table itself: each default parses, each name is told from every other, each has a help text
 * that --help prints. */
static void test_help_names_every_option(void **state) {
    (void)state;
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);
    moge_config_help(out);
    fclose(out);
    for (size_t i = 0; i < N_ROWS; i++) {
        if (!rows[i].name)
            continue;
        char wanted[64];
        snprintf(wanted, sizeof wanted, "  --%s", rows[i].name);
        assert_non_null(strstr(text, wanted));
        assert_ptr_equal(row_find(rows[i].name), &rows[i]);
    }
    for (const char *line = text; *line; line += strcspn(line, "\n") + 1)
        assert_true(strcspn(line, "\n") <= 100);
    free(text);
}

/* What moged.conf documents are options, and the defaults it shows are the defaults. */
static void test_the_shipped_file(void **state) {
    (void)state;
    struct moge_config config, normal;
    struct moge_err err = {0};
    moge_config_init(&normal);
    moge_config_init(&config);
    FILE *in = fopen(MOGE_SOURCE_DIR "/systemd/moged.conf", "r");
    assert_non_null(in);
    char line[256], shown[16384] = "";
    size_t len = 0;
    while (fgets(line, sizeof line, in)) {
        char *begin = strncmp(line, "# ", 2) == 0 ? line + 2 : line;
        if (strstr(begin, " = ") && strcspn(begin, " ") == strcspn(begin, " =") &&
            begin[0] != '-' && !strchr(begin, '"') && !strstr(begin, "model ="))
            len += (size_t)snprintf(shown + len, sizeof shown - len, "%s", begin);
    }
    fclose(in);
    file_write(shown);
    TEST_OK(moge_config_read(&config, path, &err), err);
    assert_int_equal(config.n_listen, 2);
    config.n_listen = 0;
    memset(config.listen, 0, sizeof config.listen);
    assert_memory_equal(&config, &normal, sizeof config);
}

/* The manual has a line for every option, with its default. */
static void test_the_manual(void **state) {
    (void)state;
    static char text[65536];
    FILE *in = fopen(MOGE_SOURCE_DIR "/docs/OPERATIONS.md", "r");
    assert_non_null(in);
    text[fread(text, 1, sizeof text - 1, in)] = '\0';
    fclose(in);
    for (size_t i = 0; i < N_ROWS; i++) {
        char line[96];
        if (!rows[i].name)
            continue;
        snprintf(line, sizeof line, "\n| `%s` | %s |", rows[i].name,
                 rows[i].normal ? rows[i].normal : "");
        if (!strstr(text, line))
            fail_msg("docs/OPERATIONS.md has no line \"%s\"", line + 1);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_file_and_command_line),
        cmocka_unit_test(test_wrong_names),
        cmocka_unit_test(test_wrong_values),
        cmocka_unit_test(test_values_that_do_not_fit_together),
        cmocka_unit_test(test_too_many_addresses),
        cmocka_unit_test(test_help_names_every_option),
        cmocka_unit_test(test_the_shipped_file),
        cmocka_unit_test(test_the_manual),
    };
    int fd = mkstemp(path);
    if (fd < 0)
        return 1;
    close(fd);
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return rc;
}
