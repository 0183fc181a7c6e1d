/* SPDX-License-Identifier: Apache-2.0 */
/* Passes of one kind, timed.  Every repeat takes new random tokens, so that other experts are
 * touched. */
#include "tools/bench_engine.h"

#include <math.h>
#include <stdlib.h>

#include "tools/clock.h"
#include "tools/quantile.h"

static double now_ms(void) {
    return moge_clock_s() * 1e3;
}

static int32_t max_i32(int32_t a, int32_t b) {
    return a > b ? a : b;
}

static int32_t token_random(struct moge_bench *bench) {
    bench->rng = bench->rng * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((bench->rng >> 33) % (uint64_t)moge_model_info(bench->model)->n_vocab);
}

/* New tokens for the rows of sequence i, and its span. */
static void span_fill(struct moge_bench *bench, struct moge_span *span, int32_t i,
                      const struct moge_bench_work *work) {
    int32_t *tokens = bench->tokens + (size_t)i * (size_t)bench->n_context;
    for (int32_t j = 0; j < work->n_rows; j++)
        tokens[work->pos + j] = token_random(bench);
    *span = (struct moge_span){.tokens = tokens,
                               .pages = bench->pages +
                                        (size_t)i * (size_t)moge_kv_pages_for(bench->n_context),
                               .slot = i,
                               .pos = work->pos,
                               .n_rows = work->n_rows,
                               .n_known = work->pos + work->n_rows,
                               .n_logits = work->n_logits};
}

static void batch_fill(struct moge_bench *bench, const struct moge_bench_work *work) {
    bench->batch.n_spans = work->n_seqs;
    for (int32_t i = 0; i < work->n_seqs; i++)
        span_fill(bench, &bench->batch.spans[i], i, work);
}

/* Whether this work was measured before; remembers it. */
static bool is_warm(struct moge_bench *bench, const struct moge_bench_work *work) {
    for (int32_t i = 0; i < bench->n_seen; i++)
        if (bench->seen[i].n_seqs == work->n_seqs && bench->seen[i].n_rows == work->n_rows)
            return true;
    if (bench->n_seen < MOGE_BENCH_SEEN_MAX)
        bench->seen[bench->n_seen++] = *work;
    return false;
}

/* Probes follow so much time of passes each, a long pass only so many. */
#define LIMITS_EACH_MS 100
#define LIMITS_AT_ONCE 8

static void limits_follow(struct moge_bench *bench, double *since_ms) {
    for (int32_t i = 0; i < LIMITS_AT_ONCE && *since_ms >= LIMITS_EACH_MS; i++) {
        moge_limits_take(&bench->probe);
        *since_ms -= LIMITS_EACH_MS;
    }
    *since_ms = fmod(*since_ms, LIMITS_EACH_MS);
}

int moge_bench_measure(struct moge_bench *bench, const struct moge_bench_work *work) {
    struct moge_bench_cost cost = {0};
    double begin = now_ms(), since_limits_ms = LIMITS_EACH_MS;
    int32_t n = is_warm(bench, work) ? 0 : -1;
    while (n < bench->repeats ||
           (now_ms() - begin < bench->seconds * 1e3 && n < MOGE_BENCH_REPEATS_MAX)) {
        batch_fill(bench, work);
        limits_follow(bench, &since_limits_ms);
        double start = now_ms();
        int rc = moge_engine_forward(bench->engine, &bench->batch);
        if (rc != 0)
            return rc;
        if (n < 0) {
            begin = now_ms();
        } else {
            since_limits_ms += bench->ms[n] = now_ms() - start;
            cost.experts += moge_engine_last(bench->engine)->experts_touched;
            cost.weight_bytes += (double)moge_engine_last(bench->engine)->weight_bytes;
        }
        n++;
    }
    moge_values_sort(bench->ms, (size_t)n);
    bench->n_ms = n;
    bench->limits = moge_limits_median(&bench->probe);
    cost.experts /= n;
    cost.weight_bytes /= n;
    cost.kv_bytes = (double)work->n_seqs * (work->pos + work->n_rows) *
                    (double)moge_engine_page_bytes(bench->model, bench->kv_type) / MOGE_PAGE_TOKENS;
    moge_bench_count_macs(bench->model, work, &cost);
    moge_bench_report(bench, work, &cost);
    return 0;
}

/* ---- greedy: what a peer on the same file is compared with ---- */

static int32_t likeliest(const float *logits, int32_t n, float *gap) {
    int32_t best = 0, second = -1;
    for (int32_t i = 1; i < n; i++) {
        if (logits[i] > logits[best]) {
            second = best;
            best = i;
        } else if (second < 0 || logits[i] > logits[second]) {
            second = i;
        }
    }
    *gap = second < 0 ? 0 : logits[best] - logits[second];
    return best;
}

int moge_bench_greedy(struct moge_bench *bench, int32_t n_prompt, int32_t n) {
    if (n_prompt < 1 || n > bench->n_context - n_prompt)
        return MOGE_LIMIT;
    struct moge_span *span = &bench->batch.spans[0];
    *span = (struct moge_span){.tokens = bench->tokens,
                               .pages = bench->pages,
                               .n_rows = n_prompt,
                               .n_known = n_prompt,
                               .n_logits = 1};
    bench->batch.n_spans = 1;
    printf("{\"greedy\":[");
    for (int32_t i = 0; i < n; i++) {
        int rc = moge_engine_forward(bench->engine, &bench->batch);
        if (rc != 0)
            return rc;
        const struct moge_model_info *info = moge_model_info(bench->model);
        float gap;
        int32_t at = span->pos + span->n_rows;
        bench->tokens[at] =
            likeliest(bench->batch.logits + (size_t)span->logits_row * (size_t)info->n_vocab,
                      info->n_vocab, &gap);
        printf("%s[%d,%.6g]", i > 0 ? "," : "", bench->tokens[at], (double)gap);
        span->pos = at;
        span->n_rows = 1;
        span->n_known = at + 1;
    }
    puts("]}");
    fflush(stdout);
    return 0;
}

/* ---- setup ---- */

/* Tokens, block tables and spans of as many sequences as a pass may have rows. */
static int buffers_make(struct moge_bench *bench, struct moge_err *err) {
    int32_t rows_max = 1;
    for (int32_t i = 0; i < bench->n_counts; i++)
        rows_max = max_i32(rows_max, bench->counts[i]);
    bench->n_rows_max = rows_max;
    bench->n_seqs =
        bench->n_seqs_max > 0 && bench->n_seqs_max < rows_max ? bench->n_seqs_max : rows_max;
    bench->n_context = max_i32(bench->depth + rows_max, bench->n_prefill);
    if (bench->n_context > moge_model_info(bench->model)->n_context)
        return moge_fail(err, MOGE_INVALID, "the bench needs %d positions, the model has %d",
                         bench->n_context, moge_model_info(bench->model)->n_context);
    int32_t pages_each = moge_kv_pages_for(bench->n_context);
    size_t n_pages = (size_t)pages_each * (size_t)bench->n_seqs;
    if (n_pages > INT32_MAX)
        return moge_fail(err, MOGE_LIMIT, "%zu KV pages are too many", n_pages);
    bench->tokens = calloc((size_t)bench->n_seqs * (size_t)bench->n_context, sizeof *bench->tokens);
    bench->pages = calloc(n_pages, sizeof *bench->pages);
    bench->batch.spans = calloc((size_t)bench->n_seqs, sizeof *bench->batch.spans);
    if (!bench->tokens || !bench->pages || !bench->batch.spans)
        return moge_fail(err, MOGE_NOMEM, "no memory for %d sequences of %d tokens", bench->n_seqs,
                         bench->n_context);
    for (size_t i = 0; i < n_pages; i++)
        bench->pages[i] = (int32_t)i;
    return 0;
}

int moge_bench_setup(struct moge_bench *bench, struct moge_err *err) {
    struct moge_model_options model_options = {.weights = bench->weights, .huge_pages = true};
    double start = now_ms();
    int rc = moge_model_open(&bench->model, bench->path, &model_options, err);
    if (rc != 0)
        return rc;
    bench->load_ms = now_ms() - start;
    rc = buffers_make(bench, err);
    if (rc != 0)
        return rc;
    struct moge_engine_options options = {
        .n_pages = moge_kv_pages_for(bench->n_context) * bench->n_seqs,
        .n_rows_max = max_i32(max_i32(bench->n_rows_max, bench->n_prefill), 256),
        .n_logits_max = bench->n_rows_max,
        .n_context_max = bench->n_context,
        .kv_type = bench->kv_type};
    rc = moge_threads_new(&bench->threads, bench->n_threads, err);
    if (rc == 0)
        rc = moge_engine_new(&bench->engine, bench->model, bench->threads, &options, err);
    if (rc == 0)
        rc = moge_limits_open(&bench->probe, bench->threads, moge_kernels_level(), err);
    if (rc != 0)
        return rc;
    moge_limits_take(&bench->probe);
    bench->limits = moge_limits_median(&bench->probe);
    return 0;
}

int moge_bench_histories(struct moge_bench *bench, int32_t n_seqs) {
    for (int32_t i = 0; i < n_seqs; i++)
        for (int32_t pos = 0; pos < bench->depth; pos += 256) {
            int32_t n = bench->depth - pos < 256 ? bench->depth - pos : 256;
            struct moge_bench_work work = {.n_rows = n, .pos = pos};
            span_fill(bench, &bench->batch.spans[0], i, &work);
            bench->batch.n_spans = 1;
            int rc = moge_engine_forward(bench->engine, &bench->batch);
            if (rc != 0)
                return rc;
        }
    return 0;
}

void moge_bench_fini(struct moge_bench *bench) {
    moge_limits_close(&bench->probe);
    moge_engine_free(bench->engine);
    moge_threads_free(bench->threads);
    moge_model_close(bench->model);
    free(bench->batch.spans);
    free(bench->pages);
    free(bench->tokens);
    if (bench->csv)
        fclose(bench->csv);
}
