/* SPDX-License-Identifier: Apache-2.0 */
/* Requests: every field lands where it belongs, every bad one gets its sentence and nothing leaks.
 * Unary replies: what was put in comes out of an independent decoder (protobuf-c's own). */
#include "server/grpc/codec.c"

#include "tests/grpc/codec_sample.h"

static void refused(struct sample *s, const char *words) {
    struct moge_err err = {0};
    int rc = decode_sample(s, &err);
    if (rc != MOGE_INVALID || !strstr(err.text, words))
        fail_msg("%d \"%s\" does not refuse with \"%s\"", rc, err.text, words);
    assert_int_equal(err.code, MOGE_INVALID);
}

static void text_set(struct sample *s, const char *text, size_t len) {
    s->request.prompt_case = MOGE__V1__GENERATE_REQUEST__PROMPT_TEXT;
    s->request.text = (ProtobufCBinaryData){len, (uint8_t *)(uintptr_t)text};
}

static void test_defaults(void **state) {
    (void)state;
    struct sample s;
    struct moge_err err = {0};
    sample_init(&s);
    s.request.sampling = NULL;
    s.request.stopping = NULL;
    s.request.speculation = NULL;
    TEST_OK(decode_sample(&s, &err), err);
    assert_int_equal(req->n_prompt, 3);
    assert_int_equal(req->tokens[2], 7);
    assert_int_equal(req->max_tokens, FIXTURE_CONTEXT - 3);
    assert_int_equal(req->sample.n_logprobs, -1);
    assert_int_equal(req->n_prompt_logprobs, -1);
    assert_int_equal(req->n_samples, 1);
    assert_int_equal(req->spec_mode, MOGE_SPEC_AUTO);
    assert_int_equal(req->spec_len_max, 8);
    assert_float_equal(req->sample.temperature, 1, 0);
    assert_int_equal(req->sample.n_stop_ids, 1);
    assert_int_equal(req->stop_ids[0], moge_tokenizer_eos(service->tokenizer));
    uint64_t seed = req->sample.seed;
    TEST_OK(decode_sample(&s, &err), err);
    assert_int_not_equal(seed, req->sample.seed);
}

static void test_every_field(void **state) {
    (void)state;
    struct sample s;
    struct moge_err err = {0};
    Moge__V1__LogitBias bias = MOGE__V1__LOGIT_BIAS__INIT, *biases[] = {&bias};
    ProtobufCBinaryData stops[] = {{3, (uint8_t *)"a\0b"}, {1, (uint8_t *)"z"}};
    uint32_t stop_ids[] = {9, 10};
    sample_init(&s);
    bias.id = 11;
    bias.bias = -INFINITY;
#define SET(message, field, Case, value)                                                           \
    ((message)._##field##_case = (Case), (message).field = (value))
    SET(s.sampling, temperature, MOGE__V1__SAMPLING___TEMPERATURE_TEMPERATURE, 0);
    SET(s.sampling, top_k, MOGE__V1__SAMPLING___TOP_K_TOP_K, 40);
    SET(s.sampling, top_p, MOGE__V1__SAMPLING___TOP_P_TOP_P, 0.5f);
    SET(s.sampling, min_p, MOGE__V1__SAMPLING___MIN_P_MIN_P, 0.25f);
    SET(s.sampling, repetition_penalty, MOGE__V1__SAMPLING___REPETITION_PENALTY_REPETITION_PENALTY,
        1.5f);
    SET(s.sampling, presence_penalty, MOGE__V1__SAMPLING___PRESENCE_PENALTY_PRESENCE_PENALTY, -1);
    SET(s.sampling, frequency_penalty, MOGE__V1__SAMPLING___FREQUENCY_PENALTY_FREQUENCY_PENALTY, 2);
    SET(s.sampling, seed, MOGE__V1__SAMPLING___SEED_SEED, UINT64_MAX);
    s.sampling.n_logit_bias = 1;
    s.sampling.logit_bias = biases;
    SET(s.stopping, max_tokens, MOGE__V1__STOPPING___MAX_TOKENS_MAX_TOKENS, 12);
    s.stopping.min_tokens = 4;
    s.stopping.n_stop = 2;
    s.stopping.stop = stops;
    s.stopping.n_stop_token_ids = 2;
    s.stopping.stop_token_ids = stop_ids;
    s.stopping.ignore_eos = s.stopping.include_stop = 1;
    s.speculation.mode = MOGE__V1__SPECULATION__MODE__MODE_FIXED;
    SET(s.speculation, length, MOGE__V1__SPECULATION___LENGTH_LENGTH, 5);
    SET(s.request, logprobs, MOGE__V1__GENERATE_REQUEST___LOGPROBS_LOGPROBS, 0);
    SET(s.request, prompt_logprobs, MOGE__V1__GENERATE_REQUEST___PROMPT_LOGPROBS_PROMPT_LOGPROBS,
        20);
    s.request.priority = -3;
    s.request.cache_salt = (ProtobufCBinaryData){4, (uint8_t *)"a\0b\n"};
    TEST_OK(decode_sample(&s, &err), err);
    const struct moge_sample_params *p = &req->sample;
    assert_float_equal(p->temperature, 0, 0);
    assert_int_equal(p->top_k, 40);
    assert_float_equal(p->top_p, 0.5, 0);
    assert_float_equal(p->min_p, 0.25, 0);
    assert_float_equal(p->repetition_penalty, 1.5, 0);
    assert_float_equal(p->presence_penalty, -1, 0);
    assert_float_equal(p->frequency_penalty, 2, 0);
    assert_true(p->seed == UINT64_MAX);
    assert_int_equal(p->n_bias, 1);
    assert_int_equal(p->bias[0].id, 11);
    assert_true(p->bias[0].bias == -INFINITY);
    assert_int_equal(req->max_tokens, 12);
    assert_int_equal(p->min_tokens, 4);
    assert_int_equal(req->n_stop_strings, 2);
    assert_int_equal(req->stop_string_len[0], 3);
    assert_memory_equal(req->stop_strings[0], "a\0b", 3);
    assert_int_equal(p->n_stop_ids, 2);
    assert_int_equal(p->stop_ids[1], 10);
    assert_true(req->include_stop);
    assert_int_equal(req->spec_mode, MOGE_SPEC_FIXED);
    assert_int_equal(req->spec_len, 5);
    assert_int_equal(req->spec_len_max, 5);
    assert_int_equal(p->n_logprobs, 0);
    assert_int_equal(req->n_prompt_logprobs, 20);
    assert_int_equal(req->priority, -3);
    assert_int_equal(req->cache_salt_len, 4);
    assert_memory_equal(req->cache_salt, "a\0b\n", 4);
}

static void test_bad_prompts(void **state) {
    (void)state;
    struct sample s;
    sample_init(&s);
    s.request.prompt_case = MOGE__V1__GENERATE_REQUEST__PROMPT__NOT_SET;
    refused(&s, "there is no prompt");
    sample_init(&s);
    s.ids.n_ids = 0;
    refused(&s, "prompt is empty");
    sample_init(&s);
    s.ids.n_ids = FIXTURE_CONTEXT;
    refused(&s, "more than 63 tokens");
    sample_init(&s);
    s.id[1] = (uint32_t)service->target.n_vocab;
    refused(&s, "token_ids[1] is 512");
    s.id[1] = UINT32_MAX;
    refused(&s, "token_ids[1] is 4294967295");
    text_set(&s, "", 0);
    refused(&s, "prompt is empty");
    text_set(&s, "a\xc3", 2);
    refused(&s, "text is not valid UTF-8");
    char text[4096];
    memset(text, 'q', sizeof text);
    text_set(&s, text, sizeof text);
    refused(&s, "more than 63 tokens");
}

static void test_text_prompts(void **state) {
    (void)state;
    struct sample s;
    struct moge_err err = {0};
    sample_init(&s);
    text_set(&s, "a\0b", 3);
    TEST_OK(decode_sample(&s, &err), err);
    int32_t n = req->n_prompt, first = req->tokens[0];
    int32_t bos = moge_tokenizer_bos(service->tokenizer);
    SET(s.request, add_bos, MOGE__V1__GENERATE_REQUEST___ADD_BOS_ADD_BOS, 0);
    TEST_OK(decode_sample(&s, &err), err);
    assert_int_equal(req->n_prompt, first == bos ? n - 1 : n);
    assert_int_not_equal(req->tokens[0], bos);
    assert_true(req->n_prompt >= 3); /* the NUL did not end it */
}

static void test_bad_parameters(void **state) {
    (void)state;
    struct sample s;
    sample_init(&s);
    SET(s.sampling, temperature, MOGE__V1__SAMPLING___TEMPERATURE_TEMPERATURE, NAN);
    refused(&s, "temperature");
    sample_init(&s);
    SET(s.sampling, top_p, MOGE__V1__SAMPLING___TOP_P_TOP_P, 0);
    refused(&s, "top_p");
    sample_init(&s);
    SET(s.sampling, top_k, MOGE__V1__SAMPLING___TOP_K_TOP_K, -1);
    refused(&s, "top_k");
    static const int32_t lengths[] = {0, -1, 9, INT32_MAX};
    for (int i = 0; i < 4; i++) {
        sample_init(&s);
        s.speculation.mode = MOGE__V1__SPECULATION__MODE__MODE_FIXED;
        SET(s.speculation, length, MOGE__V1__SPECULATION___LENGTH_LENGTH, lengths[i]);
        refused(&s, "speculation.length is");
        sample_init(&s);
        s.speculation.mode = MOGE__V1__SPECULATION__MODE__MODE_AUTO;
        SET(s.speculation, max_length, MOGE__V1__SPECULATION___MAX_LENGTH_MAX_LENGTH, lengths[i]);
        refused(&s, "speculation.max_length is");
    }
    sample_init(&s);
    s.speculation.mode = MOGE__V1__SPECULATION__MODE__MODE_FIXED;
    refused(&s, "length is not set");
    sample_init(&s);
    SET(s.speculation, length, MOGE__V1__SPECULATION___LENGTH_LENGTH, 2);
    refused(&s, "for MODE_FIXED only");
    sample_init(&s);
    s.speculation.mode = (Moge__V1__Speculation__Mode)77;
    refused(&s, "speculation.mode is 77");
    static const int32_t counts[] = {-1, 21, INT32_MIN};
    for (int i = 0; i < 3; i++) {
        sample_init(&s);
        SET(s.request, logprobs, MOGE__V1__GENERATE_REQUEST___LOGPROBS_LOGPROBS, counts[i]);
        refused(&s, "logprobs is");
        sample_init(&s);
        SET(s.request, prompt_logprobs,
            MOGE__V1__GENERATE_REQUEST___PROMPT_LOGPROBS_PROMPT_LOGPROBS, counts[i]);
        refused(&s, "prompt_logprobs is");
        sample_init(&s);
        s.request.n = counts[i];
        refused(&s, "this server allows 1..");
    }
    static uint8_t salt[MOGE_CACHE_SALT_MAX + 1];
    sample_init(&s);
    s.request.cache_salt = (ProtobufCBinaryData){sizeof salt, salt};
    refused(&s, "cache_salt has 129 bytes");
}

static void test_bad_stops(void **state) {
    (void)state;
    struct sample s;
    char text[MOGE_STOP_BYTES_MAX + 1];
    ProtobufCBinaryData stops[MOGE_STOP_STRINGS_MAX + 1];
    uint32_t ids[MOGE_STOP_IDS_MAX];
    memset(text, 'x', sizeof text);
    for (size_t i = 0; i < MOGE_STOP_STRINGS_MAX + 1; i++)
        stops[i] = (ProtobufCBinaryData){1, (uint8_t *)text};
    for (size_t i = 0; i < MOGE_STOP_IDS_MAX; i++)
        ids[i] = 5;
    sample_init(&s);
    s.stopping.stop = stops;
    s.stopping.n_stop = MOGE_STOP_STRINGS_MAX + 1;
    refused(&s, "stopping.stop has 17 strings");
    s.stopping.n_stop = 2;
    stops[1].len = sizeof text;
    refused(&s, "stopping.stop[1] has 257 bytes");
    stops[1].len = 0;
    refused(&s, "stopping.stop[1] has 0 bytes");
    stops[1] = (ProtobufCBinaryData){3, (uint8_t *)"\xed\xa0\x80"};
    refused(&s, "stopping.stop[1] is not valid UTF-8");
    s.stopping.n_stop = 0;
    s.stopping.stop_token_ids = ids;
    s.stopping.n_stop_token_ids = MOGE_STOP_IDS_MAX;
    refused(&s, "stopping.stop_token_ids has 64 ids");
    s.stopping.n_stop_token_ids = 2;
    ids[1] = 512;
    refused(&s, "stopping.stop_token_ids[1] is 512");
    sample_init(&s);
    SET(s.stopping, max_tokens, MOGE__V1__STOPPING___MAX_TOKENS_MAX_TOKENS, 0);
    refused(&s, "max_tokens is 0");
    SET(s.stopping, max_tokens, MOGE__V1__STOPPING___MAX_TOKENS_MAX_TOKENS, 4);
    s.stopping.min_tokens = 5;
    refused(&s, "min_tokens is 5");
    s.stopping.min_tokens = -1;
    refused(&s, "min_tokens is -1");
}

static void test_bad_bias(void **state) {
    (void)state;
    struct sample s;
    static Moge__V1__LogitBias one, *biases[MOGE_LOGIT_BIAS_MAX + 1];
    moge__v1__logit_bias__init(&one);
    for (size_t i = 0; i < MOGE_LOGIT_BIAS_MAX + 1; i++)
        biases[i] = &one;
    sample_init(&s);
    s.sampling.logit_bias = biases;
    s.sampling.n_logit_bias = MOGE_LOGIT_BIAS_MAX + 1;
    refused(&s, "logit_bias has 1025 entries");
    s.sampling.n_logit_bias = 1;
    one.id = 512;
    refused(&s, "sampling.logit_bias[0] is 512");
    one.id = 5;
    one.bias = NAN;
    refused(&s, "logit_bias[0].bias is");
    one.bias = INFINITY;
    refused(&s, "logit_bias[0].bias is");
}

/* ---- messages that are not what they seem ---- */

static void test_malformed(void **state) {
    (void)state;
    static const struct {
        const char *data;
        size_t len;
    } bad[] = {{"\x0a\xff\xff\xff\xff\x0f", 6},
               {"\x07", 1},
               {"\x0a\x05"
                "ab",
                4},
               {"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 11},
               {"\x2a\x02\x0d\x00", 4}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct moge_err err = {0};
        assert_int_equal(decode(bad[i].data, bad[i].len, &err), MOGE_INVALID);
        assert_non_null(strstr(err.text, "well-formed"));
    }
    struct moge_err err = {0};
    assert_int_equal(decode("", 0, &err), MOGE_INVALID);
    assert_non_null(strstr(err.text, "no prompt"));
}

/* A megabyte of two-byte unknown fields would cost 29 MiB without a budget. */
static void test_amplification_is_stopped(void **state) {
    (void)state;
    size_t len = 1 << 20;
    unsigned char *data = malloc(len);
    for (size_t i = 0; i < len; i += 2) {
        data[i] = 0x78; /* field 15, varint */
        data[i + 1] = 0;
    }
    struct moge_err err = {0};
    assert_int_equal(decode(data, len, &err), MOGE_LIMIT);
    assert_non_null(strstr(err.text, "too much memory"));
    free(data);
}

/* Honest requests at the limits stay under the budget. */
static void test_the_budget_is_no_obstacle(void **state) {
    (void)state;
    struct sample s;
    struct moge_err err = {0};
    static Moge__V1__LogitBias store[MOGE_LOGIT_BIAS_MAX], *biases[MOGE_LOGIT_BIAS_MAX];
    for (size_t i = 0; i < MOGE_LOGIT_BIAS_MAX; i++) {
        moge__v1__logit_bias__init(&store[i]);
        store[i].id = (uint32_t)i % 512;
        biases[i] = &store[i];
    }
    sample_init(&s);
    s.sampling.logit_bias = biases;
    s.sampling.n_logit_bias = MOGE_LOGIT_BIAS_MAX;
    TEST_OK(decode_sample(&s, &err), err);
    assert_int_equal(req->sample.n_bias, MOGE_LOGIT_BIAS_MAX);
    /* Half a million ids, as the wire may carry them to Detokenize. */
    Moge__V1__DetokenizeRequest many = MOGE__V1__DETOKENIZE_REQUEST__INIT;
    many.n_token_ids = 500000;
    many.token_ids = calloc(many.n_token_ids, sizeof *many.token_ids);
    for (size_t i = 0; i < many.n_token_ids; i++) /* BOS is no text: the reply is small */
        many.token_ids[i] = (uint32_t)moge_tokenizer_bos(service->tokenizer);
    size_t len = moge__v1__detokenize_request__get_packed_size(&many);
    uint8_t *data = malloc(len);
    moge__v1__detokenize_request__pack(&many, data);
    struct moge_bytes out = {0};
    TEST_OK(moge_codec_detokenize(service, data, len, &out, &err), err);
    free(out.data);
    free(data);
    free(many.token_ids);
}

/* ---- unary methods ---- */

static void test_tokenize_and_back(void **state) {
    (void)state;
    static const char text[] = "select \xc3\xa9\0 \xe8\xaa\x9e;";
    struct moge_err err = {0};
    struct moge_bytes out = {0}, back = {0};
    Moge__V1__TokenizeRequest request = MOGE__V1__TOKENIZE_REQUEST__INIT;
    request.text = (ProtobufCBinaryData){sizeof text - 1, (uint8_t *)(uintptr_t)text};
    request.with_pieces = 1;
    SET(request, add_bos, MOGE__V1__TOKENIZE_REQUEST___ADD_BOS_ADD_BOS, 0);
    uint8_t data[512];
    size_t len = moge__v1__tokenize_request__pack(&request, data);
    TEST_OK(moge_codec_tokenize(service, data, len, &out, &err), err);
    Moge__V1__TokenizeResponse *reply =
        moge__v1__tokenize_response__unpack(NULL, out.len, out.data);
    assert_non_null(reply);
    assert_true(reply->n_token_ids > 0 && reply->n_pieces == reply->n_token_ids);
    Moge__V1__DetokenizeRequest again = MOGE__V1__DETOKENIZE_REQUEST__INIT;
    again.n_token_ids = reply->n_token_ids;
    again.token_ids = reply->token_ids;
    len = moge__v1__detokenize_request__pack(&again, data);
    TEST_OK(moge_codec_detokenize(service, data, len, &back, &err), err);
    Moge__V1__DetokenizeResponse *shown =
        moge__v1__detokenize_response__unpack(NULL, back.len, back.data);
    assert_int_equal(shown->text.len, sizeof text - 1);
    assert_memory_equal(shown->text.data, text, sizeof text - 1);
    moge__v1__detokenize_response__free_unpacked(shown, NULL);
    moge__v1__tokenize_response__free_unpacked(reply, NULL);
    free(out.data);
    free(back.data);
}

static void test_unary_refusals(void **state) {
    (void)state;
    struct moge_err err = {0};
    struct moge_bytes out = {0};
    static const uint8_t bad_text[] = {0x0a, 1, 0xff}, bad_id[] = {0x0a, 2, 0x80, 0x04};
    assert_int_equal(moge_codec_tokenize(service, bad_text, 3, &out, &err), MOGE_INVALID);
    assert_non_null(strstr(err.text, "UTF-8"));
    assert_int_equal(moge_codec_detokenize(service, bad_id, 4, &out, &err), MOGE_INVALID);
    assert_non_null(strstr(err.text, "token_ids[0] is 512"));
    assert_int_equal(moge_codec_tokenize(service, "\x07", 1, &out, &err), MOGE_INVALID);
    assert_int_equal(moge_codec_detokenize(service, "\x07", 1, &out, &err), MOGE_INVALID);
    assert_null(out.data);
}

static void test_reply_is_bounded(void **state) {
    (void)state;
    struct moge_service small = *service;
    struct moge_err err = {0};
    struct moge_bytes out = {0};
    small.max_message_bytes = 16;
    static const uint8_t text[] = {0x0a, 20,  'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i',
                                   'j',  'k', 'l', 'm', 'n', 'o', 'p', 'q', 'r', 's', 't'};
    assert_int_equal(moge_codec_tokenize(&small, text, sizeof text, &out, &err), MOGE_LIMIT);
    assert_non_null(strstr(err.text, "16"));
    assert_null(out.data);
}

static void test_model_info(void **state) {
    (void)state;
    struct moge_err err = {0};
    struct moge_bytes out = {0};
    TEST_OK(moge_codec_model_info(service, "", 0, &out, &err), err);
    Moge__V1__GetModelInfoResponse *info =
        moge__v1__get_model_info_response__unpack(NULL, out.len, out.data);
    assert_memory_equal(info->target->name.data, "tiny", 4);
    assert_int_equal(info->target->vocabulary, 512);
    assert_null(info->draft);
    assert_int_equal(info->server->context, FIXTURE_CONTEXT);
    assert_int_equal(info->server->speculation, MOGE__V1__SPECULATION__MODE__MODE_AUTO);
    moge__v1__get_model_info_response__free_unpacked(info, NULL);
    free(out.data);
}

static void test_utf8(void **state) {
    (void)state;
    static const char *const good[] = {"",
                                       "a",
                                       "\xc2\x80",
                                       "\xe0\xa0\x80",
                                       "\xed\x9f\xbf",
                                       "\xee\x80\x80",
                                       "\xf0\x90\x80\x80",
                                       "\xf4\x8f\xbf\xbf"};
    static const char *const bad[] = {"\x80",
                                      "\xc0\x80",
                                      "\xc1\xbf",
                                      "\xc2",
                                      "\xe0\x9f\xbf",
                                      "\xed\xa0\x80",
                                      "\xe0\xa0",
                                      "\xf0\x8f\xbf\xbf",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "\xff",
                                      "a\xc3(",
                                      "\xf0\x90\x80"};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        assert_true(moge_utf8_valid(good[i], strlen(good[i])));
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_false(moge_utf8_valid(bad[i], strlen(bad[i])));
}

static void test_health(void **state) {
    (void)state;
    char name[8];
    struct moge_err err = {0};
    TEST_OK(moge_codec_health_request("", 0, name, sizeof name, &err), err);
    assert_string_equal(name, "");
    TEST_OK(moge_codec_health_request("\x0a\x0clong service", 14, name, sizeof name, &err), err);
    assert_string_equal(name, "long se");
    assert_int_equal(moge_codec_health_request("\x0a\x09x", 3, name, sizeof name, &err),
                     MOGE_INVALID);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_every_field),
        cmocka_unit_test(test_bad_prompts),
        cmocka_unit_test(test_text_prompts),
        cmocka_unit_test(test_bad_parameters),
        cmocka_unit_test(test_bad_stops),
        cmocka_unit_test(test_bad_bias),
        cmocka_unit_test(test_malformed),
        cmocka_unit_test(test_amplification_is_stopped),
        cmocka_unit_test(test_the_budget_is_no_obstacle),
        cmocka_unit_test(test_tokenize_and_back),
        cmocka_unit_test(test_unary_refusals),
        cmocka_unit_test(test_reply_is_bounded),
        cmocka_unit_test(test_model_info),
        cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_health),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
