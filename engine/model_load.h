/* SPDX-License-Identifier: Apache-2.0 */
/* The loader's working state, between model.c (metadata), model_tensors.c (which tensors, what
 * shape, where to) and model_fill.c (packing). */
#ifndef MOGE_MODEL_LOAD_H
#define MOGE_MODEL_LOAD_H

#include "engine/model.h"

#define MOGE_NAME_MAX 128

/* One matrix to be packed or converted, or only looked at where the file has it. */
struct moge_pack_job {
    struct moge_matrix *matrix; /* type, n_out, n_in and data are set */
    struct moge_str name;       /* of the tensor, for messages */
    bool in_place;
    enum moge_type stored; /* type in the file */
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
    /* The description is walked twice: first to check every shape and add up the arena, then to
     * place everything in it. */
    bool measuring;
    size_t arena_bytes;
    bool *known;                /* [n_tensors] the description has a use for it */
    struct moge_pack_job *jobs; /* [n_jobs] */
    size_t n_jobs, jobs_cap;
    int64_t n_params;
    uint64_t weight_bytes;
    uint64_t type_values[64]; /* values by type as computed with, to name the main one */
    enum moge_type main_type;
};

/* Finds and checks every tensor, takes the arena; leaves a job for each matrix. */
int moge_model_tensors(struct moge_loader *loader);

/* Does the jobs, in parallel, and locks memory if asked to. */
int moge_model_fill(struct moge_loader *loader);

#endif
