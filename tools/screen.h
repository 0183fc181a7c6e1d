/* SPDX-License-Identifier: Apache-2.0 */
/* A block of lines at the bottom of the terminal that is drawn over and over.  When standard output
 * is no terminal nothing is redrawn: moge_screen_draw does nothing then.  One thread. */
#ifndef MOGE_SCREEN_H
#define MOGE_SCREEN_H

#include <stdbool.h>
#include <stddef.h>

struct moge_screen {
    bool live;     /* standard output is a terminal */
    int n_columns; /* of it */
    int n_drawn;   /* lines of the block that is on it */
};

struct moge_screen moge_screen_init(void);

/* Goes back to the first line of the block, to draw it again or to print in its place. */
void moge_screen_rewind(struct moge_screen *screen);

/* One line of the block: label, then as much of the END of text as fits.  Text comes from a model:
 * whatever could steer a terminal is shown as a space. */
void moge_screen_line(struct moge_screen *screen, const char *label, const char *text,
                      size_t text_len);

/* The block stays as it is; the next one begins below it. */
void moge_screen_keep(struct moge_screen *screen);

#endif
