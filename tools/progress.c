/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/clock.h"
#include "tools/progress.h"

#include <stdio.h>
#include <unistd.h>

#define BAR_COLUMNS 40

struct moge_progress moge_progress_init(const char *what) {
    return (struct moge_progress){.what = what,
                                  .live = isatty(STDERR_FILENO) == 1,
                                  .begin_ns = moge_clock_ns(),
                                  .n_shown = -1};
}

void moge_progress_show(void *arg, double done) {
    static const char bar[] = "########################################";
    struct moge_progress *progress = arg;
    int n = (int)(done * (progress->live ? 100 : 10));
    double seconds = (double)(moge_clock_ns() - progress->begin_ns) * 1e-9;
    if (n <= progress->n_shown)
        return;
    progress->n_shown = n;
    if (!progress->live) {
        if (n > 0)
            fprintf(stderr, "%s: %d%% after %.1f s\n", progress->what, 10 * n, seconds);
        return;
    }
    double left = done > 0 ? seconds / done - seconds : 0;
    fprintf(stderr, "\r%s [%-*.*s] %3d%%  %4.0f s left ", progress->what, BAR_COLUMNS,
            (int)(done * BAR_COLUMNS), bar, n, left);
}

void moge_progress_done(struct moge_progress *progress) {
    if (progress->live && progress->n_shown >= 0)
        fputc('\n', stderr);
}
