/* SPDX-License-Identifier: Apache-2.0 */
/* What the pager holds.  Shared by kv.c (who owns which page) and kv_prefix.c (which page holds
 * which tokens). */
#ifndef MOGE_KV_STATE_H
#define MOGE_KV_STATE_H

#include <stdbool.h>
#include "moge/kv.h"

#define MOGE_PAGE_NONE (-1)

struct moge_kv_page {
    int32_t refs; /* block tables that name it */
    /* ---- of an indexed page ---- */
    bool indexed;
    int32_t parent;       /* the page before it, MOGE_PAGE_NONE: it is the first */
    uint64_t parent_hash; /* of the parent; of the salt where there is none */
    uint64_t hash;        /* of parent_hash and tokens */
    int32_t tokens[MOGE_PAGE_TOKENS];
    int32_t bucket_next; /* in the same bucket */
    /* ---- of a cached page: indexed without references ---- */
    int32_t older, newer;
};

struct moge_kv_slot {
    bool taken;
    bool rooted; /* attach was called: `root` is known, pages may be published */
    int32_t n_pages;
    int32_t n_published; /* the first n_published pages of the table are indexed */
    uint64_t root;       /* hash of the salt */
};

struct moge_kv {
    struct moge_kv_options options;
    struct moge_kv_page *pages; /* [n_pages] */
    int32_t *free_stack;        /* [n_pages] the last freed is taken first: its bytes may still be
                                   in the processor's cache */
    struct moge_kv_slot *slots; /* [n_slots] */
    int32_t *tables;            /* [n_slots, pages_per_slot_max] */
    int32_t n_free, n_slots_free;
    uint8_t *seen; /* [n_pages] scratch of check */
    /* ---- the index ---- */
    uint64_t key[2];        /* random: clients cannot aim at buckets */
    int32_t *buckets;       /* [n_buckets] first page, MOGE_PAGE_NONE: empty */
    uint32_t n_buckets;     /* a power of two */
    int32_t oldest, newest; /* cached pages, in the order of their release */
    int32_t n_cached;
    struct moge_kv_stats stats;
};

/* Takes the slot's next page: free, or the oldest of the cache.  Asserts there is one. */
int32_t moge_kv_page_take(struct moge_kv *kv);
void moge_kv_page_release(struct moge_kv *kv, int32_t page);

/* The block table of a slot, to be written. */
int32_t *moge_kv_table_of(const struct moge_kv *kv, int32_t slot);

/* ---- kv_prefix.c ---- */

int moge_kv_prefix_init(struct moge_kv *kv, struct moge_err *err);
void moge_kv_prefix_fini(struct moge_kv *kv);

/* The last reference to an indexed page is gone, or the first has come. */
void moge_kv_cache_add(struct moge_kv *kv, int32_t page);
void moge_kv_cache_remove(struct moge_kv *kv, int32_t page);

/* Takes the page that was released longest ago out of cache and index. */
int32_t moge_kv_cache_evict(struct moge_kv *kv);

/* The part of moge_kv_check that concerns index and cache. */
void moge_kv_prefix_check(const struct moge_kv *kv);

#endif
