/* SPDX-License-Identifier: Apache-2.0 */
/* A panel is walked group by group: scales of up to 4 blocks, then their quads. */
#include "engine/panel_layout.h"

#include <string.h>

#include "engine/kernels/kernels.h"

#define SCALE_BYTES (MOGE_PANEL_ROWS * sizeof(uint16_t)) /* of one block of all rows */

static size_t group_blocks(size_t left) {
    return left < MOGE_PANEL_BLOCKS ? left : MOGE_PANEL_BLOCKS;
}

static size_t block_bytes(enum moge_type type) {
    return type == MOGE_TYPE_Q8_0 ? MOGE_PANEL_Q8_0_BYTES : MOGE_PANEL_Q4_0_BYTES;
}

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

bool moge_panels_finite(enum moge_type type, const void *panels, int32_t n_in, int32_t n_panels) {
    size_t n_blocks = (size_t)n_in / MOGE_QBLOCK;
    const uint8_t *group = panels;
    bool finite = true;
    for (int32_t p = 0; p < n_panels; p++)
        for (size_t first = 0; first < n_blocks; first += MOGE_PANEL_BLOCKS) {
            size_t n = group_blocks(n_blocks - first);
            for (size_t i = 0; i < n * MOGE_PANEL_ROWS; i++) {
                uint16_t d;
                memcpy(&d, group + i * sizeof d, sizeof d);
                finite &= (d & 0x7c00u) != 0x7c00u;
            }
            group += n * block_bytes(type);
        }
    return finite;
}
