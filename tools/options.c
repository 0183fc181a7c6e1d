/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/kernels/kernels.h"

int moge_options_parse(const struct moge_options *options, int argc, char **argv, void *arg) {
    int option, index = 0;
    optind = 1;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "", options->options, &index)) != -1) {
        if (option == 'h') {
            fputs(options->usage, stdout);
            return 0;
        }
        if (option == '?') {
            fprintf(stderr, "moge bench %s: %s is no option, or lacks its value\n", options->name,
                    argv[optind - 1]);
            return 2;
        }
        if (!options->take(arg, option, optarg)) {
            fprintf(stderr, "moge bench %s: --%s cannot be '%s'\n", options->name,
                    options->options[index].name, optarg);
            return 2;
        }
    }
    return -1;
}

bool moge_option_int(const char *text, int32_t min, int32_t max, int32_t *out) {
    char *end;
    long value = strtol(text, &end, 10);
    if (end == text || *end != '\0' || value < min || value > max)
        return false;
    *out = (int32_t)value;
    return true;
}

int moge_option_name(const char *text, const char *const *names, int n) {
    for (int i = 0; i < n; i++)
        if (strcmp(text, names[i]) == 0)
            return i;
    return -1;
}

bool moge_option_list(const char *text, bool (*parse)(const char *item, int32_t *out), int32_t *out,
                      int32_t n_max, int32_t *n) {
    char copy[256];
    if (snprintf(copy, sizeof copy, "%s", text) >= (int)sizeof copy)
        return false;
    *n = 0;
    char *rest = copy;
    for (char *item; (item = strsep(&rest, ","));)
        if (*n == n_max || !parse(item, &out[(*n)++]))
            return false;
    return true;
}

bool moge_option_weights(const char *text, enum moge_weights *out) {
    static const char *const names[] = {"as-stored", "f32", "q8_0", "q4_0"};
    int index = moge_option_name(text, names, 4);
    if (index >= 0)
        *out = (enum moge_weights)index;
    return index >= 0;
}

bool moge_option_isa(const char *text) {
    static const char *const names[] = {"scalar", "avx2", "avx512", "vnni"};
    int index = moge_option_name(text, names, 4);
    if (index >= 0)
        moge_kernels_set_max((enum moge_isa)index);
    return index >= 0;
}
