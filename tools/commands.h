/* SPDX-License-Identifier: Apache-2.0 */
/* The subcommands of `moge`, one file each.  argv[0] is the subcommand's name; the result is the
 * exit status: 0 done, 1 failed, 2 wrong options.  Each prints its own usage for --help.  A new one
 * is declared here and gets a row in the table of moge.c. */
#ifndef MOGE_COMMANDS_H
#define MOGE_COMMANDS_H

int moge_command_bench(int argc, char **argv);
int moge_command_chat(int argc, char **argv);
int moge_command_complete(int argc, char **argv);
int moge_command_demo(int argc, char **argv);
int moge_command_info(int argc, char **argv);
int moge_command_inspect(int argc, char **argv);
int moge_command_quantize(int argc, char **argv);
int moge_command_stats(int argc, char **argv);
int moge_command_synth(int argc, char **argv);

/* The benches of `moge bench`, bench_<name>.c each, by the same rules; the table is in bench.c. */
int moge_bench_engine(int argc, char **argv);
int moge_bench_load(int argc, char **argv);
int moge_bench_spec(int argc, char **argv);
int moge_bench_quality(int argc, char **argv);
int moge_bench_serve(int argc, char **argv);

#endif
