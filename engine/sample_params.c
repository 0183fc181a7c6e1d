/* SPDX-License-Identifier: Apache-2.0 */
/* Sampling parameters: what they are when nobody says, and what they may be. */
#include "moge/sample.h"

#include <math.h>

struct moge_sample_params moge_sample_params_default(void) {
    return (struct moge_sample_params){
        .temperature = 1, .top_p = 1, .repetition_penalty = 1, .n_logprobs = -1};
}

static int field_range(const char *name, double value, double min, double max,
                       struct moge_err *err) {
    if (value >= min && value <= max) /* false for NaN */
        return 0;
    if (max == INT32_MAX)
        return moge_fail(err, MOGE_INVALID, "%s is %.10g; it must be at least %g", name, value,
                         min);
    return moge_fail(err, MOGE_INVALID, "%s is %.10g; it must be %g..%g", name, value, min, max);
}

static int ids_check(const struct moge_sample_params *params, int32_t n_vocab,
                     struct moge_err *err) {
    if (params->n_bias < 0 || params->n_bias > MOGE_LOGIT_BIAS_MAX)
        return moge_fail(err, MOGE_INVALID, "logit_bias has %d entries; at most %d are possible",
                         params->n_bias, MOGE_LOGIT_BIAS_MAX);
    if (params->n_stop_ids < 0 || params->n_stop_ids > MOGE_STOP_IDS_MAX)
        return moge_fail(err, MOGE_INVALID, "there are %d stop ids; at most %d are possible",
                         params->n_stop_ids, MOGE_STOP_IDS_MAX);
    for (int32_t i = 0; i < params->n_bias; i++) {
        if (params->bias[i].id < 0 || params->bias[i].id >= n_vocab)
            return moge_fail(err, MOGE_INVALID, "logit_bias names token %d; it must be 0..%d",
                             params->bias[i].id, n_vocab - 1);
        if (isnan(params->bias[i].bias) || params->bias[i].bias == INFINITY)
            return moge_fail(err, MOGE_INVALID,
                             "logit_bias of token %d is %g; it must be a finite number, or minus "
                             "infinity to ban the token",
                             params->bias[i].id, (double)params->bias[i].bias);
    }
    for (int32_t i = 0; i < params->n_stop_ids; i++)
        if (params->stop_ids[i] < 0 || params->stop_ids[i] >= n_vocab)
            return moge_fail(err, MOGE_INVALID, "a stop id is %d; it must be 0..%d",
                             params->stop_ids[i], n_vocab - 1);
    return 0;
}

int moge_sample_params_check(const struct moge_sample_params *params, int32_t n_vocab,
                             struct moge_err *err) {
    const struct {
        const char *name;
        double value, min, max;
    } fields[] = {
        {"temperature", (double)params->temperature, 0, 100},
        {"top_k", params->top_k, 0, INT32_MAX},
        {"presence_penalty", (double)params->presence_penalty, -2, 2},
        {"frequency_penalty", (double)params->frequency_penalty, -2, 2},
        {"min_tokens", params->min_tokens, 0, INT32_MAX},
        {"logprobs", params->n_logprobs, -1, MOGE_LOGPROBS_MAX},
    };
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
        if (field_range(fields[i].name, fields[i].value, fields[i].min, fields[i].max, err) != 0)
            return MOGE_INVALID;
    if (!(params->top_p > 0 && params->top_p <= 1))
        return moge_fail(err, MOGE_INVALID, "top_p is %g; it must be above 0 and at most 1",
                         (double)params->top_p);
    if (!(params->min_p >= 0 && params->min_p < 1))
        return moge_fail(err, MOGE_INVALID, "min_p is %g; it must be at least 0 and below 1",
                         (double)params->min_p);
    if (!(params->repetition_penalty > 0 && params->repetition_penalty <= 100))
        return moge_fail(err, MOGE_INVALID,
                         "repetition_penalty is %g; it must be above 0 and at most 100",
                         (double)params->repetition_penalty);
    return ids_check(params, n_vocab, err);
}
