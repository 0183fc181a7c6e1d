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

#include <stdbool.h>
#include <stdint.h>
#include "draft/cost.h"
#include "moge/draft.h"

struct moge_policy;

int moge_policy_new(struct moge_policy **out, int32_t n_slots, int32_t draft_len_max,
                    struct moge_err *err);
void moge_policy_free(struct moge_policy *policy);

/* The guesses of one span: those looked up come first. */
struct moge_plan {
    int32_t n_lookup, n_drafter;
    bool probe; /* none of these, but one that is compared with what is decided, not offered */
};

/* Fills plans[i] for every span of the batch, within guess_max and the batch's caps; returns the
 * sum of their guesses and probes.  The drafter (ops NULL: none) says what a first guess must catch
 * up with; lookups[slot] is what was looked up for the span in that slot (NULL: nobody looks up).
 */
int32_t moge_policy_choose(struct moge_policy *policy, const struct moge_batch *batch,
                           const struct moge_drafter *drafter, const struct moge_lookup *lookups,
                           struct moge_plan *plans);

/* Within a chain that the drafter has begun: whether the lookup should make its next guess. */
bool moge_policy_prefers_lookup(const struct moge_policy *policy, const struct moge_span *span,
                                const struct moge_lookup *lookup);

/* What was looked up for the span in an earlier step, now that more of it is decided. */
void moge_policy_looked(struct moge_policy *policy, const struct moge_span *span,
                        const struct moge_lookup *lookup);

/* Whether the guess that a probe made was what the target decided. */
void moge_policy_probed(struct moge_policy *policy, const struct moge_span *span, bool hit);

/* How long drafting took: rounds of one row per sequence, and rows in all, catch-up included. */
void moge_policy_drafted(struct moge_policy *policy, int32_t n_rounds, int32_t n_rows, int64_t ns);

/* The batch after accept, and how long forward and accept took. */
void moge_policy_observe(struct moge_policy *policy, const struct moge_batch *batch,
                         int64_t step_ns);

/* Nobody was served so far: forgets what was right; costs stay known. */
void moge_policy_restart(struct moge_policy *policy);

/* What a step of n_rows took in trials at start; the first is of 1 row and forgets all costs.
 * Trials of the drafter follow, by moge_policy_drafted. */
void moge_policy_calibrate(struct moge_policy *policy, int32_t n_rows, double ns);

void moge_policy_forget(struct moge_policy *policy, int32_t slot);

/* Fills the cost estimates. */
void moge_policy_stats(const struct moge_policy *policy, struct moge_draft_stats *out);

#endif
