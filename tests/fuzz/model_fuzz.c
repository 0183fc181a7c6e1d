/* SPDX-License-Identifier: Apache-2.0 */
/* A real model file whose head is overwritten by arbitrary bytes: opening it fails with a sentence
 * or gives a model.  The input is a list of patches (offset, length, bytes) to a tiny model that is
 * made at the first call; most of them hit the metadata, where the lies are.  Each input is tried
 * on a file of rows and on one of panels. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "moge/engine.h"
#include "tools/synth.h"

#define HEAD_BYTES 16384 /* metadata and tensor descriptions of the tiny model */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct original {
    enum moge_type type;
    char path[64];
    unsigned char *data;
    size_t bytes;
} originals[] = {{.type = MOGE_TYPE_Q8_0}, {.type = MOGE_TYPE_Q8_0_P8}};
#define N_ORIGINALS (sizeof originals / sizeof *originals)

static void paths_remove(void) {
    for (size_t i = 0; i < N_ORIGINALS; i++)
        unlink(originals[i].path);
}

static void must(bool condition, const char *what) {
    if (!condition)
        moge_assert_failed(what, __FILE__, __LINE__);
}

static void original_make(struct original *original) {
    struct moge_shape shape;
    struct moge_err err = {0};
    snprintf(original->path, sizeof original->path, "model_fuzz.%ld.%d.gguf", (long)getpid(),
             (int)original->type);
    must(moge_shape_read(&shape, MOGE_SOURCE_DIR "/bench/shapes/tiny.ini", &err) == 0, err.text);
    must(moge_synth_write(&shape, original->type, 1, original->path, &err) == 0, err.text);
    FILE *file = fopen(original->path, "rb");
    must(file && fseek(file, 0, SEEK_END) == 0, "a model file");
    original->bytes = (size_t)ftell(file);
    original->data = malloc(original->bytes);
    rewind(file);
    must(original->data && fread(original->data, 1, original->bytes, file) == original->bytes,
         "its bytes");
    fclose(file);
}

static void patched_open(const struct original *original, const uint8_t *data, size_t size) {
    struct moge_model_options options = {0};
    struct moge_model *model = NULL;
    struct moge_err err = {0};
    FILE *file = fopen(original->path, "r+b");
    must(file && fwrite(original->data, 1, original->bytes, file) == original->bytes,
         "a file to patch");
    while (size >= 3) {
        size_t at = ((size_t)data[0] << 8 | data[1]) % HEAD_BYTES, n = data[2] % 16u;
        n = n < size - 3 ? n : size - 3;
        fseek(file, (long)at, SEEK_SET);
        fwrite(data + 3, 1, n, file);
        data += 3 + n;
        size -= 3 + n;
    }
    fclose(file);
    int rc = moge_model_open(&model, original->path, &options, &err);
    MOGE_ASSERT(rc == 0 ? model != NULL : (!model && err.code == rc && err.text[0] != '\0'));
    moge_model_close(model);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!originals[0].data) {
        for (size_t i = 0; i < N_ORIGINALS; i++)
            original_make(&originals[i]);
        atexit(paths_remove);
    }
    for (size_t i = 0; i < N_ORIGINALS; i++)
        patched_open(&originals[i], data, size);
    return 0;
}
