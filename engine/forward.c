/* SPDX-License-Identifier: Apache-2.0 */
/* The forward pass: one parallel run.  Every thread walks the same formulas and computes its share
 * of the outputs of each; threads meet only where one needs what the others made:
 *
 *      x = embed(token)                        rows shared out      meet: rows were
 *      for each layer:
 *        q, k, v = W norm(x) + b               KV heads shared out  (meet unless heads are apart)
 *        a = attend(q, K, V)                   KV heads shared out  meet: W_o reads all heads
 *        x += W_o a + b                        outputs taken        meet: norm reads whole rows
 *        experts, weights = route(norm(x))     done by everybody    (meet if that is too dear)
 *        h = silu(gate norm(x)) * up norm(x)   outputs taken        meet: down reads whole h
 *        x += weight * down(h)                 outputs taken        meet: norm reads whole rows
 *      logits = W_out norm(x)                  outputs taken        only rows that want them
 *
 * What is shared out is divided evenly beforehand; what is taken, unit by unit by whoever is free.
 * So a layer takes four meetings; a fifth where the KV heads do not divide among the threads.  What
 * a matrix reads has to be normalised and quantised first.  For a few rows every thread does that
 * for itself; for many, rows are shared out and threads meet once more in either half of a layer.
 * Both give the same bits, being the same calls on the same row.  A pass too small to be worth any
 * meeting runs on the calling thread alone.  Why a row's bits do not depend on other rows is in
 * docs/NUMERICS.md. */
#include "engine/engine_state.h"

struct pass {
    struct moge_engine *engine;
    int i_thread, n_threads;
};

/* Long units leave more to wait for at a meeting, short ones begin more often at memory that nobody
 * has asked for yet. */
#define UNITS_EACH 2
#define UNIT_MOST  512

int32_t moge_forward_take(struct moge_engine *engine) {
    return atomic_fetch_add_explicit(&engine->n_taken, 1, memory_order_relaxed);
}

void moge_forward_refused(struct moge_engine *engine, int32_t unit, int32_t n_units) {
    if (unit == n_units + engine->n_active - 1)
        atomic_store_explicit(&engine->n_taken, 0, memory_order_relaxed);
}

int32_t moge_forward_unit(int32_t n, int32_t n_units, int32_t most) {
    int32_t n_blocks = (n / n_units + MOGE_QBLOCK - 1) / MOGE_QBLOCK, size = n_blocks * MOGE_QBLOCK;
    return size < MOGE_QBLOCK ? MOGE_QBLOCK : size < most ? size : most;
}

bool moge_forward_take_outputs(struct moge_engine *engine, int32_t n, int32_t *begin,
                               int32_t *end) {
    int32_t size = moge_forward_unit(n, UNITS_EACH * engine->n_active, UNIT_MOST);
    int32_t unit = moge_forward_take(engine), n_units = (n + size - 1) / size;
    if (unit >= n_units) {
        moge_forward_refused(engine, unit, n_units);
        return false;
    }
    *begin = unit * size;
    *end = n - *begin < size ? n : *begin + size;
    return true;
}

void moge_forward_normalise(const struct moge_engine *engine, const float *weight, int32_t row,
                            struct moge_act *act, int32_t i, bool quantise) {
    int32_t dim = engine->model->info.dim;
    engine->kernels->rmsnorm(engine->x + (size_t)row * (size_t)dim, weight, engine->model->norm_eps,
                             dim, act->f32 + (size_t)i * (size_t)dim);
    if (quantise)
        moge_act_quantize(act, engine->kernels, i, 0, act->n_in);
}

/* norm(x) of n rows (rows[i], or i), as the next matrices read it. */
static const struct moge_act *normalise(const struct pass *p, const float *weight,
                                        const int32_t *rows, int32_t n_rows, bool quantise) {
    struct moge_engine *engine = p->engine;
    bool few = n_rows <= MOGE_ROWS_FEW;
    struct moge_act *act = few ? &engine->workers[p->i_thread].norm : &engine->norm;
    int32_t begin = 0, end = n_rows;
    if (!few)
        moge_threads_split(n_rows, 1, p->i_thread, p->n_threads, &begin, &end);
    for (int32_t i = begin; i < end; i++)
        moge_forward_normalise(engine, weight, rows ? rows[i] : i, act, i, quantise);
    if (!few)
        moge_engine_meet(engine);
    return act;
}

/* Outputs begin..end of out [n_rows, n_out] = weights x in + bias. */
static void project(const struct pass *p, const struct moge_matrix *weights, const float *bias,
                    const struct moge_act *in, int32_t n_rows, int32_t begin, int32_t end,
                    float *out) {
    if (begin < end)
        moge_gemm(p->engine->kernels, weights, in, NULL, n_rows, begin, end, bias, out,
                  (size_t)weights->n_out, p->engine->workers[p->i_thread].gemm);
}

/* This thread's share of the outputs: `grain` divides where it begins. */
static void share_of(const struct pass *p, int32_t n_out, int32_t grain, int32_t *begin,
                     int32_t *end) {
    moge_threads_split(n_out, grain, p->i_thread, p->n_threads, begin, end);
}

static void embed(const struct pass *p) {
    struct moge_engine *engine = p->engine;
    int32_t begin, end;
    share_of(p, engine->n_rows, 1, &begin, &end);
    for (int32_t i = begin; i < end; i++)
        moge_model_embed(engine->model, engine->rows[i].token,
                         engine->x + (size_t)i * (size_t)engine->model->info.dim);
    moge_engine_meet(engine);
}

/* q, k, v = W norm(x) + b, of this thread's own heads if they can be had apart. */
static void qkv(const struct pass *p, const struct moge_layer *layer) {
    struct moge_engine *engine = p->engine;
    bool quantise = moge_is_quantized(&layer->q) || moge_is_quantized(&layer->k) ||
                    moge_is_quantized(&layer->v);
    const struct moge_act *in = normalise(p, layer->attn_norm, NULL, engine->n_rows, quantise);
    bool apart = moge_attn_heads_apart(engine, layer);
    int32_t n_kv = engine->model->info.n_kv_heads;
    const struct {
        const struct moge_matrix *weights;
        const float *bias;
        float *out;
    } parts[] = {{&layer->q, layer->q_bias, engine->q},
                 {&layer->k, layer->k_bias, engine->k},
                 {&layer->v, layer->v_bias, engine->v}};
    for (int i = 0; i < 3; i++) {
        const struct moge_matrix *w = parts[i].weights;
        int32_t begin, end, per_head = w->n_out / n_kv;
        share_of(p, w->n_out, apart ? per_head : moge_gemm_grain(w->type), &begin, &end);
        project(p, w, parts[i].bias, in, engine->n_rows, begin, end, parts[i].out);
    }
}

/* x += W_o a + b */
static void attention_output(const struct pass *p, const struct moge_layer *layer) {
    struct moge_engine *engine = p->engine;
    int32_t begin, end, dim = layer->o.n_out;
    while (moge_forward_take_outputs(engine, dim, &begin, &end)) {
        project(p, &layer->o, layer->o_bias, &engine->attn, engine->n_rows, begin, end,
                engine->delta);
        for (int32_t i = 0; i < engine->n_rows; i++) {
            size_t at = (size_t)i * (size_t)dim + (size_t)begin;
            engine->kernels->add(engine->x + at, engine->delta + at, end - begin);
        }
    }
}

static void head(const struct pass *p) {
    struct moge_engine *engine = p->engine;
    const struct moge_matrix *output = &engine->model->output;
    int32_t begin, end;
    if (engine->n_logits == 0)
        return;
    const struct moge_act *in = normalise(p, engine->model->output_norm, engine->logits_of,
                                          engine->n_logits, moge_is_quantized(output));
    while (moge_forward_take_outputs(engine, output->n_out, &begin, &end))
        project(p, output, NULL, in, engine->n_logits, begin, end, engine->logits);
}

void moge_forward_thread(void *arg, int i_thread, int n_threads) {
    struct pass p = {arg, i_thread, n_threads};
    struct moge_engine *engine = arg;
    embed(&p);
    for (int32_t i = 0; i < engine->model->info.n_layers; i++) {
        const struct moge_layer *layer = &engine->model->layers[i];
        qkv(&p, layer);
        moge_attn_run(engine, i, i_thread);
        moge_engine_meet(engine);
        attention_output(&p, layer);
        moge_engine_meet(engine);
        moge_moe_run(engine, layer, i_thread);
        moge_engine_meet(engine);
    }
    head(&p);
}
