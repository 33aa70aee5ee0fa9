/* The program that the fork+exec rows start: as small as a static C program is. */
int main(void)
{
    return 0;
}
