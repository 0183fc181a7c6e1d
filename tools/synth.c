/* SPDX-License-Identifier: Apache-2.0 */
/* moge synth: a model of any shape with random weights. */
#include "tools/synth.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tools/commands.h"
#include "tools/progress.h"

static const char usage_text[] =
    "Usage: moge synth --shape FILE --type TYPE --out FILE.gguf [--layout L] [--seed N]\n"
    "Writes a model with random weights and a usable tokenizer, to measure speed at any size.\n"
    "The same arguments give the same file.\n"
    "\n"
    "  --shape FILE  layers, sizes, experts; bench/shapes/ has some\n"
    "  --type TYPE   of the matrices: q8_0, q4_0, f16, bf16 or f32\n"
    "  --out FILE    the file to write; it appears when it is complete\n"
    "  --layout L    rows, which every reader knows, or panels: q8_0 and q4_0 as moged computes\n"
    "                with them, to be used where the file is mapped (rows)\n"
    "  --seed N      another number, other weights (0)\n"
    "\n"
    "Exit status: 0 written, 1 failed, 2 wrong options.\n";

struct arguments {
    const char *shape, *out;
    enum moge_type type;
    bool has_type, in_panels;
    uint64_t seed;
};

static int wrong(const char *what, const char *value) {
    fprintf(stderr, "moge synth: %s%s; moge synth --help says more\n", what, value);
    return 2;
}

static int seed_parse(const char *text, uint64_t *out) {
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || text[0] == '-')
        return wrong("the seed is no number: ", text);
    *out = value;
    return 0;
}

/* 0: go on; 2: wrong; -1: help was printed. */
static int arguments_parse(int argc, char **argv, struct arguments *arguments) {
    static const struct option options[] = {{"shape", required_argument, NULL, 's'},
                                            {"type", required_argument, NULL, 't'},
                                            {"out", required_argument, NULL, 'o'},
                                            {"seed", required_argument, NULL, 'r'},
                                            {"layout", required_argument, NULL, 'l'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    int option, rc = 0;
    optind = 1;
    opterr = 0;
    while (rc == 0 && (option = getopt_long(argc, argv, ":", options, NULL)) != -1) {
        switch (option) {
        case 's':
            arguments->shape = optarg;
            break;
        case 't':
            arguments->has_type = moge_type_parse(optarg, &arguments->type) == 0;
            if (!arguments->has_type)
                rc = wrong("unknown type ", optarg);
            break;
        case 'o':
            arguments->out = optarg;
            break;
        case 'r':
            rc = seed_parse(optarg, &arguments->seed);
            break;
        case 'l':
            arguments->in_panels = strcmp(optarg, "panels") == 0;
            if (!arguments->in_panels && strcmp(optarg, "rows") != 0)
                rc = wrong("unknown layout ", optarg);
            break;
        case 'h':
            fputs(usage_text, stdout);
            return -1;
        default:
            rc = wrong(option == ':' ? "a value is missing for " : "unknown option ",
                       argv[optind - 1]);
        }
    }
    if (rc == 0 && optind < argc)
        rc = wrong("unexpected argument ", argv[optind]);
    if (rc == 0 && (!arguments->shape || !arguments->out || !arguments->has_type))
        rc = wrong("--shape, --type and --out are needed", "");
    if (rc == 0 && arguments->in_panels) {
        enum moge_type panel = moge_type_panel(arguments->type);
        if (panel == arguments->type)
            rc = wrong("only q8_0 and q4_0 have panels, not ",
                       moge_type_traits(arguments->type)->name);
        arguments->type = panel;
    }
    return rc;
}

int moge_command_synth(int argc, char **argv) {
    struct arguments arguments = {0};
    struct moge_shape shape;
    struct moge_err err = {0};
    int rc = arguments_parse(argc, argv, &arguments);
    if (rc != 0)
        return rc < 0 ? 0 : rc;
    struct moge_progress bar = moge_progress_init("writing");
    rc = moge_shape_read(&shape, arguments.shape, &err);
    if (rc == 0)
        rc = moge_synth_write_watched(&shape, arguments.type, arguments.seed, arguments.out,
                                      moge_progress_show, &bar, &err);
    moge_progress_done(&bar);
    if (rc != 0) {
        fprintf(stderr, "moge synth: %s\n", err.text);
        return 1;
    }
    return 0;
}
