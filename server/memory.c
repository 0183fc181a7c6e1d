/* SPDX-License-Identifier: Apache-2.0 */
#include "server/memory.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* INT64_MAX: "max", or nothing that can be read. */
static int64_t limit_read(const char *directory, const char *name) {
    char path[PATH_MAX + 64], text[32] = "";
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "r");
    if (!file)
        return INT64_MAX;
    bool read = fgets(text, sizeof text, file) != NULL;
    fclose(file);
    char *end;
    errno = 0;
    long long limit = strtoll(text, &end, 10);
    return read && end != text && errno == 0 && limit > 0 ? limit : INT64_MAX;
}

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* Of the group at `path` ("/a/b", cut on the way) and of all above it.  Those that a container does
 * not see are not there, which limits nothing. */
static int64_t group_limit(const char *root, char *path, const char *const *names) {
    int64_t limit = INT64_MAX;
    char directory[PATH_MAX];
    for (char *cut; path; path = cut ? path : NULL) {
        snprintf(directory, sizeof directory, "%s%s", root, path);
        for (int i = 0; names[i]; i++)
            limit = least(limit, limit_read(directory, names[i]));
        cut = strrchr(path, '/');
        if (cut)
            *cut = '\0';
    }
    return limit;
}

/* A line is "0::PATH", or "N:CONTROLLERS:PATH" of the hierarchies before version 2. */
int64_t moge_memory_group_limit(const char *groups, const char *root) {
    static const char *const unified[] = {"memory.max", "memory.high", NULL};
    static const char *const legacy[] = {"memory.limit_in_bytes", NULL};
    char line[PATH_MAX], below[PATH_MAX];
    int64_t limit = INT64_MAX;
    FILE *file = fopen(groups, "r");
    while (file && fgets(line, sizeof line, file)) {
        char *rest = line;
        line[strcspn(line, "\n")] = '\0';
        strsep(&rest, ":");
        const char *controllers = strsep(&rest, ":");
        if (!rest)
            continue;
        if (*controllers == '\0')
            limit = least(limit, group_limit(root, rest, unified));
        else if (strcmp(controllers, "memory") == 0) {
            snprintf(below, sizeof below, "%s/memory", root);
            limit = least(limit, group_limit(below, rest, legacy));
        }
    }
    if (file)
        fclose(file);
    return limit;
}

int64_t moge_memory_limit(void) {
    int64_t machine = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
    return least(machine, moge_memory_group_limit("/proc/self/cgroup", "/sys/fs/cgroup"));
}
