/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a fuzz target without a fuzzer: every seed file of a directory as it is, and then cut, with
 * bytes changed, and spliced, by a generator that is the same everywhere.  Input that once broke a
 * target is kept among its seeds. */
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../test.h"

#define SEEDS_MAX     256
#define SEED_BYTES    (1 << 20)
#define MUTATIONS     400  /* of each seed */
#define BYTES_MUTATED 4096 /* larger seeds are mutated as often, in fewer rounds */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct seed {
    uint8_t *data;
    size_t size;
};

static struct seed seed_read(const char *path) {
    struct seed seed = {malloc(SEED_BYTES), 0};
    FILE *file = fopen(path, "rb");
    if (!file || !seed.data) {
        fprintf(stderr, "cannot read %s: %s\n", path, strerror(errno));
        exit(1);
    }
    seed.size = fread(seed.data, 1, SEED_BYTES, file);
    fclose(file);
    return seed;
}

static int seeds_read(const char *directory, struct seed *seeds) {
    struct dirent **names;
    int n_names = scandir(directory, &names, NULL, alphasort), n = 0;
    for (int i = 0; i < n_names; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", directory, names[i]->d_name);
        if (names[i]->d_name[0] != '.' && n < SEEDS_MAX)
            seeds[n++] = seed_read(path);
        free(names[i]);
    }
    if (n_names >= 0)
        free(names);
    return n;
}

/* An exact-size copy, so that a sanitizer sees a read past the end. */
static void run(const uint8_t *data, size_t size) {
    uint8_t *copy = malloc(size ? size : 1);
    if (!copy)
        exit(1);
    memcpy(copy, data, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

static void mutate(const struct seed *seed, const struct seed *other, struct test_rng *rng,
                   uint8_t *buffer) {
    size_t size = seed->size;
    memcpy(buffer, seed->data, size);
    int n_changes = 1 + test_below(rng, 4);
    for (int i = 0; i < n_changes && size > 0; i++) {
        size_t at = (size_t)(test_u64(rng) % size);
        switch (test_below(rng, 5)) {
        case 0:
            buffer[at] = (uint8_t)test_u64(rng);
            break;
        case 1:
            buffer[at] ^= (uint8_t)(1u << test_below(rng, 8));
            break;
        case 2: /* extreme counts and lengths */
            for (size_t j = at; j < size && j < at + 8; j++)
                buffer[j] = 0xff;
            break;
        case 3:
            size = at;
            break;
        default: /* the end of another seed */
            if (at < other->size) {
                size_t n = other->size - at;
                memcpy(buffer + at, other->data + at, n);
                size = at + n;
            }
        }
    }
    run(buffer, size);
}

int main(int argc, char **argv) {
    static struct seed seeds[SEEDS_MAX];
    int n = argc > 1 ? seeds_read(argv[1], seeds) : 0;
    if (n == 0) {
        fprintf(stderr, "no seeds in %s\n", argc > 1 ? argv[1] : "(no directory given)");
        return 1;
    }
    uint8_t *buffer = malloc(2 * SEED_BYTES);
    struct test_rng rng = test_rng_init(1);
    long n_runs = 0;
    run((const uint8_t *)"", 0);
    for (int i = 0; i < n && buffer; i++) {
        run(seeds[i].data, seeds[i].size);
        long n_rounds = MUTATIONS;
        if (seeds[i].size > BYTES_MUTATED)
            n_rounds = MUTATIONS / 4;
        for (long k = 0; k < n_rounds; k++, n_runs++)
            mutate(&seeds[i], &seeds[test_below(&rng, n)], &rng, buffer);
    }
    for (int i = 0; i < n; i++)
        free(seeds[i].data);
    free(buffer);
    printf("%d seeds, %ld mutations\n", n, n_runs);
    return 0;
}
