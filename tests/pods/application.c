/* The application of an image that holds nothing else. What it is to do is its first word:
 *   exit STATUS, die SIGNAL, write FILE TEXT, environment, orphan FILE, wait FILE, eat.
 * FILE is made when it is so far.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static int write_to(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    return !file || fputs(text, file) < 0 || fclose(file);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "exit"))
        return atoi(argv[2]);
    if (!strcmp(what, "die"))
        return kill(getpid(), atoi(argv[2]));
    if (!strcmp(what, "write"))
        return write_to(argv[2], argv[3]);
    if (!strcmp(what, "environment")) {
        for (char **each = environ; *each; each++)
            puts(*each);
        return 0;
    }
    if (!strcmp(what, "eat"))
        for (;;)
            memset(malloc(1 << 20), 1, 1 << 20);
    if (!strcmp(what, "orphan")) {
        if (fork() == 0) {
            if (fork() == 0)
                usleep(1000);
            _exit(0);
        }
        wait(NULL);
    }
    if (write_to(argv[2], ""))
        return 1;
    for (;;)
        pause();
}
