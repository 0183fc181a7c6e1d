/* SPDX-License-Identifier: Apache-2.0 */
/* SentencePiece-BPE tokenizer from GGUF metadata (tokenizer.ggml.*): greedy merges by score, byte
 * fallback, special tokens split off first.  Immutable after open: any number of threads may use
 * one at once. */
#ifndef MOGE_TOKENIZER_H
#define MOGE_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "moge/err.h"

struct moge_gguf; /* moge/gguf.h */
struct moge_tokenizer;

/* Builds the tokenizer of an open GGUF file; copies what it needs. */
int moge_tokenizer_open(struct moge_tokenizer **out, const struct moge_gguf *gguf,
                        struct moge_err *err);
void moge_tokenizer_close(struct moge_tokenizer *tok);

int32_t moge_tokenizer_n_vocab(const struct moge_tokenizer *tok);
int32_t moge_tokenizer_bos(const struct moge_tokenizer *tok);  /* -1: none */
int32_t moge_tokenizer_eos(const struct moge_tokenizer *tok);  /* -1: none */
bool moge_tokenizer_add_bos(const struct moge_tokenizer *tok); /* the model expects a leading BOS */

enum moge_tokenize_flags {
    MOGE_TOKENIZE_BOS = 1,     /* prepend BOS if the model expects one */
    MOGE_TOKENIZE_SPECIAL = 2, /* control and user-defined tokens in the text become their ids */
};

/* Encodes len bytes of UTF-8 (NULs are ordinary bytes).  Writes at most cap ids and returns how
 * many, or MOGE_LIMIT when more than cap are needed, MOGE_INVALID when the text is not UTF-8,
 * MOGE_NOMEM. O(len log len). */
int moge_tokenizer_encode(const struct moge_tokenizer *tok, const char *text, size_t len, int flags,
                          int32_t *ids, int cap);

/* The bytes a token stands for when it is not the first of the text (a leading space is kept);
 * control tokens give zero bytes.  Borrowed, NOT zero-terminated; *len bytes. */
const char *moge_tokenizer_piece(const struct moge_tokenizer *tok, int32_t id, size_t *len);

/* Streaming detokenizer: turns ids into text that always ends at a character boundary. */
struct moge_detok {
    const struct moge_tokenizer *tok;
    bool started;      /* the first piece loses the leading space that encoding added */
    uint8_t n_pending; /* bytes of an unfinished UTF-8 character */
    unsigned char pending[4];
};

/* Longest output of one push, in bytes, for this tokenizer (longest piece plus pending). */
size_t moge_tokenizer_push_max(const struct moge_tokenizer *tok);

/* `continues`: the text follows other text (a completion after a prompt), so a leading space is
 * real. */
void moge_detok_init(struct moge_detok *detok, const struct moge_tokenizer *tok, bool continues);

/* Appends one token; writes the bytes that are now complete (possibly 0) to out and returns their
 * number. An invalid byte sequence becomes U+FFFD.  out has room for moge_tokenizer_push_max bytes.
 */
size_t moge_detok_push(struct moge_detok *detok, int32_t id, char *out);

/* End of stream: flushes an unfinished character as U+FFFD (at most 3 bytes). */
size_t moge_detok_finish(struct moge_detok *detok, char *out);

/* 0 when both map the same text to the same ids and ids to the same bytes; else MOGE_INVALID and
 * err names the first difference (id and both pieces).  A draft must pass this against its target.
 */
int moge_tokenizer_compare(const struct moge_tokenizer *a, const struct moge_tokenizer *b,
                           struct moge_err *err);

#endif
