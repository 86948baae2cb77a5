/* The promise of model/formats/checkpoint.h: after any failed call and any crash, the old or the new checkpoint is
 * found whole. The functions of libc that change a file system are replaced in this program (libhdf5's calls included):
 * the N-th call fails, or ends the process, for N = 1, 2, 3 … until a save passes. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "model/core/error.h"
#include "model/core/file.h"
#include "model/core/log.h"
#include "model/core/philox.h"
#include "model/formats/checkpoint.h"
#include "tests/check_main.h"
#include "tests/formats_scratch.h"

/* ---- the replaced functions ---- */

typedef enum { QUIET, FAIL_AT, DIE_AT, CORRUPT_AT } FaultMode;
enum { DIED = 77, MAX_SYNCED = 64 };
static struct {
    FaultMode mode;
    int at, calls; /* the call that is hit, counted from 1; the calls so far */
    bool stays;    /* once hit, every later call fails too: a disk that is full or gone */
    char synced[MAX_SYNCED][128];
    int n_synced;
    bool manifest_renamed_early, corrupted;
} fault;

/* Counts a call; true when it is to fail. */
static bool hit(void) {
    if (fault.mode == QUIET) return false;
    fault.calls++;
    bool now = fault.calls == fault.at || (fault.stays && fault.calls > fault.at);
    if (now && fault.mode == DIE_AT) _exit(DIED);
    if (fault.mode == CORRUPT_AT) return false;
    if (now) errno = fault.calls % 2 ? ENOSPC : EIO;
    return now;
}

/* In CORRUPT_AT, a write that is hit succeeds and stores one wrong bit; malloc'd, or NULL where it is not hit. */
static void *corrupted(const void *bytes, size_t n) {
    if (fault.mode != CORRUPT_AT || fault.calls + 1 != fault.at || n == 0) return NULL;
    unsigned char *copy = malloc(n);
    if (!copy) return NULL;
    memcpy(copy, bytes, n);
    copy[n / 2] ^= 4;
    fault.corrupted = true;
    return copy;
}

#define REAL(name) ((__typeof__(&name))(uintptr_t)dlsym(RTLD_NEXT, #name))

/* A write that is hit has taken half of the bytes: the half stays in the file. */
#define HALF(n) ((n) / 2)

static bool half_is_kept(void) {
    return fault.mode != QUIET && fault.mode != CORRUPT_AT && fault.calls + 1 == fault.at;
}

ssize_t write(int fd, const void *bytes, size_t n) {
    if (fd <= 2) return REAL(write)(fd, bytes, n);
    if (half_is_kept()) (void)!REAL(write)(fd, bytes, HALF(n));
    void *wrong = corrupted(bytes, n);
    ssize_t written = hit() ? -1 : REAL(write)(fd, wrong ? wrong : bytes, n);
    free(wrong);
    return written;
}
ssize_t pwrite(int fd, const void *bytes, size_t n, off_t offset) {
    if (half_is_kept()) (void)!REAL(pwrite)(fd, bytes, HALF(n), offset);
    void *wrong = corrupted(bytes, n);
    ssize_t written = hit() ? -1 : REAL(pwrite)(fd, wrong ? wrong : bytes, n, offset);
    free(wrong);
    return written;
}
int ftruncate(int fd, off_t size) {
    return hit() ? -1 : REAL(ftruncate)(fd, size);
}
int ftruncate64(int fd, off64_t size) {
    return hit() ? -1 : REAL(ftruncate64)(fd, size);
}
int mkdir(const char *path, mode_t mode) {
    return hit() ? -1 : REAL(mkdir)(path, mode);
}
int unlink(const char *path) {
    return hit() ? -1 : REAL(unlink)(path);
}

int fsync(int fd) {
    if (fault.mode != QUIET && fault.n_synced < MAX_SYNCED) {
        char link[64], *path = fault.synced[fault.n_synced];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(link, path, sizeof fault.synced[0] - 1);
        if (n > 0) {
            path[n] = '\0';
            fault.n_synced++;
        }
    }
    return hit() ? -1 : REAL(fsync)(fd);
}

static bool was_synced(const char *path) {
    for (int i = 0; i < fault.n_synced; i++)
        if (strcmp(fault.synced[i], path) == 0) return true;
    return false;
}

/* At the manifest's renaming, all that it lists must have been made durable under its temporary name. */
int rename(const char *from, const char *to) {
    const char *base = strrchr(to, '/');
    if (fault.mode != QUIET && base && strcmp(base, "/" MANIFEST_NAME) == 0) {
        static const char *const files[] = {"model.h5.tmp", "config.yaml.tmp", "manifest.json.tmp"};
        for (int i = 0; i < 3; i++) {
            char path[256];
            snprintf(path, sizeof path, "%.*s/%s", (int)(base - to), to, files[i]);
            if (!was_synced(path)) fault.manifest_renamed_early = true;
        }
    }
    return hit() ? -1 : REAL(rename)(from, to);
}

static void arm(FaultMode mode, int at, bool stays) {
    memset(&fault, 0, sizeof fault);
    fault.at = at;
    fault.stays = stays;
    fault.mode = mode;
}
static int disarm(void) { /* the calls that were made */
    fault.mode = QUIET;
    return fault.calls;
}

/* ---- a run ---- */

enum { ELEMENTS = 3000 };
static float weights[ELEMENTS];

/* A checkpoint whose contents are told apart by `mark`. */
static int save(const char *run, int64_t step, float mark) {
    CheckpointWriter *writer;
    int rc = OK;
    for (int i = 0; i < ELEMENTS; i++) weights[i] = mark + (float)i;
    const NamedSource sources[] = {
        {.array = {.name = "model.norm.weight", .dtype = DTYPE_F32, .n_dims = 1, .dims = {ELEMENTS}}, .f32 = weights},
        {.array = {.name = "lm_head.weight", .dtype = DTYPE_BF16, .n_dims = 2, .dims = {3, 1000}}, .f32 = weights},
    };
    TRY(checkpoint_begin(&writer, run, step));
    TRY_TO(failed, checkpoint_add_arrays(writer, CHECKPOINT_MODEL, sources, 2, &(NamedText){"note", "x"}, 1));
    TRY_TO(failed, checkpoint_add_bytes(writer, "config.yaml", "output: runs/x\n", 15));
    TRY(checkpoint_commit(writer));
    return OK;
failed:
    checkpoint_abandon(writer);
    return rc;
}

/* Loads the newest: its step, -1 for none, and the mark of its contents. */
static int64_t newest(const char *run, float *mark) {
    log_set_level(LOG_ERROR); /* not the warnings about what is passed over */
    char *folder, *config;
    size_t size;
    int64_t step = -1;
    NamedFile *file;
    CHECK_OK(checkpoint_newest(&folder, &step, run));
    if (!folder) return -1;
    CHECK_OK(checkpoint_open_arrays(&file, folder, CHECKPOINT_MODEL));
    float values[ELEMENTS];
    CHECK_OK(named_read_f32(file, named_find(file, "model.norm.weight"), 0, ELEMENTS, values));
    *mark = values[0];
    for (int i = 0; i < ELEMENTS; i++) ck_assert_float_eq(values[i], *mark + (float)i);
    named_close(file);
    CHECK_OK(checkpoint_read_bytes(&config, &size, folder, "config.yaml"));
    ck_assert_str_eq(config, "output: runs/x\n");
    free(config);
    free(folder);
    return step;
}

static bool step_exists(const char *run, const char *name) {
    char *path = in(run, name);
    bool found = directory_exists(path);
    free(path);
    return found;
}

/* ---- tests ---- */

START_TEST(everything_is_durable_before_the_manifest_is_renamed) {
    char run[64];
    float mark;
    scratch(run);
    arm(FAIL_AT, 0, false);
    CHECK_OK(save(run, 10, 1));
    int calls = disarm();
    ck_assert_int_ge(calls, 20);
    ck_assert(!fault.manifest_renamed_early);
    const char *const directories[] = {"checkpoints", "checkpoints/step-10"};
    for (int i = 0; i < 2; i++) {
        char *path = in(run, directories[i]);
        ck_assert_msg(was_synced(path), "%s was not synced", path);
        free(path);
    }
    ck_assert(was_synced(run));
    ck_assert_int_eq(newest(run, &mark), 10);
    CHECK_OK(directory_remove(run));
}
END_TEST

static void every_failing_call(bool stays) {
    int hits = 0, olds = 0;
    for (int at = 1;; at++) {
        char run[64];
        float mark = 0;
        scratch(run);
        CHECK_OK(save(run, 10, 1));
        arm(FAIL_AT, at, stays);
        int rc = save(run, 20, 2);
        int calls = disarm();
        if (rc != OK) ck_assert_msg(strlen(error_text()) > 10, "call %d fails without a text", at);
        int64_t found = newest(run, &mark);
        /* a failure after the manifest is in place may leave the new one, whole */
        ck_assert_msg(found == 20 || (rc != OK && found == 10), "call %d: %d, found step %d", at, rc, (int)found);
        ck_assert_float_eq(mark, found == 20 ? 2 : 1);
        olds += found == 10;
        CHECK_OK(save(run, 20, 3)); /* the next save goes through */
        ck_assert_int_eq(newest(run, &mark), 20);
        ck_assert_float_eq(mark, 3);
        CHECK_OK(directory_remove(run));
        if (calls < at) break;
        hits += rc != OK;
    }
    ck_assert_int_gt(hits, 20);
    ck_assert_int_ge(olds, hits - 2); /* only the last directory sync comes after the commit */
}

START_TEST(whichever_call_fails_the_old_checkpoint_is_found) {
    every_failing_call(false);
}
END_TEST

START_TEST(when_the_disk_stays_full_the_old_checkpoint_is_found) {
    every_failing_call(true);
}
END_TEST

START_TEST(a_bit_that_the_disk_stores_wrong_is_noticed_before_the_commit) {
    int noticed = 0, writes = 0;
    for (int at = 1;; at++) {
        char run[SCRATCH_NAME];
        float mark = 0;
        scratch(run);
        CHECK_OK(save(run, 10, 1));
        arm(CORRUPT_AT, at, false);
        int rc = save(run, 20, 2);
        int calls = disarm();
        int64_t found = newest(run, &mark); /* reads every element: a save that passed is right */
        ck_assert_msg(found == (rc == OK ? 20 : 10), "call %d: %d, found step %d", at, rc, (int)found);
        ck_assert_float_eq(mark, rc == OK ? 2 : 1);
        writes += fault.corrupted;
        noticed += rc != OK;
        CHECK_OK(directory_remove(run));
        if (calls < at) break;
    }
    ck_assert_int_gt(writes, 5);
    ck_assert_msg(noticed >= writes - 3, "%d of %d noticed", noticed, writes); /* bytes that mean nothing may differ */
}
END_TEST

/* Saves `step` in a child that dies at its `at`-th call; whether it died. */
static bool dies(const char *run, int64_t step, float mark, int at, bool prune) {
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        arm(DIE_AT, at, false);
        int rc = save(run, step, mark);
        if (rc == OK && prune) rc = checkpoint_prune(run, 1);
        disarm();
        _exit(rc == OK ? 0 : 1);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status));
    ck_assert_int_ne(WEXITSTATUS(status), 1);
    return WEXITSTATUS(status) == DIED;
}

START_TEST(whenever_the_process_dies_the_old_or_the_new_one_is_found) {
    int deaths = 0;
    for (bool died = true; died; deaths += died) {
        char run[64];
        float mark = 0;
        scratch(run);
        CHECK_OK(save(run, 10, 1));
        died = dies(run, 20, 2, deaths + 1, true);
        int64_t found = newest(run, &mark);
        ck_assert_msg(found == 10 || found == 20, "death at call %d: found step %d", deaths + 1, (int)found);
        ck_assert_float_eq(mark, found == 10 ? 1 : 2);
        if (!died) ck_assert(found == 20 && !step_exists(run, "checkpoints/step-10"));
        CHECK_OK(save(run, 30, 3)); /* the run goes on, and cleans up what the dead one left */
        CHECK_OK(checkpoint_prune(run, 1));
        ck_assert_int_eq(newest(run, &mark), 30);
        ck_assert(!step_exists(run, "checkpoints/step-10") && !step_exists(run, "checkpoints/step-20"));
        CHECK_OK(directory_remove(run));
    }
    ck_assert_int_gt(deaths, 20);
}
END_TEST

START_TEST(saving_a_step_again_never_leaves_the_run_without_it) {
    int deaths = 0;
    for (bool died = true; died; deaths += died) {
        char run[64];
        float mark = 0;
        scratch(run);
        CHECK_OK(save(run, 10, 1));
        CHECK_OK(checkpoint_mark_best(run, 10));
        died = dies(run, 10, 2, deaths + 1, false);
        ck_assert_int_eq(newest(run, &mark), 10);
        ck_assert_msg(mark == 1 || (mark == 2), "death at call %d: mark %g", deaths + 1, (double)mark);
        char *folder;
        CHECK_OK(checkpoint_best(&folder, NULL, run));
        free(folder);
        dies(run, 10, 3, deaths + 1, false); /* and a second death at the same place */
        ck_assert_int_eq(newest(run, &mark), 10);
        CHECK_OK(save(run, 10, 4));
        ck_assert_int_eq(newest(run, &mark), 10);
        ck_assert_float_eq(mark, 4);
        ck_assert(!step_exists(run, "checkpoints/step-10.old"));
        CHECK_OK(directory_remove(run));
    }
    ck_assert_int_gt(deaths, 20);
}
END_TEST

static const char *const files[] = {"manifest.json", "model.h5", "config.yaml"};

START_TEST(any_flipped_bit_is_noticed_and_the_checkpoint_before_is_used) {
    char run[64];
    float mark;
    PhiloxKey key = philox_key(2, PHILOX_TEST, 0, 0);
    scratch(run);
    CHECK_OK(save(run, 10, 1));
    CHECK_OK(save(run, 20, 2));
    char *folder = in(run, "checkpoints/step-20");
    uint64_t draw = 0;
    for (int f = 0; f < 3; f++) {
        char *path = in(folder, files[f]), *bytes;
        size_t size;
        CHECK_OK(file_read(&bytes, &size, path, 0));
        for (int i = 0; i < 120; i++) {
            size_t bit = (size_t)philox_below(key, draw++, 8 * size);
            bytes[bit / 8] = (char)(bytes[bit / 8] ^ 1 << bit % 8);
            overwrite(path, bytes, size);
            CHECK_ERROR(checkpoint_verify(folder), ERR_REFUSED, files[f]);
            if (i % 10 == 0) ck_assert_int_eq(newest(run, &mark), 10);
            bytes[bit / 8] = (char)(bytes[bit / 8] ^ 1 << bit % 8);
        }
        overwrite(path, bytes, size);
        CHECK_OK(checkpoint_verify(folder));
        free(bytes);
        free(path);
    }
    ck_assert_int_eq(newest(run, &mark), 20);
    free(folder);
    CHECK_OK(directory_remove(run));
}
END_TEST

START_TEST(a_file_cut_anywhere_is_noticed) {
    char run[64];
    scratch(run);
    CHECK_OK(save(run, 20, 2));
    char *folder = in(run, "checkpoints/step-20");
    for (int f = 0; f < 3; f++) {
        char *path = in(folder, files[f]), *bytes;
        size_t size;
        CHECK_OK(file_read(&bytes, &size, path, 0));
        for (size_t kept = 0; kept<size; kept += size> 1000 ? size / 100 : 1) {
            overwrite(path, bytes, kept);
            CHECK_ERROR(checkpoint_verify(folder), ERR_REFUSED, files[f]);
        }
        overwrite(path, bytes, size);
        CHECK_OK(checkpoint_verify(folder));
        free(bytes);
        free(path);
    }
    free(folder);
    CHECK_OK(directory_remove(run));
}
END_TEST

START_TEST(a_run_whose_checkpoints_are_all_damaged_does_not_start_over) {
    char run[64], *folder;
    float mark;
    scratch(run);
    ck_assert_int_eq(newest(run, &mark), -1);
    CHECK_OK(save(run, 10, 1));
    char *path = in(run, "checkpoints/step-10/model.h5");
    CHECK_OK(file_write_atomic(path, "x", 1));
    CHECK_ERROR(checkpoint_newest(&folder, NULL, run), ERR_REFUSED, "damaged");
    free(path);
    path = in(run, "checkpoints/step-10/manifest.json"); /* without a manifest it was never committed */
    ck_assert_int_eq(unlink(path), 0);
    free(path);
    ck_assert_int_eq(newest(run, &mark), -1);
    CHECK_OK(directory_remove(run));
}
END_TEST

START_TEST(pruning_keeps_the_newest_and_the_best_and_clears_unfinished_saves) {
    char run[64], *folder;
    int64_t step;
    float mark;
    scratch(run);
    for (int s = 1; s <= 6; s++) CHECK_OK(save(run, s, (float)s));
    CHECK_ERROR(checkpoint_mark_best(run, 9), ERR_FAILED, "step-9");
    CHECK_OK(checkpoint_mark_best(run, 2));
    const char *const unfinished[] = {"checkpoints/step-4/manifest.json", "checkpoints/step-6/manifest.json"};
    for (int i = 0; i < 2; i++) {
        char *path = in(run, unfinished[i]);
        ck_assert_int_eq(unlink(path), 0);
        free(path);
    }
    char *theirs = in(run, "checkpoints/step-1-notes");
    CHECK_OK(directory_make(theirs));
    CHECK_OK(checkpoint_prune(run, 2));
    ck_assert(!step_exists(run, "checkpoints/step-1"));
    ck_assert(step_exists(run, "checkpoints/step-2")); /* the best */
    ck_assert(step_exists(run, "checkpoints/step-3") && step_exists(run, "checkpoints/step-5"));
    ck_assert(!step_exists(run, "checkpoints/step-4")); /* older than the newest commit */
    ck_assert(step_exists(run, "checkpoints/step-6"));  /* might still be in the making */
    ck_assert(directory_exists(theirs));
    free(theirs);
    ck_assert_int_eq(newest(run, &mark), 5);
    CHECK_OK(checkpoint_best(&folder, &step, run));
    ck_assert_int_eq(step, 2);
    free(folder);
    CHECK_OK(checkpoint_prune(run, 1));
    ck_assert(!step_exists(run, "checkpoints/step-3") && step_exists(run, "checkpoints/step-2"));
    CHECK_OK(directory_remove(run));
}
END_TEST

START_TEST(a_model_is_found_from_a_run_a_checkpoint_or_best) {
    char run[64], *folder;
    NamedFile *file;
    scratch(run);
    CHECK_ERROR(checkpoint_resolve(&folder, run), ERR_REFUSED, MANIFEST_NAME);
    CHECK_OK(save(run, 10, 1));
    CHECK_OK(save(run, 20, 2));
    CHECK_OK(checkpoint_mark_best(run, 10));
    static const struct {
        const char *path;
        float mark;
    } ways[] = {{"", 2},
                {"best", 1},
                {"checkpoints/best", 1},
                {"checkpoints/step-10", 1},
                {"checkpoints/step-20/", 2},
                {"checkpoints/step-20/model.h5", 2}};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        char *path = in(run, ways[i].path);
        float value;
        CHECK_OK(named_open(&file, path));
        CHECK_OK(named_read_f32(file, named_find(file, "model.norm.weight"), 0, 1, &value));
        ck_assert_msg(value == ways[i].mark, "%s: %g", path, (double)value);
        named_close(file);
        free(path);
    }
    char *moved = in(run, "alone.h5"), *model = in(run, "checkpoints/step-10/model.h5");
    ck_assert_int_eq(rename(model, moved), 0);
    CHECK_ERROR(named_open(&file, moved), ERR_REFUSED, MANIFEST_NAME);
    CHECK_ERROR(checkpoint_best(&folder, NULL, run), ERR_REFUSED, "missing");
    free(moved);
    free(model);
    CHECK_OK(directory_remove(run));
}
END_TEST

CHECK_MAIN("checkpoint", everything_is_durable_before_the_manifest_is_renamed,
           whichever_call_fails_the_old_checkpoint_is_found, when_the_disk_stays_full_the_old_checkpoint_is_found,
           a_bit_that_the_disk_stores_wrong_is_noticed_before_the_commit,
           whenever_the_process_dies_the_old_or_the_new_one_is_found,
           saving_a_step_again_never_leaves_the_run_without_it,
           any_flipped_bit_is_noticed_and_the_checkpoint_before_is_used, a_file_cut_anywhere_is_noticed,
           a_run_whose_checkpoints_are_all_damaged_does_not_start_over,
           pruning_keeps_the_newest_and_the_best_and_clears_unfinished_saves,
           a_model_is_found_from_a_run_a_checkpoint_or_best)
