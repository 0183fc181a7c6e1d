/* SPDX-License-Identifier: Apache-2.0 */
/* A vocabulary that is made up and yet behaves like one: SentencePiece BPE merges by score, so a
 * piece is reached only when its parts are pieces too.  Frequent letter pairs and words come first,
 * each word with all its beginnings; the rest are concatenations of what is there.  English text
 * comes out at about 3 characters a token. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tools/synth.h"

#define MARK          "\xe2\x96\x81" /* U+2581, which stands for a space */
#define PIECE_LEN_MAX 24
#define N_SPECIAL     7 /* <unk> <s> </s> and four chat marks */
#define N_BYTES       256
#define N_CHARS       95 /* printable ASCII, with the mark in place of the space */

enum { TYPE_NORMAL = 1, TYPE_UNKNOWN = 2, TYPE_CONTROL = 3, TYPE_USER = 4, TYPE_BYTE = 6 };

static const char *const pairs =
    "th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as ou io le ve "
    "co me de hi ri ro ic ne ea ra ce li ch ll be ma si om ur ing ion ent tion ly ment ness able "
    "ous ful ers est ity ive ate ted ter ther ght ould";

static const char *const words =
    "the of and to a in is it that for was on are as with be by this have from or one had not but "
    "what all were when we there can an your which their said if do will each about how up out "
    "them then she many some so these would other into has more her two like him see time could no "
    "make than first been its who now people my made over did down only way find use may water "
    "long little very after words called just where most know get through back much before go good "
    "new write our used me man too any day same right look think also around another came come "
    "work three word must because does part even place well such here take why things help put "
    "years different away again off went old number great tell men say small every found still "
    "between name should home big give air line set own under read last never us left end along "
    "while might next sound below saw something thought both few those always looked show large "
    "often together asked house world going want school important until form food keep children "
    "feet land side without boy once animals life enough took sometimes four head above kind began "
    "almost live page got earth need far hand high year mother light parts country father let "
    "night following picture being study second eyes soon times story boys since white days ever "
    "paper hard near sentence better best across during today others however sure means knew try "
    "told young miles sun ways thing whole hear example heard several change answer room sea "
    "against top turned learn point city play toward five using himself usually table column index "
    "query value data file database function return error memory page key row statement select "
    "insert update delete where order model token expert group layer server client request "
    "response stream system process thread";

struct vocabulary {
    struct moge_str *pieces; /* [n_max] */
    float *scores;           /* [n_max] */
    int32_t *types;          /* [n_max] */
    int32_t n, n_max, n_merged;
    char *texts;    /* [n_max, PIECE_LEN_MAX] */
    int32_t *cells; /* [n_cells] ids of normal pieces by hash, -1: free */
    uint32_t n_cells;
};

static uint32_t hash_of(const char *text, size_t len) { /* FNV-1a */
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < len; i++)
        h = (h ^ (unsigned char)text[i]) * 16777619u;
    return h ^ h >> 15;
}

static void add(struct vocabulary *v, const char *text, size_t len, float score, int32_t type) {
    char *copy = v->texts + (size_t)v->n * PIECE_LEN_MAX;
    memcpy(copy, text, len);
    v->pieces[v->n] = (struct moge_str){copy, len};
    v->scores[v->n] = score;
    v->types[v->n++] = type;
}

/* One more merged piece, unless it is there, too long, or the vocabulary is full. */
static void add_merged(struct vocabulary *v, const char *text, size_t len) {
    if (len > PIECE_LEN_MAX || v->n >= v->n_max - N_CHARS)
        return;
    uint32_t i = hash_of(text, len) & (v->n_cells - 1);
    for (; v->cells[i] >= 0; i = (i + 1) & (v->n_cells - 1)) {
        const struct moge_str *piece = &v->pieces[v->cells[i]];
        if (piece->len == len && memcmp(piece->data, text, len) == 0)
            return;
    }
    v->cells[i] = v->n;
    add(v, text, len, -(float)v->n_merged++, TYPE_NORMAL);
}

/* All beginnings of each word of a list that have at least two characters. */
static void add_beginnings(struct vocabulary *v, const char *list, const char *before) {
    size_t n_before = strlen(before);
    for (const char *word = list; *word;) {
        size_t len = strcspn(word, " ");
        char text[PIECE_LEN_MAX + 1];
        snprintf(text, sizeof text, "%s%.*s", before, (int)len, word);
        for (size_t n = n_before ? 1 : 2; n <= len; n++)
            add_merged(v, text, n_before + n);
        word += len + (word[len] == ' ');
    }
}

/* Concatenations of merged pieces, the second without a leading space, until all is full. */
static void add_concatenations(struct vocabulary *v, int32_t first) {
    uint64_t state = 1;
    while (v->n < v->n_max - N_CHARS) {
        char text[2 * PIECE_LEN_MAX];
        state = state * 6364136223846793005u + 1442695040888963407u;
        uint32_t n = (uint32_t)(v->n - first), a = (uint32_t)(state >> 33) % n;
        state = state * 6364136223846793005u + 1442695040888963407u;
        uint32_t b = (uint32_t)(state >> 33) % n;
        struct moge_str x = v->pieces[first + (int32_t)a], y = v->pieces[first + (int32_t)b];
        if (y.data[0] == MARK[0])
            continue;
        memcpy(text, x.data, x.len);
        memcpy(text + x.len, y.data, y.len);
        add_merged(v, text, x.len + y.len);
    }
}

static void fill(struct vocabulary *v) {
    static const char *const marks[] = {"[unused9]", "[unused10]", "[unused16]", "[unused17]"};
    add(v, "<unk>", 5, 0, TYPE_UNKNOWN);
    add(v, "<s>", 3, 0, TYPE_CONTROL);
    add(v, "</s>", 4, 0, TYPE_CONTROL);
    for (int b = 0; b < N_BYTES; b++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", (unsigned)b);
        add(v, text, 6, 0, TYPE_BYTE);
    }
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++)
        add(v, marks[i], strlen(marks[i]), 0, TYPE_USER);
    int32_t first = v->n;
    add_beginnings(v, pairs, "");
    add_beginnings(v, words, MARK);
    add_beginnings(v, words, "");
    add_concatenations(v, first);
    for (char c = ' '; c <= '~'; c++)
        add(v, c == ' ' ? MARK : &c, c == ' ' ? 3 : 1, -(float)v->n_merged++, TYPE_NORMAL);
}

static int vocabulary_init(struct vocabulary *v, int32_t n_vocab, struct moge_err *err) {
    size_t n = (size_t)n_vocab;
    *v = (struct vocabulary){.n_max = n_vocab, .n_cells = 1024};
    while (v->n_cells < 2 * n)
        v->n_cells *= 2;
    v->pieces = calloc(n, sizeof *v->pieces);
    v->scores = calloc(n, sizeof *v->scores);
    v->types = calloc(n, sizeof *v->types);
    v->texts = calloc(n, PIECE_LEN_MAX);
    v->cells = malloc(v->n_cells * sizeof *v->cells);
    if (!v->pieces || !v->scores || !v->types || !v->texts || !v->cells)
        return moge_fail(err, MOGE_NOMEM, "no memory for a vocabulary of %d", n_vocab);
    memset(v->cells, 0xff, v->n_cells * sizeof *v->cells);
    return 0;
}

int moge_synth_put_tokenizer(struct moge_gguf_writer *w, int32_t n_vocab, struct moge_err *err) {
    struct vocabulary v;
    if (n_vocab < MOGE_SYNTH_VOCAB_MIN)
        return moge_fail(err, MOGE_INVALID, "a vocabulary of %d is too small; %d is possible",
                         n_vocab, MOGE_SYNTH_VOCAB_MIN);
    int rc = vocabulary_init(&v, n_vocab, err);
    if (rc == 0) {
        fill(&v);
        moge_gguf_put_str(w, "tokenizer.ggml.model", "llama");
        moge_gguf_put_strs(w, "tokenizer.ggml.tokens", v.pieces, (uint64_t)v.n);
        moge_gguf_put_f32s(w, "tokenizer.ggml.scores", v.scores, (uint64_t)v.n);
        moge_gguf_put_i32s(w, "tokenizer.ggml.token_type", v.types, (uint64_t)v.n);
        moge_gguf_put_u32(w, "tokenizer.ggml.unknown_token_id", 0);
        moge_gguf_put_u32(w, "tokenizer.ggml.bos_token_id", 1);
        moge_gguf_put_u32(w, "tokenizer.ggml.eos_token_id", 2);
        moge_gguf_put_bool(w, "tokenizer.ggml.add_bos_token", true);
        moge_gguf_put_bool(w, "tokenizer.ggml.add_eos_token", false);
        moge_gguf_put_bool(w, "tokenizer.ggml.add_space_prefix", true);
    }
    free(v.pieces);
    free(v.scores);
    free(v.types);
    free(v.texts);
    free(v.cells);
    return rc;
}
