/* Marks for lab/count.c: an instruction that does nothing and that the box's counter sees. 0 starts the count. */
#define MARK(n) __asm__ volatile(".byte 0x0f, 0x1f, 0x84, 0x00; .long 0x4e4c0000 + %c0" ::"i"(n))
#define MARK_START 0
#define MARK_INIT 1
