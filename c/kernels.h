/* The contract between the kernels (kernels.c, compiled once per ISA and type) and the layers above them.
 *
 * A kernel table knows rows of one type: numbers in, numbers out, in the caller's memory. It allocates nothing, starts no
 * thread, reports no error and reads or writes no byte outside the rows it is given. */
#ifndef FSM_KERNELS_H
#define FSM_KERNELS_H

#include <stdbool.h>
#include <stddef.h>

#include "fastsoftmax.h"

/* The order of summation, which no kernel may change: groups of sixteen elements, their two eights added to eight lanes;
 * the groups added in double lane by lane (float64: in two parts); the lanes folded once a block; the blocks in order.
 * Larger groups added pairwise lost: 128 were at most 5 % faster, but up to 4.0 ulp off in float32 softmax (one element
 * far above the others); 32 up to 3.0; 16 up to 2.4. */
#define FSM_LANES 8
#define FSM_GROUP 16
#define FSM_BLOCK 8192

/* A sum in two parts, and how many elements equal to the maximum it leaves out. */
struct fsm_sum {
    double hi, lo, count;
};

/* What is known of a row between its passes. Doubles hold float32 values exactly. */
struct fsm_row {
    double max;         /* NaN dropped */
    double shift, base; /* terms are e^(x - shift) / 2^base, one of the two is 0 */
    double hi, lo;      /* softmax: 1 / sum; log_softmax: logsumexp; in two parts */
    double peak, top;   /* softmax: the term of a maximum that is nearly all of the sum, and what becomes of it; or 0 */
    bool undefined;     /* the row becomes NaN throughout */
};

struct fsm_kernels {
    /* Whole rows: any op. A row's elements are next to each other, rows are a pitch apart (in elements). */
    void (*rows)(fsm_op op, const void *x, ptrdiff_t x_pitch, void *y, ptrdiff_t y_pitch, size_t rows, size_t n);

    /* The passes of one row, for softmax, log_softmax, logsumexp and logmeanexp, so that threads may share it:
     * max of every part; row_open; sum of every block; fsm_sum_add in order; row_close; apply to every part. */
    double (*max)(const void *x, size_t n);
    void (*row_open)(struct fsm_row *row);
    struct fsm_sum (*block_sum)(fsm_op op, const struct fsm_row *row, const void *x, void *y, size_t n);
    void (*row_close)(fsm_op op, struct fsm_row *row, struct fsm_sum total, const void *x, void *y, size_t n);
    void (*apply)(fsm_op op, const struct fsm_row *row, const void *x, void *y, size_t n);
};

/* total += block, with the rounding error kept. */
static inline void fsm_sum_add(struct fsm_sum *total, struct fsm_sum block) {
    double hi = total->hi + block.hi, back = hi - total->hi;
    total->lo += ((total->hi - (hi - back)) + (block.hi - back)) + block.lo;
    total->hi = hi;
    total->count += block.count;
}

#endif
