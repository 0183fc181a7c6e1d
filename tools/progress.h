/* SPDX-License-Identifier: Apache-2.0 */
/* A progress bar on standard error: redrawn in place on a terminal, a line every ten percent
 * elsewhere. */
#ifndef MOGE_PROGRESS_H
#define MOGE_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct moge_progress {
    const char *what; /* kept: "writing" */
    bool live;        /* standard error is a terminal */
    int64_t begin_ns;
    int n_shown; /* last share shown, in hundredths on a terminal and tenths elsewhere; -1: none */
};

struct moge_progress moge_progress_init(const char *what);

/* Fits progress callbacks; arg is the struct moge_progress. */
void moge_progress_show(void *arg, double done);

/* Ends the line, if one was begun. */
void moge_progress_done(struct moge_progress *progress);

#endif
