/* SPDX-License-Identifier: Apache-2.0 */
/* The last step of a start: everything is used once before anybody asks.  Main thread, before the
 * engine thread is there. */
#ifndef MOGE_WARM_H
#define MOGE_WARM_H

#include "server/boot.h"

/* A few tokens through the real path, guesses included: pages are touched, and what cannot work
 * fails now. */
int moge_warm_up(struct moge_boot *boot, struct moge_err *err);

/* The warm-up was nobody's request.  What steps cost here is tried, so that the first request is
 * already guessed for as it pays; loading_ns says how long the start may be felt to take. */
void moge_warm_calibrate(struct moge_boot *boot, int64_t loading_ns);

#endif
