/* SPDX-License-Identifier: Apache-2.0 */
/* What comes next, guessed cheaply.  A drafter fills in guesses for the decode spans of a batch;
 * the target then decides every token by itself, and accept keeps the guesses that coincide.
 * Guesses can therefore never change the output, only its speed.
 *
 * The drafter is a table of functions (model, n-gram, none, and test drafters); the policy decides
 * how many guesses each span gets.  Engine thread only. */
#ifndef MOGE_DRAFT_H
#define MOGE_DRAFT_H

#include <stdint.h>
#include "moge/batch.h"
#include "moge/engine.h"
#include "moge/err.h"
#include "moge/threads.h"

/* What was looked up for a sequence: it costs nothing, so it is known before anybody decides how
 * much is guessed. */
struct moge_lookup {
    int32_t n_known;   /* tokens of the sequence that the guesses continue */
    int32_t match_len; /* of which the last so many were seen before; MOGE_MATCH_LEN_MAX: or more */
    int32_t n;         /* guesses; 0: nothing matched */
    int32_t tokens[MOGE_DRAFT_LEN_MAX];
};
#define MOGE_MATCH_LEN_MAX 32

/* A source of guesses: either one that takes time, or one that looks them up. */
struct moge_drafter_ops {
    const char *name;
    /* Brings the guesses of spans[i] to want[i] in all: writes tokens[n_known + n_guess ...], after
     * those that are there already, and raises n_guess, at most to want[i].  Must not touch
     * anything else of the span. */
    void (*guess)(void *self, struct moge_span *const *spans, const int32_t *want, int32_t n_spans);
    /* Instead of guess: finds up to n_max tokens that continue the span and its guesses so far. */
    void (*look)(void *self, const struct moge_span *span, int32_t n_max, struct moge_lookup *out);
    /* Positions of the span's history, and of its guesses so far, that the next guess would have to
     * catch up with; the policy prices it in.  NULL: never any. */
    int32_t (*debt)(void *self, const struct moge_span *span);
    /* The sequence in this slot is gone (finished, preempted): drop what is known about it. */
    void (*forget)(void *self, int32_t slot);
    void (*free)(void *self);
};

struct moge_drafter {
    const struct moge_drafter_ops *ops;
    void *self;
};

/* A small model with the target's tokenizer.  It keeps its own KV arena under the target's page ids
 * and catches up with what it has not seen when it is next asked.  Keeps model and threads. */
struct moge_draft_lm_options {
    int32_t n_pages, n_slots; /* as the pager's */
    int32_t n_rows_max;       /* rows of one draft forward (catch-up goes in chunks of this) */
    int32_t n_context_max;
    enum moge_kv_type kv_type; /* of the draft's own KV */
};
int moge_draft_lm_new(struct moge_drafter *out, const struct moge_model *model,
                      struct moge_threads *threads, const struct moge_draft_lm_options *options,
                      struct moge_err *err);

/* Longest-suffix lookup in the sequence's own tokens; needs no model. */
int moge_draft_ngram_new(struct moge_drafter *out, int32_t n_slots, int32_t n_context_max,
                         struct moge_err *err);

/* For tests: guesses uniformly random ids (right by chance only). */
int moge_draft_random_new(struct moge_drafter *out, int32_t n_vocab, uint64_t seed,
                          struct moge_err *err);

struct moge_draft; /* drafter + policy */

struct moge_draft_options {
    /* Taken over: freed with the draft; ops NULL: there is none.  With both, each guess is made by
     * whoever is expected to be right more cheaply. */
    struct moge_drafter drafter; /* has guess */
    struct moge_drafter lookup;  /* has look */
    int32_t n_slots;
    int32_t draft_len_max;   /* 1..MOGE_DRAFT_LEN_MAX */
    int64_t (*now_ns)(void); /* monotonic clock, injected so that simulations are deterministic */
};
int moge_draft_new(struct moge_draft **out, const struct moge_draft_options *options,
                   struct moge_err *err);
void moge_draft_free(struct moge_draft *draft);

/* Appends guesses to decode spans: sets tokens past n_known, n_guess, n_rows, n_logits.  Never
 * exceeds a span's guess_max nor the batch's caps on rows and logits. */
void moge_draft_propose(struct moge_draft *draft, struct moge_batch *batch);

/* Feeds the policy: the batch after accept, and how long forward and accept took: what more rows
 * make longer. */
void moge_draft_observe(struct moge_draft *draft, const struct moge_batch *batch, int64_t step_ns);

void moge_draft_forget(struct moge_draft *draft, int32_t slot);

/* At the end of a warm-up, which was nobody's request: forgets what was counted and what was right.
 * What things cost stays known. */
void moge_draft_restart(struct moge_draft *draft);

#define MOGE_CALIBRATION_MAX_NS 1000000000 /* the most that anybody gives it */

/* What a calibration may use.  Nobody holds a page or expects anything in it. */
struct moge_calibration {
    struct moge_engine *engine;
    struct moge_accept *accept;
    struct moge_batch *batch; /* scratch: its spans and its caps */
    int32_t n_pages;          /* as the pager's */
    int64_t budget_ns;        /* no trial is begun that should end later */
};

/* At start: tries how long steps of 1, 2, 4, ... rows take, and the drafter, on made-up sequences,
 * and has the policy begin with that instead of a guess.  Real steps soon outweigh it.  Touches KV
 * of the first pages of both arenas and nothing else that outlives it.  Returns how many kinds of
 * steps were tried. */
int moge_draft_calibrate(struct moge_draft *draft, const struct moge_calibration *with);

#define MOGE_STEP_COSTS 8

struct moge_draft_stats {
    uint64_t offered[MOGE_DRAFT_LEN_MAX],
        accepted[MOGE_DRAFT_LEN_MAX]; /* by position of the guess */
    uint64_t ngram_offered[MOGE_DRAFT_LEN_MAX],
        ngram_accepted[MOGE_DRAFT_LEN_MAX];      /* of which looked up */
    uint64_t len_chosen[MOGE_DRAFT_LEN_MAX + 1]; /* draft lengths offered to decode spans */
    double step_ns[MOGE_STEP_COSTS]; /* what a step of 1, 2, 4, 8, ... rows is expected to take */
    /* A round of drafting, and what each sequence adds to it; a guess of one sequence is both. */
    double guess_round_ns, guess_row_ns, guess_ns;
    double row_ns[2]; /* a straight line: a step is row_ns[0] + row_ns[1] * rows */
};
void moge_draft_stats(const struct moge_draft *draft, struct moge_draft_stats *out);

/* Verification.  For each span that wants logits: pick the target's token row by row; while it
 * equals the guess go on, else stop.  Leaves the decided tokens in tokens[n_known ...], n_accepted,
 * n_out, and the log-probabilities if asked for.  Spans are shared out over the threads. */
struct moge_accept;
int moge_accept_new(struct moge_accept **out, int32_t n_vocab, struct moge_threads *threads,
                    struct moge_err *err);
void moge_accept_free(struct moge_accept *accept);
void moge_accept_batch(struct moge_accept *accept, struct moge_batch *batch);

#endif
