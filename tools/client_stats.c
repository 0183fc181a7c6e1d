/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/client_stats.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "moge/v1/moge.pb-c.h"

static void text_read(char *out, size_t cap, const ProtobufCBinaryData *in) {
    snprintf(out, cap, "%.*s", (int)in->len, in->len > 0 ? (const char *)in->data : "");
}

static int list_read(int64_t *out, size_t cap, const int64_t *in, size_t n) {
    if (n > cap)
        n = cap;
    for (size_t i = 0; i < n; i++)
        out[i] = in[i];
    return (int)n;
}

static void engine_read(struct moge_client_stats *out, const Moge__V1__EngineStats *in) {
    out->n_steps = in->steps;
    out->n_rows = in->rows;
    out->n_tokens = in->tokens;
    out->step_us = in->step_us;
    out->weight_bytes = in->weight_bytes;
    for (size_t i = 0; i < in->n_expected_step_us && i < MOGE_STEP_COSTS; i++)
        out->expected_step_us[out->n_step_costs++] = in->expected_step_us[i];
    out->guess_us = in->guess_us;
    out->guess_round_us = in->guess_round_us;
    out->guess_row_us = in->guess_row_us;
    out->step_base_us = in->step_base_us;
    out->step_row_us = in->step_row_us;
    out->prefill_row_us = in->prefill_row_us;
    out->n_positions = list_read(out->offered, MOGE_DRAFT_LEN_MAX, in->offered_by_position,
                                 in->n_offered_by_position);
    list_read(out->accepted, MOGE_DRAFT_LEN_MAX, in->accepted_by_position,
              in->n_accepted_by_position);
    list_read(out->ngram_offered, MOGE_DRAFT_LEN_MAX, in->ngram_offered_by_position,
              in->n_ngram_offered_by_position);
    list_read(out->ngram_accepted, MOGE_DRAFT_LEN_MAX, in->ngram_accepted_by_position,
              in->n_ngram_accepted_by_position);
    out->n_lengths =
        list_read(out->draft_len, MOGE_DRAFT_LEN_MAX + 1, in->draft_length, in->n_draft_length);
    out->n_layers = list_read(out->layer_experts, MOGE_CLIENT_STATS_LAYERS, in->experts_touched,
                              in->n_experts_touched);
    out->n_groups =
        list_read(out->group_rows, MOGE_CLIENT_STATS_GROUPS, in->group_rows, in->n_group_rows);
    for (size_t i = 0; i < in->n_phases && i < MOGE_CLIENT_STATS_NAMES; i++) {
        struct moge_client_count *to = &out->phases[out->n_phases++];
        text_read(to->name, sizeof to->name, &in->phases[i]->name);
        to->value = in->phases[i]->total_us;
    }
}

static void named_read(struct moge_client_stats *out, const Moge__V1__GetStatsResponse *in) {
    for (size_t i = 0; i < in->n_counters && i < MOGE_CLIENT_STATS_NAMES; i++) {
        struct moge_client_count *to = &out->counters[out->n_counters++];
        text_read(to->name, sizeof to->name, &in->counters[i]->name);
        to->value = in->counters[i]->value;
    }
    for (size_t i = 0; i < in->n_distributions && i < MOGE_CLIENT_STATS_NAMES; i++) {
        const Moge__V1__Distribution *from = in->distributions[i];
        struct moge_client_spread *to = &out->spreads[out->n_spreads++];
        text_read(to->name, sizeof to->name, &from->name);
        to->count = from->count;
        to->sum = from->sum;
        to->p50 = from->p50;
        to->p90 = from->p90;
        to->p99 = from->p99;
    }
}

static int stats_take(void *arg, const void *data, size_t len, struct moge_err *err) {
    struct moge_client_stats *out = arg;
    Moge__V1__GetStatsResponse *in = moge__v1__get_stats_response__unpack(NULL, len, data);
    if (in == NULL)
        return moge_fail(err, MOGE_INTERNAL, "the server sent a message that cannot be read");
    *out = (struct moge_client_stats){.uptime_us = in->uptime_us,
                                      .n_running = in->running,
                                      .n_prefilling = in->prefilling,
                                      .n_waiting = in->waiting,
                                      .n_calls = in->calls,
                                      .n_connections = in->connections,
                                      .heap_bytes = in->heap_bytes,
                                      .tokens_per_s = in->tokens_per_second};
    if (in->pages != NULL) {
        out->pages_free = in->pages->free;
        out->pages_used = in->pages->used;
        out->pages_cached = in->pages->cached;
        out->pages_evicted = in->pages->evicted;
    }
    if (in->engine != NULL)
        engine_read(out, in->engine);
    named_read(out, in);
    int rc = 0;
    if (in->prometheus.len > 0 && (out->prometheus = malloc(in->prometheus.len + 1)) == NULL)
        rc = moge_fail(err, MOGE_NOMEM, "out of memory");
    else if (in->prometheus.len > 0)
        text_read(out->prometheus, in->prometheus.len + 1, &in->prometheus);
    moge__v1__get_stats_response__free_unpacked(in, NULL);
    return rc;
}

int moge_client_stats(struct moge_client *client, bool with_prometheus, int64_t timeout_us,
                      struct moge_client_stats *stats, struct moge_err *err) {
    Moge__V1__GetStatsRequest message = MOGE__V1__GET_STATS_REQUEST__INIT;
    uint8_t packed[16];
    message.with_prometheus = with_prometheus;
    struct moge_client_call call = {.method = "/moge.v1.Moge/GetStats",
                                    .request = packed,
                                    .request_len =
                                        moge__v1__get_stats_request__pack(&message, packed),
                                    .timeout_us = timeout_us,
                                    .on_message = stats_take,
                                    .arg = stats};
    return moge_client_call(client, &call, err);
}

int64_t moge_client_count_of(const struct moge_client_count *list, int n, const char *name) {
    for (int i = 0; i < n; i++)
        if (strcmp(list[i].name, name) == 0)
            return list[i].value;
    return 0;
}
