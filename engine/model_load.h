/* SPDX-License-Identifier: Apache-2.0 */
/* The loader's working state, between model.c (metadata) and model_tensors.c (weights). */
#ifndef MOGE_MODEL_LOAD_H
#define MOGE_MODEL_LOAD_H

#include "engine/model.h"

#define MOGE_NAME_MAX 128

/* One matrix that cannot be used where the file has it. */
struct moge_pack_job {
    struct moge_matrix *matrix; /* target: type, n_out, n_in set; data set when placed */
    enum moge_type stored;      /* type in the file */
    const unsigned char *source;
    uint64_t source_bytes;
};

struct moge_loader {
    struct moge_model *model;
    const struct moge_gguf *gguf;
    const struct moge_model_options *options;
    struct moge_err *err;
    const char *arch;
    bool moe, grouped;
    struct moge_pack_job *jobs; /* [n_jobs] */
    size_t n_jobs, jobs_cap;
    size_t vector_bytes; /* arena space for widened vectors and tables */
    int64_t n_params;
    uint64_t weight_bytes;
    uint64_t type_values[64]; /* values by type as computed with, to name the main one */
    enum moge_type main_type;
};

/* Finds and checks every tensor; leaves a job for each matrix that needs packing. */
int moge_model_tensors(struct moge_loader *loader);

/* Places and packs what the jobs say. */
int moge_model_fill(struct moge_loader *loader);

#endif
