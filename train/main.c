/* The program: cria COMMAND … */
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "--version") == 0) {
        printf("cria %s\n", CRIA_VERSION);
        return 0;
    }
    return 2;
}
