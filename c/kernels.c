/* The row kernels, compiled once per ISA and element type.
 *
 * Set by the build: FSM_ISA (a name), FSM_SIMD (the header of its vocabulary), FSM_DOUBLE (0 or 1). */
#include "kernels.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#include FSM_SIMD
#include "exp.h"
#include "log.h"
#include "divide.h"

#define PASTE_(a, b, c) a##_##b##_##c
#define PASTE(a, b, c) PASTE_(a, b, c)
#define TABLE(isa, type) PASTE(fsm_kernels, isa, type)

#include "terms.h"
#include "format.h"
#include "input.h"
#include "closing.h"
#include "rowwise.h"
#include "tile.h"
#include "parts.h"
#include "cumulate.h"
#include "elements.h"
#include "modify.h"
#include "gradient.h"
#include "backward.h"

/* Rows up to this long are worked on side by side, longer ones one vector after the other: there are results to transpose
 * back for some ops. */
enum { SHORT_MAPS = 24, SHORT_REDUCTIONS = 48 };
static size_t side_by_side(fsm_op op) { return fsm_is_map(op) ? SHORT_MAPS : SHORT_REDUCTIONS; }

/* Longer ones are worked on pass by pass, so many that they stay in the first level of the cache. */
static size_t rows_at_once(size_t n) { return n < 4096 / BATCH ? BATCH : n < 4096 ? 4096 / n : 1; }

static void all_rows(fsm_op op, const struct fsm_modify *how, const T *x, ptrdiff_t x_pitch, T *y, ptrdiff_t y_pitch,
                     size_t rows, size_t n, const T *max, T *norms) {
    T tile[(SHORT_REDUCTIONS + W) * BATCH];
    double log_n = op == FSM_LOGMEANEXP ? log_of_count(n) : 0;
    size_t batch = rows_at_once(n);
    struct fsm_modify rest;
    for (; rows; rows -= batch, x += (ptrdiff_t)batch * x_pitch, y += (ptrdiff_t)batch * y_pitch) {
        batch = rows < batch ? rows : batch;
        if (!how && n <= side_by_side(op) && batch > 4)
            tilewise(op, x, (struct layout){x_pitch, 1}, y, (struct layout){y_pitch, 1}, batch, n, log_n, tile, norms);
        else
            rowwise(op, OWN_TYPE, x, x_pitch, y, y_pitch, y, y_pitch, batch, n, log_n, how, max, norms);
        how = skip_rows(how, OWN_TYPE, batch, &rest);
        if (max) max += batch;
        if (norms) norms += 2 * batch;
    }
}

static void own_rows(fsm_op op, const struct fsm_modify *how, const T *x, ptrdiff_t x_pitch, T *y, ptrdiff_t y_pitch,
                     size_t rows, size_t n, const T *max, T *norms) {
    if (fsm_is_blockwise(op)) {
        all_rows(op, how, x, x_pitch, y, y_pitch, rows, n, max, norms);
        return;
    }
    for (; rows--; x += x_pitch, y += y_pitch)
        if (op == FSM_LOGCUMSUMEXP)
            cumulate_row(x, y, n);
        else if (op == FSM_SIGMOID)
            map_elements(sigmoid, x, y, n);
        else
            map_elements(softplus, x, y, n);
}

#if FSM_DOUBLE
#define half_rows(...) (void)0 /* no row of float64 is of a half type */
#else
#include "half.h"
#endif

static void kernel_rows(fsm_op op, fsm_type type, const struct fsm_modify *how, const void *x, ptrdiff_t x_pitch,
                        void *y, ptrdiff_t y_pitch, size_t rows, size_t n, const void *max, void *norms) {
    if (type == OWN_TYPE)
        own_rows(op, how, x, x_pitch, y, y_pitch, rows, n, max, norms);
    else
        half_rows(op, type, how, x, x_pitch, y, y_pitch, rows, n);
}

/* As many rows side by side as leave their tiles in a quarter of a megabyte of cache. */
static size_t strip_of(size_t n) {
    size_t tiles = ((size_t)1 << 18) / (tile_size(n) * sizeof(T));
    return BATCH * (tiles < 1 ? 1 : tiles < TILES ? tiles : TILES);
}

static void kernel_apart(fsm_op op, const void *vx, const ptrdiff_t *from, void *vy, const ptrdiff_t *to, size_t rows,
                         size_t n, void *tile) {
    struct layout a = {from[0], from[1]}, b = {to[0], to[1]};
    const T *x = vx;
    T *y = vy;
    double log_n = op == FSM_LOGMEANEXP ? log_of_count(n) : 0;
    for (size_t k = strip_of(n); rows; rows -= k, x += (ptrdiff_t)k * a.next, y += (ptrdiff_t)k * b.next) {
        k = rows < k ? rows : k;
        tilewise(op, x, a, y, b, k, n, log_n, tile, NULL);
    }
}

const struct fsm_kernels TABLE(FSM_ISA, FSM_SUFFIX) = {
    .rows = kernel_rows,
    .apart = kernel_apart,
    .part = kernel_part,
    .join = kernel_join,
    .finish = kernel_finish,
#if !FSM_DOUBLE
    .widen = kernel_widen,
    .narrow = kernel_narrow,
#endif
    .modify = kernel_modify,
    .pick = kernel_pick,
    .log_probs = kernel_log_probs,
    .slopes = kernel_slopes,
    .gradients = kernel_gradients,
    .times = kernel_times,
    .fill = kernel_fill,
    .vjp = kernel_vjp,
    .vjp_columns = kernel_vjp_columns,
    .dot = kernel_dot,
    .join_dots = kernel_join_dots,
    .pull = kernel_pull,
    .streams = STREAMS,
};
