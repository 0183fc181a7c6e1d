/* SPDX-License-Identifier: Apache-2.0 */
#include "server/warm.h"

#include "moge/log.h"

#define WARM_UP_TOKENS  4
#define WARM_UP_STEPS   64 /* far more than it takes */
#define CALIBRATE_SHARE 5  /* a start may take longer by one part in so many */

int moge_warm_up(struct moge_boot *boot, struct moge_err *err) {
    struct moge_req *req = moge_reqs_take(boot->reqs);
    int32_t bos = moge_tokenizer_bos(boot->service.tokenizer), n_context = boot->n_context;
    MOGE_ASSERT(req);
    req->tokens[0] = bos >= 0 ? bos : 0;
    req->n_prompt = 1;
    req->sample.temperature = 0;
    req->max_tokens = n_context - 1 < WARM_UP_TOKENS ? n_context - 1 : WARM_UP_TOKENS;
    req->spec_mode = MOGE_SPEC_FIXED;
    req->spec_len = req->spec_len_max = 1;
    req->submitted_us = moge_service_now_us();
    int rc = moge_queue_submit(boot->queue, req, err);
    for (int i = 0; i < WARM_UP_STEPS && rc == 0 && atomic_load(&req->finish) == MOGE_FINISH_NONE;
         i++)
        rc = moge_step_run(&boot->step);
    if (rc == 0 && atomic_load(&req->finish) != MOGE_FINISH_LENGTH)
        rc = MOGE_INTERNAL;
    if (rc)
        moge_fail(err, rc, "the warm-up step failed: %s",
                  req->err.text[0] ? req->err.text : moge_code_name(rc));
    moge_req_release(boot->reqs, req);
    return rc;
}

void moge_warm_calibrate(struct moge_boot *boot, int64_t loading_ns) {
    struct moge_draft_stats costs;
    struct moge_calibration with = {.engine = boot->engine,
                                    .accept = boot->accept,
                                    .batch = &boot->step.batch,
                                    .n_pages = boot->n_pages,
                                    .budget_ns = loading_ns / CALIBRATE_SHARE};
    int64_t begin_ns = moge_boot_now_ns();
    moge_draft_restart(boot->draft);
    if (!boot->config->calibrate)
        return;
    if (with.budget_ns > MOGE_CALIBRATION_MAX_NS)
        with.budget_ns = MOGE_CALIBRATION_MAX_NS;
    int n = moge_draft_calibrate(boot->draft, &with);
    moge_draft_stats(boot->draft, &costs);
    if (n > 0)
        moge_log(MOGE_LOG_INFO, "steps of 1..%d rows take %.2f..%.2f ms here; tried for %.0f ms",
                 1 << (n - 1), costs.step_ns[0] / 1e6, costs.step_ns[n - 1] / 1e6,
                 (double)(moge_boot_now_ns() - begin_ns) / 1e6);
}
