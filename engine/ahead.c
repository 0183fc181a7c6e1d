/* SPDX-License-Identifier: Apache-2.0 */
/* Experts of a model that is larger than memory.  A page that is not there is a fault, and the
 * kernel answers it by reading some MiB around it: mostly other experts, for which it lets go of
 * weights that are needed next.  So once the process has waited for the disk, each layer asks for
 * just the experts that it is about to use.  Where everything is in memory asking is a waste, and
 * after a while it is tried without. */
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "engine/engine_state.h"

#define PASSES 128 /* with asking, after a wait: one without takes as long as several with */

static bool experts_mapped(const struct moge_model *model) {
    const struct moge_arena *own = &model->weights;
    if (model->info.n_experts == 0)
        return false;
    const unsigned char *weights = model->layers[0].gate_exps[0].data;
    return weights < own->base || weights >= own->base + own->cap_bytes;
}

void moge_ahead_decide(struct moge_engine *engine) {
    struct rusage usage;
    if (!experts_mapped(engine->model) || getrusage(RUSAGE_SELF, &usage) != 0)
        return;
    if (engine->n_disk_waits != 0 && usage.ru_majflt != engine->n_disk_waits)
        engine->reads_ahead = PASSES;
    else if (engine->reads_ahead > 0)
        engine->reads_ahead--;
    engine->n_disk_waits = usage.ru_majflt;
}

void moge_ahead_read(const void *weights, size_t bytes) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)weights / page * page;
    madvise((void *)begin, (uintptr_t)weights + bytes - begin, MADV_WILLNEED); /* a wish */
}
