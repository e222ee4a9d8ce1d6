/* Rows of float16 (IEEE binary16) and bfloat16, worked on as float32. Included by kernels.c alone, for float32. */
#ifndef FSM_HALF_H
#define FSM_HALF_H

/* A NaN as to_half wants it. */
TEMPLATE vec nan_for(fsm_type to, vec a) { return to == FSM_BF16 ? v_select(v_equal(a, a), a, v_set1((T)NAN)) : a; }

TEMPLATE void convert(fsm_type from, fsm_type to, const void *x, void *y, size_t n) {
    ptrdiff_t i = 0, end = (ptrdiff_t)n;
    for (; i + W <= end; i += W) store_as(to, y_at(to, y, i), nan_for(to, load_as(from, x_at(from, x, i))));
    size_t k = (size_t)(end - i);
    if (k) store_part_as(to, y_at(to, y, i), k, nan_for(to, load_part_as(from, x_at(from, x, i), k, 0)));
}

/* Without gaps on both sides rows are one: a call for each of 10 elements takes twice as long. */
TEMPLATE void convert_rows(fsm_type from, fsm_type to, const void *x, ptrdiff_t x_pitch, void *y, ptrdiff_t y_pitch,
                           size_t rows, size_t n) {
    if (x_pitch == (ptrdiff_t)n && y_pitch == x_pitch) n *= rows, rows = 1;
    for (size_t i = 0; i < rows; i++)
        convert(from, to, x_at(from, x, (ptrdiff_t)i * x_pitch), y_at(to, y, (ptrdiff_t)i * y_pitch), n);
}

static void kernel_widen(fsm_type type, const void *x, ptrdiff_t x_pitch, float *to, ptrdiff_t to_pitch, size_t rows,
                         size_t n) {
    if (type == FSM_F16)
        convert_rows(FSM_F16, FSM_F32, x, x_pitch, to, to_pitch, rows, n);
    else
        convert_rows(FSM_BF16, FSM_F32, x, x_pitch, to, to_pitch, rows, n);
}

static void kernel_narrow(fsm_type type, const float *x, ptrdiff_t x_pitch, void *y, ptrdiff_t y_pitch, size_t rows,
                          size_t n) {
    if (type == FSM_F16)
        convert_rows(FSM_F32, FSM_F16, x, x_pitch, y, y_pitch, rows, n);
    else
        convert_rows(FSM_F32, FSM_BF16, x, x_pitch, y, y_pitch, rows, n);
}

enum { MANY = 256 }; /* short rows converted at once, at most */

/* Whether elements are converted as they are read and written, not before and after. */
static bool is_direct(fsm_op op, size_t n) { return fsm_is_blockwise(op) && n > side_by_side(op); }

/* Some rows of n <= FSM_BLOCK elements: their terms and numbers are kept here; what has no terms, or lies side by side, is converted
 * first. */
static void some_half_rows(fsm_op op, fsm_type type, const struct fsm_modify *how, const void *x, ptrdiff_t x_pitch,
                           void *y, ptrdiff_t y_pitch, size_t rows, size_t n, double log_n) {
    T tile[FSM_BLOCK], numbers[MANY];
    bool one = fsm_is_reduction(op);
    ptrdiff_t pitch = (ptrdiff_t)n;
    if (how || is_direct(op, n)) {
        rowwise(op, type, x, x_pitch, tile, pitch, one ? numbers : y, one ? 1 : y_pitch, rows, n, log_n, how, NULL,
                NULL);
    } else {
        kernel_widen(type, x, x_pitch, tile, pitch, rows, n);
        own_rows(op, NULL, tile, pitch, one ? numbers : tile, one ? 1 : pitch, rows, n, NULL, NULL);
        if (!one) kernel_narrow(type, tile, pitch, y, y_pitch, rows, n);
    }
    if (one) kernel_narrow(type, numbers, 1, y, y_pitch, rows, 1);
}

static void half_rows(fsm_op op, fsm_type type, const struct fsm_modify *how, const void *x, ptrdiff_t x_pitch, void *y,
                      ptrdiff_t y_pitch, size_t rows, size_t n) {
    double log_n = op == FSM_LOGMEANEXP ? log_of_count(n) : 0;
    size_t k = how || is_direct(op, n) ? rows_at_once(n) : FSM_BLOCK / n < MANY ? FSM_BLOCK / n : MANY;
    struct fsm_modify rest;
    for (size_t i = 0; i < rows; i += k)
        some_half_rows(op, type, skip_rows(how, type, i, &rest), x_at(type, x, (ptrdiff_t)i * x_pitch), x_pitch,
                       y_at(type, y, (ptrdiff_t)i * y_pitch), y_pitch, rows - i < k ? rows - i : k, n, log_n);
}

#endif
