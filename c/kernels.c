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

#define PASTE_(a, b, c) a##_##b##_##c
#define PASTE(a, b, c) PASTE_(a, b, c)
#define TABLE(isa, type) PASTE(fsm_kernels, isa, type)
#define LOG_STATS(isa) PASTE(fsm_log, stats, isa)
#define CUMULATE(isa) PASTE(fsm, cumulate, isa)

#define UNROLL _Pragma("GCC unroll 4")

/* ---- Row maximum ---- */

static T row_max(const T *x, size_t n) {
    vec m[4];
    for (int u = 0; u < 4; u++) m[u] = v_set1(-(T)INFINITY);
    size_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W)
        for (size_t u = 0; u < 4; u++) m[u] = v_max(v_load(x + i + u * W), m[u]);
    for (; i + W <= n; i += W) m[0] = v_max(v_load(x + i), m[0]);
    if (i < n) m[0] = v_max(v_load_part(x + i, n - i, -(T)INFINITY), m[0]);
    return v_largest(v_max(v_max(m[0], m[1]), v_max(m[2], m[3])));
}

static bool any_nan(const T *x, size_t n) {
    bool found = false;
    for (size_t i = 0; i < n; i++) found |= isnan(x[i]) != 0;
    return found;
}

/* ---- The base of a row: what its terms are divided by, without rounding anything ---- */

struct base {
    vec shift, lo, magic;
};

static void open_row(struct fsm_row *row) {
    T m = (T)row->max;
    bool far = !(m > -SHIFT_FROM && m < SHIFT_FROM);
    row->shift = far ? m : 0;
    row->base = far ? 0 : t_fma(m, FSM_K(LOG2E), MAGIC) - MAGIC;
    row->undefined = false;
}

static struct base base_of(const struct fsm_row *row) {
    T n = (T)row->base;
    return (struct base){v_set1((T)row->shift), v_set1((n - BIAS) * FSM_K(LN2)), v_set1(MAGIC + (BIAS - n))};
}

/* ---- Sums ---- */

#define VECTORS (FSM_GROUP / W)
#define PARTS (FSM_LANES / DOUBLES)

struct sums {
    dvec hi[PARTS];
#if FSM_DOUBLE
    dvec lo[PARTS]; /* what rounding took from hi */
#endif
};

/* A group's terms, pairwise to eight lanes and into the sums. */
static inline void add_group(struct sums *s, const vec t[VECTORS]) {
#if FSM_DOUBLE
    for (int i = 0; i < PARTS; i++) {
        const vec *v = t + i;
        vec a = s->hi[i], b = (v[0] + v[PARTS]) + (v[2 * PARTS] + v[3 * PARTS]), hi = a + b, back = hi - a;
        s->lo[i] += (a - (hi - back)) + (b - back);
        s->hi[i] = hi;
    }
#else
    dvec d[PARTS];
#if W > FSM_LANES /* v_widen adds the halves of the vector, which elsewhere are the even and the odd vectors */
    v_widen(((t[0] + t[1]) + (t[2] + t[3])) + ((t[4] + t[5]) + (t[6] + t[7])), d);
#else
    enum { STEP = FSM_LANES / W };
    vec lanes[STEP];
    for (int i = 0; i < STEP; i++) {
        const vec *v = t + i, *w = v + STEP;
        vec even = ((v[0] + v[2 * STEP]) + (v[4 * STEP] + v[6 * STEP])) +
                   ((v[8 * STEP] + v[10 * STEP]) + (v[12 * STEP] + v[14 * STEP]));
        vec odd = ((w[0] + w[2 * STEP]) + (w[4 * STEP] + w[6 * STEP])) +
                  ((w[8 * STEP] + w[10 * STEP]) + (w[12 * STEP] + w[14 * STEP]));
        lanes[i] = even + odd;
    }
    v_widen(lanes, d);
#endif
    for (int i = 0; i < PARTS; i++) s->hi[i] += d[i];
#endif
}

/* The lanes of a block: lane l and l + 4, then l and l + 2, then the last two. */
static inline struct fsm_sum fold(const struct sums *s) {
    double hi[FSM_LANES], lo[FSM_LANES] = {0};
    memcpy(hi, s->hi, sizeof hi);
#if FSM_DOUBLE
    memcpy(lo, s->lo, sizeof lo);
#endif
    for (int half = FSM_LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) {
            double sum = hi[i] + hi[i + half];
#if FSM_DOUBLE
            double back = sum - hi[i];
            lo[i] = (lo[i] + lo[i + half]) + ((hi[i] - (sum - back)) + (hi[i + half] - back));
#endif
            hi[i] = sum;
        }
    return (struct fsm_sum){hi[0], lo[0], 0};
}

/* What is done with a term besides adding it: stored, or left out and counted where x is the maximum. */
enum use { STORE, SKIP_MAX };

static inline vec term(enum use use, vec x, const struct base *b, vec max, int *count) {
    vec t = v_exp(x, b->shift, b->lo, b->magic);
    if (use == STORE) return t;
    mask top = v_equal(x, max);
    *count += v_count(top);
    return v_zero_if(top, t);
}

/* Terms of one block, stored or not, and their sum. */
static inline struct fsm_sum sum_block(enum use use, const struct fsm_row *row, const T *x, T *y, size_t n) {
    struct base b = base_of(row);
    struct sums s = {0};
    vec max = v_set1((T)row->max), t[VECTORS];
    int count = 0;
    size_t i = 0, j;
    for (; i + FSM_GROUP <= n; i += FSM_GROUP) {
        UNROLL for (j = 0; j < VECTORS; j++) {
            t[j] = term(use, v_load(x + i + j * W), &b, max, &count);
            if (use == STORE) v_store(y + i + j * W, t[j]);
        }
        add_group(&s, t);
    }
    if (i < n) {
        for (j = 0; i + W <= n; i += W, j++) {
            t[j] = term(use, v_load(x + i), &b, max, &count);
            if (use == STORE) v_store(y + i, t[j]);
        }
        if (i < n) {
            t[j] = term(use, v_load_part(x + i, n - i, -(T)INFINITY), &b, max, &count);
            if (use == STORE) v_store_part(y + i, n - i, t[j]);
            j++;
        }
        for (; j < VECTORS; j++) t[j] = v_set1(0);
        add_group(&s, t);
    }
    struct fsm_sum sum = fold(&s);
    sum.count = count;
    return sum;
}

static inline struct fsm_sum sum_row(enum use use, const struct fsm_row *row, const T *x, T *y, size_t n) {
    struct fsm_sum total = {0, 0, 0};
    for (size_t i = 0; i < n; i += FSM_BLOCK) {
        size_t k = n - i < FSM_BLOCK ? n - i : FSM_BLOCK;
        fsm_sum_add(&total, sum_block(use, row, x + i, use == STORE ? y + i : y, k));
    }
    return total;
}

/* The sum as one double and what that leaves. */
static inline struct fsm_sum normal(struct fsm_sum s) {
    double hi = s.hi + s.lo;
    return (struct fsm_sum){hi, (s.hi - hi) + s.lo, s.count};
}

/* ---- softmax: terms into y, then y times the inverse of their sum ---- */

/* What the rounding of the maximum's own term took from the sum, of which it often is by far the largest part. Taking it
 * back costs some thirty instructions a row and lowers the worst error of softmax by 0.6 ulp. */
static double rounding_of_top(const struct fsm_row *row) {
    struct base b = base_of(row);
    vec scale, s = v_exp_parts(v_set1((T)(row->max - row->shift)), b.magic, &scale), p = v_set1(1) + s;
#if FSM_DOUBLE
    return ((s - (p - v_set1(1))) * scale)[0];
#else /* the same polynomial in double */
    static const float c[] = FSM_F32_EXP;
    double r = d_fma(-row->base, FSM_F64_LN2, row->max - row->shift), q = 0;
#pragma GCC unroll 16
    for (int i = (int)(sizeof c / sizeof *c); i--;) q = d_fma(q, r, (double)c[i]);
    return (1 + d_fma(q, r * r, r)) * (double)BOOST_UP - (double)(p * scale)[0];
#endif
}

static void close_softmax(struct fsm_row *row, struct fsm_sum total) {
    total.lo += rounding_of_top(row);
    struct fsm_sum s = normal(total);
    row->undefined = !isfinite(row->max) || isnan(s.hi);
    double inverse = 1 / s.hi;
#if FSM_DOUBLE
    row->hi = inverse;
    row->lo = fma(-s.lo, inverse, fma(-s.hi, inverse, 1)) * inverse;
#else
    row->hi = (T)inverse;
    row->lo = (T)(inverse - row->hi);
#endif
}

/* ---- The logarithm of a row's sum: log sum e^(x - max), never negative and never cancelled ---- */

enum { BATCH = 16 }; /* rows whose logarithms are taken at once */

struct stats {
    double offset[BATCH], base[BATCH]; /* the maximum is e^offset / 2^base in the unit of the terms */
    double sum[BATCH], low[BATCH];     /* of the terms but the maxima */
    double count[BATCH];               /* of the maxima */
    double log[BATCH];                 /* the result */
};

/* log (count + sum / e^offset 2^base), where terms carry the factor unit 2^BOOST (of float64). One copy an ISA: float32
 * kernels call the one of the float64 compilation. */
void LOG_STATS(FSM_ISA)(struct stats *s, size_t rows, double unit);

#if FSM_DOUBLE
static vec load_some(const double *p, size_t k, double fill) { return k < W ? v_load_part(p, k, fill) : v_load(p); }

void LOG_STATS(FSM_ISA)(struct stats *s, size_t rows, double unit) {
    for (size_t i = 0; i < rows; i += W) {
        size_t k = rows - i;
        vec offset = load_some(s->offset + i, k, 0), base = load_some(s->base + i, k, 0);
        vec sum = load_some(s->sum + i, k, 0), low = load_some(s->low + i, k, 0);
        vec count = load_some(s->count + i, k, 1), one = v_set1(1), scale;
        vec e = v_exp_parts(offset, v_set1(MAGIC) + (v_set1(BIAS) - base), &scale), top = one + e;
        vec top_low = (e - (top - one)) * (scale * v_set1(unit));
        top *= scale * v_set1(unit);
        vec r = sum / top, rl = (v_fnma(r, top, sum) + (low - r * top_low)) / top;
        vec a = count + r, back = a - count, al = (count - (a - back)) + (r - back);
        v_store(s->log + i, v_log_pair(a, al + rl)); /* BATCH is a multiple of W */
    }
}
#endif

static void put_stats(struct stats *s, size_t i, const struct fsm_row *row, struct fsm_sum total) {
    struct fsm_sum sum = normal(total);
    s->offset[i] = row->max - row->shift;
    s->base[i] = row->base;
    s->sum[i] = sum.hi;
    s->low[i] = sum.lo;
    s->count[i] = sum.count;
}

static double log_of_count(size_t n) {
    struct stats s = {.count = {(double)n}};
    LOG_STATS(FSM_ISA)(&s, 1, 1);
    return s.log[0];
}

static void take_logs(struct stats *s, size_t rows) {
    LOG_STATS(FSM_ISA)(s, rows, 1 / (double)(1ULL << (54 - BOOST)));
}

static void close_log_softmax(struct fsm_row *row, double sum, double log) {
    row->undefined = !isfinite(row->max) || isnan(sum);
    double lse = row->max + log;
    row->hi = (T)lse;
#if FSM_DOUBLE
    double back = lse - row->max;
    row->lo = (row->max - (lse - back)) + (log - back);
#else
    row->lo = (T)((row->max - row->hi) + log);
#endif
}

static T close_logsumexp(const struct fsm_row *row, double sum, double log, const T *x, size_t n) {
    if (!isfinite(row->max)) return any_nan(x, n) ? (T)NAN : (T)row->max;
    return isnan(sum) ? (T)NAN : (T)(row->max + log);
}

/* ---- The last pass of a row ---- */

static inline vec scaled(vec y, vec hi, vec lo) { return v_fma(y, hi, y * lo); }
static inline vec shifted(vec x, vec hi, vec lo) { return (x - hi) - lo; }

static inline void apply_with(vec (*f)(vec, vec, vec), const struct fsm_row *row, const T *x, T *y, size_t n) {
    vec hi = v_set1((T)row->hi), lo = v_set1((T)row->lo);
    size_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W) {
        UNROLL for (size_t u = 0; u < 4; u++) v_store(y + i + u * W, f(v_load(x + i + u * W), hi, lo));
    }
    for (; i + W <= n; i += W) v_store(y + i, f(v_load(x + i), hi, lo));
    if (i < n) v_store_part(y + i, n - i, f(v_load_part(x + i, n - i, 0), hi, lo));
}

static inline void apply_to(fsm_op op, const struct fsm_row *row, const T *x, T *y, size_t n) {
    if (row->undefined)
        for (size_t i = 0; i < n; i++) y[i] = (T)NAN;
    else if (op == FSM_SOFTMAX)
        apply_with(scaled, row, y, y, n);
    else if (op == FSM_LOG_SOFTMAX)
        apply_with(shifted, row, x, y, n);
}

/* ---- Whole rows ---- */

static void softmax_rows(const T *x, ptrdiff_t x_pitch, T *y, ptrdiff_t y_pitch, size_t rows, size_t n) {
    for (; rows--; x += x_pitch, y += y_pitch) {
        struct fsm_row row = {.max = row_max(x, n)};
        open_row(&row);
        close_softmax(&row, sum_row(STORE, &row, x, y, n));
        apply_to(FSM_SOFTMAX, &row, x, y, n);
    }
}

/* log_softmax, logsumexp and logmeanexp of up to BATCH rows, so few that log_softmax finds them in the cache again. */
static inline void log_rows(fsm_op op, const T *x, ptrdiff_t x_pitch, T *y, ptrdiff_t y_pitch, size_t rows, size_t n,
                            double log_n) {
    struct fsm_row row[BATCH];
    struct stats s;
    for (size_t i = 0; i < rows; i++) {
        const T *xi = x + (ptrdiff_t)i * x_pitch;
        row[i].max = row_max(xi, n);
        open_row(&row[i]);
        put_stats(&s, i, &row[i], sum_row(SKIP_MAX, &row[i], xi, NULL, n));
    }
    take_logs(&s, rows);
    for (size_t i = 0; i < rows; i++, x += x_pitch, y += y_pitch) {
        if (op == FSM_LOG_SOFTMAX) {
            close_log_softmax(&row[i], s.sum[i], s.log[i]);
            apply_to(op, &row[i], x, y, n);
        } else {
            *y = close_logsumexp(&row[i], s.sum[i], s.log[i] - log_n, x, n);
        }
    }
}

/* ---- Cumulative sums: one element after the other, in double for both types ---- */

struct cumulation {
    double max, count;  /* of the elements so far; NaN and +inf stay */
    double hi, lo;      /* sum of the terms of those below the maximum */
    double top;         /* the term of the maximum */
    double from;        /* the element that set the base */
    struct fsm_row row; /* the base */
};

/* y_i = log sum e^x over all elements up to x_i, for k <= BATCH elements. One copy an ISA, as LOG_STATS. */
void CUMULATE(FSM_ISA)(struct cumulation *c, const double *x, double *y, size_t k);

#if FSM_DOUBLE
static double term_of(const struct fsm_row *row, double x) {
    struct base b = base_of(row);
    return v_exp(v_set1(x), b.shift, b.lo, b.magic)[0];
}

static void cumulate_term(struct cumulation *c, double term, double low) {
    double hi = c->hi + term, back = hi - c->hi;
    c->lo += ((c->hi - (hi - back)) + (term - back)) + low;
    c->hi = hi;
}

/* A base for the new maximum x, far above the old one. The factor of the sums, e^(old shift - new) 2^(old base - new), is
 * exact where both are unshifted; the shifts' difference is exact wherever the factor is not far below all that counts. */
static void rebase(struct cumulation *c, double x) {
    struct fsm_row old = c->row, factor = {0};
    c->from = c->row.max = x;
    open_row(&c->row);
    factor.base = c->row.base - old.base;
    double f = isfinite(c->max) ? term_of(&factor, old.shift - c->row.shift) * BOOST_DOWN : 0;
    c->hi *= f;
    c->lo *= f;
}

static void new_maximum(struct cumulation *c, double x) {
    double old = c->count * c->top;
    cumulate_term(c, old, fma(c->count, c->top, -old));
    if (!(x - c->from <= 277)) rebase(c, x);
    c->max = x;
    c->count = 1;
    c->top = term_of(&c->row, x);
}

static void cumulate_one(struct cumulation *c, double x) {
    if (isnan(x) || (x == (double)INFINITY && !isnan(c->max)))
        c->max = x;
    else if (x > c->max)
        new_maximum(c, x);
    else if (x == c->max)
        c->count++;
    else if (isfinite(c->max))
        cumulate_term(c, term_of(&c->row, x), 0);
}

void CUMULATE(FSM_ISA)(struct cumulation *c, const double *x, double *y, size_t k) {
    struct stats s;
    for (size_t i = 0; i < k; i++) {
        cumulate_one(c, x[i]);
        bool plain = isfinite(c->max);
        c->row.max = plain ? c->max : 0;
        put_stats(&s, i, plain ? &c->row : &(struct fsm_row){0}, (struct fsm_sum){c->hi, c->lo, c->count});
        y[i] = c->max;
    }
    LOG_STATS(FSM_ISA)(&s, k, 1);
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

static void each_element(fsm_op op, const T *x, T *y, size_t n);

static void kernel_rows(fsm_op op, const void *vx, ptrdiff_t x_pitch, void *vy, ptrdiff_t y_pitch, size_t rows,
                        size_t n) {
    const T *x = vx;
    T *y = vy;
    if (op == FSM_SOFTMAX) {
        softmax_rows(x, x_pitch, y, y_pitch, rows, n);
    } else if (op == FSM_SIGMOID || op == FSM_SOFTPLUS) {
        for (; rows--; x += x_pitch, y += y_pitch) each_element(op, x, y, n);
    } else if (op == FSM_LOGCUMSUMEXP) {
        for (; rows--; x += x_pitch, y += y_pitch) cumulate_row(x, y, n);
    } else {
        double log_n = op == FSM_LOGMEANEXP ? log_of_count(n) : 0;
        size_t batch = n < 4096 / BATCH ? BATCH : n < 4096 ? 4096 / n : 1;
        for (; rows; rows -= batch) {
            batch = rows < batch ? rows : batch;
            log_rows(op, x, x_pitch, y, y_pitch, batch, n, log_n);
            x += (ptrdiff_t)batch * x_pitch;
            y += (ptrdiff_t)batch * y_pitch;
        }
    }
}

/* ---- One row in parts ---- */

static double kernel_max(const void *x, size_t n) { return row_max(x, n); }

static struct fsm_sum kernel_block_sum(fsm_op op, const struct fsm_row *row, const void *x, void *y, size_t n) {
    return op == FSM_SOFTMAX ? sum_block(STORE, row, x, y, n) : sum_block(SKIP_MAX, row, x, NULL, n);
}

static void kernel_row_close(fsm_op op, struct fsm_row *row, struct fsm_sum total, const void *x, void *y, size_t n) {
    if (op == FSM_SOFTMAX) {
        close_softmax(row, total);
        return;
    }
    struct stats s;
    put_stats(&s, 0, row, total);
    take_logs(&s, 1);
    if (op == FSM_LOG_SOFTMAX)
        close_log_softmax(row, s.sum[0], s.log[0]);
    else
        *(T *)y = close_logsumexp(row, s.sum[0], s.log[0] - (op == FSM_LOGMEANEXP ? log_of_count(n) : 0), x, n);
}

static void kernel_apply(fsm_op op, const struct fsm_row *row, const void *x, void *y, size_t n) {
    apply_to(op, row, x, y, n);
}

/* ---- Elements on their own ---- */

/* e^-|x| with the factor 2^BOOST. */
static inline vec exp_minus_abs(vec x) {
    vec minus = (vec)((ivec)x | (ivec)v_set1(-(T)0));
    return v_exp(minus, v_set1(0), v_set1(-BIAS * FSM_K(LN2)), v_set1(MAGIC + BIAS));
}

static inline vec sigmoid(vec x) {
    vec e = exp_minus_abs(x), down = v_set1(BOOST_DOWN);
    vec top = v_select(v_less(x, v_set1(0)), e, v_set1(BOOST_UP));
    return top / (v_set1(1) + e * down) * down;
}

static inline vec softplus(vec x) {
    vec e = exp_minus_abs(x) * v_set1(BOOST_DOWN);
    return v_max(v_set1(0), x) + v_log1p_unit(e);
}

static inline void map_elements(vec (*f)(vec), const T *x, T *y, size_t n) {
    size_t i = 0;
    for (; i + W <= n; i += W) v_store(y + i, f(v_load(x + i)));
    if (i < n) v_store_part(y + i, n - i, f(v_load_part(x + i, n - i, 0)));
}

static void each_element(fsm_op op, const T *x, T *y, size_t n) {
    if (op == FSM_SIGMOID)
        map_elements(sigmoid, x, y, n);
    else
        map_elements(softplus, x, y, n);
}

const struct fsm_kernels TABLE(FSM_ISA, FSM_SUFFIX) = {
    kernel_rows, kernel_max, open_row, kernel_block_sum, kernel_row_close, kernel_apply,
};
