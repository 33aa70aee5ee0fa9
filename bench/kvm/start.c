/* Starts the count, then becomes the program given. */
#include <stdio.h>
#include <unistd.h>

#include "mark.h"

int main(int argc, char **argv)
{
    if (argc < 2) return 2;
    MARK(MARK_START);
    execvp(argv[1], argv + 1);
    perror(argv[1]);
    return 127;
}
