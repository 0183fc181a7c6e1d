/* SPDX-License-Identifier: Apache-2.0 */
/* What steps cost, learned from those that were run:
 *
 *      time of a step = step_ns + row_ns * prompt rows
 *
 * step_ns is a moving average over steps without prompt rows.  row_ns is a least-squares slope over
 * recent steps with some, so that a short prompt, whose rows share the fixed cost of a step among
 * few, weighs little.  Prompt rows beside decodes are then cut to what the target for the time
 * between tokens leaves.  An error in step_ns moves row_ns the other way: steps settle at the
 * target all the same. */
#include "server/schedule/sched_state.h"

/* Weight of the newest step; what the slope remembers of the steps before. */
#define STEP_WEIGHT  0.125
#define SLOPE_MEMORY 0.9
/* Prompts advance by at least a page a step, whatever the target says. */
#define PREFILL_ROWS_MIN MOGE_PAGE_TOKENS

void moge_sched_observe(struct moge_sched *sched, const struct moge_batch *batch, int64_t step_ns) {
    int32_t n_prefill = 0;
    for (int32_t i = 0; i < batch->n_spans; i++) {
        const struct moge_span *span = &batch->spans[i];
        if (!moge_span_is_decode(span))
            n_prefill += span->n_rows;
    }
    double ns = (double)step_ns, n = (double)n_prefill;
    if (n_prefill == 0) {
        sched->step_ns += (ns - sched->step_ns) * (sched->step_ns > 0 ? STEP_WEIGHT : 1);
        return;
    }
    double added_ns = ns > sched->step_ns ? ns - sched->step_ns : 0;
    sched->rows_cost = sched->rows_cost * SLOPE_MEMORY + n * added_ns;
    sched->rows_square = sched->rows_square * SLOPE_MEMORY + n * n;
}

double moge_sched_row_ns(const struct moge_sched *sched) {
    return sched->rows_square > 0 ? sched->rows_cost / sched->rows_square : 0;
}

int32_t moge_sched_prefill_rows_max(const struct moge_sched *sched) {
    const struct moge_sched_options *options = &sched->options;
    int32_t n_max = options->step_rows_max;
    if (options->prefill_rows_beside_decodes > 0)
        n_max = sched_min(n_max, options->prefill_rows_beside_decodes);
    if (options->itl_target_us == 0 || sched->rows_cost <= 0)
        return n_max;
    double left_ns = (double)options->itl_target_us * 1e3 - sched->step_ns;
    double n = left_ns * sched->rows_square / sched->rows_cost;
    if (n >= (double)n_max)
        return n_max;
    return sched_min(n_max, n > PREFILL_ROWS_MIN ? (int32_t)n : PREFILL_ROWS_MIN);
}

/* Prompt rows computed until req, served in turns with others, has all of its own: nobody before it
 * gets more turns than it needs itself. */
static int64_t rows_until_first_token(const struct moge_sched *sched, const struct moge_req *req) {
    int64_t n_rows = req->n_tokens;
    for (const struct moge_req *other = sched->running.first; other; other = other->next)
        n_rows += sched_min(other->n_tokens - other->n_computed - 1, req->n_tokens);
    for (const struct moge_req *other = sched->waiting.first; other && sched_before(other, req);
         other = other->next)
        n_rows += other->fork_of ? 0 : sched_min(other->n_tokens, req->n_tokens);
    return n_rows;
}

int moge_sched_deadline_check(const struct moge_sched *sched, const struct moge_req *req,
                              int64_t now_us, struct moge_err *err) {
    if (req->deadline_us == INT64_MAX || sched->rows_square <= 0)
        return 0;
    double n_rows = (double)rows_until_first_token(sched, req);
    double n_step = (double)moge_sched_prefill_rows_max(sched);
    double row_ns = moge_sched_row_ns(sched) + sched->step_ns / n_step;
    double expected_s = n_rows * row_ns * 1e-9;
    double left_s = (double)(req->deadline_us - now_us) * 1e-6;
    if (expected_s <= left_s)
        return 0;
    return moge_fail(err, MOGE_DEADLINE,
                     "the deadline is in %.3f s, but the first token is expected after %.3f s: "
                     "%.0f prompt tokens to compute, %.0f a second",
                     left_s, expected_s, n_rows, 1e9 / row_ns);
}
