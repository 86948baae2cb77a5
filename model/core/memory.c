/* proc(5), /proc/PID/status: lines "VmRSS:     1234 kB". */
#include "model/core/memory.h"

#include <stdio.h>
#include <string.h>

MemoryUse memory_use(void) {
    MemoryUse use = {0};
    const struct {
        const char *name;
        uint64_t *value;
    } wanted[] = {{"VmRSS:", &use.resident},
                  {"VmHWM:", &use.peak},
                  {"RssAnon:", &use.anonymous},
                  {"RssFile:", &use.file},
                  {"RssShmem:", &use.shared}};
    FILE *status = fopen("/proc/self/status", "re");
    if (!status) return use;
    char line[256];
    while (fgets(line, sizeof line, status))
        for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
            size_t n = strlen(wanted[i].name);
            unsigned long long kib;
            if (strncmp(line, wanted[i].name, n) == 0 && sscanf(line + n, "%llu", &kib) == 1)
                *wanted[i].value = (uint64_t)kib * 1024;
        }
    fclose(status);
    return use;
}
