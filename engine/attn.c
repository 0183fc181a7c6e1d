/* SPDX-License-Identifier: Apache-2.0 */
/* Paged grouped-query attention.
 *
 *      query heads   0 1 2 3 | 4 5 6 7        all heads of a KV head go through its page together,
 *      KV heads         0    |    1           and so do neighbouring rows of a sequence
 *      pages of the row's sequence, in order: [16 positions][16 positions][1..16 positions]
 *      segments of 16 pages:                  [         256 positions        ][1..256 positions]
 *
 * For one head of one row, segment by segment: scores, their part of the softmax (largest and sum
 * so far; what earlier segments gave is scaled when the largest grows), then the values in the
 * order of positions.  The order depends on the position alone, so chunking and neighbours change
 * nothing.
 *
 * A unit of work is (KV head, row); a thread takes up to MOGE_ATTN_ROWS of them at once, so that a
 * page is read once for them.
 *
 * K and V of all rows must be stored before any row attends, because rows of one chunk see each
 * other.  When the KV heads divide evenly among the threads, a thread computes, stores and attends
 * heads of its own and nobody waits; otherwise threads meet in between. */
#include <math.h>
#include <string.h>

#include "engine/engine_state.h"
#include "moge/kv.h"

/* K (which 0) or V (1) of one KV head in the page that holds position pos.  All pages of a head's K
 * or V stand side by side: pages are mostly handed out in order, so what a head reads is mostly one
 * stream. */
static void *kv_page(const struct moge_engine *engine, int32_t layer, int which, int32_t kv_head,
                     const struct moge_row *row, int32_t pos) {
    const struct moge_model_info *info = &engine->model->info;
    size_t page = (size_t)row->pages[pos / MOGE_PAGE_TOKENS],
           n_pages = (size_t)engine->options.n_pages;
    size_t block =
        (((size_t)layer * 2 + (size_t)which) * (size_t)info->n_kv_heads + (size_t)kv_head) *
            n_pages +
        page;
    return engine->kv + block * engine->kv_block_bytes;
}

/* ---- the work ---- */

static void store_row(struct moge_engine *engine, int32_t layer, int32_t kv_head, int32_t row) {
    const struct moge_model *model = engine->model;
    const struct moge_kernels *kernels = engine->kernels;
    size_t head_dim = (size_t)model->info.head_dim, n_kv = (size_t)model->info.n_kv_heads;
    int32_t group = model->info.n_heads / model->info.n_kv_heads;
    const struct moge_row *r = &engine->rows[row];
    const float *cs = engine->rope + (size_t)r->pos * head_dim;
    float *q = engine->q + ((size_t)row * n_kv + (size_t)kv_head) * (size_t)group * head_dim;
    float *k = engine->k + ((size_t)row * n_kv + (size_t)kv_head) * head_dim;
    const float *v = engine->v + ((size_t)row * n_kv + (size_t)kv_head) * head_dim;
    kernels->rope(q, cs, group, (int32_t)head_dim, model->rope_neox);
    kernels->rope(k, cs, 1, (int32_t)head_dim, model->rope_neox);
    const struct moge_kv_format *format = engine->kv_format;
    int32_t t = r->pos % MOGE_PAGE_TOKENS;
    format->store_key(kernels, k, kv_page(engine, layer, 0, kv_head, r, r->pos), t,
                      (int32_t)head_dim);
    format->store_value(kernels, v, kv_page(engine, layer, 1, kv_head, r, r->pos), t,
                        (int32_t)head_dim);
}

/* Whether a KV head's outputs are whole blocks, so that whoever attends can quantise them. */
static bool heads_are_blocks(const struct moge_model *model) {
    return model->info.n_heads / model->info.n_kv_heads * model->info.head_dim % MOGE_QBLOCK == 0;
}

/* Consecutive rows of one sequence, and what the heads of one KV head have come to. */
struct tile {
    struct moge_engine *engine;
    int32_t layer, kv_head, row, n_rows, group;
    const struct moge_attn_scratch *scratch;
};

/* Positions of a segment beginning at `begin` that are among the first n. */
static int32_t in_segment(int32_t n, int32_t begin) {
    n -= begin;
    return n < 0 ? 0 : n < MOGE_ATTN_SEGMENT ? n : MOGE_ATTN_SEGMENT;
}

static void tile_begin(const struct tile *tile) {
    const struct moge_model_info *info = &tile->engine->model->info;
    size_t head_dim = (size_t)info->head_dim, row_dim = (size_t)info->n_heads * head_dim;
    size_t at = (size_t)tile->row * row_dim + (size_t)(tile->kv_head * tile->group) * head_dim;
    for (int32_t h = 0; h < tile->n_rows * tile->group; h++) {
        size_t head =
            at + (size_t)(h / tile->group) * row_dim + (size_t)(h % tile->group) * head_dim;
        tile->scratch->q[h] = tile->engine->q + head;
        tile->scratch->out[h] = tile->engine->attn.f32 + head;
        tile->scratch->max[h] = -INFINITY;
        tile->scratch->sum[h] = 0.0f;
        memset(tile->scratch->out[h], 0, head_dim * sizeof(float));
    }
}

/* The pages of a segment's n positions from `begin` on, as many as are returned of keys and behind
 * them those of values; behind those what is read next. */
static int32_t pages_find(const struct tile *tile, int32_t begin, int32_t n, const void **pages) {
    const struct moge_row *last = &tile->engine->rows[tile->row + tile->n_rows - 1];
    int32_t n_pages = moge_kv_pages_for(n), next = begin + MOGE_ATTN_SEGMENT;
    for (int32_t i = 0; i < n_pages; i++) {
        int32_t pos = begin + i * MOGE_PAGE_TOKENS;
        pages[i] = kv_page(tile->engine, tile->layer, 0, tile->kv_head, last, pos);
        pages[n_pages + i] = kv_page(tile->engine, tile->layer, 1, tile->kv_head, last, pos);
    }
    for (int32_t i = 0; i < MOGE_ATTN_AHEAD; i++, next += MOGE_PAGE_TOKENS)
        pages[2 * n_pages + i] =
            next > last->pos ? pages[0]
                             : kv_page(tile->engine, tile->layer, 0, tile->kv_head, last, next);
    return n_pages;
}

/* Scores of heads first.. of a tile for positions at.. of a segment. */
static void tile_scores(const struct tile *tile, int32_t first, int32_t n_q, const void **keys,
                        int32_t at, int32_t n) {
    const struct moge_engine *engine = tile->engine;
    int32_t head_dim = engine->model->info.head_dim;
    float scale = 1.0f / sqrtf((float)head_dim);
    engine->kv_format->scores(
        engine->kernels, tile->scratch->q + first, n_q, keys + at / MOGE_PAGE_TOKENS, n, head_dim,
        scale, tile->scratch->scores + first * MOGE_ATTN_SEGMENT + at, MOGE_ATTN_SEGMENT);
}

static void tile_values(const struct tile *tile, int32_t first, int32_t n_q, const void **values,
                        int32_t at, int32_t n) {
    const struct moge_engine *engine = tile->engine;
    engine->kv_format->values(engine->kernels,
                              tile->scratch->scores + first * MOGE_ATTN_SEGMENT + at,
                              MOGE_ATTN_SEGMENT, n_q, values + at / MOGE_PAGE_TOKENS, n,
                              engine->model->info.head_dim, tile->scratch->out + first);
}

/* Scores become weights, and what earlier segments gave is scaled to them. */
static void tile_softmax(const struct tile *tile, int32_t h, int32_t n) {
    const struct moge_attn_scratch *scratch = tile->scratch;
    const struct moge_kernels *kernels = tile->engine->kernels;
    float factor = kernels->softmax_part(scratch->scores + h * MOGE_ATTN_SEGMENT, n,
                                         &scratch->max[h], &scratch->sum[h]);
    if (factor != 1.0f)
        kernels->scale(scratch->out[h], factor, tile->engine->model->info.head_dim);
}

/* The pages that all rows see go to all at once, what is behind them to each row for itself. */
static void tile_segment(const struct tile *tile, int32_t begin) {
    const struct moge_row *rows = &tile->engine->rows[tile->row];
    const void *pages[2 * MOGE_ATTN_PAGES + MOGE_ATTN_AHEAD], **keys = pages, **values;
    int32_t group = tile->group, n_all = rows[0].pos + 1;
    if (tile->n_rows > 1)
        n_all = n_all / MOGE_PAGE_TOKENS * MOGE_PAGE_TOKENS;
    n_all = in_segment(n_all, begin);
    values =
        keys + pages_find(tile, begin, in_segment(rows[tile->n_rows - 1].pos + 1, begin), pages);
    if (n_all > 0)
        tile_scores(tile, 0, tile->n_rows * group, keys, 0, n_all);
    for (int32_t i = 0; i < tile->n_rows; i++) {
        int32_t n = in_segment(rows[i].pos + 1, begin);
        if (n > n_all)
            tile_scores(tile, i * group, group, keys, n_all, n - n_all);
        for (int32_t h = i * group; n > 0 && h < (i + 1) * group; h++)
            tile_softmax(tile, h, n);
    }
    if (n_all > 0)
        tile_values(tile, 0, tile->n_rows * group, values, 0, n_all);
    for (int32_t i = 0; i < tile->n_rows; i++) {
        int32_t n = in_segment(rows[i].pos + 1, begin);
        if (n > n_all)
            tile_values(tile, i * group, group, values, n_all, n - n_all);
    }
}

static void tile_end(const struct tile *tile) {
    struct moge_engine *engine = tile->engine;
    const struct moge_kernels *kernels = engine->kernels;
    const struct moge_attn_scratch *scratch = tile->scratch;
    int32_t head_dim = engine->model->info.head_dim, group = tile->group;
    for (int32_t h = 0; h < tile->n_rows * group; h++)
        kernels->scale(scratch->out[h], 1.0f / scratch->sum[h], head_dim);
    if (!moge_is_quantized(&engine->model->layers[tile->layer].o) ||
        !heads_are_blocks(engine->model))
        return;
    int32_t width = group * head_dim;
    for (int32_t i = 0; i < tile->n_rows; i++)
        moge_act_quantize(&engine->attn, kernels, tile->row + i, tile->kv_head * width, width);
}

/* Attends rows row.. of one KV head, at most to row end; returns how many. */
static int32_t attend_tile(struct moge_engine *engine, int32_t layer, int32_t kv_head, int32_t row,
                           int32_t end, const struct moge_attn_scratch *scratch) {
    const struct moge_row *rows = engine->rows;
    const struct moge_model_info *info = &engine->model->info;
    struct tile tile = {.engine = engine,
                        .layer = layer,
                        .kv_head = kv_head,
                        .row = row,
                        .n_rows = 1,
                        .group = info->n_heads / info->n_kv_heads,
                        .scratch = scratch};
    while (tile.n_rows < MOGE_ATTN_ROWS && row + tile.n_rows < end &&
           rows[row + tile.n_rows].pages == rows[row].pages &&
           rows[row + tile.n_rows].pos == rows[row].pos + tile.n_rows)
        tile.n_rows++;
    tile_begin(&tile);
    for (int32_t begin = 0; begin <= rows[row + tile.n_rows - 1].pos; begin += MOGE_ATTN_SEGMENT)
        tile_segment(&tile, begin);
    tile_end(&tile);
    return tile.n_rows;
}

bool moge_attn_heads_apart(const struct moge_engine *engine, const struct moge_layer *layer) {
    const struct moge_model_info *info = &engine->model->info;
    if (info->n_kv_heads % engine->n_active != 0)
        return false;
    int32_t n_kv = info->n_kv_heads / engine->n_active * info->head_dim;
    int32_t n_q = n_kv * (info->n_heads / info->n_kv_heads);
    return n_q % moge_gemm_grain(layer->q.type) == 0 &&
           n_kv % moge_gemm_grain(layer->k.type) == 0 && n_kv % moge_gemm_grain(layer->v.type) == 0;
}

void moge_attn_run(struct moge_engine *engine, int32_t i_layer, int i_thread) {
    const struct moge_layer *layer = &engine->model->layers[i_layer];
    int32_t n_kv = engine->model->info.n_kv_heads, n_rows = engine->n_rows;
    int32_t begin, end;
    if (!moge_attn_heads_apart(engine, layer))
        moge_engine_meet(engine); /* q, k, v of a head come from several threads */
    moge_threads_split(n_kv * n_rows, 1, i_thread, engine->n_active, &begin, &end);
    for (int32_t unit = begin; unit < end; unit++)
        store_row(engine, i_layer, unit / n_rows, unit % n_rows);
    if (n_kv % engine->n_active != 0)
        moge_engine_meet(engine); /* a head's rows are stored by several threads */
    for (int32_t unit = begin; unit < end;) {
        int32_t row = unit % n_rows,
                row_end = row + end - unit < n_rows ? row + end - unit : n_rows;
        unit += attend_tile(engine, i_layer, unit / n_rows, row, row_end,
                            &engine->workers[i_thread].attn);
    }
    if (!moge_is_quantized(&layer->o) || heads_are_blocks(engine->model))
        return;
    moge_engine_meet(engine); /* blocks lie across heads */
    moge_threads_split(n_rows, 1, i_thread, engine->n_active, &begin, &end);
    for (int32_t row = begin; row < end; row++)
        moge_act_quantize(&engine->attn, engine->kernels, row, 0, engine->attn.n_in);
}
