/* SPDX-License-Identifier: Apache-2.0 */
/* What followed last time, will follow again: code, quotations and lists repeat themselves.
 *
 *      tokens   a b c d x y a b c | ? ? ?       the longest suffix seen before: a b c, ending at 2
 *      guess    d x y                           what followed it
 *
 * Per slot and n-gram size, a hash table maps every n-gram to the end of its latest occurrence that
 * has a successor.  Entries are positions; the tokens they stand for are compared on lookup, so a
 * hit is always a true one.  A token costs one insertion per size, once; a table holds at most
 * n_context entries at half load, and a search ends after PROBES_MAX entries, whatever a client has
 * made of its prompt: an n-gram that finds no place takes that of another.  Nothing is allocated
 * after new. */
#include "moge/draft.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* Longest first: a longer match is a better predictor.  One token alone predicts too badly. */
static const int32_t sizes[] = {6, 4, 3, 2};
#define N_SIZES     4
#define ENTRY_EMPTY (-1)
#define PROBES_MAX  24

struct ngram_slot {
    int32_t n_indexed; /* n-grams that end before this position are in the tables */
    int32_t *ends;     /* [N_SIZES, n_entries] position of an n-gram's last token, or empty */
};

struct ngram {
    int32_t n_slots, n_context_max;
    uint32_t n_entries; /* of one table; a power of two */
    struct ngram_slot *slots;
    int32_t *ends; /* [n_slots, N_SIZES, n_entries] */
};

static uint32_t hash(const int32_t *tokens, int32_t n) {
    uint64_t h = (uint64_t)n;
    for (int32_t i = 0; i < n; i++)
        h = (h ^ (uint32_t)tokens[i]) * 0x9e3779b97f4a7c15u;
    return (uint32_t)(h >> 32);
}

/* The entry of the n-gram that starts at `gram`, or the one where it belongs: an empty one, or else
 * the first of those searched. */
static int32_t *find(const struct ngram *ngram, int32_t *table, const int32_t *tokens,
                     const int32_t *gram, int32_t n, bool *found) {
    uint32_t mask = ngram->n_entries - 1, first = hash(gram, n) & mask;
    for (uint32_t i = 0; i < PROBES_MAX; i++) {
        int32_t *entry = &table[(first + i) & mask];
        *found = *entry != ENTRY_EMPTY &&
                 memcmp(tokens + *entry - n + 1, gram, (size_t)n * sizeof *gram) == 0;
        if (*found || *entry == ENTRY_EMPTY)
            return entry;
    }
    return &table[first];
}

static int32_t *table_of(const struct ngram *ngram, const struct ngram_slot *slot, int i_size) {
    return slot->ends + (size_t)i_size * ngram->n_entries;
}

static void slot_clear(const struct ngram *ngram, struct ngram_slot *slot) {
    if (slot->n_indexed == 0)
        return;
    memset(slot->ends, 0xff, (size_t)N_SIZES * ngram->n_entries * sizeof *slot->ends);
    slot->n_indexed = 0;
}

/* Adds the n-grams that have got a successor since the last call. */
static void slot_extend(const struct ngram *ngram, struct ngram_slot *slot, const int32_t *tokens,
                        int32_t n_known) {
    if (slot->n_indexed > n_known - 1) /* shorter than before: another sequence */
        slot_clear(ngram, slot);
    bool found;
    for (int32_t end = slot->n_indexed; end < n_known - 1; end++)
        for (int i = 0; i < N_SIZES; i++)
            if (end + 1 >= sizes[i])
                *find(ngram, table_of(ngram, slot, i), tokens, tokens + end + 1 - sizes[i],
                      sizes[i], &found) = end;
    slot->n_indexed = n_known - 1;
}

/* Where the longest known suffix of tokens[0..n) occurred last: position of its last token, or
 * ENTRY_EMPTY.  *len becomes how long the match is in truth. */
static int32_t slot_match(const struct ngram *ngram, const struct ngram_slot *slot,
                          const int32_t *tokens, int32_t n, int32_t *len) {
    bool found;
    for (int i = 0; i < N_SIZES; i++) {
        if (n < sizes[i])
            continue;
        int32_t end =
            *find(ngram, table_of(ngram, slot, i), tokens, tokens + n - sizes[i], sizes[i], &found);
        if (!found)
            continue;
        *len = sizes[i];
        while (*len < MOGE_MATCH_LEN_MAX && *len <= end &&
               tokens[end - *len] == tokens[n - 1 - *len])
            ++*len;
        return end;
    }
    return ENTRY_EMPTY;
}

static void ngram_look(void *self, const struct moge_span *span, int32_t n_max,
                       struct moge_lookup *out) {
    struct ngram *ngram = self;
    int32_t n = span->n_known + span->n_guess;
    out->n = 0;
    out->n_known = n;
    if (n_max <= 0 || span->n_known < 1 || n > ngram->n_context_max)
        return;
    MOGE_ASSERT(span->slot >= 0 && span->slot < ngram->n_slots);
    struct ngram_slot *slot = &ngram->slots[span->slot];
    slot_extend(ngram, slot, span->tokens, span->n_known);
    int32_t end = slot_match(ngram, slot, span->tokens, n, &out->match_len);
    if (end == ENTRY_EMPTY)
        return;
    /* A match near the end runs into its own guesses: a repetition goes on repeating. */
    for (int32_t from = end + 1; out->n < n_max; from++, out->n++)
        out->tokens[out->n] = from < n ? span->tokens[from] : out->tokens[from - n];
}

static void ngram_forget(void *self, int32_t i_slot) {
    struct ngram *ngram = self;
    MOGE_ASSERT(i_slot >= 0 && i_slot < ngram->n_slots);
    slot_clear(ngram, &ngram->slots[i_slot]);
}

static void ngram_free(void *self) {
    struct ngram *ngram = self;
    if (!ngram)
        return;
    free(ngram->slots);
    free(ngram->ends);
    free(ngram);
}

static const struct moge_drafter_ops ngram_ops = {
    .name = "ngram", .look = ngram_look, .forget = ngram_forget, .free = ngram_free};

int moge_draft_ngram_new(struct moge_drafter *out, int32_t n_slots, int32_t n_context_max,
                         struct moge_err *err) {
    if (n_slots < 1 || n_context_max < 1 || n_context_max > 1 << 28)
        return moge_fail(err, MOGE_INVALID, "n-gram lookup for %d slots of %d tokens is impossible",
                         n_slots, n_context_max);
    struct ngram *ngram = calloc(1, sizeof *ngram);
    if (!ngram)
        goto fail;
    ngram->n_slots = n_slots;
    ngram->n_context_max = n_context_max;
    ngram->n_entries = 16;
    while (ngram->n_entries < 2 * (uint32_t)n_context_max)
        ngram->n_entries *= 2;
    size_t slot_len = (size_t)N_SIZES * ngram->n_entries, ends_bytes;
    if (__builtin_mul_overflow(slot_len * sizeof *ngram->ends, (size_t)n_slots, &ends_bytes))
        goto fail;
    ngram->ends = malloc(ends_bytes);
    if (!ngram->ends)
        goto fail;
    ngram->slots = calloc((size_t)n_slots, sizeof *ngram->slots);
    if (!ngram->slots)
        goto fail;
    memset(ngram->ends, 0xff, ends_bytes);
    for (int32_t i = 0; i < n_slots; i++)
        ngram->slots[i].ends = ngram->ends + (size_t)i * slot_len;
    *out = (struct moge_drafter){&ngram_ops, ngram};
    return 0;
fail:
    ngram_free(ngram);
    return moge_fail(err, MOGE_NOMEM, "no memory for n-gram lookup (%d slots of %d tokens)",
                     n_slots, n_context_max);
}
