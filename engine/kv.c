/* SPDX-License-Identifier: Apache-2.0 */
/* A page is in exactly one of two places: on the free stack with no references, or in at least one
 * block table with as many references as tables name it.  Everything below keeps that sentence
 * true. */
#include "moge/kv.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

struct slot {
    bool taken;
    int32_t n_pages;
};

struct moge_kv {
    struct moge_kv_options options;
    int32_t *refs; /* [n_pages] */
    int32_t
        *free_stack; /* [n_pages] the last freed is taken first: its bytes may still be in cache */
    int32_t n_free;
    struct slot *slots; /* [n_slots] */
    int32_t *tables;    /* [n_slots, pages_per_slot_max] */
    int32_t n_slots_free;
    uint8_t *seen; /* [n_pages] scratch of check */
};

static int32_t *table_of(const struct moge_kv *kv, int32_t slot) {
    MOGE_ASSERT(slot >= 0 && slot < kv->options.n_slots);
    return kv->tables + (size_t)slot * (size_t)kv->options.pages_per_slot_max;
}

static int32_t page_take(struct moge_kv *kv) {
    MOGE_ASSERT(kv->n_free > 0);
    int32_t page = kv->free_stack[--kv->n_free];
    MOGE_ASSERT(kv->refs[page] == 0);
    kv->refs[page] = 1;
    return page;
}

static void page_release(struct moge_kv *kv, int32_t page) {
    MOGE_ASSERT(kv->refs[page] > 0);
    if (--kv->refs[page] == 0)
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
    kv->refs = calloc(n_pages, sizeof *kv->refs);
    kv->free_stack = calloc(n_pages, sizeof *kv->free_stack);
    kv->slots = calloc(n_slots, sizeof *kv->slots);
    kv->tables = calloc(n_slots * (size_t)options->pages_per_slot_max, sizeof *kv->tables);
    kv->seen = calloc(n_pages, sizeof *kv->seen);
    if (!kv->refs || !kv->free_stack || !kv->slots || !kv->tables || !kv->seen) {
        moge_kv_free(kv);
        return moge_fail(err, MOGE_NOMEM, "no memory for the block tables of %d slots",
                         options->n_slots);
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
    free(kv->refs);
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
        kv->slots[i] = (struct slot){.taken = true};
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
    int32_t *table = table_of(kv, slot);
    struct slot *s = &kv->slots[slot];
    MOGE_ASSERT(s->taken && n_tokens >= 0);
    int32_t n_wanted = moge_kv_pages_for(n_tokens);
    if (n_wanted > kv->options.pages_per_slot_max)
        return MOGE_LIMIT;
    if (n_wanted - s->n_pages > kv->n_free)
        return MOGE_BUSY;
    while (s->n_pages < n_wanted)
        table[s->n_pages++] = page_take(kv);
    return 0;
}

void moge_kv_truncate(struct moge_kv *kv, int32_t slot, int32_t n_tokens) {
    int32_t *table = table_of(kv, slot);
    struct slot *s = &kv->slots[slot];
    MOGE_ASSERT(s->taken && n_tokens >= 0);
    int32_t n_kept = moge_kv_pages_for(n_tokens);
    while (s->n_pages > n_kept)
        page_release(kv, table[--s->n_pages]);
}

int32_t moge_kv_share(struct moge_kv *kv, int32_t source, int32_t target, int32_t n_tokens) {
    const int32_t *from = table_of(kv, source);
    int32_t *to = table_of(kv, target);
    struct slot *s = &kv->slots[target];
    MOGE_ASSERT(kv->slots[source].taken && s->taken && s->n_pages == 0 && source != target);
    int32_t n_full = n_tokens / MOGE_PAGE_TOKENS;
    if (n_full > kv->slots[source].n_pages)
        n_full = kv->slots[source].n_pages;
    for (int32_t i = 0; i < n_full; i++) {
        to[i] = from[i];
        kv->refs[from[i]]++;
    }
    s->n_pages = n_full;
    return n_full * MOGE_PAGE_TOKENS;
}

const int32_t *moge_kv_table(const struct moge_kv *kv, int32_t slot) {
    return table_of(kv, slot);
}

int32_t moge_kv_slot_pages(const struct moge_kv *kv, int32_t slot) {
    MOGE_ASSERT(slot >= 0 && slot < kv->options.n_slots);
    return kv->slots[slot].n_pages;
}

int32_t moge_kv_pages_total(const struct moge_kv *kv) {
    return kv->options.n_pages;
}

int32_t moge_kv_pages_free(const struct moge_kv *kv) {
    return kv->n_free;
}

int32_t moge_kv_slots_free(const struct moge_kv *kv) {
    return kv->n_slots_free;
}

/* References counted from the tables must be the references stored; `seen` finds a page named
 * twice. */
static void check_references(const struct moge_kv *kv) {
    int64_t n_named = 0, n_refs = 0;
    for (int32_t i = 0; i < kv->options.n_slots; i++) {
        const struct slot *s = &kv->slots[i];
        MOGE_ASSERT(s->taken || s->n_pages == 0);
        const int32_t *table = table_of(kv, i);
        for (int32_t j = 0; j < s->n_pages; j++) {
            MOGE_ASSERT(table[j] >= 0 && table[j] < kv->options.n_pages);
            MOGE_ASSERT(!kv->seen[table[j]]);
            kv->seen[table[j]] = 1;
        }
        for (int32_t j = 0; j < s->n_pages; j++) {
            kv->seen[table[j]] = 0;
            kv->refs[table[j]]--; /* put back below: what is left must be zero everywhere */
        }
        n_named += s->n_pages;
    }
    for (int32_t page = 0; page < kv->options.n_pages; page++)
        MOGE_ASSERT(kv->refs[page] == 0);
    for (int32_t i = 0; i < kv->options.n_slots; i++)
        for (int32_t j = 0; j < kv->slots[i].n_pages; j++)
            kv->refs[table_of(kv, i)[j]]++;
    for (int32_t page = 0; page < kv->options.n_pages; page++)
        n_refs += kv->refs[page];
    MOGE_ASSERT(n_refs == n_named);
}

void moge_kv_check(const struct moge_kv *kv) {
    check_references(kv);
    int32_t n_used = 0, n_taken = 0;
    for (int32_t page = 0; page < kv->options.n_pages; page++)
        n_used += kv->refs[page] > 0;
    for (int32_t i = 0; i < kv->options.n_slots; i++)
        n_taken += kv->slots[i].taken;
    MOGE_ASSERT(n_used + kv->n_free == kv->options.n_pages);
    MOGE_ASSERT(n_taken + kv->n_slots_free == kv->options.n_slots);
    for (int32_t i = 0; i < kv->n_free; i++) {
        int32_t page = kv->free_stack[i];
        MOGE_ASSERT(page >= 0 && page < kv->options.n_pages);
        MOGE_ASSERT(kv->refs[page] == 0 && !kv->seen[page]);
        kv->seen[page] = 1;
    }
    for (int32_t i = 0; i < kv->n_free; i++)
        kv->seen[kv->free_stack[i]] = 0;
}
