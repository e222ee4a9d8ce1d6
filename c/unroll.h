/* How the kernels say that something is done to several vectors, or compiled for each of several uses. */
#ifndef FSM_UNROLL_H
#define FSM_UNROLL_H

/* Vectors whose polynomials go in step. One after the other they wait for each other: the 40 cycles of one are more than
 * a core's schedulers see ahead. */
#define LOCKSTEP 4

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__ /* or compiling takes minutes */
#define UNROLL
#elif defined __clang__ /* which ignores GCC's pragma, and leaves arrays of vectors in memory: a quarter of the speed */
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* For i from 0, a number of times that is known when compiling: no loop is left. */
#define EACH(i, count) \
    UNROLL             \
    for (size_t i = 0; i < (count); i++)

#define TEMPLATE static inline __attribute__((always_inline)) /* compiled anew for each constant argument */

#endif
