/* SPDX-License-Identifier: Apache-2.0 */
/* The vec family, written once over sixteen lanes: vec.c compiles it in plain C, which makes it the
 * specification, vec_<isa>.c with instructions.  The same operations in the same order give the
 * same bits, so there is nothing to keep in step between the levels. */
#ifndef MOGE_VEC_BODY_H
#define MOGE_VEC_BODY_H

#include "engine/kernels/kernels.h"
#include "engine/kernels/lanes.h"
#include "moge/splitmix.h"

/* exp by x = n ln 2 + r, |r| <= ln 2 / 2, and a polynomial in r (coefficients as in Cephes' expf);
 * 2^n is applied in two factors so that results below 2^-126 are rounded once and large ones become
 * infinite.  Relative error about 1e-7.  NaN stays NaN: lf_min and lf_max return their second
 * argument then. */
LANES_FUNCTION lf lanes_exp(lf x) {
    x = lf_min(lf_set(89.0f), lf_max(lf_set(-104.0f), x));
    lf shifted = lf_fma(x, lf_set(0x1.715476p+0f), lf_set(LANES_MAGIC));
    li n = li_sub(lf_bits(shifted), lf_bits(lf_set(LANES_MAGIC)));
    lf whole = lf_sub(shifted, lf_set(LANES_MAGIC));
    lf r = lf_fma(whole, lf_set(-0x1.62e43p-1f), x); /* ln 2 = 0x1.62e43p-1 - 0x1.05c61p-29 */
    r = lf_fma(whole, lf_set(0x1.05c61p-29f), r);
    lf p = lf_set(1.9875691500e-4f);
    p = lf_fma(p, r, lf_set(1.3981999507e-3f));
    p = lf_fma(p, r, lf_set(8.3334519073e-3f));
    p = lf_fma(p, r, lf_set(4.1665795894e-2f));
    p = lf_fma(p, r, lf_set(1.6666665459e-1f));
    p = lf_fma(p, r, lf_set(5.0000001201e-1f));
    p = lf_fma(p, lf_mul(r, r), r);
    p = lf_add(p, lf_set(1.0f));
    li half = li_sar(n, 1), rest = li_sub(n, half), bias = li_set(127);
    p = lf_mul(p, li_float_bits(li_shl(li_add(half, bias), 23)));
    return lf_mul(p, li_float_bits(li_shl(li_add(rest, bias), 23)));
}

/* -(ln(1 + f) + e ln 2) for 1 + f in [sqrt(1/2), sqrt(2)) (coefficients as in Cephes' logf). */
LANES_FUNCTION lf lanes_minus_log(lf f, lf e) {
    lf p = lf_set(7.0376836292e-2f);
    p = lf_fma(p, f, lf_set(-1.1514610310e-1f));
    p = lf_fma(p, f, lf_set(1.1676998740e-1f));
    p = lf_fma(p, f, lf_set(-1.2420140846e-1f));
    p = lf_fma(p, f, lf_set(1.4249322787e-1f));
    p = lf_fma(p, f, lf_set(-1.6668057665e-1f));
    p = lf_fma(p, f, lf_set(2.0000714765e-1f));
    p = lf_fma(p, f, lf_set(-2.4999993993e-1f));
    p = lf_fma(p, f, lf_set(3.3333331174e-1f));
    lf square = lf_mul(f, f);
    p = lf_mul(p, lf_mul(f, square));
    p = lf_fma(e, lf_set(-0x1.05c61p-29f), p);
    p = lf_fma(square, lf_set(-0.5f), p);
    p = lf_add(p, f);
    p = lf_fma(e, lf_set(0x1.62e43p-1f), p);
    return lf_sub(lf_set(0.0f), p);
}

/* Splits a positive normal x into 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)). */
LANES_FUNCTION lf lanes_split(lf x, lf *e) {
    li above = li_sub(lf_bits(x), lf_bits(lf_set(0x1.6a09e6p-1f)));
    li n = li_sar(above, 23);
    *e = li_to_float(n);
    return lf_sub(li_float_bits(li_sub(lf_bits(x), li_shl(n, 23))), lf_set(1.0f));
}

#define GUMBEL_MAX 23.0f /* no noise is larger: -log(2^-33) is 22.9 */

/* The two words that stand for a seed and a position: splitmix64's finaliser over each in turn. */
struct gumbel_key {
    uint32_t counter, key;
};

static inline struct gumbel_key gumbel_key_of(uint64_t seed, int32_t pos) {
    uint64_t z = moge_splitmix_mix(moge_splitmix(&seed) + (uint32_t)pos);
    return (struct gumbel_key){(uint32_t)(z >> 32), (uint32_t)z};
}

/* Philox2x32 with 10 rounds (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2,
 * 3", 2011): counter (id, c), first word of the output. */
LANES_FUNCTION li lanes_philox(li id, uint32_t c, uint32_t key) {
    li left = id, right = li_set(c), high;
    for (int round = 0; round < 10; round++) {
        li low = li_mul_hilo(left, 0xd256d193u, &high);
        left = li_xor(li_xor(high, li_set(key)), right);
        right = low;
        key += 0x9e3779b9u;
    }
    return left;
}

/* Standard Gumbel noise: -log(E), E = -log(u) with u = 1 - w, w = (bits + 1/2) / 2^32 in (0, 1).
 * The noise that wins is the large one, E near 0, so w is kept exact where it is small: as y = w
 * below one half and y = 1 - w = u above it, both with full relative precision. */
LANES_FUNCTION lf lanes_gumbel(li bits) {
    lm upper = li_negative(bits); /* w >= 1/2 */
    li near = li_xor(bits, li_sar(bits, 31));
    lf y = lf_mul(lf_add(li_to_float(near), lf_set(0.5f)), lf_set(0x1p-32f));
    /* u = 1 - y: below 1 - sqrt(1/2) it is 1 + f with f = -y, else 2^-1 (1 + f) with f = 1 - 2y. */
    lm small = lf_less(y, lf_set(0x1.2bec33p-2f));
    lf f = lf_select(small, lf_sub(lf_set(0.0f), y), lf_fma(lf_set(-2.0f), y, lf_set(1.0f)));
    lf e = lf_select(small, lf_set(0.0f), lf_set(-1.0f));
    lf e_upper;
    lf f_upper = lanes_split(y, &e_upper); /* u = y */
    lf exponential = lanes_minus_log(lf_select(upper, f_upper, f), lf_select(upper, e_upper, e));
    lf f_last = lanes_split(exponential, &e);
    return lanes_minus_log(f_last, e);
}

static inline void vec_rmsnorm(const float *x, const float *w, float eps, int32_t n, float *y) {
    lf sum = lf_set(0.0f);
    for (int32_t i = 0; i < n; i += LANES) {
        lf v = lf_take(x + i, n - i);
        sum = lf_fma(v, v, sum);
    }
    float mean = lf_sum(sum) / (float)n;
    lf scale = lf_set(1.0f / __builtin_sqrtf(mean + eps));
    for (int32_t i = 0; i < n; i += LANES) {
        lf v = lf_mul(lf_take(x + i, n - i), scale);
        lf_put(y + i, lf_mul(v, lf_take(w + i, n - i)), n - i);
    }
}

static inline void vec_silu_mul(float *gate, const float *up, int32_t n) {
    for (int32_t i = 0; i < n; i += LANES) {
        lf g = lf_take(gate + i, n - i);
        lf e = lanes_exp(lf_sub(lf_set(0.0f), g));
        g = lf_div(g, lf_add(e, lf_set(1.0f)));
        lf_put(gate + i, lf_mul(g, lf_take(up + i, n - i)), n - i);
    }
}

static inline void vec_add(float *y, const float *x, int32_t n) {
    for (int32_t i = 0; i < n; i += LANES)
        lf_put(y + i, lf_add(lf_take(y + i, n - i), lf_take(x + i, n - i)), n - i);
}

static inline void vec_axpy(float *y, float a, const float *x, int32_t n) {
    lf factor = lf_set(a);
    for (int32_t i = 0; i < n; i += LANES)
        lf_put(y + i, lf_fma(factor, lf_take(x + i, n - i), lf_take(y + i, n - i)), n - i);
}

/* A sum waits for its last addition: several side by side wait together, and what is loaded serves
 * two of them. */
static inline __attribute__((always_inline)) void dots_tile(const float *const *x, const float *w,
                                                            int32_t n, float *out, size_t stride,
                                                            const int n_x, const int n_w) {
    lf sum[2][2], a[2], b[2];
    for (int r = 0; r < n_x; r++)
        for (int j = 0; j < n_w; j++)
            sum[r][j] = lf_set(0.0f);
    for (int32_t i = 0; i < n; i += LANES) {
        for (int r = 0; r < n_x; r++)
            a[r] = lf_take(x[r] + i, n - i);
        for (int j = 0; j < n_w; j++)
            b[j] = lf_take(w + (size_t)j * (size_t)n + i, n - i);
        for (int r = 0; r < n_x; r++)
            for (int j = 0; j < n_w; j++)
                sum[r][j] = lf_fma(a[r], b[j], sum[r][j]);
    }
    for (int r = 0; r < n_x; r++)
        for (int j = 0; j < n_w; j++)
            out[(size_t)r * stride + (size_t)j] = lf_sum(sum[r][j]);
}

static inline void vec_dots(const float *const *x, int32_t n_x, const float *w, int32_t n_w,
                            int32_t n, float *out, size_t stride) {
    for (int32_t j = 0; j < n_w; j += 2, w += 2 * (size_t)n)
        for (int32_t r = 0; r < n_x; r += 2) {
            float *at = out + (size_t)r * stride + (size_t)j;
            if (n_x - r > 1 && n_w - j > 1)
                dots_tile(x + r, w, n, at, stride, 2, 2);
            else if (n_x - r > 1)
                dots_tile(x + r, w, n, at, stride, 2, 1);
            else if (n_w - j > 1)
                dots_tile(x + r, w, n, at, stride, 1, 2);
            else
                dots_tile(x + r, w, n, at, stride, 1, 1);
        }
}

static inline float vec_exp_sum(const float *x, float shift, float scale, int32_t n, float *y) {
    lf minus = lf_set(shift), factor = lf_set(scale), sum = lf_set(0.0f);
    for (int32_t i = 0; i < n; i += LANES) {
        lf e = lanes_exp(lf_mul(lf_sub(lf_take(x + i, n - i), minus), factor));
        lf_put(y + i, e, n - i);
        sum = lf_add(sum, lf_select(lm_first(n - i), e, lf_set(0.0f)));
    }
    return lf_sum(sum);
}

/* The largest of lanes; NaN is passed over while anything else is there. */
static inline float lanes_largest(lf v) {
    float lane[LANES], best = -__builtin_inff();
    lf_store(lane, v);
    for (int i = 0; i < LANES; i++)
        best = lane[i] > best ? lane[i] : best;
    return best;
}

static inline float vec_largest(const float *x, int32_t n) {
    lf best = lf_set(-__builtin_inff());
    for (int32_t i = 0; i < n; i += LANES)
        best = lf_max(lf_select(lm_first(n - i), lf_take(x + i, n - i), best), best);
    return lanes_largest(best);
}

static inline float vec_softmax_part(float *x, int32_t n, float *max, float *sum) {
    float best = vec_largest(x, n), factor = 1.0f;
    if (best > *max) {
        float lane[LANES];
        lf_store(lane, lanes_exp(lf_set(*max - best)));
        factor = lane[0];
        *max = best;
    }
    *sum = __builtin_fmaf(*sum, factor, vec_exp_sum(x, *max, 1.0f, n, x));
    return factor;
}

static inline void vec_scale(float *y, float a, int32_t n) {
    lf factor = lf_set(a);
    for (int32_t i = 0; i < n; i += LANES)
        lf_put(y + i, lf_mul(factor, lf_take(y + i, n - i)), n - i);
}

static inline void vec_softmax(float *x, int32_t n) {
    lf sum = lf_set(vec_exp_sum(x, vec_largest(x, n), 1.0f, n, x));
    for (int32_t i = 0; i < n; i += LANES)
        lf_put(x + i, lf_div(lf_take(x + i, n - i), sum), n - i);
}

/* Turns pairs (a, b) by the angle whose cosine and sine are (c, s). */
LANES_FUNCTION void lanes_turn(lf *a, lf *b, lf c, lf s) {
    lf turned = lf_fma(*a, c, lf_sub(lf_set(0.0f), lf_mul(*b, s)));
    *b = lf_fma(*a, s, lf_mul(*b, c));
    *a = turned;
}

static inline void rope_one(float *x, const float *cs, int32_t half, int neox) {
    int32_t i = 0;
    for (; i + LANES <= half; i += LANES) {
        lf c, s, a, b;
        lf_load_pairs(cs + 2 * i, &c, &s);
        if (neox) {
            a = lf_load(x + i), b = lf_load(x + half + i);
            lanes_turn(&a, &b, c, s);
            lf_store(x + i, a), lf_store(x + half + i, b);
        } else {
            lf_load_pairs(x + 2 * i, &a, &b);
            lanes_turn(&a, &b, c, s);
            lf_store_pairs(x + 2 * i, a, b);
        }
    }
    for (; i < half; i++) { /* the same operations on one pair */
        float *a = neox ? x + i : x + 2 * i, *b = neox ? x + half + i : x + 2 * i + 1;
        float c = cs[2 * i], s = cs[2 * i + 1];
        float turned = __builtin_fmaf(*a, c, 0.0f - *b * s);
        *b = __builtin_fmaf(*a, s, *b * c);
        *a = turned;
    }
}

static inline void vec_rope(float *x, const float *cs, int32_t n_heads, int32_t head_dim,
                            int neox) {
    for (int32_t h = 0; h < n_heads; h++)
        rope_one(x + (int64_t)h * head_dim, cs, head_dim / 2, neox);
}

/* Best value and the index it was first seen at, per lane. */
struct lanes_best {
    lf value;
    li index;
};

static inline struct lanes_best lanes_best_none(void) {
    return (struct lanes_best){lf_set(-__builtin_inff()), li_set(0)};
}

/* Returns whether any lane improved.  Only a strictly larger value does, so the earliest stays, and
 * NaN, which compares with nothing, never enters. */
static inline int lanes_best_update(struct lanes_best *best, lf value, li index) {
    lm better = lf_less(best->value, value);
    best->value = lf_select(better, value, best->value);
    best->index = li_select(better, index, best->index);
    return lm_any(better);
}

/* Lowest index among the largest lanes, or -1 when no lane ever rose above -infinity. */
static inline int32_t lanes_best_index(const struct lanes_best *best) {
    float value[LANES];
    int32_t index[LANES], at = -1;
    lf_store(value, best->value);
    li_store(index, best->index);
    float top = lanes_largest(best->value);
    for (int i = 0; i < LANES; i++)
        if (value[i] > -__builtin_inff() && !(value[i] < top) && (at < 0 || index[i] < at))
            at = index[i];
    return at;
}

/* Nothing rose above -infinity: the first that is a number, or 0. */
static inline int32_t first_number(const float *x, int32_t n) {
    for (int32_t i = 0; i < n; i++)
        if (!__builtin_isnan(x[i]))
            return i;
    return 0;
}

static inline int32_t vec_argmax(const float *x, int32_t n) {
    struct lanes_best best = lanes_best_none();
    li index = li_iota();
    for (int32_t i = 0; i < n; i += LANES) {
        lf v = lf_take(x + i, n - i);
        if (n - i < LANES)
            v = lf_select(lm_first(n - i), v, lf_set(-__builtin_inff()));
        lanes_best_update(&best, v, index);
        index = li_add(index, li_set(LANES));
    }
    int32_t at = lanes_best_index(&best);
    return at >= 0 ? at : first_number(x, n);
}

static inline int32_t vec_gumbel_argmax(const float *x, const int32_t *ids, int32_t n, float inv_t,
                                        uint64_t seed, int32_t pos) {
    struct gumbel_key key = gumbel_key_of(seed, pos);
    struct lanes_best best = lanes_best_none();
    lf floor = lf_set(-__builtin_inff());
    li index = li_iota();
    for (int32_t i = 0; i < n; i += LANES, index = li_add(index, li_set(LANES))) {
        lf v = lf_take(x + i, n - i);
        if (n - i < LANES)
            v = lf_select(lm_first(n - i), v, lf_set(-__builtin_inff()));
        v = lf_mul(v, lf_set(inv_t));
        /* With the largest noise there is, still not above what an earlier index has: most of a
         * vocabulary ends here. */
        if (!lm_any(lf_less(floor, lf_add(v, lf_set(GUMBEL_MAX)))))
            continue;
        li id = index;
        if (ids)
            id = n - i < LANES ? li_load_part(ids + i, n - i) : li_load(ids + i);
        v = lf_add(v, lanes_gumbel(lanes_philox(id, key.counter, key.key)));
        if (lanes_best_update(&best, v, index))
            floor = lf_set(lanes_largest(best.value));
    }
    int32_t at = lanes_best_index(&best);
    return at >= 0 ? at : first_number(x, n);
}

static inline void vec_f16_to_f32(const uint16_t *x, float *y, int32_t n) {
    for (int32_t i = 0; i < n; i += LANES)
        lf_put(y + i, lf_take_f16(x + i, n - i), n - i);
}

static inline void vec_f32_to_f16(const float *x, uint16_t *y, int32_t n) {
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        lf_store_f16(y + i, lf_load(x + i));
    if (i < n) {
        uint16_t whole[LANES];
        lf_store_f16(whole, lf_load_part(x + i, n - i));
        memcpy(y + i, whole, (size_t)(n - i) * sizeof *y);
    }
}

static inline void vec_bf16_to_f32(const uint16_t *x, float *y, int32_t n) {
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        lf_store(y + i, lf_load_bf16(x + i));
    if (i < n) {
        uint16_t whole[LANES] = {0};
        memcpy(whole, x + i, (size_t)(n - i) * sizeof *x);
        lf_store_part(y + i, lf_load_bf16(whole), n - i);
    }
}

static inline void vec_fill(struct moge_kernels *kernels) {
    kernels->rmsnorm = vec_rmsnorm;
    kernels->silu_mul = vec_silu_mul;
    kernels->add = vec_add;
    kernels->axpy = vec_axpy;
    kernels->dots = vec_dots;
    kernels->softmax = vec_softmax;
    kernels->softmax_part = vec_softmax_part;
    kernels->scale = vec_scale;
    kernels->exp_sum = vec_exp_sum;
    kernels->rope = vec_rope;
    kernels->argmax = vec_argmax;
    kernels->gumbel_argmax = vec_gumbel_argmax;
    kernels->f16_to_f32 = vec_f16_to_f32;
    kernels->f32_to_f16 = vec_f32_to_f16;
    kernels->bf16_to_f32 = vec_bf16_to_f32;
}

#endif
