/* Ranks over MPI.
 *
 * The sum has a fixed order. MPI_Allreduce may add in any order it likes (and in another one for another message size
 * or number of ranks), so that reruns and layouts would differ in their last bits. Here the array is taken a block at a
 * time, each block cut into one piece per rank:
 *
 *             piece 0   piece 1   piece 2
 *   rank 0   [  a0    |   b0    |   c0   ]      exchange: rank r receives everybody's piece r
 *   rank 1   [  a1    |   b1    |   c1   ]      add:      rank r adds them in rank order, (b0 + b1) + b2
 *   rank 2   [  a2    |   b2    |   c2   ]      gather:   everybody receives all sums
 *
 * An element's sum is one chain of additions in rank order wherever the cuts fall, and is computed once, so all ranks
 * hold the same bits. The scratch memory is one block, whatever the number of ranks.
 */
#include "dist/mesh.h"

#include <mpi.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/core/error.h"
#include "model/core/log.h"
#include "model/core/threads.h"

enum {
    BLOCK_BYTES = 4 << 20,      /* of the array per round of the sum; also the scratch */
    MESSAGE_ELEMENTS = 1 << 28, /* MPI counts are int: larger arrays go in several calls */
    AGREE_TEXT = 2048,
};

struct Mesh {
    int rank, size;
    bool mpi; /* MPI runs, and `ranks` is its communicator */
    MPI_Comm ranks;
    int threads, ranks_here;
    void *scratch; /* one block: every rank's copy of this rank's piece */
    int *counts, *starts, *scratch_counts, *scratch_starts;
};

/* ---- errors ---------------------------------------------------------------------------------------------------- */

static int mpi_error(int code, const char *call) {
    char text[MPI_MAX_ERROR_STRING + 1] = "";
    int length = 0;
    if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) snprintf(text, sizeof text, "error %d", code);
    FAIL(ERR_FAILED, "MPI: %s failed: %s", call, text);
}

#define MPI_TRY(call, name)                                                                           \
    do {                                                                                              \
        int mpi_rc_ = (call);                                                                         \
        if (mpi_rc_ != MPI_SUCCESS) return error_trace(mpi_error(mpi_rc_, name), __FILE__, __LINE__); \
    } while (0)

/* ---- start and end --------------------------------------------------------------------------------------------- */

static bool environment_has(const char *name) {
    const char *value = getenv(name);
    return value && *value;
}

/* Open MPI's mpirun names the size of its job; other launchers (MPICH's, srun with PMI or PMIx) leave one of these. */
static bool launched_by_mpirun(void) {
    return environment_has("OMPI_COMM_WORLD_SIZE");
}
static bool launched_under_mpi(void) {
    return launched_by_mpirun() || environment_has("PMI_SIZE") || environment_has("PMIX_RANK");
}

/* srun with a Slurm that does not speak this MPI's PMI starts N programs, each of which believes it is alone. */
static int check_slurm(int size) {
    const char *tasks = getenv("SLURM_NTASKS");
    if (size > 1 || launched_by_mpirun() || !tasks || !environment_has("SLURM_PROCID") || atoi(tasks) <= 1) return OK;
    FAIL(
        ERR_USAGE,
        "Slurm has %s tasks (SLURM_NTASKS) and this is task %s, but MPI knows of one rank: srun does not start one MPI "
        "job here. Use mpirun inside the sbatch script: mpirun cria …  (one rank alone: mpirun -n 1 cria …)",
        tasks, getenv("SLURM_PROCID"));
}

/* Threads for this rank: its cores, divided among the ranks of the machine whose CPUs overlap with its own (all of them
 * where mpirun binds nothing; none but itself where each is bound to a core). */
static int share_cores(Mesh *mesh) {
    MPI_Comm machine;
    int n_local = 1, sharing = 0;
    MPI_TRY(MPI_Comm_split_type(mesh->ranks, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine), "MPI_Comm_split_type");
    MPI_TRY(MPI_Comm_size(machine, &n_local), "MPI_Comm_size");
    cpu_set_t own, *all = calloc((size_t)n_local, sizeof *all);
    if (!all) FAIL(ERR_FAILED, "out of memory for the CPU masks of %d ranks", n_local);
    CPU_ZERO(&own);
    sched_getaffinity(0, sizeof own, &own); /* where it fails the mask is empty, and nothing is shared */
    int rc = MPI_Allgather(&own, (int)sizeof own, MPI_BYTE, all, (int)sizeof own, MPI_BYTE, machine);
    for (int r = 0; r < n_local; r++) {
        cpu_set_t both;
        CPU_AND(&both, &own, &all[r]);
        if (CPU_COUNT(&both) > 0) sharing++;
    }
    free(all);
    MPI_TRY(rc, "MPI_Allgather");
    MPI_TRY(MPI_Comm_free(&machine), "MPI_Comm_free");
    mesh->ranks_here = n_local;
    int cores = threads_physical_cores() / (sharing > 0 ? sharing : 1);
    mesh->threads = cores > 0 ? cores : 1;
    return OK;
}

static int start_mpi(Mesh *mesh, int *argc, char ***argv) {
    int running = 0, provided = 0;
    MPI_TRY(MPI_Initialized(&running), "MPI_Initialized");
    if (running) FAIL(ERR_FAILED, "MPI was started before: a process has one mesh");
    MPI_TRY(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
    mesh->mpi = true;
    mesh->ranks = MPI_COMM_WORLD;
    MPI_TRY(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    if (provided < MPI_THREAD_FUNNELED)
        FAIL(ERR_FAILED, "this MPI does not allow threads beside it (level %d; FUNNELED, %d, is needed)", provided,
             MPI_THREAD_FUNNELED);
    MPI_TRY(MPI_Comm_rank(mesh->ranks, &mesh->rank), "MPI_Comm_rank");
    MPI_TRY(MPI_Comm_size(mesh->ranks, &mesh->size), "MPI_Comm_size");
    log_set_rank(mesh->rank, mesh->size);
    return share_cores(mesh);
}

static int allocate(Mesh *mesh) {
    if (mesh->size == 1) return OK;
    mesh->scratch = malloc(BLOCK_BYTES);
    mesh->counts = calloc(4 * (size_t)mesh->size, sizeof *mesh->counts);
    if (!mesh->scratch || !mesh->counts)
        FAIL(ERR_FAILED, "out of memory: %zu bytes were asked for the exchange between ranks",
             mesh_scratch_bytes(mesh->size));
    mesh->starts = mesh->counts + mesh->size;
    mesh->scratch_counts = mesh->starts + mesh->size;
    mesh->scratch_starts = mesh->scratch_counts + mesh->size;
    return OK;
}

static void release(Mesh *mesh) {
    free(mesh->scratch);
    free(mesh->counts);
    free(mesh);
}

int mesh_init(Mesh **out, int *argc, char ***argv) {
    int rc;
    *out = NULL;
    Mesh *mesh = calloc(1, sizeof *mesh);
    if (!mesh) FAIL(ERR_FAILED, "out of memory for the mesh of ranks");
    mesh->size = mesh->ranks_here = 1;
    if (launched_under_mpi()) TRY_TO(failed, start_mpi(mesh, argc, argv));
    TRY_TO(failed, check_slurm(mesh->size));
    rc = allocate(mesh);
    TRY_TO(failed, mesh_agree(mesh, rc));
    *out = mesh;
    return OK;
failed:
    if (mesh->mpi && mesh->size == 1) MPI_Finalize();
    release(mesh); /* with several ranks MPI stays open: ending without MPI_Finalize makes mpirun end the others */
    return rc;
}

void mesh_finalize(Mesh *mesh) {
    if (!mesh) return;
    if (mesh->mpi) MPI_Finalize();
    release(mesh);
}

void mesh_abort(Mesh *mesh, int status) {
    fflush(NULL);
    if (mesh && mesh->mpi) MPI_Abort(mesh->ranks, status);
    _exit(status);
}

int mesh_rank(const Mesh *mesh) {
    return mesh->rank;
}
int mesh_size(const Mesh *mesh) {
    return mesh->size;
}
int mesh_default_threads(const Mesh *mesh) {
    return mesh->size == 1 || environment_has("CRIA_THREADS") ? 0 : mesh->threads;
}
int mesh_ranks_here(const Mesh *mesh) {
    return mesh->ranks_here;
}
bool mesh_is_running(void) {
    int running = 0;
    return MPI_Initialized(&running) == MPI_SUCCESS && running;
}
size_t mesh_scratch_bytes(int n_ranks) {
    return n_ranks <= 1 ? 0 : BLOCK_BYTES + 4 * (size_t)n_ranks * sizeof(int);
}

/* ---- the sum in rank order --------------------------------------------------------------------------------------- */

static void sum_pieces_f32(float *sum, const float *pieces, size_t n, int n_ranks) {
    memcpy(sum, pieces, n * sizeof *sum);
    for (int r = 1; r < n_ranks; r++) {
        pieces += n;
        for (size_t i = 0; i < n; i++) sum[i] += pieces[i];
    }
}

static void sum_pieces_f64(double *sum, const double *pieces, size_t n, int n_ranks) {
    memcpy(sum, pieces, n * sizeof *sum);
    for (int r = 1; r < n_ranks; r++) {
        pieces += n;
        for (size_t i = 0; i < n; i++) sum[i] += pieces[i];
    }
}

/* Cuts n elements into one piece per rank, the first n % size of them one longer. */
static void cut_block(Mesh *mesh, int n) {
    int start = 0;
    for (int r = 0; r < mesh->size; r++) {
        mesh->counts[r] = n / mesh->size + (r < n % mesh->size);
        mesh->starts[r] = start;
        start += mesh->counts[r];
    }
    for (int r = 0; r < mesh->size; r++) {
        mesh->scratch_counts[r] = mesh->counts[mesh->rank];
        mesh->scratch_starts[r] = r * mesh->counts[mesh->rank];
    }
}

/* One block of at most block_elements(): exchange, add, gather. */
static int sum_block(Mesh *mesh, void *x, int n, MPI_Datatype type) {
    cut_block(mesh, n);
    MPI_TRY(MPI_Alltoallv(x, mesh->counts, mesh->starts, type, mesh->scratch, mesh->scratch_counts,
                          mesh->scratch_starts, type, mesh->ranks),
            "MPI_Alltoallv");
    int start = mesh->starts[mesh->rank];
    size_t own = (size_t)mesh->counts[mesh->rank];
    if (own > 0 && type == MPI_FLOAT) sum_pieces_f32((float *)x + start, mesh->scratch, own, mesh->size);
    if (own > 0 && type == MPI_DOUBLE) sum_pieces_f64((double *)x + start, mesh->scratch, own, mesh->size);
    MPI_TRY(MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, x, mesh->counts, mesh->starts, type, mesh->ranks),
            "MPI_Allgatherv");
    return OK;
}

/* Elements per round, such that the copies of one piece from all ranks fit the scratch: a multiple of the ranks. */
static size_t block_elements(const Mesh *mesh, size_t element) {
    size_t ranks = (size_t)mesh->size, per_rank = BLOCK_BYTES / element / ranks;
    return per_rank * ranks;
}

static int sum_in_order(Mesh *mesh, char *x, size_t n, size_t element, MPI_Datatype type) {
    if (mesh->size == 1) return OK;
    size_t block = block_elements(mesh, element);
    if (block == 0)
        FAIL(ERR_REFUSED, "a sum over %d ranks: at most %zu are possible", mesh->size, BLOCK_BYTES / element);
    for (size_t done = 0; done < n; done += block) {
        size_t rest = n - done;
        TRY(sum_block(mesh, x + done * element, (int)(rest < block ? rest : block), type));
    }
    return OK;
}

int mesh_sum_f32(Mesh *mesh, float *x, size_t n) {
    return sum_in_order(mesh, (char *)x, n, sizeof *x, MPI_FLOAT);
}
int mesh_sum_f64(Mesh *mesh, double *x, size_t n) {
    return sum_in_order(mesh, (char *)x, n, sizeof *x, MPI_DOUBLE);
}

/* ---- the other collectives --------------------------------------------------------------------------------------- */

int mesh_max_i64(Mesh *mesh, int64_t *x, size_t n) {
    if (mesh->size == 1) return OK;
    for (size_t done = 0; done < n; done += MESSAGE_ELEMENTS) {
        size_t rest = n - done;
        int count = (int)(rest < MESSAGE_ELEMENTS ? rest : MESSAGE_ELEMENTS);
        MPI_TRY(MPI_Allreduce(MPI_IN_PLACE, x + done, count, MPI_INT64_T, MPI_MAX, mesh->ranks), "MPI_Allreduce");
    }
    return OK;
}

int mesh_broadcast(Mesh *mesh, void *bytes, size_t n, int root) {
    if (root < 0 || root >= mesh->size) FAIL(ERR_FAILED, "broadcast from rank %d of %d", root, mesh->size);
    if (mesh->size == 1) return OK;
    for (size_t done = 0; done < n; done += MESSAGE_ELEMENTS) {
        size_t rest = n - done;
        int count = (int)(rest < MESSAGE_ELEMENTS ? rest : MESSAGE_ELEMENTS);
        MPI_TRY(MPI_Bcast((char *)bytes + done, count, MPI_BYTE, root, mesh->ranks), "MPI_Bcast");
    }
    return OK;
}

int mesh_barrier(Mesh *mesh) {
    if (mesh->size > 1) MPI_TRY(MPI_Barrier(mesh->ranks), "MPI_Barrier");
    return OK;
}

int mesh_agree(Mesh *mesh, int rc) {
    if (mesh->size == 1) return rc;
    int first = rc == OK ? mesh->size : mesh->rank;
    MPI_TRY(MPI_Allreduce(MPI_IN_PLACE, &first, 1, MPI_INT, MPI_MIN, mesh->ranks), "MPI_Allreduce");
    if (first == mesh->size) return OK;
    struct {
        int code;
        char text[AGREE_TEXT];
    } report = {.code = rc};
    if (first == mesh->rank) snprintf(report.text, sizeof report.text, "%s", error_text());
    MPI_TRY(MPI_Bcast(&report, (int)sizeof report, MPI_BYTE, first, mesh->ranks), "MPI_Bcast");
    report.text[AGREE_TEXT - 1] = '\0';
    FAIL(report.code, "rank %d: %s", first, report.text);
}
