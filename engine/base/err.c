/* SPDX-License-Identifier: Apache-2.0 */
#include "moge/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

int moge_fail(struct moge_err *err, int code, const char *fmt, ...) {
    if (!err)
        return code;
    va_list args;
    va_start(args, fmt);
    vsnprintf(err->text, sizeof err->text, fmt, args);
    va_end(args);
    err->code = code;
    return code;
}

const char *moge_code_name(int code) {
    static const char *const names[] = {"ok",
                                        "invalid argument",
                                        "limit exceeded",
                                        "no memory",
                                        "input/output error",
                                        "bad format",
                                        "busy",
                                        "cancelled",
                                        "deadline exceeded",
                                        "shutting down",
                                        "internal error"};
    if (code > 0 || code < MOGE_INTERNAL)
        return "unknown error";
    return names[-code];
}

void moge_assert_failed(const char *condition, const char *file, int line) {
    fprintf(stderr, "%s:%d: assertion failed: %s\n", file, line, condition);
    abort();
}
