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

/* How an operation goes about a row: its terms, their sum, and every element again (map), or just one number (reduction);
 * or every element for itself. logcumsumexp is of a kind of its own. */
static inline bool fsm_is_map(fsm_op op) { return op == FSM_SOFTMAX || op == FSM_LOG_SOFTMAX || op == FSM_LOSS_GRAD; }
static inline bool fsm_is_reduction(fsm_op op) {
    return op == FSM_LOGSUMEXP || op == FSM_LOGMEANEXP || op == FSM_LOG_PROB;
}
static inline bool fsm_is_blockwise(fsm_op op) { return fsm_is_map(op) || fsm_is_reduction(op); }
static inline bool fsm_is_elementwise(fsm_op op) { return op == FSM_SIGMOID || op == FSM_SOFTPLUS; }

/* These are made of others, above the kernels. */
static inline bool fsm_has_target(fsm_op op) { return op == FSM_LOG_PROB || op == FSM_LOSS_GRAD; }

/* A sum in two parts, and how many elements equal to the maximum it leaves out. */
struct fsm_sum {
    double hi, lo, count;
};

/* What is known of a part of a row, at most FSM_BLOCK elements. Doubles hold float32 values exactly. */
struct fsm_part {
    double max;           /* NaN dropped */
    double shift, base;   /* its terms are e^(x - shift) / 2^base, one of the two is 0 */
    struct fsm_sum sum;   /* of them; for logarithms without those of its maxima */
    struct fsm_sum rest;  /* of a softmax with norms: also without */
    double hi, lo;        /* what the last pass takes: 1 / sum or logsumexp of the row in two parts, */
    double down, further; /* what its terms are scaled by before that, */
    double peak, top;     /* and the term of a maximum that is nearly all of the sum, and what becomes of it; or -1 */
};

/* What is done to rows on their way, as in fsm_modifiers: each has its own things a pitch (in elements) after those of the row
 * before, whose elements are next to each other. */
struct fsm_modify {
    const void *temperature; /* of the kernels' type; or NULL: 1 */
    ptrdiff_t temperature_pitch;
    double softcap;   /* 0: nothing. `modify` only */
    const void *bias; /* of the kernels' type or the rows'; or NULL */
    fsm_type bias_type;
    ptrdiff_t bias_pitch;
    const unsigned char *where; /* or NULL */
    ptrdiff_t where_pitch;
    const void *empty; /* of the kernels' type: all results of rows of nothing but -inf; NULL: NaN. `rows` only */
};

/* The targets of some rows, see fsm_modifiers: each a step (in elements) after the last. */
struct fsm_targets {
    const int64_t *target;
    ptrdiff_t target_step;
    int64_t ignored;
    const void *scale, *temperature; /* or NULL: 1 */
    ptrdiff_t scale_step, temperature_step;
    double lse_scale;
};

/* What the gradient of a row, or of a part of it, is made of: the sum of g y (softmax) or g (log_softmax) in two parts; and
 * whether it is not nothing, a log_softmax of -inf throughout. */
struct fsm_dot {
    double hi, lo;
    bool some;
};

struct fsm_kernels {
    /* Whole rows of at most FSM_BLOCK elements; logcumsumexp and element by element: of any length, unless they are of a half
     * type. `type` is that of x and y: the table's own, or in that of float32 a half type, without max and norms. A row's
     * elements are next to each other, rows are a pitch apart (in elements). how: what is done to them on their way, or NULL.
     * max: the rows' maxima, NaN dropped, if they are known, or NULL. norms: NULL, or for softmax, log_softmax and logsumexp
     * where also (for logsumexp instead of y) the norms of rows go, two numbers each: logsumexp as log_softmax takes it off, in
     * two parts; or NaN and logsumexp, where there is no log_softmax. */
    void (*rows)(fsm_op op, fsm_type type, const struct fsm_modify *how, const void *x, ptrdiff_t x_pitch, void *y,
                 ptrdiff_t y_pitch, size_t rows, size_t n, const void *max, void *norms);

    /* Whole rows of at most FSM_BLOCK elements for softmax, log_softmax, logsumexp and logmeanexp, at any distances: from
     * one row to the next, and from one element to the next. tile is scratch, FSM_TILE(n) elements. */
    void (*apart)(fsm_op op, const void *x, const ptrdiff_t x_distances[2], void *y, const ptrdiff_t y_distances[2],
                  size_t rows, size_t n, void *tile);

    /* One row of any length for these, in parts of FSM_BLOCK elements: part for each, in any order; join, which for one
     * number a row writes it to y; finish for each. part stores the terms of a softmax, of the table's own type, in terms
     * (which can be y, if that is of it), and finish takes them from there; or both are given NULL, and finish computes them
     * again. finish can write past the cache, for rows that would not stay there; part can read x once instead of twice, which
     * pays for them. A norm is found if part and join know that it is wanted, for a softmax not of a half type. how: what is done
     * to the part, as if it were a row. */
    void (*part)(fsm_op op, fsm_type type, const struct fsm_modify *how, struct fsm_part *part, const void *x,
                 void *terms, size_t n, bool once, const void *max, bool norm);
    void (*join)(fsm_op op, struct fsm_part *parts, size_t count, size_t n, void *y, void *norm);
    void (*finish)(fsm_op op, fsm_type type, const struct fsm_modify *how, const struct fsm_part *part, const void *x,
                   const void *terms, void *y, size_t n, bool past);

    /* float32 only: rows of a half type as float32, and rounded to nearest (to even) back. */
    void (*widen)(fsm_type type, const void *x, ptrdiff_t x_pitch, float *to, ptrdiff_t to_pitch, size_t rows,
                  size_t n);
    void (*narrow)(fsm_type type, const float *x, ptrdiff_t x_pitch, void *y, ptrdiff_t y_pitch, size_t rows, size_t n);
    /* n elements of a row, modified, for what is not done on the way; z may be x. Whether any is not -inf; max becomes the
     * largest, if that is larger, NaN dropped. */
    bool (*modify)(const struct fsm_modify *how, const void *x, void *z, size_t n, void *max);
    /* Rows a pitch apart. Their targets, given x with the elements from..to - 1 alone (others are -inf); from these to
     * log-probabilities, with the norms; slopes, two numbers a row: what softmax is multiplied by for the gradient, and
     * what that is at the target; from softmax to gradients. n elements times a factor. */
    void (*pick)(const struct fsm_targets *t, const void *x, ptrdiff_t pitch, size_t from, size_t to, size_t rows,
                 void *picked);
    void (*log_probs)(const struct fsm_targets *t, size_t rows, const void *norms, void *picked);
    void (*slopes)(const struct fsm_targets *t, size_t rows, const void *norms, const void *log_probs, void *slopes);
    void (*gradients)(const struct fsm_targets *t, const void *slopes, void *y, ptrdiff_t pitch, size_t rows, size_t n);
    void (*times)(void *y, size_t n, const void *factor);
    /* n elements of `type` that are all the same. */
    void (*fill)(fsm_type type, void *y, size_t n, double value);

    /* Gradients of softmax and log_softmax: whole rows of at most FSM_BLOCK elements, a pitch apart; or a row of any length in
     * parts of FSM_BLOCK: dot for each, in any order; join_dots, which makes each that of the row; pull for each. dx may be g
     * or y. */
    void (*vjp)(fsm_op op, const void *g, ptrdiff_t g_pitch, const void *y, ptrdiff_t y_pitch, void *dx,
                ptrdiff_t dx_pitch, size_t rows, size_t n, bool past);
    /* The same of rows of any length that lie side by side, their elements a step apart. */
    void (*vjp_columns)(fsm_op op, const void *g, ptrdiff_t g_step, const void *y, ptrdiff_t y_step, void *dx,
                        ptrdiff_t dx_step, size_t rows, size_t n);
    struct fsm_dot (*dot)(fsm_op op, const void *g, const void *y, size_t n);
    void (*join_dots)(struct fsm_dot *parts, size_t count);
    void (*pull)(fsm_op op, const struct fsm_dot *dot, const void *g, const void *y, void *dx, size_t n, bool past);

    bool streams; /* finish, vjp and pull can write past the cache */
};

/* `apart` is best given so many rows at once; its scratch, in elements: a line of them for each of n, and for a vector more. */
#define FSM_STRIP 64
#define FSM_TILE(n) (((n) + 16) * FSM_STRIP)

#endif
