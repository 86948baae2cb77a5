/* A mesh of one process, which needs no MPI, and the watchdog. Several ranks: tests/e2e_mpi.sh. */
#include <mpi.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "dist/mesh.h"
#include "dist/watchdog.h"
#include "model/core/threads.h"
#include "tests/check_main.h"

static const double LIMIT = 0.3; /* seconds */

static void leave_mpi_environment(void) {
    const char *names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "SLURM_NTASKS", "SLURM_PROCID"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) unsetenv(names[i]);
}

START_TEST(one_process_is_a_mesh_of_one_and_does_not_start_mpi) {
    leave_mpi_environment();
    Mesh *mesh;
    int running = 1;
    CHECK_OK(mesh_init(&mesh, NULL, NULL));
    MPI_Initialized(&running);
    ck_assert_int_eq(running, 0);
    ck_assert_int_eq(mesh_size(mesh), 1);
    ck_assert_int_eq(mesh_rank(mesh), 0);
    ck_assert_int_eq(mesh_default_threads(mesh), 0);
    ck_assert_uint_eq(mesh_scratch_bytes(1), 0);
    ck_assert_uint_ge(mesh_scratch_bytes(2), 1 << 20);
    mesh_finalize(mesh);
}
END_TEST

START_TEST(the_collectives_of_one_leave_everything_as_it_is) {
    leave_mpi_environment();
    Mesh *mesh;
    CHECK_OK(mesh_init(&mesh, NULL, NULL));
    float x[] = {1.5F, -0.0F, 3};
    const float same[] = {1.5F, -0.0F, 3};
    double y[] = {2.5};
    int64_t z[] = {-7};
    CHECK_OK(mesh_sum_f32(mesh, x, 3));
    ck_assert_mem_eq(x, same, sizeof x);
    CHECK_OK(mesh_sum_f64(mesh, y, 1));
    CHECK_OK(mesh_max_i64(mesh, z, 1));
    ck_assert(y[0] == 2.5 && z[0] == -7);
    CHECK_OK(mesh_broadcast(mesh, x, sizeof x, 0));
    CHECK_ERROR(mesh_broadcast(mesh, x, sizeof x, 1), ERR_FAILED, "rank 1 of 1");
    CHECK_OK(mesh_barrier(mesh));
    CHECK_OK(mesh_agree(mesh, OK));
    int rc = error_set(ERR_REFUSED, "x.c", 1, "line 7 is malformed");
    ck_assert_int_eq(mesh_agree(mesh, rc), ERR_REFUSED);
    ck_assert_str_eq(error_text(), "line 7 is malformed");
    mesh_finalize(mesh);
}
END_TEST

START_TEST(slurm_tasks_without_mpi_are_refused) {
    leave_mpi_environment();
    Mesh *mesh;
    setenv("SLURM_NTASKS", "4", 1);
    CHECK_OK(mesh_init(&mesh, NULL, NULL)); /* an allocation alone starts nothing */
    mesh_finalize(mesh);
    setenv("SLURM_PROCID", "2", 1);
    CHECK_ERROR(mesh_init(&mesh, NULL, NULL), ERR_USAGE, "Slurm has 4 tasks (SLURM_NTASKS) and this is task 2");
    ck_assert_ptr_null(mesh);
    ck_assert_ptr_nonnull(strstr(error_text(), "mpirun"));
    setenv("SLURM_NTASKS", "1", 1);
    CHECK_OK(mesh_init(&mesh, NULL, NULL));
    mesh_finalize(mesh);
}
END_TEST

static void sleep_seconds(double seconds) {
    struct timespec pause = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    while (nanosleep(&pause, &pause) != 0) continue;
}

/* Runs `body` in a child with stderr in `text`; the child's wait status. */
static int in_child(void (*body)(void), char *text, size_t size) {
    int ends[2], status;
    ck_assert_int_eq(pipe(ends), 0);
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        signal(SIGABRT, SIG_DFL);
        body();
        _exit(0);
    }
    close(ends[1]);
    size_t used = 0;
    for (ssize_t got; used + 1 < size && (got = read(ends[0], text + used, size - 1 - used)) > 0;) used += (size_t)got;
    text[used] = '\0';
    close(ends[0]);
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    return status;
}

static void hang(void) {
    Watchdog *watchdog;
    threads_init(2);
    if (watchdog_start(&watchdog, LIMIT) != OK) _exit(9);
    watchdog_pat(watchdog, "saving the checkpoint");
    sleep_seconds(60);
}

START_TEST(a_hang_is_ended_with_the_stacks_of_all_threads) {
    char text[16384];
    time_t start = time(NULL);
    int status = in_child(hang, text, sizeof text);
    ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "status %d: %s", status, text);
    ck_assert_int_lt(time(NULL) - start, 30);
    ck_assert_ptr_nonnull(strstr(text, "no sign of life for 0.3 s; last: saving the checkpoint"));
    ck_assert_ptr_nonnull(strstr(text, ", the main thread:"));
    ck_assert_msg(strstr(text, "nanosleep") != NULL, "the main thread's stack is missing: %s", text);
    ck_assert_ptr_nonnull(strstr(text, "(watchdog)"));
    ck_assert_ptr_nonnull(strstr(text, "watchdog: aborting"));
}
END_TEST

static void work(void) {
    Watchdog *watchdog;
    if (watchdog_start(&watchdog, LIMIT) != OK) _exit(9);
    for (int i = 0; i < 40; i++) { /* four times the limit in all */
        watchdog_pat(watchdog, "a step");
        sleep_seconds(LIMIT / 10);
    }
    watchdog_stop(watchdog);
    sleep_seconds(2 * LIMIT); /* nobody watches any more */
}

START_TEST(signs_of_life_keep_the_watchdog_quiet) {
    char text[4096];
    int status = in_child(work, text, sizeof text);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %d: %s", status, text);
    ck_assert_str_eq(text, "");
}
END_TEST

static void be_stopped(void) {
    Watchdog *watchdog;
    if (watchdog_start(&watchdog, LIMIT) != OK) _exit(9);
    pid_t self = getpid(), helper = fork();
    if (helper == 0) {
        kill(self, SIGSTOP);
        sleep_seconds(3 * LIMIT);
        kill(self, SIGCONT);
        _exit(0);
    }
    for (int i = 0; i < 10; i++) {
        watchdog_pat(watchdog, NULL);
        sleep_seconds(LIMIT / 10);
    }
    watchdog_stop(watchdog);
    waitpid(helper, NULL, 0);
}

START_TEST(a_process_that_was_stopped_and_continued_has_not_hung) {
    char text[4096];
    int status = in_child(be_stopped, text, sizeof text);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %d: %s", status, text);
}
END_TEST

START_TEST(a_watchdog_needs_a_time) {
    Watchdog *watchdog;
    CHECK_ERROR(watchdog_start(&watchdog, 0), ERR_USAGE, "0 seconds");
    CHECK_ERROR(watchdog_start(&watchdog, -1), ERR_USAGE, "positive");
    ck_assert_ptr_null(watchdog);
    watchdog_pat(NULL, "nothing is watched");
    watchdog_stop(NULL);
}
END_TEST

CHECK_MAIN("mesh", one_process_is_a_mesh_of_one_and_does_not_start_mpi,
           the_collectives_of_one_leave_everything_as_it_is, slurm_tasks_without_mpi_are_refused,
           a_hang_is_ended_with_the_stacks_of_all_threads, signs_of_life_keep_the_watchdog_quiet,
           a_process_that_was_stopped_and_continued_has_not_hung, a_watchdog_needs_a_time)
