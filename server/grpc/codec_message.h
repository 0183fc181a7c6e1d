/* SPDX-License-Identifier: Apache-2.0 */
/* What the codec's files share: bytes for protobuf-c, and packing. */
#ifndef MOGE_CODEC_MESSAGE_H
#define MOGE_CODEC_MESSAGE_H

#include <protobuf-c/protobuf-c.h>
#include <stdlib.h>
#include <string.h>

#include "server/grpc/codec.h"

/* Strings are bytes to protobuf-c (cmake/proto.cmake says why); packing never writes through. */
static inline ProtobufCBinaryData moge_message_bytes(const char *text, size_t len) {
    return (ProtobufCBinaryData){len, (uint8_t *)(uintptr_t)text};
}

static inline ProtobufCBinaryData moge_message_string(const char *text) {
    return moge_message_bytes(text, strlen(text));
}

/* The bytes are to be freed.  0 or MOGE_NOMEM. */
static inline int moge_message_pack(const ProtobufCMessage *message, struct moge_bytes *out) {
    size_t len = protobuf_c_message_get_packed_size(message);
    unsigned char *data = malloc(len ? len : 1);
    if (!data)
        return MOGE_NOMEM;
    protobuf_c_message_pack(message, data);
    *out = (struct moge_bytes){data, len};
    return 0;
}

#endif
