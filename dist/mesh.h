/* Ranks. One process without MPI's mpirun is a mesh of one, and MPI is then not started. */
#ifndef CRIA_DIST_MESH_H
#define CRIA_DIST_MESH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct Mesh Mesh;

/* Starts MPI when the process was launched under it (or when Slurm says so). The mesh is the process's only one. */
int mesh_init(Mesh **mesh, int *argc, char ***argv);
void mesh_finalize(Mesh *mesh);
int mesh_rank(const Mesh *mesh);
int mesh_size(const Mesh *mesh);

/* Every rank's x summed elementwise in rank order 0, 1, 2, …, the same bits on all ranks and in every run. */
int mesh_sum_f32(Mesh *mesh, float *x, size_t n);
int mesh_sum_f64(Mesh *mesh, double *x, size_t n);
int mesh_max_i64(Mesh *mesh, int64_t *x, size_t n);
int mesh_broadcast(Mesh *mesh, void *bytes, size_t n, int root);
int mesh_barrier(Mesh *mesh);

/* Ranks agree on success: returns OK only where every rank passes OK; elsewhere an error naming the first rank that
 * failed, with its text. Call before any commit point, so that nobody hangs. */
int mesh_agree(Mesh *mesh, int rc);

/* Ends the whole job now, with this exit status: for errors that other ranks cannot learn of otherwise. */
void mesh_abort(Mesh *mesh, int status);

#endif
