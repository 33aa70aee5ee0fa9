/* The escape key of the console on a terminal. */
#include "cli/console.h"

#define CTRL_A 0x01

enum console_command console_escape_key(struct console_escape *s, uint8_t key, uint8_t out[2], size_t *n)
{
    *n = 0;
    if (!s->armed) {
        s->armed = key == CTRL_A;
        if (!s->armed) out[(*n)++] = key;
        return CONSOLE_NONE;
    }
    s->armed = false;
    switch (key) {
    case 'x':
    case 'X': return CONSOLE_QUIT;
    case 'h':
    case 'H':
    case '?': return CONSOLE_HELP;
    case 'p':
    case 'P': return CONSOLE_POWER;
    case 'a':
    case 'A':
    case CTRL_A: out[(*n)++] = CTRL_A; return CONSOLE_NONE;
    default: /* not ours: the guest gets both keys, so that nothing typed is lost */
        out[(*n)++] = CTRL_A;
        out[(*n)++] = key;
        return CONSOLE_NONE;
    }
}
