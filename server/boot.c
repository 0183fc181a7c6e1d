/* SPDX-License-Identifier: Apache-2.0 */
#include "server/boot.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "engine/kernels/kernels.h"
#include "moge/log.h"
#include "server/models.h"
#include "server/parts.h"
#include "server/warm.h"

#define THREADS_AUTO_MAX 32

int64_t moge_boot_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* ---- start ---- */

static int kernels_check(const struct moge_config *config, struct moge_err *err) {
    if (config->isa > 0)
        moge_kernels_set_max((enum moge_isa)(config->isa - 1));
    const struct moge_kernels *kernels = moge_kernels();
    const char *wrong = moge_kernels_self_test(kernels);
    if (wrong)
        return moge_fail(err, MOGE_INTERNAL,
                         "the %s kernel \"%s\" computes wrongly on this machine: try a lower isa",
                         kernels->isa, wrong);
    moge_log(MOGE_LOG_INFO, "kernels: %s", kernels->isa);
    return 0;
}

static int threads_choose(const struct moge_config *config) {
    cpu_set_t set;
    if (config->threads > 0)
        return config->threads;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    return n < THREADS_AUTO_MAX ? n : THREADS_AUTO_MAX;
}

static void measured(void *arg, const struct moge_step *step) {
    struct moge_boot *boot = arg;
    moge_metrics_step(boot->metrics, step, boot->kv);
}

static int start(struct moge_boot *boot, struct moge_err *err) {
    int64_t begin_ns = moge_boot_now_ns();
    int rc = kernels_check(boot->config, err);
    if (rc == 0)
        rc = moge_threads_new(&boot->threads, threads_choose(boot->config), err);
    if (rc == 0)
        rc = moge_models_open(boot, err);
    if (rc == 0)
        rc = moge_parts_open(boot, err);
    if (rc == 0)
        rc = moge_warm_up(boot, err);
    if (rc == 0)
        moge_warm_calibrate(boot, moge_boot_now_ns() - begin_ns);
    return rc;
}

int moge_boot_open(struct moge_boot **out, const struct moge_config *config,
                   moge_boot_loading *loading, void *arg, struct moge_err *err) {
    struct moge_boot *boot = calloc(1, sizeof *boot);
    struct moge_metrics *metrics = calloc(1, sizeof *metrics);
    if (!boot || !metrics) {
        free(boot);
        free(metrics);
        return moge_fail(err, MOGE_NOMEM, "no memory to start with");
    }
    boot->config = config;
    boot->loading = loading;
    boot->loading_arg = arg;
    boot->metrics = metrics;
    int rc = start(boot, err);
    if (rc) {
        moge_boot_close(boot);
        return rc;
    }
    boot->step.measured = measured; /* after the warm-up, which is nobody's request */
    boot->step.measured_arg = boot;
    boot->step.batch.n_spans = 0;
    measured(boot, &boot->step); /* what is known so far: pages, and what steps cost */
    *out = boot;
    return 0;
}

/* ---- life ---- */

int moge_boot_start(struct moge_boot *boot, struct moge_err *err) {
    int rc = pthread_create(&boot->engine_thread, NULL, moge_step_loop, &boot->step);
    boot->engine_started = rc == 0;
    if (rc)
        return moge_fail(err, MOGE_NOMEM, "the engine thread cannot be started: %s", strerror(rc));
    pthread_setname_np(boot->engine_thread, "moge-engine"); /* for top -H and perf */
    return 0;
}

void moge_boot_stop(struct moge_boot *boot, bool abort) {
    atomic_store_explicit(&boot->step.stop, abort ? 2 : 1, memory_order_relaxed);
    moge_queue_wake(boot->queue);
}

void moge_boot_join(struct moge_boot *boot) {
    if (!boot || !boot->engine_started)
        return;
    if (atomic_load_explicit(&boot->step.stop, memory_order_relaxed) == 0)
        moge_boot_stop(boot, false);
    pthread_join(boot->engine_thread, NULL);
    boot->engine_started = false;
}

void moge_boot_close(struct moge_boot *boot) {
    if (!boot)
        return;
    moge_boot_join(boot);
    if (boot->sched) /* a failed warm-up leaves its request behind */
        moge_sched_abort(boot->sched, boot->queue, MOGE_FINISH_SHUTDOWN, 0);
    free(boot->step.batch.spans);
    moge_sched_free(boot->sched);
    moge_queue_free(boot->queue);
    moge_reqs_free(boot->reqs);
    moge_accept_free(boot->accept);
    moge_draft_free(boot->draft);
    moge_engine_free(boot->engine);
    moge_kv_free(boot->kv);
    moge_model_close(boot->draft_model);
    moge_model_close(boot->model);
    moge_threads_free(boot->threads);
    free(boot->metrics);
    free(boot);
}
