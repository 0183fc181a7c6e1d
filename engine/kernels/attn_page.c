/* SPDX-License-Identifier: Apache-2.0 */
/* Attention over one page in plain C: attn_page_body.h is the specification. */
#include "engine/kernels/attn_page_body.h"

void moge_attn_page_init_scalar(struct moge_kernels *kernels) {
    attn_page_fill(kernels);
}
