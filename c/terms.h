/* Terms e^(x - shift) / 2^base of rows, and their sums in the canonical order (kernels.h). Included by kernels.c alone. */
#ifndef FSM_TERMS_H
#define FSM_TERMS_H

/* ---- The base of a row: what its terms are divided by, without rounding anything ---- */

/* From the row's maximum: a power of two; where the maximum is too far from 0 for that, the maximum itself. */
static inline void choose_base(T max, T *shift, T *base) {
    bool near = max > -SHIFT_FROM && max < SHIFT_FROM;
    T from = near ? max : 0; /* nothing overflows where both ways are computed */
    *shift = near ? 0 : max;
    *base = t_fma(from, FSM_K(LOG2E), MAGIC) - MAGIC;
}

/* What the terms of a row, or of W of them side by side, take from their base. */
struct base {
    vec floor, shift, lo, magic;
};

static inline struct base base_of(vec shift, vec n) {
    vec floor = v_select(v_less(v_set1(0), shift), v_set1(0), v_set1(-(T)INFINITY));
    return (struct base){floor, shift, v_exp_lo(n), v_exp_magic(n)};
}

/* The terms of k vectors of x in its place. x less the shift, if a row has one; what is more than the shift below it has no
 * part in the sum and must not make the difference overflow. */
TEMPLATE void terms_of(size_t k, bool far, vec *x, const struct base *b) {
    if (far)
        EACH (u, k) x[u] = v_max(b->floor, x[u]) - b->shift;
    v_exp(k, x, b->lo, b->magic);
}

TEMPLATE vec term_of(bool far, vec x, const struct base *b) {
    terms_of(1, far, &x, b);
    return x;
}

/* What is done with a term besides adding it: nothing; it is stored; either, and the maximum is found on the way; it is left
 * out where x is the maximum, and where y will be written later it is fetched; it is stored, and there are two sums, with
 * the maxima and without. */
enum use { ADD, STORE, ADD_AND_FIND_MAX, STORE_AND_FIND_MAX, SKIP_MAX, SKIP_MAX_AND_FETCH, STORE_AND_SUM_BOTH };

TEMPLATE bool sums_both(enum use use) { return use == STORE_AND_SUM_BOTH; }
TEMPLATE bool stores(enum use use) { return use == STORE || use == STORE_AND_FIND_MAX || sums_both(use); }
TEMPLATE bool finds_max(enum use use) { return use == ADD_AND_FIND_MAX || use == STORE_AND_FIND_MAX; }
TEMPLATE bool skips_max(enum use use) { return use == SKIP_MAX || use == SKIP_MAX_AND_FETCH || sums_both(use); }

/* ---- Sums ---- */

/* hi + lo += d. One double is enough for float32. */
static inline void add_double(dvec *hi, dvec *lo, dvec d) {
    dvec sum = *hi + d;
#if FSM_DOUBLE
    dvec back = sum - *hi;
    *lo += (*hi - (sum - back)) + (d - back);
#else
    (void)lo;
#endif
    *hi = sum;
}

/* hi + lo += h + l, with the rounding error of the sum kept in lo. */
static inline void add_pair(double *hi, double *lo, double h, double l) {
    double sum = *hi + h, back = sum - *hi;
    *lo += ((*hi - (sum - back)) + (h - back)) + l;
    *hi = sum;
}

static inline void fold_pair(dvec *hi, dvec *lo, dvec h, dvec l) {
    dvec low = *lo + l;
    *lo = v_dset1(0);
    add_double(hi, lo, h);
    *lo += low;
}

/* The eight lanes of a block, of DOUBLES rows side by side: lane l and l + 4, then l and l + 2, then the last two. */
static inline void fold(dvec hi[FSM_LANES], dvec lo[FSM_LANES]) {
    UNROLL
    for (size_t half = FSM_LANES / 2; half; half /= 2) {
        EACH (i, half) fold_pair(&hi[i], &lo[i], hi[i + half], lo[i + half]);
    }
}

#endif
