/* SPDX-License-Identifier: Apache-2.0 */
/* Text to ids, exactly as SentencePiece's BPE does it.
 *
 *   1. Spaces become U+2581 and one is put in front.
 *   2. The text is cut into symbols: user-defined pieces where they occur (longest first; they
 *      never merge), single characters elsewhere.
 *   3. Of all neighbouring pairs whose concatenation is a piece, the one with the best score
 *      merges, the leftmost on ties, until none is left.  A heap holds the candidates; one that a
 *      merge has made stale is recognised by its length when it is popped.
 *   4. A symbol that is no piece is spelled with byte tokens, or is unknown when there are none (a
 *      run of unknown symbols is one token).  A piece marked unused is taken apart again into the
 *      two that make it.  These are always the same two: as long as no merge crosses the borders of
 *      a stretch of text, what happens inside does not depend on what is around it.
 *
 * A merge never joins two characters that stand side by side in no piece, so step 3 runs on the
 * parts between such places: mostly words.
 *
 * O(n log n).  Scratch is taken per call, so that any number of threads can encode at once. */
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer_state.h"

#define SYMBOLS_FIRST 256 /* room to begin with; doubled when a part is longer */

struct symbol {
    uint32_t begin, len; /* in the escaped text; len 0: merged into its left neighbour */
    int32_t prev, next;  /* neighbours, -1 at the ends */
    int32_t id;          /* of the piece it is, if that is known already; else -1 */
};

struct merge { /* candidate: the symbol and the one after it would make a piece */
    float score;
    int32_t left;
    uint32_t len; /* of both together */
    int32_t id;
};

struct encoding {
    const struct moge_tokenizer *tok;
    char *text; /* escaped */
    size_t text_len;
    struct symbol *symbols; /* [n_symbols_cap] of one part */
    int32_t n_symbols, n_symbols_cap;
    struct merge *heap; /* [3 * n_symbols_cap] */
    int32_t n_heap;
    uint32_t *splits;  /* [tok->n_splits] bytes of the left half of an unused piece; 0: not seen */
    uint32_t *pending; /* [n_symbols_cap] lengths of right halves still to be put */
    bool after_unknown;
    int32_t *ids;
    int n_ids, cap;
};

/* ---- heap: best score first, then leftmost ---- */

static bool before(const struct merge *a, const struct merge *b) {
    return a->score > b->score || (a->score == b->score && a->left < b->left);
}

/* Room for every push of a part: it begins with n - 1 candidates, and each of its n - 1 merges
 * takes one out and brings in two at most. */
static void heap_push(struct encoding *e, struct merge merge) {
    int32_t i = e->n_heap++;
    while (i > 0 && before(&merge, &e->heap[(i - 1) / 2])) {
        e->heap[i] = e->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    e->heap[i] = merge;
}

static struct merge heap_pop(struct encoding *e) {
    struct merge top = e->heap[0], last = e->heap[--e->n_heap];
    int32_t i = 0;
    for (;;) {
        int32_t child = 2 * i + 1;
        if (child >= e->n_heap)
            break;
        if (child + 1 < e->n_heap && before(&e->heap[child + 1], &e->heap[child]))
            child++;
        if (!before(&e->heap[child], &last))
            break;
        e->heap[i] = e->heap[child];
        i = child;
    }
    e->heap[i] = last;
    return top;
}

/* ---- scratch ---- */

static int symbols_grow(struct encoding *e) {
    size_t n = e->n_symbols_cap > 0 ? 2 * (size_t)e->n_symbols_cap : SYMBOLS_FIRST;
    struct symbol *symbols = realloc(e->symbols, n * sizeof *symbols);
    if (symbols)
        e->symbols = symbols;
    struct merge *heap = realloc(e->heap, 3 * n * sizeof *heap);
    if (heap)
        e->heap = heap;
    uint32_t *pending = e->tok->n_splits > 0 ? realloc(e->pending, n * sizeof *pending) : NULL;
    if (pending)
        e->pending = pending;
    if (!symbols || !heap || (!pending && e->tok->n_splits > 0))
        return MOGE_NOMEM;
    e->n_symbols_cap = (int32_t)n;
    return 0;
}

/* Escaping makes three bytes of a space, the one in front included. */
static int scratch_take(struct encoding *e, const char *text, size_t len) {
    size_t n_spaces = 1;
    for (size_t i = 0; i < len; i++)
        n_spaces += text[i] == ' ';
    e->text = malloc(len + 3 * n_spaces);
    if (e->tok->n_splits > 0)
        e->splits = calloc((size_t)e->tok->n_splits, sizeof *e->splits);
    if (!e->text || (!e->splits && e->tok->n_splits > 0))
        return MOGE_NOMEM;
    return symbols_grow(e);
}

static void scratch_free(struct encoding *e) {
    free(e->text);
    free(e->symbols);
    free(e->heap);
    free(e->splits);
    free(e->pending);
}

/* ---- step 1 ---- */

/* Bytes that normalisation looks at together: a user-defined piece, else one. */
static size_t unit_len(const struct moge_tokenizer *tok, const char *text, size_t len) {
    int32_t id = moge_piece_longest(tok, &tok->users, text, len);
    return id >= 0 ? tok->pieces[id].len : 1;
}

static void put_escaped(struct encoding *e, const char *text, size_t len) {
    for (size_t i = 0; i < len; i++) {
        if (text[i] != ' ') {
            e->text[e->text_len++] = text[i];
            continue;
        }
        memcpy(e->text + e->text_len, MOGE_SPACE_MARK, 3);
        e->text_len += 3;
    }
}

/* Spaces at both ends go, and of several in a row one stays. */
static void escape_squeezed(struct encoding *e, const char *text, size_t len) {
    bool prefix = e->tok->add_space_prefix, after_space = true;
    while (len > 0 && text[0] == ' ' && unit_len(e->tok, text, len) == 1) {
        text++;
        len--;
    }
    if (len > 0 && prefix)
        put_escaped(e, " ", 1);
    while (len > 0) {
        size_t n = unit_len(e->tok, text, len), skip = 0;
        while (after_space && skip < n && text[skip] == ' ')
            skip++;
        put_escaped(e, text + skip, n - skip);
        if (skip < n)
            after_space = text[n - 1] == ' ';
        text += n;
        len -= n;
    }
    while (e->text_len >= 3 && memcmp(e->text + e->text_len - 3, MOGE_SPACE_MARK, 3) == 0)
        e->text_len -= 3;
}

static void escape(struct encoding *e, const char *text, size_t len) {
    e->text_len = 0;
    if (e->tok->remove_extra_spaces) {
        escape_squeezed(e, text, len);
        return;
    }
    if (len > 0 && e->tok->add_space_prefix)
        put_escaped(e, " ", 1);
    put_escaped(e, text, len);
}

/* ---- step 3 ---- */

static void merge_consider(struct encoding *e, int32_t left, int32_t right) {
    if (left < 0 || right < 0)
        return;
    const struct symbol *symbol = &e->symbols[left];
    uint32_t len = symbol->len + e->symbols[right].len;
    int32_t id = moge_piece_find(e->tok, e->text + symbol->begin, len);
    if (id < 0)
        return;
    const struct moge_piece *piece = &e->tok->pieces[id];
    heap_push(e, (struct merge){piece->score, left, len, id});
    if (piece->split >= 0)
        e->splits[piece->split] = symbol->len;
}

static void merge_all(struct encoding *e) {
    e->n_heap = 0;
    for (int32_t i = 1; i < e->n_symbols; i++)
        merge_consider(e, i - 1, i);
    while (e->n_heap > 0) {
        struct merge m = heap_pop(e);
        struct symbol *left = &e->symbols[m.left];
        /* The left one may be gone, or either may have grown since. */
        if (left->len == 0 || left->next < 0 || left->len + e->symbols[left->next].len != m.len)
            continue;
        struct symbol *right = &e->symbols[left->next];
        left->len = m.len;
        left->id = m.id;
        left->next = right->next;
        if (right->next >= 0)
            e->symbols[right->next].prev = m.left;
        right->len = 0;
        merge_consider(e, left->prev, m.left);
        merge_consider(e, m.left, left->next);
    }
}

/* ---- step 4 ---- */

static void put(struct encoding *e, int32_t id) {
    if (e->n_ids < e->cap)
        e->ids[e->n_ids] = id;
    e->n_ids++;
    e->after_unknown = false;
}

static void put_unknown(struct encoding *e, const char *text, size_t len) {
    if (e->tok->byte_ids[0] >= 0) {
        for (size_t i = 0; i < len; i++)
            put(e, e->tok->byte_ids[(unsigned char)text[i]]);
    } else {
        if (!e->after_unknown)
            put(e, e->tok->unknown);
        e->after_unknown = true;
    }
}

/* An unused piece is taken apart, its halves too, left to right. */
static void put_symbol(struct encoding *e, const char *text, size_t len, int32_t id) {
    size_t n_pending = 0;
    for (;;) {
        if (id < 0)
            id = moge_piece_find(e->tok, text, len);
        int32_t split = id >= 0 ? e->tok->pieces[id].split : -1;
        uint32_t n = split >= 0 ? e->splits[split] : 0;
        if (n > 0) { /* fewer halves wait than the part has symbols: each holds one at least */
            e->pending[n_pending++] = (uint32_t)len - n;
            len = n;
            id = -1;
            continue;
        }
        if (id >= 0)
            put(e, id);
        else
            put_unknown(e, text, len);
        if (n_pending == 0)
            return;
        text += len;
        len = e->pending[--n_pending];
        id = -1;
    }
}

static void part_end(struct encoding *e) {
    if (e->n_symbols == 0)
        return;
    e->symbols[e->n_symbols - 1].next = -1;
    merge_all(e);
    for (int32_t i = 0; i >= 0; i = e->symbols[i].next)
        put_symbol(e, e->text + e->symbols[i].begin, e->symbols[i].len, e->symbols[i].id);
    e->n_symbols = 0;
}

/* ---- step 2, which drives 3 and 4 ---- */

static int encode_chunk(struct encoding *e, const char *text, size_t len) {
    const struct moge_tokenizer *tok = e->tok;
    int left_len = 0; /* bytes of the character before; 0: none that could merge */
    escape(e, text, len);
    for (size_t at = 0; at < e->text_len;) {
        const char *here = e->text + at;
        size_t left = e->text_len - at;
        int32_t user = moge_piece_longest(tok, &tok->users, here, left);
        if (user >= 0) {
            part_end(e);
            put(e, user);
            at += tok->pieces[user].len;
            left_len = 0;
            continue;
        }
        int n = moge_utf8_len((const unsigned char *)here, left);
        if (left_len > 0 && !moge_joins_possible(&tok->joins, here - left_len, left_len, here, n))
            part_end(e);
        if (e->n_symbols == e->n_symbols_cap && symbols_grow(e) != 0)
            return MOGE_NOMEM;
        int32_t i = e->n_symbols++;
        e->symbols[i] = (struct symbol){(uint32_t)at, (uint32_t)n, i - 1, i + 1, -1};
        at += (size_t)n;
        left_len = n;
    }
    part_end(e);
    return 0;
}

/* Splits control pieces off, as they are spelled, and encodes what lies between.  Where a longer
 * user-defined piece begins, a control piece inside it does not count. */
static int encode_with_controls(struct encoding *e, const char *text, size_t len) {
    const struct moge_tokenizer *tok = e->tok;
    size_t begin = 0, at = 0;
    while (at < len) {
        int32_t id = moge_piece_longest(tok, &tok->specials, text + at, len - at);
        size_t n = id >= 0 ? tok->pieces[id].len : 1;
        if (id >= 0 && tok->pieces[id].type == MOGE_PIECE_CONTROL) {
            if (encode_chunk(e, text + begin, at - begin) != 0)
                return MOGE_NOMEM;
            put(e, id);
            begin = at + n;
        }
        at += n;
    }
    return encode_chunk(e, text + begin, len - begin);
}

int moge_tokenizer_encode(const struct moge_tokenizer *tok, const char *text, size_t len, int flags,
                          int32_t *ids, int cap) {
    if (len > INT32_MAX / 16)
        return MOGE_LIMIT;
    if (!moge_text_is_utf8(text, len))
        return MOGE_INVALID;
    struct encoding e = {.tok = tok, .ids = ids, .cap = cap};
    int rc = scratch_take(&e, text, len);
    if (rc == 0 && (flags & MOGE_TOKENIZE_BOS) && moge_tokenizer_add_bos(tok))
        put(&e, tok->bos);
    if (rc == 0)
        rc = flags & MOGE_TOKENIZE_SPECIAL ? encode_with_controls(&e, text, len)
                                           : encode_chunk(&e, text, len);
    scratch_free(&e);
    if (rc != 0)
        return rc;
    return e.n_ids <= cap ? e.n_ids : MOGE_LIMIT;
}
