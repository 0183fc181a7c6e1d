/* SPDX-License-Identifier: Apache-2.0 */
#include "moge/siphash.h"

#include <string.h>

static uint64_t rotate(uint64_t x, int n) {
    return (x << n) | (x >> (64 - n));
}

static void rounds(uint64_t v[4], int n) {
    while (n-- > 0) {
        v[0] += v[1];
        v[1] = rotate(v[1], 13) ^ v[0];
        v[0] = rotate(v[0], 32);
        v[2] += v[3];
        v[3] = rotate(v[3], 16) ^ v[2];
        v[0] += v[3];
        v[3] = rotate(v[3], 21) ^ v[0];
        v[2] += v[1];
        v[1] = rotate(v[1], 17) ^ v[2];
        v[2] = rotate(v[2], 32);
    }
}

static void absorb(uint64_t v[4], uint64_t word) {
    v[3] ^= word;
    rounds(v, 2);
    v[0] ^= word;
}

/* Words are read in the machine's order, which is little-endian on every target (x86). */
uint64_t moge_siphash(const uint64_t key[2], const void *data, size_t len) {
    uint64_t v[4] = {key[0] ^ 0x736f6d6570736575u, key[1] ^ 0x646f72616e646f6du,
                     key[0] ^ 0x6c7967656e657261u, key[1] ^ 0x7465646279746573u};
    const unsigned char *bytes = data;
    uint64_t word;
    size_t n_left = len;
    for (; n_left >= sizeof word; n_left -= sizeof word, bytes += sizeof word) {
        memcpy(&word, bytes, sizeof word);
        absorb(v, word);
    }
    word = (uint64_t)len << 56;
    for (size_t i = 0; i < n_left; i++)
        word |= (uint64_t)bytes[i] << (8 * i);
    absorb(v, word);
    v[2] ^= 0xff;
    rounds(v, 4);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}
