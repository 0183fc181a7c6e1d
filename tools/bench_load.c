/* SPDX-License-Identifier: Apache-2.0 */
/* moge bench load: how long a model takes to be ready and how much memory it peaks at, against
 * reading its file.
 *
 *      read    the threads that a loader has read the file into an arena in huge pages: what any
 *              loader must do that wants the weights in memory.  In long parts, because two
 *              threads that write to one huge page for the first time both clear it
 *      ready   moge_model_open
 *
 * The two alternate; each runs in a process of its own, so that peaks do not add up and nothing is
 * mapped before. */
#include "tools/commands.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "moge/arena.h"
#include "moge/engine.h"
#include "tools/clock.h"

#define PART_BYTES       ((size_t)16 << 20)
#define REPEATS_MAX      100
#define LOAD_THREADS_MAX 8 /* as the loader has */

static const char usage_text[] =
    "Usage: moge bench load --model FILE [options]\n"
    "Measures the time until a model is ready and its memory, against reading the file.\n"
    "\n"
    "  --model FILE        GGUF file; it is read once before, so that runs find it in the page "
    "cache\n"
    "  --huge-pages YESNO  ask for huge pages (yes)\n"
    "  --mlock             lock the weights in memory\n"
    "  --repeats N         so many runs of each kind (5)\n"
    "  --csv FILE          append a row for each kind to a CSV file\n"
    "  --machine NAME      the machine's name in it (this)\n"
    "  --commit NAME       the commit's name in it (the version)\n"
    "\n"
    "Exit status: 0 done, 1 failed, 2 wrong options.\n";

enum work { WORK_READ, WORK_READY, WORK_COUNT };
static const char *const work_names[WORK_COUNT] = {"read", "ready"};

/* What one process found out.  Memory as the kernel counts it, in KiB. */
struct found {
    double seconds;
    long peak, anonymous, mapped;
    char weights[16];
    struct moge_err err;
};

struct load_bench {
    const char *path, *csv, *machine, *commit;
    struct moge_model_options options;
    int repeats, n_threads;
    size_t file_bytes;
    struct found found[WORK_COUNT][REPEATS_MAX];
};

static void memory_look(struct found *found) {
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status)) {
        if (strncmp(line, "VmHWM:", 6) == 0)
            found->peak = strtol(line + 6, NULL, 10);
        else if (strncmp(line, "RssAnon:", 8) == 0)
            found->anonymous = strtol(line + 8, NULL, 10);
        else if (strncmp(line, "RssFile:", 8) == 0)
            found->mapped = strtol(line + 8, NULL, 10);
    }
    if (status)
        fclose(status);
}

/* ---- reading ---- */

struct reading {
    int fd;
    char *target;
    size_t bytes;
    atomic_size_t next; /* part to be taken next */
    atomic_bool failed;
};

static void parts_read(void *arg, int i_thread, int n_threads) {
    struct reading *reading = arg;
    (void)i_thread;
    (void)n_threads;
    size_t at;
    while ((at = atomic_fetch_add(&reading->next, 1) * PART_BYTES) < reading->bytes) {
        size_t end = reading->bytes - at < PART_BYTES ? reading->bytes : at + PART_BYTES;
        while (at < end) {
            ssize_t got = pread(reading->fd, reading->target + at, end - at, (off_t)at);
            if (got <= 0) {
                atomic_store(&reading->failed, true);
                return;
            }
            at += (size_t)got;
        }
    }
}

static int file_read(const struct load_bench *bench, struct moge_err *err) {
    struct reading reading = {.bytes = bench->file_bytes};
    struct moge_arena arena = {0};
    struct moge_threads *threads = NULL;
    int rc = moge_arena_init(&arena, bench->file_bytes, err);
    if (rc != 0)
        return rc;
    reading.target = (char *)arena.base;
    reading.fd = open(bench->path, O_RDONLY | O_CLOEXEC);
    if (reading.fd < 0)
        rc = moge_fail(err, MOGE_IO, "cannot open %s: %s", bench->path, strerror(errno));
    else
        rc = moge_threads_new(&threads, bench->n_threads, err);
    if (rc == 0)
        moge_threads_run(threads, parts_read, &reading);
    if (rc == 0 && atomic_load(&reading.failed))
        rc = moge_fail(err, MOGE_IO, "cannot read %s", bench->path);
    moge_threads_free(threads);
    if (reading.fd >= 0)
        close(reading.fd);
    moge_arena_fini(&arena);
    return rc;
}

/* ---- one run ---- */

/* The clock stops when the work is done; giving memory back is nobody's concern. */
static void work_do(const struct load_bench *bench, enum work work, struct found *found) {
    struct moge_model *model = NULL;
    double begin = moge_clock_s();
    if (work == WORK_READY) {
        moge_model_open(&model, bench->path, &bench->options, &found->err);
        found->seconds = moge_clock_s() - begin;
        if (model)
            snprintf(found->weights, sizeof found->weights, "%s", moge_model_info(model)->weights);
    } else {
        file_read(bench, &found->err);
        found->seconds = moge_clock_s() - begin;
    }
    memory_look(found);
    moge_model_close(model);
}

/* In a process of its own, so that its peak is its own. */
static int work_run(const struct load_bench *bench, enum work work, struct found *found,
                    struct moge_err *err) {
    int ends[2];
    if (pipe(ends) != 0)
        return moge_fail(err, MOGE_IO, "no pipe to a child process: %s", strerror(errno));
    pid_t child = fork();
    if (child == 0) {
        struct found mine = {0};
        work_do(bench, work, &mine);
        _exit(write(ends[1], &mine, sizeof mine) == (ssize_t)sizeof mine ? 0 : 1);
    }
    close(ends[1]);
    bool complete = child > 0 && read(ends[0], found, sizeof *found) == (ssize_t)sizeof *found;
    close(ends[0]);
    if (child > 0)
        waitpid(child, NULL, 0);
    if (!complete)
        return moge_fail(err, MOGE_IO, "the measuring process ended early");
    return found->err.code ? moge_fail(err, found->err.code, "%s", found->err.text) : 0;
}

/* ---- results ---- */

static int by_seconds(const void *a, const void *b) {
    double x = ((const struct found *)a)->seconds, y = ((const struct found *)b)->seconds;
    return (x > y) - (x < y);
}

static const struct found *median(const struct load_bench *bench, enum work work) {
    return &bench->found[work][bench->repeats / 2];
}

static void table_print(const struct load_bench *bench) {
    double read_s = median(bench, WORK_READ)->seconds, file = (double)bench->file_bytes;
    printf(
        "%s, %.1f MB, %s, %d threads, medians of %d\n\n%-6s %8s %8s %8s %8s %8s %9s %8s %9s %9s\n",
        bench->path, file / 1e6, median(bench, WORK_READY)->weights, bench->n_threads,
        bench->repeats, "work", "s", "least", "most", "GB/s", "of read", "peak MB", "of file",
        "anon MB", "mapped MB");
    for (enum work work = 0; work < WORK_COUNT; work++) {
        const struct found *all = bench->found[work], *m = median(bench, work);
        printf("%-6s %8.3f %8.3f %8.3f %8.2f %8.2f %9.1f %8.3f %9.1f %9.1f\n", work_names[work],
               m->seconds, all[0].seconds, all[bench->repeats - 1].seconds, file / m->seconds / 1e9,
               m->seconds / read_s, (double)m->peak * 1.024e-3, (double)m->peak * 1024 / file,
               (double)m->anonymous * 1.024e-3, (double)m->mapped * 1.024e-3);
    }
}

static int csv_append(const struct load_bench *bench, struct moge_err *err) {
    double read_s = median(bench, WORK_READ)->seconds, file = (double)bench->file_bytes;
    const char *slash = strrchr(bench->path, '/');
    FILE *out = fopen(bench->csv, "a");
    if (!out)
        return moge_fail(err, MOGE_IO, "cannot append to %s: %s", bench->csv, strerror(errno));
    if (ftell(out) == 0)
        fputs("machine,commit,model,weights,file_mb,huge_pages,mlock,threads,repeats,work,"
              "median_s,min_s,max_s,of_read,peak_mb,peak_of_file,anonymous_mb,mapped_mb\n",
              out);
    for (enum work work = 0; work < WORK_COUNT; work++) {
        const struct found *all = bench->found[work], *m = median(bench, work);
        fprintf(out, "%s,%s,%s,%s,%.1f,%d,%d,%d,%d,%s,%.3f,%.3f,%.3f,%.2f,%.1f,%.3f,%.1f,%.1f\n",
                bench->machine, bench->commit, slash ? slash + 1 : bench->path,
                median(bench, WORK_READY)->weights, file / 1e6, bench->options.huge_pages,
                bench->options.mlock, bench->n_threads, bench->repeats, work_names[work],
                m->seconds, all[0].seconds, all[bench->repeats - 1].seconds, m->seconds / read_s,
                (double)m->peak * 1.024e-3, (double)m->peak * 1024 / file,
                (double)m->anonymous * 1.024e-3, (double)m->mapped * 1.024e-3);
    }
    return fclose(out) == 0 ? 0 : moge_fail(err, MOGE_IO, "cannot write %s", bench->csv);
}

static int load_run(struct load_bench *bench, struct moge_err *err) {
    struct stat st;
    struct found warm = {0};
    if (stat(bench->path, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size == 0)
        return moge_fail(err, MOGE_IO, "%s cannot be read as a file", bench->path);
    bench->file_bytes = (size_t)st.st_size;
    long n_cpus = sysconf(_SC_NPROCESSORS_ONLN);
    bench->n_threads = n_cpus < 1 ? 1 : n_cpus > LOAD_THREADS_MAX ? LOAD_THREADS_MAX : (int)n_cpus;
    int rc = work_run(bench, WORK_READ, &warm, err);
    for (int i = 0; i < bench->repeats && rc == 0; i++)
        for (enum work work = 0; work < WORK_COUNT && rc == 0; work++)
            rc = work_run(bench, work, &bench->found[work][i], err);
    if (rc != 0)
        return rc;
    for (enum work work = 0; work < WORK_COUNT; work++)
        qsort(bench->found[work], (size_t)bench->repeats, sizeof warm, by_seconds);
    table_print(bench);
    return bench->csv ? csv_append(bench, err) : 0;
}

/* ---- options ---- */

static bool option_take(struct load_bench *bench, int option, const char *value) {
    char *end;
    switch (option) {
    case 'm':
        bench->path = value;
        return true;
    case 'p':
        bench->options.huge_pages = strcmp(value, "yes") == 0;
        return bench->options.huge_pages || strcmp(value, "no") == 0;
    case 'l':
        bench->options.mlock = true;
        return true;
    case 'r':
        bench->repeats = (int)strtol(value, &end, 10);
        return *end == '\0' && bench->repeats >= 1 && bench->repeats <= REPEATS_MAX;
    case 'c':
        bench->csv = value;
        return true;
    case 'M':
        bench->machine = value;
        return true;
    case 'C':
        bench->commit = value;
        return true;
    default:
        return false;
    }
}

int moge_bench_load(int argc, char **argv) {
    static const struct option options[] = {{"model", required_argument, NULL, 'm'},
                                            {"huge-pages", required_argument, NULL, 'p'},
                                            {"mlock", no_argument, NULL, 'l'},
                                            {"repeats", required_argument, NULL, 'r'},
                                            {"csv", required_argument, NULL, 'c'},
                                            {"machine", required_argument, NULL, 'M'},
                                            {"commit", required_argument, NULL, 'C'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    static struct load_bench bench = {
        .repeats = 5, .machine = "this", .commit = MOGE_VERSION, .options.huge_pages = true};
    struct moge_err err = {0};
    bool valid = true;
    int option;
    optind = 1;
    opterr = 0;
    while (valid && (option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'h') {
            fputs(usage_text, stdout);
            return 0;
        }
        valid = option_take(&bench, option, optarg);
    }
    if (!valid || !bench.path || optind != argc) {
        fputs("moge bench load: wrong or missing options; moge bench load --help says more\n",
              stderr);
        return 2;
    }
    int rc = load_run(&bench, &err);
    if (rc != 0)
        fprintf(stderr, "moge bench load: %s\n", err.text);
    return rc == 0 ? 0 : 1;
}
