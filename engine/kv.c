/* SPDX-License-Identifier: Apache-2.0 */
/* A page is in exactly one of three places: on the free stack, known to nobody; in the cache,
 * indexed but without references; or in at least one block table, with as many references as tables
 * name it.  Everything below keeps that sentence true. */
#include <stdlib.h>
#include <string.h>

#include "engine/kv_state.h"

int32_t *moge_kv_table_of(const struct moge_kv *kv, int32_t slot) {
    MOGE_ASSERT(slot >= 0 && slot < kv->options.n_slots);
    return kv->tables + (size_t)slot * (size_t)kv->options.pages_per_slot_max;
}

int32_t moge_kv_page_take(struct moge_kv *kv) {
    int32_t page = kv->n_free > 0 ? kv->free_stack[--kv->n_free] : moge_kv_cache_evict(kv);
    MOGE_ASSERT(kv->pages[page].refs == 0 && !kv->pages[page].indexed);
    kv->pages[page].refs = 1;
    return page;
}

void moge_kv_page_release(struct moge_kv *kv, int32_t page) {
    MOGE_ASSERT(kv->pages[page].refs > 0);
    if (--kv->pages[page].refs > 0)
        return;
    if (kv->pages[page].indexed)
        moge_kv_cache_add(kv, page);
    else
        kv->free_stack[kv->n_free++] = page;
}

static int options_check(const struct moge_kv_options *options, struct moge_err *err) {
    if (options->n_pages < 1)
        return moge_fail(err, MOGE_INVALID, "the KV cache has %d pages; it needs at least one",
                         options->n_pages);
    if (options->n_slots < 1)
        return moge_fail(err, MOGE_INVALID, "the KV cache has %d slots; it needs at least one",
                         options->n_slots);
    if (options->pages_per_slot_max < 1)
        return moge_fail(err, MOGE_INVALID, "a block table of %d pages cannot hold a sequence",
                         options->pages_per_slot_max);
    return 0;
}

int moge_kv_new(struct moge_kv **out, const struct moge_kv_options *options, struct moge_err *err) {
    int rc = options_check(options, err);
    if (rc != 0)
        return rc;
    struct moge_kv *kv = calloc(1, sizeof *kv);
    if (!kv)
        return moge_fail(err, MOGE_NOMEM, "no memory for the KV pager");
    kv->options = *options;
    size_t n_pages = (size_t)options->n_pages, n_slots = (size_t)options->n_slots;
    kv->pages = calloc(n_pages, sizeof *kv->pages);
    kv->free_stack = calloc(n_pages, sizeof *kv->free_stack);
    kv->slots = calloc(n_slots, sizeof *kv->slots);
    kv->tables = calloc(n_slots * (size_t)options->pages_per_slot_max, sizeof *kv->tables);
    kv->seen = calloc(n_pages, sizeof *kv->seen);
    if (!kv->pages || !kv->free_stack || !kv->slots || !kv->tables || !kv->seen) {
        moge_kv_free(kv);
        return moge_fail(err, MOGE_NOMEM, "no memory for the block tables of %d slots",
                         options->n_slots);
    }
    rc = moge_kv_prefix_init(kv, err);
    if (rc != 0) {
        moge_kv_free(kv);
        return rc;
    }
    for (int32_t i = 0; i < options->n_pages; i++)
        kv->free_stack[i] = options->n_pages - 1 - i;
    kv->n_free = options->n_pages;
    kv->n_slots_free = options->n_slots;
    *out = kv;
    return 0;
}

void moge_kv_free(struct moge_kv *kv) {
    if (!kv)
        return;
    moge_kv_prefix_fini(kv);
    free(kv->pages);
    free(kv->free_stack);
    free(kv->slots);
    free(kv->tables);
    free(kv->seen);
    free(kv);
}

int moge_kv_slot_take(struct moge_kv *kv) {
    for (int32_t i = 0; i < kv->options.n_slots; i++) {
        if (kv->slots[i].taken)
            continue;
        kv->slots[i] = (struct moge_kv_slot){.taken = true};
        kv->n_slots_free--;
        return i;
    }
    return MOGE_BUSY;
}

void moge_kv_slot_give(struct moge_kv *kv, int32_t slot) {
    moge_kv_truncate(kv, slot, 0);
    kv->slots[slot].taken = false;
    kv->n_slots_free++;
}

int moge_kv_reserve(struct moge_kv *kv, int32_t slot, int32_t n_tokens) {
    int32_t *table = moge_kv_table_of(kv, slot);
    struct moge_kv_slot *s = &kv->slots[slot];
    MOGE_ASSERT(s->taken && n_tokens >= 0);
    int32_t n_wanted = moge_kv_pages_for(n_tokens);
    if (n_wanted > kv->options.pages_per_slot_max)
        return MOGE_LIMIT;
    if (n_wanted - s->n_pages > moge_kv_pages_free(kv))
        return MOGE_BUSY;
    while (s->n_pages < n_wanted)
        table[s->n_pages++] = moge_kv_page_take(kv);
    return 0;
}

void moge_kv_truncate(struct moge_kv *kv, int32_t slot, int32_t n_tokens) {
    int32_t *table = moge_kv_table_of(kv, slot);
    struct moge_kv_slot *s = &kv->slots[slot];
    MOGE_ASSERT(s->taken && n_tokens >= 0);
    int32_t n_kept = moge_kv_pages_for(n_tokens);
    MOGE_ASSERT(n_kept > s->n_published || n_tokens % MOGE_PAGE_TOKENS == 0);
    if (s->n_published > n_kept)
        s->n_published = n_kept;
    while (s->n_pages > n_kept)
        moge_kv_page_release(kv, table[--s->n_pages]);
}

int32_t moge_kv_share(struct moge_kv *kv, int32_t source, int32_t target, int32_t n_tokens) {
    const int32_t *from = moge_kv_table_of(kv, source);
    int32_t *to = moge_kv_table_of(kv, target);
    struct moge_kv_slot *s = &kv->slots[target];
    MOGE_ASSERT(kv->slots[source].taken && s->taken && s->n_pages == 0 && source != target);
    int32_t n_full = n_tokens / MOGE_PAGE_TOKENS;
    if (n_full > kv->slots[source].n_pages)
        n_full = kv->slots[source].n_pages;
    for (int32_t i = 0; i < n_full; i++) {
        to[i] = from[i];
        kv->pages[from[i]].refs++;
    }
    s->n_pages = n_full;
    s->rooted = kv->slots[source].rooted;
    s->root = kv->slots[source].root;
    s->n_published = kv->slots[source].n_published;
    if (s->n_published > n_full)
        s->n_published = n_full;
    return n_full * MOGE_PAGE_TOKENS;
}

const int32_t *moge_kv_table(const struct moge_kv *kv, int32_t slot) {
    return moge_kv_table_of(kv, slot);
}

int32_t moge_kv_slot_pages(const struct moge_kv *kv, int32_t slot) {
    MOGE_ASSERT(slot >= 0 && slot < kv->options.n_slots);
    return kv->slots[slot].n_pages;
}

/* From the back: what is shared lies in front. */
int32_t moge_kv_slot_gain(const struct moge_kv *kv, int32_t slot, int32_t n_max) {
    const int32_t *table = moge_kv_table_of(kv, slot);
    int32_t gain = 0;
    for (int32_t i = kv->slots[slot].n_pages - 1; i >= 0 && gain < n_max; i--)
        gain += kv->pages[table[i]].refs == 1;
    return gain;
}

int32_t moge_kv_pages_total(const struct moge_kv *kv) {
    return kv->options.n_pages;
}

int32_t moge_kv_pages_free(const struct moge_kv *kv) {
    return kv->n_free + kv->n_cached;
}

void moge_kv_stats(const struct moge_kv *kv, struct moge_kv_stats *out) {
    *out = kv->stats;
    out->n_free = kv->n_free;
    out->n_cached = kv->n_cached;
    out->n_used = kv->options.n_pages - kv->n_free - kv->n_cached;
}

int32_t moge_kv_slots_free(const struct moge_kv *kv) {
    return kv->n_slots_free;
}

/* References counted from the tables must be the references stored; `seen` finds a page named
 * twice. */
static void check_references(const struct moge_kv *kv) {
    int64_t n_named = 0, n_refs = 0;
    for (int32_t i = 0; i < kv->options.n_slots; i++) {
        const struct moge_kv_slot *s = &kv->slots[i];
        MOGE_ASSERT(s->taken || s->n_pages == 0);
        const int32_t *table = moge_kv_table_of(kv, i);
        for (int32_t j = 0; j < s->n_pages; j++) {
            MOGE_ASSERT(table[j] >= 0 && table[j] < kv->options.n_pages);
            MOGE_ASSERT(!kv->seen[table[j]]);
            kv->seen[table[j]] = 1;
        }
        for (int32_t j = 0; j < s->n_pages; j++) {
            kv->seen[table[j]] = 0;
            kv->pages[table[j]].refs--; /* put back below: what is left must be zero everywhere */
        }
        n_named += s->n_pages;
    }
    for (int32_t page = 0; page < kv->options.n_pages; page++)
        MOGE_ASSERT(kv->pages[page].refs == 0);
    for (int32_t i = 0; i < kv->options.n_slots; i++)
        for (int32_t j = 0; j < kv->slots[i].n_pages; j++)
            kv->pages[moge_kv_table_of(kv, i)[j]].refs++;
    for (int32_t page = 0; page < kv->options.n_pages; page++)
        n_refs += kv->pages[page].refs;
    MOGE_ASSERT(n_refs == n_named);
}

void moge_kv_check(const struct moge_kv *kv) {
    check_references(kv);
    int32_t n_used = 0, n_taken = 0;
    for (int32_t page = 0; page < kv->options.n_pages; page++)
        n_used += kv->pages[page].refs > 0;
    for (int32_t i = 0; i < kv->options.n_slots; i++)
        n_taken += kv->slots[i].taken;
    MOGE_ASSERT(n_used + kv->n_free + kv->n_cached == kv->options.n_pages);
    MOGE_ASSERT(n_taken + kv->n_slots_free == kv->options.n_slots);
    for (int32_t i = 0; i < kv->n_free; i++) {
        int32_t page = kv->free_stack[i];
        MOGE_ASSERT(page >= 0 && page < kv->options.n_pages);
        MOGE_ASSERT(kv->pages[page].refs == 0 && !kv->pages[page].indexed && !kv->seen[page]);
        kv->seen[page] = 1;
    }
    for (int32_t i = 0; i < kv->n_free; i++)
        kv->seen[kv->free_stack[i]] = 0;
    moge_kv_prefix_check(kv);
}
