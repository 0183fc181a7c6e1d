/* SPDX-License-Identifier: Apache-2.0 */
/* moge bench: a table of benches, one file each. */
#include <stdio.h>
#include <string.h>
#include "tools/commands.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} benches[] = {
    {"engine", moge_bench_engine, "forward passes alone: prefill, decode, verify, batch"},
    {"load", moge_bench_load,
     "time until a model is ready and its memory, against reading the file"},
    {"spec", moge_bench_spec, "speculation off, auto and of fixed lengths, in turns"},
    {"quality", moge_bench_quality, "bits per byte of a text with KV kept in one type or another"},
    {"serve", moge_bench_serve, "a running moged under many streams: throughput and latencies"},
};
#define N_BENCHES (sizeof benches / sizeof benches[0])

static void usage_print(FILE *out) {
    fputs("Usage: moge bench BENCH [options]\n\nBenches:\n", out);
    for (size_t i = 0; i < N_BENCHES; i++)
        fprintf(out, "  %-8s %s\n", benches[i].name, benches[i].help);
    fputs("\n`moge bench BENCH --help` says more.\n", out);
}

int moge_command_bench(int argc, char **argv) {
    if (argc >= 2 && strcmp(argv[1], "--help") == 0) {
        usage_print(stdout);
        return 0;
    }
    for (size_t i = 0; argc >= 2 && i < N_BENCHES; i++)
        if (strcmp(argv[1], benches[i].name) == 0)
            return benches[i].run(argc - 1, argv + 1);
    if (argc >= 2)
        fprintf(stderr, "moge bench: there is no bench '%s'\n", argv[1]);
    usage_print(stderr);
    return 2;
}
