/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOGE_MEMORY_H
#define MOGE_MEMORY_H

#include <stdint.h>

/* Bytes that this process may have: the machine's, or less where a control group of its own, or one
 * above it, allows less (MemoryMax= and MemoryHigh= of a unit, the limit of a container).  What
 * cannot be read limits nothing.  Any thread. */
int64_t moge_memory_limit(void);

/* The least limit of the groups that `groups` (as /proc/self/cgroup) names below the directory
 * `root`; INT64_MAX: none. */
int64_t moge_memory_group_limit(const char *groups, const char *root);

#endif
