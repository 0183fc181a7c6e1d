/* SPDX-License-Identifier: Apache-2.0 */
/* Which page holds which tokens: the index of full pages.
 *
 *      root(salt) --[16 tokens]--> page 7 --[16 tokens]--> page 3 --[16 tokens]--> page 9
 *                                         \-[16 tokens]--> page 5
 *
 * A page is found by hash(hash of its parent, its tokens); parent and tokens are then compared, so
 * what is found is the page wanted and never one that merely collides.  The salt is known by its
 * hash alone: it separates tenants, not contents, and the key of the hash is secret.
 *
 * An indexed page's parent is indexed: whoever holds a page holds all before it and lets go of the
 * last first.  So a parent becomes unreferenced after its children, and taking pages in the order
 * of their release takes children first. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "engine/kv_state.h"
#include "moge/siphash.h"

int moge_kv_prefix_init(struct moge_kv *kv, struct moge_err *err) {
    kv->oldest = kv->newest = MOGE_PAGE_NONE;
    if (!kv->options.prefix_cache)
        return 0;
    kv->n_buckets = 16;
    while (kv->n_buckets < (uint32_t)kv->options.n_pages)
        kv->n_buckets *= 2;
    kv->buckets = malloc(kv->n_buckets * sizeof *kv->buckets);
    if (!kv->buckets)
        return moge_fail(err, MOGE_NOMEM, "no memory for the index of %d pages",
                         kv->options.n_pages);
    for (uint32_t i = 0; i < kv->n_buckets; i++)
        kv->buckets[i] = MOGE_PAGE_NONE;
    if (getrandom(kv->key, sizeof kv->key, 0) != (ssize_t)sizeof kv->key)
        return moge_fail(err, MOGE_IO, "the system gives no random key for the prefix cache: %s",
                         strerror(errno));
    return 0;
}

void moge_kv_prefix_fini(struct moge_kv *kv) {
    free(kv->buckets);
}

/* ---- the cache: indexed pages that nobody holds, by age ---- */

void moge_kv_cache_add(struct moge_kv *kv, int32_t page) {
    struct moge_kv_page *p = &kv->pages[page];
    p->newer = MOGE_PAGE_NONE;
    p->older = kv->newest;
    *(kv->newest == MOGE_PAGE_NONE ? &kv->oldest : &kv->pages[kv->newest].newer) = page;
    kv->newest = page;
    kv->n_cached++;
}

void moge_kv_cache_remove(struct moge_kv *kv, int32_t page) {
    const struct moge_kv_page *p = &kv->pages[page];
    *(p->older == MOGE_PAGE_NONE ? &kv->oldest : &kv->pages[p->older].newer) = p->newer;
    *(p->newer == MOGE_PAGE_NONE ? &kv->newest : &kv->pages[p->newer].older) = p->older;
    kv->n_cached--;
}

/* ---- the index ---- */

struct key {
    uint64_t parent_hash;
    int32_t tokens[MOGE_PAGE_TOKENS];
};

static struct key key_of(uint64_t parent_hash, const int32_t *tokens) {
    struct key key = {.parent_hash = parent_hash};
    memcpy(key.tokens, tokens, sizeof key.tokens);
    return key;
}

static int32_t *bucket_of(const struct moge_kv *kv, uint64_t hash) {
    return &kv->buckets[hash & (kv->n_buckets - 1)];
}

/* The indexed page with these tokens behind `parent`. */
static int32_t index_find(const struct moge_kv *kv, int32_t parent, const struct key *key,
                          uint64_t hash) {
    int32_t page = *bucket_of(kv, hash);
    for (; page != MOGE_PAGE_NONE; page = kv->pages[page].bucket_next) {
        const struct moge_kv_page *p = &kv->pages[page];
        if (p->hash == hash && p->parent == parent && p->parent_hash == key->parent_hash &&
            memcmp(p->tokens, key->tokens, sizeof p->tokens) == 0)
            return page;
    }
    return MOGE_PAGE_NONE;
}

static void index_add(struct moge_kv *kv, int32_t page, int32_t parent, const struct key *key,
                      uint64_t hash) {
    struct moge_kv_page *p = &kv->pages[page];
    int32_t *bucket = bucket_of(kv, hash);
    MOGE_ASSERT(!p->indexed);
    p->indexed = true;
    p->parent = parent;
    p->parent_hash = key->parent_hash;
    p->hash = hash;
    memcpy(p->tokens, key->tokens, sizeof p->tokens);
    p->bucket_next = *bucket;
    *bucket = page;
}

static void index_remove(struct moge_kv *kv, int32_t page) {
    int32_t *link = bucket_of(kv, kv->pages[page].hash);
    while (*link != page)
        link = &kv->pages[*link].bucket_next;
    *link = kv->pages[page].bucket_next;
    kv->pages[page].indexed = false;
}

int32_t moge_kv_cache_evict(struct moge_kv *kv) {
    int32_t page = kv->oldest;
    MOGE_ASSERT(page != MOGE_PAGE_NONE);
    moge_kv_cache_remove(kv, page);
    index_remove(kv, page);
    kv->stats.n_evicted++;
    return page;
}

/* ---- what the scheduler calls ---- */

static void page_hold(struct moge_kv *kv, int32_t page) {
    if (kv->pages[page].refs++ == 0)
        moge_kv_cache_remove(kv, page);
}

int32_t moge_kv_attach(struct moge_kv *kv, int32_t slot, const void *salt, size_t salt_len,
                       const int32_t *tokens, int32_t n_tokens) {
    struct moge_kv_slot *s = &kv->slots[slot];
    int32_t *table = moge_kv_table_of(kv, slot), parent = MOGE_PAGE_NONE;
    MOGE_ASSERT(s->taken && s->n_pages == 0 && n_tokens >= 0);
    if (!kv->options.prefix_cache)
        return 0;
    s->root = moge_siphash(kv->key, salt, salt_len);
    s->rooted = true;
    uint64_t hash = s->root;
    while (s->n_pages < n_tokens / MOGE_PAGE_TOKENS &&
           s->n_pages < kv->options.pages_per_slot_max) {
        struct key key = key_of(hash, tokens + (ptrdiff_t)s->n_pages * MOGE_PAGE_TOKENS);
        hash = moge_siphash(kv->key, &key, sizeof key);
        int32_t page = index_find(kv, parent, &key, hash);
        if (page == MOGE_PAGE_NONE)
            break;
        page_hold(kv, page);
        table[s->n_pages++] = parent = page;
    }
    s->n_published = s->n_pages;
    return s->n_pages * MOGE_PAGE_TOKENS;
}

void moge_kv_publish(struct moge_kv *kv, int32_t slot, const int32_t *tokens, int32_t n_tokens) {
    struct moge_kv_slot *s = &kv->slots[slot];
    int32_t *table = moge_kv_table_of(kv, slot);
    if (!s->rooted)
        return;
    MOGE_ASSERT(n_tokens <= s->n_pages * MOGE_PAGE_TOKENS);
    for (; s->n_published < n_tokens / MOGE_PAGE_TOKENS; s->n_published++) {
        int32_t i = s->n_published, parent = i > 0 ? table[i - 1] : MOGE_PAGE_NONE;
        struct key key = key_of(i > 0 ? kv->pages[parent].hash : s->root,
                                tokens + (ptrdiff_t)i * MOGE_PAGE_TOKENS);
        uint64_t hash = moge_siphash(kv->key, &key, sizeof key);
        int32_t known = index_find(kv, parent, &key, hash);
        if (known == MOGE_PAGE_NONE) {
            index_add(kv, table[i], parent, &key, hash);
        } else if (known != table[i]) { /* somebody computed the same at the same time */
            page_hold(kv, known);
            moge_kv_page_release(kv, table[i]);
            table[i] = known;
        }
    }
}

/* ---- check ---- */

static void check_page(const struct moge_kv *kv, int32_t page) {
    const struct moge_kv_page *p = &kv->pages[page];
    struct key key = key_of(p->parent_hash, p->tokens);
    MOGE_ASSERT(p->hash == moge_siphash(kv->key, &key, sizeof key));
    MOGE_ASSERT(index_find(kv, p->parent, &key, p->hash) == page); /* there, and the only one */
    if (p->parent == MOGE_PAGE_NONE)
        return;
    const struct moge_kv_page *parent = &kv->pages[p->parent];
    MOGE_ASSERT(parent->indexed && parent->hash == p->parent_hash);
    MOGE_ASSERT(p->refs == 0 || parent->refs > 0);
}

static void check_slot(const struct moge_kv *kv, int32_t slot) {
    const struct moge_kv_slot *s = &kv->slots[slot];
    const int32_t *table = moge_kv_table_of(kv, slot);
    MOGE_ASSERT(s->n_published <= s->n_pages && (s->rooted || s->n_published == 0));
    for (int32_t i = 0; i < s->n_published; i++) {
        const struct moge_kv_page *p = &kv->pages[table[i]];
        MOGE_ASSERT(p->indexed && p->parent == (i > 0 ? table[i - 1] : MOGE_PAGE_NONE));
        MOGE_ASSERT(i > 0 || p->parent_hash == s->root);
    }
}

void moge_kv_prefix_check(const struct moge_kv *kv) {
    int32_t n_cached = 0, before = MOGE_PAGE_NONE, n_indexed = 0, n_found = 0;
    /* From oldest to newest: no page before its children. */
    for (int32_t page = kv->oldest; page != MOGE_PAGE_NONE; page = kv->pages[page].newer) {
        const struct moge_kv_page *p = &kv->pages[page];
        MOGE_ASSERT(p->indexed && p->refs == 0 && p->older == before && n_cached < kv->n_cached);
        MOGE_ASSERT(p->parent == MOGE_PAGE_NONE || !kv->seen[p->parent]);
        kv->seen[page] = 1;
        before = page;
        n_cached++;
    }
    MOGE_ASSERT(n_cached == kv->n_cached && before == kv->newest);
    for (int32_t page = 0; page < kv->options.n_pages; page++) {
        kv->seen[page] = 0;
        n_indexed += kv->pages[page].indexed;
        if (kv->pages[page].indexed)
            check_page(kv, page);
    }
    for (uint32_t i = 0; i < kv->n_buckets; i++)
        for (int32_t page = kv->buckets[i]; page != MOGE_PAGE_NONE;
             page = kv->pages[page].bucket_next)
            n_found += kv->pages[page].indexed;
    MOGE_ASSERT(n_found == n_indexed);
    for (int32_t i = 0; i < kv->options.n_slots; i++)
        check_slot(kv, i);
}
