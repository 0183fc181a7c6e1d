/* SPDX-License-Identifier: Apache-2.0 */
/* The model on this machine.  A model is a loaded file: immutable weights and its tokenizer, shared
 * by anybody.  An engine is a model with room to compute: a KV arena and scratch for a stated
 * number of rows. It knows spans and pages; nothing of requests or RPC.
 *
 * Exactness: every row's logits depend only on that row's token history, bit for bit: not on the
 * other rows of the batch, the thread count, or how the prompt was cut into chunks.
 * docs/NUMERICS.md says how. */
#ifndef MOGE_ENGINE_H
#define MOGE_ENGINE_H

#include <stdbool.h>
#include <stdint.h>
#include "moge/batch.h"
#include "moge/err.h"
#include "moge/threads.h"

struct moge_model;
struct moge_engine;
struct moge_tokenizer; /* moge/tokenizer.h */

/* What to make of the file's weight matrices while loading. */
enum moge_weights {
    MOGE_WEIGHTS_AS_STORED,
    MOGE_WEIGHTS_F32,
    MOGE_WEIGHTS_Q8_0,
    MOGE_WEIGHTS_Q4_0
};

struct moge_model_options {
    enum moge_weights
        weights;     /* MOGE_WEIGHTS_Q8_0/Q4_0 quantise float matrices, F32 widens everything */
    bool mlock;      /* keep weights in memory; failure is an error */
    bool huge_pages; /* ask for huge pages for packed weights */
    /* Called now and then while loading, on the caller's thread, with the share done in 0..1; false
     * ends the load with MOGE_CANCELLED.  May be NULL. */
    bool (*progress)(void *arg, double done);
    void *progress_arg;
};

/* Opens and checks a GGUF file of architecture pangu-moe, pangu-embedded, llama or qwen2moe.  Every
 * count, size, offset and dimension is checked before use; err says what is wrong with the file.
 * Any thread. */
int moge_model_open(struct moge_model **out, const char *path,
                    const struct moge_model_options *options, struct moge_err *err);
void moge_model_close(struct moge_model *model);

struct moge_model_info {
    char name[64];         /* general.name, or the file's base name */
    char architecture[32]; /* general.architecture */
    char weights[16];      /* most common matrix type as computed with: "q8_0", "f16", ... */
    int32_t n_vocab, n_layers, dim, n_heads, n_kv_heads, head_dim, n_context;
    int32_t n_experts, n_experts_used, n_groups; /* 0 for a dense model */
    int64_t n_params, n_params_active;           /* weights in all, and read for one token */
    int64_t weight_bytes;                        /* as held in memory */
    int64_t kv_bytes_per_token;                  /* f16 K and V of all layers */
};
const struct moge_model_info *moge_model_info(const struct moge_model *model);

/* Borrowed; lives as long as the model. */
const struct moge_tokenizer *moge_model_tokenizer(const struct moge_model *model);

/* How keys and values are kept.  Q8_0 takes 17/32 of the memory of F16 and rounds more (NUMERICS.md
 * has the measured loss).  F32 takes twice; it is for comparing with references. */
enum moge_kv_type { MOGE_KV_F16, MOGE_KV_F32, MOGE_KV_Q8_0 };

struct moge_engine_options {
    int32_t n_pages;       /* KV pages: page ids 0..n_pages-1 may appear in block tables */
    int32_t n_rows_max;    /* most rows of one forward */
    int32_t n_logits_max;  /* most rows of logits of one forward */
    int32_t n_context_max; /* most positions of one sequence; at most the model's n_context */
    enum moge_kv_type kv_type;
};

/* Bytes of KV arena that one page costs this model. */
int64_t moge_engine_page_bytes(const struct moge_model *model, enum moge_kv_type kv_type);

/* Keeps model and threads (both must outlive the engine). */
int moge_engine_new(struct moge_engine **out, const struct moge_model *model,
                    struct moge_threads *threads, const struct moge_engine_options *options,
                    struct moge_err *err);
void moge_engine_free(struct moge_engine *engine);

/* Computes every row of the batch: writes K and V of each row's position into its page and leaves
 * the wanted logits in batch->logits (and logits_row in each span).  Rows of one sequence must lie
 * at consecutive positions, and all earlier positions must have been computed before.  Returns 0,
 * MOGE_INVALID when a token id, position or page is out of range (nothing written), or MOGE_LIMIT
 * when the batch is too large. Engine thread; allocates nothing. */
int moge_engine_forward(struct moge_engine *engine, struct moge_batch *batch);

const struct moge_model *moge_engine_model(const struct moge_engine *engine);

/* Counters of the last forward, for metrics and cost models. */
struct moge_forward_stats {
    int32_t n_rows, n_logits;
    int32_t experts_touched;      /* distinct (layer, expert) pairs */
    int64_t weight_bytes;         /* weight bytes that had to be read at least once */
    const int32_t *layer_experts; /* [n_layers] experts touched in each layer */
    const int64_t *group_pairs;   /* [n_groups] (row, expert) pairs in each group, all layers */
};
const struct moge_forward_stats *moge_engine_last(const struct moge_engine *engine);

#endif
