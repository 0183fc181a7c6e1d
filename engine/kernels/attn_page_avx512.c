/* SPDX-License-Identifier: Apache-2.0 */
#include <immintrin.h>
#define MOGE_LANES_AVX512
#include "engine/kernels/attn_page_body.h"

void moge_attn_page_init_avx512(struct moge_kernels *kernels) {
    attn_page_fill(kernels);
}
