/* SPDX-License-Identifier: Apache-2.0 */
/* A binary heap of keys, the largest first.  An entry says whose key it is, so there is little to
 * move about. */
#ifndef MOGE_DRAFT_HEAP_H
#define MOGE_DRAFT_HEAP_H

#include <stdint.h>

struct moge_heap_entry {
    double key;
    int32_t i;
};

struct moge_heap {
    struct moge_heap_entry
        *entries; /* those below an entry, 2 i + 1 and 2 i + 2, have no larger key */
    int32_t n;
};

/* Entry i, whose key may have become smaller, sinks to where it belongs. */
static inline void moge_heap_sink(struct moge_heap *heap, int32_t i) {
    struct moge_heap_entry *entries = heap->entries, sinking = entries[i];
    for (int32_t below; (below = 2 * i + 1) < heap->n; i = below) {
        if (below + 1 < heap->n)
            below += entries[below + 1].key > entries[below].key;
        if (entries[below].key <= sinking.key)
            break;
        entries[i] = entries[below];
    }
    entries[i] = sinking;
}

#endif
