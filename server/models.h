/* SPDX-License-Identifier: Apache-2.0 */
/* The first step of a start: which files are the model and its draft, loaded, and fit for each
 * other.  Main thread. */
#ifndef MOGE_MODELS_H
#define MOGE_MODELS_H

#include "server/boot.h"

/* Fills model, draft_model (NULL: none is wanted) and embedded. */
int moge_models_open(struct moge_boot *boot, struct moge_err *err);

#endif
