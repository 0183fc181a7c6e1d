/* SPDX-License-Identifier: Apache-2.0 */
/* The draft's own state, shared by draft.c, which drafts, and calibrate.c, which measures before
 * anybody is served. */
#ifndef MOGE_DRAFT_STATE_H
#define MOGE_DRAFT_STATE_H

#include "draft/policy.h"
#include "moge/draft.h"

struct moge_draft {
    /* constant after new */
    struct moge_drafter drafter, lookup; /* ops NULL: there is none */
    int32_t n_slots, len_max;
    int64_t (*now_ns)(void);
    /* engine thread */
    struct moge_policy *policy;
    struct moge_span **spans;   /* [n_slots] those that get guesses */
    int32_t *want;              /* [n_slots] guesses that they shall have */
    struct moge_span **asked;   /* [n_slots] those that the drafter is now asked for */
    int32_t *asked_want;        /* [n_slots] */
    struct moge_plan *plans;    /* [n_slots] of every span of the batch */
    struct moge_lookup *looked; /* [n_slots] by slot: what was last looked up */
    int32_t *probes;            /* [n_slots] by slot: a guess that was not offered, or PROBE_NONE */
    struct moge_draft_stats stats;
};

#endif
