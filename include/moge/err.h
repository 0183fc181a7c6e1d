/* SPDX-License-Identifier: Apache-2.0 */
/* Errors.
 *
 * A fallible function returns 0 or a negative enum moge_code.  Functions that face the outside
 * (files, requests, configuration) also take `struct moge_err *err` last: it is filled once, where
 * the error is found, with one clear sentence, and left untouched on success.  err may be NULL. Hot
 * paths take none. Libraries return errors; only server/ and tools/ log or print them.  Any thread.
 */
#ifndef MOGE_ERR_H
#define MOGE_ERR_H

#include <stdbool.h>
#include <stddef.h>

enum moge_code {
    MOGE_OK = 0,
    MOGE_INVALID = -1,   /* an argument, a field or a configuration value is wrong */
    MOGE_LIMIT = -2,     /* a named limit was exceeded (queue full, message too large) */
    MOGE_NOMEM = -3,     /* memory could not be had */
    MOGE_IO = -4,        /* the operating system refused a file, socket or mapping */
    MOGE_FORMAT = -5,    /* a file is malformed, truncated, or of a kind this build cannot read */
    MOGE_BUSY = -6,      /* not now: try again when pages or slots are free */
    MOGE_CANCELLED = -7, /* the client went away or said stop */
    MOGE_DEADLINE = -8,  /* the request's deadline passed */
    MOGE_SHUTDOWN = -9,  /* the daemon is draining */
    MOGE_INTERNAL = -10, /* our own fault */
};

#define MOGE_ERR_TEXT_MAX 200

struct moge_err {
    int code;                     /* enum moge_code */
    char text[MOGE_ERR_TEXT_MAX]; /* one sentence, no final newline, always terminated */
};

/* Fills err (unless NULL) and returns code, so that a caller can write `return moge_fail(...)`. */
int moge_fail(struct moge_err *err, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* "invalid argument" and so on; never NULL. */
const char *moge_code_name(int code);

/* Prints the failed condition and aborts; systemd restarts the daemon. */
_Noreturn void moge_assert_failed(const char *condition, const char *file, int line);

/* Programmer errors.  Always on. */
#define MOGE_ASSERT(cond) ((cond) ? (void)0 : moge_assert_failed(#cond, __FILE__, __LINE__))

/* Expensive checks: compiled in the dev and sanitizer presets only. */
#ifdef MOGE_SLOW_CHECKS
#define MOGE_CHECK_SLOW(cond) MOGE_ASSERT(cond)
#else
#define MOGE_CHECK_SLOW(cond) ((void)0)
#endif

#endif
