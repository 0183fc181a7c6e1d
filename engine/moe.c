/* SPDX-License-Identifier: Apache-2.0 */
/* Routed experts and the shared one (or a plain dense FFN, which is a shared expert alone).
 *
 *      rows chosen by expert   pairs:  [e0: r0 r3 | e5: r1 | e9: r0 r1 r2 ...]     sorted by expert
 * once phase 1   hidden[pair]  = silu(gate_e(row)) * up_e(row)                     barrier phase 2
 * x[row]       += weight[pair] * down_e(hidden[pair])
 *
 * Every thread computes its share of the outputs of EVERY touched expert, so the work is balanced
 * whatever was chosen, each weight is read once by exactly one thread, and a thread adds up its own
 * outputs: for a row in ascending order of expert, the shared one first, always the same order. */
#include <string.h>

#include "engine/engine_state.h"

#define QUANT_GRAIN 32 /* a thread quantises what it computed: whole blocks */

/* ---- routing ---- */

struct routing {          /* of all rows: the worker's own copy, or the shared one */
    int32_t *chosen;      /* [n_rows, n_used] */
    float *weights;       /* [n_rows, n_used] */
    float *shared_weight; /* [n_rows] */
};

static float sigmoid(const struct moge_kernels *kernels, float x) {
    float z;
    kernels->exp_sum(&x, 0, -1, 1, &z);
    return 1 / (1 + z);
}

static void route_row(const struct moge_engine *engine, const struct moge_layer *layer,
                      const float *row, float *logits, const struct routing *routing, int32_t i) {
    const struct moge_router *router = &engine->model->router;
    int32_t dim = engine->model->info.dim;
    if (layer->shared_gate)
        routing->shared_weight[i] =
            sigmoid(engine->kernels, engine->kernels->dot(row, layer->shared_gate, dim));
    if (layer->router.n_out == 0)
        return;
    const float *weights = layer->router.data;
    for (int32_t e = 0; e < router->n_experts; e++)
        logits[e] = engine->kernels->dot(row, weights + (size_t)e * (size_t)dim, dim);
    size_t at = (size_t)i * (size_t)router->n_used;
    moge_router_choose(router, engine->kernels, logits, layer->router_bias, layer->router_scale,
                       routing->chosen + at, routing->weights + at);
}

/* Few rows: everybody routes all of them.  Many: each thread some, and a barrier. */
static struct routing route(struct moge_engine *engine, const struct moge_layer *layer,
                            const struct moge_act *in, int i_thread) {
    struct moge_worker *worker = &engine->workers[i_thread];
    struct routing routing = {worker->chosen, worker->weights, worker->shared_weight};
    int32_t begin = 0, end = engine->n_rows;
    bool redundant = engine->n_rows <= MOGE_ROWS_REDUNDANT;
    if (!redundant) {
        routing = (struct routing){engine->chosen, engine->weights, engine->shared_weight};
        moge_threads_split(engine->n_rows, 1, i_thread, engine->n_threads, &begin, &end);
    }
    for (int32_t i = begin; i < end; i++)
        route_row(engine, layer, in->f32 + (size_t)i * (size_t)in->n_in, worker->router_logits,
                  &routing, i);
    if (!redundant)
        moge_threads_barrier(engine->threads);
    return routing;
}

/* Counting sort of (row, expert) pairs by expert; rows stay ascending. */
static void group_by_expert(const struct moge_engine *engine, const struct routing *routing,
                            struct moge_worker *worker) {
    int32_t n_experts = engine->model->router.n_experts, n_used = engine->model->router.n_used;
    int32_t *begin = worker->expert_begin, n_pairs = engine->n_rows * n_used;
    memset(begin, 0, ((size_t)n_experts + 1) * sizeof *begin);
    for (int32_t i = 0; i < n_pairs; i++)
        begin[routing->chosen[i] + 1]++;
    for (int32_t e = 0; e < n_experts; e++)
        begin[e + 1] += begin[e];
    for (int32_t i = 0; i < n_pairs; i++) {
        int32_t at = begin[routing->chosen[i]]++;
        worker->pair_row[at] = i / n_used;
        worker->pair_weight[at] = routing->weights[i];
    }
    memmove(begin + 1, begin,
            (size_t)n_experts * sizeof *begin); /* each ended where the next begins */
    begin[0] = 0;
}

/* ---- the two phases ---- */

static int32_t max_i32(int32_t a, int32_t b) {
    return a > b ? a : b;
}

/* The same rows of another activation buffer, beginning at row `first`. */
static struct moge_act act_from(const struct moge_act *act, int32_t first) {
    size_t row = (size_t)first, n_in = (size_t)act->n_in, n_blocks = n_in / MOGE_QBLOCK;
    return (struct moge_act){act->n_in, act->f32 + row * n_in, act->q + row * n_in,
                             act->d + row * n_blocks, act->sum + row * n_blocks};
}

/* hidden = silu(gate(in)) * up(in) for this thread's share of the outputs, quantised if down wants
 * it. */
static void gate_up(struct moge_engine *engine, const struct moge_matrix *gate,
                    const struct moge_matrix *up, const struct moge_matrix *down,
                    const struct moge_act *in, const int32_t *rows, int32_t n_rows,
                    struct moge_act hidden, float *up_out, int i_thread) {
    const struct moge_kernels *kernels = engine->kernels;
    void *scratch = engine->workers[i_thread].gemm;
    int32_t begin, end, n_out = gate->n_out;
    int32_t grain =
        max_i32(QUANT_GRAIN, max_i32(moge_gemm_grain(gate->type), moge_gemm_grain(up->type)));
    moge_share(n_out, grain, i_thread, engine->n_threads, &begin, &end);
    if (begin >= end)
        return;
    size_t stride = (size_t)n_out;
    moge_gemm(kernels, gate, in, rows, n_rows, begin, end, NULL, hidden.f32, stride, scratch);
    moge_gemm(kernels, up, in, rows, n_rows, begin, end, NULL, up_out, stride, scratch);
    for (int32_t i = 0; i < n_rows; i++) {
        size_t at = (size_t)i * stride + (size_t)begin;
        kernels->silu_mul(hidden.f32 + at, up_out + at, end - begin);
        if (moge_is_quantized(down))
            kernels->quantize(hidden.f32 + at, end - begin, hidden.q + at,
                              hidden.d + at / MOGE_QBLOCK, hidden.sum + at / MOGE_QBLOCK);
    }
}

/* x[row] += weight * down(hidden) for this thread's share of dim.  weights NULL: all 1. */
static void down_add(struct moge_engine *engine, const struct moge_matrix *down,
                     const struct moge_act *hidden, const int32_t *rows, const float *weights,
                     int32_t n_rows, int i_thread) {
    const struct moge_kernels *kernels = engine->kernels;
    int32_t begin, end;
    size_t dim = (size_t)down->n_out;
    moge_share(down->n_out, moge_gemm_grain(down->type), i_thread, engine->n_threads, &begin, &end);
    if (begin >= end)
        return;
    moge_gemm(kernels, down, hidden, NULL, n_rows, begin, end, NULL, engine->delta, dim,
              engine->workers[i_thread].gemm);
    for (int32_t i = 0; i < n_rows; i++) {
        float *x = engine->x + (size_t)(rows ? rows[i] : i) * dim + begin;
        const float *delta = engine->delta + (size_t)i * dim + begin;
        kernels->axpy(x, weights ? weights[i] : 1, delta, end - begin);
    }
}

static void count_experts(struct moge_engine *engine, const struct moge_layer *layer,
                          const int32_t *begin) {
    for (int32_t e = 0; e < engine->model->router.n_experts; e++) {
        if (begin[e + 1] == begin[e])
            continue;
        const struct moge_matrix *m[] = {&layer->gate_exps[e], &layer->up_exps[e],
                                         &layer->down_exps[e]};
        engine->stats.experts_touched++;
        for (int i = 0; i < 3; i++)
            engine->stats.weight_bytes +=
                (int64_t)moge_matrix_bytes(m[i]->type, m[i]->n_out, m[i]->n_in);
    }
}

void moge_moe_run(struct moge_engine *engine, const struct moge_layer *layer,
                  const struct moge_act *in, int i_thread) {
    struct moge_worker *worker = &engine->workers[i_thread];
    bool routed = layer->router.n_out > 0, shared = layer->gate.n_out > 0;
    const int32_t *begin = worker->expert_begin;
    int32_t n_experts = routed ? engine->model->router.n_experts : 0;
    struct routing routing = {0};
    if (routed || layer->shared_gate)
        routing = route(engine, layer, in, i_thread);
    if (routed)
        group_by_expert(engine, &routing, worker);
    if (routed && i_thread == 0)
        count_experts(engine, layer, begin);
    if (shared)
        gate_up(engine, &layer->gate, &layer->up, &layer->down, in, NULL, engine->n_rows,
                engine->shared, engine->up_shared, i_thread);
    for (int32_t e = 0; e < n_experts; e++)
        if (begin[e + 1] > begin[e])
            gate_up(engine, &layer->gate_exps[e], &layer->up_exps[e], &layer->down_exps[e], in,
                    worker->pair_row + begin[e], begin[e + 1] - begin[e],
                    act_from(&engine->hidden, begin[e]), engine->up, i_thread);
    moge_threads_barrier(engine->threads); /* down reads whole rows of hidden */
    if (shared)
        down_add(engine, &layer->down, &engine->shared, NULL,
                 layer->shared_gate ? routing.shared_weight : NULL, engine->n_rows, i_thread);
    for (int32_t e = 0; e < n_experts; e++) {
        if (begin[e + 1] == begin[e])
            continue;
        struct moge_act hidden = act_from(&engine->hidden, begin[e]);
        down_add(engine, &layer->down_exps[e], &hidden, worker->pair_row + begin[e],
                 worker->pair_weight + begin[e], begin[e + 1] - begin[e], i_thread);
    }
}
