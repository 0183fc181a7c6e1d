/* SPDX-License-Identifier: Apache-2.0 */
/* Tensor types and their block layouts, as GGUF stores them.  Conversions are plain C and exact
 * where the format allows: they run at load and in tools, never in a step.  Any thread. */
#ifndef MOGE_QUANT_H
#define MOGE_QUANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "moge/err.h"

/* The numbers are GGUF's (ggml_type); those above 0x4d470000 ("MG") are ours. */
enum moge_type {
    MOGE_TYPE_F32 = 0,
    MOGE_TYPE_F16 = 1,
    MOGE_TYPE_Q4_0 = 2,
    MOGE_TYPE_Q8_0 = 8,
    MOGE_TYPE_BF16 = 30,
    /* The compute layout, stored: the blocks of 8 rows interleaved, drawn in
     * engine/kernels/quant.c. Values and bytes are those of the plain type. */
    MOGE_TYPE_Q4_0_P8 = 0x4d470002,
    MOGE_TYPE_Q8_0_P8 = 0x4d470008,
};

/* Version of that drawing: the value of moge.panel_layout in files that hold panels.  Whoever
 * changes where a byte of a panel stands raises it. */
#define MOGE_PANEL_LAYOUT    1
#define MOGE_PANEL_ALIGNMENT 64 /* of panels in a file */

#define MOGE_QBLOCK 32 /* values in one quantised block */

struct moge_block_q8_0 { /* value i = d * q[i] */
    uint16_t d;          /* f16 */
    int8_t q[MOGE_QBLOCK];
};

struct moge_block_q4_0 { /* value i = d * (low nibble of q[i] - 8); value i + 16: high nibble */
    uint16_t d;          /* f16 */
    uint8_t q[MOGE_QBLOCK / 2];
};

_Static_assert(sizeof(struct moge_block_q8_0) == 34, "q8_0 block");
_Static_assert(sizeof(struct moge_block_q4_0) == 18, "q4_0 block");

struct moge_type_traits {
    const char *name;     /* "q8_0" */
    int32_t block_values; /* values in one block */
    int32_t block_bytes;  /* bytes of one block */
    /* NULL for panels, which have no contiguous rows. */
    void (*to_f32)(const void *source, float *target, size_t n); /* n a multiple of block_values */
    void (*from_f32)(const float *source, void *target, size_t n); /* round to nearest even */
};

/* NULL for a type this build does not know. */
const struct moge_type_traits *moge_type_traits(uint32_t type);

/* Between a plain type and the one that stores its panels.  moge_type_panel gives other types
 * back. */
bool moge_type_is_panel(enum moge_type type);
enum moge_type moge_type_plain(enum moge_type type);
enum moge_type moge_type_panel(enum moge_type type);

/* Plain types only; MOGE_INVALID for an unknown name. */
int moge_type_parse(const char *name, enum moge_type *out);

float moge_f16_to_f32(uint16_t h);
uint16_t moge_f32_to_f16(float f);

#endif
