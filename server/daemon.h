/* SPDX-License-Identifier: Apache-2.0 */
/* The daemon's main loop: sockets, signals, the watchdog and the drain.  Main thread. */
#ifndef MOGE_DAEMON_H
#define MOGE_DAEMON_H

#include "server/boot.h"

/* Blocks the signals that the loop handles, for this thread and all it starts.  Before any thread.
 */
void moge_daemon_block_signals(void);

/* Boots, serves until told to stop, and takes everything down again.  Returns 0 after an orderly
 * drain; err says why it never began to serve. */
int moge_daemon_run(const struct moge_config *config, struct moge_err *err);

#endif
