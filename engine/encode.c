/* SPDX-License-Identifier: Apache-2.0 */
/* Text to ids, exactly as SentencePiece's BPE does it.
 *
 *   1. Spaces become U+2581 and one is put in front.
 *   2. The text is cut into symbols: user-defined pieces where they occur (longest first; they
 * never merge), single characters elsewhere.
 *   3. Of all neighbouring pairs whose concatenation is a piece, the one with the best score
 * merges, the leftmost on ties, until none is left.  A heap holds the candidates; one that a merge
 * has made stale is recognised by its length when it is popped.
 *   4. A symbol that is no piece is spelled with byte tokens; a piece marked unused is taken apart
 * again into the two that made it.
 *
 * O(n log n).  Scratch is taken per call, so that any number of threads can encode at once. */
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer_state.h"

#define SPACE_MARK "\xe2\x96\x81"

struct symbol {
    uint32_t begin, len; /* in the escaped text; len 0: merged into its left neighbour */
    int32_t prev, next;  /* neighbours, -1 at the ends */
    bool frozen;
};

struct merge { /* candidate: symbols left and right would make a piece */
    float score;
    int32_t left, right;
    uint32_t len; /* of both together */
};

struct encoding {
    const struct moge_tokenizer *tok;
    char *text; /* escaped */
    size_t text_len;
    struct symbol *symbols;
    int32_t n_symbols;
    struct merge *heap;
    int32_t n_heap;
    int32_t *ids;
    int n_ids, cap;
};

/* ---- heap: best score first, then leftmost ---- */

static bool before(const struct merge *a, const struct merge *b) {
    return a->score > b->score || (a->score == b->score && a->left < b->left);
}

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

/* ---- steps 1 and 2 ---- */

/* Escapes text into e->text, which has room for 3 * (len + 1) bytes. */
static void escape(struct encoding *e, const char *text, size_t len) {
    bool squeeze = e->tok->remove_extra_spaces;
    while (squeeze && len > 0 && text[0] == ' ') {
        text++;
        len--;
    }
    while (squeeze && len > 0 && text[len - 1] == ' ')
        len--;
    e->text_len = 0;
    if (len == 0)
        return;
    bool prefix = e->tok->add_space_prefix;
    for (size_t i = 0; i < len + prefix; i++) {
        char c = prefix && i == 0 ? ' ' : text[i - prefix];
        if (c != ' ') {
            e->text[e->text_len++] = c;
            continue;
        }
        if (squeeze && i > prefix && text[i - prefix - 1] == ' ')
            continue;
        memcpy(e->text + e->text_len, SPACE_MARK, 3);
        e->text_len += 3;
    }
}

/* Length of the longest piece of the map that the text begins with, 0 if none. */
static size_t longest_match(const struct moge_tokenizer *tok, const struct moge_piece_map *map,
                            size_t len_max, const char *text, size_t len) {
    if (map->n_cells == 0)
        return 0;
    for (size_t n = len < len_max ? len : len_max; n > 0; n--)
        if (moge_piece_find(tok, map, text, n) >= 0)
            return n;
    return 0;
}

static void cut(struct encoding *e) {
    const struct moge_tokenizer *tok = e->tok;
    e->n_symbols = 0;
    for (size_t at = 0; at < e->text_len;) {
        size_t left = e->text_len - at;
        size_t n = longest_match(tok, &tok->users, tok->user_len_max, e->text + at, left);
        bool frozen = n > 0;
        if (!frozen)
            n = (size_t)moge_utf8_len((const unsigned char *)e->text + at, left);
        int32_t i = e->n_symbols++;
        e->symbols[i] = (struct symbol){(uint32_t)at, (uint32_t)n, i - 1, i + 1, frozen};
        at += n;
    }
    if (e->n_symbols > 0)
        e->symbols[e->n_symbols - 1].next = -1;
}

/* ---- step 3 ---- */

static void merge_consider(struct encoding *e, int32_t left, int32_t right) {
    if (left < 0 || right < 0 || e->symbols[left].frozen || e->symbols[right].frozen)
        return;
    uint32_t len = e->symbols[left].len + e->symbols[right].len;
    int32_t id = moge_piece_find(e->tok, &e->tok->merges, e->text + e->symbols[left].begin, len);
    if (id >= 0)
        heap_push(e, (struct merge){e->tok->pieces[id].score, left, right, len});
}

static void merge_all(struct encoding *e) {
    for (int32_t i = 1; i < e->n_symbols; i++)
        merge_consider(e, i - 1, i);
    while (e->n_heap > 0) {
        struct merge m = heap_pop(e);
        struct symbol *left = &e->symbols[m.left], *right = &e->symbols[m.right];
        if (left->len == 0 || right->len == 0 || left->len + right->len != m.len)
            continue;
        left->len = m.len;
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
}

static void put_bytes(struct encoding *e, const char *text, size_t len) {
    for (size_t i = 0; i < len; i++) {
        int32_t id = e->tok->byte_ids[(unsigned char)text[i]];
        if (id < 0) { /* no byte fallback: the whole symbol is unknown */
            put(e, e->tok->unknown);
            return;
        }
        put(e, id);
    }
}

/* Where an unused piece falls apart: at the best-scored pair of pieces that would merge into it. */
static size_t split_at(const struct encoding *e, const char *text, size_t len) {
    size_t best = 0;
    for (size_t n = 1; n < len; n++) {
        if (((unsigned char)text[n] & 0xc0) == 0x80)
            continue;
        bool whole = moge_piece_find(e->tok, &e->tok->merges, text, n) >= 0 &&
                     moge_piece_find(e->tok, &e->tok->merges, text + n, len - n) >= 0;
        if (whole || best == 0)
            best = n;
        if (whole)
            break;
    }
    return best;
}

static void put_symbol(struct encoding *e, const char *text, size_t len) {
    while (len > 0) {
        int32_t id = moge_piece_find(e->tok, &e->tok->merges, text, len);
        if (id >= 0 && e->tok->pieces[id].type != MOGE_PIECE_UNUSED) {
            put(e, id);
            return;
        }
        size_t n = id >= 0 ? split_at(e, text, len) : 0;
        if (n == 0) {
            put_bytes(e, text, len);
            return;
        }
        put_symbol(e, text, n);
        text += n;
        len -= n;
    }
}

static void encode_chunk(struct encoding *e, const char *text, size_t len) {
    escape(e, text, len);
    cut(e);
    e->n_heap = 0;
    merge_all(e);
    for (int32_t i = e->n_symbols > 0 ? 0 : -1; i >= 0; i = e->symbols[i].next)
        put_symbol(e, e->text + e->symbols[i].begin, e->symbols[i].len);
}

/* Splits control pieces off, as they are spelled, and encodes what lies between. */
static void encode_with_controls(struct encoding *e, const char *text, size_t len) {
    const struct moge_tokenizer *tok = e->tok;
    size_t begin = 0;
    for (size_t at = 0; at < len;) {
        size_t n = longest_match(tok, &tok->controls, tok->control_len_max, text + at, len - at);
        if (n == 0) {
            at++;
            continue;
        }
        encode_chunk(e, text + begin, at - begin);
        put(e, moge_piece_find(tok, &tok->controls, text + at, n));
        at += n;
        begin = at;
    }
    encode_chunk(e, text + begin, len - begin);
}

int moge_tokenizer_encode(const struct moge_tokenizer *tok, const char *text, size_t len, int flags,
                          int32_t *ids, int cap) {
    if (len > INT32_MAX / 16)
        return MOGE_LIMIT;
    for (size_t at = 0; at < len;) {
        int n = moge_utf8_len((const unsigned char *)text + at, len - at);
        if (n == 0)
            return MOGE_INVALID;
        at += (size_t)n;
    }
    /* Each merge takes one candidate out of use and brings in two at most. */
    size_t n_symbols = len + 1;
    struct encoding e = {.tok = tok, .ids = ids, .cap = cap};
    e.text = malloc(3 * n_symbols);
    e.symbols = malloc(n_symbols * sizeof *e.symbols);
    e.heap = malloc(3 * n_symbols * sizeof *e.heap);
    int rc = MOGE_NOMEM;
    if (e.text && e.symbols && e.heap) {
        if ((flags & MOGE_TOKENIZE_BOS) && moge_tokenizer_add_bos(tok))
            put(&e, tok->bos);
        if (flags & MOGE_TOKENIZE_SPECIAL)
            encode_with_controls(&e, text, len);
        else
            encode_chunk(&e, text, len);
        rc = e.n_ids <= cap ? e.n_ids : MOGE_LIMIT;
    }
    free(e.text);
    free(e.symbols);
    free(e.heap);
    return rc;
}
