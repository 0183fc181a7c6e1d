/* SPDX-License-Identifier: Apache-2.0 */
/* What a tokenizer holds.  Shared by tokenizer.c (from metadata), encode.c (text to ids), detok.c
 * (back). */
#ifndef MOGE_TOKENIZER_STATE_H
#define MOGE_TOKENIZER_STATE_H

#include "moge/tokenizer.h"

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
};

/* Text to id, open addressing. */
struct moge_piece_map {
    int32_t *ids;     /* [n_cells] or -1 */
    uint32_t n_cells; /* a power of two */
};

struct moge_tokenizer {
    struct moge_piece *pieces; /* [n_vocab] */
    int32_t n_vocab;
    char *bytes; /* the text of all pieces */
    struct moge_piece_map
        merges;                  /* normal, user-defined and unused pieces: what merging may make */
    struct moge_piece_map users; /* user-defined pieces, found in text before anything else */
    struct moge_piece_map controls;
    uint32_t user_len_max, control_len_max, piece_len_max;
    int32_t byte_ids[256]; /* -1: no byte fallback */
    int32_t bos, eos, unknown;
    bool add_bos, add_space_prefix, remove_extra_spaces;
};

/* Id of text[0..len) in the map, or -1. */
int32_t moge_piece_find(const struct moge_tokenizer *tok, const struct moge_piece_map *map,
                        const char *text, size_t len);

/* Bytes of the well-formed UTF-8 character at text (Unicode 15, table 3-7), or 0 if there is none.
 */
int moge_utf8_len(const unsigned char *text, size_t len);

#endif
