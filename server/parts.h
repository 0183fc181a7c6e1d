/* SPDX-License-Identifier: Apache-2.0 */
/* The second step of a start, the models being there: how long a context is and how many pages
 * there are, then KV cache, engine, draft, scheduler and step of those sizes, and what the rooms
 * that speak to clients are told.  Main thread. */
#ifndef MOGE_PARTS_H
#define MOGE_PARTS_H

#include "server/boot.h"

/* Fills n_context, n_pages and what boot.h lists from kv to service; what a failure leaves is freed
 * with boot. */
int moge_parts_open(struct moge_boot *boot, struct moge_err *err);

#endif
