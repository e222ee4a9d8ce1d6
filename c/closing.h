/* From the sums of up to sixteen rows to what their last pass takes. Included by kernels.c alone. */
#ifndef FSM_CLOSING_H
#define FSM_CLOSING_H

enum { BATCH = 16 }; /* rows that are opened and closed at once */

/* What is known of rows between their passes. */
struct batch {
    T max[BATCH]; /* NaN dropped */
    T shift[BATCH], base[BATCH];
    double sum[BATCH], low[BATCH]; /* of the terms, in two parts; for logarithms without the maxima */
    double count[BATCH];           /* of the maxima */
    T hi[BATCH], lo[BATCH];        /* softmax: 1 / sum; log_softmax: logsumexp; in two parts */
    T peak[BATCH], top[BATCH]; /* softmax: the term of a maximum that is nearly all of the sum, and its result; or -1 */
};

/* Rows are opened and closed in vectors, whose other lanes must hold numbers: LANES of a single row, all of more. All are
 * cleared: for a variable number of them GCC takes `rep stos`, a seventh of the time of a short row. */
enum { LANES = W };

static inline void clear(struct batch *b) {
    for (size_t i = 0; i < BATCH; i++) {
        b->max[i] = 0;
        b->sum[i] = b->count[i] = 1;
        b->low[i] = 0;
    }
}

TEMPLATE void open_rows(struct batch *b, size_t lanes) {
    for (size_t i = 0; i < lanes; i++) choose_base(b->max[i], &b->shift[i], &b->base[i]);
}

static inline bool any_far(const struct batch *b, size_t from, size_t count) {
    bool far = false;
    for (size_t i = from; i < from + count; i++) far |= b->shift[i] != 0;
    return far;
}

/* Has any of the rows a peak, or no result but NaN? */
static inline bool any_special(const struct batch *b, size_t count) {
    bool special = false;
    for (size_t i = 0; i < count; i++) special |= b->peak[i] > 0 || isnan(b->hi[i]);
    return special;
}

/* hi as the nearest double to the sum, low what that leaves. */
static inline void normalize(double *hi, double *low) {
    double sum = *hi + *low;
    *low += *hi - sum;
    *hi = sum;
}

/* ---- softmax ---- */

#define PEAK 0x1p-6 /* a row whose other terms are a smaller part than this of the sum has a peak */

/* The maximum's own term often is by far the largest part of the sum, and what the last rounding took from it is put back
 * there: 0.6 ulp less at worst (3.4 to 2.8, with groups of 32); computing it once more in double gains no more. The term
 * itself stays as it is, which is right to 1.4 units of rounding, unless it is all but alone: there the result must not
 * pass 1, so it is computed apart. */
static inline void close_softmax(struct batch *b, size_t rows) {
    for (size_t i = 0; i < rows; i += W) {
        vec shift = v_load(b->shift + i), base = v_load(b->base + i), t = v_load(b->max + i) - shift, s, scale;
        vec magic = v_exp_magic(base);
        v_exp_parts(1, &t, &magic, &s, &scale);
        vec one = v_set1(1) + s;
        dvec top[W / DOUBLES], lost[W / DOUBLES], hi[W / DOUBLES], lo[W / DOUBLES], peak[W / DOUBLES];
        v_doubles(one * scale, top);
        v_doubles((s - (one - v_set1(1))) * scale, lost);
        for (size_t p = 0; p < W / DOUBLES; p++) {
            dvec sum = v_dload(b->sum + i + p * DOUBLES), low = v_dload(b->low + i + p * DOUBLES) + lost[p];
            dvec whole = sum + low, inverse = v_dset1(1) / whole;
            low += sum - whole;
            peak[p] = v_dif_less(whole - top[p], whole * v_dset1(PEAK), top[p], v_dset1(-1));
            hi[p] = inverse;
#if FSM_DOUBLE
            lo[p] = v_dfma(-low, inverse, v_dfma(-whole, inverse, v_dset1(1))) * inverse;
            top[p] = v_dfma(top[p], inverse, v_dfma(top[p], lo[p], lost[p] * inverse));
#else
            top[p] = (top[p] + lost[p]) * inverse;
#endif
        }
        vec first = v_singles(hi);
#if !FSM_DOUBLE
        v_doubles(first, lo);
        for (size_t p = 0; p < W / DOUBLES; p++) lo[p] = hi[p] - lo[p];
#endif
        v_store(b->hi + i, first);
        v_store(b->lo + i, v_singles(lo));
        v_store(b->top + i, v_singles(top));
        v_store(b->peak + i, v_singles(peak));
    }
}

/* ---- The logarithm of a row's sum: log sum e^(x - max), never negative and never cancelled ---- */

struct logs {
    double offset[BATCH], base[BATCH]; /* the maximum is e^offset / 2^base in the unit of the terms */
    double sum[BATCH], low[BATCH];     /* of the terms but the maxima */
    double count[BATCH];               /* of the maxima */
    double log[BATCH];                 /* the result */
};

/* log (count + sum / e^offset 2^base), where terms carry the factor unit 2^BOOST (of float64). One copy an ISA: float32
 * kernels call the one of the float64 compilation. */
#define TAKE_LOGS(isa) PASTE(fsm_take, logs, isa)
void TAKE_LOGS(FSM_ISA)(struct logs *s, size_t rows, double unit);

#if FSM_DOUBLE
TEMPLATE void take_some_logs(size_t count, struct logs *s, size_t i, vec unit) {
    vec t[LOCKSTEP], sum[LOCKSTEP], e[LOCKSTEP], top[LOCKSTEP], scale[LOCKSTEP], one = v_set1(1);
    vec magic[LOCKSTEP], a[LOCKSTEP], low[LOCKSTEP], log[LOCKSTEP];
    EACH (u, count) t[u] = v_load(s->offset + i + u * W);
    EACH (u, count) magic[u] = v_exp_magic(v_load(s->base + i + u * W));
    v_exp_parts(count, t, magic, e, scale);
    EACH (u, count) sum[u] = v_load(s->sum + i + u * W);
    EACH (u, count) {
        top[u] = one + e[u];
        vec top_low = (e[u] - (top[u] - one)) * (scale[u] * unit);
        top[u] *= scale[u] * unit;
        vec r = sum[u] / top[u];
        vec rl = (v_fnma(r, top[u], sum[u]) + (v_load(s->low + i + u * W) - r * top_low)) / top[u];
        vec n = v_load(s->count + i + u * W), back;
        a[u] = n + r;
        back = a[u] - n;
        low[u] = ((n - (a[u] - back)) + (r - back)) + rl;
    }
    v_log_pair(count, a, low, log);
    EACH (u, count) v_store(s->log + i + u * W, log[u]);
}

void TAKE_LOGS(FSM_ISA)(struct logs *s, size_t rows, double unit) {
    enum { MOST = BATCH / W < LOCKSTEP ? BATCH / W : LOCKSTEP };
    if (rows <= W)
        take_some_logs(1, s, 0, v_set1(unit));
    else
        for (size_t i = 0; i < rows; i += MOST * W) take_some_logs(MOST, s, i, v_set1(unit));
}
#endif

static double log_of_count(size_t n) {
    struct logs s;
    for (size_t i = 0; i < LANES; i++) {
        s.offset[i] = s.base[i] = s.sum[i] = s.low[i] = 0;
        s.count[i] = (double)n;
    }
    TAKE_LOGS(FSM_ISA)(&s, 1, 1);
    return s.log[0];
}

/* Logarithms of rows' sums. */
static inline void close_logs(const struct batch *b, struct logs *s, size_t rows) {
    for (size_t i = 0; i < (rows == 1 ? LANES : BATCH); i++) {
        s->offset[i] = (double)b->max[i] - (double)b->shift[i];
        s->base[i] = (double)b->base[i];
        s->sum[i] = b->sum[i];
        s->low[i] = b->low[i];
        s->count[i] = b->count[i];
        normalize(&s->sum[i], &s->low[i]);
    }
    TAKE_LOGS(FSM_ISA)(s, rows, (double)BOOST_UP / BOOST_UP_F64);
}

static inline void close_log_softmax(struct batch *b, size_t rows) {
    struct logs s;
    close_logs(b, &s, rows);
    for (size_t i = 0; i < rows; i++) {
        double max = (double)b->max[i], log = s.log[i], lse = max + log;
        T hi = (T)lse;
        b->peak[i] = b->top[i] = -1;
        b->hi[i] = !isfinite(max) || isnan(s.sum[i]) ? (T)NAN : hi;
#if FSM_DOUBLE
        double back = lse - max;
        b->lo[i] = (max - (lse - back)) + (log - back);
#else
        b->lo[i] = (T)((max - (double)hi) + log);
#endif
    }
}

static inline void close_logsumexp(const struct batch *b, size_t rows, double log_n, T *y, ptrdiff_t y_next) {
    struct logs s;
    close_logs(b, &s, rows);
    for (size_t i = 0; i < rows; i++) {
        double max = (double)b->max[i], value = isfinite(max) ? max + (s.log[i] - log_n) : max;
        y[(ptrdiff_t)i * y_next] = isnan(s.sum[i]) ? (T)NAN : (T)value;
    }
}

/* Norms of rows (kernels.h), after close_log_softmax. */
static inline void put_norms(const struct batch *b, size_t rows, T *norms) {
    for (size_t i = 0; i < rows; i++) {
        norms[2 * i] = b->hi[i];
        norms[2 * i + 1] = !isnan(b->hi[i]) ? b->lo[i] : isnan(b->sum[i]) ? (T)NAN : b->max[i];
    }
}

/* The rows of a reduction: y, or the norms instead. */
static inline void close_reduction(struct batch *b, size_t rows, double log_n, T *y, ptrdiff_t y_next, T *norms) {
    if (!norms) {
        close_logsumexp(b, rows, log_n, y, y_next);
        return;
    }
    close_log_softmax(b, rows);
    put_norms(b, rows, norms);
}

/* ---- The last pass ---- */

/* What it takes from a row, or from W rows side by side. */
struct last {
    vec hi, lo, peak, top, down, further; /* the last two of parts of long rows only (fsm_part) */
};

static inline struct last last_of(vec hi, vec lo, vec peak, vec top) {
    return (struct last){hi, lo, peak, top, v_set1(1), v_set1(1)};
}

typedef vec last_pass(vec, const struct last *);

static inline vec scaled(vec y, const struct last *l) { return v_times(y, l->hi, l->lo); }
static inline vec or_nan(vec y, const struct last *l) { return v_select(v_equal(l->hi, l->hi), y, v_set1((T)NAN)); }
static inline vec scaled_special(vec y, const struct last *l) {
    return or_nan(v_select(v_equal(y, l->peak), l->top, scaled(y, l)), l);
}
static inline vec scaled_part(vec y, const struct last *l) { return scaled_special((y * l->down) * l->further, l); }
static inline vec shifted(vec x, const struct last *l) { return (x - l->hi) - l->lo; }
static inline vec shifted_special(vec x, const struct last *l) { return or_nan(shifted(x, l), l); }

#endif
