/* SPDX-License-Identifier: Apache-2.0 */
/* The forward pass: one parallel run, with barriers where a part needs what other threads made.
 *
 *      x = embed(token)                                              | barrier: rows were shared
 * out for each layer: q, k, v = W (norm(x)) + b          outputs shared out     | barrier: a head
 * needs all of its q, k, v attend                             heads shared out       | barrier: W_o
 * reads all heads x += W_o (attention) + b           outputs shared out     | barrier: norm reads
 * whole rows hidden = silu(gate(x')) * up(x'),  x' = norm(x)           | barrier (in moe.c): down
 * reads whole rows x += down(hidden)                  outputs shared out     | barrier: norm reads
 * whole rows logits = W_out norm(x), wanted rows only
 *
 * What a matrix reads must be normalised or quantised first.  For a few rows every thread does that
 * for itself (five barriers a layer); for many the rows are shared out and a barrier follows.  Both
 * give the same bits: they are the same calls on the same row.  The rest of exactness is in
 * docs/NUMERICS.md. */
#include <string.h>

#include "engine/engine_state.h"

struct pass {
    struct moge_engine *engine;
    int i_thread, n_threads;
};

static bool is_few(int32_t n_rows) {
    return n_rows <= MOGE_ROWS_REDUNDANT;
}

/* This thread's part of n rows when they are shared out. */
static void rows_of(const struct pass *p, int32_t n_rows, int32_t *begin, int32_t *end) {
    moge_threads_split(n_rows, 1, p->i_thread, p->n_threads, begin, end);
}

/* norm(x) of `n_rows` rows (rows[i], or i), quantised too if asked: what the next matrices read. */
static const struct moge_act *normalise(const struct pass *p, const float *weight,
                                        const int32_t *rows, int32_t n_rows, bool quantise) {
    struct moge_engine *engine = p->engine;
    const struct moge_model *model = engine->model;
    size_t dim = (size_t)model->info.dim;
    bool few = is_few(n_rows);
    struct moge_act *act = few ? &engine->workers[p->i_thread].norm : &engine->norm;
    int32_t begin = 0, end = n_rows;
    if (!few)
        rows_of(p, n_rows, &begin, &end);
    for (int32_t i = begin; i < end; i++) {
        const float *x = engine->x + (size_t)(rows ? rows[i] : i) * dim;
        engine->kernels->rmsnorm(x, weight, model->norm_eps, model->info.dim,
                                 act->f32 + (size_t)i * dim);
        if (quantise)
            moge_act_quantize(act, engine->kernels, i);
    }
    if (!few)
        moge_threads_barrier(engine->threads);
    return act;
}

/* The attention output as W_o reads it. */
static struct moge_act attn_output(const struct pass *p, bool quantise) {
    struct moge_engine *engine = p->engine;
    struct moge_act act = engine->attn;
    if (!quantise)
        return act;
    int32_t begin = 0, end = engine->n_rows;
    bool few = is_few(engine->n_rows);
    if (few) {
        act = engine->workers[p->i_thread].attn;
        act.f32 = engine->attn.f32;
    } else {
        rows_of(p, engine->n_rows, &begin, &end);
    }
    for (int32_t i = begin; i < end; i++)
        moge_act_quantize(&act, engine->kernels, i);
    if (!few)
        moge_threads_barrier(engine->threads);
    return act;
}

/* This thread's share of out [n_rows, n_out] = weights x in + bias. */
static void project(const struct pass *p, const struct moge_matrix *weights, const float *bias,
                    const struct moge_act *in, int32_t n_rows, float *out) {
    int32_t begin, end;
    moge_share(weights->n_out, moge_gemm_grain(weights->type), p->i_thread, p->n_threads, &begin,
               &end);
    if (begin < end)
        moge_gemm(p->engine->kernels, weights, in, NULL, n_rows, begin, end, bias, out,
                  (size_t)weights->n_out, p->engine->workers[p->i_thread].gemm);
}

/* The same, added to the residual stream. */
static void project_add(const struct pass *p, const struct moge_matrix *weights, const float *bias,
                        const struct moge_act *in) {
    struct moge_engine *engine = p->engine;
    int32_t begin, end;
    size_t dim = (size_t)weights->n_out;
    project(p, weights, bias, in, engine->n_rows, engine->delta);
    moge_share(weights->n_out, moge_gemm_grain(weights->type), p->i_thread, p->n_threads, &begin,
               &end);
    for (int32_t i = 0; i < engine->n_rows && begin < end; i++)
        engine->kernels->add(engine->x + (size_t)i * dim + begin,
                             engine->delta + (size_t)i * dim + begin, end - begin);
}

static void embed(const struct pass *p) {
    struct moge_engine *engine = p->engine;
    int32_t begin, end;
    rows_of(p, engine->n_rows, &begin, &end);
    for (int32_t i = begin; i < end; i++)
        moge_model_embed(engine->model, engine->rows[i].token,
                         engine->x + (size_t)i * (size_t)engine->model->info.dim);
    moge_threads_barrier(engine->threads);
}

static void attention_part(const struct pass *p, int32_t i_layer) {
    struct moge_engine *engine = p->engine;
    const struct moge_layer *layer = &engine->model->layers[i_layer];
    bool quantise = moge_is_quantized(&layer->q) || moge_is_quantized(&layer->k) ||
                    moge_is_quantized(&layer->v);
    const struct moge_act *in = normalise(p, layer->attn_norm, NULL, engine->n_rows, quantise);
    project(p, &layer->q, layer->q_bias, in, engine->n_rows, engine->q);
    project(p, &layer->k, layer->k_bias, in, engine->n_rows, engine->k);
    project(p, &layer->v, layer->v_bias, in, engine->n_rows, engine->v);
    moge_threads_barrier(engine->threads);
    moge_attn_run(engine, i_layer, p->i_thread);
    moge_threads_barrier(engine->threads);
    struct moge_act attn = attn_output(p, moge_is_quantized(&layer->o));
    project_add(p, &layer->o, layer->o_bias, &attn);
    moge_threads_barrier(engine->threads);
}

static bool ffn_quantised(const struct moge_layer *layer) {
    bool shared =
        layer->gate.n_out > 0 && (moge_is_quantized(&layer->gate) || moge_is_quantized(&layer->up));
    bool routed = layer->router.n_out > 0 &&
                  (moge_is_quantized(layer->gate_exps) || moge_is_quantized(layer->up_exps));
    return shared || routed;
}

static void ffn_part(const struct pass *p, const struct moge_layer *layer) {
    struct moge_engine *engine = p->engine;
    const struct moge_act *in =
        normalise(p, layer->ffn_norm, NULL, engine->n_rows, ffn_quantised(layer));
    moge_moe_run(engine, layer, in, p->i_thread);
    moge_threads_barrier(engine->threads);
}

static void head(const struct pass *p) {
    struct moge_engine *engine = p->engine;
    const struct moge_model *model = engine->model;
    if (engine->n_logits == 0)
        return;
    const struct moge_act *in = normalise(p, model->output_norm, engine->logits_of,
                                          engine->n_logits, moge_is_quantized(&model->output));
    project(p, &model->output, NULL, in, engine->n_logits, engine->logits);
}

void moge_forward_thread(void *arg, int i_thread, int n_threads) {
    struct pass p = {arg, i_thread, n_threads};
    const struct moge_model *model = p.engine->model;
    embed(&p);
    for (int32_t i = 0; i < model->info.n_layers; i++) {
        attention_part(&p, i);
        ffn_part(&p, &model->layers[i]);
    }
    head(&p);
}
