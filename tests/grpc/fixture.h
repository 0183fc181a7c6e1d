/* SPDX-License-Identifier: Apache-2.0 */
/* A service without an engine: the tiny model's tokenizer, a request pool, a queue and metrics. */
#ifndef TEST_GRPC_FIXTURE_H
#define TEST_GRPC_FIXTURE_H

#include "moge/gguf.h"
#include "server/service.h"

#define FIXTURE_CONTEXT 64
#define FIXTURE_REQS    80

struct fixture {
    struct moge_gguf *gguf;
    struct moge_tokenizer *tokenizer;
    struct moge_metrics metrics;
    struct moge_service service;
};

static inline int fixture_open(struct fixture *f, struct moge_err *err) {
    struct moge_queue_options queue = {.n_reqs_max = FIXTURE_REQS, .n_tokens_max = 1 << 20};
    int rc = moge_gguf_open(&f->gguf, MOGE_SOURCE_DIR "/tests/golden/tiny-target.gguf", err);
    if (rc == 0)
        rc = moge_tokenizer_open(&f->tokenizer, f->gguf, err);
    if (rc == 0)
        rc = moge_reqs_new(&f->service.reqs, FIXTURE_REQS, FIXTURE_CONTEXT, err);
    if (rc == 0)
        rc = moge_queue_new(&f->service.queue, &queue, err);
    if (rc)
        return rc;
    f->service.tokenizer = f->tokenizer;
    f->service.target = (struct moge_model_info){.name = "tiny",
                                                 .architecture = "pangu-moe",
                                                 .weights = "f32",
                                                 .n_vocab = moge_tokenizer_n_vocab(f->tokenizer),
                                                 .n_context = FIXTURE_CONTEXT};
    f->service.isa = "scalar";
    f->service.drafter = "none";
    f->service.metrics = &f->metrics;
    f->service.n_context = FIXTURE_CONTEXT;
    f->service.n_running_max = 4;
    f->service.spec_mode = MOGE_SPEC_AUTO;
    f->service.draft_len_max = 8;
    f->service.max_message_bytes = 1 << 20;
    return 0;
}

static inline void fixture_close(struct fixture *f) {
    moge_queue_free(f->service.queue);
    moge_reqs_free(f->service.reqs);
    moge_tokenizer_close(f->tokenizer);
    moge_gguf_close(f->gguf);
}

#endif
