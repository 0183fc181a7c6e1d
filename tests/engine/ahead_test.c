/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/test.h"
#include "engine/ahead.c"

#include <fcntl.h>
#include <time.h>

/* An engine of one layer whose experts lie `mapped`, in a file, or in the model's own memory. */
struct fixture {
    unsigned char own[64], file[64];
    struct moge_matrix expert;
    struct moge_layer layer;
    struct moge_model model;
    struct moge_engine engine;
};

static void setup(struct fixture *f, bool mapped) {
    *f = (struct fixture){0};
    f->expert.data = mapped ? f->file : f->own;
    f->layer.gate_exps = &f->expert;
    f->model.layers = &f->layer;
    f->model.info.n_experts = 1;
    f->model.weights = (struct moge_arena){.base = f->own, .cap_bytes = sizeof f->own};
    f->engine.model = &f->model;
}

static void asks_for_a_while_after_a_wait(void **state) {
    (void)state;
    struct fixture f;
    setup(&f, true);
    moge_ahead_decide(&f.engine); /* what waited before is none of a pass's */
    assert_int_equal(f.engine.reads_ahead, 0);
    f.engine.n_disk_waits = -1;
    moge_ahead_decide(&f.engine);
    assert_int_equal(f.engine.reads_ahead, PASSES);
    f.engine.reads_ahead = 1;
    f.engine.n_disk_waits = -1;
    moge_ahead_decide(&f.engine);
    assert_int_equal(f.engine.reads_ahead, PASSES);
}

static void never_of_own_memory_or_without_experts(void **state) {
    (void)state;
    for (int dense = 0; dense < 2; dense++) {
        struct fixture f;
        setup(&f, dense);
        f.model.info.n_experts = !dense;
        f.engine.n_disk_waits = -1;
        moge_ahead_decide(&f.engine);
        assert_int_equal(f.engine.reads_ahead, 0);
    }
}

static size_t n_resident(void *map, size_t n_pages) {
    unsigned char there[64];
    size_t n = 0;
    assert_true(n_pages <= sizeof there);
    assert_int_equal(mincore(map, n_pages * 4096, there), 0);
    for (size_t i = 0; i < n_pages; i++)
        n += there[i] & 1;
    return n;
}

/* Weights begin and end anywhere in a page. */
static void pages_asked_for_come(void **state) {
    (void)state;
    enum { N_PAGES = 64 };
    static unsigned char bytes[N_PAGES * 4096];
    char path[1024];
    snprintf(path, sizeof path, MOGE_BINARY_DIR "/ahead_test.%ld", (long)getpid());
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    assert_true(fd >= 0);
    unlink(path);
    assert_int_equal(write(fd, bytes, sizeof bytes), sizeof bytes);
    assert_int_equal(fsync(fd), 0);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    unsigned char *map = mmap(NULL, sizeof bytes, PROT_READ, MAP_SHARED, fd, 0);
    assert_true(map != MAP_FAILED);
    bool dropped = n_resident(map, N_PAGES) == 0; /* some file systems keep everything */
    moge_ahead_read(map + 3 * 4096 + 100, 40 * 4096);
    for (int i = 0; i < 10000 && n_resident(map + 3 * 4096, 41) < 41; i++)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    assert_int_equal(n_resident(map + 3 * 4096, 41), 41);
    if (dropped)
        assert_true(n_resident(map, N_PAGES) < N_PAGES);
    munmap(map, sizeof bytes);
    close(fd);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(asks_for_a_while_after_a_wait),
        cmocka_unit_test(never_of_own_memory_or_without_experts),
        cmocka_unit_test(pages_asked_for_come),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
