/* SPDX-License-Identifier: Apache-2.0 */
/* The attention slots of kernels_check: every level against scalar, scalar against the contract. */
#ifndef MOGE_TESTS_ATTENTION_H
#define MOGE_TESTS_ATTENTION_H

static struct moge_kv_q8_0 kv_blocks[8];

/* Every byte, -128 too, and scales from the smallest subnormal up. */
static void kv_blocks_fill(struct test_rng *rng, int32_t n_blocks) {
    for (int32_t b = 0; b < n_blocks; b++) {
        for (size_t i = 0; i < sizeof kv_blocks[b].q; i++)
            kv_blocks[b].q[i] = (int8_t)(test_below(rng, 256) - 128);
        for (int t = 0; t < 16; t++)
            kv_blocks[b].d[t] = (uint16_t)test_below(rng, 0x3c00);
    }
}

static void attention_is_the_same_at_every_level(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(3);
    struct buffers *m = &buffers;
    EACH_LEVEL(k)
    for (int32_t n = 2; n <= 128; n += n < 40 ? 1 : 11) /* head_dim */
        for (int32_t n_q = 1; n_q <= 9; n_q++) {
            int32_t n_tok = 1 + (n + n_q) % 16, offset = n % 4, n_blocks = (n + 31) / 32;
            refill(&rng, ORDINARY);
            SAME("attn_scores",
                 K->attn_scores(m->a + offset, n_q, m->half + offset, n_tok, n, 0.088f, OUT, 19));
            SAME("attn_values",
                 K->attn_values(m->a + offset, 17, n_q, m->half + offset, n_tok, n, OUT));
            kv_blocks_fill(&rng, n_blocks);
            SAME("attn_scores_q8_0",
                 K->attn_scores_q8_0(m->a + offset, n_q, kv_blocks, n_tok, n, 0.088f, OUT, 19));
            SAME("attn_values_q8_0",
                 K->attn_values_q8_0(m->a + offset, 17, n_q, kv_blocks, n_tok, n, OUT));
        }
}

static void attention_is_right(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(11);
    enum { HEAD = 72, TOKENS = 13, HEADS = 6, STRIDE = 20 };
    float q[HEADS * HEAD], scores[HEADS * STRIDE], out[HEADS * HEAD], before[HEADS * HEAD];
    uint16_t k[16 * HEAD], v[TOKENS * HEAD]; /* keys side by side, values one after the other */
    for (int i = 0; i < HEADS * HEAD; i++) {
        q[i] = test_float(&rng);
        before[i] = out[i] = test_float(&rng);
    }
    for (int i = 0; i < 16 * HEAD; i++)
        k[i] = (uint16_t)(0x2c00 + test_below(&rng, 0x1000) + (test_below(&rng, 2) << 15));
    for (int i = 0; i < TOKENS * HEAD; i++)
        v[i] = (uint16_t)(0x2c00 + test_below(&rng, 0x1000) + (test_below(&rng, 2) << 15));
    SCALAR->attn_scores(q, HEADS, k, TOKENS, HEAD, 0.125f, scores, STRIDE);
    SCALAR->attn_values(scores, STRIDE, HEADS, v, TOKENS, HEAD, out);
    for (int h = 0; h < HEADS; h++) {
        for (int t = 0; t < TOKENS; t++) {
            float sum = 0; /* the contract, to the bit */
            for (int i = 0; i < HEAD; i++)
                sum = fmaf(q[h * HEAD + i], (float)half_value(k[i * 16 + t]), sum);
            assert_true(scores[h * STRIDE + t] == sum * 0.125f);
        }
        for (int i = 0; i < HEAD; i++) {
            float sum = before[h * HEAD + i];
            for (int t = 0; t < TOKENS; t++)
                sum = fmaf(scores[h * STRIDE + t], (float)half_value(v[t * HEAD + i]), sum);
            assert_true(sum == out[h * HEAD + i]);
        }
    }
}

static void q8_0_attention_is_right(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(13);
    enum { HEAD = 72, TOKENS = 13, HEADS = 6, STRIDE = 20 };
    float q[HEADS * HEAD], scores[HEADS * STRIDE], out[HEADS * HEAD], before[HEADS * HEAD];
    for (int i = 0; i < HEADS * HEAD; i++) {
        q[i] = test_float(&rng);
        before[i] = out[i] = test_float(&rng);
    }
    kv_blocks_fill(&rng, 3);
    SCALAR->attn_scores_q8_0(q, HEADS, kv_blocks, TOKENS, HEAD, 0.125f, scores, STRIDE);
    SCALAR->attn_values_q8_0(scores, STRIDE, HEADS, kv_blocks, TOKENS, HEAD, out);
    for (int h = 0; h < HEADS; h++) {
        for (int t = 0; t < TOKENS; t++) {
            float sum = 0; /* the contract, to the bit */
            for (int b = 0; b < 3; b++) {
                float part = 0;
                for (int i = 0; i < 32 && b * 32 + i < HEAD; i++)
                    part = fmaf(q[h * HEAD + b * 32 + i], kv_blocks[b].q[i * 16 + t], part);
                sum = fmaf(part, (float)half_value(kv_blocks[b].d[t]), sum);
            }
            assert_true(scores[h * STRIDE + t] == sum * 0.125f);
        }
        for (int i = 0; i < HEAD; i++) {
            const struct moge_kv_q8_0 *v = &kv_blocks[i / 32];
            float sum = before[h * HEAD + i];
            for (int t = 0; t < TOKENS; t++)
                sum = fmaf(scores[h * STRIDE + t] * (float)half_value(v->d[t]),
                           v->q[t * 32 + i % 32], sum);
            assert_true(sum == out[h * HEAD + i]);
        }
    }
}

#endif
