/* Two modes of a terminal are the same. After cmocka.h. */
#ifndef NACELLE_TESTS_TERMINAL_MODE_H
#define NACELLE_TESTS_TERMINAL_MODE_H

#include <termios.h>

/* Field by field: the structure has padding. */
static inline void same_mode(const struct termios *a, const struct termios *b)
{
    assert_int_equal(a->c_iflag, b->c_iflag);
    assert_int_equal(a->c_oflag, b->c_oflag);
    assert_int_equal(a->c_cflag, b->c_cflag);
    assert_int_equal(a->c_lflag, b->c_lflag);
    assert_memory_equal(a->c_cc, b->c_cc, sizeof(a->c_cc));
}

#endif
