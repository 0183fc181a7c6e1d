/* SPDX-License-Identifier: Apache-2.0 */
/* The `moge` command: a table of subcommands. */
#include <stdio.h>
#include <string.h>
#include "tools/commands.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} commands[] = {
    {"complete", moge_command_complete, "continue a prompt, streaming from a running moged"},
    {"chat", moge_command_chat, "chat with a Pangu chat model"},
    {"info", moge_command_info, "say what a running moged serves"},
    {"stats", moge_command_stats, "say how a running moged is doing, once or live"},
    {"demo", moge_command_demo, "compare speculation off and auto, live"},
    {"bench", moge_command_bench, "measure the engine on this machine"},
    {"inspect", moge_command_inspect, "show what a model file holds"},
    {"quantize", moge_command_quantize, "write a model again in another type"},
    {"synth", moge_command_synth, "write a model of any shape with random weights"},
};
#define N_COMMANDS (sizeof commands / sizeof commands[0])

static void usage_print(FILE *out) {
    fputs("Usage: moge COMMAND [options]\n\nCommands:\n", out);
    for (size_t i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].help);
    fputs("\n`moge COMMAND --help` says more.  `moge --version` prints the version.\n", out);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        usage_print(stderr);
        return 2;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "help") == 0) {
        usage_print(stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        puts("moge " MOGE_VERSION);
        return 0;
    }
    for (size_t i = 0; i < N_COMMANDS; i++)
        if (strcmp(argv[1], commands[i].name) == 0)
            return commands[i].run(argc - 1, argv + 1);
    fprintf(stderr, "moge: there is no command '%s'; moge --help lists them\n", argv[1]);
    return 2;
}
