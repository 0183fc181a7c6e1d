/* SPDX-License-Identifier: Apache-2.0 */
#include <immintrin.h>
#define PEAK_INT   __m512i
#define PEAK_FLOAT __m512
#define PEAK(op)   _mm512_##op
#define PEAK_DOT   _mm512_dpbusd_epi32
#define CHAINS     16
#include "engine/kernels/peak_body.h"

void moge_peak_init_vnni(struct moge_peak *peak) {
    peak_fill(peak);
}
