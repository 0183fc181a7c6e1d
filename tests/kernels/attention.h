/* SPDX-License-Identifier: Apache-2.0 */
/* The attention slots of kernels_check: every level against scalar, scalar against the contract. */
#ifndef MOGE_TESTS_ATTENTION_H
#define MOGE_TESTS_ATTENTION_H

enum { ATTN_HEAD_MAX = 128, ATTN_PAGES = 3, ATTN_HEADS_MAX = 9 };

/* Pages that lie anywhere, of either type, and heads that lie anywhere. */
struct attn_input {
    uint16_t half[ATTN_PAGES][16 * ATTN_HEAD_MAX];
    struct moge_kv_q8_0 kv[ATTN_PAGES][ATTN_HEAD_MAX / 32];
    const void *half_pages[ATTN_PAGES + MOGE_ATTN_AHEAD], *kv_pages[ATTN_PAGES + MOGE_ATTN_AHEAD];
    const float *q[ATTN_HEADS_MAX];
};
static struct attn_input attn_input;

/* Every byte, -128 too, and scales from the smallest subnormal up; halves of magnitude 2^-4 to 1.
 */
static void attn_fill(struct test_rng *rng) {
    struct attn_input *in = &attn_input;
    for (int page = 0; page < ATTN_PAGES; page++) {
        for (int i = 0; i < 16 * ATTN_HEAD_MAX; i++)
            in->half[page][i] =
                (uint16_t)(0x2c00 + test_below(rng, 0x1000) + (test_below(rng, 2) << 15));
        for (int b = 0; b < ATTN_HEAD_MAX / 32; b++) {
            for (size_t i = 0; i < sizeof in->kv[page][b].q; i++)
                in->kv[page][b].q[i] = (int8_t)(test_below(rng, 256) - 128);
            for (int t = 0; t < 16; t++)
                in->kv[page][b].d[t] = (uint16_t)test_below(rng, 0x3c00);
        }
        in->half_pages[ATTN_PAGES - 1 - page] = in->half[page];
        in->kv_pages[ATTN_PAGES - 1 - page] = in->kv[page];
    }
    for (int i = ATTN_PAGES; i < ATTN_PAGES + MOGE_ATTN_AHEAD; i++)
        in->half_pages[i] = in->half[0], in->kv_pages[i] = in->kv[0]; /* a hint alone */
}

/* Heads of n columns, one behind the other, first last. */
static float *const *attn_heads(float *at, int32_t n, int32_t n_q) {
    static float *heads[ATTN_HEADS_MAX];
    for (int32_t h = 0; h < n_q; h++)
        heads[h] = at + (n_q - 1 - h) * n;
    return heads;
}

static void attention_is_the_same_at_every_level(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(3);
    struct buffers *m = &buffers;
    struct attn_input *in = &attn_input;
    EACH_LEVEL(k)
    for (int32_t n = 2; n <= 128; n += n < 40 ? 1 : 11) /* head_dim */
        for (int32_t n_q = 1; n_q <= ATTN_HEADS_MAX; n_q++) {
            int32_t n_tok = 1 + (7 * n + n_q) % (16 * ATTN_PAGES), offset = n % 4;
            refill(&rng, ORDINARY);
            attn_fill(&rng);
            for (int32_t h = 0; h < n_q; h++)
                in->q[h] = m->a + offset + (h * 5 % n_q) * n;
            SAME("attn_scores",
                 K->attn_scores(in->q, n_q, in->half_pages, n_tok, n, 0.088f, OUT, 49));
            SAME("attn_values", K->attn_values(m->a + offset, 49, n_q, in->half_pages, n_tok, n,
                                               attn_heads(OUT, n, n_q)));
            SAME("attn_scores_q8_0",
                 K->attn_scores_q8_0(in->q, n_q, in->kv_pages, n_tok, n, 0.088f, OUT, 49));
            SAME("attn_values_q8_0", K->attn_values_q8_0(m->a + offset, 49, n_q, in->kv_pages,
                                                         n_tok, n, attn_heads(OUT, n, n_q)));
        }
}

enum { HEAD = 72, TOKENS = 16 + 13, HEADS = 6, STRIDE = 31 };

struct attn_case {
    float queries[HEADS * HEAD], scores[HEADS * STRIDE], out[HEADS * HEAD], before[HEADS * HEAD];
    float *outs[HEADS];
};
static struct attn_case attn_case;

static void attn_case_fill(uint64_t seed) {
    struct test_rng rng = test_rng_init(seed);
    struct attn_case *c = &attn_case;
    for (int i = 0; i < HEADS * HEAD; i++) {
        c->queries[i] = test_float(&rng);
        c->before[i] = c->out[i] = test_float(&rng);
    }
    for (int h = 0; h < HEADS; h++) {
        attn_input.q[h] = c->queries + h * HEAD;
        c->outs[h] = c->out + h * HEAD;
    }
    attn_fill(&rng);
}

static float half_of(uint16_t h) {
    return (float)half_value(h);
}

static void attention_is_right(void **state) {
    (void)state;
    struct attn_case *c = &attn_case;
    attn_case_fill(11);
    const void *const *pages = attn_input.half_pages;
    SCALAR->attn_scores(attn_input.q, HEADS, pages, TOKENS, HEAD, 0.125f, c->scores, STRIDE);
    SCALAR->attn_values(c->scores, STRIDE, HEADS, pages, TOKENS, HEAD, c->outs);
    for (int h = 0; h < HEADS; h++) {
        for (int t = 0; t < TOKENS; t++) { /* keys side by side */
            const uint16_t *k = pages[t / 16];
            float sum = 0; /* the contract, to the bit */
            for (int i = 0; i < HEAD; i++)
                sum = fmaf(c->queries[h * HEAD + i], half_of(k[i * 16 + t % 16]), sum);
            assert_true(c->scores[h * STRIDE + t] == sum * 0.125f);
        }
        for (int i = 0; i < HEAD; i++) { /* values one after the other */
            float sum = c->before[h * HEAD + i];
            for (int t = 0; t < TOKENS; t++)
                sum = fmaf(c->scores[h * STRIDE + t],
                           half_of(((const uint16_t *)pages[t / 16])[t % 16 * HEAD + i]), sum);
            assert_true(sum == c->out[h * HEAD + i]);
        }
    }
}

static void q8_0_attention_is_right(void **state) {
    (void)state;
    struct attn_case *c = &attn_case;
    attn_case_fill(13);
    const void *const *pages = attn_input.kv_pages;
    SCALAR->attn_scores_q8_0(attn_input.q, HEADS, pages, TOKENS, HEAD, 0.125f, c->scores, STRIDE);
    SCALAR->attn_values_q8_0(c->scores, STRIDE, HEADS, pages, TOKENS, HEAD, c->outs);
    for (int h = 0; h < HEADS; h++) {
        for (int t = 0; t < TOKENS; t++) {
            const struct moge_kv_q8_0 *k = pages[t / 16];
            float sum = 0; /* the contract, to the bit */
            for (int b = 0; b < HEAD; b += 32, k++) {
                float part = 0;
                for (int i = b; i < b + 32 && i < HEAD; i++)
                    part = fmaf(c->queries[h * HEAD + i], k->q[i % 32 * 16 + t % 16], part);
                sum = fmaf(part, half_of(k->d[t % 16]), sum);
            }
            assert_true(c->scores[h * STRIDE + t] == sum * 0.125f);
        }
        for (int i = 0; i < HEAD; i++) {
            float sum = c->before[h * HEAD + i];
            for (int t = 0; t < TOKENS; t++) {
                const struct moge_kv_q8_0 *v = (const struct moge_kv_q8_0 *)pages[t / 16] + i / 32;
                sum = fmaf(c->scores[h * STRIDE + t] * half_of(v->d[t % 16]),
                           v->q[t % 16 * 32 + i % 32], sum);
            }
            assert_true(sum == c->out[h * HEAD + i]);
        }
    }
}

/* A softmax in parts, with a sum of values scaled as it grows, against one in doubles. */
static void softmax_in_parts_is_right(void **state) {
    (void)state;
    struct test_rng rng = test_rng_init(17);
    enum { N = 100 };
    for (int n_part = 1; n_part <= N; n_part += 1 + n_part / 3) {
        float x[N], value[2] = {0, 0}, max = -INFINITY, sum = 0;
        double largest = -1e9, exact = 0, weighed = 0;
        for (int i = 0; i < N; i++) {
            x[i] = test_float(&rng) * 8.0f + (float)i * 0.1f;
            largest = fmax(largest, x[i]);
        }
        for (int i = 0; i < N; i++) {
            exact += exp(x[i] - largest);
            weighed += exp(x[i] - largest) * i;
        }
        for (int i = 0; i < N; i += n_part) {
            int n = N - i < n_part ? N - i : n_part;
            SCALAR->scale(value, SCALAR->softmax_part(x + i, n, &max, &sum), 1);
            for (int j = i; j < i + n; j++)
                value[0] = fmaf(x[j], (float)j, value[0]);
        }
        assert_true(max == (float)largest);
        assert_true(fabs(sum / exact - 1) < 2e-6);
        assert_true(fabs(value[0] / sum / (weighed / exact) - 1) < 2e-6);
        assert_true(value[1] == 0);
    }
}

#endif
