/* SPDX-License-Identifier: Apache-2.0 */
/* A service and a request that is right, for tests of the codec to spoil or to answer. */
#ifndef TEST_CODEC_SAMPLE_H
#define TEST_CODEC_SAMPLE_H

#include "moge/v1/moge.pb-c.h"
#include "server/grpc/codec.h"
#include "tests/grpc/fixture.h"
#include "tests/test.h"

static struct fixture fixture;
static struct moge_req *req;
static const struct moge_service *service = &fixture.service;

/* A request that is right, for each test to spoil. */
struct sample {
    Moge__V1__GenerateRequest request;
    Moge__V1__Sampling sampling;
    Moge__V1__Stopping stopping;
    Moge__V1__Speculation speculation;
    Moge__V1__TokenIds ids;
    uint32_t id[FIXTURE_CONTEXT + 1];
};

static void sample_init(struct sample *s) {
    moge__v1__generate_request__init(&s->request);
    moge__v1__sampling__init(&s->sampling);
    moge__v1__stopping__init(&s->stopping);
    moge__v1__speculation__init(&s->speculation);
    moge__v1__token_ids__init(&s->ids);
    for (uint32_t i = 0; i < FIXTURE_CONTEXT + 1; i++)
        s->id[i] = i + 5;
    s->ids.n_ids = 3;
    s->ids.ids = s->id;
    s->request.sampling = &s->sampling;
    s->request.stopping = &s->stopping;
    s->request.speculation = &s->speculation;
    s->request.prompt_case = MOGE__V1__GENERATE_REQUEST__PROMPT_TOKEN_IDS;
    s->request.token_ids = &s->ids;
}

static int decode(const void *data, size_t len, struct moge_err *err) {
    if (req)
        moge_req_release(service->reqs, req);
    req = moge_reqs_take(service->reqs);
    assert_non_null(req);
    return moge_codec_generate(service, data, len, req, err);
}

static int decode_sample(struct sample *s, struct moge_err *err) {
    size_t len = moge__v1__generate_request__get_packed_size(&s->request);
    uint8_t *data = malloc(len + 1);
    moge__v1__generate_request__pack(&s->request, data);
    int rc = decode(data, len, err);
    free(data);
    return rc;
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
    if (req)
        moge_req_release(service->reqs, req);
    fixture_close(&fixture);
    return 0;
}

#endif
