/* SPDX-License-Identifier: Apache-2.0 */
/* What an engine refuses, counts and allocates. */
#include "tests/engine/forward_rig.h"
#include "engine/engine.c"

static void counters_count(void **state) {
    (void)state;
    struct rig rig;
    rig_open(&rig, 0, 2, moge_isa_detect());
    pages_deal(&rig, NULL);
    const struct moge_model_info *info = moge_model_info(models[0]);
    const struct moge_forward_stats *stats = moge_engine_last(rig.engine);
    span_add(&rig, seq_of(&rig, 0), 1);
    step(&rig, "one row");
    int64_t one = stats->weight_bytes;
    assert_int_equal(stats->experts_touched, info->n_layers * info->n_experts_used);
    span_add(&rig, seq_of(&rig, 0), 90);
    step(&rig, "ninety rows");
    assert_true(stats->experts_touched > info->n_layers * info->n_experts_used);
    assert_true(stats->experts_touched <= info->n_layers * info->n_experts);
    assert_true(stats->weight_bytes > one && stats->weight_bytes <= info->weight_bytes);
    rig_close(&rig);
}

/* ---- what is refused, and that nothing was written then ---- */

static uint64_t hash_of(const void *data, size_t n) {
    const unsigned char *bytes = data;
    uint64_t h = 14695981039346656037u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ bytes[i]) * 1099511628211u;
    return h;
}

static void refuse(struct rig *rig, int code) {
    size_t n_kv =
        (size_t)moge_engine_page_bytes(models[rig->kind], kinds[rig->kind].kv_type) * N_PAGES;
    uint64_t kv = hash_of(rig->engine->kv, n_kv);
    struct moge_batch before = rig->batch;
    assert_int_equal(moge_engine_forward(rig->engine, &rig->batch), code);
    assert_true(hash_of(rig->engine->kv, n_kv) == kv);
    assert_memory_equal(&before, &rig->batch, sizeof before);
}

static void bad_batches_are_refused(void **state) {
    (void)state;
    struct rig rig;
    rig_open(&rig, 0, 2, moge_isa_detect());
    pages_deal(&rig, NULL);
    int32_t n_vocab = moge_model_info(models[0])->n_vocab;
    struct sequence *seq = seq_of(&rig, 0);
    span_add(&rig, seq_of(&rig, 1), 1);
    span_add(&rig, seq, 20);
    struct moge_span *span = &rig.spans[1], good = *span;
    static const struct {
        size_t offset;
        int32_t value;
    } bad[] = {
        {offsetof(struct moge_span, pos), -1},
        {offsetof(struct moge_span, pos), N_CONTEXT - 19},
        {offsetof(struct moge_span, pos), INT32_MAX},
        {offsetof(struct moge_span, n_rows), 0},
        {offsetof(struct moge_span, n_rows), -3},
        {offsetof(struct moge_span, n_rows), N_CONTEXT + 1},
        {offsetof(struct moge_span, n_rows), INT32_MAX},
        {offsetof(struct moge_span, n_logits), -1},
        {offsetof(struct moge_span, n_logits), 21},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        memcpy((char *)span + bad[i].offset, &bad[i].value, sizeof bad[i].value);
        refuse(&rig, MOGE_INVALID);
        *span = good;
    }
    static const int32_t ids[] = {-1, INT32_MIN, INT32_MAX};
    for (size_t i = 0; i < 4; i++) {
        int32_t token = seq->tokens[19], page = seq->pages[1];
        seq->tokens[19] = i < 3 ? ids[i] : n_vocab;
        refuse(&rig, MOGE_INVALID);
        seq->tokens[19] = token;
        seq->pages[1] = i < 3 ? ids[i] : N_PAGES;
        refuse(&rig, MOGE_INVALID);
        seq->pages[1] = page;
    }
    step(&rig, "good again");
    rig_close(&rig);
}

static void too_much_is_refused(void **state) {
    (void)state;
    struct rig rig;
    struct moge_err err;
    rig_open(&rig, 0, 1, moge_isa_detect());
    pages_deal(&rig, NULL);
    moge_engine_free(rig.engine);
    struct moge_engine_options options = {
        .n_pages = N_PAGES, .n_rows_max = 8, .n_logits_max = 3, .n_context_max = N_CONTEXT};
    TEST_OK(moge_engine_new(&rig.engine, models[0], rig.threads, &options, &err), err);
    span_add(&rig, seq_of(&rig, 0), 9);
    rig.spans[0].n_logits = 1;
    refuse(&rig, MOGE_LIMIT);
    rig.spans[0].n_rows = 8;
    rig.spans[0].n_logits = 4;
    refuse(&rig, MOGE_LIMIT);
    rig.spans[0].n_logits = 3;
    step(&rig, "just fits");
    step(&rig, "nothing to do");
    rig_close(&rig);
}

static void options_are_checked(void **state) {
    (void)state;
    struct moge_err err = {0};
    struct moge_threads *threads;
    struct moge_engine *engine = NULL;
    TEST_OK(moge_threads_new(&threads, 1, &err), err);
    const struct moge_engine_options good = {1, 1, 1, 1, MOGE_KV_F16};
    for (int i = 0; i < 10; i++) {
        struct moge_engine_options options = good;
        int32_t *fields[] = {&options.n_pages, &options.n_rows_max, &options.n_logits_max,
                             &options.n_context_max};
        if (i < 8)
            *fields[i % 4] = i < 4 ? 0 : -5;
        if (i == 8)
            options.n_context_max = moge_model_info(models[0])->n_context + 1;
        if (i == 9)
            options.kv_type = (enum moge_kv_type)7;
        err = (struct moge_err){0};
        assert_int_equal(moge_engine_new(&engine, models[0], threads, &options, &err),
                         MOGE_INVALID);
        assert_true(err.text[0] != '\0');
        assert_null(engine);
    }
    moge_engine_free(NULL);
    moge_threads_free(threads);
}

/* The arena is sized by one formula and filled by other code: odd shapes must fit too. */
static void every_size_has_room(void **state) {
    (void)state;
    struct moge_err err;
    static const int32_t sizes[] = {1, 2, 33, 1000};
    for (int kind = 0; kind < N_KINDS; kind++)
        for (int i = 0; i < 16; i++) {
            struct moge_threads *threads;
            struct moge_engine *engine;
            int n_threads = i % 3 == 0 ? 1 : i % 3 == 1 ? 3 : 7;
            TEST_OK(moge_threads_new(&threads, n_threads, &err), err);
            struct moge_engine_options options = {.n_pages = 1 + i,
                                                  .n_rows_max = sizes[i % 4],
                                                  .n_logits_max = sizes[i / 4 % 4],
                                                  .n_context_max = 1 + i * 7 / 16 * 16,
                                                  .kv_type = kinds[kind].kv_type};
            TEST_OK(moge_engine_new(&engine, models[kind], threads, &options, &err), err);
            moge_engine_free(engine);
            moge_threads_free(threads);
        }
}

/* ---- no allocation inside a pass ---- */

static _Atomic int n_allocations;
void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);

void *__wrap_malloc(size_t n) {
    n_allocations++;
    return __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size) {
    n_allocations++;
    return __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n) {
    n_allocations++;
    return __real_realloc(p, n);
}

static void a_pass_allocates_nothing(void **state) {
    (void)state;
    for (int kind = 0; kind < N_KINDS; kind++) {
        struct rig rig;
        rig_open(&rig, kind, 2, moge_isa_detect());
        pages_deal(&rig, NULL);
        for (int round = 0; round < 6; round++) {
            span_add(&rig, seq_of(&rig, 0), round % 2 == 0 ? 1 : 14);
            int before = n_allocations;
            assert_int_equal(moge_engine_forward(rig.engine, &rig.batch), 0);
            assert_int_equal(n_allocations, before);
            rig.batch.n_spans = 0;
        }
        rig_close(&rig);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(counters_count),      cmocka_unit_test(bad_batches_are_refused),
        cmocka_unit_test(too_much_is_refused), cmocka_unit_test(options_are_checked),
        cmocka_unit_test(every_size_has_room), cmocka_unit_test(a_pass_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, references_make, references_free);
}
