/* SPDX-License-Identifier: Apache-2.0 */
/* A connection's descriptor belongs to gRPC, which does not say when it closes it.  To count the
 * ones that live, each is remembered with its socket's inode: when the descriptor has become
 * another file, or none, the connection is gone. */
#include "server/listen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <event2/event.h>
#include <event2/listener.h>

#include "moge/log.h"

#define DEFAULT_SOCKET_DIR "/run/moged"
#define DEFAULT_SOCKET     "unix:/run/moged/moged.sock"
#define DEFAULT_TCP        "127.0.0.1:7411"
#define BACKLOG            128
#define PAUSE_US           100000

struct connection {
    int fd;
    ino_t inode;
};

struct door {
    struct moge_listen *listen;
    int fd;
    struct evconnlistener *listener;
    struct event *resume;                                      /* after a pause */
    char path[sizeof(((struct sockaddr_un *)NULL)->sun_path)]; /* "" for TCP */
    char name[MOGE_PATH_BYTES];
};

struct moge_listen {
    struct door doors[MOGE_LISTEN_MAX];
    int n_doors;
    struct connection *connections; /* [n_connections_max] */
    int32_t n_connections, n_connections_max;
    struct moge_metrics *metrics;
    void (*accepted)(void *arg, int fd);
    void *arg;
    bool refusing; /* said once, until there is room again */
};

/* ---- addresses ---- */

struct address {
    union {
        struct sockaddr any;
        struct sockaddr_un local;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } u;
    socklen_t len;
    bool loopback;
};

static int local_parse(const char *path, struct address *out, struct moge_err *err) {
    size_t len = strlen(path);
    if (path[0] != '/' || len >= sizeof out->u.local.sun_path)
        return moge_fail(err, MOGE_INVALID,
                         "listen: \"unix:%.60s\": the path must be absolute and have at most %zu "
                         "bytes",
                         path, sizeof out->u.local.sun_path - 1);
    out->u.local.sun_family = AF_UNIX;
    memcpy(out->u.local.sun_path, path, len + 1);
    out->len = sizeof out->u.local;
    out->loopback = true;
    return 0;
}

static int tcp_parse(const char *text, struct address *out, struct moge_err *err) {
    char host[64] = "";
    const char *colon = strrchr(text, ':');
    size_t len = colon ? (size_t)(colon - text) : 0;
    char *end = NULL;
    unsigned long port =
        colon && colon[1] >= '0' && colon[1] <= '9' ? strtoul(colon + 1, &end, 10) : ULONG_MAX;
    if (!colon || len >= sizeof host || port > 65535 || *end)
        return moge_fail(err, MOGE_INVALID,
                         "listen: \"%.60s\" is not an address: unix:/path, 127.0.0.1:7411 and "
                         "[::1]:7411 are",
                         text);
    bool bracketed = len >= 2 && text[0] == '[' && text[len - 1] == ']';
    memcpy(host, text + bracketed, len - 2u * bracketed);
    const char *numeric = strcmp(host, "localhost") == 0 ? "127.0.0.1" : host;
    if (!bracketed && inet_pton(AF_INET, numeric, &out->u.v4.sin_addr) == 1) {
        out->u.v4.sin_family = AF_INET;
        out->u.v4.sin_port = htons((uint16_t)port);
        out->len = sizeof out->u.v4;
        out->loopback = ntohl(out->u.v4.sin_addr.s_addr) >> 24 == 127;
    } else if (bracketed && inet_pton(AF_INET6, host, &out->u.v6.sin6_addr) == 1) {
        out->u.v6.sin6_family = AF_INET6;
        out->u.v6.sin6_port = htons((uint16_t)port);
        out->len = sizeof out->u.v6;
        out->loopback = IN6_IS_ADDR_LOOPBACK(&out->u.v6.sin6_addr);
    } else {
        return moge_fail(err, MOGE_INVALID,
                         "listen: \"%.60s\" has no numeric address before the port", text);
    }
    return 0;
}

static int address_parse(const char *text, bool allow_insecure, struct address *out,
                         struct moge_err *err) {
    memset(out, 0, sizeof *out);
    int rc = strncmp(text, "unix:", 5) == 0 ? local_parse(text + 5, out, err)
                                            : tcp_parse(text, out, err);
    if (rc == 0 && !out->loopback && !allow_insecure)
        return moge_fail(err, MOGE_INVALID,
                         "listen: %.40s can be reached by other machines, and would serve them "
                         "without encryption or authentication; --allow-insecure-tcp allows it",
                         text);
    return rc;
}

/* ---- sockets ---- */

/* A socket that nobody answers is left over from a daemon that was killed. */
static int stale_remove(const struct sockaddr_un *address, struct moge_err *err) {
    struct stat status;
    if (lstat(address->sun_path, &status) != 0)
        return 0;
    if (!S_ISSOCK(status.st_mode))
        return moge_fail(err, MOGE_IO, "cannot listen on %s: it is there, and not a socket",
                         address->sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool answered = fd >= 0 && connect(fd, (const struct sockaddr *)address, sizeof *address) == 0;
    if (fd >= 0)
        close(fd);
    if (answered)
        return moge_fail(err, MOGE_IO, "cannot listen on %s: another process does",
                         address->sun_path);
    unlink(address->sun_path);
    return 0;
}

static void door_name(struct door *door, const struct address *address) {
    struct address bound = {.len = sizeof bound.u};
    char host[INET6_ADDRSTRLEN] = "";
    if (door->path[0]) {
        snprintf(door->name, sizeof door->name, "unix:%s", address->u.local.sun_path);
        return;
    }
    getsockname(door->fd, &bound.u.any, &bound.len);
    bool v6 = address->u.any.sa_family == AF_INET6;
    if (v6)
        inet_ntop(AF_INET6, &bound.u.v6.sin6_addr, host, sizeof host);
    else
        inet_ntop(AF_INET, &bound.u.v4.sin_addr, host, sizeof host);
    unsigned port = ntohs(v6 ? bound.u.v6.sin6_port : bound.u.v4.sin_port);
    snprintf(door->name, sizeof door->name, v6 ? "[%s]:%u" : "%s:%u", host, port);
}

static int door_open(struct door *door, const char *text, const struct moge_config *config,
                     struct moge_err *err) {
    struct address address;
    int rc = address_parse(text, config->allow_insecure_tcp, &address, err), one = 1;
    if (rc)
        return rc;
    bool local = address.u.any.sa_family == AF_UNIX;
    if (local && (rc = stale_remove(&address.u.local, err)) != 0)
        return rc;
    door->fd = socket(address.u.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (door->fd >= 0 && !local)
        setsockopt(door->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (door->fd < 0 || bind(door->fd, &address.u.any, address.len) != 0)
        return moge_fail(err, MOGE_IO, "cannot listen on %.100s: %s", text, strerror(errno));
    if (local)
        snprintf(door->path, sizeof door->path, "%s", address.u.local.sun_path);
    if ((local && chmod(door->path, (mode_t)config->socket_mode) != 0) ||
        listen(door->fd, BACKLOG) != 0)
        return moge_fail(err, MOGE_IO, "cannot listen on %.100s: %s", text, strerror(errno));
    door_name(door, &address);
    return 0;
}

static bool default_dir_usable(void) {
    return (mkdir(DEFAULT_SOCKET_DIR, 0755) == 0 || errno == EEXIST) &&
           access(DEFAULT_SOCKET_DIR, W_OK | X_OK) == 0;
}

int moge_listen_open(struct moge_listen **out, const struct moge_config *config,
                     struct moge_err *err) {
    struct moge_listen *listen = calloc(1, sizeof *listen);
    int rc = 0;
    if (!listen)
        return moge_fail(err, MOGE_NOMEM, "no memory for the listening sockets");
    listen->n_connections_max = config->max_connections;
    listen->connections = calloc((size_t)config->max_connections, sizeof *listen->connections);
    if (!listen->connections) {
        rc = moge_fail(err, MOGE_NOMEM, "no memory for %d connections", config->max_connections);
        goto fail;
    }
    int n = config->n_listen ? config->n_listen : 1;
    for (int i = 0; i < n; i++) {
        const char *text = config->listen[i];
        if (config->n_listen == 0)
            text = default_dir_usable() ? DEFAULT_SOCKET : DEFAULT_TCP;
        struct door *door = &listen->doors[listen->n_doors++];
        door->listen = listen;
        door->fd = -1;
        if ((rc = door_open(door, text, config, err)) != 0)
            goto fail;
    }
    *out = listen;
    return 0;
fail:
    moge_listen_close(listen);
    return rc;
}

void moge_listen_close(struct moge_listen *listen) {
    if (!listen)
        return;
    for (int i = 0; i < listen->n_doors; i++) {
        struct door *door = &listen->doors[i];
        if (door->resume)
            event_free(door->resume);
        if (door->listener)
            evconnlistener_free(door->listener);
        if (door->path[0])
            unlink(door->path);
        if (door->fd >= 0)
            close(door->fd);
    }
    free(listen->connections);
    free(listen);
}

void moge_listen_describe(const struct moge_listen *listen, char *out, size_t cap) {
    size_t len = 0;
    for (int i = 0; i < listen->n_doors && len < cap; i++)
        len += (size_t)snprintf(out + len, cap - len, "%s%s", i ? ", " : "", listen->doors[i].name);
}

/* ---- connections ---- */

static bool connection_lives(const struct connection *connection) {
    struct stat status;
    return fstat(connection->fd, &status) == 0 && S_ISSOCK(status.st_mode) &&
           status.st_ino == connection->inode;
}

int32_t moge_listen_count(struct moge_listen *listen) {
    int32_t n = 0;
    for (int32_t i = 0; i < listen->n_connections; i++)
        if (connection_lives(&listen->connections[i]))
            listen->connections[n++] = listen->connections[i];
    listen->n_connections = n;
    moge_metrics_set(&listen->metrics->num_connections, n);
    return n;
}

static void door_accepted(struct evconnlistener *listener, evutil_socket_t fd,
                          struct sockaddr *address, int address_len, void *arg) {
    (void)listener;
    (void)address_len;
    struct moge_listen *listen = ((struct door *)arg)->listen;
    struct stat status;
    int one = 1;
    if (listen->n_connections == listen->n_connections_max)
        moge_listen_count(listen);
    bool full = listen->n_connections == listen->n_connections_max;
    if (full && !listen->refusing)
        moge_log(MOGE_LOG_WARN, "%d connections are open; more are refused", listen->n_connections);
    listen->refusing = full;
    if (full || fstat(fd, &status) != 0) {
        moge_metrics_add(&listen->metrics->connections_refused_total, 1);
        close(fd);
        return;
    }
    if (address->sa_family != AF_UNIX)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    listen->connections[listen->n_connections++] = (struct connection){fd, status.st_ino};
    moge_metrics_set(&listen->metrics->num_connections, listen->n_connections);
    listen->accepted(listen->arg, fd);
}

static void door_resume(evutil_socket_t fd, short what, void *arg) {
    (void)fd;
    (void)what;
    evconnlistener_enable(((struct door *)arg)->listener);
}

/* Typically too many open files: waiting connections stay in the backlog meanwhile. */
static void door_failed(struct evconnlistener *listener, void *arg) {
    struct door *door = arg;
    struct timeval pause = {0, PAUSE_US};
    moge_log(MOGE_LOG_WARN, "accepting on %s failed: %s", door->name, strerror(errno));
    evconnlistener_disable(listener);
    evtimer_add(door->resume, &pause);
}

int moge_listen_start(struct moge_listen *listen, struct event_base *base,
                      struct moge_metrics *metrics, void (*accepted)(void *arg, int fd), void *arg,
                      struct moge_err *err) {
    listen->metrics = metrics;
    listen->accepted = accepted;
    listen->arg = arg;
    for (int i = 0; i < listen->n_doors; i++) {
        struct door *door = &listen->doors[i];
        door->resume = evtimer_new(base, door_resume, door);
        door->listener =
            evconnlistener_new(base, door_accepted, door, LEV_OPT_CLOSE_ON_EXEC, 0, door->fd);
        if (!door->resume || !door->listener)
            return moge_fail(err, MOGE_NOMEM, "no memory to listen on %.100s", door->name);
        evconnlistener_set_error_cb(door->listener, door_failed);
    }
    return 0;
}
