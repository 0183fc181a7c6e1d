/* SPDX-License-Identifier: Apache-2.0 */
/* Attention over several segments: the same bits however rows are cut into tiles, chunks and
 * sequences, and close to a softmax over everything at once in doubles. */
#include <math.h>
#include "tests/test.h"
#include "engine/attn.c"

#define MODEL     MOGE_SOURCE_DIR "/tests/golden/tiny-target.gguf"
#define N_CONTEXT 512
#define N_PAGES   (2 * N_CONTEXT / MOGE_PAGE_TOKENS)

enum {
    HEADS = 4,
    KV_HEADS = 2,
    HEAD_DIM = 16,
    DIM = HEADS * HEAD_DIM,
    KV_DIM = KV_HEADS * HEAD_DIM
};

static struct moge_model *model;
static float q[N_CONTEXT * DIM], k[N_CONTEXT * KV_DIM], v[N_CONTEXT * KV_DIM];
static float want[N_CONTEXT * DIM];
static int32_t tables[2][N_CONTEXT / MOGE_PAGE_TOKENS]; /* two sequences, pages in turns */

static struct moge_engine *engine_open(enum moge_kv_type kv_type, struct moge_threads *threads) {
    struct moge_engine_options options = {.n_pages = N_PAGES,
                                          .n_rows_max = N_CONTEXT,
                                          .n_logits_max = 1,
                                          .n_context_max = N_CONTEXT,
                                          .kv_type = kv_type};
    struct moge_engine *engine;
    struct moge_err err;
    TEST_OK(moge_engine_new(&engine, model, threads, &options, &err), err);
    memset(engine->kv, 0xff, engine->kv_arena.cap_bytes); /* what is never written is NaN */
    engine->n_active = 1;
    return engine;
}

/* Rows begin.. of one sequence or, in turns, of both. */
static void attend(struct moge_engine *engine, int32_t begin, int32_t n, int n_seqs) {
    engine->n_rows = n * n_seqs;
    for (int32_t i = 0; i < n * n_seqs; i++) {
        size_t pos = (size_t)(begin + i % n), row = (size_t)i;
        engine->rows[i] = (struct moge_row){.pos = (int32_t)pos, .pages = tables[i / n]};
        memcpy(engine->q + row * DIM, q + pos * DIM, DIM * sizeof *q);
        memcpy(engine->k + row * KV_DIM, k + pos * KV_DIM, KV_DIM * sizeof *k);
        memcpy(engine->v + row * KV_DIM, v + pos * KV_DIM, KV_DIM * sizeof *v);
    }
    moge_attn_run(engine, 0, 0);
}

static void fill(uint64_t seed, float size) {
    struct test_rng rng = test_rng_init(seed);
    for (int i = 0; i < N_CONTEXT * DIM; i++)
        q[i] = test_float(&rng) * size;
    for (int i = 0; i < N_CONTEXT * KV_DIM; i++) {
        k[i] = test_float(&rng) * size;
        v[i] = test_float(&rng);
    }
}

/* One row, one head: everything at once, in doubles.  q and k as the engine has turned them. */
static void check_row(const struct moge_engine *engine, int32_t row, int32_t head, double within) {
    const float *query = engine->q + row * DIM + head * HEAD_DIM;
    double weights[N_CONTEXT], largest = -1e9, sum = 0, out[HEAD_DIM] = {0};
    for (int32_t t = 0; t <= row; t++) {
        weights[t] = 0;
        for (int i = 0; i < HEAD_DIM; i++)
            weights[t] += (double)query[i] * engine->k[t * KV_DIM + head / 2 * HEAD_DIM + i];
        weights[t] /= sqrt(HEAD_DIM);
        largest = fmax(largest, weights[t]);
    }
    for (int32_t t = 0; t <= row; t++) {
        double weight = exp(weights[t] - largest);
        sum += weight;
        for (int i = 0; i < HEAD_DIM; i++)
            out[i] += weight * v[t * KV_DIM + head / 2 * HEAD_DIM + i];
    }
    for (int i = 0; i < HEAD_DIM; i++)
        assert_true(fabs(engine->attn.f32[row * DIM + head * HEAD_DIM + i] - out[i] / sum) <
                    within);
}

static void several_segments_are_one_softmax(void **state) {
    static const double within[] = {
        [MOGE_KV_F16] = 4e-3, [MOGE_KV_F32] = 1e-5, [MOGE_KV_Q8_0] = 6e-2};
    for (int type = 0; type < 3; type++)
        for (int size = 1; size <= 3; size += 2) { /* flat, and with few large weights */
            struct moge_engine *engine = engine_open((enum moge_kv_type)type, *state);
            fill(1, (float)size);
            attend(engine, 0, N_CONTEXT, 1);
            for (int32_t row = 0; row < N_CONTEXT; row += row < 40 ? 1 : 59)
                for (int32_t head = 0; head < HEADS; head++)
                    check_row(engine, row, head, within[type]);
            moge_engine_free(engine);
        }
}

static void tiles_and_chunks_change_nothing(void **state) {
    static const int32_t chunks[] = {1, 3, 8, 37, 256, 300};
    for (int type = 0; type < 3; type++) {
        struct moge_engine *engine = engine_open((enum moge_kv_type)type, *state);
        fill(2, 2.0f);
        attend(engine, 0, N_CONTEXT, 1);
        memcpy(want, engine->attn.f32, sizeof want);
        moge_engine_free(engine);
        for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
            engine = engine_open((enum moge_kv_type)type, *state);
            int n_seqs = chunks[i] <= N_CONTEXT / 2 ? 2 : 1;
            for (int32_t pos = 0; pos < N_CONTEXT; pos += chunks[i]) {
                int32_t n = N_CONTEXT - pos < chunks[i] ? N_CONTEXT - pos : chunks[i];
                attend(engine, pos, n, n_seqs);
                for (int seq = 0; seq < n_seqs; seq++)
                    assert_memory_equal(engine->attn.f32 + seq * n * DIM, want + pos * DIM,
                                        (size_t)n * DIM * sizeof *want);
            }
            moge_engine_free(engine);
        }
    }
}

static int open_all(void **state) {
    struct moge_err err;
    struct moge_model_options options = {.weights = MOGE_WEIGHTS_AS_STORED};
    struct moge_threads *threads;
    if (moge_model_open(&model, MODEL, &options, &err) != 0 ||
        moge_threads_new(&threads, 1, &err) != 0)
        return -1;
    const struct moge_model_info *info = moge_model_info(model);
    for (int32_t i = 0; i < N_CONTEXT / MOGE_PAGE_TOKENS; i++) {
        tables[0][i] = 2 * i;
        tables[1][i] = N_PAGES - 1 - 2 * i;
    }
    *state = threads;
    return info->n_heads == HEADS && info->n_kv_heads == KV_HEADS && info->head_dim == HEAD_DIM
               ? 0
               : -1;
}

static int close_all(void **state) {
    moge_threads_free(*state);
    moge_model_close(model);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(several_segments_are_one_softmax),
                                       cmocka_unit_test(tiles_and_chunks_change_nothing)};
    return cmocka_run_group_tests(tests, open_all, close_all);
}
