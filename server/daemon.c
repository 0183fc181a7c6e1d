/* SPDX-License-Identifier: Apache-2.0 */
/* The way down has three steps, each taken when the one before did not suffice:
 *
 *   1  SIGTERM or SIGINT     no new connections or calls; running streams finish
 *   2  drain-timeout, or a   the engine gives up what still runs; streams end with a last message
 *      second signal         and UNAVAILABLE
 *   3  two seconds later     gRPC cancels what still has not ended (readers that take nothing)
 *
 * When gRPC says that the last call is gone, the loop ends. */
#include "server/daemon.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <event2/event.h>
#include <systemd/sd-daemon.h>

#include "moge/log.h"
#include "server/grpc/rpc.h"
#include "server/listen.h"

#define STATUS_SECONDS 5
#define CANCEL_SECONDS 2
#define LOAD_LOOK_US   20000   /* how often loading looks for signals */
#define LOAD_TELL_US   1000000 /* and how often it tells systemd how far it is */
#define LOAD_MORE_US   60000000LL /* the time it asks for then */
#define CALLS_SPARE    256 /* unary calls and watches beside the requests */

enum stage { STAGE_SERVING, STAGE_DRAINING, STAGE_ABORTING, STAGE_CANCELLING };

struct daemon {
    const struct moge_config *config;
    struct moge_boot *boot;
    struct moge_rpc *rpc;
    struct moge_listen *listen;
    struct event_base *base;
    struct event *signal_event, *drained_event, *watchdog, *status, *next_step;
    int signal_fd, drained_fd;
    int64_t watchdog_us; /* 0: systemd does not watch */
    enum stage stage;
    int64_t looked_us, told_us; /* while loading */
};

static void signals_fill(sigset_t *set) {
    sigemptyset(set);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGHUP);
}

static pthread_t main_thread;

/* Runs on a thread that does not block our signals; the main thread's signalfd then sees them. */
static void signal_forward(int number) {
    pthread_kill(main_thread, number);
}

/* OpenBLAS starts threads while the program is loaded, before anything could be blocked, and the
 * kernel gives a signal to any thread that takes it.  So blocking here is not enough. */
void moge_daemon_block_signals(void) {
    sigset_t set;
    signals_fill(&set);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    main_thread = pthread_self();
    struct sigaction action = {.sa_handler = signal_forward, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGHUP, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* ---- the way down ---- */

static void next_step_after(struct daemon *daemon, int64_t us) {
    struct timeval delay = {us / 1000000, us % 1000000};
    evtimer_add(daemon->next_step, &delay);
}

/* On a CQ thread. */
static void all_calls_gone(void *arg) {
    struct daemon *daemon = arg;
    uint64_t one = 1;
    ssize_t n = write(daemon->drained_fd, &one, sizeof one);
    MOGE_ASSERT(n == sizeof one);
}

static void drain(struct daemon *daemon) {
    int64_t timeout_us = daemon->config->drain_timeout_us;
    struct moge_metrics *metrics = daemon->boot->metrics;
    moge_log(MOGE_LOG_INFO,
             "draining: %" PRId64 " calls are under way and have %.0f s to finish; another signal "
             "ends them",
             atomic_load_explicit(&metrics->num_calls, memory_order_relaxed),
             (double)timeout_us / 1e6);
    sd_notifyf(0, "STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC=%lld",
               (long long)timeout_us + (CANCEL_SECONDS + 5) * 1000000LL);
    daemon->stage = STAGE_DRAINING;
    moge_listen_close(daemon->listen);
    daemon->listen = NULL;
    moge_queue_close(daemon->boot->queue);
    moge_rpc_drain(daemon->rpc, all_calls_gone, daemon);
    next_step_after(daemon, timeout_us);
}

static void step_down(struct daemon *daemon) {
    if (daemon->stage == STAGE_SERVING) {
        drain(daemon);
    } else if (daemon->stage == STAGE_DRAINING) {
        moge_log(MOGE_LOG_WARN, "ending the streams that still run");
        daemon->stage = STAGE_ABORTING;
        moge_boot_stop(daemon->boot, true);
        next_step_after(daemon, CANCEL_SECONDS * 1000000LL);
    } else {
        daemon->stage = STAGE_CANCELLING;
        moge_rpc_cancel_all(daemon->rpc);
    }
}

/* ---- events ---- */

static void on_signal(evutil_socket_t fd, short what, void *arg) {
    (void)what;
    struct signalfd_siginfo info;
    while (read(fd, &info, sizeof info) == sizeof info) {
        moge_log(MOGE_LOG_INFO, "got %s", strsignal((int)info.ssi_signo));
        step_down(arg);
    }
}

static void on_next_step(evutil_socket_t fd, short what, void *arg) {
    (void)fd;
    (void)what;
    step_down(arg);
}

static void on_drained(evutil_socket_t fd, short what, void *arg) {
    (void)fd;
    (void)what;
    struct daemon *daemon = arg;
    event_base_loopbreak(daemon->base);
}

/* systemd hears from us while the engine thread comes around; when it hangs, silence restarts us.
 */
static void on_watchdog(evutil_socket_t fd, short what, void *arg) {
    (void)fd;
    (void)what;
    struct daemon *daemon = arg;
    int64_t beat_us = atomic_load_explicit(&daemon->boot->step.beat_us, memory_order_relaxed);
    if (moge_service_now_us() - beat_us < daemon->watchdog_us)
        sd_notify(0, "WATCHDOG=1");
    else
        moge_log(MOGE_LOG_ERROR, "the engine thread has not moved for %.1f s",
                 (double)(moge_service_now_us() - beat_us) / 1e6);
}

static void on_status(evutil_socket_t fd, short what, void *arg) {
    (void)fd;
    (void)what;
    struct daemon *daemon = arg;
    char line[256];
    if (daemon->listen)
        moge_listen_count(daemon->listen);
    moge_metrics_line(daemon->boot->metrics, line, sizeof line);
    sd_notifyf(0, "STATUS=%s", line);
}

static void on_connection(void *arg, int fd) {
    moge_rpc_adopt(((struct daemon *)arg)->rpc, fd);
}

/* ---- up ---- */

static struct event *event_start(struct daemon *daemon, int fd, short what,
                                 event_callback_fn callback, int64_t period_us) {
    struct timeval period = {period_us / 1000000, period_us % 1000000};
    struct event *event = event_new(daemon->base, fd, what | EV_PERSIST, callback, daemon);
    if (event)
        event_add(event, period_us ? &period : NULL);
    return event;
}

static int events_open(struct daemon *daemon, struct moge_err *err) {
    sigset_t set;
    uint64_t watchdog_us = 0;
    signals_fill(&set);
    daemon->signal_fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    daemon->drained_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    daemon->base = event_base_new();
    if (daemon->signal_fd < 0 || daemon->drained_fd < 0 || !daemon->base)
        return moge_fail(err, MOGE_IO, "the main loop cannot be set up: %s", strerror(errno));
    if (sd_watchdog_enabled(0, &watchdog_us) > 0)
        daemon->watchdog_us = (int64_t)watchdog_us;
    daemon->signal_event = event_start(daemon, daemon->signal_fd, EV_READ, on_signal, 0);
    daemon->drained_event = event_start(daemon, daemon->drained_fd, EV_READ, on_drained, 0);
    daemon->status = event_start(daemon, -1, 0, on_status, STATUS_SECONDS * 1000000LL);
    daemon->next_step = evtimer_new(daemon->base, on_next_step, daemon);
    if (daemon->watchdog_us)
        daemon->watchdog = event_start(daemon, -1, 0, on_watchdog, daemon->watchdog_us / 3);
    if (!daemon->signal_event || !daemon->drained_event || !daemon->status || !daemon->next_step ||
        (daemon->watchdog_us && !daemon->watchdog))
        return moge_fail(err, MOGE_NOMEM, "no memory for the main loop");
    return 0;
}

/* A signal that came before anybody serves; it stays pending. */
static bool signal_waits(void) {
    sigset_t pending, ours;
    sigpending(&pending);
    signals_fill(&ours);
    sigandset(&pending, &pending, &ours);
    return !sigisemptyset(&pending);
}

/* systemd's patience with a start grows while the start moves. */
static bool loading(void *arg, const char *path, double done) {
    struct daemon *daemon = arg;
    int64_t now_us = moge_service_now_us();
    if (now_us - daemon->looked_us < LOAD_LOOK_US)
        return true;
    daemon->looked_us = now_us;
    if (now_us - daemon->told_us >= LOAD_TELL_US) {
        const char *slash = strrchr(path, '/');
        daemon->told_us = now_us;
        sd_notifyf(0, "STATUS=loading %s: %.0f%%\nEXTEND_TIMEOUT_USEC=%lld",
                   slash ? slash + 1 : path, 100 * done, LOAD_MORE_US);
    }
    return !signal_waits();
}

/* The addresses come first: a wrong one should not cost the time it takes to read a model. */
static int daemon_open(struct daemon *daemon, struct moge_err *err) {
    const struct moge_config *config = daemon->config;
    int rc = moge_listen_open(&daemon->listen, config, err);
    if (rc == 0)
        rc = moge_boot_open(&daemon->boot, config, loading, daemon, err);
    if (rc == 0 && signal_waits()) /* one that came during the warm-up */
        rc = moge_fail(err, MOGE_CANCELLED, "the start was given up");
    if (rc == 0)
        rc = events_open(daemon, err);
    if (rc)
        return rc;
    struct moge_rpc_options rpc = {.service = &daemon->boot->service,
                                   .n_cqs = config->cq_threads,
                                   .n_calls_max =
                                       config->max_queued + config->max_running + CALLS_SPARE,
                                   .stall_timeout_us = config->stall_timeout_us};
    rc = moge_rpc_new(&daemon->rpc, &rpc, err);
    if (rc)
        return rc;
    daemon->boot->step.wake = moge_rpc_wake;
    daemon->boot->step.wake_arg = daemon->rpc;
    rc = moge_boot_start(daemon->boot, err);
    if (rc == 0)
        rc = moge_listen_start(daemon->listen, daemon->base, daemon->boot->metrics, on_connection,
                               daemon, err);
    return rc;
}

static void event_end(struct event *event) {
    if (event)
        event_free(event);
}

static void daemon_close(struct daemon *daemon) {
    moge_listen_close(daemon->listen);
    moge_boot_join(daemon->boot); /* it wakes gRPC's threads to its end */
    moge_rpc_free(daemon->rpc);
    moge_boot_close(daemon->boot);
    event_end(daemon->signal_event);
    event_end(daemon->drained_event);
    event_end(daemon->watchdog);
    event_end(daemon->status);
    event_end(daemon->next_step);
    if (daemon->base)
        event_base_free(daemon->base);
    libevent_global_shutdown();
    if (daemon->signal_fd >= 0)
        close(daemon->signal_fd);
    if (daemon->drained_fd >= 0)
        close(daemon->drained_fd);
}

int moge_daemon_run(const struct moge_config *config, struct moge_err *err) {
    struct daemon daemon = {.config = config, .signal_fd = -1, .drained_fd = -1};
    char places[1024] = "", line[256];
    int64_t begin_us = moge_service_now_us();
    int rc = daemon_open(&daemon, err);
    if (rc == 0) {
        moge_rpc_set_serving(daemon.rpc, true);
        moge_listen_describe(daemon.listen, places, sizeof places);
        moge_log(MOGE_LOG_INFO, "moged %s serves %s on %s; ready after %.1f s", MOGE_VERSION,
                 daemon.boot->service.target.name, places,
                 (double)(moge_service_now_us() - begin_us) / 1e6);
        sd_notify(0, "READY=1\nSTATUS=serving");
        event_base_dispatch(daemon.base);
        moge_metrics_line(daemon.boot->metrics, line, sizeof line);
        moge_log(MOGE_LOG_INFO, "stopped: %s", line);
    } else if (rc == MOGE_CANCELLED) {
        moge_log(MOGE_LOG_INFO, "stopped by a signal before it served: %s", err->text);
        sd_notify(0, "STOPPING=1");
        rc = 0;
    }
    daemon_close(&daemon);
    return rc;
}
