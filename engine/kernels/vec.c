/* SPDX-License-Identifier: Apache-2.0 */
/* Element-wise and row-wise float work in plain C.  vec_body.h is the specification: sixteen lanes,
 * fused multiply-adds where it says fma, a tail padded with zeros. */
#include "engine/kernels/vec_body.h"

void moge_vec_init_scalar(struct moge_kernels *kernels) {
    vec_fill(kernels);
}

float moge_kernel_gumbel(uint64_t seed, int32_t pos, int32_t id) {
    struct gumbel_key key = gumbel_key_of(seed, pos);
    float lane[LANES];
    lf_store(lane, lanes_gumbel(lanes_philox(li_set((uint32_t)id), key.counter, key.key)));
    return lane[0];
}
