/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "moge/log.h"
#include "server/config.h"
#include "server/daemon.h"

int main(int argc, char **argv) {
    struct moge_config config;
    struct moge_err err = {0};
    enum moge_config_action action;
    moge_daemon_block_signals();
    if (moge_config_load(&config, argc, argv, &action, &err) != 0) {
        moge_log(MOGE_LOG_ERROR, "%s", err.text);
        return 1;
    }
    if (action == MOGE_CONFIG_HELP) {
        moge_config_help(stdout);
        return 0;
    }
    if (action == MOGE_CONFIG_VERSION) {
        printf("moged %s\n", MOGE_VERSION);
        return 0;
    }
    moge_log_set_level((enum moge_log_level)config.log_level);
    if (moge_daemon_run(&config, &err) != 0) {
        moge_log(MOGE_LOG_ERROR, "%s", err.text);
        return 1;
    }
    return 0;
}
