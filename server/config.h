/* SPDX-License-Identifier: Apache-2.0 */
/* Configuration.  One table describes every option once: name, kind, default, range, help.  The
 * configuration file (`name = value` lines), the command line (--name value) and --help all read
 * that table.  What the command line says wins over the file.  Main thread, at start; constant
 * afterwards. */
#ifndef MOGE_CONFIG_H
#define MOGE_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include "moge/err.h"

#define MOGE_LISTEN_MAX 8
#define MOGE_PATH_BYTES 1024

enum moge_config_weights {
    MOGE_CONFIG_WEIGHTS_AUTO, /* q8_0 for the embedded pair, as stored otherwise */
    MOGE_CONFIG_WEIGHTS_AS_STORED,
    MOGE_CONFIG_WEIGHTS_Q8_0,
    MOGE_CONFIG_WEIGHTS_Q4_0,
    MOGE_CONFIG_WEIGHTS_F32
};
enum moge_config_kv_type { MOGE_CONFIG_KV_F16, MOGE_CONFIG_KV_Q8_0 };
enum moge_config_drafter {
    MOGE_CONFIG_DRAFTER_AUTO, /* both if there is a draft model, otherwise n-grams */
    MOGE_CONFIG_DRAFTER_MODEL,
    MOGE_CONFIG_DRAFTER_NGRAM,
    MOGE_CONFIG_DRAFTER_BOTH,
    MOGE_CONFIG_DRAFTER_NONE
};

#define MOGE_CONFIG_SPECULATION_OFF  0
#define MOGE_CONFIG_SPECULATION_AUTO -1

/* 0 stands for "auto" in every count and size below, unless said otherwise. */
struct moge_config {
    char model[MOGE_PATH_BYTES]; /* "" is the embedded pair */
    char draft[MOGE_PATH_BYTES]; /* "auto", "none" or a path */
    int32_t weights;             /* enum moge_config_weights */
    int32_t kv_type;             /* enum moge_config_kv_type */
    int32_t draft_kv_type;       /* of the draft model */
    bool mlock, huge_pages;
    int32_t isa; /* MOGE_ISA_COUNT order: 0 auto, then scalar, avx2, avx512, vnni */
    int32_t threads;

    char listen[MOGE_LISTEN_MAX][MOGE_PATH_BYTES];
    int32_t n_listen; /* 0: the default place */
    bool allow_insecure_tcp;
    int32_t socket_mode; /* permission bits of unix sockets */
    int32_t cq_threads;
    int32_t max_connections;
    int64_t max_message_bytes;
    int64_t stall_timeout_us, drain_timeout_us;

    int32_t context;
    int64_t kv_memory;
    bool prefix_cache;
    int32_t max_running, step_rows, prefill_chunk;
    int32_t max_queued, max_samples;
    int64_t max_queued_tokens;
    int32_t admission; /* enum moge_admission */
    int32_t prefill_beside_decodes;
    int64_t itl_target_us, priority_aging_us, queue_age_max_us; /* 0: none */

    int32_t speculation; /* fixed length, or MOGE_CONFIG_SPECULATION_* */
    int32_t drafter;     /* enum moge_config_drafter */
    int32_t draft_len_max;
    bool calibrate; /* costs are measured at start */

    int32_t log_level; /* enum moge_log_level */
};

enum moge_config_action { MOGE_CONFIG_RUN, MOGE_CONFIG_HELP, MOGE_CONFIG_VERSION };

void moge_config_init(struct moge_config *config); /* the defaults */

/* One option; where says what to name in an error ("line 3 of moged.conf", "command line"). */
int moge_config_set(struct moge_config *config, const char *name, const char *value,
                    const char *where, struct moge_err *err);

/* Reads a file; err names file, line, and the nearest valid key of one that does not exist. */
int moge_config_read(struct moge_config *config, const char *path, struct moge_err *err);

/* Defaults, then the file named by --config, then the command line, then checks that need more than
 * one option.  action says whether --help or --version was asked for. */
int moge_config_load(struct moge_config *config, int argc, char **argv,
                     enum moge_config_action *action, struct moge_err *err);

void moge_config_help(FILE *out);

#endif
