/* The mesh under mpirun; tests/e2e_mpi.sh starts it with CK_FORK=no and 1 to 4 ranks. With an argument it misbehaves on
 * purpose instead, for the script to see how the job ends: `abort` (the last rank ends it with status 7), `hang` (the
 * last rank never comes to a barrier), `die` (the last rank leaves with an error of its own). */
#include <math.h>
#include <mpi.h>
#include <string.h>
#include <unistd.h>

#include "dist/mesh.h"
#include "dist/watchdog.h"
#include "model/core/philox.h"
#include "model/core/threads.h"
#include "tests/check_main.h"

enum { ABORT_STATUS = 7, HANG_SECONDS = 2, HANG_FOR_EVER = 600, CASE_SECONDS = 100, BLOCK = (4 << 20) / 4 };

static Mesh *mesh; /* Check's cases take no argument */

/* Check writes down every assertion it passes: loops over many elements count what is wrong and assert once. */

/* What rank `rank` contributes at i: magnitudes differ by up to 2^24, so that another order of addition shows. */
static float contribution(int rank, uint64_t i) {
    PhiloxKey key = philox_key(1, PHILOX_TEST, (uint32_t)rank, 0);
    uint64_t bits = philox_u64(key, i);
    float value = ldexpf((float)(bits >> 40) / (1 << 24) + 0.5F, (int)(bits & 15) - 8);
    return bits & 16 ? -value : value;
}

static float sum_in_order(int size, uint64_t i) {
    float sum = contribution(0, i);
    for (int r = 1; r < size; r++) sum += contribution(r, i);
    return sum;
}

static float sum_backwards(int size, uint64_t i) {
    float sum = contribution(size - 1, i);
    for (int r = size - 2; r >= 0; r--) sum += contribution(r, i);
    return sum;
}

START_TEST(sums_are_those_of_one_loop_in_rank_order_bit_for_bit) {
    const size_t lengths[] = {0, 1, 2, 3, 5, 7, 1000, BLOCK, BLOCK + 3};
    int size = mesh_size(mesh), order_shows = 0;
    float *x = malloc((BLOCK + 4) * sizeof *x);
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
        size_t n = lengths[l];
        for (size_t i = 0; i < n; i++) x[i] = contribution(mesh_rank(mesh), i);
        x[n] = 12345;
        CHECK_OK(mesh_sum_f32(mesh, x, n));
        for (size_t i = 0; i < n; i++) {
            float expected = sum_in_order(size, i);
            if (memcmp(&x[i], &expected, sizeof expected) != 0)
                ck_abort_msg("n %zu, element %zu: %a, expected %a", n, i, (double)x[i], (double)expected);
            if (expected != sum_backwards(size, i)) order_shows++;
        }
        ck_assert(x[n] == 12345); /* nothing behind the end is touched */
    }
    if (size > 2) ck_assert_int_gt(order_shows, 1000);
    free(x);
}
END_TEST

START_TEST(a_sum_does_not_depend_on_how_it_is_cut) {
    enum { N = 10007 };
    static float whole[N], parts[N];
    for (int i = 0; i < N; i++) whole[i] = parts[i] = contribution(mesh_rank(mesh), (uint64_t)i);
    CHECK_OK(mesh_sum_f32(mesh, whole, N));
    for (size_t done = 0, piece = 1; done < N; done += piece, piece = piece * 3 + 1) {
        if (piece > N - done) piece = N - done;
        CHECK_OK(mesh_sum_f32(mesh, parts + done, piece));
    }
    ck_assert_mem_eq(whole, parts, sizeof whole);
}
END_TEST

START_TEST(sums_of_doubles_and_maxima_cover_all_ranks) {
    enum { N = BLOCK / 2 + 11 };
    int size = mesh_size(mesh), rank = mesh_rank(mesh), wrong = 0;
    double *x = malloc(N * sizeof *x);
    for (uint64_t i = 0; i < N; i++) x[i] = (double)contribution(rank, i) * 1e-3;
    CHECK_OK(mesh_sum_f64(mesh, x, N));
    for (uint64_t i = 0; i < N; i++) {
        double expected = (double)contribution(0, i) * 1e-3;
        for (int r = 1; r < size; r++) expected += (double)contribution(r, i) * 1e-3;
        if (x[i] != expected) wrong++;
    }
    ck_assert_int_eq(wrong, 0);
    free(x);
    int64_t most[] = {rank, -rank, INT64_MIN, INT64_MAX - rank};
    CHECK_OK(mesh_max_i64(mesh, most, 4));
    ck_assert(most[0] == size - 1 && most[1] == 0 && most[2] == INT64_MIN && most[3] == INT64_MAX);
}
END_TEST

START_TEST(nan_and_infinity_reach_every_rank) {
    float x[] = {1, mesh_rank(mesh) == mesh_size(mesh) - 1 ? NAN : 1, mesh_rank(mesh) == 0 ? INFINITY : 1};
    CHECK_OK(mesh_sum_f32(mesh, x, 3));
    ck_assert(x[0] == (float)mesh_size(mesh) && isnan(x[1]) && isinf(x[2]));
}
END_TEST

START_TEST(a_broadcast_gives_every_rank_the_root_s_bytes) {
    enum { N = 100003 };
    static unsigned char bytes[N];
    for (int root = 0; root < mesh_size(mesh); root++) {
        for (int i = 0; i < N; i++) bytes[i] = (unsigned char)(mesh_rank(mesh) * 31 + i * 7);
        CHECK_OK(mesh_broadcast(mesh, bytes, N, root));
        int wrong = 0;
        for (int i = 0; i < N; i++) wrong += bytes[i] != (unsigned char)(root * 31 + i * 7);
        ck_assert_int_eq(wrong, 0);
    }
    CHECK_OK(mesh_broadcast(mesh, bytes, 0, 0));
    CHECK_ERROR(mesh_broadcast(mesh, bytes, 1, mesh_size(mesh)), ERR_FAILED, "broadcast from rank");
    CHECK_OK(mesh_barrier(mesh));
}
END_TEST

START_TEST(all_ranks_learn_who_failed_first_and_why) {
    int size = mesh_size(mesh), rank = mesh_rank(mesh);
    CHECK_OK(mesh_agree(mesh, OK));
    for (int first = 0; first < size; first++) {
        int rc = OK;
        error_clear();
        if (rank >= first) rc = error_set(ERR_REFUSED, "x.c", 1, "tensor %d is too short", rank);
        ck_assert_int_eq(mesh_agree(mesh, rc), ERR_REFUSED);
        char expected[64];
        snprintf(expected, sizeof expected, size > 1 ? "rank %d: tensor %d is too short" : "tensor %d is too short",
                 first, first);
        ck_assert_str_eq(error_text(), expected);
    }
    int rc = rank == size - 1 ? error_set(ERR_INTERRUPTED, "x.c", 1, "asked to stop") : OK;
    ck_assert_int_eq(mesh_agree(mesh, rc), ERR_INTERRUPTED); /* with its code */
    CHECK_OK(mesh_agree(mesh, OK));                          /* and the next agreement is free of it */
}
END_TEST

START_TEST(threads_are_shared_among_the_ranks_of_a_machine) {
    int size = mesh_size(mesh), threads = mesh_default_threads(mesh), cores = threads_physical_cores();
    if (size == 1) {
        ck_assert_int_eq(threads, 0);
        return;
    }
    ck_assert_int_ge(threads, 1);
    ck_assert_int_le(threads, cores);
    const char *binding = getenv("CRIA_TEST_BINDING");
    if (binding && strcmp(binding, "none") == 0) ck_assert_int_eq(threads, cores / size > 0 ? cores / size : 1);
    if (binding && strcmp(binding, "core") == 0) ck_assert(cores == 1 && threads == 1);
    setenv("CRIA_THREADS", "3", 1);
    ck_assert_int_eq(mesh_default_threads(mesh), 0);
    unsetenv("CRIA_THREADS");
}
END_TEST

START_TEST(errors_of_mpi_come_back_as_values_with_their_text) {
    Mesh *second;
    CHECK_ERROR(mesh_init(&second, NULL, NULL), ERR_FAILED, "a process has one mesh");
    ck_assert_ptr_null(second);
    if (mesh_size(mesh) != 2) return; /* with more, those in the middle of MPI's tree would wait for ever */
    /* The ranks disagree about the length; without error values MPI would end the job here. Last: the mesh is unusable
     * afterwards. */
    char bytes[64] = "";
    if (mesh_rank(mesh) == 0)
        CHECK_OK(mesh_broadcast(mesh, bytes, 64, 0));
    else
        CHECK_ERROR(mesh_broadcast(mesh, bytes, 8, 0), ERR_FAILED, "MPI: MPI_Bcast failed: MPI_ERR_TRUNCATE");
}
END_TEST

static int misbehave(const char *how, int *argc, char ***argv) {
    Watchdog *watchdog;
    if (mesh_init(&mesh, argc, argv) != OK || watchdog_start(&watchdog, HANG_SECONDS) != OK) {
        fprintf(stderr, "%s\n", error_text());
        return ERR_FAILED;
    }
    bool last = mesh_rank(mesh) == mesh_size(mesh) - 1;
    watchdog_pat(watchdog, "the barrier that the last rank forgets");
    if (last && strcmp(how, "abort") == 0) mesh_abort(mesh, ABORT_STATUS);
    if (last && strcmp(how, "die") == 0) {
        watchdog_stop(watchdog);
        return ERR_REFUSED;
    }
    if (last && strcmp(how, "hang") == 0) {
        watchdog_stop(watchdog); /* the rank that waits is the one to report */
        sleep(HANG_FOR_EVER);
    }
    if (strcmp(how, "hang") != 0) { /* only mpirun may end this rank */
        watchdog_stop(watchdog);
        watchdog = NULL;
    }
    int rc = mesh_barrier(mesh);
    watchdog_stop(watchdog);
    mesh_finalize(mesh);
    return rc;
}

int main(int argc, char **argv) {
    if (argc > 1) return misbehave(argv[1], &argc, &argv);
    const CheckCase cases[] = {
        sums_are_those_of_one_loop_in_rank_order_bit_for_bit, a_sum_does_not_depend_on_how_it_is_cut,
        sums_of_doubles_and_maxima_cover_all_ranks,           nan_and_infinity_reach_every_rank,
        a_broadcast_gives_every_rank_the_root_s_bytes,        all_ranks_learn_who_failed_first_and_why,
        threads_are_shared_among_the_ranks_of_a_machine,      errors_of_mpi_come_back_as_values_with_their_text};
    Watchdog *watchdog;
    if (mesh_init(&mesh, &argc, &argv) != OK || watchdog_start(&watchdog, CASE_SECONDS) != OK) {
        fprintf(stderr, "%s\n", error_text());
        return EXIT_FAILURE;
    }
    printf("rank %d of %d\n", mesh_rank(mesh), mesh_size(mesh));
    int status = check_run("mesh", cases, (int)(sizeof cases / sizeof *cases));
    watchdog_stop(watchdog);
    if (status != EXIT_SUCCESS) mesh_abort(mesh, status); /* the others may wait for this rank */
    mesh_finalize(mesh);
    return status;
}
