/* SPDX-License-Identifier: Apache-2.0 */
/* Every parameter out of its range is refused with its name, its value and the range. */
#include "tests/test.h"
#include "engine/sample_params.c"

static void refused(struct moge_sample_params params, const char *expected) {
    struct moge_err err = {0};
    assert_int_equal(moge_sample_params_check(&params, 100, &err), MOGE_INVALID);
    assert_string_equal(err.text, expected);
}

#define REFUSED(expected, ...)                                                                     \
    do {                                                                                           \
        struct moge_sample_params params_ = moge_sample_params_default();                          \
        __VA_ARGS__;                                                                               \
        refused(params_, expected);                                                                \
    } while (0)

static void parameters_are_checked(void **state) {
    (void)state;
    struct moge_err err = {.text = "untouched"};
    struct moge_sample_params good = moge_sample_params_default();
    TEST_OK(moge_sample_params_check(&good, 100, &err), err);
    assert_string_equal(err.text, "untouched");
    REFUSED("temperature is -0.5; it must be 0..100", params_.temperature = -0.5f);
    REFUSED("temperature is nan; it must be 0..100", params_.temperature = NAN);
    REFUSED("top_p is 0; it must be above 0 and at most 1", params_.top_p = 0);
    REFUSED("top_p is 1.5; it must be above 0 and at most 1", params_.top_p = 1.5f);
    REFUSED("min_p is 1; it must be at least 0 and below 1", params_.min_p = 1);
    REFUSED("min_p is -1; it must be at least 0 and below 1", params_.min_p = -1);
    REFUSED("min_p is nan; it must be at least 0 and below 1", params_.min_p = NAN);
    REFUSED("top_k is -1; it must be at least 0", params_.top_k = -1);
    REFUSED("min_tokens is -2147483648; it must be at least 0", params_.min_tokens = INT32_MIN);
    REFUSED("presence_penalty is 2.5; it must be -2..2", params_.presence_penalty = 2.5f);
    REFUSED("frequency_penalty is -3; it must be -2..2", params_.frequency_penalty = -3);
    REFUSED("repetition_penalty is 0; it must be above 0 and at most 100",
            params_.repetition_penalty = 0);
    REFUSED("logprobs is 21; it must be -1..20", params_.n_logprobs = 21);
    struct moge_logit_bias bias = {100, 1};
    int32_t stop = -1;
    REFUSED("logit_bias names token 100; it must be 0..99", params_.bias = &bias,
            params_.n_bias = 1);
    REFUSED("a stop id is -1; it must be 0..99", params_.stop_ids = &stop, params_.n_stop_ids = 1);
    REFUSED("logit_bias has 1025 entries; at most 1024 are possible", params_.n_bias = 1025);
    REFUSED("there are 65 stop ids; at most 64 are possible", params_.n_stop_ids = 65);
    bias = (struct moge_logit_bias){3, INFINITY};
    REFUSED(
        "logit_bias of token 3 is inf; it must be a finite number, or minus infinity to ban the "
        "token",
        params_.bias = &bias, params_.n_bias = 1);
    bias.bias = -INFINITY;
    good.bias = &bias;
    good.n_bias = 1;
    TEST_OK(moge_sample_params_check(&good, 100, &err), err);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(parameters_are_checked)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
