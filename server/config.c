/* SPDX-License-Identifier: Apache-2.0 */
/* The table below is the whole truth about options.  Values are parsed by kind; a default is the
 * text one would write in the file, and goes through the same parser. */
#include "server/config.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <ini.h>

#include "moge/batch.h"
#include "moge/log.h"
#include "moge/threads.h"

enum kind {
    KIND_TEXT,    /* char [MOGE_PATH_BYTES] */
    KIND_LIST,    /* config->listen */
    KIND_FLAG,    /* bool */
    KIND_CHOICE,  /* int32_t index into choices */
    KIND_COUNT,   /* int32_t; a minimum of 0 also allows "auto" */
    KIND_OCTAL,   /* int32_t */
    KIND_NUMBER,  /* int64_t; as KIND_COUNT */
    KIND_SIZE,    /* int64_t bytes, with KiB, MiB, GiB; as KIND_COUNT */
    KIND_SECONDS, /* int64_t microseconds, written in seconds */
    KIND_LENGTH,  /* int32_t: off, auto or a number */
};

struct option_row {
    const char *name;
    enum kind kind;
    size_t offset;
    const char *normal; /* default */
    double min, max;
    const char *choices; /* words separated by '|' */
    const char *help;
};

#define AT(field) offsetof(struct moge_config, field)
#define GROUP(title)                                                                               \
    { NULL, KIND_TEXT, 0, NULL, 0, 0, NULL, title }

static const struct option_row rows[] = {
    GROUP("Model"),
    {"model", KIND_TEXT, AT(model), "", 0, 0, NULL,
     "GGUF file to serve.  Without it: the small pair that comes with moged."},
    {"draft", KIND_TEXT, AT(draft), "auto", 0, 0, NULL,
     "GGUF file of the draft model, or none.  auto: the embedded pair's own, otherwise none."},
    {"weights", KIND_CHOICE, AT(weights), "auto", 0, 0, "auto|as-stored|q8_0|q4_0|f32",
     "What to make of the weight matrices while loading.  auto: q8_0 for the embedded pair, "
     "as stored otherwise."},
    {"context", KIND_COUNT, AT(context), "auto", 0, 1 << 20, NULL,
     "Most tokens of one request, prompt and output together.  auto: what the model was made for, "
     "at most 32768."},
    {"kv-type", KIND_CHOICE, AT(kv_type), "f16", 0, 0, "f16|q8_0",
     "How the model's keys and values are kept.  q8_0 takes little more than half the memory, and "
     "rounds more."},
    {"draft-kv-type", KIND_CHOICE, AT(draft_kv_type), "f16", 0, 0, "f16|q8_0",
     "The same of the draft model, where it changes the speed alone."},
    {"mlock", KIND_FLAG, AT(mlock), "no", 0, 0, NULL, "Keep the weights in memory."},
    {"huge-pages", KIND_FLAG, AT(huge_pages), "yes", 0, 0, NULL,
     "Ask for huge pages for the weights."},
    GROUP("Speculation (changes the speed, never the output)"),
    {"speculation", KIND_LENGTH, AT(speculation), "auto", 1, MOGE_DRAFT_LEN_MAX, NULL,
     "off, auto, or a fixed number of guesses; a request may ask for another."},
    {"drafter", KIND_CHOICE, AT(drafter), "auto", 0, 0, "auto|model|ngram|both|none",
     "Where guesses come from: the draft model, n-gram lookup in the request's own tokens, or "
     "both, each guess by whoever is expected to be right more cheaply.  auto: both if there is a "
     "draft model, otherwise n-grams."},
    {"draft-len-max", KIND_COUNT, AT(draft_len_max), "16", 1, MOGE_DRAFT_LEN_MAX, NULL,
     "Most guesses at once."},
    {"calibrate", KIND_FLAG, AT(calibrate), "yes", 0, 0, NULL,
     "Try at start how long steps of several sizes take: for the time of 48 steps, a fifth of "
     "the loading time and a second at most.  no: the first requests tell."},
    GROUP("Listening"),
    {"listen", KIND_LIST, AT(listen), NULL, 0, 0, NULL,
     "unix:/path or ADDRESS:PORT; may be given several times.  Default: "
     "unix:/run/moged/moged.sock if that directory can be had, otherwise 127.0.0.1:7411."},
    {"allow-insecure-tcp", KIND_FLAG, AT(allow_insecure_tcp), "no", 0, 0, NULL,
     "Allow addresses that other machines can reach.  Connections are neither encrypted nor "
     "authenticated, and the gRPC library has known denial-of-service flaws."},
    {"socket-mode", KIND_OCTAL, AT(socket_mode), "660", 0, 0777, NULL,
     "Permissions of unix sockets, in octal."},
    {"max-connections", KIND_COUNT, AT(max_connections), "256", 1, 65536, NULL,
     "Connections beyond this are closed at once."},
    {"max-message-bytes", KIND_SIZE, AT(max_message_bytes), "4MiB", 1024, 1 << 28, NULL,
     "Largest request."},
    {"stall-timeout", KIND_SECONDS, AT(stall_timeout_us), "60", 0.1, 86400, NULL,
     "Seconds after which a stream whose reader takes nothing is cancelled."},
    {"drain-timeout", KIND_SECONDS, AT(drain_timeout_us), "30", 0, 86400, NULL,
     "Seconds that running streams have to finish after SIGTERM."},
    GROUP("Resources"),
    {"threads", KIND_COUNT, AT(threads), "auto", 0, MOGE_THREADS_MAX, NULL,
     "Threads that compute.  auto: one for each CPU the process may use, at most 32."},
    {"cq-threads", KIND_COUNT, AT(cq_threads), "1", 1, 16, NULL, "Threads that speak gRPC."},
    {"kv-memory", KIND_SIZE, AT(kv_memory), "auto", 0, 1e15, NULL,
     "Memory for the KV cache, such as 2GiB.  auto: what max-running contexts need, at most a "
     "quarter of the machine's memory, or of what its unit or container may have."},
    {"prefix-cache", KIND_FLAG, AT(prefix_cache), "yes", 0, 0, NULL,
     "Keep the KV of what was computed, as long as there is room, for requests that begin alike."},
    {"max-running", KIND_COUNT, AT(max_running), "16", 1, 1024, NULL, "Requests computed at once."},
    {"step-rows", KIND_COUNT, AT(step_rows), "256", 1, 8192, NULL,
     "Most tokens in one step, guesses included."},
    {"prefill-chunk", KIND_COUNT, AT(prefill_chunk), "128", 1, 8192, NULL,
     "Most prompt tokens of one request in one step."},
    {"max-queued", KIND_COUNT, AT(max_queued), "256", 1, 65536, NULL,
     "Requests that may wait; more are refused."},
    {"max-samples", KIND_COUNT, AT(max_samples), "8", 1, 64, NULL,
     "Most samples of one prompt that a request may ask for; each counts in max-queued."},
    {"max-queued-tokens", KIND_NUMBER, AT(max_queued_tokens), "1000000", 1, 1e12, NULL,
     "Prompt tokens that may wait; more are refused."},
    {"queue-age-max", KIND_SECONDS, AT(queue_age_max_us), "0", 0, 86400, NULL,
     "Seconds a request may wait for its turn before it is refused.  0: any."},
    {"admission", KIND_CHOICE, AT(admission), "optimistic", 0, 0, "optimistic|reserve",
     "KV pages that a request needs to be admitted.  optimistic: for its prompt; when pages run "
     "out, a request is set back and computed again.  reserve: for prompt and max_tokens, so that "
     "this never happens, and fewer run at once."},
    {"prefill-beside-decodes", KIND_COUNT, AT(prefill_beside_decodes), "auto", 0, 8192, NULL,
     "Most prompt tokens of a step that also serves running streams.  auto: by itl-target."},
    {"itl-target", KIND_SECONDS, AT(itl_target_us), "0.5", 0, 3600, NULL,
     "Seconds between tokens of running streams to aim at while prompts come in; prompts advance "
     "by at least 16 tokens a step.  0: no aim."},
    {"priority-aging", KIND_SECONDS, AT(priority_aging_us), "10", 0, 86400, NULL,
     "Seconds of waiting that are worth one level of priority.  0: priority is strict."},
    {"isa", KIND_CHOICE, AT(isa), "auto", 0, 0, "auto|scalar|avx2|avx512|vnni",
     "Best instruction set to use.  The output does not depend on it."},
    GROUP("Other"),
    {"log-level", KIND_CHOICE, AT(log_level), "info", 0, 0, "error|warning|info|debug",
     "What is worth a line on stderr."},
};

#define N_ROWS (sizeof rows / sizeof rows[0])

/* ---- values ---- */

static bool word_is(const char *value, const char *word) {
    return strcasecmp(value, word) == 0;
}

static int refuse(const struct option_row *row, const char *value, const char *where,
                  struct moge_err *err) {
    const char *words = row->min == 0 ? "auto, or " : "";
    switch (row->kind) {
    case KIND_FLAG:
        return moge_fail(err, MOGE_INVALID, "%s: %s is \"%.60s\"; it must be yes or no", where,
                         row->name, value);
    case KIND_CHOICE:
        return moge_fail(err, MOGE_INVALID, "%s: %s is \"%.60s\"; it must be one of %s", where,
                         row->name, value, row->choices);
    case KIND_LENGTH:
        return moge_fail(err, MOGE_INVALID, "%s: %s is \"%.60s\"; it must be off, auto or 1..%g",
                         where, row->name, value, row->max);
    case KIND_OCTAL:
        return moge_fail(err, MOGE_INVALID, "%s: %s is \"%.60s\"; it must be octal, 0..777", where,
                         row->name, value);
    case KIND_SIZE:
        return moge_fail(err, MOGE_INVALID,
                         "%s: %s is \"%.60s\"; it must be %sa size such as 512MiB or 2GiB, in "
                         "%.0f..%.0f bytes",
                         where, row->name, value, words, row->min, row->max);
    case KIND_SECONDS:
        return moge_fail(err, MOGE_INVALID, "%s: %s is \"%.60s\"; it must be %g..%g seconds", where,
                         row->name, value, row->min, row->max);
    default:
        return moge_fail(err, MOGE_INVALID, "%s: %s is \"%.60s\"; it must be %s%.0f..%.0f", where,
                         row->name, value, words, row->min > 0 ? row->min : 1, row->max);
    }
}

/* A decimal number with an optional unit; true when all of value was used and it is in range. */
static bool number_parse(const struct option_row *row, const char *value, double *out) {
    static const struct {
        const char *unit;
        double factor;
    } units[] = {{"", 1},
                 {"B", 1},
                 {"k", 1024.0},
                 {"KiB", 1024.0},
                 {"M", 1048576.0},
                 {"MiB", 1048576.0},
                 {"G", 1073741824.0},
                 {"GiB", 1073741824.0},
                 {"T", 1099511627776.0},
                 {"TiB", 1099511627776.0}};
    char *end;
    if (*value != '.' && (*value < '0' || *value > '9'))
        return false;
    if (value[0] == '0' && (value[1] == 'x' || value[1] == 'X'))
        return false;
    double number = strtod(value, &end);
    size_t n_units = row->kind == KIND_SIZE ? sizeof units / sizeof units[0] : 1;
    for (size_t i = 0; i < n_units; i++) {
        if (strcasecmp(end, units[i].unit) != 0)
            continue;
        number *= units[i].factor;
        bool whole = row->kind == KIND_SECONDS || floor(number) == number;
        *out = number;
        return whole && number >= row->min && number <= row->max;
    }
    return false;
}

static bool choice_parse(const char *choices, const char *value, int32_t *out) {
    size_t len = strlen(value);
    int32_t index = 0;
    for (const char *word = choices; word; index++) {
        const char *end = strchr(word, '|');
        size_t word_len = end ? (size_t)(end - word) : strlen(word);
        if (word_len == len && strncasecmp(word, value, len) == 0) {
            *out = index;
            return true;
        }
        word = end ? end + 1 : NULL;
    }
    return false;
}

static bool flag_parse(const char *value, bool *out) {
    bool yes = word_is(value, "yes") || word_is(value, "true") || word_is(value, "on") ||
               word_is(value, "1");
    bool no = word_is(value, "no") || word_is(value, "false") || word_is(value, "off") ||
              word_is(value, "0");
    if (yes || no)
        *out = yes;
    return yes || no;
}

static bool scalar_parse(const struct option_row *row, const char *value, void *field) {
    double number = 0;
    bool automatic = false; /* stored as 0 */
    char *end;
    switch (row->kind) {
    case KIND_FLAG:
        return flag_parse(value, field);
    case KIND_CHOICE:
        return choice_parse(row->choices, value, field);
    case KIND_OCTAL: {
        errno = 0;
        unsigned long mode = strtoul(value, &end, 8);
        if (*value < '0' || *value > '7' || *end || errno || (double)mode > row->max)
            return false;
        *(int32_t *)field = (int32_t)mode;
        return true;
    }
    case KIND_LENGTH:
        if (word_is(value, "off") || word_is(value, "auto")) {
            *(int32_t *)field =
                word_is(value, "off") ? MOGE_CONFIG_SPECULATION_OFF : MOGE_CONFIG_SPECULATION_AUTO;
            return true;
        }
        break;
    case KIND_COUNT:
    case KIND_NUMBER:
    case KIND_SIZE:
        automatic = row->min == 0 && word_is(value, "auto");
        break;
    default:
        break;
    }
    if (!automatic && !number_parse(row, value, &number))
        return false;
    if (row->kind == KIND_COUNT || row->kind == KIND_LENGTH)
        *(int32_t *)field = (int32_t)number;
    else
        *(int64_t *)field = (int64_t)(row->kind == KIND_SECONDS ? number * 1e6 : number);
    return true;
}

static int text_copy(char *field, const char *value, const char *name, const char *where,
                     struct moge_err *err) {
    size_t len = strlen(value);
    if (len >= MOGE_PATH_BYTES)
        return moge_fail(err, MOGE_LIMIT, "%s: %s has %zu bytes; at most %d are allowed", where,
                         name, len, MOGE_PATH_BYTES - 1);
    memcpy(field, value, len + 1);
    return 0;
}

static int row_set(struct moge_config *config, const struct option_row *row, const char *value,
                   const char *where, struct moge_err *err) {
    char *field = (char *)config + row->offset;
    if (row->kind == KIND_TEXT)
        return text_copy(field, value, row->name, where, err);
    if (row->kind == KIND_LIST) {
        if (config->n_listen == MOGE_LISTEN_MAX)
            return moge_fail(err, MOGE_LIMIT, "%s: more than %d addresses to listen on", where,
                             MOGE_LISTEN_MAX);
        int rc = text_copy(config->listen[config->n_listen], value, row->name, where, err);
        config->n_listen += rc == 0;
        return rc;
    }
    return scalar_parse(row, value, field) ? 0 : refuse(row, value, where, err);
}

/* ---- names ---- */

static const struct option_row *row_find(const char *name) {
    for (size_t i = 0; i < N_ROWS; i++)
        if (rows[i].name && strcmp(rows[i].name, name) == 0)
            return &rows[i];
    return NULL;
}

#define NAME_MAX_BYTES 32

/* Levenshtein distance of two names, cut to NAME_MAX_BYTES. */
static int name_distance(const char *a, const char *b) {
    int before[NAME_MAX_BYTES + 1], now[NAME_MAX_BYTES + 1];
    int len_a = (int)strnlen(a, NAME_MAX_BYTES), len_b = (int)strnlen(b, NAME_MAX_BYTES);
    for (int j = 0; j <= len_b; j++)
        before[j] = j;
    for (int i = 1; i <= len_a; i++) {
        now[0] = i;
        for (int j = 1; j <= len_b; j++) {
            int best = before[j - 1] + (a[i - 1] != b[j - 1]);
            best = before[j] + 1 < best ? before[j] + 1 : best;
            now[j] = now[j - 1] + 1 < best ? now[j - 1] + 1 : best;
        }
        memcpy(before, now, sizeof before);
    }
    return before[len_b];
}

static int name_unknown(const char *name, const char *where, struct moge_err *err) {
    const char *nearest = NULL;
    int best = INT_MAX;
    for (size_t i = 0; i < N_ROWS; i++) {
        int distance = rows[i].name ? name_distance(name, rows[i].name) : INT_MAX;
        if (distance < best) {
            best = distance;
            nearest = rows[i].name;
        }
    }
    return moge_fail(err, MOGE_INVALID,
                     "%s: there is no option \"%.40s\"; the nearest one is \"%s\"", where, name,
                     nearest);
}

void moge_config_init(struct moge_config *config) {
    memset(config, 0, sizeof *config);
    for (size_t i = 0; i < N_ROWS; i++)
        if (rows[i].name && rows[i].normal) {
            int rc = row_set(config, &rows[i], rows[i].normal, "default", NULL);
            MOGE_ASSERT(rc == 0);
        }
}

int moge_config_set(struct moge_config *config, const char *name, const char *value,
                    const char *where, struct moge_err *err) {
    const struct option_row *row = row_find(name);
    return row ? row_set(config, row, value, where, err) : name_unknown(name, where, err);
}

/* ---- file ---- */

struct reading {
    struct moge_config *config;
    const char *path;
    FILE *file;
    struct moge_err *err;
    int line, rc;
};

static char *next_line(char *buffer, int size, void *arg) {
    struct reading *reading = arg;
    char *line = fgets(buffer, size, reading->file);
    reading->line += line != NULL;
    return line;
}

/* Called by libinih; section headings are decoration.  0 stops at this line. */
static int file_line(void *arg, const char *section, const char *name, const char *value) {
    (void)section;
    struct reading *reading = arg;
    char where[MOGE_ERR_TEXT_MAX / 2];
    snprintf(where, sizeof where, "%.60s line %d", reading->path, reading->line);
    if (reading->rc == 0)
        reading->rc = moge_config_set(reading->config, name, value, where, reading->err);
    return reading->rc == 0;
}

int moge_config_read(struct moge_config *config, const char *path, struct moge_err *err) {
    struct reading reading = {
        .config = config, .path = path, .file = fopen(path, "re"), .err = err};
    if (!reading.file)
        return moge_fail(err, MOGE_IO, "cannot read the configuration file %.120s: %s", path,
                         strerror(errno));
    int line = ini_parse_stream(next_line, &reading, file_line, &reading);
    fclose(reading.file);
    if (reading.rc)
        return reading.rc;
    if (line != 0)
        return moge_fail(err, MOGE_INVALID, "%.120s line %d is not of the form \"name = value\"",
                         path, line < 0 ? 0 : line);
    return 0;
}

/* ---- command line ---- */

enum { OPT_HELP = 1000, OPT_VERSION, OPT_CONFIG };

static void long_options_fill(struct option *options) {
    size_t n = 0;
    for (size_t i = 0; i < N_ROWS; i++)
        if (rows[i].name)
            options[n++] = (struct option){
                rows[i].name, rows[i].kind == KIND_FLAG ? optional_argument : required_argument,
                NULL, (int)i};
    options[n++] = (struct option){"help", no_argument, NULL, OPT_HELP};
    options[n++] = (struct option){"version", no_argument, NULL, OPT_VERSION};
    options[n++] = (struct option){"config", required_argument, NULL, OPT_CONFIG};
    options[n] = (struct option){0};
}

/* What getopt_long stopped at: an unknown name, or one without its value. */
static int option_wrong(int argc, char **argv, struct moge_err *err) {
    const char *arg = optind - 1 < argc ? argv[optind - 1] : "";
    char name[NAME_MAX_BYTES + 1] = "";
    if (strncmp(arg, "--", 2) != 0)
        return moge_fail(err, MOGE_INVALID, "command line: \"%.60s\" is not an option; see --help",
                         arg);
    snprintf(name, sizeof name, "%.*s", (int)strcspn(arg + 2, "="), arg + 2);
    if (row_find(name) || strcmp(name, "config") == 0)
        return moge_fail(err, MOGE_INVALID, "command line: --%s needs a value", name);
    if (strcmp(name, "help") == 0 || strcmp(name, "version") == 0)
        return moge_fail(err, MOGE_INVALID, "command line: --%s takes no value", name);
    return name_unknown(name, "command line", err);
}

/* One walk over the arguments: with config NULL it looks for --config, --help and --version only.
 */
static int arguments_walk(struct moge_config *config, int argc, char **argv,
                          enum moge_config_action *action, const char **path,
                          struct moge_err *err) {
    struct option options[N_ROWS + 4];
    long_options_fill(options);
    bool listen_seen = false;
    opterr = 0;
    optind = 0;
    for (int c; (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        if (c == OPT_HELP || c == 'h') {
            *action = MOGE_CONFIG_HELP;
        } else if (c == OPT_VERSION) {
            *action = MOGE_CONFIG_VERSION;
        } else if (c == OPT_CONFIG) {
            *path = optarg;
        } else if (c == '?' || c == ':') {
            return option_wrong(argc, argv, err);
        } else if (config) {
            if (rows[c].kind == KIND_LIST && !listen_seen)
                config->n_listen = 0; /* the command line replaces the file's list */
            listen_seen |= rows[c].kind == KIND_LIST;
            int rc = row_set(config, &rows[c], optarg ? optarg : "yes", "command line", err);
            if (rc)
                return rc;
        }
    }
    if (optind < argc)
        return moge_fail(err, MOGE_INVALID, "command line: \"%.60s\" is not an option; see --help",
                         argv[optind]);
    return 0;
}

static int together_check(const struct moge_config *config, struct moge_err *err) {
    if (config->max_running > config->step_rows)
        return moge_fail(err, MOGE_INVALID,
                         "max-running is %d, more than the %d tokens of a step: raise step-rows",
                         config->max_running, config->step_rows);
    if (config->speculation > config->draft_len_max)
        return moge_fail(err, MOGE_INVALID,
                         "speculation is %d, more than draft-len-max allows (%d)",
                         config->speculation, config->draft_len_max);
    if (strcmp(config->draft, "none") == 0 && (config->drafter == MOGE_CONFIG_DRAFTER_MODEL ||
                                               config->drafter == MOGE_CONFIG_DRAFTER_BOTH))
        return moge_fail(err, MOGE_INVALID, "drafter is %s, but draft is none",
                         config->drafter == MOGE_CONFIG_DRAFTER_MODEL ? "model" : "both");
    return 0;
}

int moge_config_load(struct moge_config *config, int argc, char **argv,
                     enum moge_config_action *action, struct moge_err *err) {
    const char *path = NULL;
    *action = MOGE_CONFIG_RUN;
    moge_config_init(config);
    int rc = arguments_walk(NULL, argc, argv, action, &path, err);
    if (rc || *action != MOGE_CONFIG_RUN)
        return rc;
    if (path && (rc = moge_config_read(config, path, err)) != 0)
        return rc;
    rc = arguments_walk(config, argc, argv, action, &path, err);
    return rc ? rc : together_check(config, err);
}

/* ---- help ---- */

#define HELP_COLUMN 30
#define HELP_WIDTH  96

/* Writes text in words, with a hanging indent; returns the column after it. */
static int words_write(FILE *out, const char *text, int column) {
    while (*text) {
        int len = (int)strcspn(text, " ");
        if (column + len + 1 > HELP_WIDTH) {
            fprintf(out, "\n%*s", HELP_COLUMN, "");
            column = HELP_COLUMN;
        }
        column += fprintf(out, "%s%.*s", column > HELP_COLUMN ? " " : "", len, text);
        text += len;
        text += strspn(text, " ");
    }
    return column;
}

static void row_help(FILE *out, const struct option_row *row) {
    static const char *const values[] = {
        [KIND_TEXT] = " FILE",    [KIND_LIST] = " ADDRESS", [KIND_FLAG] = "",
        [KIND_CHOICE] = " NAME",  [KIND_COUNT] = " N",      [KIND_OCTAL] = " MODE",
        [KIND_NUMBER] = " N",     [KIND_SIZE] = " SIZE",    [KIND_SECONDS] = " SECONDS",
        [KIND_LENGTH] = " LENGTH"};
    int n = fprintf(out, "  --%s%s", row->name, values[row->kind]);
    n += fprintf(out, "%*s", n < HELP_COLUMN ? HELP_COLUMN - n : 1, "");
    n = words_write(out, row->help, n);
    char normal[160] = "";
    if (row->choices)
        snprintf(normal, sizeof normal, "(%s; default %s)", row->choices, row->normal);
    else if (row->normal && *row->normal)
        snprintf(normal, sizeof normal, "(default %s)", row->normal);
    words_write(out, normal, n);
    fputc('\n', out);
}

void moge_config_help(FILE *out) {
    fputs("moged serves one MoGE language model over gRPC.\n\n"
          "usage: moged [--config FILE] [--option value ...]\n\n"
          "Options can also stand in the configuration file, one \"option = value\" a line; those\n"
          "on the command line win.  Without any, moged serves the small model pair it comes "
          "with.\n",
          out);
    for (size_t i = 0; i < N_ROWS; i++) {
        if (rows[i].name)
            row_help(out, &rows[i]);
        else
            fprintf(out, "\n%s:\n", rows[i].help);
    }
    fprintf(out, "  --config FILE%*sRead this file first.\n", HELP_COLUMN - 15, "");
    fprintf(out, "  --version%*sPrint the version.\n", HELP_COLUMN - 11, "");
    fprintf(out, "  --help%*sPrint this text.\n", HELP_COLUMN - 8, "");
    fputs("\nSIGTERM or SIGINT drains: running streams finish, then moged exits; a second one ends "
          "them.\n",
          out);
}
