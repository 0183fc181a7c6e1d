/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses, left-over sockets, the cap on connections, and running out of descriptors. */
#include "server/listen.c"

#include <fcntl.h>
#include <sys/resource.h>

#include "../test.h"

static char place[] = "/tmp/test-listen-XXXXXX";
static struct moge_config config;
static struct moge_metrics metrics;
static struct event_base *base;
static int fds[64], n_fds;

static void refused(const char *address, const char *words) {
    struct address out;
    struct moge_err err = {0};
    assert_int_not_equal(address_parse(address, false, &out, &err), 0);
    if (!strstr(err.text, words))
        fail_msg("\"%s\" does not say \"%s\"", err.text, words);
}

static void test_addresses(void **state) {
    (void)state;
    static const char *const good[] = {"unix:/a/b", "127.0.0.1:0", "127.9.9.9:65535",
                                       "localhost:7411", "[::1]:7411"};
    struct address out;
    struct moge_err err = {0};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        TEST_OK(address_parse(good[i], false, &out, &err), err);
    refused("", "not an address");
    refused("127.0.0.1", "not an address");
    refused("127.0.0.1:", "not an address");
    refused("127.0.0.1:65536", "not an address");
    refused("127.0.0.1:7x", "not an address");
    refused("127.0.0.1:-1", "not an address");
    refused("localhorst:1", "no numeric address");
    refused("::1:7411", "no numeric address");
    refused("unix:relative", "must be absolute");
    char text[200] = "unix:/";
    memset(text + 6, 'a', 120);
    refused(text, "at most 107 bytes");
    refused("0.0.0.0:7411", "--allow-insecure-tcp");
    refused("[::]:7411", "--allow-insecure-tcp");
    refused("10.0.0.1:7411", "--allow-insecure-tcp");
    TEST_OK(address_parse("10.0.0.1:7411", true, &out, &err), err);
}

static void one_address(const char *name) {
    moge_config_init(&config);
    config.n_listen = 1;
    snprintf(config.listen[0], sizeof config.listen[0], "unix:%s/%s", place, name);
}

static void test_socket_files(void **state) {
    (void)state;
    struct moge_listen *first = NULL, *second = NULL;
    struct moge_err err = {0};
    struct stat status;
    one_address("s");
    const char *path = config.listen[0] + 5;
    TEST_OK(moge_listen_open(&first, &config, &err), err);
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_mode & 0777, 0660);
    assert_int_equal(moge_listen_open(&second, &config, &err), MOGE_IO);
    assert_non_null(strstr(err.text, "another process"));
    assert_int_equal(stat(path, &status), 0); /* the loser leaves the winner's socket alone */
    moge_listen_close(first);
    assert_int_not_equal(stat(path, &status), 0);
    /* One that a killed daemon left behind is replaced; a file that is no socket is not. */
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    snprintf(at.sun_path, sizeof at.sun_path, "%.100s", path);
    assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof at), 0);
    close(fd);
    TEST_OK(moge_listen_open(&first, &config, &err), err);
    moge_listen_close(first);
    FILE *file = fopen(path, "w");
    fclose(file);
    assert_int_equal(moge_listen_open(&first, &config, &err), MOGE_IO);
    assert_non_null(strstr(err.text, "not a socket"));
    assert_int_equal(unlink(path), 0);
}

static void test_tcp_port_is_said(void **state) {
    (void)state;
    struct moge_listen *listen = NULL;
    struct moge_err err = {0};
    char text[128] = "";
    moge_config_init(&config);
    config.n_listen = 2;
    snprintf(config.listen[0], sizeof config.listen[0], "127.0.0.1:0");
    snprintf(config.listen[1], sizeof config.listen[1], "unix:%s/t", place);
    TEST_OK(moge_listen_open(&listen, &config, &err), err);
    moge_listen_describe(listen, text, sizeof text);
    assert_memory_equal(text, "127.0.0.1:", 10);
    assert_true(text[10] >= '1' && text[10] <= '9');
    assert_non_null(strstr(text, ", unix:/"));
    moge_listen_close(listen);
    snprintf(config.listen[1], sizeof config.listen[1], "unix:/no/such/place/s");
    assert_int_equal(moge_listen_open(&listen, &config, &err), MOGE_IO);
    assert_non_null(strstr(err.text, "/no/such/place/s"));
}

/* ---- connections ---- */

static void on_accepted(void *arg, int fd) {
    (void)arg;
    fds[n_fds++] = fd;
}

static int connect_one(void) {
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    snprintf(at.sun_path, sizeof at.sun_path, "%.100s", config.listen[0] + 5);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&at, sizeof at), 0);
    return fd;
}

static void turn(int times) {
    for (int i = 0; i < times; i++) {
        event_base_loop(base, EVLOOP_NONBLOCK);
        usleep(1000);
    }
}

static struct moge_listen *open_started(int32_t connections_max) {
    struct moge_listen *listen = NULL;
    struct moge_err err = {0};
    one_address("c");
    config.max_connections = connections_max;
    memset(&metrics, 0, sizeof metrics);
    n_fds = 0;
    base = event_base_new();
    TEST_OK(moge_listen_open(&listen, &config, &err), err);
    TEST_OK(moge_listen_start(listen, base, &metrics, on_accepted, NULL, &err), err);
    return listen;
}

static void test_connections_are_capped(void **state) {
    (void)state;
    struct moge_listen *listen = open_started(2);
    int clients[4];
    for (int i = 0; i < 3; i++) {
        clients[i] = connect_one();
        turn(3);
    }
    assert_int_equal(n_fds, 2);
    assert_int_equal(metrics.connections_refused_total, 1);
    char byte;
    assert_int_equal(read(clients[2], &byte, 1), 0); /* closed at once */
    /* When one has gone, and even when its number was taken by another file, there is room. */
    close(fds[0]);
    int other = open("/dev/null", O_RDONLY);
    clients[3] = connect_one();
    turn(3);
    assert_int_equal(n_fds, 3);
    assert_int_equal(moge_listen_count(listen), 2);
    assert_int_equal(metrics.num_connections, 2);
    close(other);
    close(fds[1]);
    close(fds[2]);
    for (int i = 0; i < 4; i++)
        close(clients[i]);
    moge_listen_close(listen);
    event_base_free(base);
}

/* The flaw that our own accept loop is there for: after descriptors ran out, and came back, it
 * still accepts. */
static void test_descriptors_run_out(void **state) {
    (void)state;
    struct moge_listen *listen = open_started(64);
    struct rlimit before, small;
    int client = connect_one();
    getrlimit(RLIMIT_NOFILE, &before);
    int lowest = dup(0);
    close(lowest);
    small = before;
    small.rlim_cur = (rlim_t)lowest;
    setrlimit(RLIMIT_NOFILE, &small);
    turn(3);
    assert_int_equal(n_fds, 0);
    setrlimit(RLIMIT_NOFILE, &before);
    for (int i = 0; i < 5000 && n_fds == 0; i++)
        turn(1);
    assert_int_equal(n_fds, 1);
    close(client);
    close(fds[0]);
    moge_listen_close(listen);
    event_base_free(base);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_addresses),           cmocka_unit_test(test_socket_files),
        cmocka_unit_test(test_tcp_port_is_said),    cmocka_unit_test(test_connections_are_capped),
        cmocka_unit_test(test_descriptors_run_out),
    };
    if (!mkdtemp(place))
        return 1;
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    rmdir(place);
    return rc;
}
