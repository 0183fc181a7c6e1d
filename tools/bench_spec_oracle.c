/* SPDX-License-Identifier: Apache-2.0 */
/* A drafter that is right with a given probability, at a given price: so that the speed of
 * speculation can be measured at any acceptance, on weights that mean nothing.  It knows the
 * continuation of each sequence from a first pass and spoils guesses by a seeded generator.  Its
 * price is paid in real time, since real time is what the policy sees, and on all threads, as a
 * draft model's: a worker that slept meanwhile would make the step after it slower. */
#include "tools/bench_spec.h"

#include <stdlib.h>

#include "moge/draft.h"
#include "moge/splitmix.h"
#include "tools/clock.h"

/* Of a round's price, the share that each further sequence adds: a draft of several rows reads its
 * weights once. */
#define ROW_SHARE 0.1

struct oracle {
    const struct spec_bench *bench; /* keeps */
    int32_t round;
};

static uint64_t mix(uint64_t z) {
    return moge_splitmix(&z);
}

static bool is_right(const struct oracle *oracle, int32_t i_seq, int32_t pos) {
    const struct spec_options *options = &oracle->bench->options;
    bool second = pos - options->n_prompt >= options->n_tokens / 2;
    uint64_t key =
        mix(mix(mix(options->seed + (uint64_t)oracle->round) + (uint64_t)i_seq) + (uint64_t)pos);
    return (double)(key >> 11) / (double)(1ull << 53) < options->oracle.accept[second];
}

static void busy_until(void *end_ns, int i_thread, int n_threads) {
    (void)i_thread;
    (void)n_threads;
    while (moge_clock_ns() < *(int64_t *)end_ns) {
    }
}

static void oracle_guess(void *self, struct moge_span *const *spans, const int32_t *want,
                         int32_t n_spans) {
    struct oracle *oracle = self;
    const struct spec_bench *bench = oracle->bench;
    int64_t begin_ns = moge_clock_ns();
    size_t stride = (size_t)bench->n_context + MOGE_DRAFT_LEN_MAX + 1;
    int32_t n_vocab = bench->batch.n_vocab, n_rounds = 0, n_rows = 0;
    for (int32_t i = 0; i < n_spans; i++) {
        struct moge_span *span = spans[i];
        int32_t i_seq = span->slot % bench->n_seqs;
        const int32_t *truth = bench->truth + (size_t)i_seq * stride;
        for (int32_t j = span->n_guess; j < want[i]; j++) {
            int32_t pos = span->n_known + j;
            span->tokens[pos] =
                is_right(oracle, i_seq, pos) ? truth[pos] : (truth[pos] + 1) % n_vocab;
        }
        span->n_guess = want[i];
        n_rounds = want[i] > n_rounds ? want[i] : n_rounds;
        n_rows += want[i];
    }
    double n_priced = (1 - ROW_SHARE) * n_rounds + ROW_SHARE * n_rows;
    int64_t end_ns = begin_ns + (int64_t)(bench->options.oracle.cost * bench->step_ns * n_priced);
    if (bench->options.oracle.cost > 0)
        moge_threads_run(bench->threads, busy_until, &end_ns);
}

static void oracle_forget(void *self, int32_t slot) {
    (void)self;
    (void)slot;
}

static const struct moge_drafter_ops oracle_ops = {
    .name = "oracle", .guess = oracle_guess, .forget = oracle_forget, .free = free};

int moge_spec_oracle_new(struct moge_drafter *out, const struct spec_bench *bench,
                         struct moge_err *err) {
    struct oracle *oracle = calloc(1, sizeof *oracle);
    if (!oracle)
        return moge_fail(err, MOGE_NOMEM, "no memory for the oracle");
    oracle->bench = bench;
    *out = (struct moge_drafter){&oracle_ops, oracle};
    return 0;
}

void moge_spec_oracle_round(struct moge_drafter *drafter, int32_t round) {
    ((struct oracle *)drafter->self)->round = round;
}
