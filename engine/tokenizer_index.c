/* SPDX-License-Identifier: Apache-2.0 */
/* How pieces are found: by their whole text (hash), as the longest beginning of a text (sorted),
 * and whether two characters ever meet inside one (bits). */
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer_state.h"

#define TYPE_SET(type) (1u << (type))
#define MERGEABLE                                                                                  \
    (TYPE_SET(MOGE_PIECE_NORMAL) | TYPE_SET(MOGE_PIECE_USER) | TYPE_SET(MOGE_PIECE_UNUSED))
#define JOIN_BITS_MAX (1u << 24)
#define MIX           0x9e3779b97f4a7c15u

/* ---- UTF-8 ---- */

int moge_utf8_len(const unsigned char *text, size_t len) {
    unsigned char c = text[0];
    if (c < 0x80)
        return 1;
    int n = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
    if (c < 0xc2 || c > 0xf4 || len < (size_t)n)
        return 0;
    for (int i = 1; i < n; i++)
        if ((text[i] & 0xc0) != 0x80)
            return 0;
    bool overlong = (c == 0xe0 && text[1] < 0xa0) || (c == 0xf0 && text[1] < 0x90);
    bool surrogate = c == 0xed && text[1] >= 0xa0, beyond = c == 0xf4 && text[1] >= 0x90;
    return overlong || surrogate || beyond ? 0 : n;
}

bool moge_text_is_utf8(const char *text, size_t len) {
    for (size_t at = 0; at < len;) {
        int n = moge_utf8_len((const unsigned char *)text + at, len - at);
        if (n == 0)
            return false;
        at += (size_t)n;
    }
    return true;
}

/* ---- by whole text ---- */

static uint32_t hash_of(const char *text, size_t len) {
    uint64_t h = len * MIX, word;
    for (; len >= sizeof word; text += sizeof word, len -= sizeof word) {
        memcpy(&word, text, sizeof word);
        h = (h ^ word) * MIX;
        h ^= h >> 32;
    }
    word = 0;
    for (size_t i = 0; i < len; i++)
        word |= (uint64_t)(unsigned char)text[i] << 8 * i;
    h = (h ^ word) * MIX;
    return (uint32_t)(h >> 32);
}

int32_t moge_piece_find(const struct moge_tokenizer *tok, const char *text, size_t len) {
    const struct moge_piece_map *map = &tok->merges;
    if (map->n_cells == 0)
        return -1;
    for (uint32_t i = hash_of(text, len);; i++) {
        int32_t id = map->ids[i & (map->n_cells - 1)];
        if (id < 0)
            return -1;
        if (tok->pieces[id].len == len && memcmp(tok->pieces[id].text, text, len) == 0)
            return id;
    }
}

static bool in_types(const struct moge_piece *piece, unsigned types) {
    return piece->len > 0 && (types >> piece->type & 1);
}

static int32_t count_types(const struct moge_tokenizer *tok, unsigned types) {
    int32_t n = 0;
    for (int32_t id = 0; id < tok->n_vocab; id++)
        n += in_types(&tok->pieces[id], types);
    return n;
}

/* Of two pieces alike the first counts. */
static int merges_build(struct moge_tokenizer *tok) {
    struct moge_piece_map *map = &tok->merges;
    uint32_t n = (uint32_t)count_types(tok, MERGEABLE), n_cells = 4;
    if (n == 0)
        return 0;
    while (n_cells < 2 * n) /* at most half full; n is at most 2^24 */
        n_cells *= 2;
    map->ids = malloc(n_cells * sizeof *map->ids);
    if (!map->ids)
        return MOGE_NOMEM;
    map->n_cells = n_cells;
    memset(map->ids, 0xff, n_cells * sizeof *map->ids);
    for (int32_t id = 0; id < tok->n_vocab; id++) {
        const struct moge_piece *piece = &tok->pieces[id];
        if (!in_types(piece, MERGEABLE) || moge_piece_find(tok, piece->text, piece->len) >= 0)
            continue;
        uint32_t i = hash_of(piece->text, piece->len);
        while (map->ids[i & (n_cells - 1)] >= 0)
            i++;
        map->ids[i & (n_cells - 1)] = id;
    }
    return 0;
}

/* ---- as the longest beginning ---- */

static int by_bytes(const void *a, const void *b, void *context) {
    const struct moge_tokenizer *tok = context;
    int32_t id_a = *(const int32_t *)a, id_b = *(const int32_t *)b;
    const struct moge_piece *x = &tok->pieces[id_a], *y = &tok->pieces[id_b];
    int order = memcmp(x->text, y->text, x->len < y->len ? x->len : y->len);
    if (order != 0)
        return order;
    if (x->len != y->len)
        return x->len < y->len ? -1 : 1;
    return id_a < id_b ? -1 : 1;
}

static int set_build(struct moge_tokenizer *tok, struct moge_piece_set *set, unsigned types) {
    int32_t n = count_types(tok, types);
    if (n == 0)
        return 0;
    set->ids = malloc((size_t)n * sizeof *set->ids);
    if (!set->ids)
        return MOGE_NOMEM;
    for (int32_t id = 0; id < tok->n_vocab; id++)
        if (in_types(&tok->pieces[id], types))
            set->ids[set->n++] = id;
    qsort_r(set->ids, (size_t)n, sizeof *set->ids, by_bytes, tok);
    for (int32_t i = 0; i < n; i++)
        set->first[(unsigned char)tok->pieces[set->ids[i]].text[0] + 1]++;
    for (int c = 0; c < 256; c++)
        set->first[c + 1] += set->first[c];
    return 0;
}

/* First of ids[low..high) whose byte at depth is at least c; all are longer than depth. */
static int32_t narrow(const struct moge_tokenizer *tok, const struct moge_piece_set *set,
                      int32_t low, int32_t high, size_t depth, int c) {
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if ((unsigned char)tok->pieces[set->ids[middle]].text[depth] < c)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

int32_t moge_piece_longest(const struct moge_tokenizer *tok, const struct moge_piece_set *set,
                           const char *text, size_t len) {
    if (set->n == 0 || len == 0)
        return -1;
    int32_t best = -1;
    int32_t low = set->first[(unsigned char)text[0]], high = set->first[(unsigned char)text[0] + 1];
    /* ids[low..high) agree with the text in the first `depth` bytes and are no shorter. */
    for (size_t depth = 1; low < high; depth++) {
        if (tok->pieces[set->ids[low]].len == depth)
            best = set->ids[low];
        while (low < high && tok->pieces[set->ids[low]].len == depth)
            low++;
        if (depth == len)
            break;
        int c = (unsigned char)text[depth];
        low = narrow(tok, set, low, high, depth, c);
        high = narrow(tok, set, low, high, depth, c + 1);
    }
    return best;
}

/* ---- neighbours ---- */

static uint32_t join_bit(const struct moge_joins *joins, const char *left, int left_len,
                         const char *right, int right_len) {
    uint32_t a = 0, b = 0;
    memcpy(&a, left, (size_t)left_len);
    memcpy(&b, right, (size_t)right_len);
    uint64_t h = ((uint64_t)a << 32 | b) * MIX;
    return (uint32_t)((h ^ h >> 29) * MIX >> 32) & (joins->n_bits - 1);
}

bool moge_joins_possible(const struct moge_joins *joins, const char *left, int left_len,
                         const char *right, int right_len) {
    uint32_t bit = join_bit(joins, left, left_len, right, right_len);
    return joins->bits[bit / 64] >> bit % 64 & 1;
}

static int joins_build(struct moge_tokenizer *tok) {
    uint64_t n_chars = 0;
    for (int32_t id = 0; id < tok->n_vocab; id++)
        if (in_types(&tok->pieces[id], MERGEABLE))
            n_chars += tok->pieces[id].len;
    struct moge_joins *joins = &tok->joins;
    joins->n_bits = 1024;
    while (joins->n_bits < 4 * n_chars && joins->n_bits < JOIN_BITS_MAX)
        joins->n_bits *= 2;
    joins->bits = calloc(joins->n_bits / 64, sizeof *joins->bits);
    if (!joins->bits)
        return MOGE_NOMEM;
    for (int32_t id = 0; id < tok->n_vocab; id++) {
        const struct moge_piece *piece = &tok->pieces[id];
        if (!in_types(piece, MERGEABLE))
            continue;
        int left_len = moge_utf8_len((const unsigned char *)piece->text, piece->len);
        for (uint32_t at = (uint32_t)left_len; at < piece->len;) {
            int n = moge_utf8_len((const unsigned char *)piece->text + at, piece->len - at);
            const char *right = piece->text + at;
            uint32_t bit = join_bit(joins, right - left_len, left_len, right, n);
            joins->bits[bit / 64] |= 1ull << bit % 64;
            at += (uint32_t)n;
            left_len = n;
        }
    }
    return 0;
}

/* ---- unused pieces ---- */

/* Could this part of a piece be a symbol: one character, or made by merging? */
static bool is_symbol(const struct moge_tokenizer *tok, const char *text, size_t len) {
    return (size_t)moge_utf8_len((const unsigned char *)text, len) == len ||
           moge_piece_find(tok, text, len) >= 0;
}

static bool is_makeable(const struct moge_tokenizer *tok, const struct moge_piece *piece) {
    for (uint32_t n = 1; n < piece->len; n++)
        if (((unsigned char)piece->text[n] & 0xc0) != 0x80 && is_symbol(tok, piece->text, n) &&
            is_symbol(tok, piece->text + n, piece->len - n))
            return true;
    return false;
}

/* Numbers the unused pieces that merging can make. */
static void splits_number(struct moge_tokenizer *tok) {
    for (int32_t id = 0; id < tok->n_vocab; id++) {
        struct moge_piece *piece = &tok->pieces[id];
        bool split = in_types(piece, TYPE_SET(MOGE_PIECE_UNUSED)) && is_makeable(tok, piece);
        piece->split = split ? tok->n_splits++ : -1;
    }
}

int moge_tokenizer_index(struct moge_tokenizer *tok) {
    if (merges_build(tok) != 0 || joins_build(tok) != 0 ||
        set_build(tok, &tok->users, TYPE_SET(MOGE_PIECE_USER)) != 0 ||
        set_build(tok, &tok->specials, TYPE_SET(MOGE_PIECE_USER) | TYPE_SET(MOGE_PIECE_CONTROL)) !=
            0)
        return MOGE_NOMEM;
    splits_number(tok);
    return 0;
}

void moge_tokenizer_index_free(struct moge_tokenizer *tok) {
    free(tok->merges.ids);
    free(tok->joins.bits);
    free(tok->users.ids);
    free(tok->specials.ids);
}
