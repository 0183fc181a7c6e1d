/* SPDX-License-Identifier: Apache-2.0 */
/* SplitMix64 (Steele, Lea and Flood 2014): random numbers where nobody gains by guessing them. */
#ifndef MOGE_SPLITMIX_H
#define MOGE_SPLITMIX_H

#include <stdint.h>

#define MOGE_SPLITMIX_STEP 0x9e3779b97f4a7c15u

/* The number that belongs to a state.  Any thread. */
static inline uint64_t moge_splitmix_mix(uint64_t state) {
    state = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9u;
    state = (state ^ (state >> 27)) * 0x94d049bb133111ebu;
    return state ^ (state >> 31);
}

/* The next number.  The state may begin with anything. */
static inline uint64_t moge_splitmix(uint64_t *state) {
    return moge_splitmix_mix(*state += MOGE_SPLITMIX_STEP);
}

#endif
