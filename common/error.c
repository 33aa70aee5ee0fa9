#include "common/error.h"

#include <stdarg.h>
#include <stdio.h>

int nerr_set(struct nerr *e, int code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    return code;
}
