/* SPDX-License-Identifier: Apache-2.0 */
/* The KV pager: who owns which page.  It hands out page ids; the bytes live in arenas of the models
 * (one for the target, one for the draft), both indexed by the same ids, so one block table serves
 * both.
 *
 *      slot 0   [ 7 | 3 | 9 ]      block table: position p is in page table[p / 16]
 *      slot 1   [ 7 | 4 ]          page 7 is shared (two references): a common prefix
 *      cached   { 5 6 }            nobody's, but their contents are known and may be wanted again
 *      free     { 0 1 2 8 }
 *
 * Only the last, partly filled page of a sequence is ever written, and only while it has one
 * reference; a shared or published page is full.
 *
 * Prefix cache: a page whose tokens are decided and computed is published, and found again by a
 * keyed hash of everything up to its end; tokens are compared, so a collision finds nothing.  It
 * stays known when nobody holds it any more, until the page is needed: the one released longest ago
 * goes first.  docs/ARCHITECTURE.md has the reasons.
 *
 * Cost: every call is O(pages touched), check is O(all).  Engine thread only; no allocation after
 * new. */
#ifndef MOGE_KV_H
#define MOGE_KV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "moge/batch.h"
#include "moge/err.h"

struct moge_kv;

struct moge_kv_options {
    int32_t n_pages;            /* pages in all, >= 1 */
    int32_t n_slots;            /* sequences at once, >= 1 */
    int32_t pages_per_slot_max; /* block table length: ceil(context / MOGE_PAGE_TOKENS) */
    bool prefix_cache;          /* false: attach finds nothing, publish does nothing */
};

int moge_kv_new(struct moge_kv **out, const struct moge_kv_options *options, struct moge_err *err);
void moge_kv_free(struct moge_kv *kv);

/* An unused slot with no pages, or MOGE_BUSY when all are taken.  The slot number is >= 0. */
int moge_kv_slot_take(struct moge_kv *kv);

/* Releases the slot's pages and the slot. */
void moge_kv_slot_give(struct moge_kv *kv, int32_t slot);

/* Makes room for positions [0, n_tokens): takes the missing pages, all or none.  MOGE_BUSY when too
 * few are free, MOGE_LIMIT when the block table is too short.  Never shrinks. */
int moge_kv_reserve(struct moge_kv *kv, int32_t slot, int32_t n_tokens);

/* Keeps the pages of positions [0, n_tokens) and releases the rest (rejected guesses, preemption
 * with 0).  Asserts that no published page is kept in part. */
void moge_kv_truncate(struct moge_kv *kv, int32_t slot, int32_t n_tokens);

/* Gives the empty slot the published pages that hold the beginning of tokens [n_tokens] under the
 * same salt (any bytes; none: salt_len 0).  Returns the positions covered, a multiple of
 * MOGE_PAGE_TOKENS, at most n_tokens. */
int32_t moge_kv_attach(struct moge_kv *kv, int32_t slot, const void *salt, size_t salt_len,
                       const int32_t *tokens, int32_t n_tokens);

/* Positions [0, n_tokens) of the slot are decided and their KV is in place: full pages among them
 * may be found from now on.  Where an equal page is known already, the slot takes that one and lets
 * its own go; entries of the block table change then.  Does nothing for a slot that was not
 * attached. */
void moge_kv_publish(struct moge_kv *kv, int32_t slot, const int32_t *tokens, int32_t n_tokens);

/* Makes the empty slot `target` share the first n_tokens / MOGE_PAGE_TOKENS full pages of `source`;
 * returns the number of tokens shared (a multiple of MOGE_PAGE_TOKENS). */
int32_t moge_kv_share(struct moge_kv *kv, int32_t source, int32_t target, int32_t n_tokens);

/* The slot's block table, [pages_per_slot_max]; stable for the life of the pager, entries change.
 */
const int32_t *moge_kv_table(const struct moge_kv *kv, int32_t slot);

int32_t moge_kv_slot_pages(const struct moge_kv *kv, int32_t slot); /* pages the slot holds */

/* Pages that would become free if the slot gave its own back, counted up to n_max; others are
 * shared. */
int32_t moge_kv_slot_gain(const struct moge_kv *kv, int32_t slot, int32_t n_max);

int32_t moge_kv_pages_total(const struct moge_kv *kv);
int32_t moge_kv_pages_free(const struct moge_kv *kv); /* that can be taken, cached ones included */
int32_t moge_kv_slots_free(const struct moge_kv *kv);

/* Where the pages are, and what the prefix cache has done since new. */
struct moge_kv_stats {
    int32_t n_free, n_cached, n_used; /* pages: never published or evicted; nobody's; in tables */
    uint64_t n_evicted;               /* pages */
};
void moge_kv_stats(const struct moge_kv *kv, struct moge_kv_stats *out);

static inline int32_t moge_kv_pages_for(int32_t n_tokens) {
    return (n_tokens + MOGE_PAGE_TOKENS - 1) / MOGE_PAGE_TOKENS;
}

/* Aborts unless: references of every page = number of block-table entries naming it; every page is
 * free, cached or referenced, and only one of them; no table names a page twice; every published
 * page is found, its parent is published and goes after it.  Called in tests after each operation.
 */
void moge_kv_check(const struct moge_kv *kv);

#endif
