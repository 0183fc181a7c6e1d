/* SPDX-License-Identifier: Apache-2.0 */
/* Arbitrary bytes as text, as ids, and as the file a tokenizer is opened from.  The first byte
 * chooses.  Text is refused exactly when it is not UTF-8, and comes back as it was; ids of any
 * order stream as valid UTF-8; a hostile vocabulary is refused with a sentence or works. */
#include <stdlib.h>
#include <string.h>

#include "moge/gguf.h"
#include "moge/tokenizer.h"

#define MARK "\xe2\x96\x81" /* U+2581, which SentencePiece takes for a space */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Decodes and compares ranges, unlike the tokenizer, which goes by lead bytes. */
static bool is_utf8(const uint8_t *text, size_t len) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    for (size_t i = 0; i < len;) {
        uint32_t c = text[i], n = 1;
        if (c >= 0x80) {
            n = (c & 0xe0) == 0xc0 ? 2 : (c & 0xf0) == 0xe0 ? 3 : (c & 0xf8) == 0xf0 ? 4 : 0;
            if (n == 0 || i + n > len)
                return false;
            c &= 0x7fu >> n;
            for (uint32_t j = 1; j < n; j++) {
                if ((text[i + j] & 0xc0) != 0x80)
                    return false;
                c = c << 6 | (text[i + j] & 0x3f);
            }
            if (c < least[n] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
                return false;
        }
        i += n;
    }
    return true;
}

/* All pushes after each other; each is checked by itself. */
static size_t decode(const struct moge_tokenizer *tok, const int32_t *ids, int n, char *out) {
    struct moge_detok detok;
    size_t len = 0;
    moge_detok_init(&detok, tok, false);
    for (int i = 0; i <= n; i++) {
        size_t got = i < n ? moge_detok_push(&detok, ids[i], out + len)
                           : moge_detok_finish(&detok, out + len);
        MOGE_ASSERT(got <= (i < n ? moge_tokenizer_push_max(tok) : 3));
        MOGE_ASSERT(is_utf8((const uint8_t *)out + len, got));
        len += got;
    }
    return len;
}

static void *take(size_t n) {
    void *memory = malloc(n ? n : 1);
    if (!memory)
        abort();
    return memory;
}

/* Encodes both ways; when the vocabulary is sound, what comes back must be what went in. */
static void text(const struct moge_tokenizer *tok, const uint8_t *data, size_t size, bool sound) {
    int cap = (int)(3 * size + 4);
    int32_t *ids = take((size_t)cap * sizeof *ids);
    for (int flags = 3; flags >= 0; flags--) {
        int n = moge_tokenizer_encode(tok, (const char *)data, size, flags, ids, cap);
        MOGE_ASSERT(n == MOGE_INVALID || (n >= 0 && n <= cap));
        MOGE_ASSERT((n == MOGE_INVALID) == !is_utf8(data, size));
        for (int i = 0; i < n; i++)
            MOGE_ASSERT(ids[i] >= 0 && ids[i] < moge_tokenizer_n_vocab(tok));
        if (n < 0)
            break;
        char *out = take((size_t)(n + 1) * moge_tokenizer_push_max(tok));
        size_t len = decode(tok, ids, n, out), at = 0;
        for (size_t i = 0; sound && flags == 0 && i < size; at++) {
            bool mark = size - i >= 3 && memcmp(data + i, MARK, 3) == 0;
            MOGE_ASSERT(at < len && out[at] == (mark ? ' ' : (char)data[i]));
            i += mark ? 3 : 1;
        }
        MOGE_ASSERT(!sound || flags != 0 || at == len);
        free(out);
    }
    free(ids);
}

static void any_ids(const struct moge_tokenizer *tok, const uint8_t *data, size_t size) {
    int n = (int)(size / 2);
    int32_t *ids = take((size_t)n * sizeof *ids);
    for (int i = 0; i < n; i++)
        ids[i] = (data[2 * i] | data[2 * i + 1] << 8) % moge_tokenizer_n_vocab(tok);
    char *out = take((size_t)(n + 1) * moge_tokenizer_push_max(tok));
    decode(tok, ids, n, out);
    free(out);
    free(ids);
}

static void hostile_file(const uint8_t *data, size_t size) {
    static const char sample[] = "a <s>b\xc3\xa9  c\n" MARK "\xf0\x9f\x98\x80 ab";
    struct moge_gguf *gguf = NULL;
    struct moge_tokenizer *tok = NULL;
    struct moge_err err = {0};
    if (moge_gguf_parse(&gguf, data, size, &err) != 0)
        return;
    if (moge_tokenizer_open(&tok, gguf, &err) != 0) {
        MOGE_ASSERT(err.text[0] != '\0');
    } else {
        text(tok, (const uint8_t *)sample, sizeof sample - 1, false);
        any_ids(tok, data, size < 64 ? size : 64);
        MOGE_ASSERT(moge_tokenizer_compare(tok, tok, &err) == 0);
    }
    moge_tokenizer_close(tok);
    moge_gguf_close(gguf);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct moge_tokenizer *tok;
    struct moge_err err = {0};
    if (!tok) {
        struct moge_gguf *gguf = NULL;
        if (moge_gguf_open(&gguf, MOGE_SOURCE_DIR "/tests/golden/tiny-target.gguf", &err) != 0 ||
            moge_tokenizer_open(&tok, gguf, &err) != 0)
            moge_assert_failed(err.text, __FILE__, __LINE__);
        moge_gguf_close(gguf);
    }
    if (size == 0)
        return 0;
    if (data[0] == 'G') /* "GGUF" */
        hostile_file(data, size);
    else if (data[0] == '#')
        any_ids(tok, data + 1, size - 1);
    else
        text(tok, data + 1, size - 1, true);
    return 0;
}
