/* fastsoftmax: softmax, log-softmax and log-sum-exp for CPUs.
 *
 * The whole public interface; plain C, stable, usable from C++. See README.md beside this file for how to embed it.
 *
 * Every function takes rows of numbers and writes rows (or one number a row) into memory of the caller's. The result of
 * a row depends on the numbers of that row alone: the same bits for any number of threads, any place in a batch, any
 * memory layout, and on every ISA that has fused multiply-add ("scalar" is built without it and differs in the last
 * place). Nothing is allocated, except scratch for rows whose elements are not next to each other, for long rows, for
 * modifiers, and for logcumsumexp of half types.
 */
#ifndef FASTSOFTMAX_H
#define FASTSOFTMAX_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef FSM_API /* define it to export these functions from a shared library of yours */
#define FSM_API
#endif

typedef enum fsm_op {
    FSM_SOFTMAX,      /* y_i = e^x_i / sum_k e^x_k            as many numbers out as in */
    FSM_LOG_SOFTMAX,  /* y_i = x_i - log sum_k e^x_k          as many */
    FSM_LOGSUMEXP,    /* y   = log sum_k e^x_k                one a row */
    FSM_LOGMEANEXP,   /* y   = log (sum_k e^x_k / n)          one a row */
    FSM_LOGCUMSUMEXP, /* y_i = log sum_{k <= i} e^x_k         as many */
    FSM_SIGMOID,      /* y_i = 1 / (1 + e^-x_i)               as many */
    FSM_SOFTPLUS,     /* y_i = log (1 + e^x_i)                as many */
    /* Of rows that have a target, one of their elements (fsm_modifiers): */
    FSM_LOG_PROB, /* y   = log_softmax(x)_target          one a row */
    FSM_LOSS_GRAD, /* y_i = (softmax(x)_i - (i == target)) scale, as many: the gradient of -scale log_softmax(x)_target */
    FSM_OP_COUNT
} fsm_op;

typedef enum fsm_type {
    FSM_F32,
    FSM_F64,
    FSM_F16,  /* IEEE binary16: computed in float32 and rounded once */
    FSM_BF16, /* the upper half of a float32: the same */
    FSM_TYPE_COUNT
} fsm_type;

typedef enum fsm_status {
    FSM_OK = 0,
    FSM_INVALID = 1,     /* an op or type that does not exist; nothing was written */
    FSM_NO_MEMORY = 2,   /* no scratch could be had; nothing was written */
    FSM_OUT_OF_RANGE = 3 /* a target is no element of its row; nothing was written */
} fsm_status;

/* An instruction set this library was built for: "avx512", "avx2", "neon", "scalar". */
typedef struct fsm_isa fsm_isa;

/* The i-th of those that this CPU can run, best first; NULL past the last. There is always one. */
FSM_API const fsm_isa *fsm_isa_usable(size_t i);

/* The name of the i-th of those built in, whether this CPU can run it or not; NULL past the last. */
FSM_API const char *fsm_isa_built(size_t i);

FSM_API const char *fsm_isa_name(const fsm_isa *isa);

/* The general call. x is an array of outer x n x inner elements; a row is the n elements with the same outer and inner
 * index. y has the same shape, or outer x inner for the ops that give one number a row. y may be x itself, element for
 * element; otherwise the two must not overlap.
 *   isa      NULL: the best one.
 *   strides  NULL: both arrays are contiguous. Otherwise six numbers, in elements: those of x for outer, n and inner,
 *            then those of y (its second is not used where y has one number a row). Any sign, and zero for x.
 *   threads  at most how many threads work on it, the caller's included; 0 and 1 start none.
 * n = 0 gives -inf for logsumexp and NaN for logmeanexp. */
FSM_API fsm_status fsm_run(const fsm_isa *isa, fsm_op op, fsm_type type, const void *x, void *y, size_t outer, size_t n,
                           size_t inner, const ptrdiff_t *strides, unsigned threads);

/* What is done to x on its way into a softmax, log_softmax, logsumexp, logmeanexp or loss, in this order, each step rounded once
 * (the half types: in float32); and what a loss is of. All zero: nothing. Whatever is pointed to is given with its strides, in elements, for outer and
 * inner, or for outer, n and inner; zero where it is the same for all. What is said to be of the computed type is float for the
 * half types, else as x. */
typedef struct fsm_modifiers {
    const void *temperature; /* of the computed type, above 0: x is divided by it */
    ptrdiff_t temperature_strides[2];
    double softcap;     /* above 0: softcap tanh(x / softcap) */
    const void *bias;   /* is added */
    fsm_type bias_type; /* that of x, or the computed one */
    ptrdiff_t bias_strides[3];
    const unsigned char *where; /* x is -inf, whatever it was, where this is 0 */
    ptrdiff_t where_strides[3];
    const void *sink; /* of the computed type: one more number of each row, which has a part in its sum but no result */
    ptrdiff_t sink_strides[2];
    const void *
        empty; /* of the computed type: all results of a softmax or log_softmax of nothing but -inf; NULL: NaN, as in losses */
    void *lse; /* of the computed type: the logsumexp of each row is written there, too */
    ptrdiff_t lse_strides[2];
    const int64_t *target; /* FSM_LOG_PROB and FSM_LOSS_GRAD: the row's target, 0 to n - 1 */
    ptrdiff_t target_strides[2];
    int64_t ignored;   /* rows with this target, which may be any number, have the log-probability and the gradient 0 */
    const void *scale; /* FSM_LOSS_GRAD: of the computed type; NULL: 1 */
    ptrdiff_t scale_strides[2];
    double lse_scale; /* FSM_LOSS_GRAD: the gradient of lse_scale lse^2 / 2 is added */
    void *
        log_prob; /* FSM_LOSS_GRAD: of the computed type: the results of FSM_LOG_PROB are written there, too; or NULL */
    ptrdiff_t log_prob_strides[2];
} fsm_modifiers;

/* fsm_run with modifiers, for these ops; FSM_INVALID for others, and where a target is missing. What is written must not overlap
 * what the modifiers read; nor lse and log_prob each other, x or y. */
FSM_API fsm_status fsm_run_modified(const fsm_isa *isa, fsm_op op, fsm_type type, const void *x, void *y, size_t outer,
                                    size_t n, size_t inner, const ptrdiff_t *strides, unsigned threads,
                                    const fsm_modifiers *modifiers);

/* The gradient of x from that of y = softmax(x) or log_softmax(x), which is g: y (g - sum g y), or g - e^y sum g, over each row.
 * op is one of these two, FSM_INVALID otherwise. All three arrays are as for fsm_run; dx may be g or y, element for element, and
 * must not overlap them otherwise. strides: NULL, or nine numbers, those of g for outer, n and inner, then of y, then of dx;
 * zero for g where it is the same for all. A row whose log_softmax is -inf throughout gives 0. */
FSM_API fsm_status fsm_vjp(const fsm_isa *isa, fsm_op op, fsm_type type, const void *g, const void *y, void *dx,
                           size_t outer, size_t n, size_t inner, const ptrdiff_t *strides, unsigned threads);

/* The common calls: contiguous rows, the best ISA, the caller's thread. They cannot fail. */
FSM_API void fsm_softmax_f32(const float *x, float *y, size_t rows, size_t n);
FSM_API void fsm_softmax_f64(const double *x, double *y, size_t rows, size_t n);
FSM_API void fsm_log_softmax_f32(const float *x, float *y, size_t rows, size_t n);
FSM_API void fsm_log_softmax_f64(const double *x, double *y, size_t rows, size_t n);
FSM_API void fsm_logsumexp_f32(const float *x, float *y, size_t rows, size_t n);
FSM_API void fsm_logsumexp_f64(const double *x, double *y, size_t rows, size_t n);

#ifdef __cplusplus
}
#endif
#endif
