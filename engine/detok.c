/* SPDX-License-Identifier: Apache-2.0 */
/* Ids to text, one at a time.  Byte tokens may leave a character unfinished: it waits in `pending`
 * for its rest.  What can no longer become a character is replaced by U+FFFD, one for each maximal
 * broken part, as Unicode recommends. */
#include <string.h>

#include "engine/tokenizer_state.h"

#define REPLACEMENT "\xef\xbf\xbd"

void moge_detok_init(struct moge_detok *detok, const struct moge_tokenizer *tok, bool continues) {
    *detok = (struct moge_detok){.tok = tok, .started = continues || !tok->add_space_prefix};
}

size_t moge_tokenizer_push_max(const struct moge_tokenizer *tok) {
    /* Up to three pending bytes are replaced, then the piece follows whole; a byte token may be
     * replaced too. */
    return (size_t)tok->shown_len_max + 4 * (sizeof REPLACEMENT - 1);
}

/* Could these bytes be the beginning of a character? */
static bool may_begin(const unsigned char *bytes, size_t n) {
    unsigned char whole[4];
    memcpy(whole, bytes, n);
    size_t want = whole[0] >= 0xf0 ? 4 : whole[0] >= 0xe0 ? 3 : 2;
    if (whole[0] < 0xc2 || n >= want)
        return false;
    /* The second byte has the narrowest range; try both ends of it. */
    for (int second = 0x80; second <= 0xbf; second += 0x3f) {
        for (size_t i = n; i < want; i++)
            whole[i] = i == 1 ? (unsigned char)second : 0x80;
        if (moge_utf8_len(whole, want) > 0)
            return true;
    }
    return false;
}

static size_t put(char *out, const void *bytes, size_t n) {
    memcpy(out, bytes, n);
    return n;
}

static size_t push_byte(struct moge_detok *detok, unsigned char byte, char *out) {
    size_t n_out = 0;
    detok->pending[detok->n_pending++] = byte;
    int n = moge_utf8_len(detok->pending, detok->n_pending);
    if (n == 0 && may_begin(detok->pending, detok->n_pending))
        return 0;
    if (n == 0 &&
        detok->n_pending > 1) { /* the new byte broke what was pending: it may begin anew */
        n_out = put(out, REPLACEMENT, 3);
        detok->n_pending = 0;
        return n_out + push_byte(detok, byte, out + n_out);
    }
    n_out = n > 0 ? put(out, detok->pending, (size_t)n) : put(out, REPLACEMENT, 3);
    detok->n_pending = 0;
    return n_out;
}

size_t moge_detok_push(struct moge_detok *detok, int32_t id, char *out) {
    size_t len, n_out = 0;
    const char *text = moge_tokenizer_piece(detok->tok, id, &len);
    uint8_t type = detok->tok->pieces[id].type;
    if (type == MOGE_PIECE_CONTROL)
        return 0;
    /* Only a real piece can hold the space that encoding put in front. */
    bool spelled = type != MOGE_PIECE_UNKNOWN && type != MOGE_PIECE_BYTE;
    if (!detok->started && spelled && len > 0 && text[0] == ' ') {
        text++;
        len--;
    }
    detok->started = true;
    for (size_t i = 0; i < len; i++)
        n_out += push_byte(detok, (unsigned char)text[i], out + n_out);
    return n_out;
}

size_t moge_detok_finish(struct moge_detok *detok, char *out) {
    size_t n_out = detok->n_pending > 0 ? put(out, REPLACEMENT, 3) : 0;
    detok->n_pending = 0;
    return n_out;
}
