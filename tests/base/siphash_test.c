/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/test.h"
#include "engine/base/siphash.c"

/* The first vectors of the authors' reference: key 00 01 .. 0f, message 00 01 .. of each length. */
static void the_authors_vectors(void **state) {
    (void)state;
    static const struct {
        size_t len;
        uint64_t hash;
    } vectors[] = {{0, 0x726fdb47dd0e0e31u},
                   {1, 0x74f839c593dc67fdu},
                   {7, 0xab0200f58b01d137u},
                   {8, 0x93f5f5799a932462u},
                   {15, 0xa129ca6149be45e5u}};
    unsigned char message[16];
    for (int i = 0; i < 16; i++)
        message[i] = (unsigned char)i;
    uint64_t key[2];
    memcpy(key, message, sizeof key);
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++)
        assert_true(moge_siphash(key, message, vectors[i].len) == vectors[i].hash);
}

static void the_key_matters(void **state) {
    (void)state;
    assert_true(moge_siphash((uint64_t[]){1, 2}, "page", 4) !=
                moge_siphash((uint64_t[]){1, 3}, "page", 4));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_authors_vectors),
                                       cmocka_unit_test(the_key_matters)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
