/* SPDX-License-Identifier: Apache-2.0 */
/* From rows, as GGUF stores them one behind the other, to panels and back, and a look at the scales
 * of panels.  The format is drawn in kernels/quant.c.  `type` is the plain one, MOGE_TYPE_Q8_0 or
 * MOGE_TYPE_Q4_0.  No pointer needs an alignment.  Any thread. */
#ifndef MOGE_PANEL_LAYOUT_H
#define MOGE_PANEL_LAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "moge/quant.h"

/* n_rows rows as panels; what the last one lacks becomes rows of zeros. */
void moge_panels_pack(enum moge_type type, const void *rows, int32_t n_rows, int32_t n_in,
                      void *panels);

/* The 8 rows of one panel. */
void moge_panel_unpack(enum moge_type type, const void *panel, int32_t n_in, void *rows);

/* Whether every scale of n_panels panels is a finite number. */
bool moge_panels_finite(enum moge_type type, const void *panels, int32_t n_in, int32_t n_panels);

#endif
