/* SPDX-License-Identifier: Apache-2.0 */
/* From decided tokens to text that may be shown: detokenise, look for stop strings, and hold back
 * what could be the beginning of one until the next tokens tell.  State lives in the request;
 * engine thread only. */
#ifndef MOGE_TEXT_H
#define MOGE_TEXT_H

#include "server/schedule/req.h"

/* Bytes one call can write. */
#define MOGE_TEXT_OUT_MAX (sizeof(((struct moge_req *)NULL)->held))

/* Longest piece a tokenizer may have; the scheduler refuses one with longer pieces at start. */
#define MOGE_TEXT_PIECE_MAX 255

/* Adds one token's text.  Returns the bytes that may be shown now (possibly 0), written to out.
 * When a stop string is complete, req->stop_string is its index and what follows it is dropped.
 * With watch_stops false (min_tokens not reached) nothing is looked for nor held back. */
size_t moge_text_push(struct moge_req *req, int32_t id, bool watch_stops, char *out);

/* No more tokens: what was held back after all, and the end of an unfinished character. */
size_t moge_text_finish(struct moge_req *req, char *out);

#endif
