/* SPDX-License-Identifier: Apache-2.0 */
/* The scheduler against a world made from a seed: random arrivals, prompts, lengths, priorities,
 * cancels, deadlines, slow readers and page famine.  Engine, drafter and tokenizer are
 * fakes that remember everything (fake_engine.h).
 *
 * Invariants, each step: pages conserved, lists sound, no allocation, the head of the line never
 * preempted; per request: the right tokens in order, cancel reaped by the next step, everybody
 * finishes.  Usage: sched_sim [n_seeds [first_seed]]. */
#include "tests/test.h"

#include <math.h>
#include <stdbool.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/schedule/scheduler.h"

enum { CONTEXT = 192, ROWS_MAX = 64, PAGES_MAX = 64, SLOTS_MAX = 8, N_REQS = 24 };
#include "tests/schedule/fake_engine.h"
#include "tests/schedule/rig.h"

/* ---- allocation counter ---- */

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
static int64_t n_allocations;
void *__wrap_malloc(size_t n) {
    n_allocations++;
    return __real_malloc(n);
}
void *__wrap_calloc(size_t n, size_t size) {
    n_allocations++;
    return __real_calloc(n, size);
}
void *__wrap_realloc(void *p, size_t n) {
    n_allocations++;
    return __real_realloc(p, n);
}

/* ---- one seeded life ---- */

struct client {
    struct moge_req *req;
    int32_t expected[CONTEXT]; /* tokens that must come, in order */
    int32_t n_expected;
    enum moge_finish expected_finish;
    char expected_text[4 * CONTEXT], text[4 * CONTEXT];
    size_t text_len;
    int32_t n_got, n_scored;
    uint64_t scored_hash; /* of the prompt before the next scored token */
    int patience;         /* reads a token in patience of 8 steps: 0 never while slow */
    int64_t cancel_step;  /* -1: never */
    bool submitted, cancelled, done, expired;
    /* before the step */
    bool was_waiting; /* in line, and not for its reader */
    bool was_stalled;
    int64_t admitted_us;
    int32_t n_preempted;
};

struct world {
    uint64_t seed;
    struct test_rng rng;
    struct rig rig;
    struct moge_sched_options options;
    struct client clients[N_REQS];
    bool grows; /* short prompts with long answers: pages run out in the middle */
};

/* What the lives have met, so that a world too kind to prove anything is noticed. */
static int64_t n_finished[MOGE_FINISH_ERROR + 1], n_preempted, n_accepted, n_by_string;
static int64_t n_refused_age, n_refused_deadline, n_tokens, n_recomputed, n_computed, n_cached;
static int64_t n_scores, n_forked;
static double worst_preempted; /* preemptions a token, of any life */

static bool stops_here(const struct moge_req *req, const char *text, size_t *cut) {
    size_t best = SIZE_MAX;
    for (int32_t i = 0; i < req->n_stop_strings; i++) {
        const char *found = strstr(text, req->stop_strings[i]);
        if (!found)
            continue;
        size_t at = (size_t)(found - text);
        if (at < best)
            best = at;
    }
    *cut = best;
    return best != SIZE_MAX;
}

/* The whole output of a request, from the definition alone. */
static void expect(struct client *c) {
    const struct moge_req *req = c->req;
    uint64_t hash = 1;
    for (int32_t p = 0; p < req->n_prompt; p++)
        hash = history_step(hash, req->tokens[p]);
    c->expected_finish = MOGE_FINISH_LENGTH;
    while (c->n_expected < req->max_tokens && req->n_prompt + c->n_expected < CONTEXT) {
        int32_t id = next_token(hash);
        hash = history_step(hash, id);
        c->expected[c->n_expected++] = id;
        strcat(c->expected_text, piece_of(id));
        size_t cut;
        if (stops_here(req, c->expected_text, &cut))
            c->expected_text[cut] = 0;
        else if (id != EOS)
            continue;
        c->expected_finish = MOGE_FINISH_STOP;
        return;
    }
}

/* The clients behind c that have nothing yet become readers of further samples. */
static int32_t samples_draw(struct world *w, const struct client *c) {
    int32_t n = test_below(&w->rng, 4) ? 1 : 1 + test_below(&w->rng, 4), n_idle = 1;
    while (n_idle < n && c + n_idle < w->clients + N_REQS && !c[n_idle].submitted)
        n_idle++;
    return n_idle;
}

static void client_submit(struct world *w, struct client *c) {
    struct moge_req *req = moge_reqs_take(w->rig.reqs);
    if (!req)
        return;
    c->req = req;
    req->n_samples = samples_draw(w, c);
    bool is_short = w->grows || test_below(&w->rng, 2);
    req->n_prompt = 1 + test_below(&w->rng, is_short ? 10 : CONTEXT - 2);
    /* Some begin alike, and some of these keep to themselves. */
    struct test_rng common = test_rng_init(7 + (uint64_t)test_below(&w->rng, 2));
    bool begins_alike = test_below(&w->rng, 2);
    for (int32_t i = 0; i < req->n_prompt; i++)
        req->tokens[i] = test_below(begins_alike && i < CONTEXT / 2 ? &common : &w->rng, VOCAB);
    if (test_below(&w->rng, 4) == 0)
        req->cache_salt[req->cache_salt_len++] = 'a';
    req->max_tokens = 1 + test_below(&w->rng, w->grows ? CONTEXT : 60);
    req->spec_mode = test_below(&w->rng, 4) ? MOGE_SPEC_AUTO : MOGE_SPEC_OFF;
    req->priority = test_below(&w->rng, 5) == 0 ? test_below(&w->rng, 7) - 3 : 0;
    req->n_prompt_logprobs = test_below(&w->rng, 4) ? -1 : test_below(&w->rng, 5);
    req->stop_ids[0] = EOS;
    req->sample.n_stop_ids = 1;
    req->submitted_us = fake_now_us;
    if (test_below(&w->rng, 3) == 0) {
        static const char *const stops[] = {"abcabcd", "ddd", "cbcab"};
        req->n_stop_strings = 1 + test_below(&w->rng, 3);
        for (int32_t i = 0; i < req->n_stop_strings; i++) {
            strcpy(req->stop_strings[i], stops[i]);
            req->stop_string_len[i] = (uint16_t)strlen(stops[i]);
        }
    }
    if (test_below(&w->rng, 8) == 0)
        req->deadline_us = fake_now_us + 1000 * test_below(&w->rng, 40);
    struct moge_err err;
    int rc = moge_req_fan_out(w->rig.reqs, req, &err);
    if (rc == 0)
        rc = moge_queue_submit(w->rig.queue, req, &err);
    if (rc != 0) { /* the queue is full: try again later with another one */
        assert_int_equal(rc, MOGE_LIMIT);
        moge_req_release_samples(w->rig.reqs, req);
        memset(c, 0, sizeof *c);
        return;
    }
    n_forked += req->n_samples - 1;
    for (; req; req = req->next_sample, c++) {
        c->req = req;
        c->submitted = true;
        c->cancel_step = test_below(&w->rng, 6) == 0 ? test_below(&w->rng, 30) : -1;
        c->patience = test_below(&w->rng, 5) == 0 ? 1 : 8;
        expect(c);
    }
}

/* Scores come in order, each once, all before the first token. */
static void score_read(struct client *c, const struct moge_token_out *token) {
    const struct moge_req *req = c->req;
    assert_true(req->n_prompt_logprobs >= 0 && c->n_got == 0 && c->n_scored < req->n_prompt - 1);
    c->scored_hash = history_step(c->n_scored ? c->scored_hash : 1, req->tokens[c->n_scored]);
    assert_int_equal(token->id, req->tokens[++c->n_scored]);
    assert_int_equal(token->logprobs.n_top, req->n_prompt_logprobs);
    assert_true(token->logprobs.chosen == score_of(c->scored_hash, token->id));
    n_scores++;
}

static void client_read(struct client *c, int32_t n_max) {
    static char text[MOGE_RING_TEXT_BYTES];
    struct moge_token_out token;
    size_t len;
    while (n_max-- > 0 && moge_req_pop(c->req, &token, text, &len)) {
        memcpy(c->text + c->text_len, text, len);
        c->text_len += len;
        if (token.id < 0)
            continue;
        if (token.scored) {
            score_read(c, &token);
            continue;
        }
        assert_int_equal(c->n_scored, c->req->n_prompt_logprobs < 0 ? 0 : c->req->n_prompt - 1);
        assert_true(c->n_got < c->n_expected);
        assert_int_equal(token.id, c->expected[c->n_got]);
        c->n_got++;
    }
}

/* A refusal is true, says why, and comes before anything was computed. */
static void check_refusal(const struct world *w, const struct client *c) {
    const struct moge_req *req = c->req;
    int64_t age_max_us = w->options.queue_age_max_us;
    assert_int_equal(req->admitted_us, 0);
    assert_int_equal(c->n_got, 0);
    if (req->err.code == MOGE_LIMIT) {
        assert_true(age_max_us > 0 && fake_now_us - req->submitted_us > age_max_us);
        const char *limit = strstr(req->err.text, "limit is ");
        assert_non_null(limit);
        assert_true(llround(strtod(limit + 9, NULL) * 1e6) == age_max_us);
        n_refused_age++;
    } else {
        assert_int_equal(req->err.code, MOGE_DEADLINE);
        assert_true(req->deadline_us != INT64_MAX);
        assert_non_null(strstr(req->err.text, "is expected after"));
        n_refused_deadline++;
    }
}

static void client_finish(struct world *w, struct client *c, enum moge_finish finish) {
    client_read(c, INT32_MAX);
    c->text[c->text_len] = 0;
    if (finish == MOGE_FINISH_CANCELLED) {
        assert_true(c->cancelled);
    } else if (finish == MOGE_FINISH_DEADLINE) {
        assert_true(fake_now_us >= c->req->deadline_us);
    } else if (finish == MOGE_FINISH_REFUSED) {
        check_refusal(w, c);
    } else {
        assert_int_equal(finish, c->expected_finish);
        assert_int_equal(c->n_got, c->n_expected);
        assert_string_equal(c->text, c->expected_text);
        assert_int_equal(c->req->usage.n_output, c->n_expected);
    }
    /* Cut off in the middle, the text may go on with what was held back: the beginning of a stop
     * string. */
    size_t n_common =
        strlen(c->expected_text) < c->text_len ? strlen(c->expected_text) : c->text_len;
    assert_memory_equal(c->text, c->expected_text, n_common);
    n_finished[finish]++;
    n_preempted += c->req->usage.n_preempted;
    n_accepted += c->req->usage.n_accepted;
    n_cached += c->req->usage.n_cached;
    n_by_string += c->req->stop_string >= 0;
    moge_req_release(w->rig.reqs, c->req);
    c->done = true;
}

/* One step of a client's life; the engine's step has just run. */
static void client_turn(struct world *w, struct client *c) {
    if (!c->submitted) {
        if (test_below(&w->rng, 6) == 0)
            client_submit(w, c);
        return;
    }
    if (c->done)
        return;
    int finish = atomic_load_explicit(&c->req->finish, memory_order_acquire);
    if (finish != MOGE_FINISH_NONE) {
        client_finish(w, c, (enum moge_finish)finish);
        return;
    }
    assert_false(c->cancelled); /* a step has passed since the flag was set */
    assert_false(c->expired);
    c->expired = fake_now_us >= c->req->deadline_us;
    if (c->cancel_step >= 0 && c->cancel_step-- == 0) {
        atomic_store(&c->req->cancelled, true);
        c->cancelled = true;
    }
    if (test_below(&w->rng, 8) < c->patience)
        client_read(c, c->patience == 8 ? INT32_MAX : 3);
}

static void world_open(struct world *w, uint64_t seed) {
    memset(w, 0, sizeof *w);
    w->seed = seed;
    w->grows = seed % 3 == 0;
    w->rng = test_rng_init(seed);
    struct test_rng *rng = &w->rng;
    w->rig.draft = (struct moge_draft){test_rng_init(seed + 1), test_below(rng, 101)};
    struct moge_kv_options kv = {CONTEXT / MOGE_PAGE_TOKENS + test_below(rng, w->grows ? 12 : 40),
                                 SLOTS_MAX, CONTEXT / MOGE_PAGE_TOKENS, test_below(rng, 4) > 0};
    struct moge_queue_options queue = {4 + test_below(rng, 20), 4 * CONTEXT};
    rig_parts(&w->rig, &kv, N_REQS, &queue);
    w->options = (struct moge_sched_options){
        .n_running_max = 1 + test_below(rng, SLOTS_MAX),
        .step_rows_max = 8 + test_below(rng, ROWS_MAX - 8 + 1),
        .prefill_chunk_max = 1 + test_below(rng, 64),
        .admission = test_below(rng, 4) ? MOGE_ADMISSION_OPTIMISTIC : MOGE_ADMISSION_RESERVE,
        .prefill_rows_beside_decodes = test_below(rng, 3) ? 0 : 1 + test_below(rng, 32),
        .itl_target_us = test_below(rng, 3) ? 500 + test_below(rng, 3000) : 0,
        .aging_us = test_below(rng, 2) ? 1000 + test_below(rng, 50000) : 0,
        .queue_age_max_us = test_below(rng, 4) ? 0 : 1000 + test_below(rng, 50000),
    };
    w->rig.engine.step_us = 300 + test_below(rng, 1000);
    w->rig.engine.row_us = test_below(rng, 40);
    int32_t n_logits =
        test_below(rng, 2) ? ROWS_MAX : w->options.n_running_max + test_below(rng, 16);
    rig_open(&w->rig, &w->options, n_logits);
}

static void world_close(struct world *w) {
    assert_true(moge_sched_idle(w->rig.sched));
    assert_int_equal(moge_queue_len(w->rig.queue), 0);
    for (int i = 0; i < N_REQS; i++)
        assert_non_null(moge_reqs_take(w->rig.reqs)); /* none leaked */
    rig_close(&w->rig);
}

/* Who is in line before a step, to see afterwards who was let in. */
static void lines_look(struct world *w) {
    for (int i = 0; i < N_REQS; i++) {
        struct client *c = &w->clients[i];
        bool alive = c->submitted && !c->done;
        c->was_waiting =
            alive && c->req->slot < 0 && !sched_is_stalled(c->req) && !sched_awaits_fork(c->req);
        c->admitted_us = alive ? c->req->admitted_us : 0;
        c->was_stalled = alive && sched_is_stalled(c->req);
        c->n_preempted = alive ? c->req->usage.n_preempted : 0;
    }
}

/* No starvation: nobody is let in past one who was there and comes first.  With aging that is
 * whoever was submitted no more than aging_us for each level of priority after it. */
static void lines_check(const struct world *w) {
    int64_t aging_us = w->options.aging_us;
    for (int i = 0; i < N_REQS; i++) {
        const struct client *c = &w->clients[i];
        if (!c->was_waiting || c->req->slot < 0 || c->admitted_us != 0)
            continue; /* not let in by this step */
        for (int j = 0; j < N_REQS; j++) {
            const struct client *d = &w->clients[j];
            if (!d->was_waiting || d->req->slot >= 0 || atomic_load(&d->req->finish))
                continue;
            int64_t levels = c->req->priority - d->req->priority;
            int64_t later_us = c->req->submitted_us - d->req->submitted_us;
            assert_true(aging_us == 0 ? levels > 0 || (levels == 0 && later_us <= 0)
                                      : later_us <= levels * aging_us);
        }
    }
}

static bool preempted_now(const struct client *c) {
    return c->submitted && !c->done && c->req->usage.n_preempted > c->n_preempted;
}

/* When pages were taken: who has some afterwards, lost them or came to its end by this step. */
static bool ran(const struct client *c) {
    if (!c->submitted || c->done)
        return false;
    int finish = atomic_load(&c->req->finish);
    return c->req->slot >= 0 || preempted_now(c) || finish == MOGE_FINISH_STOP ||
           finish == MOGE_FINISH_LENGTH;
}

/* Who is first in rank of those whose readers keep up is not set back, so somebody always comes to
 * an end. */
static void head_check(const struct world *w) {
    for (int i = 0; i < N_REQS; i++) {
        const struct client *c = &w->clients[i];
        if (!preempted_now(c) || c->was_stalled)
            continue;
        bool behind = false;
        for (int j = 0; j < N_REQS; j++) {
            const struct client *d = &w->clients[j];
            behind |= ran(d) && !d->was_stalled && sched_before(d->req, c->req);
        }
        assert_true(behind);
    }
}

/* The limits on rows hold in every step. */
static void batch_check(const struct world *w) {
    int32_t n_decode = 0, n_prefill = 0, n_rows = 0;
    for (int32_t i = 0; i < w->rig.step.batch.n_spans; i++) {
        const struct moge_span *span = &w->rig.spans[i];
        bool decode = moge_span_is_decode(span);
        n_decode += decode;
        n_prefill += decode ? 0 : span->n_rows;
        n_rows += span->n_rows - span->n_guess;
        assert_true(decode || span->n_rows <= w->options.prefill_chunk_max);
    }
    n_computed += n_rows;
    assert_true(n_rows <= w->options.step_rows_max);
    if (n_decode > 0 && w->options.prefill_rows_beside_decodes > 0)
        assert_true(n_prefill <= w->options.prefill_rows_beside_decodes);
}

static void life_account(const struct world *w) {
    struct moge_sched_stats stats;
    moge_sched_stats(w->rig.sched, &stats);
    if (w->options.admission == MOGE_ADMISSION_RESERVE)
        assert_int_equal(stats.n_preempted, 0);
    int64_t n = 0;
    for (int i = 0; i < N_REQS; i++)
        n += w->clients[i].n_got;
    /* No thrash: who was set back grows before that happens again. */
    assert_true((int64_t)stats.n_preempted <= 4 + n / 32);
    double rate = (double)stats.n_preempted / (double)(n + 1);
    worst_preempted = rate > worst_preempted ? rate : worst_preempted;
    n_tokens += n;
    n_recomputed += (int64_t)stats.n_recomputed;
}

static void life(uint64_t seed) {
    static struct world world;
    struct world *w = &world;
    world_open(w, seed);
    fake_now_us = 0;
    bool all_done = false;
    for (int step = 0; !all_done; step++) {
        assert_true(step < 20000); /* everybody comes to an end */
        int64_t before = n_allocations;
        lines_look(w);
        int rc = moge_step_run(&w->rig.step);
        assert_int_equal(rc, 0);
        assert_int_equal(n_allocations, before);
        moge_sched_check(w->rig.sched);
        lines_check(w);
        head_check(w);
        batch_check(w);
        fake_now_us += w->rig.step.batch.n_spans == 0 ? 1000 : 0;
        all_done = true;
        for (int i = 0; i < N_REQS; i++) {
            client_turn(w, &w->clients[i]);
            all_done = all_done && w->clients[i].done;
        }
    }
    life_account(w);
    world_close(w);
}

static uint64_t n_seeds = 2000, first_seed = 1, current_seed;

static void seeded_lives(void **state) {
    (void)state;
    for (uint64_t i = 0; i < n_seeds; i++) {
        current_seed = first_seed + i;
        life(current_seed);
    }
    current_seed = 0;
    print_message(
        "%llu seeds from %llu; finished: stop %lld (by string %lld) length %lld cancelled "
        "%lld deadline %lld refused %lld (age %lld, deadline %lld); guesses accepted "
        "%lld\n",
        (unsigned long long)n_seeds, (unsigned long long)first_seed,
        (long long)n_finished[MOGE_FINISH_STOP], (long long)n_by_string,
        (long long)n_finished[MOGE_FINISH_LENGTH], (long long)n_finished[MOGE_FINISH_CANCELLED],
        (long long)n_finished[MOGE_FINISH_DEADLINE], (long long)n_finished[MOGE_FINISH_REFUSED],
        (long long)n_refused_age, (long long)n_refused_deadline, (long long)n_accepted);
    print_message("tokens %lld, preemptions %lld (at worst %.3f a token), positions computed %lld, "
                  "of them again %lld, prompt tokens cached %lld, scored %lld\n",
                  (long long)n_tokens, (long long)n_preempted, worst_preempted,
                  (long long)n_computed, (long long)n_recomputed, (long long)n_cached,
                  (long long)n_scores);
    if (n_seeds < 100)
        return;
    assert_true(n_finished[MOGE_FINISH_STOP] && n_by_string && n_finished[MOGE_FINISH_LENGTH]);
    assert_true(n_finished[MOGE_FINISH_CANCELLED] && n_finished[MOGE_FINISH_DEADLINE]);
    assert_true(n_forked > 1000 || n_seeds < 2000);
    assert_true(n_scores && n_cached && n_preempted && n_accepted && n_refused_age &&
                n_refused_deadline);
}

static int seed_tell(void **state) {
    (void)state;
    if (current_seed)
        print_error("failing seed: %llu (sched_sim 1 %llu)\n", (unsigned long long)current_seed,
                    (unsigned long long)current_seed);
    return 0;
}

/* A forward that fails ends the requests of that step with an error and leaves nothing behind. */
static void failed_forward_is_told_and_survived(void **state) {
    (void)state;
    static struct world w;
    world_open(&w, 7);
    struct client *c = &w.clients[0];
    while (!c->submitted)
        client_submit(&w, c);
    for (struct moge_req *req = c->req; req; req = req->next_sample)
        req->deadline_us = INT64_MAX;
    w.rig.engine.broken = true;
    assert_int_equal(moge_step_run(&w.rig.step), MOGE_INTERNAL);
    assert_int_equal(atomic_load(&c->req->finish), MOGE_FINISH_ERROR);
    assert_non_null(strstr(c->req->err.text, "engine failed"));
    moge_req_release(w.rig.reqs, c->req);
    world_close(&w);
}

static void abort_ends_waiting_and_running(void **state) {
    (void)state;
    static struct world w;
    world_open(&w, 11);
    int n = 0;
    for (int i = 0; i < N_REQS; i++) {
        if (!w.clients[i].submitted)
            client_submit(&w, &w.clients[i]);
        n += w.clients[i].submitted;
    }
    assert_true(n > 1);
    moge_step_run(&w.rig.step);
    moge_sched_abort(w.rig.sched, w.rig.queue, MOGE_FINISH_SHUTDOWN, 5);
    for (int i = 0; i < N_REQS; i++)
        if (w.clients[i].submitted) {
            assert_true(atomic_load(&w.clients[i].req->finish) != MOGE_FINISH_NONE);
            moge_req_release(w.rig.reqs, w.clients[i].req);
        }
    world_close(&w);
}

static void too_small_a_cache_is_refused(void **state) {
    (void)state;
    struct moge_kv *kv;
    struct moge_err err = {0};
    TEST_OK(moge_kv_new(&kv, &(struct moge_kv_options){3, 2, 12, true}, &err), err);
    struct moge_sched *sched = NULL;
    struct moge_sched_options options = {
        .kv = kv, .n_running_max = 1, .step_rows_max = 8, .n_context = CONTEXT};
    assert_int_equal(moge_sched_new(&sched, &options, &err), MOGE_INVALID);
    assert_non_null(strstr(err.text, "raise kv-memory"));
    moge_kv_free(kv);
}

/* The long mode's seeds in as many processes as there are processors; each is a run of its own. */
static int slices_run(void) {
    enum { N_LONG = 100000, SLICES_MAX = 64 };
    long n_slices = sysconf(_SC_NPROCESSORS_ONLN);
    n_slices = n_slices < 1 ? 1 : n_slices > SLICES_MAX ? SLICES_MAX : n_slices;
    pid_t slices[SLICES_MAX];
    int failed = 0;
    n_seeds = N_LONG / (uint64_t)n_slices + 1;
    for (long i = 0; i < n_slices; i++) {
        slices[i] = fork();
        assert_true(slices[i] >= 0);
        if (slices[i] == 0) {
            const struct CMUnitTest tests[] = {cmocka_unit_test_teardown(seeded_lives, seed_tell)};
            first_seed += (uint64_t)i * n_seeds;
            _exit(cmocka_run_group_tests(tests, NULL, NULL) != 0);
        }
    }
    for (long i = 0; i < n_slices; i++) {
        int status = 1;
        failed |= waitpid(slices[i], &status, 0) != slices[i] || status != 0;
    }
    return failed;
}

int main(int argc, char **argv) {
    if (argc > 1)
        n_seeds = strtoull(argv[1], NULL, 10);
    if (argc > 2)
        first_seed = strtoull(argv[2], NULL, 10);
    if (argc == 1 && test_long() && slices_run())
        return 1;
    const struct CMUnitTest tests[] = {cmocka_unit_test_teardown(seeded_lives, seed_tell),
                                       cmocka_unit_test(failed_forward_is_told_and_survived),
                                       cmocka_unit_test(abort_ends_waiting_and_running),
                                       cmocka_unit_test(too_small_a_cache_is_refused)};
    if (argc == 1)
        n_seeds = 2000 / TEST_SHARE;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
