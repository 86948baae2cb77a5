/* proc(5): /proc/PID/status and /proc/meminfo have lines "VmRSS:     1234 kB"; control groups, version 2
 * (memory.max, memory.current) and version 1 (memory.limit_in_bytes, memory.usage_in_bytes). */
#include "model/core/memory.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    const char *name; /* "VmRSS:" */
    uint64_t *value;  /* in bytes; left alone where the line is absent */
} Wanted;

static void read_lines(const char *path, const Wanted *wanted, size_t n_wanted) {
    FILE *file = fopen(path, "re");
    if (!file) return;
    char line[256];
    while (fgets(line, sizeof line, file))
        for (size_t i = 0; i < n_wanted; i++) {
            size_t n = strlen(wanted[i].name);
            unsigned long long kib;
            if (strncmp(line, wanted[i].name, n) == 0 && sscanf(line + n, "%llu", &kib) == 1)
                *wanted[i].value = (uint64_t)kib * 1024;
        }
    fclose(file);
}

MemoryUse memory_use(void) {
    MemoryUse use = {0};
    const Wanted wanted[] = {{"VmRSS:", &use.resident}, {"VmHWM:", &use.peak},      {"RssAnon:", &use.anonymous},
                             {"RssFile:", &use.file},   {"RssShmem:", &use.shared}, {"VmSize:", &use.mapped},
                             {"VmStk:", &use.stack}};
    read_lines("/proc/self/status", wanted, sizeof wanted / sizeof *wanted);
    return use;
}

void memory_reset_peak(void) {
    FILE *file = fopen("/proc/self/clear_refs", "we");
    if (!file) return;
    fputs("5", file);
    fclose(file);
}

/* ---- what is left ---- */

static bool read_number(const char *folder, const char *name, uint64_t *value) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "re");
    if (!file) return false;
    bool found = fscanf(file, "%" SCNu64, value) == 1; /* "max" is no number: no limit */
    fclose(file);
    return found;
}

/* What the group at `folder` may still take: pages of its files that nobody uses count as free. */
static uint64_t group_left(const char *folder, const char *limit_name, const char *used_name) {
    uint64_t limit, used, file_pages = 0;
    if (!read_number(folder, limit_name, &limit) || !read_number(folder, used_name, &used)) return UINT64_MAX;
    char path[1024], line[256];
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    FILE *file = fopen(path, "re");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "inactive_file %" SCNu64, &file_pages) == 1) break;
    if (file) fclose(file);
    used = used > file_pages ? used - file_pages : 0;
    return limit > used ? limit - used : 0;
}

/* The least that this process's groups leave, from its own up to the root. */
static uint64_t groups_left(void) {
    uint64_t least = UINT64_MAX;
    FILE *file = fopen("/proc/self/cgroup", "re");
    char line[768];
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path) continue;
        *path++ = '\0';
        bool version2 = controllers[1] == '\0';
        if (!version2 && !strstr(controllers, "memory")) continue;
        for (;;) {
            char folder[1000];
            snprintf(folder, sizeof folder, "%s%s", version2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory", path);
            uint64_t left = version2 ? group_left(folder, "memory.max", "memory.current")
                                     : group_left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes");
            if (left < least) least = left;
            char *slash = strrchr(path, '/');
            if (!slash) break;
            *slash = '\0';
        }
    }
    if (file) fclose(file);
    return least;
}

uint64_t memory_available(void) {
    uint64_t available = 0;
    const Wanted wanted[] = {{"MemAvailable:", &available}};
    read_lines("/proc/meminfo", wanted, 1);
    uint64_t left = groups_left();
    return left < available ? left : available;
}
