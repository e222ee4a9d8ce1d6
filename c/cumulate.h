/* logcumsumexp: one element after the other, in double for both types. Included by kernels.c alone.
 *
 * The maxima are kept out of the sum as in the log-sum-exp of a row, so that nothing is ever subtracted; the base is the
 * row's of the element that set it, until the maximum has risen 2^400 above it. */
#ifndef FSM_CUMULATE_H
#define FSM_CUMULATE_H

#define CUMULATE(isa) PASTE(fsm, cumulate, isa)

struct cumulation {
    double max, count;  /* of the elements so far; NaN and +inf stay */
    double hi, lo;      /* sum of the terms of those below the maximum */
    double top;         /* the term of the maximum */
    double from;        /* the element that set the base */
    double shift, base; /* of the terms */
};

/* y_i = log sum e^x over all elements up to x_i, for k <= BATCH elements. One copy an ISA, as TAKE_LOGS. */
void CUMULATE(FSM_ISA)(struct cumulation *c, const double *x, double *y, size_t k);

#if FSM_DOUBLE
static double one_term(double shift, double base, double x) {
    struct base b = base_of(v_set1(shift), v_set1(base));
    return term_of(shift != 0, v_set1(x), &b)[0];
}

/* A base for the new maximum x, far above the old one. The factor of the sums, e^(old shift - new) 2^(old base - new), is
 * exact where both are unshifted; the shifts' difference is exact wherever the factor is not far below all that counts. */
static void rebase(struct cumulation *c, double x) {
    double shift = c->shift, base = c->base;
    c->from = x;
    choose_base(x, &c->shift, &c->base);
    double f = isfinite(c->max) ? one_term(0, c->base - base, shift - c->shift) * BOOST_DOWN : 0;
    c->hi *= f;
    c->lo *= f;
}

static void new_maximum(struct cumulation *c, double x) {
    double old = c->count * c->top;
    add_pair(&c->hi, &c->lo, old, fma(c->count, c->top, -old));
    if (!(x - c->from <= 277)) rebase(c, x);
    c->max = x;
    c->count = 1;
    c->top = one_term(c->shift, c->base, x);
}

static void cumulate_one(struct cumulation *c, double x) {
    if (isnan(x) || (x == (double)INFINITY && !isnan(c->max)))
        c->max = x;
    else if (x > c->max)
        new_maximum(c, x);
    else if (x == c->max)
        c->count++;
    else if (isfinite(c->max))
        add_pair(&c->hi, &c->lo, one_term(c->shift, c->base, x), 0);
}

void CUMULATE(FSM_ISA)(struct cumulation *c, const double *x, double *y, size_t k) {
    struct logs s = {.count = {0}};
    for (size_t i = 0; i < k; i++) {
        cumulate_one(c, x[i]);
        y[i] = c->max;
        if (!isfinite(c->max)) continue;
        s.offset[i] = c->max - c->shift;
        s.base[i] = c->base;
        s.sum[i] = c->hi;
        s.low[i] = c->lo;
        s.count[i] = c->count;
        normalize(&s.sum[i], &s.low[i]);
    }
    for (size_t i = 0; i < BATCH; i++) s.count[i] = s.count[i] > 0 ? s.count[i] : 1;
    TAKE_LOGS(FSM_ISA)(&s, k, 1);
    for (size_t i = 0; i < k; i++)
        if (isfinite(y[i])) y[i] += s.log[i];
}
#endif

static void cumulate_row(const T *x, T *y, size_t n) {
    struct cumulation c = {.max = -(double)INFINITY, .from = -(double)INFINITY};
    for (size_t i = 0; i < n; i += BATCH) {
        double a[BATCH], b[BATCH];
        size_t k = n - i < BATCH ? n - i : BATCH;
        for (size_t j = 0; j < k; j++) a[j] = (double)x[i + j];
        CUMULATE(FSM_ISA)(&c, a, b, k);
        for (size_t j = 0; j < k; j++) y[i + j] = isnan(b[j]) ? (T)NAN : (T)b[j];
    }
}

#endif
