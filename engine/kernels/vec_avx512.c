/* SPDX-License-Identifier: Apache-2.0 */
#include <immintrin.h>
#define MOGE_LANES_AVX512
#include "engine/kernels/vec_body.h"

void moge_vec_init_avx512(struct moge_kernels *kernels) {
    vec_fill(kernels);
}
