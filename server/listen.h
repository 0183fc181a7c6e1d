/* SPDX-License-Identifier: Apache-2.0 */
/* Listening sockets on the main thread's event loop: unix sockets and loopback TCP.  What is
 * accepted is counted, capped and handed to the gRPC server.  When descriptors run out, accepting
 * pauses for a moment and goes on; the library's own accept loop would stop for good
 * (CVE-2023-4785). */
#ifndef MOGE_LISTEN_H
#define MOGE_LISTEN_H

#include <stddef.h>
#include "moge/err.h"
#include "server/config.h"
#include "server/metrics.h"

struct event_base;
struct moge_listen;

/* Opens every address of the configuration, or the default one.  accepted(arg, fd) gets connected,
 * non-blocking sockets and owns them.  Nothing is accepted before moge_listen_start. */
int moge_listen_open(struct moge_listen **out, const struct moge_config *config,
                     struct moge_err *err);
int moge_listen_start(struct moge_listen *listen, struct event_base *base,
                      struct moge_metrics *metrics, void (*accepted)(void *arg, int fd), void *arg,
                      struct moge_err *err);

/* Connections that live; also sets their gauge. */
int32_t moge_listen_count(struct moge_listen *listen);

/* Closes the sockets and removes those in the file system; accepts NULL. */
void moge_listen_close(struct moge_listen *listen);

/* "unix:/run/moged/moged.sock, 127.0.0.1:7411": where it listens, with the port that was given. */
void moge_listen_describe(const struct moge_listen *listen, char *out, size_t cap);

#endif
