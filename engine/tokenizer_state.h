/* SPDX-License-Identifier: Apache-2.0 */
/* What a tokenizer holds.  tokenizer.c reads it from metadata, tokenizer_index.c makes it findable,
 * encode.c turns text into ids, detok.c ids into text. */
#ifndef MOGE_TOKENIZER_STATE_H
#define MOGE_TOKENIZER_STATE_H

#include "moge/tokenizer.h"

#define MOGE_SPACE_MARK "\xe2\x96\x81" /* U+2581, which stands for a space inside pieces */

/* SentencePiece's piece types, as GGUF stores them. */
enum moge_piece_type {
    MOGE_PIECE_NORMAL = 1,
    MOGE_PIECE_UNKNOWN = 2,
    MOGE_PIECE_CONTROL = 3,
    MOGE_PIECE_USER = 4,
    MOGE_PIECE_UNUSED = 5,
    MOGE_PIECE_BYTE = 6,
};

struct moge_piece {
    const char *text;  /* [len] with U+2581 for a space, as the file has it */
    const char *shown; /* [shown_len] the bytes it stands for */
    uint32_t len, shown_len;
    float score;
    uint8_t type;
    int32_t split; /* among the unused pieces that merging can make: which one; else -1 */
};

/* Text to id, open addressing. */
struct moge_piece_map {
    int32_t *ids;     /* [n_cells] or -1 */
    uint32_t n_cells; /* a power of two; 0 when the map is empty */
};

/* Pieces in the order of their bytes: finds the longest that a text begins with. */
struct moge_piece_set {
    int32_t *ids; /* [n] */
    int32_t n;
    int32_t first[257]; /* ids[first[c] .. first[c + 1]) begin with byte c */
};

/* Which characters stand next to each other inside some piece, by hash: a clear bit says that no
 * merge can ever join the two, so that a text falls into short independent parts there. */
struct moge_joins {
    uint64_t *bits;  /* [n_bits / 64] */
    uint32_t n_bits; /* a power of two */
};

struct moge_tokenizer {
    struct moge_piece *pieces; /* [n_vocab] */
    int32_t n_vocab;
    char *bytes;                    /* the text of all pieces */
    struct moge_piece_map merges;   /* normal, user-defined, unused: what merging may make */
    struct moge_piece_set users;    /* user-defined: found in text before anything else */
    struct moge_piece_set specials; /* user-defined and control */
    struct moge_joins joins;
    int32_t n_splits; /* unused pieces that merging can make */
    uint32_t shown_len_max;
    int32_t byte_ids[256]; /* all -1: no byte fallback */
    int32_t bos, eos, unknown;
    bool add_bos, add_space_prefix, remove_extra_spaces;
};

/* Builds the maps of a tokenizer whose pieces are loaded: 0 or MOGE_NOMEM. */
int moge_tokenizer_index(struct moge_tokenizer *tok);
void moge_tokenizer_index_free(struct moge_tokenizer *tok);

/* Id of text[0..len) among what merging may make, or -1. */
int32_t moge_piece_find(const struct moge_tokenizer *tok, const char *text, size_t len);

/* Id of the longest piece of the set that the text begins with, or -1; of two alike the lowest. */
int32_t moge_piece_longest(const struct moge_tokenizer *tok, const struct moge_piece_set *set,
                           const char *text, size_t len);

/* False: no piece holds these two characters side by side. */
bool moge_joins_possible(const struct moge_joins *joins, const char *left, int left_len,
                         const char *right, int right_len);

/* Bytes of the well-formed UTF-8 character at text (Unicode 15, table 3-7), or 0 if there is none.
 * len is at least 1. */
int moge_utf8_len(const unsigned char *text, size_t len);
bool moge_text_is_utf8(const char *text, size_t len);

#endif
