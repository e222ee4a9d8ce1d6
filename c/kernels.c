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
    vec floor, shift, lo, magic;
};

static void open_row(struct fsm_row *row) {
    T m = (T)row->max;
    bool far = !(m > -SHIFT_FROM && m < SHIFT_FROM);
    row->shift = far ? m : 0;
    row->base = far ? 0 : t_fma(m, FSM_K(LOG2E), MAGIC) - MAGIC;
    row->undefined = false;
}

static inline struct base base_of(const struct fsm_row *row) {
    T shift = (T)row->shift, n = (T)row->base;
    return (struct base){v_set1(shift > 0 ? 0 : -(T)INFINITY), v_set1(shift), v_exp_lo(n), v_set1(MAGIC + (BIAS - n))};
}

/* x less the shift, if the row has one; what is more than the shift below it has no part in the sum and must not make the
 * difference overflow. */
static inline vec offset(bool far, vec x, const struct base *b) {
    if (far) return v_max(b->floor, x) - b->shift;
    return x;
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

/* A group's two eights of terms added, and into the sums. */
static inline void add_group(struct sums *s, const vec t[VECTORS]) {
#if W > FSM_LANES /* the eights are the halves of a vector, which v_widen adds */
    const vec *lanes = t;
#else
    vec lanes[FSM_LANES / W];
    for (int i = 0; i < FSM_LANES / W; i++) lanes[i] = t[i] + t[i + FSM_LANES / W];
#endif
#if FSM_DOUBLE
    const dvec *d = lanes;
#else
    dvec d[PARTS];
    v_widen(lanes, d);
#endif
    for (int i = 0; i < PARTS; i++) {
        dvec hi = s->hi[i] + d[i];
#if FSM_DOUBLE
        dvec back = hi - s->hi[i];
        s->lo[i] += (s->hi[i] - (hi - back)) + (d[i] - back);
#endif
        s->hi[i] = hi;
    }
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

static inline vec term(enum use use, bool far, vec x, const struct base *b, vec max, int *count) {
    vec t = v_exp(offset(far, x, b), b->lo, b->magic);
    if (use == STORE) return t;
    mask top = v_equal(x, max);
    *count += v_count(top);
    return v_zero_if(top, t);
}

/* Terms of one block, stored or not, and their sum. */
static inline struct fsm_sum sum_block_at(bool far, enum use use, const struct fsm_row *row, const T *x, T *y,
                                          size_t n) {
    struct base b = base_of(row);
    struct sums s = {0};
    vec max = v_set1((T)row->max), t[VECTORS];
    int count = 0;
    size_t i = 0;
    for (; i + FSM_GROUP <= n; i += FSM_GROUP) {
        UNROLL
        for (size_t j = 0; j < VECTORS; j++) {
            t[j] = term(use, far, v_load(x + i + j * W), &b, max, &count);
            if (use == STORE) v_store(y + i + j * W, t[j]);
        }
        add_group(&s, t);
    }
    if (i < n) {
        UNROLL
        for (size_t j = 0; j < VECTORS; j++, i += W) {
            if (i + W <= n) {
                t[j] = term(use, far, v_load(x + i), &b, max, &count);
                if (use == STORE) v_store(y + i, t[j]);
            } else if (i < n) {
                t[j] = term(use, far, v_load_part(x + i, n - i, -(T)INFINITY), &b, max, &count);
                if (use == STORE) v_store_part(y + i, n - i, t[j]);
            } else {
                t[j] = v_set1(0);
            }
        }
        add_group(&s, t);
    }
    struct fsm_sum sum = fold(&s);
    sum.count = count;
    return sum;
}

static inline struct fsm_sum sum_block(enum use use, const struct fsm_row *row, const T *x, T *y, size_t n) {
    return row->shift == 0 ? sum_block_at(false, use, row, x, y, n) : sum_block_at(true, use, row, x, y, n);
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

#define PEAK 0x1p-6 /* a row whose other terms are a smaller part than this of the sum has a peak */

/* The term of the maximum as it stands in y, and what rounding took from it. */
struct top {
    double term, lost;
};

static struct top top_of(const struct fsm_row *row) {
    struct base b = base_of(row);
    vec scale, s = v_exp_parts(v_set1((T)(row->max - row->shift)), b.magic, &scale), p = v_set1(1) + s;
    double term = (double)(p * scale)[0];
#if FSM_DOUBLE
    return (struct top){term, ((s - (p - v_set1(1))) * scale)[0]};
#else /* the same polynomial in double */
    static const float c[] = FSM_F32_EXP;
    double r = d_fma(-row->base, FSM_F64_LN2, row->max - row->shift), q = 0;
#pragma GCC unroll 16
    for (int i = (int)(sizeof c / sizeof *c); i--;) q = d_fma(q, r, (double)c[i]);
    return (struct top){term, (1 + d_fma(q, r * r, r)) * (double)BOOST_UP - term};
#endif
}

/* The maximum's own term often is by far the largest part of the sum, and what rounding took from it is put back there:
 * thirty instructions a row, and 0.6 ulp less at worst (3.4 to 2.8, with groups of 32). The term itself stays as it is, which is right to
 * 1.4 units of rounding, unless it is all but alone: there the result must not pass 1, so it is computed apart. */
static void close_softmax(struct fsm_row *row, struct fsm_sum total) {
    struct top top = top_of(row);
    total.lo += top.lost;
    struct fsm_sum s = normal(total);
    row->undefined = !isfinite(row->max) || isnan(s.hi);
    double inverse = 1 / s.hi;
#if FSM_DOUBLE
    row->hi = inverse;
    row->lo = fma(-s.lo, inverse, fma(-s.hi, inverse, 1)) * inverse;
    row->top = fma(top.term, inverse, fma(top.term, row->lo, top.lost * inverse));
#else
    row->hi = (T)inverse;
    row->lo = (T)(inverse - row->hi);
    row->top = (top.term + top.lost) * inverse;
#endif
    row->peak = s.hi - top.term < s.hi * PEAK ? top.term : 0;
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

static void take_logs(struct stats *s, size_t rows) { LOG_STATS(FSM_ISA)(s, rows, (double)BOOST_UP / BOOST_UP_F64); }

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

/* What the last pass takes from a row, in every lane. */
struct last {
    vec hi, lo, peak, top;
};

static inline vec scaled(vec y, const struct last *l) { return v_times(y, l->hi, l->lo); }
static inline vec scaled_peak(vec y, const struct last *l) {
    return v_select(v_equal(y, l->peak), l->top, scaled(y, l));
}
static inline vec shifted(vec x, const struct last *l) { return (x - l->hi) - l->lo; }

static inline void apply_with(vec (*f)(vec, const struct last *), const struct fsm_row *row, const T *x, T *y,
                              size_t n) {
    struct last l = {v_set1((T)row->hi), v_set1((T)row->lo), v_set1((T)row->peak), v_set1((T)row->top)};
    size_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W) {
        UNROLL
        for (size_t u = 0; u < 4; u++) v_store(y + i + u * W, f(v_load(x + i + u * W), &l));
    }
    for (; i + W <= n; i += W) v_store(y + i, f(v_load(x + i), &l));
    if (i < n) v_store_part(y + i, n - i, f(v_load_part(x + i, n - i, 0), &l));
}

static inline void apply_to(fsm_op op, const struct fsm_row *row, const T *x, T *y, size_t n) {
    if (row->undefined)
        for (size_t i = 0; i < n; i++) y[i] = (T)NAN;
    else if (op == FSM_SOFTMAX && row->peak > 0)
        apply_with(scaled_peak, row, y, y, n);
    else if (op == FSM_SOFTMAX)
        apply_with(scaled, row, y, y, n);
    else if (op == FSM_LOG_SOFTMAX)
        apply_with(shifted, row, x, y, n);
}

/* ---- Whole rows ---- */

/* Up to BATCH rows, so few that they stay in the cache, pass by pass: rows do not wait for each other, so that their
 * latencies overlap (at n = 10 a third faster than row by row). */
static inline void some_rows(fsm_op op, const T *x, ptrdiff_t x_pitch, T *y, ptrdiff_t y_pitch, size_t rows, size_t n,
                             double log_n) {
    enum use use = op == FSM_SOFTMAX ? STORE : SKIP_MAX;
    struct fsm_row row[BATCH] = {{0}};
    struct fsm_sum sum[BATCH];
    struct stats s;
#define X(i) (x + (ptrdiff_t)(i)*x_pitch)
#define Y(i) (y + (ptrdiff_t)(i)*y_pitch)
    for (size_t i = 0; i < rows; i++) row[i].max = row_max(X(i), n);
    for (size_t i = 0; i < rows; i++) open_row(&row[i]);
    for (size_t i = 0; i < rows; i++) sum[i] = sum_row(use, &row[i], X(i), Y(i), n);
    if (op == FSM_SOFTMAX) {
        for (size_t i = 0; i < rows; i++) close_softmax(&row[i], sum[i]);
    } else {
        for (size_t i = 0; i < rows; i++) put_stats(&s, i, &row[i], sum[i]);
        take_logs(&s, rows);
        for (size_t i = 0; i < rows; i++) {
            if (op == FSM_LOG_SOFTMAX)
                close_log_softmax(&row[i], s.sum[i], s.log[i]);
            else
                *Y(i) = close_logsumexp(&row[i], s.sum[i], s.log[i] - log_n, X(i), n);
        }
    }
    if (op == FSM_SOFTMAX || op == FSM_LOG_SOFTMAX)
        for (size_t i = 0; i < rows; i++) apply_to(op, &row[i], X(i), Y(i), n);
#undef X
#undef Y
}

static inline void all_rows(fsm_op op, const T *x, ptrdiff_t x_pitch, T *y, ptrdiff_t y_pitch, size_t rows, size_t n) {
    double log_n = op == FSM_LOGMEANEXP ? log_of_count(n) : 0;
    size_t batch = n < 4096 / BATCH ? BATCH : n < 4096 ? 4096 / n : 1;
    for (; rows; rows -= batch, x += (ptrdiff_t)batch * x_pitch, y += (ptrdiff_t)batch * y_pitch) {
        batch = rows < batch ? rows : batch;
        some_rows(op, x, x_pitch, y, y_pitch, batch, n, log_n);
    }
}

/* ---- Whole rows: any op ---- */

#include "cumulate.h"
#include "elements.h"

static void one_by_one(fsm_op op, const T *x, T *y, size_t n) {
    if (op == FSM_LOGCUMSUMEXP)
        cumulate_row(x, y, n);
    else if (op == FSM_SIGMOID)
        map_elements(sigmoid, x, y, n);
    else
        map_elements(softplus, x, y, n);
}

static void kernel_rows(fsm_op op, const void *vx, ptrdiff_t x_pitch, void *vy, ptrdiff_t y_pitch, size_t rows,
                        size_t n) {
    const T *x = vx;
    T *y = vy;
    switch (op) {
        case FSM_SOFTMAX:
            all_rows(FSM_SOFTMAX, x, x_pitch, y, y_pitch, rows, n);
            break;
        case FSM_LOG_SOFTMAX:
            all_rows(FSM_LOG_SOFTMAX, x, x_pitch, y, y_pitch, rows, n);
            break;
        case FSM_LOGSUMEXP:
            all_rows(FSM_LOGSUMEXP, x, x_pitch, y, y_pitch, rows, n);
            break;
        case FSM_LOGMEANEXP:
            all_rows(FSM_LOGMEANEXP, x, x_pitch, y, y_pitch, rows, n);
            break;
        default:
            for (; rows--; x += x_pitch, y += y_pitch) one_by_one(op, x, y, n);
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

const struct fsm_kernels TABLE(FSM_ISA, FSM_SUFFIX) = {
    kernel_rows, kernel_max, open_row, kernel_block_sum, kernel_row_close, kernel_apply,
};
