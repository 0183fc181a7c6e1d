/* SPDX-License-Identifier: Apache-2.0 */
/* What an engine holds: the KV arena and the scratch of one forward, all sized at start.  Shared by
 * the files that make up the pass: engine.c (life and checks), forward.c (the pass), attn.c, moe.c,
 * router.c, ahead.c. */
#ifndef MOGE_ENGINE_STATE_H
#define MOGE_ENGINE_STATE_H

#include <stdatomic.h>

#include "engine/model.h"
#include "moge/engine.h"

/* With so few rows every thread prepares its own copy of a matrix's input instead of waiting at a
 * barrier for a shared one: preparing a row twice costs less than meeting once. */
#define MOGE_ROWS_FEW 4
/* Rows that are routed together: an expert's router weights are read once for them. */
#define MOGE_ROWS_ROUTED 16

/* Attention takes so many rows of a sequence through a page together, and so many positions of them
 * between two parts of their softmax (docs/NUMERICS.md). */
#define MOGE_ATTN_ROWS    8
#define MOGE_ATTN_SEGMENT 256
#define MOGE_ATTN_PAGES   (MOGE_ATTN_SEGMENT / MOGE_PAGE_TOKENS)

/* Of the heads that a thread attends together, MOGE_ATTN_ROWS times the heads of a KV head. */
struct moge_attn_scratch {
    const float **q;  /* their queries */
    float **out;      /* what they have come to */
    float *max, *sum; /* their softmax so far */
    float *scores;    /* [heads, MOGE_ATTN_SEGMENT] */
};

/* What one thread has to itself. */
struct moge_worker {
    struct moge_act norm; /* [MOGE_ROWS_FEW, dim] normalised rows, own copy when rows are few */
    struct moge_attn_scratch attn;
    void *gemm; /* moge_gemm_scratch_bytes */
    /* The layer's routing; every thread sorts for itself, for few rows it chooses for itself too.
     */
    int32_t *chosen;       /* [MOGE_ROWS_FEW, n_used] */
    float *weights;        /* [MOGE_ROWS_FEW, n_used] */
    float *shared_weight;  /* [MOGE_ROWS_FEW] of the shared expert, where the model gates it */
    float *router_logits;  /* [MOGE_ROWS_ROUTED, n_experts] */
    int32_t *expert_begin; /* [n_experts + 1] where an expert's pairs begin */
    int32_t *pair_row;     /* [n_rows_max * n_used] row of each pair, by expert, rows ascending */
    float *pair_weight;    /* [n_rows_max * n_used] */
};

/* One row of the batch, flattened out of its span. */
struct moge_row {
    int32_t token, pos;
    const int32_t *pages; /* block table of its sequence */
};

struct moge_engine {
    /* ---- constant after new ---- */
    const struct moge_model *model;
    struct moge_threads *threads;
    const struct moge_kernels *kernels;
    struct moge_engine_options options;
    struct moge_arena kv_arena, arena;
    const struct moge_kv_format *kv_format;
    size_t kv_block_bytes; /* of one KV head's keys, or values, in one page */
    unsigned char *kv;     /* [n_layers, 2 (K, V), n_kv_heads, n_pages] blocks of the format */
    float *rope;           /* [n_context_max, head_dim / 2, 2 (cos, sin)] */
    float *logits;         /* [n_logits_max, n_vocab] */
    struct moge_worker *workers; /* [threads of the pool] */
    int64_t row_macs;            /* multiply-adds of one row outside the output head */
    /* What is better done twice, or by one thread, than by threads that meet; in multiply-adds. */
    int64_t pass_macs_alone;   /* a pass with no more is one thread's */
    int64_t router_macs_alone; /* a router with no more is evaluated by every thread */
    /* ---- one forward ---- */
    int64_t n_disk_waits;   /* of the process, when last looked at; 0: never */
    int32_t reads_ahead;    /* passes that still ask for experts ahead */
    int32_t n_passes_alone; /* since the last shared one, at most CROWDED_PASSES */
    int32_t n_active; /* threads that take part: all, or 1 when a pass is too small to share */
    int32_t n_rows, n_logits;
    atomic_int n_taken;     /* units of this part of the pass; relaxed, meetings order the parts */
    struct moge_row *rows;  /* [n_rows_max] */
    int32_t *logits_of;     /* [n_logits_max] row of the batch that a row of logits belongs to */
    float *x;               /* [n_rows_max, dim] the residual stream */
    float *delta;           /* [n_rows_max, dim] what a part adds to it */
    struct moge_act norm;   /* [n_rows_max, dim] normalised rows, when shared */
    float *q;               /* [n_rows_max, heads * head_dim] */
    float *k, *v;           /* [n_rows_max, kv_heads * head_dim] */
    struct moge_act attn;   /* [n_rows_max, heads * head_dim] attention output */
    struct moge_act hidden; /* [n_rows_max * n_used, expert_dim] between up and down, routed */
    struct moge_act shared; /* [n_rows_max, ffn_dim] the same of the dense or shared FFN */
    float *up;              /* [n_rows_max * n_used, expert_dim] what hidden is multiplied with */
    float *up_shared;       /* [n_rows_max, ffn_dim] */
    float *few_logits;      /* [MOGE_ROWS_FEW, n_experts] of a router that is shared out */
    int32_t *chosen;        /* [n_rows_max, n_used] when rows are shared out */
    float *weights;         /* [n_rows_max, n_used] */
    float *shared_weight;   /* [n_rows_max] */
    struct moge_forward_stats stats;
    int32_t *layer_experts; /* [n_layers] what stats.layer_experts points at */
    int64_t *group_pairs;   /* [n_groups] likewise */
};

/* How a format keeps keys and values, and reads a page of one KV head; contracts as in kernels.h.
 */
struct moge_kv_format {
    size_t (*block_bytes)(int32_t head_dim); /* of 16 positions of one KV head */
    /* Position t (0..15) of a page's block of one KV head; [n] values. */
    void (*store_key)(const struct moge_kernels *kernels, const float *x, void *page, int32_t t,
                      int32_t n);
    void (*store_value)(const struct moge_kernels *kernels, const float *x, void *page, int32_t t,
                        int32_t n);
    void (*scores)(const struct moge_kernels *kernels, const float *const *q, int32_t n_q,
                   const void *const *pages, int32_t n_tok, int32_t head_dim, float scale,
                   float *scores, size_t stride);
    void (*values)(const struct moge_kernels *kernels, const float *p, size_t stride, int32_t n_q,
                   const void *const *pages, int32_t n_tok, int32_t head_dim, float *const *out);
};
/* NULL for a type that does not exist. */
const struct moge_kv_format *moge_kv_format(enum moge_kv_type type);

/* Every active thread waits for every other. */
static inline void moge_engine_meet(const struct moge_engine *engine) {
    if (engine->n_active > 1)
        moge_threads_barrier(engine->threads);
}

static inline bool moge_is_quantized(const struct moge_matrix *matrix) {
    return matrix->type == MOGE_TYPE_Q8_0 || matrix->type == MOGE_TYPE_Q4_0;
}

/* Whether experts are to be read before they are used: decided before each pass. */
void moge_ahead_decide(struct moge_engine *engine);

/* Asks for weights that lie in the mapped file; returns at once. */
void moge_ahead_read(const void *weights, size_t bytes);

/* The whole pass as one thread of the pool runs it; arg is the engine. */
void moge_forward_thread(void *arg, int i_thread, int n_threads);

/* A part of the pass between two meetings may be cut into units that threads take one by one, so
 * that one which is held up keeps nobody waiting.  The next unit, from 0 on.  Every active thread
 * takes until it is refused: the part has no such unit. */
int32_t moge_forward_take(struct moge_engine *engine);
/* This thread was refused `unit` of a part of n_units; whoever is last makes ready for the next. */
void moge_forward_refused(struct moge_engine *engine, int32_t unit, int32_t n_units);

/* Takes outputs *begin..*end of n that are cut evenly.  False: this thread was refused. */
bool moge_forward_take_outputs(struct moge_engine *engine, int32_t n, int32_t *begin, int32_t *end);

/* Outputs of a unit, of n: whole blocks, for about n_units units, but at most `most`. */
int32_t moge_forward_unit(int32_t n, int32_t n_units, int32_t most);

/* act row i = norm(row `row` of x), quantised too if asked. */
void moge_forward_normalise(const struct moge_engine *engine, const float *weight, int32_t row,
                            struct moge_act *act, int32_t i, bool quantise);

/* True when each thread can compute, store and attend KV heads of its own. */
bool moge_attn_heads_apart(const struct moge_engine *engine, const struct moge_layer *layer);

/* Rotates q and k of every row, stores K and V in their pages, attends: engine->attn, quantised as
 * W_o wants it.  The caller meets afterwards. */
void moge_attn_run(struct moge_engine *engine, int32_t i_layer, int i_thread);

/* Routed and shared experts, or the dense FFN, of norm(x), added to x.  The caller meets
 * afterwards. */
void moge_moe_run(struct moge_engine *engine, const struct moge_layer *layer, int i_thread);

/* Chooses experts and weighs them for one row of router logits (overwritten).  chosen and weights
 * have room for router->n_used; chosen comes out ascending.  bias and scale: [n_experts] or NULL.
 */
void moge_router_choose(const struct moge_router *router, const struct moge_kernels *kernels,
                        float *logits, const float *bias, const float *scale, int32_t *chosen,
                        float *weights);

#endif
