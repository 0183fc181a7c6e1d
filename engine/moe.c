/* SPDX-License-Identifier: Apache-2.0 */
/* Routed experts and the shared one (or a plain dense FFN, which is a shared expert alone).
 *
 *      chosen pairs, sorted by expert    [e0: r0 r3 | e5: r1 | e9: r0 r1 r2 | ...]
 *      phase 1   hidden[pair] = silu(gate_e(row)) * up_e(row)
 *      meet
 *      phase 2   x[row]      += weight[pair] * down_e(hidden[pair])
 *
 * A unit of phase 1 is a range of hidden outputs of one expert: each weight is read once, by one
 * thread.  One of phase 2 is a range of columns of x through all experts, so that whoever takes it
 * adds them up in one order: the shared expert first, then experts ascending (which for MoGE is the
 * order of the groups).  The order of a row's sum thus depends on that row's choice alone. */
#include <string.h>

#include "engine/engine_state.h"

/* Units of phase 1 do not divide every FFN, so there are more of them than of one matrix; and gate
 * and up go together, so they have half as many outputs. */
#define UNITS_EACH 8
#define UNIT_MOST  256

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

static bool experts_quantised(const struct moge_layer *layer) {
    bool shared =
        layer->gate.n_out > 0 && (moge_is_quantized(&layer->gate) || moge_is_quantized(&layer->up));
    bool routed = layer->router.n_out > 0 &&
                  (moge_is_quantized(layer->gate_exps) || moge_is_quantized(layer->up_exps));
    return shared || routed;
}

/* Normalises n <= MOGE_ROWS_ROUTED rows from `first` on, and experts begin..end of their router
 * logits [n, n_experts]. */
static void router_logits(const struct moge_engine *engine, const struct moge_layer *layer,
                          struct moge_act *in, int32_t first, int32_t n, int32_t begin, int32_t end,
                          float *logits) {
    const float *rows[MOGE_ROWS_ROUTED], *weights = layer->router.data;
    for (int32_t i = 0; i < n; i++) {
        rows[i] = in->f32 + (size_t)(first + i) * (size_t)in->n_in;
        moge_forward_normalise(engine, layer->ffn_norm, first + i, in, first + i,
                               experts_quantised(layer));
    }
    engine->kernels->dots(rows, n, weights + (size_t)begin * (size_t)in->n_in, end - begin,
                          in->n_in, logits + begin, (size_t)layer->router.n_out);
}

/* Row i from its router logits (overwritten). */
static void choose_row(const struct moge_engine *engine, const struct moge_layer *layer,
                       float *logits, const struct routing *routing, int32_t i) {
    const float *row = routing->in->f32 + (size_t)i * (size_t)routing->in->n_in;
    const struct moge_router *router = &engine->model->router;
    size_t at = (size_t)i * (size_t)router->n_used;
    if (layer->shared_gate) {
        float gate;
        engine->kernels->dots(&row, 1, layer->shared_gate, 1, routing->in->n_in, &gate, 1);
        routing->shared_weight[i] = sigmoid(engine->kernels, gate);
    }
    if (layer->router.n_out > 0)
        moge_router_choose(router, engine->kernels, logits, layer->router_bias, layer->router_scale,
                           routing->chosen + at, routing->weights + at);
}

/* Normalises and routes rows begin..end. */
static void route_rows(const struct moge_engine *engine, const struct moge_layer *layer,
                       const struct routing *routing, int32_t begin, int32_t end, float *logits) {
    int32_t n_experts = layer->router.n_out;
    for (int32_t first = begin, n; first < end; first += n) {
        n = end - first < MOGE_ROWS_ROUTED ? end - first : MOGE_ROWS_ROUTED;
        router_logits(engine, layer, routing->in, first, n, 0, n_experts, logits);
        for (int32_t i = 0; i < n; i++)
            choose_row(engine, layer, logits + (ptrdiff_t)i * n_experts, routing, first + i);
    }
}

/* Few rows and a large router: everybody normalises, experts are shared out, everybody chooses. */
static void route_experts(const struct moge_engine *engine, const struct moge_layer *layer,
                          const struct routing *routing, int i_thread) {
    int32_t n_experts = layer->router.n_out, n_rows = engine->n_rows, begin, end;
    float *logits = engine->workers[i_thread].router_logits;
    moge_threads_split(n_experts, 1, i_thread, engine->n_active, &begin, &end);
    router_logits(engine, layer, routing->in, 0, n_rows, begin, end, engine->few_logits);
    moge_engine_meet(engine);
    memcpy(logits, engine->few_logits, (size_t)(n_rows * n_experts) * sizeof *logits);
    for (int32_t i = 0; i < n_rows; i++)
        choose_row(engine, layer, logits + (ptrdiff_t)i * n_experts, routing, i);
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

/* Expert e, or the shared one for -1. */
static struct ffn ffn_at(const struct moge_engine *engine, const struct moge_layer *layer,
                         const struct routing *routing, const struct moge_worker *worker,
                         int32_t e) {
    return e < 0 ? ffn_shared(engine, layer, routing) : ffn_expert(engine, layer, worker, e);
}

/* hidden = silu(gate(in)) * up(in) for outputs begin..end, quantised if down wants it. */
static void gate_up(const struct moge_engine *engine, const struct ffn *ffn,
                    const struct moge_act *in, int32_t begin, int32_t end, void *scratch) {
    const struct moge_kernels *kernels = engine->kernels;
    const struct moge_act *hidden = &ffn->hidden;
    size_t stride = (size_t)ffn->gate->n_out;
    moge_gemm(kernels, ffn->gate, in, ffn->rows, ffn->n_rows, begin, end, NULL, hidden->f32, stride,
              scratch);
    moge_gemm(kernels, ffn->up, in, ffn->rows, ffn->n_rows, begin, end, NULL, ffn->up_out, stride,
              scratch);
    for (int32_t i = 0; i < ffn->n_rows; i++) {
        size_t at = (size_t)i * stride + (size_t)begin;
        kernels->silu_mul(hidden->f32 + at, ffn->up_out + at, end - begin);
        if (moge_is_quantized(ffn->down))
            moge_act_quantize(hidden, kernels, i, begin, end - begin);
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

/* Counts the experts that the layer is about to use; asks for them, if they may be on disk. */
static void announce_experts(struct moge_engine *engine, const struct moge_layer *layer,
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
        for (int i = 0; i < 3; i++) {
            size_t bytes = moge_matrix_bytes(m[i]->type, m[i]->n_out, m[i]->n_in);
            engine->stats.weight_bytes += (int64_t)bytes;
            if (engine->reads_ahead > 0)
                moge_ahead_read(m[i]->data, bytes);
        }
    }
}

/* Outputs of a unit of phase 1. */
static int32_t hidden_unit(const struct moge_engine *engine, const struct moge_layer *layer,
                           const int32_t *expert_begin) {
    int32_t n_out = layer->gate.n_out;
    for (int32_t e = 0; e < layer->router.n_out; e++)
        if (expert_begin[e + 1] > expert_begin[e])
            n_out += layer->gate_exps[e].n_out;
    return moge_forward_unit(n_out, UNITS_EACH * engine->n_active, UNIT_MOST);
}

/* Phase 1: units of one FFN after the other. */
static void hidden_run(struct moge_engine *engine, const struct moge_layer *layer,
                       const struct routing *routing, const struct moge_worker *worker) {
    int32_t size = hidden_unit(engine, layer, worker->expert_begin);
    int32_t unit = moge_forward_take(engine), first = 0; /* of this FFN */
    for (int32_t e = -1; e < layer->router.n_out; e++) {
        struct ffn ffn = ffn_at(engine, layer, routing, worker, e);
        if (ffn.n_rows == 0)
            continue;
        int32_t n_out = ffn.gate->n_out, n_units = (n_out + size - 1) / size;
        for (; unit < first + n_units; unit = moge_forward_take(engine)) {
            int32_t begin = (unit - first) * size, left = n_out - begin;
            gate_up(engine, &ffn, routing->in, begin, begin + (left < size ? left : size),
                    worker->gemm);
        }
        first += n_units;
    }
    moge_forward_refused(engine, unit, first);
}

void moge_moe_run(struct moge_engine *engine, const struct moge_layer *layer, int i_thread) {
    struct moge_worker *worker = &engine->workers[i_thread];
    struct routing routing = route(engine, layer, i_thread);
    int32_t n_experts = layer->router.n_out, begin, end;
    if (n_experts > 0)
        group_by_expert(engine, &routing, worker);
    if (i_thread == 0)
        announce_experts(engine, layer, worker->expert_begin);
    hidden_run(engine, layer, &routing, worker);
    moge_engine_meet(engine);
    while (moge_forward_take_outputs(engine, engine->model->info.dim, &begin, &end))
        for (int32_t e = -1; e < n_experts; e++) {
            struct ffn ffn = ffn_at(engine, layer, &routing, worker, e);
            if (ffn.n_rows > 0)
                down_add(engine, &ffn, begin, end, worker->gemm);
        }
}
