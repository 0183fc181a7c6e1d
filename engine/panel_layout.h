/* SPDX-License-Identifier: Apache-2.0 */
/* Panels as files hold them: back to rows, and a look at their scales.  moge_matrix_pack is the
 * way there; the format is drawn in kernels/quant.c.  `type` is the plain one, MOGE_TYPE_Q8_0 or
 * MOGE_TYPE_Q4_0.  Any thread. */
#ifndef MOGE_PANEL_LAYOUT_H
#define MOGE_PANEL_LAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "moge/quant.h"

/* The 8 rows of one panel as GGUF stores them, one behind the other.  No alignment is needed. */
void moge_panel_unpack(enum moge_type type, const void *panel, int32_t n_in, void *rows);

/* Whether every scale of n_panels panels is a finite number. */
bool moge_panels_finite(enum moge_type type, const void *panels, int32_t n_in, int32_t n_panels);

#endif
