/* Ranks. One process without MPI's mpirun is a mesh of one, and MPI is then not started. */
#ifndef CRIA_DIST_MESH_H
#define CRIA_DIST_MESH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct Mesh Mesh;

/* Starts MPI when the process was launched under it (its environment says so), and then names the rank in every log
 * line. The mesh is the process's only one; MPI calls come from the thread that called this. ERR_USAGE where Slurm has
 * started several tasks but MPI knows of one (each would otherwise train alone and overwrite the others' files). */
int mesh_init(Mesh **mesh, int *argc, char ***argv);
/* Waits for all ranks. After an error that the others do not share, call mesh_abort instead, or they wait for ever. */
void mesh_finalize(Mesh *mesh);
int mesh_rank(const Mesh *mesh);
int mesh_size(const Mesh *mesh);

/* What to give threads_init when the config names no number of threads: the physical cores this rank may run on, shared
 * evenly with the ranks of this machine that may run on the same ones. 0 (threads_init decides) in a mesh of one and
 * where the environment sets CRIA_THREADS. */
int mesh_default_threads(const Mesh *mesh);

/* How many of the ranks run on this machine. */
int mesh_ranks_here(const Mesh *mesh);
/* Whether MPI runs in this process: its memory is then part of what can be measured. */
bool mesh_is_running(void);

/* Memory a mesh of so many ranks keeps for its sums, for the planner (MPI's own is part of the probed baseline). */
size_t mesh_scratch_bytes(int n_ranks);

/* Collectives: every rank calls them, in the same order, with the same n. An error of MPI's own comes back as
 * ERR_FAILED with its text; the mesh is not usable after it. */

/* Every rank's x summed elementwise in rank order, ((x0 + x1) + x2) + …: the same bits on all ranks and in every run.
 */
int mesh_sum_f32(Mesh *mesh, float *x, size_t n);
int mesh_sum_f64(Mesh *mesh, double *x, size_t n);
int mesh_max_i64(Mesh *mesh, int64_t *x, size_t n);
int mesh_broadcast(Mesh *mesh, void *bytes, size_t n, int root);
int mesh_barrier(Mesh *mesh);

/* Ranks agree on success: returns OK only where every rank passes OK; elsewhere the code of the first rank that failed,
 * with its text ("rank 2: …"), on every rank. Call before any commit point, so that nobody hangs. */
int mesh_agree(Mesh *mesh, int rc);

/* Ends the whole job now, with this exit status: for errors that other ranks cannot learn of otherwise. */
void mesh_abort(Mesh *mesh, int status) __attribute__((noreturn));

#endif
