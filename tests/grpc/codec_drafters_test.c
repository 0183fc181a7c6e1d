/* SPDX-License-Identifier: Apache-2.0 */
/* Who guesses for a request, and what the answer says about it. */
#include "server/grpc/codec.c"

#include "../test.h"
#include "fixture.h"

static struct fixture fixture;

static int decode(const Moge__V1__Speculation *speculation, struct moge_req *req,
                  struct moge_err *err) {
    uint32_t ids[] = {5, 6};
    Moge__V1__TokenIds prompt = MOGE__V1__TOKEN_IDS__INIT;
    Moge__V1__GenerateRequest request = MOGE__V1__GENERATE_REQUEST__INIT;
    uint8_t data[256];
    prompt.n_ids = 2;
    prompt.ids = ids;
    request.prompt_case = MOGE__V1__GENERATE_REQUEST__PROMPT_TOKEN_IDS;
    request.token_ids = &prompt;
    request.speculation = (Moge__V1__Speculation *)(uintptr_t)speculation;
    size_t len = moge__v1__generate_request__pack(&request, data);
    return moge_codec_generate(&fixture.service, data, len, req, err);
}

/* What becomes of every drafter on servers that run one, the other, both and none. */
static void test_drafter_must_be_there(void **state) {
    (void)state;
    static const char *const runs[] = {"none", "model", "ngram", "both"};
    static const char *const names[] = {"", "DRAFTER_MODEL", "DRAFTER_NGRAM", "DRAFTER_BOTH"};
    for (int there = 0; there < 4; there++)
        for (int asked = 0; asked < 4; asked++) {
            struct moge_req *req = moge_reqs_take(fixture.service.reqs);
            struct moge_err err = {0};
            Moge__V1__Speculation speculation = MOGE__V1__SPECULATION__INIT;
            fixture.service.drafters = (enum moge_drafters)there;
            fixture.service.drafter = runs[there];
            speculation.drafter = (Moge__V1__Speculation__Drafter)asked;
            int rc = decode(&speculation, req, &err);
            if ((asked & there) == asked) {
                TEST_OK(rc, err);
                assert_int_equal(req->drafters, asked);
            } else {
                assert_int_equal(rc, MOGE_INVALID);
                assert_non_null(strstr(err.text, names[asked]));
                assert_non_null(strstr(err.text, runs[there]));
            }
            moge_req_release(fixture.service.reqs, req);
        }
}

static void refused(const Moge__V1__Speculation *speculation, const char *words) {
    struct moge_req *req = moge_reqs_take(fixture.service.reqs);
    struct moge_err err = {0};
    assert_int_equal(decode(speculation, req, &err), MOGE_INVALID);
    if (!strstr(err.text, words))
        fail_msg("\"%s\" does not say \"%s\"", err.text, words);
    moge_req_release(fixture.service.reqs, req);
}

static void test_bad_drafters(void **state) {
    (void)state;
    static const int unknown[] = {4, 77, -1, INT32_MAX, INT32_MIN};
    fixture.service.drafters = MOGE_DRAFTERS_BOTH;
    fixture.service.drafter = "both";
    for (int i = 0; i < 5; i++) {
        Moge__V1__Speculation speculation = MOGE__V1__SPECULATION__INIT;
        speculation.drafter = (Moge__V1__Speculation__Drafter)unknown[i];
        refused(&speculation, "which is not a drafter");
    }
    Moge__V1__Speculation off = MOGE__V1__SPECULATION__INIT;
    off.mode = MOGE__V1__SPECULATION__MODE__MODE_OFF;
    off.drafter = MOGE__V1__SPECULATION__DRAFTER__DRAFTER_NGRAM;
    refused(&off, "speculation.mode is MODE_OFF");
}

static Moge__V1__GenerateResponse *answer(const struct moge_usage *usage) {
    struct moge_req *req = moge_reqs_take(fixture.service.reqs);
    static struct moge_chunk chunk;
    struct moge_bytes out = {0};
    req->usage = *usage;
    atomic_store(&req->finish, MOGE_FINISH_LENGTH);
    assert_int_equal(moge_codec_chunk(&fixture.service, &chunk, req, &out), 0);
    Moge__V1__GenerateResponse *response =
        moge__v1__generate_response__unpack(NULL, out.len, out.data);
    assert_non_null(response);
    free(out.data);
    moge_req_release(fixture.service.reqs, req);
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

static int setup(void **state) {
    (void)state;
    struct moge_err err = {0};
    int rc = fixture_open(&fixture, &err);
    if (rc)
        print_error("%s\n", err.text);
    return rc;
}

static int teardown(void **state) {
    (void)state;
    fixture_close(&fixture);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_drafter_must_be_there),
                                       cmocka_unit_test(test_bad_drafters),
                                       cmocka_unit_test(test_answer_by_drafter)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
