/* SPDX-License-Identifier: Apache-2.0 */
/* Which tensors a model of some shape has. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "engine/kernels/kernels.h"
#include "tools/synth.h"

struct plan {
    struct moge_synth_tensor *tensors;
    uint64_t n, cap;
    enum moge_type type; /* of matrices */
    int32_t layer;       /* names get "blk.N." while it is >= 0 */
    bool failed;
};

static struct moge_synth_tensor *add(struct plan *plan, const char *name, int32_t n_in,
                                     enum moge_synth_kind kind) {
    static struct moge_synth_tensor nowhere;
    if (plan->n == plan->cap) {
        uint64_t cap = plan->cap ? 2 * plan->cap : 64;
        struct moge_synth_tensor *grown = realloc(plan->tensors, (size_t)cap * sizeof *grown);
        if (!grown) {
            plan->failed = true;
            return &nowhere;
        }
        plan->tensors = grown;
        plan->cap = cap;
    }
    struct moge_synth_tensor *tensor = &plan->tensors[plan->n++];
    *tensor = (struct moge_synth_tensor){
        .ne = {(uint64_t)n_in, 1, 1}, .n_dims = 1, .type = MOGE_TYPE_F32, .kind = kind};
    if (plan->layer >= 0)
        snprintf(tensor->name, sizeof tensor->name, "blk.%d.%s", plan->layer, name);
    else
        snprintf(tensor->name, sizeof tensor->name, "%s", name);
    return tensor;
}

static void vector(struct plan *plan, const char *name, int32_t n, enum moge_synth_kind kind) {
    add(plan, name, n, kind);
}

static struct moge_synth_tensor *matrix(struct plan *plan, const char *name, int32_t n_in,
                                        int32_t n_out, enum moge_synth_kind kind) {
    struct moge_synth_tensor *tensor = add(plan, name, n_in, kind);
    bool fits = n_in % moge_type_traits((uint32_t)plan->type)->block_values == 0;
    bool in_panels = kind != MOGE_SYNTH_EMBEDDING && n_out % MOGE_PANEL_ROWS == 0;
    tensor->type = !fits ? MOGE_TYPE_F16 : in_panels ? plan->type : moge_type_plain(plan->type);
    tensor->ne[1] = (uint64_t)n_out;
    tensor->n_dims = 2;
    return tensor;
}

static void experts(struct plan *plan, const char *name, int32_t n_in, int32_t n_out, int32_t n) {
    struct moge_synth_tensor *tensor = matrix(plan, name, n_in, n_out, MOGE_SYNTH_MATRIX);
    tensor->ne[2] = (uint64_t)n;
    tensor->n_dims = 3;
}

static void attention(struct plan *plan, const struct moge_shape *shape) {
    int32_t n_q = shape->n_heads * shape->head_dim, n_kv = shape->n_kv_heads * shape->head_dim;
    bool is_pangu = strncmp(shape->architecture, "pangu", 5) == 0;
    bool is_qwen = strncmp(shape->architecture, "qwen", 4) == 0;
    vector(plan, "attn_norm.weight", shape->dim, MOGE_SYNTH_NORM);
    matrix(plan, "attn_q.weight", shape->dim, n_q, MOGE_SYNTH_MATRIX);
    matrix(plan, "attn_k.weight", shape->dim, n_kv, MOGE_SYNTH_MATRIX);
    matrix(plan, "attn_v.weight", shape->dim, n_kv, MOGE_SYNTH_MATRIX);
    matrix(plan, "attn_output.weight", n_q, shape->dim, MOGE_SYNTH_MATRIX);
    if (is_pangu || is_qwen) {
        vector(plan, "attn_q.bias", n_q, MOGE_SYNTH_BIAS);
        vector(plan, "attn_k.bias", n_kv, MOGE_SYNTH_BIAS);
        vector(plan, "attn_v.bias", n_kv, MOGE_SYNTH_BIAS);
    }
    if (is_pangu)
        vector(plan, "attn_output.bias", shape->dim, MOGE_SYNTH_BIAS);
    vector(plan, "ffn_norm.weight", shape->dim, MOGE_SYNTH_NORM);
}

static void ffn(struct plan *plan, const struct moge_shape *shape) {
    int32_t dim = shape->dim, expert = shape->expert_dim, n = shape->n_experts;
    bool is_pangu = strncmp(shape->architecture, "pangu", 5) == 0;
    if (n == 0) {
        matrix(plan, "ffn_gate.weight", dim, shape->ffn_dim, MOGE_SYNTH_MATRIX);
        matrix(plan, "ffn_up.weight", dim, shape->ffn_dim, MOGE_SYNTH_MATRIX);
        matrix(plan, "ffn_down.weight", shape->ffn_dim, dim, MOGE_SYNTH_MATRIX);
        return;
    }
    matrix(plan, "ffn_gate_inp.weight", dim, n, MOGE_SYNTH_MATRIX)->type = MOGE_TYPE_F32;
    if (is_pangu)
        vector(plan, "ffn_router_scale.weight", n, MOGE_SYNTH_ROUTER_SCALE);
    experts(plan, "ffn_gate_exps.weight", dim, expert, n);
    experts(plan, "ffn_up_exps.weight", dim, expert, n);
    experts(plan, "ffn_down_exps.weight", expert, dim, n);
    if (shape->ffn_dim == 0)
        return;
    if (!is_pangu) /* qwen2moe gates its shared expert */
        vector(plan, "ffn_gate_inp_shexp.weight", dim, MOGE_SYNTH_BIAS);
    matrix(plan, "ffn_gate_shexp.weight", dim, shape->ffn_dim, MOGE_SYNTH_MATRIX);
    matrix(plan, "ffn_up_shexp.weight", dim, shape->ffn_dim, MOGE_SYNTH_MATRIX);
    matrix(plan, "ffn_down_shexp.weight", shape->ffn_dim, dim, MOGE_SYNTH_MATRIX);
}

int moge_synth_plan(const struct moge_shape *shape, enum moge_type type,
                    struct moge_synth_tensor **out, uint64_t *n_tensors, struct moge_err *err) {
    struct plan plan = {.type = type, .layer = -1};
    matrix(&plan, "token_embd.weight", shape->dim, shape->n_vocab, MOGE_SYNTH_EMBEDDING);
    for (plan.layer = 0; plan.layer < shape->n_layers; plan.layer++) {
        attention(&plan, shape);
        ffn(&plan, shape);
    }
    plan.layer = -1;
    vector(&plan, "output_norm.weight", shape->dim, MOGE_SYNTH_NORM);
    if (!shape->tied)
        matrix(&plan, "output.weight", shape->dim, shape->n_vocab, MOGE_SYNTH_HEAD);
    if (plan.failed) {
        free(plan.tensors);
        return moge_fail(err, MOGE_NOMEM, "no memory for a list of tensors");
    }
    *out = plan.tensors;
    *n_tensors = plan.n;
    return 0;
}
