/* SPDX-License-Identifier: Apache-2.0 */
/* The promise that automatic drafting never costs, in worlds whose costs and acceptance are known.
 *
 * Step times come from tables (two measured, two of a machine that only bandwidth limits); the
 * policy sees them with noise and outliers.  Requests come and go, each with a prompt that the
 * drafter must catch up with.  What is judged is free of luck: for every choice the tokens expected
 * and the time it truly takes, against the same of speculation off and of every fixed length. */
#include "tests/test.h"
#include "draft/cost.c"
#include "draft/draft.c"
#include "draft/policy.c"

#define BATCH_MAX  32
#define KNOWN_MAX  1024
#define N_PROMPT   64
#define N_REQUEST  256 /* tokens of an answer */
#define N_REQUESTS 8   /* one after the other in each slot */

/* What a step of so many rows takes, as measured or reckoned; in between it is interpolated. */
struct table {
    const char *name;
    double rows[16], ms[16]; /* ends with rows 0 */
};

static const struct table tables[] = {
    /* moge-3b on two Zen 5 threads. */
    {"3b q4_0",
     {1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64},
     {8.95, 13.6, 18.0, 21.6, 25.3, 30.4, 40, 51, 62, 84, 107, 155, 200}},
    {"3b q8_0",
     {1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64},
     {16.0, 24, 30, 38, 44.9, 51, 63, 74, 95, 114, 138, 188, 268}},
    /* Half the bytes are experts', uniformly routed: 8 * (1 - (7/8)^rows) times those of one row.
     */
    {"bandwidth",
     {1, 2, 3, 4, 5, 6, 8, 12, 16, 32, 64},
     {10, 14.4, 18.3, 21.7, 24.6, 27.2, 31.5, 37.2, 40.6, 45, 45.5}},
    /* No experts: flat until arithmetic binds. */
    {"flat", {1, 8, 16, 32, 64, 128}, {10, 10.5, 14, 24, 46, 90}},
};
#define N_TABLES (int)(sizeof tables / sizeof tables[0])

/* moge-3b, and the embedded target in q8_0, on two Zen 3 cores. */
static const struct table zen3_tables[] = {
    {"q4_0",
     {1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 64},
     {11.7, 16.3, 22.9, 28.0, 32.8, 37.6, 46.5, 60, 71, 73, 115, 150, 280}},
    {"q8_0",
     {1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 64},
     {25.5, 34, 44, 55, 60, 72, 88, 116, 150, 200, 240, 440}},
    {"embedded",
     {1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 64},
     {0.28, 0.46, 0.63, 0.83, 1.0, 1.2, 1.55, 1.9, 2.25, 2.9, 4.2, 5.6, 11}},
};
#define N_ZEN3_TABLES (int)(sizeof zen3_tables / sizeof zen3_tables[0])

struct world {
    const struct table *table;
    int32_t n_batch;
    double accept[2][2]; /* [before or after the change][even or odd requests] */
    double decay;        /* acceptance of a position, as a share of that before it */
    double draft_cost;   /* of a round of one row, as a share of a step of one row */
    double noise;        /* relative, of every time that is seen; one in fifty is far off */
    double wave;         /* other programs take up to so much more, for some fifty times seen */
    int32_t change_at;   /* tokens of a slot after which the text changes; 0: never */
};

struct sequence {
    int32_t n_known, n_valid, n_done, i_request;
    bool right[MOGE_DRAFT_LEN_MAX]; /* of the guesses of this step, and of one not offered */
    int32_t tokens[KNOWN_MAX];
};

struct sim {
    struct world world;
    struct moge_draft *draft;
    struct moge_batch batch;
    struct moge_span spans[BATCH_MAX];
    struct sequence sequences[BATCH_MAX];
    struct test_rng rng;
    double draft_ns;   /* that drafting truly took in this step */
    double tokens, ns; /* expected, and true, since the start */
    double slowdown;   /* by other programs; what they take is in no true time */
};

static int64_t clock_ns;
static struct sim *drafting; /* whose guesses are being made */

static int64_t now(void) {
    return clock_ns;
}

static double unit(struct sim *sim) {
    return (double)(test_u64(&sim->rng) >> 11) / (double)(1ull << 53);
}

static double step_ns(const struct table *table, double n_rows) {
    int i = 0;
    while (table->rows[i + 1] > 0 && table->rows[i + 2] > 0 && table->rows[i + 1] <= n_rows)
        i++;
    double slope = (table->ms[i + 1] - table->ms[i]) / (table->rows[i + 1] - table->rows[i]);
    return 1e6 * (table->ms[i] + slope * (n_rows - table->rows[i]));
}

static double seen(struct sim *sim, double ns) {
    double noise = sim->world.noise;
    if (sim->world.wave > 0 && unit(sim) < 0.02)
        sim->slowdown = unit(sim) < 0.5 ? 1 : 1 + sim->world.wave * unit(sim);
    ns *= sim->slowdown;
    if (unit(sim) < noise / 10)
        return ns * (2 + 4 * unit(sim));
    return ns * (1 + noise * (2 * unit(sim) - 1));
}

static double round_cost_ns(const struct world *world) {
    return 0.9 * world->draft_cost * step_ns(world->table, 1);
}

static double row_cost_ns(const struct world *world) {
    return 0.1 * world->draft_cost * step_ns(world->table, 1);
}

static double accept_of(const struct world *world, const struct sequence *s, int j) {
    bool changed = world->change_at > 0 && s->n_done + s->i_request * N_REQUEST >= world->change_at;
    double p = world->accept[changed][s->i_request & 1];
    for (; j > 0; j--)
        p *= world->decay;
    return p;
}

/* ---- the drafter ---- */

static void sim_guess(void *self, struct moge_span *const *spans, const int32_t *want,
                      int32_t n_spans) {
    struct sim *sim = drafting;
    int32_t n_rounds = 0, n_rows = 0;
    (void)self;
    for (int32_t i = 0; i < n_spans; i++) {
        struct moge_span *span = spans[i];
        struct sequence *s = &sim->sequences[span->slot];
        n_rows += span->n_known + span->n_guess - 1 - s->n_valid + want[i] - span->n_guess;
        n_rounds = want[i] - span->n_guess > n_rounds ? want[i] - span->n_guess : n_rounds;
        for (int32_t j = span->n_guess; j < want[i]; j++) {
            s->right[j] = unit(sim) < accept_of(&sim->world, s, j);
            span->tokens[span->n_known + j] = s->right[j];
        }
        span->n_guess = want[i];
        s->n_valid = span->n_known + want[i] - 1;
    }
    double ns = n_rounds * round_cost_ns(&sim->world) + n_rows * row_cost_ns(&sim->world);
    sim->draft_ns += ns;
    clock_ns += (int64_t)seen(sim, ns);
}

static int32_t sim_debt(void *self, const struct moge_span *span) {
    (void)self;
    return span->n_known + span->n_guess - 1 - drafting->sequences[span->slot].n_valid;
}

static void sim_forget(void *self, int32_t slot) {
    (void)self;
    (void)slot;
}

static void sim_free(void *self) {
    (void)self;
}

static const struct moge_drafter_ops sim_ops = {
    .name = "sim", .guess = sim_guess, .debt = sim_debt, .forget = sim_forget, .free = sim_free};

/* ---- the server ---- */

static void request_begin(struct sim *sim, int32_t i) {
    struct sequence *s = &sim->sequences[i];
    s->n_known = N_PROMPT;
    s->n_valid = 0;
    s->n_done = 0;
    moge_draft_forget(sim->draft, i);
}

/* As at the start of the daemon, where there is time for two passes. */
static void calibrate(struct sim *sim) {
    for (int32_t rows = 1; rows <= 64; rows *= 2) {
        double ns = seen(sim, step_ns(sim->world.table, rows));
        double again = seen(sim, step_ns(sim->world.table, rows));
        moge_policy_calibrate(sim->draft->policy, rows, fmin(ns, again));
    }
    for (int pass = 0; pass < 2; pass++)
        for (int k = 1; k <= 4; k *= 2) {
            double ns = round_cost_ns(&sim->world) * k + row_cost_ns(&sim->world) * k * k;
            moge_policy_drafted(sim->draft->policy, k, k * k, (int64_t)seen(sim, ns));
        }
}

static void sim_begin(struct sim *sim, const struct world *world) {
    *sim = (struct sim){.world = *world, .slowdown = 1, .rng = test_rng_init(11)};
    drafting = sim;
    clock_ns = 1;
    struct moge_draft_options options = {.drafter = {&sim_ops, sim},
                                         .n_slots = BATCH_MAX,
                                         .draft_len_max = MOGE_DRAFT_LEN_MAX,
                                         .now_ns = now};
    struct moge_err err;
    TEST_OK(moge_draft_new(&sim->draft, &options, &err), err);
    sim->batch = (struct moge_batch){.spans = sim->spans,
                                     .n_spans_cap = BATCH_MAX,
                                     .n_rows_cap = 1024,
                                     .n_logits_cap = 1024,
                                     .n_vocab = 10};
    calibrate(sim);
    for (int32_t i = 0; i < world->n_batch; i++)
        request_begin(sim, i);
}

/* Tokens that a span is expected to yield, by what is true. */
static double expected_tokens(const struct world *world, const struct sequence *s,
                              int32_t n_guess) {
    double tokens = 1, reached = 1;
    for (int32_t j = 0; j < n_guess; j++)
        tokens += reached *= accept_of(world, s, j);
    return tokens;
}

static void sequence_advance(struct sim *sim, struct moge_span *span) {
    struct sequence *s = &sim->sequences[span->slot];
    while (span->n_accepted < span->n_guess && s->right[span->n_accepted])
        span->n_accepted++;
    span->n_out = span->n_accepted + 1;
    /* The target's own choice: ids of right guesses are 1, so is what they are compared with. */
    for (int32_t j = 0; j < span->n_out; j++)
        span->tokens[span->n_known + j] = 1;
    if (span->n_guess > 0)
        span->tokens[span->n_known + span->n_accepted] = 2;
    s->n_known += span->n_out;
    s->n_done += span->n_out;
    int32_t n_true = span->n_known + span->n_accepted;
    s->n_valid = s->n_valid > n_true ? n_true : s->n_valid;
}

static void sim_step(struct sim *sim) {
    struct moge_batch *batch = &sim->batch;
    batch->n_spans = 0;
    sim->draft_ns = 0;
    for (int32_t i = 0; i < sim->world.n_batch; i++) {
        struct sequence *s = &sim->sequences[i];
        sim->spans[batch->n_spans++] = (struct moge_span){.tokens = s->tokens,
                                                          .slot = i,
                                                          .pos = s->n_known - 1,
                                                          .n_rows = 1,
                                                          .n_known = s->n_known,
                                                          .n_prompt = N_PROMPT,
                                                          .n_logits = 1,
                                                          .guess_max = MOGE_DRAFT_LEN_MAX,
                                                          .spec_mode = MOGE_SPEC_AUTO};
    }
    moge_draft_propose(sim->draft, batch);
    double ns = step_ns(sim->world.table, moge_batch_rows(batch));
    int64_t ns_seen = (int64_t)seen(sim, ns);
    clock_ns += ns_seen;
    sim->ns += ns + sim->draft_ns;
    for (int32_t i = 0; i < batch->n_spans; i++) {
        sim->tokens += expected_tokens(&sim->world, &sim->sequences[i], sim->spans[i].n_guess);
        sequence_advance(sim, &sim->spans[i]);
    }
    moge_draft_observe(sim->draft, batch, ns_seen);
    for (int32_t i = 0; i < batch->n_spans; i++) {
        struct sequence *s = &sim->sequences[i];
        if (s->n_done < N_REQUEST)
            continue;
        s->i_request++;
        request_begin(sim, i);
    }
}

/* ---- what off and fixed lengths reach ---- */

static double tokens_per_ns_fixed(const struct world *world, int32_t k) {
    double ns = step_ns(world->table, world->n_batch * (1 + k)) +
                k * (round_cost_ns(world) + world->n_batch * row_cost_ns(world));
    double steps_per_token = 0; /* requests that guess badly last longer */
    for (int odd = 0; odd < 2; odd++) {
        struct sequence s = {.i_request = odd};
        steps_per_token += 0.5 / expected_tokens(world, &s, k);
    }
    double tokens = world->n_batch / steps_per_token;
    /* The drafter reads each prompt once. */
    if (k > 0)
        ns += tokens / N_REQUEST * (N_PROMPT - 1) * row_cost_ns(world);
    return tokens / ns;
}

static double best_fixed(const struct world *world, int32_t *k_best) {
    double best = 0;
    for (int32_t k = 0; k <= MOGE_DRAFT_LEN_MAX; k++) {
        double rate = tokens_per_ns_fixed(world, k);
        if (rate <= best)
            continue;
        best = rate;
        *k_best = k;
    }
    return best;
}

/* ---- floors ---- */

struct result {
    double off, best;    /* auto as a share of these */
    double speedup_best; /* of the best fixed length over off: what the world allows */
    int32_t k_best;
};

static struct result measure(const struct world *world) {
    static struct sim sim;
    struct result result = {0};
    sim_begin(&sim, world);
    double n_tokens = 1.0 * world->n_batch * N_REQUEST * N_REQUESTS;
    while (sim.tokens < n_tokens)
        sim_step(&sim);
    double rate = sim.tokens / sim.ns, best = best_fixed(world, &result.k_best);
    result.off = rate / tokens_per_ns_fixed(world, 0);
    result.best = rate / best;
    result.speedup_best = best / tokens_per_ns_fixed(world, 0);
    moge_draft_free(sim.draft);
    return result;
}

static const char *describe(const struct world *world, const struct result *result) {
    static char text[256];
    snprintf(
        text, sizeof text,
        "%-9s batch %2d accept %.2f/%.2f decay %.2f drafter %.3f noise %.2f: auto %.3f of off, "
        "%.3f of best (length %d, %.3f of off)",
        world->table->name, world->n_batch, world->accept[0][0], world->accept[0][1], world->decay,
        world->draft_cost, world->noise, result->off, result->best, result->k_best,
        result->speedup_best);
    return text;
}

static const int32_t batches[] = {1, 4, 16, 32};

static struct world world_of(const struct table *table, int32_t n_batch, double even, double odd) {
    return (struct world){
        .table = table, .n_batch = n_batch, .accept = {{even, odd}, {even, odd}}, .decay = 1};
}

/* What holds in every world, and where it is not the promise itself, in how many that holds. */
struct floors {
    double off, best;     /* of every world */
    double promise_share; /* of worlds where auto is at least 0.99 of off and 0.97 of best */
    int32_t n_worlds, n_kept, n_failed;
};

static void check(const struct world *world, struct floors *floors) {
    struct result result = measure(world);
    bool holds = result.off >= floors->off && result.best >= floors->best;
    floors->n_worlds++;
    floors->n_kept += result.off >= 0.99 && result.best >= 0.97;
    floors->n_failed += !holds;
    if (!holds || getenv("MOGE_VERBOSE"))
        print_message("%s%s\n", describe(world, &result), holds ? "" : "   <-- FAILS");
}

static void check_tables(double even, double odd, double decay, double draft_cost, double noise,
                         struct floors *floors) {
    for (int t = 0; t < N_TABLES; t++)
        for (int b = 0; b < 4; b++) {
            struct world world = world_of(&tables[t], batches[b], even, odd);
            world.noise = noise;
            world.draft_cost = draft_cost;
            world.decay = decay;
            check(&world, floors);
        }
}

/* Drafters of no cost and of 3%. */
static void check_all(double even, double odd, double decay, double noise, struct floors *floors) {
    check_tables(even, odd, decay, 0.0001, noise, floors);
    check_tables(even, odd, decay, 0.03, noise, floors);
}

static void floors_hold(const struct floors *floors) {
    print_message("%d of %d worlds keep the promise itself\n", floors->n_kept, floors->n_worlds);
    assert_int_equal(floors->n_failed, 0);
    assert_true(floors->n_kept >= floors->promise_share * floors->n_worlds);
}

static void never_costs_where_guesses_are_wrong(void **state) {
    (void)state;
    struct floors floors = {.off = 0.985, .best = 0.97, .promise_share = 0.97};
    check_all(0, 0, 1, 0.05, &floors);
    check_all(0.3, 0.3, 1, 0.05, &floors);
    check_tables(0, 0, 1, 0.2, 0.05, &floors);
    floors_hold(&floors);
}

static void is_near_the_best_fixed_length_where_they_are_right(void **state) {
    (void)state;
    static const double accepts[] = {0.6, 0.9};
    struct floors floors = {.off = 0.98, .best = 0.92, .promise_share = 0.9};
    for (int a = 0; a < 2; a++)
        check_all(accepts[a], accepts[a], 1, 0.05, &floors);
    check_all(0.85, 0.85, 0.85, 0.05, &floors); /* deep guesses are worse */
    floors_hold(&floors);
}

static void tells_requests_apart(void **state) {
    (void)state;
    struct floors floors = {.off = 0.965, .best = 0.95, .promise_share = 0.9};
    check_all(0.9, 0.0, 1, 0.05, &floors);
    check_all(0.8, 0.4, 1, 0.05, &floors);
    floors_hold(&floors);
}

/* A drafter that takes a fifth of a step, and times that say little: mistakes are bounded. */
static void dear_drafters_and_noisy_clocks_cost_little(void **state) {
    (void)state;
    struct floors dear = {.off = 0.95, .best = 0.88}, noisy = {.off = 0.84, .best = 0.78};
    check_tables(0.3, 0.3, 1, 0.2, 0.05, &dear);
    check_tables(0.9, 0, 1, 0.2, 0.05, &dear);
    check_tables(0, 0, 1, 0.03, 0.3, &noisy);
    check_tables(0.9, 0.9, 1, 0.03, 0.3, &noisy);
    floors_hold(&dear);
    floors_hold(&noisy);
}

/* What other programs take comes and goes: it hits guessing and not guessing alike, and says
 * nothing about which of them is faster. */
static void other_programs_do_not_mislead(void **state) {
    (void)state;
    static const double accepts[] = {0, 0.3, 0.8, 0.9};
    struct floors floors = {.off = 0.965, .best = 0.94, .promise_share = 0.8};
    for (int t = 0; t < N_ZEN3_TABLES; t++)
        for (int b = 0; b < 4; b++)
            for (int a = 0; a < 4; a++) {
                struct world world = world_of(&zen3_tables[t], batches[b], accepts[a], accepts[a]);
                world.noise = 0.05;
                world.wave = 1;
                world.draft_cost = 0.03;
                check(&world, &floors);
            }
    floors_hold(&floors);
}

/* One sequence, a drafter of 3% that is right four times of five: what the tables allow, and no
 * less than 1.25 where half the bytes are experts'.  And a free one, right nine times of ten. */
static void one_sequence_gains_what_its_costs_allow(void **state) {
    (void)state;
    struct world world = world_of(&tables[2], 1, 0.8, 0.8);
    world.noise = 0.05;
    world.draft_cost = 0.03;
    struct result result = measure(&world);
    print_message("%s\n", describe(&world, &result));
    assert_true(result.off >= 1.25);
    world.draft_cost = 0;
    world.accept[0][0] = world.accept[0][1] = 0.9;
    result = measure(&world);
    print_message("%s\n", describe(&world, &result));
    assert_true(result.off >= 1.8);
}

static double rate_of(struct sim *sim, double n_tokens) {
    double tokens = sim->tokens, ns = sim->ns;
    while (sim->tokens < tokens + n_tokens)
        sim_step(sim);
    return (sim->tokens - tokens) / (sim->ns - ns);
}

/* In the middle of a request everything it guesses is wrong, or right, from now on: fifty tokens
 * later the same is reached as where it was so for long, or as without guesses. */
static void follows_a_change_within_fifty_tokens(void **state) {
    (void)state;
    static const double costs[] = {0.0001, 0.03};
    static struct sim sim;
    int n_failed = 0;
    for (int up = 0; up < 2; up++)
        for (int d = 0; d < 2; d++)
            for (int t = 0; t < N_TABLES; t++) {
                struct world world = world_of(&tables[t], 1, 0, 0);
                world.accept[up][0] = world.accept[up][1] = 0.95;
                world.draft_cost = costs[d];
                world.noise = 0.05;
                world.change_at = 1100;
                sim_begin(&sim, &world);
                while (accept_of(&world, &sim.sequences[0], 0) == world.accept[0][0])
                    sim_step(&sim);
                rate_of(&sim, 50);
                double off = tokens_per_ns_fixed(&world, 0), share = rate_of(&sim, 60) / off;
                double floor = up ? 1.1 : 0.95;
                print_message("%s, drafter %.2f, %s: %.3f of off afterwards\n", world.table->name,
                              world.draft_cost, up ? "better" : "worse", share);
                n_failed += share < floor;
                moge_draft_free(sim.draft);
            }
    assert_int_equal(n_failed, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(never_costs_where_guesses_are_wrong),
        cmocka_unit_test(is_near_the_best_fixed_length_where_they_are_right),
        cmocka_unit_test(tells_requests_apart),
        cmocka_unit_test(dear_drafters_and_noisy_clocks_cost_little),
        cmocka_unit_test(other_programs_do_not_mislead),
        cmocka_unit_test(one_sequence_gains_what_its_costs_allow),
        cmocka_unit_test(follows_a_change_within_fifty_tokens)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
