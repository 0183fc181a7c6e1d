/* SPDX-License-Identifier: Apache-2.0 */
/* moge bench spec in three files: bench_spec.c is options and report, bench_spec_run.c the loop
 * that is measured, bench_spec_oracle.c the drafter that knows the answer.  One thread. */
#ifndef MOGE_BENCH_SPEC_H
#define MOGE_BENCH_SPEC_H

#include "moge/draft.h"
#include "moge/engine.h"
#include "moge/sample.h"

#define SPEC_LIST_MAX   16
#define SPEC_ROUNDS_MAX 1024
#define SPEC_AUTO       -1 /* modes: a fixed length, 0 for off, or this */

enum spec_drafter {
    SPEC_DRAFTER_MODEL,
    SPEC_DRAFTER_NGRAM,
    SPEC_DRAFTER_BOTH,
    SPEC_DRAFTER_ORACLE
};

/* What the oracle is asked to be like. */
struct spec_oracle_options {
    double accept[2]; /* probability that a guess is right: in the first half of a run, and after */
    double cost;      /* a round of one row, as a share of the target's decode step */
};

struct spec_options {
    const char *model, *draft, *text;
    enum spec_drafter drafter;
    struct spec_oracle_options oracle;
    int32_t batches[SPEC_LIST_MAX], n_batches;
    int32_t modes[SPEC_LIST_MAX], n_modes;
    int32_t n_threads, n_prompt, n_tokens, n_rounds;
    float temperature;
    uint64_t seed;
    enum moge_weights weights;
    bool json;
};

/* One mode at one batch size in one round. */
struct spec_sample {
    int64_t ns, n_tokens; /* of drafting, forward, verification and learning; that they yielded */
    int64_t n_offered, n_accepted;
    int64_t lengths[MOGE_DRAFT_LEN_MAX + 1]; /* steps of a sequence with so many guesses */
};

struct spec_bench {
    struct spec_options options;
    struct moge_model *model, *draft_model;
    struct moge_threads *threads;
    struct moge_engine *engine;
    struct moge_accept *accept;
    struct moge_drafter drafter, lookup; /* owned here; both policies below guess through them */
    struct moge_draft *fixed, *adaptive; /* auto learns from trials and its own steps only */
    struct moge_batch batch;
    struct moge_sample_params *params; /* [n_seqs] each its own seed */
    /* Every mode has each sequence in a slot of its own: mode i has the slots i * n_seqs + 0, 1 ..
     */
    int32_t n_seqs, n_slots, n_context, pages_each;
    int32_t *pages;   /* [n_slots, pages_each] block tables */
    int32_t *tokens;  /* [n_slots, n_context + MOGE_DRAFT_LEN_MAX + 1] */
    int32_t *truth;   /* [n_seqs, the same]: what every mode must yield */
    int32_t *n_known; /* [n_slots] */
    double step_ns;   /* median decode step of one row, in the first pass */
};

/* Opens models and makes the parts; computes prompts and the true continuations. */
int moge_spec_open(struct spec_bench *bench, struct moge_err *err);
void moge_spec_close(struct spec_bench *bench);

/* n_batch sequences from their prompts on, in every mode, until they have n_tokens each on average.
 * Fills samples[i] for mode i; MOGE_INTERNAL if a token is not the true one. */
int moge_spec_round(struct spec_bench *bench, int32_t n_batch, int32_t round,
                    struct spec_sample *samples, struct moge_err *err);

/* The drafter that knows truth. */
int moge_spec_oracle_new(struct moge_drafter *out, const struct spec_bench *bench,
                         struct moge_err *err);
/* Which guesses are wrong depends on the round, the sequence and the position, not on the mode. */
void moge_spec_oracle_round(struct moge_drafter *oracle, int32_t round);

#endif
