/* SPDX-License-Identifier: Apache-2.0 */
/* One step's work: a ragged batch of spans.
 *
 * A span is a run of consecutive positions of ONE sequence.  Each position is one row of the
 * forward pass:
 *
 *      tokens of the sequence   t0 t1 t2 t3 t4 t5 | g6 g7 g8          g = guesses, written in place
 *      span of a decode step                   ^pos=5, n_rows = 4 (t5 g6 g7 g8), n_guess = 3,
 * n_logits = 4 span of a prefill chunk     ^pos=1, n_rows = 3 (t1 t2 t3), n_guess = 0, n_logits = 0
 *
 * The row of position p yields the logits that choose the token at p + 1.  So a decode span with k
 * guesses wants k + 1 rows of logits, a prefill chunk wants none unless it ends with the prompt's
 * last token, or the prompt's own tokens are to be scored.
 *
 * Who fills what:   sched_plan: everything above the first ruler;   draft_propose: tokens[] past
 * n_known, n_rows, n_guess, n_logits;   engine_forward: logits_row;   accept_batch: the last group.
 * A batch is owned by the engine thread. */
#ifndef MOGE_BATCH_H
#define MOGE_BATCH_H

#include <stdbool.h>
#include <stdint.h>

#define MOGE_PAGE_TOKENS   16 /* positions in one KV page */
#define MOGE_DRAFT_LEN_MAX 16 /* guesses a span can carry */
#define MOGE_LOGPROBS_MAX  20 /* alternatives reported beside a token */

struct moge_sample_params; /* moge/sample.h */
struct moge_logprobs;      /* moge/sample.h */

/* How a request wants to be guessed for. */
enum moge_spec_mode { MOGE_SPEC_OFF, MOGE_SPEC_FIXED, MOGE_SPEC_AUTO };

/* Who may guess for a request; the bits make a set. */
enum moge_drafters {
    MOGE_DRAFTERS_ANY = 0, /* whoever is there */
    MOGE_DRAFTERS_MODEL = 1,
    MOGE_DRAFTERS_NGRAM = 2,
    MOGE_DRAFTERS_BOTH = MOGE_DRAFTERS_MODEL | MOGE_DRAFTERS_NGRAM
};

struct moge_span {
    int32_t *tokens; /* [n_known + MOGE_DRAFT_LEN_MAX + 1] the whole sequence, index = position */
    const int32_t *pages; /* block table: position p lives in page pages[p / MOGE_PAGE_TOKENS] */
    int32_t slot;         /* pager slot of the sequence; key of per-sequence draft state */
    int32_t pos;          /* position of the first row */
    int32_t n_rows;       /* rows in this step */
    int32_t n_known;      /* tokens decided before this step; a decode span has pos = n_known - 1 */
    int32_t n_prompt;     /* of which the first n_prompt came from the client */
    int32_t n_logits;     /* logits wanted for the last n_logits rows */
    int32_t n_scored;     /* of these the first so many score known tokens and decide nothing */
    int32_t n_score_top;  /* alternatives reported beside a scored token */
    int32_t
        guess_max; /* guesses there is room for: pages, max_tokens, context, ring; 0 in prefill */
    enum moge_spec_mode spec_mode;
    int32_t spec_len; /* MOGE_SPEC_FIXED: guesses wanted */
    enum moge_drafters drafters;
    const struct moge_sample_params *sample;
    void *owner; /* the scheduler's request; opaque to everybody else */
    /* ------------------------------------------------------------------ set by draft_propose */
    int32_t n_guess;   /* the last n_guess rows are guesses: tokens[n_known .. n_known + n_guess) */
    uint32_t by_ngram; /* bit j: guess j was looked up, not made by the model */
    /* ------------------------------------------------------------------ set by engine_forward */
    int32_t logits_row; /* row in batch->logits of the first wanted row */
    /* ------------------------------------------------------------------ set by accept_batch */
    int32_t n_accepted; /* guesses that the target picked too */
    int32_t n_out;      /* tokens decided now: tokens[n_known .. n_known + n_out) */
    struct moge_logprobs
        *logprobs;                /* [n_out] or NULL when not asked for; storage of the scheduler */
    struct moge_logprobs *scores; /* [n_scored] the same for the scored tokens */
    /* ------------------------------------------------------------------ set by sched_commit */
    int32_t n_emitted; /* of the n_out tokens, those up to a stop */
    int64_t gap_us;    /* since the sequence's tokens before these; -1: these are its first */
};

struct moge_batch {
    struct moge_span *spans; /* [n_spans_cap] */
    int32_t n_spans, n_spans_cap;
    int32_t n_rows_cap;   /* most rows of one forward, guesses included */
    int32_t n_logits_cap; /* most rows of logits of one forward */
    float *logits; /* [n_logits_cap, n_vocab] owned by the engine, valid until its next forward */
    int32_t n_vocab;
};

/* Its first row is the last decided token; otherwise rows of a prompt or history come first. */
static inline bool moge_span_is_decode(const struct moge_span *span) {
    return span->pos == span->n_known - 1;
}

/* It ends with the last decided token or guesses behind it, so the next token can be decided. */
static inline bool moge_span_decides(const struct moge_span *span) {
    return span->n_logits > span->n_scored;
}

/* Guess j was looked up in the sequence itself, not made by a model. */
static inline bool moge_span_is_by_ngram(const struct moge_span *span, int32_t j) {
    return (span->by_ngram & 1u << j) != 0;
}

/* Rows and logits rows over all spans. */
static inline int32_t moge_batch_rows(const struct moge_batch *batch) {
    int32_t n = 0;
    for (int32_t i = 0; i < batch->n_spans; i++)
        n += batch->spans[i].n_rows;
    return n;
}

static inline int32_t moge_batch_logits(const struct moge_batch *batch) {
    int32_t n = 0;
    for (int32_t i = 0; i < batch->n_spans; i++)
        n += batch->spans[i].n_logits;
    return n;
}

#endif
