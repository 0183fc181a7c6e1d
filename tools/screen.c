/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/screen.h"

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

struct moge_screen moge_screen_init(void) {
    struct moge_screen screen = {.live = isatty(STDOUT_FILENO) == 1, .n_columns = 80};
    struct winsize size;
    if (screen.live && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= 20)
        screen.n_columns = size.ws_col;
    return screen;
}

void moge_screen_rewind(struct moge_screen *screen) {
    if (screen->live && screen->n_drawn > 0)
        printf("\033[%dA\r\033[J", screen->n_drawn);
    screen->n_drawn = 0;
}

static bool is_continuation(unsigned char byte) {
    return (byte & 0xc0) == 0x80;
}

/* Columns of the character that begins with this byte; too many rather than too few. */
static int columns_of(unsigned char lead) {
    return lead >= 0xe1 ? 2 : 1;
}

/* Where the longest end of text begins that fits into n columns. */
static size_t tail_of(const char *text, size_t len, int n) {
    size_t begin = len;
    while (begin > 0) {
        size_t i = begin - 1;
        while (i > 0 && is_continuation((unsigned char)text[i]))
            i--;
        n -= columns_of((unsigned char)text[i]);
        if (n < 0)
            break;
        begin = i;
    }
    return begin;
}

static void text_print(const char *text, size_t len) {
    for (size_t i = 0; i < len; i++) {
        unsigned char byte = (unsigned char)text[i];
        /* U+0080..U+009F are control characters too. */
        bool is_c1 = byte == 0xc2 && i + 1 < len && (unsigned char)text[i + 1] < 0xa0;
        if (byte < 0x20 || byte == 0x7f || is_c1)
            putchar(' ');
        else
            putchar(byte);
        if (is_c1)
            i++;
    }
}

void moge_screen_line(struct moge_screen *screen, const char *label, const char *text,
                      size_t text_len) {
    if (!screen->live)
        return;
    size_t begin = tail_of(text, text_len, screen->n_columns - 1 - (int)strlen(label));
    fputs(label, stdout);
    text_print(text + begin, text_len - begin);
    fputs("\033[K\n", stdout);
    screen->n_drawn++;
}

void moge_screen_keep(struct moge_screen *screen) {
    screen->n_drawn = 0;
}
