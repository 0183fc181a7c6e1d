/* SPDX-License-Identifier: Apache-2.0 */
#include "server/metrics.h"

#include <stdio.h>

/* Values 0..7 have a bucket each; from 8 on the two bits after the leading one tell apart the four
 * buckets of a power of two. */
static int bucket_of(int64_t value) {
    if (value < 8)
        return value < 0 ? 0 : (int)value;
    int log2 = 63 - __builtin_clzll((unsigned long long)value);
    int quarter = (int)((value >> (log2 - 2)) & 3);
    int bucket = 8 + (log2 - 3) * 4 + quarter;
    return bucket < MOGE_HISTOGRAM_BUCKETS ? bucket : MOGE_HISTOGRAM_BUCKETS - 1;
}

int64_t moge_histogram_bound(int bucket) {
    if (bucket < 8)
        return bucket;
    int log2 = 3 + (bucket - 8) / 4;
    return (int64_t)(4 + (bucket - 8) % 4) << (log2 - 2);
}

void moge_histogram_add(struct moge_histogram *histogram, int64_t value) {
    if (value < 0)
        value = 0;
    atomic_fetch_add_explicit(&histogram->buckets[bucket_of(value)], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&histogram->sum, value, memory_order_relaxed);
    atomic_fetch_add_explicit(&histogram->count, 1, memory_order_relaxed);
}

int64_t moge_histogram_quantile(const struct moge_histogram *histogram, double q) {
    uint64_t counts[MOGE_HISTOGRAM_BUCKETS], total = 0, below = 0;
    for (int i = 0; i < MOGE_HISTOGRAM_BUCKETS; i++)
        total += counts[i] = atomic_load_explicit(&histogram->buckets[i], memory_order_relaxed);
    for (int i = 0; i < MOGE_HISTOGRAM_BUCKETS; i++) {
        below += counts[i];
        if (below > 0 && (double)below >= q * (double)total)
            return moge_histogram_bound(i + 1) - 1;
    }
    return 0;
}

void moge_metrics_step(struct moge_metrics *metrics, const struct moge_step *step,
                       const struct moge_kv *kv) {
    moge_stats_step(&metrics->stats, step, kv);
    if (step->batch.n_spans == 0)
        return;
    moge_histogram_add(&metrics->engine_step, step->step_ns / 1000);
    moge_histogram_add(&metrics->engine_forward, step->phase_ns[MOGE_PHASE_FORWARD] / 1000);
    moge_histogram_add(&metrics->iteration_tokens, moge_batch_rows(&step->batch));
    if (step->forward_rc != 0)
        return;
    for (int32_t i = 0; i < step->batch.n_spans; i++) {
        const struct moge_span *span = &step->batch.spans[i];
        if (span->n_emitted > 0 && span->gap_us >= 0)
            moge_histogram_add(&metrics->inter_token_latency, span->gap_us);
    }
}

static void request_finish(struct moge_metrics *metrics, enum moge_finish finish) {
    switch (finish) {
    case MOGE_FINISH_STOP:
        moge_metrics_add(&metrics->request_success_stop_total, 1);
        return;
    case MOGE_FINISH_LENGTH:
        moge_metrics_add(&metrics->request_success_length_total, 1);
        return;
    case MOGE_FINISH_CANCELLED:
        moge_metrics_add(&metrics->request_cancelled_total, 1);
        return;
    case MOGE_FINISH_DEADLINE:
        moge_metrics_add(&metrics->request_deadline_total, 1);
        return;
    case MOGE_FINISH_SHUTDOWN:
        moge_metrics_add(&metrics->request_aborted_total, 1);
        return;
    case MOGE_FINISH_REFUSED:
        moge_metrics_add(&metrics->request_refused_total, 1);
        return;
    default:
        moge_metrics_add(&metrics->request_error_total, 1);
    }
}

void moge_metrics_request(struct moge_metrics *metrics, const struct moge_req *req) {
    const struct moge_usage *usage = &req->usage;
    request_finish(metrics,
                   (enum moge_finish)atomic_load_explicit(&req->finish, memory_order_acquire));
    moge_metrics_add(&metrics->prompt_tokens_total, (uint64_t)usage->n_prompt);
    moge_metrics_add(&metrics->generation_tokens_total, (uint64_t)usage->n_output);
    moge_metrics_add(&metrics->cached_prompt_tokens_total, (uint64_t)usage->n_cached);
    moge_histogram_add(&metrics->request_queue_time, usage->queue_us);
    if (usage->n_output == 0)
        return;
    if (req->i_sample == 0)
        moge_histogram_add(&metrics->request_prompt_tokens, usage->n_prompt);
    moge_histogram_add(&metrics->request_generation_tokens, usage->n_output);
    moge_histogram_add(&metrics->time_to_first_token, usage->queue_us + usage->prefill_us);
    moge_histogram_add(&metrics->request_prefill_time, usage->prefill_us);
    moge_histogram_add(&metrics->request_decode_time, usage->decode_us);
    moge_histogram_add(&metrics->e2e_request_latency,
                       usage->queue_us + usage->prefill_us + usage->decode_us);
    if (usage->n_output > 1)
        moge_histogram_add(&metrics->time_per_output_token,
                           usage->decode_us / (usage->n_output - 1));
}

void moge_metrics_refused(struct moge_metrics *metrics, int code) {
    switch (code) {
    case MOGE_LIMIT:
    case MOGE_BUSY:
    case MOGE_SHUTDOWN:
        moge_metrics_add(&metrics->request_refused_total, 1);
        return;
    case MOGE_DEADLINE:
        moge_metrics_add(&metrics->request_deadline_total, 1);
        return;
    case MOGE_CANCELLED:
        moge_metrics_add(&metrics->request_cancelled_total, 1);
        return;
    case MOGE_NOMEM:
    case MOGE_INTERNAL:
        moge_metrics_add(&metrics->request_error_total, 1);
        return;
    default:
        moge_metrics_add(&metrics->request_invalid_total, 1);
    }
}

static unsigned long long get(const _Atomic uint64_t *counter) {
    return atomic_load_explicit(counter, memory_order_relaxed);
}

void moge_metrics_line(const struct moge_metrics *metrics, char *out, size_t cap) {
    struct moge_stats stats;
    moge_stats_read(&metrics->stats, 0, &stats);
    snprintf(out, cap,
             "%lld running, %lld waiting; %llu tokens generated; guesses %llu of %llu accepted; "
             "first token p50 %.1f ms, p99 %.1f ms; step p50 %.2f ms",
             (long long)stats.n_running, (long long)stats.n_waiting,
             get(&metrics->generation_tokens_total), (unsigned long long)stats.n_accepted,
             (unsigned long long)stats.n_offered,
             (double)moge_histogram_quantile(&metrics->time_to_first_token, 0.5) / 1e3,
             (double)moge_histogram_quantile(&metrics->time_to_first_token, 0.99) / 1e3,
             (double)moge_histogram_quantile(&metrics->engine_step, 0.5) / 1e3);
}
