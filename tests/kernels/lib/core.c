/* Start of the kernel, printing, checks. */
#include "kernel.h"

extern u32 boot_magic, boot_info;
int main(void);
void trap_init(unsigned cpu);
void start_bsp(void);

static unsigned failures;
static volatile u32 print_lock;

void *memcpy(void *d, const void *s, size_t n)
{
    void *r = d;
    __asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n)::"memory");
    return r;
}

void *memset(void *d, int c, size_t n)
{
    void *r = d;
    __asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(c) : "memory");
    return r;
}

int memcmp(const void *a, const void *b, size_t n)
{
    const u8 *x = a, *y = b;
    for (size_t i = 0; i < n; i++)
        if (x[i] != y[i]) return x[i] < y[i] ? -1 : 1;
    return 0;
}

u64 random64(u64 *seed)
{
    u64 x = *seed;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *seed = x;
    return x * 0x2545f4914f6cdd1dul;
}

static void put(char c)
{
    for (unsigned i = 0; i < 100000 && !(inb(0x3fd) & 0x20); i++) pause();
    outb(0x3f8, (u8)c);
}

static void put_number(u64 v, unsigned base, unsigned width)
{
    char digits[24];
    unsigned n = 0;
    do {
        digits[n++] = "0123456789abcdef"[v % base];
        v /= base;
    } while (v);
    while (n < width) digits[n++] = '0';
    while (n) put(digits[--n]);
}

static void vprint(const char *f, va_list ap)
{
    for (; *f; f++) {
        if (*f != '%') {
            put(*f);
            continue;
        }
        unsigned width = 0;
        bool l = false;
        for (f++; *f >= '0' && *f <= '9'; f++) width = width * 10 + (unsigned)(*f - '0');
        for (; *f == 'l'; f++) l = true;
        if (*f == 's') {
            for (const char *s = va_arg(ap, const char *); *s; s++) put(*s);
        } else if (*f == 'c') {
            put((char)va_arg(ap, int));
        } else if (*f == 'd') {
            long v = l ? va_arg(ap, long) : va_arg(ap, int);
            if (v < 0) put('-');
            put_number(v < 0 ? -(u64)v : (u64)v, 10, width);
        } else {
            bool p = *f == 'p';
            u64 v = l || p ? va_arg(ap, u64) : va_arg(ap, u32);
            put_number(v, *f == 'u' ? 10 : 16, width);
        }
    }
}

void print(const char *fmt, ...)
{
    va_list ap;
    while (__atomic_exchange_n(&print_lock, 1, __ATOMIC_ACQUIRE)) pause();
    va_start(ap, fmt);
    vprint(fmt, ap);
    va_end(ap);
    __atomic_store_n(&print_lock, 0, __ATOMIC_RELEASE);
}

void leave(u32 code)
{
    outl(0xf4, code);
    for (;;) __asm__ volatile("cli; hlt");
}

void panic(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vprint(fmt, ap);
    va_end(ap);
    print("\n");
    leave(3); /* status 7: not to be mistaken for the VMM's own 5 */
}

bool check_failed(const char *file, int line, const char *what)
{
    /* A test that fails in a loop shall not print for ever. */
    if (__atomic_add_fetch(&failures, 1, __ATOMIC_RELAXED) <= 100) print("FAILED %s:%d: %s\n", file, line, what);
    return false;
}

bool check_eq(u64 got, u64 want, const char *file, int line, const char *what)
{
    if (got == want) return true;
    check_failed(file, line, what);
    if (failures <= 100) print("    got %lx, want %lx\n", got, want);
    return false;
}

void skip(const char *why)
{
    print("SKIPPED %s\n", why);
}

static bool has_word(const char *word)
{
    size_t n = 0;
    while (word[n]) n++;
    for (const char *s = command_line(); *s; s++)
        if ((s == command_line() || s[-1] == ' ') && memcmp(s, word, n) == 0 && (!s[n] || s[n] == ' ')) return true;
    return false;
}

bool left_out(unsigned where, const char *what)
{
    bool tcg = HAS_1C(31) && cpuid(0x40000000, 0).b == 0x54474354; /* "TCGT" */
    unsigned here = (tcg ? TCG : 0) | (has_word("kvm") ? ONKVM : 0) | (has_word("lab") ? LAB : 0);
    if (!(here & where)) return false;
    print("LEFT OUT %s\n", what);
    return true;
}

int done(void)
{
    if (failures)
        print("%u checks failed\n", failures);
    else
        print("all checks passed\n");
    return failures ? 1 : 0;
}

const char *command_line(void)
{
    u32 *info = phys(boot_info);
    return boot_magic == 0x2badb002 && (info[0] & 4) ? phys(info[4]) : "";
}

unsigned cpus(void)
{
    for (const char *s = command_line(); *s; s++) {
        if (memcmp(s, "cpus=", 5) == 0) return (unsigned)(s[5] - '0');
    }
    return 1;
}

void start_bsp(void)
{
    trap_init(0);
    leave((u32)main());
}
