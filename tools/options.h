/* SPDX-License-Identifier: Apache-2.0 */
/* How the benches read their options.  One thread, as getopt_long. */
#ifndef MOGE_OPTIONS_H
#define MOGE_OPTIONS_H

#include <getopt.h>
#include <stdbool.h>
#include "moge/engine.h"

/* What a bench is called ("engine"), says for --help (which it has, as 'h') and takes. */
struct moge_options {
    const char *name, *usage;
    const struct option *options;
    bool (*take)(void *arg, int option, const char *value); /* false: not with this value */
};

/* -1: go on, other arguments begin at optind; otherwise the exit status.  Says what is wrong. */
int moge_options_parse(const struct moge_options *options, int argc, char **argv, void *arg);

/* A whole number from min to max, and nothing behind it. */
bool moge_option_int(const char *text, int32_t min, int32_t max, int32_t *out);

/* Which of n names it is; -1: none. */
int moge_option_name(const char *text, const char *const *names, int n);

/* Up to n_max items between commas. */
bool moge_option_list(const char *text, bool (*parse)(const char *item, int32_t *out), int32_t *out,
                      int32_t n_max, int32_t *n);

bool moge_option_weights(const char *text, enum moge_weights *out);

/* Sets the best level that kernels may have from now on. */
bool moge_option_isa(const char *text);

#endif
