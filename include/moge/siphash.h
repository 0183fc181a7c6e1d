/* SPDX-License-Identifier: Apache-2.0 */
/* SipHash-2-4 (Aumasson and Bernstein 2012): a short-input hash that nobody without the key can
 * aim collisions at.  Used where clients choose what is hashed. */
#ifndef MOGE_SIPHASH_H
#define MOGE_SIPHASH_H

#include <stddef.h>
#include <stdint.h>

/* Of len bytes.  Any thread; no state. */
uint64_t moge_siphash(const uint64_t key[2], const void *data, size_t len);

#endif
