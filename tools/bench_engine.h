/* SPDX-License-Identifier: Apache-2.0 */
/* moge bench engine, in three files: the command and its options (bench_engine.c), passes and what
 * they take (bench_pass.c), and what is made of a measurement (bench_report.c). */
#ifndef MOGE_BENCH_ENGINE_H
#define MOGE_BENCH_ENGINE_H

#include <stdio.h>
#include "engine/model.h"
#include "moge/engine.h"
#include "moge/kv.h"
#include "tools/machine_limits.h"

#define MOGE_BENCH_COUNTS_MAX  16
#define MOGE_BENCH_REPEATS_MAX 1000
#define MOGE_BENCH_SEEN_MAX    64

/* One kind of pass: n_seqs sequences, n_rows rows of each from position `pos` on. */
struct moge_bench_work {
    const char *name; /* "prefill", "decode", "verify" or "batch" */
    int32_t n_seqs, n_rows, pos, n_logits;
};

/* What a pass of it has to do at least, on average over the repeats. */
struct moge_bench_cost {
    double experts, weight_bytes, kv_bytes;
    double i8_macs, i4_macs, f32_macs; /* by the type of the matrix; attention is f32 */
};

struct moge_bench {
    /* ---- options ---- */
    const char *path, *csv_path, *machine, *commit;
    int n_threads;
    int32_t counts[MOGE_BENCH_COUNTS_MAX], n_counts;
    int32_t n_prefill, depth, repeats, n_seqs_max;
    double seconds;
    enum moge_weights weights;
    enum moge_kv_type kv_type;
    bool json, from_stdin;
    /* ---- the run ---- */
    struct moge_model *model;
    struct moge_threads *threads;
    struct moge_engine *engine;
    struct moge_limits_probe probe;
    struct moge_machine_limits limits; /* while the last work was measured */
    struct moge_batch batch;
    int32_t n_rows_max;        /* of --rows */
    int32_t n_context, n_seqs; /* sequences that have a history */
    int32_t *tokens;           /* [n_seqs, n_context] */
    int32_t *pages;            /* [n_seqs, n_pages_each] */
    uint64_t rng;
    double load_ms;
    double ms[MOGE_BENCH_REPEATS_MAX]; /* of the last work, sorted */
    int32_t n_ms;
    struct moge_bench_work seen[MOGE_BENCH_SEEN_MAX]; /* measured before */
    int32_t n_seen;
    FILE *csv;
};

/* ---- bench_pass.c: 0 or a moge_code ---- */

/* Opens the model, makes the pool and the engine, measures the machine once. */
int moge_bench_setup(struct moge_bench *bench, struct moge_err *err);
void moge_bench_fini(struct moge_bench *bench);

/* Computes positions 0..depth of the first n_seqs sequences, so that decoding reads what it would
 * read.  Prefill and greedy overwrite the first. */
int moge_bench_histories(struct moge_bench *bench, int32_t n_seqs);

/* Repeats one kind of pass (the first ever of it is not counted), in turns with a look at what the
 * machine can do, and reports its median. */
int moge_bench_measure(struct moge_bench *bench, const struct moge_bench_work *work);

/* The likeliest token n times over, behind tokens [0, n_prompt) of sequence 0, printed as one JSON
 * object with the distance in logits to the second. */
int moge_bench_greedy(struct moge_bench *bench, int32_t n_prompt, int32_t n);

/* ---- bench_report.c ---- */

extern const char *const moge_bench_kv_names[3]; /* by enum moge_kv_type */

void moge_bench_header(const struct moge_bench *bench);
void moge_bench_report(const struct moge_bench *bench, const struct moge_bench_work *work,
                       const struct moge_bench_cost *cost);

/* Adds the multiply-adds of one pass to a cost. */
void moge_bench_count_macs(const struct moge_model *model, const struct moge_bench_work *work,
                           struct moge_bench_cost *cost);

/* Opens a CSV file to append to, and begins it with a line of names when it is new. */
int moge_bench_csv_open(struct moge_bench *bench, struct moge_err *err);

#endif
