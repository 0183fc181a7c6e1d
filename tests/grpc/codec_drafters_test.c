/* SPDX-License-Identifier: Apache-2.0 */
/* Who guesses for a request, and what the answer says about it. */
#include "server/grpc/codec.c"

#include "tests/grpc/codec_sample.h"

/* What becomes of every drafter on servers that run one, the other, both and none. */
static void test_drafter_must_be_there(void **state) {
    (void)state;
    static const char *const runs[] = {"none", "model", "ngram", "both"};
    static const char *const names[] = {"", "DRAFTER_MODEL", "DRAFTER_NGRAM", "DRAFTER_BOTH"};
    for (int there = 0; there < 4; there++)
        for (int asked = 0; asked < 4; asked++) {
            struct sample s;
            struct moge_err err = {0};
            sample_init(&s);
            fixture.service.drafters = (enum moge_drafters)there;
            fixture.service.drafter = runs[there];
            s.speculation.drafter = (Moge__V1__Speculation__Drafter)asked;
            int rc = decode_sample(&s, &err);
            if ((asked & there) == asked) {
                TEST_OK(rc, err);
                assert_int_equal(req->drafters, asked);
            } else {
                assert_int_equal(rc, MOGE_INVALID);
                assert_non_null(strstr(err.text, names[asked]));
                assert_non_null(strstr(err.text, runs[there]));
            }
        }
}

static void refused(struct sample *s, const char *words) {
    struct moge_err err = {0};
    assert_int_equal(decode_sample(s, &err), MOGE_INVALID);
    if (!strstr(err.text, words))
        fail_msg("\"%s\" does not say \"%s\"", err.text, words);
}

static void test_bad_drafters(void **state) {
    (void)state;
    static const int unknown[] = {4, 77, -1, INT32_MAX, INT32_MIN};
    fixture.service.drafters = MOGE_DRAFTERS_BOTH;
    fixture.service.drafter = "both";
    struct sample s;
    sample_init(&s);
    for (int i = 0; i < 5; i++) {
        s.speculation.drafter = (Moge__V1__Speculation__Drafter)unknown[i];
        refused(&s, "which is not a drafter");
    }
    s.speculation.mode = MOGE__V1__SPECULATION__MODE__MODE_OFF;
    s.speculation.drafter = MOGE__V1__SPECULATION__DRAFTER__DRAFTER_NGRAM;
    refused(&s, "speculation.mode is MODE_OFF");
}

static Moge__V1__GenerateResponse *answer(const struct moge_usage *usage) {
    struct moge_req *answered = moge_reqs_take(service->reqs);
    static struct moge_chunk chunk;
    struct moge_bytes out = {0};
    answered->usage = *usage;
    atomic_store(&answered->finish, MOGE_FINISH_LENGTH);
    assert_int_equal(moge_codec_chunk(service, &chunk, answered, &out), 0);
    Moge__V1__GenerateResponse *response =
        moge__v1__generate_response__unpack(NULL, out.len, out.data);
    assert_non_null(response);
    free(out.data);
    moge_req_release(service->reqs, answered);
    return response;
}

static void test_answer_by_drafter(void **state) {
    (void)state;
    struct moge_usage usage = {.n_offered = 9, .n_accepted = 4};
    Moge__V1__GenerateResponse *r = answer(&(struct moge_usage){0});
    assert_int_equal(r->finish->guesses->n_by_drafter, 0);
    moge__v1__generate_response__free_unpacked(r, NULL);
    /* Position 0: the model 1 of 2, n-grams 2 of 3; position 1: n-grams 1 of 4. */
    usage.offered_at[0] = 5, usage.accepted_at[0] = 3;
    usage.ngram_offered_at[0] = 3, usage.ngram_accepted_at[0] = 2;
    usage.offered_at[1] = usage.ngram_offered_at[1] = 4;
    usage.accepted_at[1] = usage.ngram_accepted_at[1] = 1;
    r = answer(&usage);
    const Moge__V1__Guesses *guesses = r->finish->guesses;
    assert_int_equal(guesses->n_by_drafter, 2);
    const Moge__V1__DrafterGuesses *model = guesses->by_drafter[0], *ngram = guesses->by_drafter[1];
    assert_int_equal(model->drafter, MOGE__V1__SPECULATION__DRAFTER__DRAFTER_MODEL);
    assert_int_equal(model->n_offered_by_position, 1);
    assert_int_equal(model->offered, 2);
    assert_int_equal(model->accepted, 1);
    assert_int_equal(ngram->drafter, MOGE__V1__SPECULATION__DRAFTER__DRAFTER_NGRAM);
    assert_int_equal(ngram->n_accepted_by_position, 2);
    assert_int_equal(ngram->offered_by_position[1], 4);
    assert_int_equal(ngram->accepted_by_position[0], 2);
    assert_int_equal(ngram->offered, 7);
    assert_int_equal(ngram->accepted, 3);
    moge__v1__generate_response__free_unpacked(r, NULL);
    /* N-grams alone: no empty entry for the model. */
    usage.offered_at[0] = 3, usage.accepted_at[0] = 2;
    r = answer(&usage);
    assert_int_equal(r->finish->guesses->n_by_drafter, 1);
    assert_int_equal(r->finish->guesses->by_drafter[0]->offered, 7);
    moge__v1__generate_response__free_unpacked(r, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_drafter_must_be_there),
                                       cmocka_unit_test(test_bad_drafters),
                                       cmocka_unit_test(test_answer_by_drafter)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
