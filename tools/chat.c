/* SPDX-License-Identifier: Apache-2.0 */
/* moge chat: a conversation in the terminal, in the format of Pangu's chat models:
 *
 *      [unused9]系统：system[unused10][unused9]用户：question[unused10][unused9]助手：answer[unused10]...
 *
 * The marks are control tokens of the model's vocabulary.  A model that lacks them was not made for
 * chat, and is not chatted with.  Every turn sends the whole conversation again. */
#include "tools/commands.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "tools/client_generate.h"

#define TURN_BEGIN  "[unused9]"
#define TURN_END    "[unused10]"
#define SYSTEM_NAME "系统："
#define USER_NAME   "用户："
#define MODEL_NAME  "助手："

static const char usage_text[] =
    "Usage: moge chat [options]\n"
    "Chats with a Pangu chat model: a line of standard input is a question.  End with Ctrl-D.\n"
    "\n"
    "  --connect ADDR     unix:/path or host:port of moged (" MOGE_DEFAULT_ADDRESS ")\n"
    "  --system TEXT      what the model is told beforehand\n"
    "  --fast             ask the model not to think first (Pangu's /no_think)\n"
    "\n"
    "Ctrl-C ends an answer; at the prompt it ends the chat.\n";

struct chat {
    const char *address, *system;
    bool fast, help;
    struct moge_client *client;
    char *text; /* [len] the conversation so far */
    size_t len, cap;
};

static atomic_bool interrupted;

static void interrupt(int signal) {
    (void)signal;
    atomic_store(&interrupted, true);
}

/* Without SA_RESTART, so that Ctrl-C also ends the wait for a line. */
static void interrupt_catch(void) {
    struct sigaction action = {.sa_handler = interrupt};
    sigaction(SIGINT, &action, NULL);
}

static int text_append(struct chat *chat, const char *text, size_t len, struct moge_err *err) {
    if (chat->cap - chat->len < len) {
        size_t cap = 2 * (chat->len + len);
        char *grown = realloc(chat->text, cap);
        if (grown == NULL)
            return moge_fail(err, MOGE_NOMEM, "out of memory");
        chat->text = grown;
        chat->cap = cap;
    }
    if (len > 0)
        memcpy(chat->text + chat->len, text, len);
    chat->len += len;
    return 0;
}

static int turn_append(struct chat *chat, const char *name, const char *text, const char *more,
                       struct moge_err *err) {
    const char *parts[] = {TURN_BEGIN, name, text, more, TURN_END};
    int rc = 0;
    for (size_t i = 0; i < sizeof parts / sizeof parts[0] && rc == 0; i++)
        rc = text_append(chat, parts[i], strlen(parts[i]), err);
    return rc;
}

static int answer_take(void *arg, const char *text, size_t len, const uint32_t *ids, size_t n_ids,
                       struct moge_err *err) {
    (void)ids, (void)n_ids;
    fwrite(text, 1, len, stdout);
    fflush(stdout);
    return text_append(arg, text, len, err);
}

/* A control token is one token; text that only looks like it is several. */
static int marks_check(struct chat *chat, struct moge_err *err) {
    static const char *const marks[] = {TURN_BEGIN, TURN_END};
    for (int i = 0; i < 2; i++) {
        size_t n_ids;
        int rc = moge_client_count_tokens(chat->client, marks[i], &n_ids, err);
        if (rc != 0)
            return rc;
        if (n_ids != 1)
            return moge_fail(err, MOGE_INVALID,
                             "the model at %s was not made for chat: its vocabulary has no %s.  "
                             "moge complete continues a text",
                             chat->address, marks[i]);
    }
    return 0;
}

/* One question and its answer; an interrupted answer stays in the conversation as far as it came.
 */
static int turn_run(struct chat *chat, const char *question, struct moge_err *err) {
    struct moge_client_finish finish;
    const char *opening = TURN_BEGIN MODEL_NAME;
    int rc = turn_append(chat, USER_NAME, question, chat->fast ? " /no_think" : "", err);
    if (rc == 0)
        rc = text_append(chat, opening, strlen(opening), err);
    if (rc != 0)
        return rc;
    struct moge_client_request request = {
        .prompt_len = chat->len, .parse_special = true, .cancelled = &interrupted};
    /* The answer is appended while the request is still read: hand over a copy. */
    char *prompt = malloc(chat->len);
    if (prompt == NULL)
        return moge_fail(err, MOGE_NOMEM, "out of memory");
    memcpy(prompt, chat->text, chat->len);
    request.prompt = prompt;
    rc = moge_client_generate(chat->client, &request, answer_take, chat, &finish, err);
    free(prompt);
    printf("\n");
    if (rc == MOGE_CANCELLED && atomic_exchange(&interrupted, false))
        rc = 0;
    return rc != 0 ? rc : text_append(chat, TURN_END, strlen(TURN_END), err);
}

static int chat_run(struct chat *chat, struct moge_err *err) {
    int rc = moge_client_open(&chat->client, chat->address, err);
    if (rc == 0)
        rc = marks_check(chat, err);
    if (rc == 0)
        rc = turn_append(chat, SYSTEM_NAME, chat->system, "", err);
    bool is_terminal = isatty(STDIN_FILENO) == 1;
    char *line = NULL;
    size_t line_cap = 0;
    interrupt_catch();
    while (rc == 0) {
        if (is_terminal) {
            fputs("> ", stdout);
            fflush(stdout);
        }
        ssize_t n = getline(&line, &line_cap, stdin);
        if (n <= 0)
            break;
        if (line[n - 1] == '\n')
            line[--n] = '\0';
        if (n > 0)
            rc = turn_run(chat, line, err);
    }
    free(line);
    return rc;
}

static int options_read(struct chat *chat, int argc, char **argv, struct moge_err *err) {
    static const struct option options[] = {
        {"connect", required_argument, NULL, 'c'},
        {"system", required_argument, NULL, 's'},
        {"fast", no_argument, NULL, 'f'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    int option;
    optind = 1;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'c')
            chat->address = optarg;
        else if (option == 's')
            chat->system = optarg;
        else if (option == 'f')
            chat->fast = true;
        else if (option == 'h')
            chat->help = true;
        else
            return moge_fail(err, MOGE_INVALID, "%s is no option, or lacks its value",
                             argv[optind - 1]);
    }
    if (optind < argc)
        return moge_fail(err, MOGE_INVALID, "'%s' is no option", argv[optind]);
    return 0;
}

int moge_command_chat(int argc, char **argv) {
    struct chat chat = {.address = MOGE_DEFAULT_ADDRESS, .system = ""};
    struct moge_err err = {0};
    int status = 0;
    int rc = options_read(&chat, argc, argv, &err);
    if (rc != 0)
        status = 2;
    else if (chat.help)
        fputs(usage_text, stdout);
    else if ((rc = chat_run(&chat, &err)) != 0)
        status = 1;
    if (rc != 0)
        fprintf(stderr, "moge chat: %s\n", err.text);
    moge_client_close(chat.client);
    free(chat.text);
    return status;
}
