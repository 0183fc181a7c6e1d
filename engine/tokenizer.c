/* SPDX-License-Identifier: Apache-2.0 */
/* A tokenizer from GGUF metadata: everything is checked, copied and indexed here. */
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer_state.h"
#include "moge/gguf.h"

#define PIECE_LEN_MAX 65535
#define SPACE_MARK    "\xe2\x96\x81" /* U+2581 */

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

static bool is_utf8(const char *text, size_t len) {
    for (size_t at = 0; at < len;) {
        int n = moge_utf8_len((const unsigned char *)text + at, len - at);
        if (n == 0)
            return false;
        at += (size_t)n;
    }
    return true;
}

/* ---- maps ---- */

static uint32_t hash_of(const char *text, size_t len) { /* FNV-1a */
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < len; i++)
        h = (h ^ (unsigned char)text[i]) * 16777619u;
    return h ^ h >> 15;
}

int32_t moge_piece_find(const struct moge_tokenizer *tok, const struct moge_piece_map *map,
                        const char *text, size_t len) {
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

static bool in_map(const struct moge_piece *piece, unsigned types) {
    return piece->len > 0 && (types >> piece->type & 1);
}

/* Indexes the pieces whose type is in the set; of two alike the first counts.  *len_max: the
 * longest. */
static int map_build(struct moge_tokenizer *tok, struct moge_piece_map *map, unsigned types,
                     uint32_t *len_max) {
    uint32_t n = 0;
    for (int32_t id = 0; id < tok->n_vocab; id++)
        n += in_map(&tok->pieces[id], types);
    if (n == 0)
        return 0;
    map->n_cells = 4;
    while (map->n_cells < 2 * n)
        map->n_cells *= 2;
    map->ids = malloc(map->n_cells * sizeof *map->ids);
    if (!map->ids)
        return MOGE_NOMEM;
    memset(map->ids, 0xff, map->n_cells * sizeof *map->ids);
    for (int32_t id = 0; id < tok->n_vocab; id++) {
        const struct moge_piece *piece = &tok->pieces[id];
        if (!in_map(piece, types) || moge_piece_find(tok, map, piece->text, piece->len) >= 0)
            continue;
        uint32_t i = hash_of(piece->text, piece->len);
        while (map->ids[i & (map->n_cells - 1)] >= 0)
            i++;
        map->ids[i & (map->n_cells - 1)] = id;
        if (piece->len > *len_max)
            *len_max = piece->len;
    }
    return 0;
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
    if (n < 1 || n > 1 << 24)
        return moge_fail(err, MOGE_FORMAT, "a vocabulary of %llu tokens is not possible",
                         (unsigned long long)n);
    rc = array_find(gguf, "tokenizer.ggml.scores", MOGE_GGUF_F32, n, &arrays->scores, err);
    if (rc == 0)
        rc = array_find(gguf, "tokenizer.ggml.token_type", MOGE_GGUF_I32, n, &arrays->types, err);
    return rc;
}

/* "<0x41>" is byte 0x41; -1 if the text is not of that form. */
static int byte_value(const char *text, size_t len) {
    unsigned value;
    char spelled[8];
    if (len != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>')
        return -1;
    memcpy(spelled, text + 3, 2);
    spelled[2] = 0;
    if (strspn(spelled, "0123456789ABCDEFabcdef") != 2)
        return -1;
    value = (unsigned)strtoul(spelled, NULL, 16);
    return (int)value;
}

/* What a piece shows: U+2581 becomes a space, a byte piece its byte, a control piece nothing. */
static int piece_show(struct moge_tokenizer *tok, int32_t id, char *shown, struct moge_err *err) {
    struct moge_piece *piece = &tok->pieces[id];
    piece->shown = shown;
    if (piece->type == MOGE_PIECE_BYTE) {
        int value = byte_value(piece->text, piece->len);
        if (value < 0)
            return moge_fail(err, MOGE_FORMAT, "token %d is a byte token but is spelled %.*s", id,
                             (int)piece->len, piece->text);
        tok->byte_ids[value] = id;
        shown[0] = (char)value;
        piece->shown_len = 1;
    } else if (piece->type == MOGE_PIECE_UNKNOWN) {
        piece->shown = " \xe2\x81\x87 "; /* as SentencePiece shows it */
        piece->shown_len = 5;
    } else if (piece->type != MOGE_PIECE_CONTROL) {
        uint32_t n = 0;
        for (uint32_t i = 0; i < piece->len;) {
            bool space = piece->len - i >= 3 && memcmp(piece->text + i, SPACE_MARK, 3) == 0;
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
    if (!is_utf8(text.data, text.len))
        return moge_fail(err, MOGE_FORMAT, "token %d is not valid UTF-8", id);
    if (score != score)
        return moge_fail(err, MOGE_FORMAT, "the score of token %d is not a number", id);
    memcpy(*bytes, text.data, text.len);
    *piece = (struct moge_piece){
        .text = *bytes, .len = (uint32_t)text.len, .score = score, .type = (uint8_t)type};
    int rc = piece_show(tok, id, *bytes + text.len, err);
    *bytes += 2 * text.len;
    if (piece->shown_len > tok->piece_len_max)
        tok->piece_len_max = piece->shown_len;
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
    if (model.len != 5 || memcmp(model.data, "llama", 5) != 0)
        return moge_fail(
            err, MOGE_FORMAT,
            "tokenizer.ggml.model is %.*s; only llama (SentencePiece BPE) is supported",
            (int)(model.len < 40 ? model.len : 40), model.data);
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

/* Every byte must have a token, or some text could not be encoded at all. */
static int fallback_check(struct moge_tokenizer *tok, struct moge_err *err) {
    for (int b = 0; b < 256; b++)
        if (tok->byte_ids[b] < 0 && tok->unknown < 0)
            return moge_fail(
                err, MOGE_FORMAT,
                "the vocabulary has neither a token for byte 0x%02X nor an unknown token", b);
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
    uint32_t ignored = 0;
    unsigned mergeable = 1u << MOGE_PIECE_NORMAL | 1u << MOGE_PIECE_USER | 1u << MOGE_PIECE_UNUSED;
    if (map_build(tok, &tok->merges, mergeable, &ignored) != 0 ||
        map_build(tok, &tok->users, 1u << MOGE_PIECE_USER, &tok->user_len_max) != 0 ||
        map_build(tok, &tok->controls, 1u << MOGE_PIECE_CONTROL, &tok->control_len_max) != 0) {
        rc = moge_fail(err, MOGE_NOMEM, "no memory for a vocabulary of %d tokens", tok->n_vocab);
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
    free(tok->merges.ids);
    free(tok->users.ids);
    free(tok->controls.ids);
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

static int piece_compare(const struct moge_tokenizer *a, const struct moge_tokenizer *b, int32_t id,
                         struct moge_err *err) {
    const struct moge_piece *x = &a->pieces[id], *y = &b->pieces[id];
    if (x->len != y->len || memcmp(x->text, y->text, x->len) != 0)
        return moge_fail(err, MOGE_INVALID,
                         "token %d is \"%.*s\" in one vocabulary and \"%.*s\" in the other", id,
                         (int)(x->len < 40 ? x->len : 40), x->text,
                         (int)(y->len < 40 ? y->len : 40), y->text);
    if (x->type != y->type)
        return moge_fail(err, MOGE_INVALID,
                         "token %d (\"%.*s\") has type %d in one vocabulary and %d in the other",
                         id, (int)(x->len < 40 ? x->len : 40), x->text, x->type, y->type);
    if (memcmp(&x->score, &y->score, sizeof x->score) != 0)
        return moge_fail(err, MOGE_INVALID,
                         "token %d (\"%.*s\") has score %g in one vocabulary and %g in the other",
                         id, (int)(x->len < 40 ? x->len : 40), x->text, (double)x->score,
                         (double)y->score);
    return 0;
}

int moge_tokenizer_compare(const struct moge_tokenizer *a, const struct moge_tokenizer *b,
                           struct moge_err *err) {
    int32_t n = a->n_vocab < b->n_vocab ? a->n_vocab : b->n_vocab;
    for (int32_t id = 0; id < n; id++) {
        int rc = piece_compare(a, b, id, err);
        if (rc != 0)
            return rc;
    }
    /* Vocabularies are often padded to a round number: tokens that no text can become do no harm.
     */
    const struct moge_tokenizer *longer = a->n_vocab > b->n_vocab ? a : b;
    for (int32_t id = n; id < longer->n_vocab; id++)
        if (longer->pieces[id].type != MOGE_PIECE_UNUSED)
            return moge_fail(err, MOGE_INVALID, "one vocabulary has %d tokens and the other %d",
                             a->n_vocab, b->n_vocab);
    if (a->bos != b->bos || a->eos != b->eos)
        return moge_fail(err, MOGE_INVALID,
                         "BOS and EOS are %d and %d in one vocabulary, %d and %d in the other",
                         a->bos, a->eos, b->bos, b->eos);
    return 0;
}
