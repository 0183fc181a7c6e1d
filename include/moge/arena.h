/* SPDX-License-Identifier: Apache-2.0 */
/* A bump allocator over one anonymous mapping (transparent huge pages asked for).  Everything the
 * daemon needs is sized from the configuration at start and taken from arenas; a step allocates
 * nothing, it only marks and resets scratch.  An arena has one owner thread at a time. */
#ifndef MOGE_ARENA_H
#define MOGE_ARENA_H

#include <stddef.h>
#include "moge/err.h"

#define MOGE_ARENA_ALIGN 64

struct moge_arena {
    unsigned char *base;
    size_t cap_bytes;
    size_t used_bytes;
    size_t peak_bytes;
};

/* Maps cap_bytes (rounded up to pages) of zeroed memory.  MOGE_NOMEM names the size. */
int moge_arena_init(struct moge_arena *arena, size_t cap_bytes, struct moge_err *err);

/* Unmaps; accepts a zeroed struct. */
void moge_arena_fini(struct moge_arena *arena);

/* n * size bytes, 64-byte aligned, NOT zeroed after a reset.  NULL when the arena is full or n *
 * size overflows: the caller sized the arena, so for scratch this is a programmer error to assert
 * on. */
void *moge_arena_take(struct moge_arena *arena, size_t n, size_t size);

/* Scratch discipline: mark at entry, reset at exit. */
size_t moge_arena_mark(const struct moge_arena *arena);
void moge_arena_reset(struct moge_arena *arena, size_t mark);

#endif
