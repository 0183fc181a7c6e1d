/* SPDX-License-Identifier: Apache-2.0 */
/* A tokenizer from GGUF metadata: everything is checked, copied and indexed here. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer_state.h"
#include "moge/gguf.h"

#define PIECE_LEN_MAX 1024 /* bytes; matching looks no further ahead */
#define N_VOCAB_MAX   (1 << 24)
#define QUOTED_MAX    72

/* Text for a sentence: what is not printable or not UTF-8 as \xHH, cut when it is long. */
static const char *quote(char quoted[QUOTED_MAX], const char *text, size_t len) {
    size_t n = 0;
    for (size_t at = 0; at < len;) {
        const unsigned char *c = (const unsigned char *)text + at;
        int n_bytes = moge_utf8_len(c, len - at);
        if (n > QUOTED_MAX - 8) {
            memcpy(quoted + n, "...", 3);
            n += 3;
            break;
        }
        if (n_bytes == 0 || *c < 0x20 || *c == 0x7f || *c == '"' || *c == '\\') {
            n += (size_t)snprintf(quoted + n, 5, "\\x%02X", *c);
            at++;
        } else {
            memcpy(quoted + n, c, (size_t)n_bytes);
            n += (size_t)n_bytes;
            at += (size_t)n_bytes;
        }
    }
    quoted[n] = 0;
    return quoted;
}

/* ---- from metadata ---- */

struct arrays { /* the three arrays that describe the vocabulary */
    const struct moge_gguf_value *tokens, *scores, *types;
};

static int array_find(const struct moge_gguf *gguf, const char *key, enum moge_gguf_kind kind,
                      uint64_t n, const struct moge_gguf_value **out, struct moge_err *err) {
    const struct moge_gguf_value *value = moge_gguf_find(gguf, key);
    if (!value)
        return moge_fail(err, MOGE_FORMAT, "the file lacks metadata key %s", key);
    if (value->kind != MOGE_GGUF_ARRAY || value->item_kind != kind)
        return moge_fail(err, MOGE_FORMAT, "metadata key %s is not an array of the right kind",
                         key);
    if (n != 0 && value->n_items != n)
        return moge_fail(err, MOGE_FORMAT, "%s has %llu entries; the vocabulary has %llu", key,
                         (unsigned long long)value->n_items, (unsigned long long)n);
    *out = value;
    return 0;
}

static int arrays_find(const struct moge_gguf *gguf, struct arrays *arrays, struct moge_err *err) {
    int rc = array_find(gguf, "tokenizer.ggml.tokens", MOGE_GGUF_STRING, 0, &arrays->tokens, err);
    if (rc != 0)
        return rc;
    uint64_t n = arrays->tokens->n_items;
    if (n < 1 || n > N_VOCAB_MAX)
        return moge_fail(err, MOGE_FORMAT,
                         "tokenizer.ggml.tokens has %llu tokens; it must be 1..%d",
                         (unsigned long long)n, N_VOCAB_MAX);
    rc = array_find(gguf, "tokenizer.ggml.scores", MOGE_GGUF_F32, n, &arrays->scores, err);
    if (rc == 0)
        rc = array_find(gguf, "tokenizer.ggml.token_type", MOGE_GGUF_I32, n, &arrays->types, err);
    return rc;
}

/* "<0x41>" is byte 0x41; -1 if the text is not of that form. */
static int byte_value(const char *text, size_t len) {
    static const char digits[] = "0123456789ABCDEF";
    if (len != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>')
        return -1;
    const char *high = memchr(digits, text[3], 16), *low = memchr(digits, text[4], 16);
    return high && low ? (int)(16 * (high - digits) + (low - digits)) : -1;
}

/* The first token that spells a byte counts. */
static int byte_load(struct moge_tokenizer *tok, int32_t id, char *shown, struct moge_err *err) {
    struct moge_piece *piece = &tok->pieces[id];
    char quoted[QUOTED_MAX];
    int value = byte_value(piece->text, piece->len);
    if (value < 0)
        return moge_fail(err, MOGE_FORMAT, "token %d is a byte token but is spelled \"%s\"", id,
                         quote(quoted, piece->text, piece->len));
    if (tok->byte_ids[value] < 0)
        tok->byte_ids[value] = id;
    shown[0] = (char)value;
    piece->shown_len = 1;
    return 0;
}

/* What a piece shows: U+2581 becomes a space, a byte piece its byte, a control piece nothing. */
static int piece_show(struct moge_tokenizer *tok, int32_t id, char *shown, struct moge_err *err) {
    struct moge_piece *piece = &tok->pieces[id];
    piece->shown = shown;
    if (piece->type == MOGE_PIECE_BYTE)
        return byte_load(tok, id, shown, err);
    if (piece->type == MOGE_PIECE_UNKNOWN) {
        piece->shown = " \xe2\x81\x87 "; /* as SentencePiece shows it */
        piece->shown_len = 5;
    } else if (piece->type != MOGE_PIECE_CONTROL) {
        uint32_t n = 0;
        for (uint32_t i = 0; i < piece->len;) {
            bool space = piece->len - i >= 3 && memcmp(piece->text + i, MOGE_SPACE_MARK, 3) == 0;
            shown[n++] = space ? ' ' : piece->text[i];
            i += space ? 3 : 1;
        }
        piece->shown_len = n;
    }
    return 0;
}

static int piece_load(struct moge_tokenizer *tok, int32_t id, struct moge_str text, float score,
                      int32_t type, char **bytes, struct moge_err *err) {
    struct moge_piece *piece = &tok->pieces[id];
    if (type < MOGE_PIECE_NORMAL || type > MOGE_PIECE_BYTE)
        return moge_fail(err, MOGE_FORMAT, "token %d has type %d, which does not exist", id, type);
    if (text.len > PIECE_LEN_MAX)
        return moge_fail(err, MOGE_FORMAT, "token %d is %zu bytes long; at most %d are possible",
                         id, text.len, PIECE_LEN_MAX);
    if (!moge_text_is_utf8(text.data, text.len))
        return moge_fail(err, MOGE_FORMAT, "token %d is not valid UTF-8", id);
    if (score != score)
        return moge_fail(err, MOGE_FORMAT, "the score of token %d is not a number", id);
    memcpy(*bytes, text.data, text.len);
    *piece = (struct moge_piece){
        .text = *bytes, .len = (uint32_t)text.len, .score = score, .type = (uint8_t)type};
    int rc = piece_show(tok, id, *bytes + text.len, err);
    *bytes += 2 * text.len;
    if (piece->shown_len > tok->shown_len_max)
        tok->shown_len_max = piece->shown_len;
    return rc;
}

static int pieces_load(struct moge_tokenizer *tok, const struct arrays *arrays,
                       struct moge_err *err) {
    size_t n_bytes = 1;
    const unsigned char *at = arrays->tokens->data;
    for (int32_t id = 0; id < tok->n_vocab; id++)
        n_bytes += 2 * moge_gguf_next_str(&at).len; /* at most twice the file's size */
    tok->pieces = calloc((size_t)tok->n_vocab, sizeof *tok->pieces);
    tok->bytes = malloc(n_bytes);
    if (!tok->pieces || !tok->bytes)
        return moge_fail(err, MOGE_NOMEM, "no memory for a vocabulary of %d tokens", tok->n_vocab);
    char *bytes = tok->bytes;
    at = arrays->tokens->data;
    int rc = 0;
    for (int32_t id = 0; id < tok->n_vocab && rc == 0; id++) {
        float score;
        int32_t type;
        memcpy(&score, arrays->scores->data + 4 * (size_t)id, sizeof score);
        memcpy(&type, arrays->types->data + 4 * (size_t)id, sizeof type);
        rc = piece_load(tok, id, moge_gguf_next_str(&at), score, type, &bytes, err);
    }
    return rc;
}

/* An optional key: what it says, or the default. */
static int optional_id(const struct moge_gguf *gguf, const char *key, int32_t n_vocab, int32_t *out,
                       struct moge_err *err) {
    int64_t id = -1;
    *out = -1;
    if (!moge_gguf_find(gguf, key))
        return 0;
    int rc = moge_gguf_get_int(gguf, key, 0, n_vocab - 1, &id, err);
    *out = (int32_t)id;
    return rc;
}

static int optional_bool(const struct moge_gguf *gguf, const char *key, bool otherwise, bool *out,
                         struct moge_err *err) {
    *out = otherwise;
    return moge_gguf_find(gguf, key) ? moge_gguf_get_bool(gguf, key, out, err) : 0;
}

static int settings_load(struct moge_tokenizer *tok, const struct moge_gguf *gguf,
                         struct moge_err *err) {
    struct moge_str model;
    int rc = moge_gguf_get_str(gguf, "tokenizer.ggml.model", &model, err);
    if (rc != 0)
        return rc;
    char quoted[QUOTED_MAX];
    if (model.len != 5 || memcmp(model.data, "llama", 5) != 0)
        return moge_fail(err, MOGE_FORMAT,
                         "tokenizer.ggml.model is \"%s\"; only \"llama\" (SentencePiece BPE) is "
                         "supported",
                         quote(quoted, model.data, model.len));
    int32_t n = tok->n_vocab;
    if ((rc = optional_id(gguf, "tokenizer.ggml.bos_token_id", n, &tok->bos, err)) != 0 ||
        (rc = optional_id(gguf, "tokenizer.ggml.eos_token_id", n, &tok->eos, err)) != 0 ||
        (rc = optional_id(gguf, "tokenizer.ggml.unknown_token_id", n, &tok->unknown, err)) != 0 ||
        (rc = optional_bool(gguf, "tokenizer.ggml.add_bos_token", true, &tok->add_bos, err)) != 0 ||
        (rc = optional_bool(gguf, "tokenizer.ggml.add_space_prefix", true, &tok->add_space_prefix,
                            err)) != 0)
        return rc;
    return optional_bool(gguf, "tokenizer.ggml.remove_extra_whitespaces", false,
                         &tok->remove_extra_spaces, err);
}

/* Bytes have all their tokens or none; without them, a token must stand for what is unknown. */
static int fallback_check(struct moge_tokenizer *tok, struct moge_err *err) {
    for (int32_t id = 0; id < tok->n_vocab && tok->unknown < 0; id++)
        if (tok->pieces[id].type == MOGE_PIECE_UNKNOWN)
            tok->unknown = id;
    int n_bytes = 0, missing = 0;
    for (int b = 255; b >= 0; b--) {
        n_bytes += tok->byte_ids[b] >= 0;
        missing = tok->byte_ids[b] >= 0 ? missing : b;
    }
    if (n_bytes != 0 && n_bytes != 256)
        return moge_fail(err, MOGE_FORMAT,
                         "the vocabulary has byte tokens, but none for byte 0x%02X",
                         (unsigned)missing);
    if (n_bytes == 0 && tok->unknown < 0)
        return moge_fail(err, MOGE_FORMAT,
                         "the vocabulary has neither byte tokens nor an unknown token");
    return 0;
}

int moge_tokenizer_open(struct moge_tokenizer **out, const struct moge_gguf *gguf,
                        struct moge_err *err) {
    struct arrays arrays;
    int rc = arrays_find(gguf, &arrays, err);
    if (rc != 0)
        return rc;
    struct moge_tokenizer *tok = calloc(1, sizeof *tok);
    if (!tok)
        return moge_fail(err, MOGE_NOMEM, "no memory for a tokenizer");
    memset(tok->byte_ids, 0xff, sizeof tok->byte_ids);
    tok->n_vocab = (int32_t)arrays.tokens->n_items;
    if ((rc = settings_load(tok, gguf, err)) != 0 || (rc = pieces_load(tok, &arrays, err)) != 0 ||
        (rc = fallback_check(tok, err)) != 0)
        goto fail;
    if ((rc = moge_tokenizer_index(tok)) != 0) {
        moge_fail(err, rc, "no memory for a vocabulary of %d tokens", tok->n_vocab);
        goto fail;
    }
    *out = tok;
    return 0;
fail:
    moge_tokenizer_close(tok);
    return rc;
}

void moge_tokenizer_close(struct moge_tokenizer *tok) {
    if (!tok)
        return;
    moge_tokenizer_index_free(tok);
    free(tok->pieces);
    free(tok->bytes);
    free(tok);
}

int32_t moge_tokenizer_n_vocab(const struct moge_tokenizer *tok) {
    return tok->n_vocab;
}

int32_t moge_tokenizer_bos(const struct moge_tokenizer *tok) {
    return tok->bos;
}

int32_t moge_tokenizer_eos(const struct moge_tokenizer *tok) {
    return tok->eos;
}

bool moge_tokenizer_add_bos(const struct moge_tokenizer *tok) {
    return tok->add_bos && tok->bos >= 0;
}

const char *moge_tokenizer_piece(const struct moge_tokenizer *tok, int32_t id, size_t *len) {
    MOGE_ASSERT(id >= 0 && id < tok->n_vocab);
    *len = tok->pieces[id].shown_len;
    return tok->pieces[id].shown;
}

/* ---- are two vocabularies the same? ---- */

static int piece_compare(const struct moge_tokenizer *a, const struct moge_tokenizer *b, int32_t id,
                         struct moge_err *err) {
    const struct moge_piece *x = &a->pieces[id], *y = &b->pieces[id];
    char quoted[QUOTED_MAX], other[QUOTED_MAX];
    quote(quoted, x->text, x->len);
    if (x->len != y->len || memcmp(x->text, y->text, x->len) != 0)
        return moge_fail(err, MOGE_INVALID,
                         "token %d is \"%s\" in one vocabulary and \"%s\" in the other", id, quoted,
                         quote(other, y->text, y->len));
    if (x->type != y->type)
        return moge_fail(err, MOGE_INVALID,
                         "token %d (\"%s\") has type %d in one vocabulary and %d in the other", id,
                         quoted, x->type, y->type);
    if (x->score != y->score)
        return moge_fail(err, MOGE_INVALID,
                         "token %d (\"%s\") has score %g in one vocabulary and %g in the other", id,
                         quoted, (double)x->score, (double)y->score);
    return 0;
}

static int settings_compare(const struct moge_tokenizer *a, const struct moge_tokenizer *b,
                            struct moge_err *err) {
    const struct {
        const char *name;
        int32_t a, b;
    } settings[] = {
        {"the BOS token", a->bos, b->bos},
        {"the EOS token", a->eos, b->eos},
        {"the unknown token", a->unknown, b->unknown},
        {"add_bos_token", a->add_bos, b->add_bos},
        {"add_space_prefix", a->add_space_prefix, b->add_space_prefix},
        {"remove_extra_whitespaces", a->remove_extra_spaces, b->remove_extra_spaces},
    };
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++)
        if (settings[i].a != settings[i].b)
            return moge_fail(err, MOGE_INVALID, "%s is %d in one tokenizer and %d in the other",
                             settings[i].name, settings[i].a, settings[i].b);
    return 0;
}

/* A token that no text can become: unused, not a single character, and not made by merging. */
static bool is_padding(const struct moge_piece *piece) {
    if (piece->type != MOGE_PIECE_UNUSED || piece->split >= 0)
        return false;
    return piece->len == 0 ||
           (uint32_t)moge_utf8_len((const unsigned char *)piece->text, piece->len) < piece->len;
}

int moge_tokenizer_compare(const struct moge_tokenizer *a, const struct moge_tokenizer *b,
                           struct moge_err *err) {
    int32_t n = a->n_vocab < b->n_vocab ? a->n_vocab : b->n_vocab;
    for (int32_t id = 0; id < n; id++) {
        int rc = piece_compare(a, b, id, err);
        if (rc != 0)
            return rc;
    }
    /* Vocabularies are often padded to a round number, which does no harm. */
    const struct moge_tokenizer *longer = a->n_vocab > b->n_vocab ? a : b;
    char quoted[QUOTED_MAX];
    for (int32_t id = n; id < longer->n_vocab; id++) {
        const struct moge_piece *piece = &longer->pieces[id];
        if (!is_padding(piece))
            return moge_fail(err, MOGE_INVALID,
                             "one vocabulary has %d tokens and the other %d: token %d (\"%s\") is "
                             "in one only",
                             a->n_vocab, b->n_vocab, id, quote(quoted, piece->text, piece->len));
    }
    return settings_compare(a, b, err);
}
