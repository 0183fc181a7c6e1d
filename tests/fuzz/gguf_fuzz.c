/* SPDX-License-Identifier: Apache-2.0 */
/* Arbitrary bytes as a GGUF file: it is refused with a sentence, or everything that the reader then
 * hands out lies inside the file.  What parses is offered to the tokenizer too. */
#include <stdlib.h>
#include <string.h>

#include "moge/gguf.h"
#include "moge/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Bytes are read through this, so that the compiler keeps the reads that the sanitizer checks. */
static volatile unsigned char sink;

static void inside(const uint8_t *data, size_t size, const void *at, size_t bytes) {
    const uint8_t *first = at;
    MOGE_ASSERT(first >= data && first <= data + size && bytes <= (size_t)(data + size - first));
    if (bytes > 0)
        sink = (unsigned char)(first[0] ^ first[bytes - 1]);
}

static void look_at_value(const uint8_t *data, size_t size, const struct moge_gguf *gguf,
                          const struct moge_gguf_value *value) {
    char key[256];
    int64_t n;
    double x;
    bool flag;
    struct moge_str text;
    const unsigned char *at = value->data;
    inside(data, size, value->key.data, value->key.len);
    if (value->item_kind == MOGE_GGUF_STRING)
        for (uint64_t i = 0; i < value->n_items; i++) {
            text = moge_gguf_next_str(&at);
            inside(data, size, text.data, text.len);
        }
    if (value->key.len >= sizeof key)
        return;
    memcpy(key, value->key.data, value->key.len);
    key[value->key.len] = '\0';
    MOGE_ASSERT(moge_gguf_find(gguf, key) == value);
    moge_gguf_get_int(gguf, key, INT64_MIN, INT64_MAX, &n, NULL);
    moge_gguf_get_float(gguf, key, &x, NULL);
    moge_gguf_get_bool(gguf, key, &flag, NULL);
    if (moge_gguf_get_str(gguf, key, &text, NULL) == 0)
        inside(data, size, text.data, text.len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct moge_gguf *gguf = NULL;
    struct moge_tokenizer *tok = NULL;
    struct moge_err err = {0};
    int rc = moge_gguf_parse(&gguf, data, size, &err);
    if (rc != 0) {
        MOGE_ASSERT(!gguf && err.code == rc && err.text[0] != '\0');
        return 0;
    }
    MOGE_ASSERT(moge_gguf_file_bytes(gguf) == size);
    for (uint64_t i = 0; i < moge_gguf_n_values(gguf); i++)
        look_at_value(data, size, gguf, moge_gguf_value_at(gguf, i));
    for (uint64_t i = 0; i < moge_gguf_n_tensors(gguf); i++) {
        const struct moge_gguf_tensor *tensor = moge_gguf_tensor_at(gguf, i);
        inside(data, size, tensor->name.data, tensor->name.len);
        inside(data, size, tensor->data, (size_t)tensor->bytes);
    }
    if (moge_tokenizer_open(&tok, gguf, &err) == 0) {
        int32_t ids[64];
        moge_tokenizer_encode(tok, "a b\nc\xc3\xa9", 7, MOGE_TOKENIZE_SPECIAL, ids, 64);
    }
    moge_tokenizer_close(tok);
    moge_gguf_close(gguf);
    return 0;
}
