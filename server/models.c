/* SPDX-License-Identifier: Apache-2.0 */
#include "server/models.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "moge/log.h"

#define EMBEDDED_TARGET "moge-embedded-target.gguf"
#define EMBEDDED_DRAFT  "moge-embedded-draft.gguf"

/* Where the embedded pair may be: beside an installed program, in the tree it was built in, or
 * where the build said it would be installed. */
static bool embedded_find(char *path, size_t cap, const char *file) {
    char exe[MOGE_PATH_BYTES] = "";
    ssize_t len = readlink("/proc/self/exe", exe, sizeof exe - 1);
    char *slash = len > 0 ? strrchr(exe, '/') : NULL;
    if (slash)
        *slash = '\0';
    char beside[MOGE_PATH_BYTES + 32], tree[MOGE_PATH_BYTES + 32];
    snprintf(beside, sizeof beside, "%s/../share/moged", exe);
    snprintf(tree, sizeof tree, "%s/../../models", exe);
    const char *const places[] = {beside, tree, MOGE_DATA_DIR, MOGE_MODELS_DIR};
    for (size_t i = slash ? 0 : 2; i < sizeof places / sizeof places[0]; i++) {
        int n = snprintf(path, cap, "%s/%s", places[i], file);
        if (n > 0 && (size_t)n < cap && access(path, R_OK) == 0)
            return true;
    }
    return false;
}

struct progress {
    const struct moge_boot *boot;
    const char *path;
    int64_t said_ns;
};

static bool model_progress(void *arg, double done) {
    struct progress *progress = arg;
    int64_t now = moge_boot_now_ns();
    if (now - progress->said_ns >= 2000000000) {
        progress->said_ns = now;
        moge_log(MOGE_LOG_INFO, "loading %s: %.0f%%", progress->path, 100 * done);
    }
    return progress->boot->loading(progress->boot->loading_arg, progress->path, done);
}

static int model_load(const struct moge_boot *boot, struct moge_model **out, const char *path,
                      struct moge_err *err) {
    static const enum moge_weights kinds[] = {[MOGE_CONFIG_WEIGHTS_AS_STORED] =
                                                  MOGE_WEIGHTS_AS_STORED,
                                              [MOGE_CONFIG_WEIGHTS_Q8_0] = MOGE_WEIGHTS_Q8_0,
                                              [MOGE_CONFIG_WEIGHTS_Q4_0] = MOGE_WEIGHTS_Q4_0,
                                              [MOGE_CONFIG_WEIGHTS_F32] = MOGE_WEIGHTS_F32};
    int32_t weights = boot->config->weights;
    if (weights == MOGE_CONFIG_WEIGHTS_AUTO)
        weights = boot->embedded ? MOGE_CONFIG_WEIGHTS_Q8_0 : MOGE_CONFIG_WEIGHTS_AS_STORED;
    struct progress progress = {.boot = boot, .path = path, .said_ns = moge_boot_now_ns()};
    struct moge_model_options options = {.weights = kinds[weights],
                                         .mlock = boot->config->mlock,
                                         .huge_pages = boot->config->huge_pages,
                                         .progress = model_progress,
                                         .progress_arg = &progress};
    int64_t begin_ns = moge_boot_now_ns();
    int rc = moge_model_open(out, path, &options, err);
    if (rc)
        return rc;
    const struct moge_model_info *info = moge_model_info(*out);
    moge_log(MOGE_LOG_INFO,
             "%s: %s, %s, %.1f M parameters (%.1f M for a token), %s weights of %.1f MiB, read in "
             "%.1f s",
             path, info->name, info->architecture, (double)info->n_params / 1e6,
             (double)info->n_params_active / 1e6, info->weights,
             (double)info->weight_bytes / 1048576.0, (double)(moge_boot_now_ns() - begin_ns) / 1e9);
    return 0;
}

/* The draft must speak the target's language. */
static int draft_check(const struct moge_boot *boot, const char *path, struct moge_err *err) {
    struct moge_err difference = {0};
    int rc = moge_tokenizer_compare(moge_model_tokenizer(boot->model),
                                    moge_model_tokenizer(boot->draft_model), &difference);
    if (rc)
        return moge_fail(err, rc, "the draft %.60s has another vocabulary than the model: %s", path,
                         difference.text);
    /* The draft samples with the request's parameters, which may name any token of the model. */
    int32_t n_draft = moge_model_info(boot->draft_model)->n_vocab;
    int32_t n_model = moge_model_info(boot->model)->n_vocab;
    if (n_draft < n_model)
        return moge_fail(err, MOGE_INVALID, "the draft %.60s has %d tokens; the model has %d", path,
                         n_draft, n_model);
    return 0;
}

int moge_models_open(struct moge_boot *boot, struct moge_err *err) {
    const struct moge_config *config = boot->config;
    char target[MOGE_PATH_BYTES * 2], draft[MOGE_PATH_BYTES * 2] = "";
    boot->embedded = config->model[0] == '\0';
    snprintf(target, sizeof target, "%s", config->model);
    if (boot->embedded && !embedded_find(target, sizeof target, EMBEDDED_TARGET))
        return moge_fail(err, MOGE_IO,
                         "the embedded model pair was not found (%s in %s, %s or beside the "
                         "program): give a model with --model FILE",
                         EMBEDDED_TARGET, MOGE_DATA_DIR, MOGE_MODELS_DIR);
    if (boot->embedded)
        moge_log(MOGE_LOG_INFO, "no --model was given: serving the embedded model pair");
    bool automatic = strcmp(config->draft, "auto") == 0;
    if (!automatic && strcmp(config->draft, "none") != 0)
        snprintf(draft, sizeof draft, "%s", config->draft);
    else if (automatic && boot->embedded && !embedded_find(draft, sizeof draft, EMBEDDED_DRAFT))
        draft[0] = '\0';
    bool needed =
        config->drafter == MOGE_CONFIG_DRAFTER_MODEL || config->drafter == MOGE_CONFIG_DRAFTER_BOTH;
    bool wanted = needed || config->drafter == MOGE_CONFIG_DRAFTER_AUTO;
    if (needed && !draft[0])
        return moge_fail(err, MOGE_INVALID,
                         "drafter is %s, but there is no draft model: give "
                         "one with --draft FILE",
                         config->drafter == MOGE_CONFIG_DRAFTER_MODEL ? "model" : "both");
    int rc = model_load(boot, &boot->model, target, err);
    if (rc == 0 && draft[0] && wanted)
        rc = model_load(boot, &boot->draft_model, draft, err);
    if (rc == 0 && boot->draft_model)
        rc = draft_check(boot, draft, err);
    return rc;
}
