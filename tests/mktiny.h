/* SPDX-License-Identifier: Apache-2.0 */
/* Tiny models for tests, so that none needs real weights: a file made from a shape of bench/shapes
 * ("tiny", "tiny-draft") and a seed, under the build directory. */
#ifndef MOGE_MKTINY_H
#define MOGE_MKTINY_H

#include <unistd.h>
#include "tests/test.h"
#include "tools/synth.h"

/* Writes the model and its path to `path`; unlink it when done. */
static inline void mktiny(char *path, size_t cap, const char *shape_name, enum moge_type type,
                          uint64_t seed) {
    char shape_path[1024];
    struct moge_shape shape;
    struct moge_err err = {0};
    snprintf(shape_path, sizeof shape_path, MOGE_SOURCE_DIR "/bench/shapes/%s.ini", shape_name);
    snprintf(path, cap, MOGE_BINARY_DIR "/%s.%ld.%d.%llu.gguf", shape_name, (long)getpid(),
             (int)type, (unsigned long long)seed);
    TEST_OK(moge_shape_read(&shape, shape_path, &err), err);
    TEST_OK(moge_synth_write(&shape, type, seed, path, &err), err);
}

#endif
