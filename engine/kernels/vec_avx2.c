/* SPDX-License-Identifier: Apache-2.0 */
#include <immintrin.h>
#define MOGE_LANES_AVX2
#include "engine/kernels/vec_body.h"

void moge_vec_init_avx2(struct moge_kernels *kernels) {
    vec_fill(kernels);
}
