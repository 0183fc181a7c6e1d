/* SPDX-License-Identifier: Apache-2.0 */
/* How many guesses each span gets.
 *
 * Off: none.  Fixed: what the request says.  Auto: whatever makes expected tokens per second
 * largest, from three things learned while serving: the time of a step as a function of its rows,
 * the time of drafting, and how often this request's guesses were right at each position.  Time
 * decides how much is guessed, never what is put out.  Engine thread; allocates nothing after new.
 */
#ifndef MOGE_DRAFT_POLICY_H
#define MOGE_DRAFT_POLICY_H

#include <stdint.h>
#include "draft/cost.h"
#include "moge/draft.h"

struct moge_policy;

int moge_policy_new(struct moge_policy **out, int32_t n_slots, int32_t draft_len_max,
                    struct moge_err *err);
void moge_policy_free(struct moge_policy *policy);

/* Fills want[i] for every span of the batch, within guess_max and the batch's caps; returns their
 * sum.  The drafter says what a first guess must catch up with. */
int32_t moge_policy_choose(struct moge_policy *policy, const struct moge_batch *batch,
                           const struct moge_drafter *drafter, int32_t *want);

/* How long drafting took: rounds of one row per sequence, and rows in all, catch-up included. */
void moge_policy_drafted(struct moge_policy *policy, int32_t n_rounds, int32_t n_rows, int64_t ns);

/* The batch after accept, and how long its forward took. */
void moge_policy_observe(struct moge_policy *policy, const struct moge_batch *batch,
                         int64_t forward_ns);

void moge_policy_forget(struct moge_policy *policy, int32_t slot);

/* Fills the cost estimates. */
void moge_policy_stats(const struct moge_policy *policy, struct moge_draft_stats *out);

#endif
