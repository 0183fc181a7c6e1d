/* SPDX-License-Identifier: Apache-2.0 */
/* Two waits with one shape: spin for a few microseconds, because the other side usually arrives
 * within them, then sleep in a futex, because on a busy machine the other thread may not be running
 * at all.
 *
 * Spinning for a thread that waits for this very processor only keeps it from arriving.  So every
 * arrival leaves its processor in a set, the last one counts them, and while two threads shared one
 * (`crowded`; on a busy machine the scheduler does that for seconds) waits sleep at once: 80 us a
 * barrier become about 10.
 *
 * A run is a new value of `run_seq`; its end and every barrier inside it are rounds of one
 * sense-counting barrier: the last to arrive bumps `round` and wakes the sleepers. */
#include "moge/threads.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SPIN_ROUNDS 4000 /* about 10 us of pause instructions */

struct worker {
    struct moge_threads *pool;
    pthread_t thread;
    int index;
};

struct moge_threads {
    /* constant after new */
    int n_threads;
    struct worker *workers; /* [n_threads - 1] */
    int n_started;
    /* written by the caller before run_seq is released, read by workers after they acquire it */
    moge_threads_fn *fn;
    void *arg;
    bool stop;
    /* shared */
    _Alignas(64) _Atomic uint32_t run_seq;
    _Alignas(64) _Atomic uint32_t round;
    _Alignas(64) _Atomic int arrived;
    _Alignas(64) _Atomic int sleepers;
    _Alignas(64) _Atomic uint64_t processors; /* bit i: a thread of this round arrived on it */
    _Atomic bool crowded; /* of the last round; the last to arrive writes, any reads (relaxed) */
};

static void cpu_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Returns once *word != old. */
static void wait_change(struct moge_threads *pool, _Atomic uint32_t *word, uint32_t old) {
    int n_spins = atomic_load_explicit(&pool->crowded, memory_order_relaxed) ? 0 : SPIN_ROUNDS;
    for (int i = 0; i < n_spins; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != old)
            return;
        cpu_relax();
    }
    /* seq_cst pairs with wake_all: either the waker sees a sleeper, or the futex call sees the new
     * value. */
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(word) == old)
        syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    atomic_fetch_sub(&pool->sleepers, 1);
}

static void bump(struct moge_threads *pool, _Atomic uint32_t *word) {
    atomic_fetch_add(word, 1);
    if (atomic_load(&pool->sleepers) > 0)
        syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

/* Processors beyond the 64th are taken for different ones: then waits spin, as they mostly should.
 */
static uint64_t processor_bit(void) {
    int cpu = sched_getcpu();
    return cpu >= 0 && cpu < 64 ? 1ull << cpu : ~0ull;
}

static void crowd_count(struct moge_threads *pool, uint64_t own) {
    uint64_t all = atomic_exchange_explicit(&pool->processors, 0, memory_order_relaxed) | own;
    int n_most = pool->n_threads < 64 ? pool->n_threads : 64;
    bool crowded = __builtin_popcountll(all) < n_most;
    if (crowded != atomic_load_explicit(&pool->crowded, memory_order_relaxed))
        atomic_store_explicit(&pool->crowded, crowded, memory_order_relaxed);
}

void moge_threads_barrier(struct moge_threads *pool) {
    if (pool->n_threads == 1)
        return;
    uint64_t own = processor_bit();
    atomic_fetch_or_explicit(&pool->processors, own, memory_order_relaxed);
    uint32_t round = atomic_load_explicit(&pool->round, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) == pool->n_threads - 1) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        crowd_count(pool, own);
        bump(pool, &pool->round);
        return;
    }
    wait_change(pool, &pool->round, round);
}

static void *worker_main(void *arg) {
    struct worker *worker = arg;
    struct moge_threads *pool = worker->pool;
    for (uint32_t seen = 0;; seen++) {
        wait_change(pool, &pool->run_seq, seen);
        if (pool->stop)
            return NULL;
        pool->fn(pool->arg, worker->index, pool->n_threads);
        moge_threads_barrier(pool);
    }
}

int moge_threads_new(struct moge_threads **out, int n_threads, struct moge_err *err) {
    if (n_threads < 1 || n_threads > MOGE_THREADS_MAX)
        return moge_fail(err, MOGE_INVALID, "threads is %d; it must be 1..%d", n_threads,
                         MOGE_THREADS_MAX);
    struct moge_threads *pool = aligned_alloc(64, sizeof *pool);
    struct worker *workers = calloc((size_t)n_threads, sizeof *workers);
    if (!pool || !workers) {
        free(pool);
        free(workers);
        return moge_fail(err, MOGE_NOMEM, "no memory for a pool of %d threads", n_threads);
    }
    *pool = (struct moge_threads){.n_threads = n_threads, .workers = workers};
    for (int i = 0; i < n_threads - 1; i++) {
        workers[i] = (struct worker){.pool = pool, .index = i + 1};
        if (pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]) != 0) {
            moge_threads_free(pool);
            return moge_fail(err, MOGE_NOMEM, "the system refused worker thread %d of %d", i + 1,
                             n_threads);
        }
        pool->n_started++;
    }
    *out = pool;
    return 0;
}

void moge_threads_free(struct moge_threads *pool) {
    if (!pool)
        return;
    pool->stop = true;
    bump(pool, &pool->run_seq);
    for (int i = 0; i < pool->n_started; i++)
        pthread_join(pool->workers[i].thread, NULL);
    free(pool->workers);
    free(pool);
}

int moge_threads_count(const struct moge_threads *pool) {
    return pool->n_threads;
}

bool moge_threads_crowded(const struct moge_threads *pool) {
    return atomic_load_explicit(&pool->crowded, memory_order_relaxed);
}

void moge_threads_run(struct moge_threads *pool, moge_threads_fn *fn, void *arg) {
    if (pool->n_threads == 1) {
        fn(arg, 0, 1);
        return;
    }
    pool->fn = fn;
    pool->arg = arg;
    bump(pool, &pool->run_seq);
    fn(arg, 0, pool->n_threads);
    moge_threads_barrier(pool);
}

void moge_threads_split(int n, int grain, int i_thread, int n_threads, int *begin, int *end) {
    int64_t units = (n + (int64_t)grain - 1) / grain;
    int64_t first = units * i_thread / n_threads * grain;
    int64_t last = units * (i_thread + 1) / n_threads * grain;
    *begin = (int)(first < n ? first : n);
    *end = (int)(last < n ? last : n);
}
