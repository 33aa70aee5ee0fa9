/* The guest's init: says that it has been reached, and waits to be looked at and killed. */
#include <unistd.h>

#include "mark.h"

int main(void)
{
    static const char text[] = "\nINIT-REACHED\n";
    MARK(MARK_INIT);
    if (write(1, text, sizeof(text) - 1) < 0) return 1;
    for (;;) pause();
}
