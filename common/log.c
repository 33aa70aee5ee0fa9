#include "common/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static _Atomic int max_level = LOG_LEVEL_INFO;

void nc_log_level(enum log_level level)
{
    atomic_store_explicit(&max_level, (int)level, memory_order_relaxed);
}

/* One write(2) per line, so that lines of different threads never mix. */
static void emit(enum log_level level, const char *tag, const char *fmt, va_list ap)
{
    if ((int)level > atomic_load_explicit(&max_level, memory_order_relaxed)) return;
    char line[1024];
    int n = snprintf(line, sizeof line, "nacelle: %s", tag);
    int m = vsnprintf(line + n, sizeof line - (size_t)n - 1, fmt, ap);
    size_t len = (size_t)n + (m < 0 ? 0 : (size_t)m);
    if (len > sizeof line - 2) len = sizeof line - 2;
    /* One line, whatever name or option is quoted in it, and nothing that steers a terminal. */
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f) line[i] = '?';
    line[len++] = '\n';
    for (size_t done = 0; done < len;) {
        ssize_t w = write(STDERR_FILENO, line + done, len - done);
        if (w <= 0) return;
        done += (size_t)w;
    }
}

#define NC_LOG(name, level, tag)    \
    void name(const char *fmt, ...) \
    {                               \
        va_list ap;                 \
        va_start(ap, fmt);          \
        emit(level, tag, fmt, ap);  \
        va_end(ap);                 \
    }

NC_LOG(nc_error, LOG_LEVEL_ERROR, "")
NC_LOG(nc_warn, LOG_LEVEL_WARN, "warning: ")
NC_LOG(nc_info, LOG_LEVEL_INFO, "")
NC_LOG(nc_debug, LOG_LEVEL_DEBUG, "debug: ")
