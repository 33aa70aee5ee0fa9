/* Messages for people, on standard error, each one line with the prefix "nacelle: ". Any thread. */
#ifndef NACELLE_COMMON_LOG_H
#define NACELLE_COMMON_LOG_H

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* Messages above this level are dropped. The default is LOG_LEVEL_INFO. */
void nc_log_level(enum log_level level);

void nc_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void nc_warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void nc_info(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void nc_debug(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
