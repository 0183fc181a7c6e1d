/* SPDX-License-Identifier: Apache-2.0 */
/* A model in memory: one description with parameters covers pangu-moe, pangu-embedded, llama and
 * qwen2moe. Immutable after open. */
#ifndef MOGE_MODEL_H
#define MOGE_MODEL_H

#include "engine/gemm.h"
#include "moge/engine.h"
#include "moge/gguf.h"

/* One router definition for MoGE and ordinary top-k models: score all experts, choose k in every
 * group, weigh the chosen.  n_groups 1 is plain top-k; MoGE has n_groups 8 and k_per_group 1. */
#define MOGE_EXPERTS_MAX 512

enum moge_router_score { MOGE_SCORE_SOFTMAX, MOGE_SCORE_SIGMOID };
enum moge_group_score { MOGE_GROUP_MAX, MOGE_GROUP_TOP2_SUM };
struct moge_router {
    int32_t n_experts,
        n_groups;   /* groups are contiguous: expert e is in group e / (n_experts / n_groups) */
    int32_t n_used; /* chosen in all */
    int32_t n_groups_kept; /* group-limited routing: best groups kept; = n_groups otherwise */
    bool per_group;        /* choose n_used / n_groups in every group (MoGE), not n_used overall */
    enum moge_router_score score;
    enum moge_group_score group_score;
    bool renorm; /* weights divided by their sum (+ 1e-20) */
    float scale; /* multiplies every weight at the end */
};

struct moge_layer {
    const float *attn_norm;        /* [dim] */
    struct moge_matrix q, k, v, o; /* [heads * head_dim, dim] ... [dim, heads * head_dim] */
    const float *q_bias, *k_bias, *v_bias, *o_bias; /* NULL when absent */
    const float *ffn_norm;                          /* [dim] */
    struct moge_matrix gate, up, down; /* dense FFN or shared expert; n_out 0: absent */
    const float *shared_gate;          /* [dim]: shared output x sigmoid(dot); or NULL */
    struct moge_matrix router;         /* [n_experts, dim]; n_out 0: a dense layer */
    const float *router_bias;          /* [n_experts] for selection only; or NULL */
    const float *router_scale;         /* [n_experts] multiplies weights; or NULL */
    struct moge_matrix *gate_exps, *up_exps, *down_exps; /* [n_experts] */
};

struct moge_model {
    struct moge_model_info info;
    float norm_eps;
    float rope_base;
    int32_t rope_dim; /* = head_dim today */
    bool rope_neox;
    struct moge_router router;
    int32_t ffn_dim, expert_dim; /* dense or shared FFN; routed expert FFN */
    struct moge_layer *layers;   /* [n_layers] */
    struct moge_matrix embed;    /* [n_vocab, dim] rows as stored (any type), never packed */
    const float *output_norm;    /* [dim] */
    struct moge_matrix output;   /* [n_vocab, dim]; packed copy of embed when tied */
    /* owned */
    struct moge_gguf *gguf;
    struct moge_tokenizer *tokenizer;
    struct moge_arena weights; /* packed matrices, widened vectors, layers[] */
};

/* Copies the embedding of token id to out [dim]. */
void moge_model_embed(const struct moge_model *model, int32_t id, float *out);

#endif
