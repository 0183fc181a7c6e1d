/* SPDX-License-Identifier: Apache-2.0 */
/* Log lines on stderr, one call a line.  Under journald (JOURNAL_STREAM set) a line carries the
 * sd-daemon priority prefix; on a terminal it carries time and level.  The level is one of the two
 * process-wide settings (the other is the ISA mask).  Libraries log at DEBUG only.  Any thread. */
#ifndef MOGE_LOG_H
#define MOGE_LOG_H

enum moge_log_level { MOGE_LOG_ERROR, MOGE_LOG_WARN, MOGE_LOG_INFO, MOGE_LOG_DEBUG };

void moge_log_set_level(enum moge_log_level level);
enum moge_log_level moge_log_get_level(void);

/* Writes one line; longer than about 1,000 bytes is cut. */
void moge_log(enum moge_log_level level, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

#endif
