/* SPDX-License-Identifier: Apache-2.0 */
/* Streamed replies: what was put in comes out of an independent decoder (protobuf-c's own). */
#include "server/grpc/codec_reply.c"

#include "tests/grpc/codec_sample.h"

static void push(int32_t id, const char *text, bool hidden, int32_t n_top) {
    struct moge_token_out out = {.id = id, .text_len = (int32_t)strlen(text), .hidden = hidden};
    out.logprobs.n_top = n_top;
    out.logprobs.chosen = -0.5f;
    out.logprobs.rank = 1;
    for (int i = 0; i < n_top; i++) {
        out.logprobs.top[i].id = 5 + i;
        out.logprobs.top[i].logprob = -0.5f - (float)i;
    }
    moge_req_push(req, &out, text);
}

static void begin(void) {
    struct sample s;
    struct moge_err err = {0};
    sample_init(&s);
    TEST_OK(decode_sample(&s, &err), err);
}

/* What the client reads of all that was pushed; ends: NULL, or the request if this is its last. */
static Moge__V1__GenerateResponse *next_response(struct moge_req *ends) {
    static struct moge_chunk chunk;
    struct moge_bytes out = {0};
    assert_true(moge_chunk_fill(&chunk, req));
    assert_int_equal(moge_codec_chunk(service, &chunk, ends, &out), 0);
    Moge__V1__GenerateResponse *response =
        moge__v1__generate_response__unpack(NULL, out.len, out.data);
    assert_non_null(response);
    free(out.data);
    return response;
}

/* Tokens of the prompt come under their own name, before and beside the others. */
static void test_prompt_scores(void **state) {
    (void)state;
    begin();
    for (int32_t id = 7; id < 9; id++) {
        struct moge_token_out score = {
            .id = id, .scored = true, .logprobs = {.chosen = -0.5f, .rank = id, .n_top = 1}};
        score.logprobs.top[0].id = 6;
        moge_req_push(req, &score, "");
    }
    push(5, "x", false, -1);
    Moge__V1__GenerateResponse *r = next_response(NULL);
    assert_int_equal(r->n_prompt_tokens, 2);
    for (int32_t i = 0; i < 2; i++) {
        const Moge__V1__PromptToken *token = r->prompt_tokens[i];
        size_t len;
        const char *piece = moge_tokenizer_piece(service->tokenizer, 7 + i, &len);
        assert_int_equal(token->id, 7 + i);
        assert_int_equal(token->piece.len, len);
        assert_memory_equal(token->piece.data, piece, len);
        assert_float_equal(token->logprobs->logprob, -0.5, 0);
        assert_int_equal(token->logprobs->rank, 7 + i);
        assert_int_equal(token->logprobs->n_top, 1);
        assert_int_equal(token->logprobs->top[0]->id, 6);
    }
    assert_int_equal(r->n_token_ids, 1);
    assert_int_equal(r->token_ids[0], 5);
    assert_int_equal(r->n_logprobs, 0);
    moge__v1__generate_response__free_unpacked(r, NULL);
}

static void test_chunks(void **state) {
    (void)state;
    begin();
    static struct moge_chunk chunk;
    assert_false(moge_chunk_fill(&chunk, req));
    push(5, "se", false, 2);
    push(6, "", false, 2);
    push(2, "lect", true, -1); /* text that was held back, under a token that is not shown */
    req->usage = (struct moge_usage){.n_prompt = 3, .n_output = 3, .n_offered = 4, .n_accepted = 1};
    req->usage.offered_at[0] = req->usage.offered_at[1] = 2;
    req->usage.accepted_at[0] = 1;
    req->usage.queue_us = 7;
    req->usage.prefill_us = 5;
    req->stop_id = 2;
    req->sample.seed = 99;
    atomic_store(&req->finish, MOGE_FINISH_STOP);
    Moge__V1__GenerateResponse *r = next_response(req);
    assert_int_equal(r->n_token_ids, 2);
    assert_int_equal(r->token_ids[1], 6);
    assert_int_equal(r->text.len, 6);
    assert_memory_equal(r->text.data, "select", 6);
    assert_int_equal(r->n_logprobs, 2);
    assert_int_equal(r->logprobs[1]->n_top, 2);
    assert_int_equal(r->logprobs[1]->top[1]->id, 6);
    assert_int_equal(r->finish->reason, MOGE__V1__FINISH__REASON__REASON_STOP);
    assert_int_equal(r->finish->matched_case, MOGE__V1__FINISH__MATCHED_MATCHED_TOKEN_ID);
    assert_int_equal(r->finish->matched_token_id, 2);
    assert_int_equal(r->finish->seed, 99);
    assert_int_equal(r->finish->usage->output_tokens, 3);
    assert_int_equal(r->finish->timings->time_to_first_token_us, 12);
    assert_int_equal(r->finish->guesses->n_offered_by_position, 2);
    assert_int_equal(r->finish->guesses->accepted_by_position[1], 0);
    moge__v1__generate_response__free_unpacked(r, NULL);
}

/* Without log-probabilities and without an end there is only text and ids. */
static void test_plain_chunk(void **state) {
    (void)state;
    begin();
    push(5, "x", false, -1);
    Moge__V1__GenerateResponse *r = next_response(NULL);
    assert_int_equal(r->n_logprobs, 0);
    assert_null(r->finish);
    moge__v1__generate_response__free_unpacked(r, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_chunks),
                                       cmocka_unit_test(test_prompt_scores),
                                       cmocka_unit_test(test_plain_chunk)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
