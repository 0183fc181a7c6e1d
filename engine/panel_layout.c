/* SPDX-License-Identifier: Apache-2.0 */
/* A panel is walked group by group: scales of up to 4 blocks, then their quads. */
#include "engine/panel_layout.h"

#include <string.h>

#include "engine/kernels/kernels.h"

#define SCALE_BYTES (MOGE_PANEL_ROWS * sizeof(uint16_t)) /* of one block of all rows */
#define QUAD_BYTES  (MOGE_PANEL_ROWS * 4)                /* of one quad of all rows */

static size_t group_blocks(size_t left) {
    return left < MOGE_PANEL_BLOCKS ? left : MOGE_PANEL_BLOCKS;
}

static size_t block_bytes(enum moge_type type) {
    return type == MOGE_TYPE_Q8_0 ? MOGE_PANEL_Q8_0_BYTES : MOGE_PANEL_Q4_0_BYTES;
}

/* ---- to panels ---- */

typedef uint32_t quads4 __attribute__((vector_size(16))); /* of one row, or one of four rows */

static quads4 load(const uint8_t *at) {
    quads4 q;
    memcpy(&q, at, sizeof q);
    return q;
}

static void store(uint8_t *at, quads4 q) {
    memcpy(at, &q, sizeof q);
}

/* Four quads of each of four rows: what stood behind each other stands side by side. */
static void quads_turn(const uint8_t *row, size_t row_bytes, uint8_t *quads) {
    quads4 a = load(row), b = load(row + row_bytes), c = load(row + 2 * row_bytes),
           d = load(row + 3 * row_bytes);
    quads4 ab01 = __builtin_shufflevector(a, b, 0, 4, 1, 5),
           ab23 = __builtin_shufflevector(a, b, 2, 6, 3, 7),
           cd01 = __builtin_shufflevector(c, d, 0, 4, 1, 5),
           cd23 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    store(quads, __builtin_shufflevector(ab01, cd01, 0, 1, 4, 5));
    store(quads + QUAD_BYTES, __builtin_shufflevector(ab01, cd01, 2, 3, 6, 7));
    store(quads + 2 * QUAD_BYTES, __builtin_shufflevector(ab23, cd23, 0, 1, 4, 5));
    store(quads + 3 * QUAD_BYTES, __builtin_shufflevector(ab23, cd23, 2, 3, 6, 7));
}

/* One block of four rows, half of what stands side by side.  Byte i of a Q4_0 block holds columns i
 * and i + 16, which is what a pair of quads (k, k + 4) wants: both types are turned alike. */
static void half_pack(const uint8_t *block, size_t row_bytes, size_t n_quads, uint8_t *scales,
                      uint8_t *quads) {
    const size_t d = sizeof(uint16_t); /* a block begins with its scale */
    memcpy(scales, block, d);
    memcpy(scales + d, block + row_bytes, d);
    memcpy(scales + 2 * d, block + 2 * row_bytes, d);
    memcpy(scales + 3 * d, block + 3 * row_bytes, d);
    for (size_t k = 0; k < n_quads; k += 4)
        quads_turn(block + d + 4 * k, row_bytes, quads + k * QUAD_BYTES);
}

/* Two halves of 4 rows each. */
static void block_pack(const uint8_t *block, size_t row_bytes, size_t n_quads, uint8_t *scales,
                       uint8_t *quads) {
    half_pack(block, row_bytes, n_quads, scales, quads);
    half_pack(block + 4 * row_bytes, row_bytes, n_quads, scales + SCALE_BYTES / 2,
              quads + QUAD_BYTES / 2);
}

/* The same where rows are missing. */
static void block_pack_cut(const uint8_t *block, size_t row_bytes, size_t n_rows, size_t n_quads,
                           uint8_t *scales, uint8_t *quads) {
    uint8_t whole[MOGE_PANEL_ROWS * sizeof(struct moge_block_q8_0)] = {0};
    size_t bytes = sizeof(uint16_t) + 4 * n_quads;
    for (size_t j = 0; j < n_rows; j++)
        memcpy(whole + j * bytes, block + j * row_bytes, bytes);
    block_pack(whole, bytes, n_quads, scales, quads);
}

void moge_panels_pack(enum moge_type type, const void *rows, int32_t n_rows, int32_t n_in,
                      void *panels) {
    size_t n_blocks = (size_t)n_in / MOGE_QBLOCK, bytes = block_bytes(type) / MOGE_PANEL_ROWS;
    size_t row_bytes = n_blocks * bytes, n_quads = (bytes - sizeof(uint16_t)) / 4;
    uint8_t *scales = panels;
    for (size_t row = 0; row < (size_t)n_rows; row += MOGE_PANEL_ROWS) {
        const uint8_t *block = (const uint8_t *)rows + row * row_bytes;
        size_t left = (size_t)n_rows - row;
        for (size_t first = 0; first < n_blocks; first += MOGE_PANEL_BLOCKS) {
            size_t n = group_blocks(n_blocks - first);
            uint8_t *quads = scales + n * SCALE_BYTES;
            for (size_t b = 0; b < n; b++, block += bytes, scales += SCALE_BYTES) {
                if (left >= MOGE_PANEL_ROWS)
                    block_pack(block, row_bytes, n_quads, scales, quads);
                else
                    block_pack_cut(block, row_bytes, left, n_quads, scales, quads);
                quads += n_quads * QUAD_BYTES;
            }
            scales = quads;
        }
    }
}

/* ---- and back ---- */

/* Quads of 4 bytes stand 8 apart; what a byte means is the same in a panel and in a row. */
static void unpack_block(const uint8_t *scale, const uint8_t *quads, size_t n_quads, uint8_t *row) {
    memcpy(row, scale, sizeof(uint16_t));
    row += sizeof(uint16_t);
    for (size_t k = 0; k < n_quads; k++)
        memcpy(row + 4 * k, quads + 4 * MOGE_PANEL_ROWS * k, 4);
}

void moge_panel_unpack(enum moge_type type, const void *panel, int32_t n_in, void *rows) {
    size_t n_blocks = (size_t)n_in / MOGE_QBLOCK, quad_bytes = block_bytes(type) - SCALE_BYTES;
    size_t stored = block_bytes(type) / MOGE_PANEL_ROWS; /* bytes of a block of one row */
    const uint8_t *group = panel;
    for (size_t first = 0; first < n_blocks; first += MOGE_PANEL_BLOCKS) {
        size_t n = group_blocks(n_blocks - first);
        const uint8_t *quads = group + n * SCALE_BYTES;
        for (size_t b = 0; b < n; b++, quads += quad_bytes)
            for (size_t j = 0; j < MOGE_PANEL_ROWS; j++)
                unpack_block(group + b * SCALE_BYTES + j * sizeof(uint16_t), quads + 4 * j,
                             quad_bytes / (4 * MOGE_PANEL_ROWS),
                             (uint8_t *)rows + (j * n_blocks + first + b) * stored);
        group = quads;
    }
}

/* ---- scales ---- */

typedef uint16_t halves __attribute__((vector_size(SCALE_BYTES)));

bool moge_panels_finite(enum moge_type type, const void *panels, int32_t n_in, int32_t n_panels) {
    size_t n_blocks = (size_t)n_in / MOGE_QBLOCK;
    const uint8_t *group = panels;
    halves infinite = {0};
    for (int32_t p = 0; p < n_panels; p++)
        for (size_t first = 0; first < n_blocks; first += MOGE_PANEL_BLOCKS) {
            size_t n = group_blocks(n_blocks - first);
            for (size_t b = 0; b < n; b++) {
                halves d;
                memcpy(&d, group + b * SCALE_BYTES, sizeof d);
                infinite |= (d & 0x7c00) == 0x7c00;
            }
            group += n * block_bytes(type);
        }
    return memcmp(&infinite, &(halves){0}, sizeof infinite) == 0;
}
