/* SPDX-License-Identifier: Apache-2.0 */
/* Pager, queue, scheduler and step as they are, compiled into a simulation. */
#ifndef TEST_SCHEDULER_H
#define TEST_SCHEDULER_H

#include "engine/kv.c"
#include "engine/kv_prefix.c"
#include "server/schedule/queue.c"
#include "server/schedule/req.c"
#include "server/schedule/sched.c"
#include "server/schedule/sched_admit.c"
#include "server/schedule/sched_commit.c"
#include "server/schedule/sched_pace.c"
#include "server/schedule/sched_plan.c"
#include "server/schedule/sched_preempt.c"
#include "server/schedule/step.c"
#include "server/schedule/text.c"

#endif
