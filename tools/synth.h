/* SPDX-License-Identifier: Apache-2.0 */
/* Models of any shape with random weights.  Speed does not depend on the values, so full-size
 * behaviour is measured on these, and tests use tiny ones.  The same shape, type and seed give the
 * same file on every machine; the tokenizer depends on the size of the vocabulary alone, so a
 * target and a draft of equal vocabulary fit together. */
#ifndef MOGE_SYNTH_H
#define MOGE_SYNTH_H

#include <stdbool.h>
#include <stdint.h>
#include "moge/err.h"
#include "moge/gguf.h"
#include "moge/quant.h"

/* What a shape file says (bench/shapes/, docs/FORMAT.md). */
struct moge_shape {
    char name[64];
    char architecture[32];
    int32_t n_vocab, n_layers, dim, n_heads, n_kv_heads, head_dim, n_context;
    int32_t n_experts, n_experts_used, n_groups, expert_dim; /* 0 for a dense model */
    int32_t ffn_dim; /* dense or shared FFN; 0: no shared expert */
    float rope_base, norm_eps;
    bool tied; /* the output is the transposed embedding: no output.weight */
};

/* Reads and checks a shape file; err names the line or what does not fit together. */
int moge_shape_read(struct moge_shape *out, const char *path, struct moge_err *err);

/* The same check for a shape made by hand. */
int moge_shape_check(const struct moge_shape *shape, struct moge_err *err);

/* Writes a model.  `type` is that of the matrices; those whose rows are no multiple of 32 become
 * F16 when it is quantised, and the router, norms and biases are F32.  A panel type stores the
 * compute layout of the same values; matrices that cannot be stored so get the plain type. */
int moge_synth_write(const struct moge_shape *shape, enum moge_type type, uint64_t seed,
                     const char *path, struct moge_err *err);

/* The same, and calls progress now and then with the share done in 0..1. */
int moge_synth_write_watched(const struct moge_shape *shape, enum moge_type type, uint64_t seed,
                             const char *path, void (*progress)(void *arg, double done), void *arg,
                             struct moge_err *err);

/* One tensor of a model. */
enum moge_synth_kind {
    MOGE_SYNTH_MATRIX,       /* normal or uniform, so that a unit input gives about unit outputs */
    MOGE_SYNTH_EMBEDDING,    /* values of about 1 */
    MOGE_SYNTH_HEAD,         /* outputs of about 4: distributions neither flat nor one-hot */
    MOGE_SYNTH_NORM,         /* around 1 */
    MOGE_SYNTH_BIAS,         /* around 0 */
    MOGE_SYNTH_ROUTER_SCALE, /* around n_experts / n_experts_used: the choice of experts shows */
};
struct moge_synth_tensor {
    char name[64];
    uint64_t ne[3];
    uint32_t n_dims;
    enum moge_type type;
    enum moge_synth_kind kind;
};

/* All tensors of a shape in file order; *out is freed by the caller. */
int moge_synth_plan(const struct moge_shape *shape, enum moge_type type,
                    struct moge_synth_tensor **out, uint64_t *n_tensors, struct moge_err *err);

/* Declares the tokenizer: <unk>, <s>, </s>, 256 byte tokens, chat marks, pieces of one and several
 * characters with scores as SentencePiece BPE gives them.  n_vocab >= MOGE_SYNTH_VOCAB_MIN. */
#define MOGE_SYNTH_VOCAB_MIN 384
int moge_synth_put_tokenizer(struct moge_gguf_writer *w, int32_t n_vocab, struct moge_err *err);

#endif
