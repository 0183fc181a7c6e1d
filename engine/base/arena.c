/* SPDX-License-Identifier: Apache-2.0 */
#include "moge/arena.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE_BYTES ((size_t)2 << 20)

int moge_arena_init(struct moge_arena *arena, size_t cap_bytes, struct moge_err *err) {
    if (cap_bytes > SIZE_MAX / 2)
        return moge_fail(err, MOGE_NOMEM, "cannot map %zu bytes of memory", cap_bytes);
    size_t unit = cap_bytes >= HUGE_PAGE_BYTES ? HUGE_PAGE_BYTES : 4096;
    size_t bytes = (cap_bytes + unit - 1) / unit * unit;
    if (bytes == 0)
        bytes = unit;
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return moge_fail(err, MOGE_NOMEM, "cannot map %zu bytes of memory", cap_bytes);
    madvise(base, bytes, MADV_HUGEPAGE); /* a wish; small pages work too */
    memset(arena, 0, sizeof *arena);
    arena->base = base;
    arena->cap_bytes = bytes;
    return 0;
}

void moge_arena_fini(struct moge_arena *arena) {
    if (arena->base)
        munmap(arena->base, arena->cap_bytes);
    memset(arena, 0, sizeof *arena);
}

void *moge_arena_take(struct moge_arena *arena, size_t n, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes) || bytes > arena->cap_bytes)
        return NULL;
    size_t begin = (arena->used_bytes + MOGE_ARENA_ALIGN - 1) & ~(size_t)(MOGE_ARENA_ALIGN - 1);
    if (begin > arena->cap_bytes || bytes > arena->cap_bytes - begin)
        return NULL;
    arena->used_bytes = begin + bytes;
    if (arena->used_bytes > arena->peak_bytes)
        arena->peak_bytes = arena->used_bytes;
    return arena->base + begin;
}

size_t moge_arena_mark(const struct moge_arena *arena) {
    return arena->used_bytes;
}

void moge_arena_reset(struct moge_arena *arena, size_t mark) {
    MOGE_ASSERT(mark <= arena->used_bytes);
    arena->used_bytes = mark;
}
