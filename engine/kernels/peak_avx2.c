/* SPDX-License-Identifier: Apache-2.0 */
/* Twelve chains and three operands: all that 16 registers hold. */
#include <immintrin.h>
#define PEAK_INT   __m256i
#define PEAK_FLOAT __m256
#define PEAK(op)   _mm256_##op
#define CHAINS     12
#include "engine/kernels/peak_body.h"

void moge_peak_init_avx2(struct moge_peak *peak) {
    peak_fill(peak);
}
