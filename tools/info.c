/* SPDX-License-Identifier: Apache-2.0 */
/* moge info: what a running moged serves.  Also the way to ask whether it is ready. */
#include "tools/commands.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include "tools/client_generate.h"

static const char usage_text[] =
    "Usage: moge info [--connect ADDR]\n"
    "Says what the moged at ADDR serves.  ADDR is unix:/path or host:port\n"
    "(" MOGE_DEFAULT_ADDRESS ").\n"
    "\n"
    "Exit status: 0 it answered, 1 it did not, 2 wrong options.\n";

static void model_print(const char *role, const struct moge_client_model *model) {
    if (model->name[0] == '\0') {
        printf("%-8s none\n", role);
        return;
    }
    printf("%-8s %s: %s, %.2f M parameters, %s, %.1f MiB, %d layers, vocabulary %d\n", role,
           model->name, model->architecture, (double)model->n_params / 1e6, model->weights,
           (double)model->weight_bytes / (1 << 20), model->n_layers, model->n_vocab);
    if (model->n_experts > 0)
        printf("%-8s %d experts in %d groups, %d used: %.2f M parameters per token\n", "",
               model->n_experts, model->n_groups, model->n_experts_used,
               (double)model->n_params_active / 1e6);
}

static int info_print(const char *address, struct moge_err *err) {
    struct moge_client *client = NULL;
    struct moge_client_info info;
    int rc = moge_client_open(&client, address, err);
    if (rc == 0)
        rc = moge_client_info(client, 5 * 1000000ll, &info, err);
    if (rc == 0) {
        model_print("target", &info.target);
        model_print("draft", &info.draft);
        printf("%-8s moged %s, %s, %d threads, guesses from: %s\n", "server", info.version,
               info.isa, info.n_threads, info.drafter);
        printf("%-8s context %d tokens, %d requests at once, KV for %lld tokens\n", "",
               info.n_context, info.n_running_max, (long long)info.n_kv_tokens);
    }
    moge_client_close(client);
    return rc;
}

int moge_command_info(int argc, char **argv) {
    static const struct option options[] = {
        {"connect", required_argument, NULL, 'c'}, {"help", no_argument, NULL, 'h'}, {0}};
    const char *address = MOGE_DEFAULT_ADDRESS;
    struct moge_err err = {0};
    int option;
    optind = 1;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'c') {
            address = optarg;
        } else if (option == 'h') {
            fputs(usage_text, stdout);
            return 0;
        } else {
            fprintf(stderr, "moge info: %s is no option, or lacks its value\n", argv[optind - 1]);
            return 2;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "moge info: '%s' is no option\n", argv[optind]);
        return 2;
    }
    if (info_print(address, &err) != 0) {
        fprintf(stderr, "moge info: %s\n", err.text);
        return 1;
    }
    return 0;
}
