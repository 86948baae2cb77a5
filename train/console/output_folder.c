/* See output_folder.h. The lock is flock(2) on the hidden file ".lock", which stays: removing it would let two
 * processes hold "the" lock. */
#include "train/console/output_folder.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "configs/config.h"
#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/text.h"

static const char lock_name[] = ".lock";

/* A config that someone wrote by hand is not to be overwritten. */
static const OutputOwner run_owner = {"config.yaml", CONFIG_WRITTEN};

static int check_config(const char *path, const OutputOwner *owner, bool *resuming) {
    char start[64] = "";
    size_t length = strlen(owner->first_words);
    FILE *file = fopen(path, "r");
    if (!file) FAIL(ERR_FAILED, "output: %s: open: %s", path, strerror(errno));
    size_t n = fread(start, 1, length < sizeof start ? length : sizeof start, file);
    fclose(file);
    *resuming = n == length && memcmp(start, owner->first_words, length) == 0;
    if (!*resuming)
        FAIL(ERR_REFUSED,
             "output: %s was not written by a run (it does not begin with '%s'), and a run here would overwrite it; "
             "choose another folder",
             path, owner->first_words);
    return OK;
}

/* Hidden files, and what a killed start leaves behind. */
static bool may_be_there(const char *name, const OutputOwner *owner) {
    static const char unfinished[] = ".tmp";
    size_t n = strlen(owner->config);
    return name[0] == '.' || (strncmp(name, owner->config, n) == 0 && strcmp(name + n, unfinished) == 0);
}

/* Nothing of a folder without the owner's file may be another's. */
static int check_empty(const char *path, const OutputOwner *owner) {
    char **names = NULL;
    size_t n = 0;
    int rc = directory_list(&names, &n, path);
    for (size_t i = 0; i < n && rc == OK; i++)
        if (!may_be_there(names[i], owner))
            rc = error_set(ERR_REFUSED, __FILE__, __LINE__,
                           "output: %s holds '%s' and no %s: it is not a run's folder; choose an empty one", path,
                           names[i], owner->config);
    names_free(names, n);
    return rc;
}

int output_folder_check_owner(const char *path, const OutputOwner *owner, bool *resuming) {
    *resuming = false;
    if (file_exists(path)) FAIL(ERR_REFUSED, "output: %s is a file; a folder is needed", path);
    if (!directory_exists(path)) return OK;
    char *config = path_join(path, owner->config);
    if (!config) FAIL(ERR_FAILED, "out of memory");
    int rc = file_exists(config) ? check_config(config, owner, resuming) : check_empty(path, owner);
    free(config);
    return rc;
}

/* Whether a run has left nothing but its config and its cache of tokens there. */
static int is_barely_begun(const char *path, bool *barely) {
    char **names = NULL;
    size_t n = 0;
    TRY(directory_list(&names, &n, path));
    *barely = true;
    for (size_t i = 0; i < n; i++)
        *barely = *barely && (may_be_there(names[i], &run_owner) || strcmp(names[i], run_owner.config) == 0 ||
                              strcmp(names[i], "cache") == 0);
    names_free(names, n);
    return OK;
}

/* What another command made there would be lost, or taken for this one's. */
static int check_command(const char *path, const char *config, const char *command, bool *resuming) {
    char line[256] = "";
    bool barely;
    FILE *file = fopen(config, "r");
    if (!file) FAIL(ERR_FAILED, "output: %s: open: %s", config, strerror(errno));
    bool read = fgets(line, sizeof line, file) != NULL;
    fclose(file);
    char *theirs = read ? strstr(line, CONFIG_COMMAND) : NULL;
    if (!theirs) return OK; /* an older version's */
    theirs += strlen(CONFIG_COMMAND);
    theirs[strcspn(theirs, "\n")] = '\0';
    if (strcmp(theirs, command) == 0) return OK;
    TRY(is_barely_begun(path, &barely));
    if (!barely)
        FAIL(ERR_REFUSED, "output: %s is a folder of cria %s, and this is cria %s; choose another folder", path, theirs,
             command);
    *resuming = false;
    return OK;
}

int output_folder_check(const char *path, const char *command, bool *resuming) {
    TRY(output_folder_check_owner(path, &run_owner, resuming));
    if (!*resuming) return OK;
    char *config = path_join(path, run_owner.config);
    if (!config) FAIL(ERR_FAILED, "out of memory");
    int rc = check_command(path, config, command, resuming);
    free(config);
    return rc;
}

int output_folder_lock(const char *path, int *descriptor) {
    *descriptor = -1;
    TRY(directory_make(path));
    char *lock = path_join(path, lock_name);
    if (!lock) FAIL(ERR_FAILED, "out of memory");
    int fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC, 0666), code = errno;
    free(lock);
    if (fd < 0) FAIL(ERR_FAILED, "output: %s/%s: open: %s", path, lock_name, strerror(code));
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        code = errno;
        close(fd);
        if (code == EWOULDBLOCK)
            FAIL(ERR_REFUSED, "output: another process is training into %s; wait for it, or choose another folder",
                 path);
        return OK; /* a file system without locks */
    }
    *descriptor = fd;
    return OK;
}

void output_folder_unlock(int descriptor) {
    if (descriptor >= 0) close(descriptor);
}
