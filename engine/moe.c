/* SPDX-License-Identifier: Apache-2.0 */
/* Routed experts and the shared one (or a plain dense FFN, which is a shared expert alone).
 *
 *      chosen pairs, sorted by expert    [e0: r0 r3 | e5: r1 | e9: r0 r1 r2 | ...]
 *      phase 1   hidden[pair] = silu(gate_e(row)) * up_e(row)
 *      meet
 *      phase 2   x[row]      += weight[pair] * down_e(hidden[pair])
 *
 * Phase 1 lays the outputs of the shared and of all touched experts end to end and cuts the line
 * into stretches of equal cost, one a thread: each weight is read once, by one thread.
 * Phase 2 gives every thread the same columns of x for all experts, so that a thread adds up its
 * own outputs in one order: the shared expert first, then experts ascending (which for MoGE is the
 * order of the groups).  The order of a row's sum thus depends on that row's choice alone. */
#include <string.h>

#include "engine/engine_state.h"

/* Phase 1 is cut in units of so many outputs: whole blocks, because whoever computed them quantises
 * them; and whole units of moge_gemm. */
#define UNIT MOGE_QBLOCK
/* Outputs of gate and up that are computed in turns, while they are in the nearest cache. */
#define COLUMNS (4 * UNIT)

/* ---- routing ---- */

/* What the experts read, and who reads it: a thread's own copy, or shared by all. */
struct routing {
    struct moge_act *in;  /* [n_rows, dim] norm(x) */
    int32_t *chosen;      /* [n_rows, n_used] */
    float *weights;       /* [n_rows, n_used] */
    float *shared_weight; /* [n_rows] */
};

static float sigmoid(const struct moge_kernels *kernels, float x) {
    float z;
    kernels->exp_sum(&x, 0, -1, 1, &z);
    return 1 / (1 + z);
}

/* Experts begin..end of one row's router logits. */
static void router_logits(const struct moge_engine *engine, const struct moge_layer *layer,
                          const float *row, int32_t begin, int32_t end, float *logits) {
    int32_t dim = engine->model->info.dim;
    const float *weights = layer->router.data;
    for (int32_t e = begin; e < end; e++)
        logits[e] = engine->kernels->dot(row, weights + (size_t)e * (size_t)dim, dim);
}

/* Row i from its router logits (overwritten). */
static void choose_row(const struct moge_engine *engine, const struct moge_layer *layer,
                       float *logits, const struct routing *routing, int32_t i) {
    const float *row = routing->in->f32 + (size_t)i * (size_t)routing->in->n_in;
    const struct moge_router *router = &engine->model->router;
    size_t at = (size_t)i * (size_t)router->n_used;
    if (layer->shared_gate)
        routing->shared_weight[i] =
            sigmoid(engine->kernels,
                    engine->kernels->dot(row, layer->shared_gate, engine->model->info.dim));
    if (layer->router.n_out > 0)
        moge_router_choose(router, engine->kernels, logits, layer->router_bias, layer->router_scale,
                           routing->chosen + at, routing->weights + at);
}

static bool experts_quantised(const struct moge_layer *layer) {
    bool shared =
        layer->gate.n_out > 0 && (moge_is_quantized(&layer->gate) || moge_is_quantized(&layer->up));
    bool routed = layer->router.n_out > 0 &&
                  (moge_is_quantized(layer->gate_exps) || moge_is_quantized(layer->up_exps));
    return shared || routed;
}

/* Normalises and routes rows begin..end, each by itself. */
static void route_rows(const struct moge_engine *engine, const struct moge_layer *layer,
                       const struct routing *routing, int32_t begin, int32_t end, float *logits) {
    int32_t n_experts = layer->router.n_out;
    for (int32_t i = begin; i < end; i++) {
        moge_forward_normalise(engine, layer->ffn_norm, i, routing->in, i,
                               experts_quantised(layer));
        router_logits(engine, layer, routing->in->f32 + (size_t)i * (size_t)routing->in->n_in, 0,
                      n_experts, logits);
        choose_row(engine, layer, logits, routing, i);
    }
}

/* Few rows and a large router: everybody normalises, experts are shared out, everybody chooses. */
static void route_experts(const struct moge_engine *engine, const struct moge_layer *layer,
                          const struct routing *routing, int i_thread) {
    int32_t n_experts = layer->router.n_out, begin, end;
    moge_threads_split(n_experts, 1, i_thread, engine->n_active, &begin, &end);
    for (int32_t i = 0; i < engine->n_rows; i++) {
        moge_forward_normalise(engine, layer->ffn_norm, i, routing->in, i,
                               experts_quantised(layer));
        router_logits(engine, layer, routing->in->f32 + (size_t)i * (size_t)routing->in->n_in,
                      begin, end, engine->few_logits + (ptrdiff_t)i * n_experts);
    }
    moge_engine_meet(engine);
    float *logits = engine->workers[i_thread].router_logits;
    for (int32_t i = 0; i < engine->n_rows; i++) {
        memcpy(logits, engine->few_logits + (ptrdiff_t)i * n_experts,
               (size_t)n_experts * sizeof *logits);
        choose_row(engine, layer, logits, routing, i);
    }
}

/* The layer's input and routing for all rows. */
static struct routing route(struct moge_engine *engine, const struct moge_layer *layer,
                            int i_thread) {
    struct moge_worker *worker = &engine->workers[i_thread];
    struct routing few = {&worker->norm, worker->chosen, worker->weights, worker->shared_weight};
    struct routing many = {&engine->norm, engine->chosen, engine->weights, engine->shared_weight};
    int64_t macs = (int64_t)engine->n_rows * layer->router.n_out * engine->model->info.dim;
    int32_t begin, end;
    if (engine->n_rows > MOGE_ROWS_FEW) {
        moge_threads_split(engine->n_rows, 1, i_thread, engine->n_active, &begin, &end);
        route_rows(engine, layer, &many, begin, end, worker->router_logits);
        moge_engine_meet(engine);
        return many;
    }
    if (engine->n_active == 1 || macs <= engine->router_macs_alone)
        route_rows(engine, layer, &few, 0, engine->n_rows, worker->router_logits);
    else
        route_experts(engine, layer, &few, i_thread);
    return few;
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

/* One FFN and the rows that go through it. */
struct ffn {
    const struct moge_matrix *gate, *up, *down;
    const int32_t *rows;  /* [n_rows] rows of the batch, or NULL: all */
    const float *weights; /* [n_rows], or NULL: all 1 */
    int32_t n_rows;
    struct moge_act hidden; /* [n_rows, n_out of gate] */
    float *up_out;          /* the same shape */
};

/* The same buffer, beginning at row `first`. */
static struct moge_act act_from(const struct moge_act *act, int32_t first) {
    size_t at = (size_t)first * (size_t)act->n_in;
    return (struct moge_act){act->n_in, act->f32 + at, act->blocks + at / MOGE_QBLOCK};
}

static struct ffn ffn_shared(const struct moge_engine *engine, const struct moge_layer *layer,
                             const struct routing *routing) {
    return (struct ffn){.gate = &layer->gate,
                        .up = &layer->up,
                        .down = &layer->down,
                        .weights = layer->shared_gate ? routing->shared_weight : NULL,
                        .n_rows = layer->gate.n_out > 0 ? engine->n_rows : 0,
                        .hidden = engine->shared,
                        .up_out = engine->up_shared};
}

static struct ffn ffn_expert(const struct moge_engine *engine, const struct moge_layer *layer,
                             const struct moge_worker *worker, int32_t e) {
    int32_t first = worker->expert_begin[e];
    return (struct ffn){.gate = &layer->gate_exps[e],
                        .up = &layer->up_exps[e],
                        .down = &layer->down_exps[e],
                        .rows = worker->pair_row + first,
                        .weights = worker->pair_weight + first,
                        .n_rows = worker->expert_begin[e + 1] - first,
                        .hidden = act_from(&engine->hidden, first),
                        .up_out = engine->up + (ptrdiff_t)first * engine->model->expert_dim};
}

/* hidden = silu(gate(in)) * up(in) for outputs begin..end, quantised if down wants it. */
static void gate_up(const struct moge_engine *engine, const struct ffn *ffn,
                    const struct moge_act *in, int32_t begin, int32_t end, void *scratch) {
    const struct moge_kernels *kernels = engine->kernels;
    const struct moge_act *hidden = &ffn->hidden;
    size_t stride = (size_t)ffn->gate->n_out;
    for (int32_t o = begin; o < end; o += COLUMNS) {
        int32_t n = end - o < COLUMNS ? end - o : COLUMNS;
        moge_gemm(kernels, ffn->gate, in, ffn->rows, ffn->n_rows, o, o + n, NULL, hidden->f32,
                  stride, scratch);
        moge_gemm(kernels, ffn->up, in, ffn->rows, ffn->n_rows, o, o + n, NULL, ffn->up_out, stride,
                  scratch);
        for (int32_t i = 0; i < ffn->n_rows; i++) {
            size_t at = (size_t)i * stride + (size_t)o;
            kernels->silu_mul(hidden->f32 + at, ffn->up_out + at, n);
            if (moge_is_quantized(ffn->down))
                moge_act_quantize(hidden, kernels, i, o, n);
        }
    }
}

/* x[row] += weight * down(hidden) for columns begin..end of x. */
static void down_add(const struct moge_engine *engine, const struct ffn *ffn, int32_t begin,
                     int32_t end, void *scratch) {
    size_t dim = (size_t)ffn->down->n_out;
    moge_gemm(engine->kernels, ffn->down, &ffn->hidden, NULL, ffn->n_rows, begin, end, NULL,
              engine->delta, dim, scratch);
    for (int32_t i = 0; i < ffn->n_rows; i++) {
        float *x = engine->x + (size_t)(ffn->rows ? ffn->rows[i] : i) * dim + begin;
        engine->kernels->axpy(x, ffn->weights ? ffn->weights[i] : 1,
                              engine->delta + (size_t)i * dim + begin, end - begin);
    }
}

/* The line of all units of phase 1, and the stretch of it that is this thread's. */
struct line {
    int64_t at, begin, end;
};

/* A unit costs its weights' way from memory and a product for each row. */
static int64_t unit_cost(int32_t n_rows) {
    return n_rows == 0 ? 0 : 2 + n_rows;
}

static int32_t units_of(const struct moge_matrix *gate) {
    return (gate->n_out + UNIT - 1) / UNIT;
}

static struct line line_begin(const struct moge_engine *engine, const struct moge_layer *layer,
                              const int32_t *expert_begin, int i_thread) {
    int64_t total = 0;
    if (layer->gate.n_out > 0)
        total += units_of(&layer->gate) * unit_cost(engine->n_rows);
    for (int32_t e = 0; e < layer->router.n_out; e++)
        total += units_of(&layer->gate_exps[e]) * unit_cost(expert_begin[e + 1] - expert_begin[e]);
    return (struct line){.begin = total * i_thread / engine->n_active,
                         .end = total * (i_thread + 1) / engine->n_active};
}

/* The first unit of an FFN at `at` that begins at or behind `bound`. */
static int32_t unit_at(int64_t at, int64_t bound, int64_t cost, int32_t n_units) {
    int64_t unit = bound <= at ? 0 : (bound - at + cost - 1) / cost;
    return (int32_t)(unit < n_units ? unit : n_units);
}

/* Takes the next FFN of the line: outputs begin..end of it are this thread's. */
static void line_next(struct line *line, const struct ffn *ffn, int32_t *begin, int32_t *end) {
    int32_t n_units = units_of(ffn->gate), n_out = ffn->gate->n_out;
    int64_t cost = unit_cost(ffn->n_rows);
    *begin = unit_at(line->at, line->begin, cost, n_units) * UNIT;
    *end = unit_at(line->at, line->end, cost, n_units) * UNIT;
    *end = *end < n_out ? *end : n_out;
    line->at += cost * n_units;
}

static void count_experts(struct moge_engine *engine, const struct moge_layer *layer,
                          const int32_t *begin) {
    const struct moge_model_info *info = &engine->model->info;
    for (int32_t e = 0; e < layer->router.n_out; e++) {
        if (begin[e + 1] == begin[e])
            continue;
        engine->layer_experts[layer - engine->model->layers]++;
        engine->group_pairs[e / (info->n_experts / info->n_groups)] += begin[e + 1] - begin[e];
        const struct moge_matrix *m[] = {&layer->gate_exps[e], &layer->up_exps[e],
                                         &layer->down_exps[e]};
        engine->stats.experts_touched++;
        for (int i = 0; i < 3; i++)
            engine->stats.weight_bytes +=
                (int64_t)moge_matrix_bytes(m[i]->type, m[i]->n_out, m[i]->n_in);
    }
}

/* This thread's columns of x.  The same for all FFNs, whatever types their matrices have. */
static void columns_of(const struct moge_engine *engine, const struct moge_layer *layer,
                       int i_thread, int32_t *begin, int32_t *end) {
    int32_t grain = 1;
    if (layer->gate.n_out > 0)
        grain = moge_gemm_grain(layer->down.type);
    for (int32_t e = 0; e < layer->router.n_out; e++)
        if (moge_gemm_grain(layer->down_exps[e].type) > grain)
            grain = moge_gemm_grain(layer->down_exps[e].type);
    moge_threads_split(engine->model->info.dim, grain, i_thread, engine->n_active, begin, end);
}

void moge_moe_run(struct moge_engine *engine, const struct moge_layer *layer, int i_thread) {
    struct moge_worker *worker = &engine->workers[i_thread];
    struct routing routing = route(engine, layer, i_thread);
    int32_t n_experts = layer->router.n_out, begin, end;
    if (n_experts > 0)
        group_by_expert(engine, &routing, worker);
    if (i_thread == 0)
        count_experts(engine, layer, worker->expert_begin);
    struct line line = line_begin(engine, layer, worker->expert_begin, i_thread);
    for (int32_t e = -1; e < n_experts; e++) { /* -1: the shared one */
        struct ffn ffn =
            e < 0 ? ffn_shared(engine, layer, &routing) : ffn_expert(engine, layer, worker, e);
        if (ffn.n_rows == 0)
            continue;
        line_next(&line, &ffn, &begin, &end);
        gate_up(engine, &ffn, routing.in, begin, end, worker->gemm);
    }
    moge_engine_meet(engine);
    columns_of(engine, layer, i_thread, &begin, &end);
    for (int32_t e = -1; e < n_experts && begin < end; e++) {
        struct ffn ffn =
            e < 0 ? ffn_shared(engine, layer, &routing) : ffn_expert(engine, layer, worker, e);
        if (ffn.n_rows > 0)
            down_add(engine, &ffn, begin, end, worker->gemm);
    }
}
