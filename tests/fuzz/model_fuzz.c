/* SPDX-License-Identifier: Apache-2.0 */
/* A real model file whose head is overwritten by arbitrary bytes: opening it fails with a sentence
 * or gives a model.  The input is a list of patches (offset, length, bytes) to a tiny model that is
 * made at the first call; most of them hit the metadata, where the lies are. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "moge/engine.h"
#include "tools/synth.h"

#define HEAD_BYTES 16384 /* metadata and tensor descriptions of the tiny model */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char path[64];
static unsigned char *plain;
static size_t plain_bytes;

static void path_remove(void) {
    unlink(path);
}

static void must(bool condition, const char *what) {
    if (!condition)
        moge_assert_failed(what, __FILE__, __LINE__);
}

static void plain_make(void) {
    struct moge_shape shape;
    struct moge_err err = {0};
    snprintf(path, sizeof path, "model_fuzz.%ld.gguf", (long)getpid());
    must(moge_shape_read(&shape, MOGE_SOURCE_DIR "/bench/shapes/tiny.ini", &err) == 0, err.text);
    must(moge_synth_write(&shape, MOGE_TYPE_Q8_0, 1, path, &err) == 0, err.text);
    FILE *file = fopen(path, "rb");
    must(file && fseek(file, 0, SEEK_END) == 0, "a model file");
    plain_bytes = (size_t)ftell(file);
    plain = malloc(plain_bytes);
    rewind(file);
    must(plain && fread(plain, 1, plain_bytes, file) == plain_bytes, "its bytes");
    fclose(file);
    atexit(path_remove);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct moge_model_options options = {0};
    struct moge_model *model = NULL;
    struct moge_err err = {0};
    if (!plain)
        plain_make();
    FILE *file = fopen(path, "r+b");
    must(file && fwrite(plain, 1, plain_bytes, file) == plain_bytes, "a file to patch");
    while (size >= 3) {
        size_t at = ((size_t)data[0] << 8 | data[1]) % HEAD_BYTES, n = data[2] % 16u;
        n = n < size - 3 ? n : size - 3;
        fseek(file, (long)at, SEEK_SET);
        fwrite(data + 3, 1, n, file);
        data += 3 + n;
        size -= 3 + n;
    }
    fclose(file);
    int rc = moge_model_open(&model, path, &options, &err);
    MOGE_ASSERT(rc == 0 ? model != NULL : (!model && err.code == rc && err.text[0] != '\0'));
    moge_model_close(model);
    return 0;
}
