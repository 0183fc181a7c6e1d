/* SPDX-License-Identifier: Apache-2.0 */
/* Random weights, as fast as a disk takes them.
 *
 * Quantised blocks are not quantised: their bytes ARE random bytes, under a scale that gives the
 * matrix the standard deviation it needs.  Float values are looked up in a table of normal ones.
 * A tensor's values depend on the seed and its name only. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "engine/kernels/kernels.h"
#include "engine/panel_layout.h"
#include "moge/splitmix.h"
#include "tools/synth.h"

#define CHUNK_BYTES  (1u << 20)
#define TABLE_VALUES 65536u /* indexed by 16 random bits */

struct rng {
    uint64_t s[4];
};

static struct rng rng_init(uint64_t seed, const char *name) {
    struct rng rng;
    for (const char *c = name; *c; c++)
        seed = (seed ^ (unsigned char)*c) * 0x100000001b3u;
    for (int i = 0; i < 4; i++)
        rng.s[i] = moge_splitmix(&seed);
    return rng;
}

/* xoshiro256++ (Blackman and Vigna, 2019). */
static uint64_t rng_u64(struct rng *rng) {
    uint64_t *s = rng->s, sum = s[0] + s[3], t = s[1] << 17;
    uint64_t result = ((sum << 23) | (sum >> 41)) + s[0];
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = (s[3] << 45) | (s[3] >> 19);
    return result;
}

/* About standard normal: the sum of four uniform numbers, which is the same on every machine. */
static float rng_normal(struct rng *rng) {
    uint64_t bits = rng_u64(rng);
    int32_t sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (int32_t)((bits >> (16 * i)) & 0xffff) - 32768;
    return (float)sum * (1.7320508f / 65536.0f);
}

/* Mean and standard deviation of a tensor's values. */
static void spread(const struct moge_shape *shape, const struct moge_synth_tensor *tensor,
                   float *mean, float *deviation) {
    float unit = 1.0f / sqrtf((float)tensor->ne[0]);
    *mean = 0;
    *deviation = unit;
    switch (tensor->kind) {
    case MOGE_SYNTH_MATRIX:
        return;
    case MOGE_SYNTH_EMBEDDING:
        *deviation = shape->tied ? 4 * unit : 1.0f;
        return;
    case MOGE_SYNTH_HEAD:
        *deviation = 4 * unit;
        return;
    case MOGE_SYNTH_NORM:
        *mean = 1;
        *deviation = 0.1f;
        return;
    case MOGE_SYNTH_BIAS:
        *deviation = 0.1f;
        return;
    case MOGE_SYNTH_ROUTER_SCALE:
        *mean = (float)shape->n_experts / (float)shape->n_experts_used;
        *deviation = 0.2f * *mean;
        return;
    }
}

/* Uniform bytes are in [-127, 127] but for -128, which symmetric quantisation never makes. */
static void fill_q8_0(struct rng *rng, float deviation, struct moge_block_q8_0 *blocks, size_t n) {
    uint16_t d[16]; /* scales vary from block to block by up to a half */
    for (int i = 0; i < 16; i++)
        d[i] = moge_f32_to_f16(deviation / 73.3f * (0.5f + (float)i / 15.0f));
    for (size_t b = 0; b < n; b++) {
        uint64_t q[MOGE_QBLOCK / 8];
        for (size_t i = 0; i < MOGE_QBLOCK / 8; i++)
            q[i] = rng_u64(rng);
        blocks[b].d = d[q[0] & 15];
        memcpy(blocks[b].q, q, sizeof q);
        for (size_t i = 0; i < MOGE_QBLOCK; i++)
            blocks[b].q[i] = blocks[b].q[i] == INT8_MIN ? -127 : blocks[b].q[i];
    }
}

static void fill_q4_0(struct rng *rng, float deviation, struct moge_block_q4_0 *blocks, size_t n) {
    uint16_t d[16]; /* of both signs, because nibbles lean to the negative side */
    for (int i = 0; i < 16; i++)
        d[i] = moge_f32_to_f16(deviation / 4.6f * (0.5f + (float)(i / 2) / 7.0f) *
                               (i & 1 ? 1.0f : -1.0f));
    for (size_t b = 0; b < n; b++) {
        uint64_t q[2] = {rng_u64(rng), rng_u64(rng)};
        blocks[b].d = d[(q[0] >> 13) & 15];
        memcpy(blocks[b].q, q, sizeof q);
    }
}

/* Values of `size` bytes (2 or 4) from a table of them. */
static void fill_table(struct rng *rng, const unsigned char *table, size_t size,
                       unsigned char *values, size_t n) {
    for (size_t i = 0; i < n; i += 4) {
        uint64_t bits = rng_u64(rng);
        for (size_t k = i; k < n && k < i + 4; k++, bits >>= 16)
            memcpy(values + k * size, table + (bits & 0xffff) * size, size);
    }
}

struct writing {
    const struct moge_shape *shape;
    struct moge_gguf_writer *w;
    uint64_t seed, bytes_done, bytes_all;
    float *normal;         /* [TABLE_VALUES] standard normal */
    float *scaled;         /* [TABLE_VALUES] of one tensor */
    unsigned char *table;  /* [TABLE_VALUES] of one tensor, in its type */
    unsigned char *buffer; /* [cap] values as rows; */
    unsigned char *panels; /* [cap] the same as panels */
    size_t cap;
    void (*progress)(void *arg, double done);
    void *arg;
};

static int write_tensor(struct writing *writing, const struct moge_synth_tensor *tensor,
                        struct moge_err *err) {
    const struct moge_type_traits *traits = moge_type_traits((uint32_t)tensor->type);
    struct rng rng = rng_init(writing->seed, tensor->name);
    size_t block_bytes = (size_t)traits->block_bytes, n_chunk = writing->cap / block_bytes;
    size_t row_blocks = (size_t)tensor->ne[0] / (size_t)traits->block_values;
    enum moge_type plain = moge_type_plain(tensor->type);
    bool in_panels = plain != tensor->type;
    if (in_panels) /* whole panels */
        n_chunk -= n_chunk % (MOGE_PANEL_ROWS * row_blocks);
    uint64_t left = tensor->ne[0] * tensor->ne[1] * tensor->ne[2] / (uint64_t)traits->block_values;
    float mean, deviation;
    spread(writing->shape, tensor, &mean, &deviation);
    if (traits->block_values == 1) {
        for (size_t i = 0; i < TABLE_VALUES; i++)
            writing->scaled[i] = mean + deviation * writing->normal[i];
        traits->from_f32(writing->scaled, writing->table, TABLE_VALUES);
    }
    while (left > 0) {
        size_t n = left < n_chunk ? (size_t)left : n_chunk;
        if (plain == MOGE_TYPE_Q8_0)
            fill_q8_0(&rng, deviation, (void *)writing->buffer, n);
        else if (plain == MOGE_TYPE_Q4_0)
            fill_q4_0(&rng, deviation, (void *)writing->buffer, n);
        else
            fill_table(&rng, writing->table, block_bytes, writing->buffer, n);
        int32_t n_rows = (int32_t)(n / row_blocks);
        if (in_panels)
            moge_panels_pack(plain, writing->buffer, n_rows, (int32_t)tensor->ne[0],
                             writing->panels);
        int rc = moge_gguf_write_data(writing->w, in_panels ? writing->panels : writing->buffer,
                                      n * block_bytes, err);
        if (rc != 0)
            return rc;
        left -= n;
        writing->bytes_done += n * block_bytes;
        if (writing->progress)
            writing->progress(writing->arg,
                              (double)writing->bytes_done / (double)writing->bytes_all);
    }
    return 0;
}

static void put_number(struct moge_gguf_writer *w, const struct moge_shape *shape,
                       const char *suffix, int32_t value) {
    char key[96];
    snprintf(key, sizeof key, "%s.%s", shape->architecture, suffix);
    moge_gguf_put_u32(w, key, (uint32_t)value);
}

static void put_float(struct moge_gguf_writer *w, const struct moge_shape *shape,
                      const char *suffix, float value) {
    char key[96];
    snprintf(key, sizeof key, "%s.%s", shape->architecture, suffix);
    moge_gguf_put_f32(w, key, value);
}

static void put_metadata(struct moge_gguf_writer *w, const struct moge_shape *shape,
                         enum moge_type type) {
    char name[96];
    snprintf(name, sizeof name, "synthetic %s", shape->name[0] ? shape->name : "model");
    moge_gguf_put_str(w, "general.architecture", shape->architecture);
    moge_gguf_put_str(w, "general.name", name);
    moge_gguf_put_u32(w, "general.file_type", moge_gguf_file_type(type));
    if (moge_type_traits((uint32_t)type)->block_values > 1)
        moge_gguf_put_u32(w, "general.quantization_version", 2);
    put_number(w, shape, "vocab_size", shape->n_vocab);
    put_number(w, shape, "context_length", shape->n_context);
    put_number(w, shape, "embedding_length", shape->dim);
    put_number(w, shape, "block_count", shape->n_layers);
    put_number(w, shape, "attention.head_count", shape->n_heads);
    put_number(w, shape, "attention.head_count_kv", shape->n_kv_heads);
    put_number(w, shape, "attention.key_length", shape->head_dim);
    put_number(w, shape, "attention.value_length", shape->head_dim);
    put_number(w, shape, "rope.dimension_count", shape->head_dim);
    put_float(w, shape, "rope.freq_base", shape->rope_base);
    put_float(w, shape, "attention.layer_norm_rms_epsilon", shape->norm_eps);
    put_number(w, shape, "feed_forward_length", shape->ffn_dim);
    if (shape->n_experts == 0)
        return;
    put_number(w, shape, "expert_count", shape->n_experts);
    put_number(w, shape, "expert_used_count", shape->n_experts_used);
    if (strcmp(shape->architecture, "pangu-moe") == 0)
        put_number(w, shape, "expert_group_count", shape->n_groups);
    put_number(w, shape, "expert_feed_forward_length", shape->expert_dim);
    put_number(w, shape, "expert_shared_feed_forward_length", shape->ffn_dim);
}

/* What the widest panel of a shape takes at most: two bytes a value. */
static size_t panel_bytes_max(const struct moge_shape *shape) {
    const int32_t widths[] = {shape->dim, shape->ffn_dim, shape->expert_dim,
                              shape->n_heads * shape->head_dim};
    size_t widest = 0;
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
        widest = (size_t)widths[i] > widest ? (size_t)widths[i] : widest;
    return widest * MOGE_PANEL_ROWS * 2;
}

static int writing_init(struct writing *writing, struct moge_err *err) {
    struct rng rng = rng_init(writing->seed, "normal");
    writing->normal = malloc(TABLE_VALUES * sizeof *writing->normal);
    writing->scaled = malloc(TABLE_VALUES * sizeof *writing->scaled);
    writing->table = malloc(TABLE_VALUES * sizeof(float));
    writing->cap = panel_bytes_max(writing->shape);
    writing->cap = writing->cap > CHUNK_BYTES ? writing->cap : CHUNK_BYTES;
    writing->buffer = malloc(writing->cap);
    writing->panels = malloc(writing->cap);
    if (!writing->normal || !writing->scaled || !writing->table || !writing->buffer ||
        !writing->panels)
        return moge_fail(err, MOGE_NOMEM, "no memory for random numbers");
    for (size_t i = 0; i < TABLE_VALUES; i++)
        writing->normal[i] = rng_normal(&rng);
    return 0;
}

int moge_synth_write_watched(const struct moge_shape *shape, enum moge_type type, uint64_t seed,
                             const char *path, void (*progress)(void *arg, double done), void *arg,
                             struct moge_err *err) {
    struct writing writing = {.shape = shape, .seed = seed, .progress = progress, .arg = arg};
    struct moge_synth_tensor *tensors = NULL;
    uint64_t n = 0;
    int rc;
    if ((rc = moge_shape_check(shape, err)) != 0 || (rc = writing_init(&writing, err)) != 0 ||
        (rc = moge_synth_plan(shape, type, &tensors, &n, err)) != 0 ||
        (rc = moge_gguf_create(&writing.w, path, err)) != 0)
        goto done;
    put_metadata(writing.w, shape, type);
    if (moge_type_is_panel(type))
        moge_gguf_put_panel_layout(writing.w);
    if ((rc = moge_synth_put_tokenizer(writing.w, shape->n_vocab, err)) != 0)
        goto done;
    for (uint64_t i = 0; i < n; i++) {
        const struct moge_type_traits *traits = moge_type_traits((uint32_t)tensors[i].type);
        moge_gguf_put_tensor(writing.w, tensors[i].name, tensors[i].ne, tensors[i].n_dims,
                             tensors[i].type);
        writing.bytes_all += tensors[i].ne[0] * tensors[i].ne[1] * tensors[i].ne[2] /
                             (uint64_t)traits->block_values * (uint64_t)traits->block_bytes;
    }
    for (uint64_t i = 0; i < n && rc == 0; i++)
        rc = write_tensor(&writing, &tensors[i], err);
    if (rc == 0) {
        rc = moge_gguf_finish(writing.w, err);
        writing.w = NULL;
    }
done:
    moge_gguf_abandon(writing.w);
    free(tensors);
    free(writing.normal);
    free(writing.scaled);
    free(writing.table);
    free(writing.buffer);
    free(writing.panels);
    return rc;
}

int moge_synth_write(const struct moge_shape *shape, enum moge_type type, uint64_t seed,
                     const char *path, struct moge_err *err) {
    return moge_synth_write_watched(shape, type, seed, path, NULL, NULL, err);
}
