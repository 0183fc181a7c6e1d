/* SPDX-License-Identifier: Apache-2.0 */
#include "moge/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static atomic_int level_max = MOGE_LOG_INFO;

void moge_log_set_level(enum moge_log_level level) {
    atomic_store_explicit(&level_max, (int)level, memory_order_relaxed);
}

enum moge_log_level moge_log_get_level(void) {
    return (enum moge_log_level)atomic_load_explicit(&level_max, memory_order_relaxed);
}

/* journald wants "<priority>" first and adds the time by itself; a person wants the time. */
static size_t prefix_write(char *line, size_t cap, enum moge_log_level level) {
    static const char *const names[] = {"error", "warning", "info", "debug"};
    static const int priorities[] = {3, 4, 6, 7};
    if (getenv("JOURNAL_STREAM"))
        return (size_t)snprintf(line, cap, "<%d>", priorities[level]);
    struct timespec now;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &tm);
    return (size_t)snprintf(line, cap, "%02d:%02d:%02d.%03ld moged %s: ", tm.tm_hour, tm.tm_min,
                            tm.tm_sec, now.tv_nsec / 1000000, names[level]);
}

void moge_log(enum moge_log_level level, const char *fmt, ...) {
    if (level > moge_log_get_level())
        return;
    char line[1024];
    size_t len = prefix_write(line, sizeof line, level);
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(line + len, sizeof line - len - 1, fmt, args);
    va_end(args);
    if (n > 0)
        len += (size_t)n;
    if (len > sizeof line - 2)
        len = sizeof line - 2;
    line[len++] = '\n';
    /* One write, so that lines of several threads do not mix.  A closed stderr is nobody's problem.
     */
    ssize_t written = write(STDERR_FILENO, line, len);
    (void)written;
}
