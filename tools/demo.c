/* SPDX-License-Identifier: Apache-2.0 */
/* moge demo: the two promises, seen from a client.  The same prompts are streamed at once with
 * speculation off and auto, in turn and several times, one stream and several; wall time is
 * measured, bytes are compared. */
#include "tools/clock.h"
#include "tools/commands.h"

#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tools/client_generate.h"
#include "tools/screen.h"

#define STREAMS_MAX    16
#define ROUNDS_MAX     32
#define TEXT_BYTES_MAX 65536
#define REDRAW_MS      80
#define TIMEOUT_US     (300 * 1000000ll)

static const char usage_text[] =
    "Usage: moge demo [options]\n"
    "Streams several prompts at once from a running moged, with speculation off and auto in turn,\n"
    "and shows tokens per second, how many guesses were right, and whether the bytes are the "
    "same.\n"
    "\n"
    "  --connect ADDR    unix:/path or host:port of moged (" MOGE_DEFAULT_ADDRESS ")\n"
    "  --streams N       how many at once, 1..16 (default 4)\n"
    "  --max-tokens N    tokens of each stream (default 384)\n"
    "  --rounds N        rounds of each kind, 1..32 (default 5)\n"
    "\n"
    "Exit status: 0 all runs gave the same bytes, 1 they did not or something failed.\n";

/* Every second one is sampled: the promise holds for sampling too. */
static const struct {
    const char *text;
    float temperature;
} prompts[] = {
    {"The query planner chooses", 0},        {"An index on an expression is", 0.8f},
    {"SQLite is a library that", 0},         {"When a transaction is rolled back,", 1},
    {"static int vdbeSorterSort(", 0},       {"The CREATE TABLE statement", 0.8f},
    {"If the database file is corrupt,", 0}, {"/*\n** This routine returns", 1},
};
#define N_PROMPTS (sizeof prompts / sizeof prompts[0])

struct stream {
    struct moge_client *client; /* constant while the thread runs, like request */
    struct moge_client_request request;
    char label[16];
    pthread_mutex_t lock; /* guards text, text_len, n_tokens, done */
    char text[TEXT_BYTES_MAX];
    size_t text_len;
    int32_t n_tokens;
    bool done;
    int rc; /* this and the rest: once done */
    struct moge_client_finish finish;
    struct moge_err err;
};

/* The first text of every prompt, which all others must equal. */
struct reference {
    bool known;
    size_t text_len;
    char text[TEXT_BYTES_MAX];
};

/* All rounds of one number of streams. */
struct contest {
    int n_streams;
    int n_rounds; /* measured so far, of each mode */
    double tok_s[2][ROUNDS_MAX];
    struct moge_client_guesses guesses; /* sums of the counts over the auto rounds */
};
static const char *const mode_names[2] = {"off", "auto"};

struct demo {
    const char *address;
    int n_streams, n_rounds, max_tokens;
    bool help;
    struct moge_client *client;
    struct moge_screen screen;
    struct stream *streams;       /* [n_streams] */
    struct reference *references; /* [n_streams] */
    int n_compared, n_different;
};

static atomic_bool interrupted;

static void interrupt(int signal) {
    (void)signal;
    atomic_store(&interrupted, true);
}

/* ---- one stream, one thread ---- */

static int delta_take(void *arg, const char *text, size_t len, const uint32_t *ids, size_t n_ids,
                      struct moge_err *err) {
    struct stream *stream = arg;
    (void)ids;
    pthread_mutex_lock(&stream->lock);
    bool fits = len <= TEXT_BYTES_MAX - stream->text_len;
    if (fits && len > 0)
        memcpy(stream->text + stream->text_len, text, len);
    stream->text_len += fits ? len : 0;
    stream->n_tokens += (int32_t)n_ids;
    pthread_mutex_unlock(&stream->lock);
    return fits ? 0
                : moge_fail(err, MOGE_LIMIT, "a stream is longer than %d bytes", TEXT_BYTES_MAX);
}

static void *stream_run(void *arg) {
    struct stream *stream = arg;
    stream->rc = moge_client_generate(stream->client, &stream->request, delta_take, stream,
                                      &stream->finish, &stream->err);
    pthread_mutex_lock(&stream->lock);
    stream->done = true;
    pthread_mutex_unlock(&stream->lock);
    return NULL;
}

static void stream_reset(struct stream *stream, const struct demo *demo, int i, int mode) {
    snprintf(stream->label, sizeof stream->label, "%2d  ", i + 1);
    size_t p = (size_t)i % N_PROMPTS;
    stream->client = demo->client;
    stream->request = (struct moge_client_request){
        .prompt = prompts[p].text,
        .prompt_len = strlen(prompts[p].text),
        .has_max_tokens = true,
        .max_tokens = demo->max_tokens,
        .has_temperature = true,
        .temperature = prompts[p].temperature,
        .has_seed = true,
        .seed = (uint64_t)i + 1,
        .has_speculation = true,
        .spec_mode = mode == 0 ? MOGE_SPEC_OFF : MOGE_SPEC_AUTO,
        .timeout_us = TIMEOUT_US,
        .cancelled = &interrupted,
    };
    stream->text_len = 0;
    stream->n_tokens = 0;
    stream->done = false;
    stream->rc = 0;
}

/* ---- one round: n streams at once ---- */

/* Draws the streams; true when all are done. */
static bool round_draw(struct demo *demo, int n_streams, const char *title, double begin_s) {
    int32_t n_tokens = 0;
    int n_done = 0;
    char line[160];
    moge_screen_rewind(&demo->screen);
    for (int i = 0; i < n_streams; i++) {
        struct stream *stream = &demo->streams[i];
        char shown[512 + 64];
        pthread_mutex_lock(&stream->lock);
        size_t n = stream->text_len < 512 ? stream->text_len : 512;
        size_t n_prompt = n < 512 ? strlen(stream->request.prompt) : 0;
        memcpy(shown, stream->request.prompt, n_prompt);
        memcpy(shown + n_prompt, stream->text + stream->text_len - n, n);
        n_tokens += stream->n_tokens;
        n_done += stream->done;
        pthread_mutex_unlock(&stream->lock);
        moge_screen_line(&demo->screen, stream->label, shown, n_prompt + n);
    }
    double elapsed_s = moge_clock_s() - begin_s;
    snprintf(line, sizeof line, "    %s: %d tokens, %.1f s, %.0f tok/s", title, n_tokens, elapsed_s,
             n_tokens / elapsed_s);
    moge_screen_line(&demo->screen, line, "", 0);
    fflush(stdout);
    return n_done == n_streams;
}

/* Runs the threads and leaves their results in demo->streams. */
static int round_run(struct demo *demo, int n_streams, int mode, const char *title, double *wall_s,
                     struct moge_err *err) {
    pthread_t threads[STREAMS_MAX];
    int n_started = 0, rc = 0;
    for (int i = 0; i < n_streams; i++)
        stream_reset(&demo->streams[i], demo, i, mode);
    double begin_s = moge_clock_s();
    while (n_started < n_streams &&
           pthread_create(&threads[n_started], NULL, stream_run, &demo->streams[n_started]) == 0)
        n_started++;
    if (n_started < n_streams) {
        atomic_store(&interrupted, true);
        rc = moge_fail(err, MOGE_NOMEM, "a thread cannot be created");
    }
    while (demo->screen.live && n_started == n_streams &&
           !round_draw(demo, n_streams, title, begin_s))
        nanosleep(&(struct timespec){.tv_nsec = REDRAW_MS * 1000000l}, NULL);
    for (int i = 0; i < n_started; i++)
        pthread_join(threads[i], NULL);
    *wall_s = moge_clock_s() - begin_s;
    for (int i = 0; i < n_started && rc == 0; i++)
        if ((rc = demo->streams[i].rc) != 0)
            *err = demo->streams[i].err;
    return rc;
}

/* ---- comparing and counting ---- */

static void bytes_compare(struct demo *demo, int i, const char *title) {
    struct reference *reference = &demo->references[i];
    const struct stream *stream = &demo->streams[i];
    if (!reference->known) {
        memcpy(reference->text, stream->text, stream->text_len);
        reference->text_len = stream->text_len;
        reference->known = true;
        return;
    }
    demo->n_compared++;
    size_t n = stream->text_len < reference->text_len ? stream->text_len : reference->text_len;
    size_t same = 0;
    while (same < n && stream->text[same] == reference->text[same])
        same++;
    if (same == n && stream->text_len == reference->text_len)
        return;
    demo->n_different++;
    printf("DIFFERENT BYTES: %s, stream %d, from byte %zu on\n", title, i + 1, same);
}

static void guesses_add(struct moge_client_guesses *sum, const struct moge_client_guesses *more) {
    sum->n_offered += more->n_offered;
    sum->n_accepted += more->n_accepted;
    if (sum->n_positions < more->n_positions)
        sum->n_positions = more->n_positions;
    for (int32_t p = 0; p < more->n_positions; p++) {
        sum->offered_at[p] += more->offered_at[p];
        sum->accepted_at[p] += more->accepted_at[p];
    }
}

static int double_compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *values, int n) {
    double sorted[ROUNDS_MAX];
    memcpy(sorted, values, (size_t)n * sizeof sorted[0]);
    qsort(sorted, (size_t)n, sizeof sorted[0], double_compare);
    return n % 2 == 1 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

/* One round of each mode; who begins changes, so that neither gains from a machine that speeds up
 * or slows down. */
static int pair_run(struct demo *demo, struct contest *contest, struct moge_err *err) {
    for (int turn = 0; turn < 2; turn++) {
        int mode = (turn + contest->n_rounds) % 2;
        char title[64];
        double wall_s;
        snprintf(title, sizeof title, "%d stream%s, round %d, speculation %s", contest->n_streams,
                 contest->n_streams == 1 ? "" : "s", contest->n_rounds + 1, mode_names[mode]);
        int rc = round_run(demo, contest->n_streams, mode, title, &wall_s, err);
        moge_screen_rewind(&demo->screen);
        if (rc != 0)
            return rc;
        int32_t n_tokens = 0;
        for (int i = 0; i < contest->n_streams; i++) {
            n_tokens += demo->streams[i].finish.n_output;
            bytes_compare(demo, i, title);
            if (mode == 1)
                guesses_add(&contest->guesses, &demo->streams[i].finish.guesses);
        }
        contest->tok_s[mode][contest->n_rounds] = n_tokens / wall_s;
        printf("  %s: %d tokens in %.2f s, %.1f tok/s\n", title, n_tokens, wall_s,
               n_tokens / wall_s);
        fflush(stdout);
    }
    contest->n_rounds++;
    return 0;
}

static int contest_run(struct demo *demo, struct contest *contest, struct moge_err *err) {
    for (int i = 0; i < demo->n_rounds; i++) {
        int rc = pair_run(demo, contest, err);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* ---- the report ---- */

static void model_print(const char *role, const struct moge_client_model *model) {
    printf("  %s %s: %s, %.1f M parameters", role, model->name, model->architecture,
           (double)model->n_params / 1e6);
    if (model->n_experts > 0)
        printf(", %.1f M of them active per token (%d experts in %d groups, %d used)",
               (double)model->n_params_active / 1e6, model->n_experts, model->n_groups,
               model->n_experts_used);
    printf(", %s\n", model->weights);
}

static void texts_print(const struct demo *demo) {
    printf("What was said:\n");
    for (int i = 0; i < demo->n_streams; i++) {
        const struct moge_client_request *request = &demo->streams[i].request;
        printf("--- %d (temperature %g, seed %d) ---\n%s", i + 1, (double)request->temperature,
               i + 1, request->prompt);
        fwrite(demo->references[i].text, 1, demo->references[i].text_len, stdout);
        printf("\n");
    }
    printf("---\n");
}

static void contest_print(const struct contest *contest) {
    double ratios[ROUNDS_MAX];
    const struct moge_client_guesses *guesses = &contest->guesses;
    for (int i = 0; i < contest->n_rounds; i++)
        ratios[i] = contest->tok_s[1][i] / contest->tok_s[0][i];
    printf("  %d stream%s: off %.1f tok/s, auto %.1f tok/s, auto is %.2fx (medians of %d)\n",
           contest->n_streams, contest->n_streams == 1 ? "" : "s",
           median(contest->tok_s[0], contest->n_rounds),
           median(contest->tok_s[1], contest->n_rounds), median(ratios, contest->n_rounds),
           contest->n_rounds);
    if (guesses->n_offered == 0) {
        printf("    no guesses were offered\n");
        return;
    }
    printf("    %d of %d guesses accepted: %.0f%%; by position", guesses->n_accepted,
           guesses->n_offered, 100.0 * guesses->n_accepted / guesses->n_offered);
    for (int32_t p = 0; p < guesses->n_positions && guesses->offered_at[p] > 0; p++)
        printf(" %.0f%%", 100.0 * guesses->accepted_at[p] / guesses->offered_at[p]);
    printf("\n");
}

static int demo_run(struct demo *demo, struct moge_err *err) {
    struct moge_client_info info;
    double wall_s;
    int rc = moge_client_info(demo->client, 30 * 1000000ll, &info, err);
    if (rc != 0)
        return rc;
    printf("moged %s, %d threads, %s\n", info.version, info.n_threads, info.isa);
    model_print("target", &info.target);
    if (info.draft.name[0] != '\0')
        model_print("draft", &info.draft);
    /* The first request pays for caches and page tables of all that follow. */
    rc = round_run(demo, 1, 1, "warm-up, not measured", &wall_s, err);
    moge_screen_rewind(&demo->screen);

    struct contest one = {.n_streams = 1}, all = {.n_streams = demo->n_streams};
    if (rc == 0)
        rc = contest_run(demo, &one, err);
    if (rc == 0 && all.n_streams > 1)
        rc = contest_run(demo, &all, err);
    if (rc != 0)
        return rc;
    texts_print(demo);
    printf("Summary\n");
    contest_print(&one);
    if (all.n_streams > 1)
        contest_print(&all);
    if (demo->n_different > 0)
        return moge_fail(err, MOGE_INTERNAL, "%d of %d outputs differ from the first one",
                         demo->n_different, demo->n_compared);
    printf("  the bytes are the same: %d outputs equal the first of their prompt\n",
           demo->n_compared);
    return 0;
}

/* ---- options ---- */

static int count_read(const char *name, int max, int *out, struct moge_err *err) {
    char *end;
    long value = strtol(optarg, &end, 10);
    if (end == optarg || *end != '\0' || value < 1 || value > max)
        return moge_fail(err, MOGE_INVALID, "--%s is '%s'; it must be a number from 1 to %d", name,
                         optarg, max);
    *out = (int)value;
    return 0;
}

static int options_read(struct demo *demo, int argc, char **argv, struct moge_err *err) {
    static const struct option options[] = {
        {"connect", required_argument, NULL, 'c'},
        {"streams", required_argument, NULL, 's'},
        {"max-tokens", required_argument, NULL, 'n'},
        {"rounds", required_argument, NULL, 'r'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    int option, rc = 0;
    optind = 1;
    opterr = 0;
    while (rc == 0 && (option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'c')
            demo->address = optarg;
        else if (option == 's')
            rc = count_read("streams", STREAMS_MAX, &demo->n_streams, err);
        else if (option == 'n')
            rc = count_read("max-tokens", 2048, &demo->max_tokens, err);
        else if (option == 'r')
            rc = count_read("rounds", ROUNDS_MAX, &demo->n_rounds, err);
        else if (option == 'h')
            demo->help = true;
        else
            rc = moge_fail(err, MOGE_INVALID, "%s is no option, or lacks its value",
                           argv[optind - 1]);
    }
    if (rc == 0 && optind < argc)
        rc = moge_fail(err, MOGE_INVALID, "'%s' is no option", argv[optind]);
    return rc;
}

static int demo_open_and_run(struct demo *demo, struct moge_err *err) {
    size_t n = (size_t)demo->n_streams;
    demo->screen = moge_screen_init();
    demo->streams = calloc(n, sizeof *demo->streams);
    demo->references = calloc(n, sizeof *demo->references);
    if (demo->streams == NULL || demo->references == NULL)
        return moge_fail(err, MOGE_NOMEM, "out of memory");
    for (size_t i = 0; i < n; i++)
        pthread_mutex_init(&demo->streams[i].lock, NULL);
    struct sigaction action = {.sa_handler = interrupt, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    int rc = moge_client_open(&demo->client, demo->address, err);
    return rc != 0 ? rc : demo_run(demo, err);
}

int moge_command_demo(int argc, char **argv) {
    struct demo demo = {
        .address = MOGE_DEFAULT_ADDRESS, .n_streams = 4, .n_rounds = 5, .max_tokens = 384};
    struct moge_err err = {0};
    int status = 0;
    int rc = options_read(&demo, argc, argv, &err);
    if (rc != 0)
        status = 2;
    else if (demo.help)
        fputs(usage_text, stdout);
    else if ((rc = demo_open_and_run(&demo, &err)) != 0)
        status = rc == MOGE_CANCELLED && atomic_load(&interrupted) ? 130 : 1;
    if (rc != 0)
        fprintf(stderr, "moge demo: %s\n", err.text);
    moge_client_close(demo.client);
    free(demo.streams);
    free(demo.references);
    return status;
}
