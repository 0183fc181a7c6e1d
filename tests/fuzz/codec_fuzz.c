/* SPDX-License-Identifier: Apache-2.0 */
/* Arbitrary bytes as each kind of request: no crash, no leak, and a sentence when refused.  The
 * first byte chooses the method. */
#include "server/grpc/codec.h"

#include <stdlib.h>
#include <string.h>

#include "../grpc/fixture.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(int rc, const struct moge_err *err) {
    MOGE_ASSERT(rc == 0 ||
                (rc == err->code && err->text[0] != '\0' && strlen(err->text) < sizeof err->text));
}

static void generate(const struct moge_service *service, const uint8_t *data, size_t size) {
    struct moge_err err = {0};
    struct moge_req *req = moge_reqs_take(service->reqs);
    int rc = moge_codec_generate(service, data, size, req, &err);
    check(rc, &err);
    if (rc == 0) { /* what the scheduler relies on */
        MOGE_ASSERT(req->n_prompt >= 1 && req->n_prompt < service->n_context);
        MOGE_ASSERT(req->max_tokens >= 1 && req->n_prompt + req->max_tokens <= service->n_context);
        for (int32_t i = 0; i < req->n_prompt; i++)
            MOGE_ASSERT(req->tokens[i] >= 0 && req->tokens[i] < service->target.n_vocab);
        MOGE_ASSERT(req->sample.temperature >= 0 && req->sample.top_p > 0);
        MOGE_ASSERT(req->spec_len_max >= 0 && req->spec_len_max <= service->draft_len_max);
    }
    moge_req_release(service->reqs, req);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct fixture fixture;
    struct moge_err err = {0};
    struct moge_bytes out = {0};
    char name[16];
    if (!fixture.tokenizer && fixture_open(&fixture, &err) != 0)
        moge_assert_failed(err.text, __FILE__, __LINE__);
    if (size == 0)
        return 0;
    const struct moge_service *service = &fixture.service;
    unsigned method = data[0] % 4u;
    data++;
    size--;
    if (method == 0)
        generate(service, data, size);
    else if (method == 1)
        check(moge_codec_tokenize(service, data, size, &out, &err), &err);
    else if (method == 2)
        check(moge_codec_detokenize(service, data, size, &out, &err), &err);
    else
        check(moge_codec_health_request(data, size, name, sizeof name, &err), &err);
    free(out.data);
    return 0;
}
