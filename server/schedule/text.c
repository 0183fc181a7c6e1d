/* SPDX-License-Identifier: Apache-2.0 */
/* held [ ...text that is a proper prefix of some stop string ] + new piece
 *        |--------- scanned for complete stop strings ---------|
 *
 * The first token that completes a stop string ends the text; of several the earliest wins, the
 * longest of those.  Tokens are pushed one by one even when a step decided many, so the cut does
 * not depend on steps. */
#include "server/schedule/text.h"

#include <string.h>

/* Does `text` begin a stop string (all of it, or as far as text goes)?  *whole tells which. */
static bool stop_begins(const struct moge_req *req, int32_t i_stop, const char *text, size_t len,
                        bool *whole) {
    size_t stop_len = req->stop_string_len[i_stop];
    *whole = len >= stop_len;
    return memcmp(text, req->stop_strings[i_stop], *whole ? stop_len : len) == 0;
}

/* Index of the longest stop string found at `text`, or -1.  *partial: text ends inside one. */
static int32_t stop_at(const struct moge_req *req, const char *text, size_t len, bool *partial) {
    int32_t found = -1;
    *partial = false;
    for (int32_t i = 0; i < req->n_stop_strings; i++) {
        bool whole;
        if (!stop_begins(req, i, text, len, &whole))
            continue;
        if (!whole)
            *partial = true;
        else if (found < 0 || req->stop_string_len[i] > req->stop_string_len[found])
            found = i;
    }
    return found;
}

size_t moge_text_push(struct moge_req *req, int32_t id, bool watch_stops, char *out) {
    MOGE_ASSERT(req->n_held >= 0 && req->n_held < MOGE_STOP_BYTES_MAX);
    size_t len = (size_t)req->n_held + moge_detok_push(&req->detok, id, req->held + req->n_held);
    MOGE_ASSERT(len <= sizeof req->held);
    size_t n_shown = len;
    for (size_t at = 0; watch_stops && at < len; at++) {
        bool partial;
        int32_t stop = stop_at(req, req->held + at, len - at, &partial);
        if (stop >= 0) { /* complete: whatever else might have begun earlier no longer matters */
            req->stop_string = stop;
            n_shown = len = at + (req->include_stop ? req->stop_string_len[stop] : 0);
            break;
        }
        if (partial && n_shown == len)
            n_shown = at;
    }
    memcpy(out, req->held, n_shown);
    memmove(req->held, req->held + n_shown, len - n_shown);
    req->n_held = (int32_t)(len - n_shown);
    return n_shown;
}

size_t moge_text_finish(struct moge_req *req, char *out) {
    size_t len = (size_t)req->n_held;
    memcpy(out, req->held, len);
    req->n_held = 0;
    return len + moge_detok_finish(&req->detok, out + len);
}
