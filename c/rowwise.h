/* Rows whose elements are next to each other, vector by vector. Included by kernels.c alone. */
#ifndef FSM_ROWWISE_H
#define FSM_ROWWISE_H

/* f(type, modified, ...) for each type that rows can be of, and whether they are modified, both known when compiling. */
#define AS_TYPE(f, type, how, ...)                                                                              \
    (FSM_DOUBLE || (type) == FSM_F32 ? (how) ? f(OWN_TYPE, true, __VA_ARGS__) : f(OWN_TYPE, false, __VA_ARGS__) \
     : (type) == FSM_F16 ? (how) ? f(FSM_F16, true, __VA_ARGS__) : f(FSM_F16, false, __VA_ARGS__)               \
     : (how) ? f(FSM_BF16, true, __VA_ARGS__)                                                                   \
                                     : f(FSM_BF16, false, __VA_ARGS__))

TEMPLATE T max_as(fsm_type type, bool modified, const struct input *in, size_t n) {
    vec m[4], v[4];
    for (int u = 0; u < 4; u++) m[u] = v_set1(-(T)INFINITY);
    size_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W) {
        read_vectors(type, modified, 4, in, i, v);
        for (size_t u = 0; u < 4; u++) m[u] = v_max(v[u], m[u]);
    }
    for (; i + W <= n; i += W) m[0] = v_max(read_vector(type, modified, in, i), m[0]);
    if (i < n) m[0] = v_max(read_part(type, modified, in, i, n - i, -(T)INFINITY), m[0]);
    return v_largest(v_max(v_max(m[0], m[1]), v_max(m[2], m[3])));
}

/* Where x is only divided, that of x, divided, is the maximum: division keeps the order. */
static T row_max(fsm_type type, bool modified, const struct input *in, size_t n) {
    if (!modified || in->bias || in->where) return AS_TYPE(max_as, type, modified, in, n);
    return AS_TYPE(max_as, type, false, in, n) / in->temperature.by;
}

/* ---- The sum of a block ---- */

#define LINE (64 / sizeof(T))
/* Fetched so early: x, which makes rows that are not in the cache up to 1.3 times as fast (half as far ahead 1.1); y for
 * writing, up to 1.08 times. log_softmax, which writes only in its last pass, gains 1.2 to 1.4 times by fetching y in its first. */
#define AHEAD (16384 / sizeof(T))
#define SOON (1024 / sizeof(T))

#define VECTORS (FSM_GROUP / W)                   /* of a group */
#define EIGHT (W > FSM_LANES ? 1 : FSM_LANES / W) /* of its eights added; both, if a vector is longer than an eight */
#define PARTS (FSM_LANES / DOUBLES)               /* vectors of doubles for the eight lanes */
#define STEP (VECTORS < LOCKSTEP ? LOCKSTEP : VECTORS) /* vectors of whole groups whose terms are computed together */

struct sums {
    dvec hi[PARTS], lo[PARTS]; /* lo: float64's alone */
};

/* Two eights of each group added: EIGHT vectors a group. A vector wider than an eight keeps both, v_widen adds them. */
TEMPLATE void add_eights(size_t groups, const vec *t, vec *lanes) {
    EACH (i, groups * EIGHT) {
        const vec *first = t + i / EIGHT * VECTORS + i % EIGHT;
        lanes[i] = first[0];
        if (W <= FSM_LANES) lanes[i] += first[EIGHT % VECTORS]; /* %: of no use, but legal, where it is not */
    }
}

TEMPLATE void add_lanes(size_t groups, const vec *lanes, struct sums *s) {
    EACH (g, groups) {
#if FSM_DOUBLE
        const dvec *d = lanes + g * EIGHT;
#else
        dvec d[PARTS];
        v_widen(lanes + g * EIGHT, d);
#endif
        EACH (i, PARTS) add_double(&s->hi[i], &s->lo[i], d[i]);
    }
}

/* The lanes of one row, folded as fold() does. */
static inline void fold_row(struct sums *s, double *sum, double *low) {
    UNROLL
    for (size_t half = PARTS / 2; half; half /= 2) {
        EACH (i, half) fold_pair(&s->hi[i], &s->lo[i], s->hi[i + half], s->lo[i + half]);
    }
    dvec hi[DOUBLES], lo[DOUBLES];
    EACH (i, DOUBLES) hi[i] = (dvec){s->hi[0][i]}, lo[i] = (dvec){FSM_DOUBLE ? s->lo[0][i] : 0};
    UNROLL
    for (size_t half = DOUBLES / 2; half; half /= 2) {
        EACH (i, half) fold_pair(&hi[i], &lo[i], hi[i + half], lo[i + half]);
    }
    *sum = hi[0][0];
    *low = lo[0][0];
}

/* What one row's sum carries along. */
struct progress {
    struct base base;
    vec max; /* known, or found so far */
    int count;
    struct sums sums, rest; /* rest: if both are summed, without the maxima */
};

/* k vectors of x in x become their terms; if they are to be skipped, those of maxima are counted and become 0, in rest if both
 * are summed. */
TEMPLATE void use_terms(enum use use, bool far, size_t k, struct progress *p, vec *x, vec *rest) {
    vec top = x[0], before[STEP];
    EACH (u, k) before[u] = x[u], top = v_max(top, x[u]);
    if (finds_max(use)) p->max = v_max(top, p->max); /* not of a row with a NaN, where it does not matter */
    UNROLL
    for (size_t u = 0; u < k; u += LOCKSTEP) terms_of(k - u < LOCKSTEP ? k - u : LOCKSTEP, far, x + u, &p->base);
    if (sums_both(use))
        EACH (u, k) rest[u] = x[u];
    if (!skips_max(use) || !v_count(v_equal(top, p->max))) return; /* a tenth faster than to count in every vector */
    EACH (u, k) {
        mask same = v_equal(before[u], p->max);
        p->count += v_count(same);
        if (sums_both(use))
            rest[u] = v_zero_if(same, x[u]);
        else
            x[u] = v_zero_if(same, x[u]);
    }
}

TEMPLATE void terms_of_step(fsm_type type, bool modified, enum use use, bool far, struct progress *p,
                            const struct input *in, T *y, size_t i, vec *term, vec *rest) {
    UNROLL
    for (size_t u = 0; u < STEP * W; u += LINE) {
        __builtin_prefetch(x_at(type, in->x, i + u + AHEAD));
        if (use == SKIP_MAX_AND_FETCH) __builtin_prefetch(y + i + u, 1);
        if (stores(use)) __builtin_prefetch(y + i + u + SOON, 1);
    }
    read_vectors(type, modified, STEP, in, i, term);
    use_terms(use, far, STEP, p, term, rest);
    if (stores(use))
        EACH (u, STEP) v_store(y + i + u * W, term[u]);
}

/* All whole steps of a row; the result is how many elements that is. A step's eights are added just before the terms of the
 * next are computed, and its lanes just after, so that nothing has to wait: up to a tenth faster than each step at once. */
TEMPLATE size_t sum_steps(fsm_type type, bool modified, enum use use, bool far, struct progress *p,
                          const struct input *in, T *y, size_t n) {
    enum { GROUPS = STEP / VECTORS };
    vec term[STEP], lanes[GROUPS * EIGHT], rest[STEP], rest_lanes[GROUPS * EIGHT];
    size_t i = STEP * W;
    if (n < i) return 0;
    terms_of_step(type, modified, use, far, p, in, y, 0, term, rest);
    for (; i + STEP * W <= n; i += STEP * W) {
        add_eights(GROUPS, term, lanes);
        if (sums_both(use)) add_eights(GROUPS, rest, rest_lanes);
        terms_of_step(type, modified, use, far, p, in, y, i, term, rest);
        add_lanes(GROUPS, lanes, &p->sums);
        if (sums_both(use)) add_lanes(GROUPS, rest_lanes, &p->rest);
    }
    add_eights(GROUPS, term, lanes);
    add_lanes(GROUPS, lanes, &p->sums);
    if (sums_both(use)) {
        add_eights(GROUPS, rest, rest_lanes);
        add_lanes(GROUPS, rest_lanes, &p->rest);
    }
    return i;
}

/* A group of n <= FSM_GROUP elements from element i on. */
TEMPLATE void sum_group(fsm_type type, bool modified, enum use use, bool far, struct progress *p,
                        const struct input *in, T *y, size_t i, size_t n) {
    vec term[VECTORS], lanes[EIGHT], rest[VECTORS];
    EACH (u, VECTORS)
        term[u] = (u + 1) * W <= n ? read_vector(type, modified, in, i + u * W)
                  : u * W < n      ? read_part(type, modified, in, i + u * W, n - u * W, -(T)INFINITY)
                                   : v_set1(-(T)INFINITY);
    use_terms(use, far, VECTORS, p, term, rest);
    if (stores(use)) {
        EACH (u, VECTORS)
            if ((u + 1) * W <= n)
                v_store(y + i + u * W, term[u]);
            else if (u * W < n)
                v_store_part(y + i + u * W, n - u * W, term[u]);
    }
    add_eights(1, term, lanes);
    add_lanes(1, lanes, &p->sums);
    if (sums_both(use)) {
        add_eights(1, rest, lanes);
        add_lanes(1, lanes, &p->rest);
    }
}

/* A row of a batch: the terms of n <= FSM_BLOCK elements, stored or not, and their sum; in rest, if both are summed, that without
 * the maxima. */
TEMPLATE void sum_row_at(fsm_type type, bool modified, enum use use, bool far, struct batch *batch, struct batch *rest,
                         size_t row, const struct input *in, T *y, size_t n) {
    struct base base = base_of(v_set1(batch->shift[row]), v_set1(batch->base[row]));
    struct progress p = {.base = base, .max = v_set1(finds_max(use) ? -(T)INFINITY : batch->max[row])};
    for (size_t i = sum_steps(type, modified, use, far, &p, in, y, n); i < n; i += FSM_GROUP)
        sum_group(type, modified, use, far, &p, in, y, i, n - i < FSM_GROUP ? n - i : FSM_GROUP);
    fold_row(&p.sums, &batch->sum[row], &batch->low[row]);
    batch->count[row] = p.count;
    if (sums_both(use)) {
        fold_row(&p.rest, &rest->sum[row], &rest->low[row]);
        rest->count[row] = p.count;
    }
    if (finds_max(use)) batch->max[row] = v_largest(p.max);
}

/* Not for half types: what finds the maximum, or sums both. */
TEMPLATE void sum_as(fsm_type type, bool modified, enum use use, struct batch *b, struct batch *rest, size_t row,
                     const struct input *in, T *y, size_t n) {
    const bool far = b->shift[row] != 0, own = type == OWN_TYPE;
#define SUM(use, far) sum_row_at(type, modified, use, far, b, rest, row, in, y, n)
    if (use == ADD)
        far ? SUM(ADD, true) : SUM(ADD, false);
    else if (use == STORE)
        far ? SUM(STORE, true) : SUM(STORE, false);
    else if (own && use == ADD_AND_FIND_MAX) /* not far */
        SUM(ADD_AND_FIND_MAX, false);
    else if (own && use == STORE_AND_FIND_MAX)
        SUM(STORE_AND_FIND_MAX, false);
    else if (own && use == STORE_AND_SUM_BOTH)
        far ? SUM(STORE_AND_SUM_BOTH, true) : SUM(STORE_AND_SUM_BOTH, false);
    else if (use == SKIP_MAX || far || !own)
        far ? SUM(SKIP_MAX, true) : SUM(SKIP_MAX, false);
    else
        SUM(SKIP_MAX_AND_FETCH, false);
#undef SUM
}

/* Each in a function of its own: sanitizers give every variable of all of them a place on the stack, which would overflow. */
#define SUM_ROW(name, type, modified)                                                                         \
    __attribute__((noinline)) static void name(enum use use, struct batch *b, struct batch *rest, size_t row, \
                                               const struct input *in, T *y, size_t n) {                      \
        sum_as(type, modified, use, b, rest, row, in, y, n);                                                  \
    }
SUM_ROW(sum_own, OWN_TYPE, false)
SUM_ROW(sum_own_modified, OWN_TYPE, true)
#if !FSM_DOUBLE
SUM_ROW(sum_f16, FSM_F16, false)
SUM_ROW(sum_f16_modified, FSM_F16, true)
SUM_ROW(sum_bf16, FSM_BF16, false)
SUM_ROW(sum_bf16_modified, FSM_BF16, true)
#endif

static void sum_row(fsm_type type, bool modified, enum use use, struct batch *b, struct batch *rest, size_t row,
                    const struct input *in, T *y, size_t n) {
    if (sums_both(use)) rest->max[row] = b->max[row], rest->shift[row] = b->shift[row], rest->base[row] = b->base[row];
    if (type == OWN_TYPE) (modified ? sum_own_modified : sum_own)(use, b, rest, row, in, y, n);
#if !FSM_DOUBLE
    else if (type == FSM_F16)
        (modified ? sum_f16_modified : sum_f16)(use, b, rest, row, in, y, n);
    else
        (modified ? sum_bf16_modified : sum_bf16)(use, b, rest, row, in, y, n);
#endif
}

/* ---- A row that is read once: its base is guessed, its maximum found along with the terms ---- */

enum { LEAST = 256, FURTHEST = 32 }; /* elements of such a row; how far off a guess of its base may be */

/* The maximum of some vectors from all over a row. */
TEMPLATE T likely_max(bool modified, const struct input *in, size_t n) {
    vec m[4];
    EACH (u, 4)
        m[u] = v_max(read_vector(OWN_TYPE, modified, in, u * (n / 4)),
                     read_vector(OWN_TYPE, modified, in, (u + 1) * (n / 4) - W));
    return v_largest(v_max(v_max(m[0], m[1]), v_max(m[2], m[3])));
}

/* Whether it went well; if not, nothing is known of the row yet. Bases are powers of two: with a smaller one all terms are
 * larger, and no bit of the results is another, as long as nothing overflows and the lower part of 1 / sum does not
 * underflow. Not in place: the terms of a bad guess must not replace x. Not without FMA: there x log2(e), rounded, may lie half
 * way between two integers, and the base decides which it is rounded to. */
static bool sum_once(bool modified, enum use use, struct batch *b, size_t row, const struct input *in, T *y, size_t n) {
    if (!FSM_FMA || n < LEAST || in->x == y) return false;
    T likely = modified ? likely_max(true, in, n) : likely_max(false, in, n);
    choose_base(likely, &b->shift[row], &b->base[row]);
    if (b->shift[row] != 0) return false;
    sum_row(OWN_TYPE, modified, use, b, NULL, row, in, y, n);
    T shift, base;
    choose_base(b->max[row], &shift, &base);
    return shift == 0 && base - b->base[row] <= FURTHEST;
}

/* ---- The last pass ---- */

/* Elements before the first whole vector of y. */
static inline size_t unaligned(const T *y) { return (size_t)(-(uintptr_t)y % sizeof(vec)) / sizeof(T); }

#define ALIGNED (8 * W) /* from this length on y is written in aligned vectors, as streaming has to be */

/* What is read is of one type and perhaps modified, what is written of another. */
TEMPLATE void apply_with(last_pass f, fsm_type from, bool modified, fsm_type to, bool stream, const struct last *l,
                         const struct input *in, void *y, size_t n) {
    size_t i = n < ALIGNED || to != OWN_TYPE ? 0 : unaligned(y);
    if (i) v_store_part(y, i, f(read_part(from, modified, in, 0, i, 0), l));
    for (; i + 4 * W <= n; i += 4 * W) {
        vec v[4];
        read_vectors(from, modified, 4, in, i, v);
        EACH (u, 4) {
            vec z = f(v[u], l);
            stream &&n >= ALIGNED ? v_stream(y_at(to, y, i + u * W), z) : store_as(to, y_at(to, y, i + u * W), z);
        }
    }
    for (; i + W <= n; i += W) store_as(to, y_at(to, y, i), f(read_vector(from, modified, in, i), l));
    if (i < n) store_part_as(to, y_at(to, y, i), n - i, f(read_part(from, modified, in, i, n - i, 0), l));
}

TEMPLATE void apply_as(fsm_type type, bool modified, fsm_op op, const struct batch *b, size_t row,
                       const struct input *in, const T *terms, void *y, size_t n) {
    struct last l = last_of(v_set1(b->hi[row]), v_set1(b->lo[row]), v_set1(b->peak[row]), v_set1(b->top[row]));
    struct input kept = {.x = terms};
    if (op == FSM_LOG_SOFTMAX && isnan(b->hi[row]))
        apply_with(shifted_special, type, modified, type, false, &l, in, y, n);
    else if (op == FSM_LOG_SOFTMAX)
        apply_with(shifted, type, modified, type, false, &l, in, y, n);
    else if (b->peak[row] > 0 || isnan(b->hi[row]))
        apply_with(scaled_special, OWN_TYPE, false, type, false, &l, &kept, y, n);
    else
        apply_with(scaled, OWN_TYPE, false, type, false, &l, &kept, y, n);
}

TEMPLATE void fill_as(fsm_type type, bool modified, void *y, size_t n, T value) {
    (void)modified;
    size_t i = 0;
    for (; i + W <= n; i += W) store_as(type, y_at(type, y, i), v_set1(value));
    if (i < n) store_part_as(type, y_at(type, y, i), n - i, v_set1(value));
}

static void kernel_fill(fsm_type type, void *y, size_t n, double value) {
    AS_TYPE(fill_as, type, false, y, n, (T)value);
}

/* ---- Up to BATCH whole rows, pass by pass: rows do not wait for each other, so that their latencies overlap ---- */

#define X(i) x_at(type, x, (ptrdiff_t)(i)*x_pitch)
#define Y(i) y_at(type, y, (ptrdiff_t)(i)*y_pitch)
#define TERMS(i) (terms + (ptrdiff_t)(i)*terms_pitch)

/* The terms and the sums of a softmax, with each row read once if that can be. */
static void sum_rows_once(struct batch *b, const struct input *in, bool modified, T *terms, ptrdiff_t terms_pitch,
                          size_t rows, size_t n) {
    open_rows(b, BATCH); /* for the lanes without a row */
    for (size_t i = 0; i < rows; i++) {
        if (sum_once(modified, STORE_AND_FIND_MAX, b, i, &in[i], TERMS(i), n)) continue;
        b->max[i] = row_max(OWN_TYPE, modified, &in[i], n);
        choose_base(b->max[i], &b->shift[i], &b->base[i]);
        if (!(b->max[i] > -(T)INFINITY)) b->shift[i] = 0; /* nothing, or NaN */
        sum_row(OWN_TYPE, modified, STORE, b, NULL, i, &in[i], TERMS(i), n);
    }
}

/* The norms of rows whose softmax is closed. */
static void close_norms(struct batch *rest, size_t rows, T *norms) {
    close_log_softmax(rest, rows);
    put_norms(rest, rows, norms);
}

/* Whether a row that is summed is nothing but -inf. */
static bool is_nothing(const struct batch *b, size_t row) {
    return !(b->max[row] > -(T)INFINITY) && !isnan(b->sum[row]);
}

/* The last pass. */
static void finish_row(fsm_op op, fsm_type type, const struct batch *b, size_t row, const struct input *in,
                       const T *terms, void *y, size_t n, const struct fsm_modify *how) {
    if (how && how->empty && is_nothing(b, row))
        kernel_fill(type, y, n, (double)*(const T *)how->empty);
    else
        AS_TYPE(apply_as, type, how && op == FSM_LOG_SOFTMAX, op, b, row, in, terms, y, n);
}

/* Up to 16 rows. x and y are of `type`, numbers of a reduction of our own. The terms of a softmax are kept in y, if that can hold
 * them, or in rows of their own. how, max, norms: as kernels.h has them. */
static void rowwise(fsm_op op, fsm_type type, const void *x, ptrdiff_t x_pitch, T *terms, ptrdiff_t terms_pitch,
                    void *y, ptrdiff_t y_pitch, size_t rows, size_t n, double log_n, const struct fsm_modify *how,
                    const T *max, T *norms) {
    struct batch b, rest;
    struct input in[BATCH];
    bool both = op == FSM_SOFTMAX && norms;
    enum use use = both                    ? STORE_AND_SUM_BOTH
                   : op == FSM_SOFTMAX     ? STORE
                   : op == FSM_LOG_SOFTMAX ? SKIP_MAX_AND_FETCH
                                           : SKIP_MAX;
    clear(&b);
    for (size_t i = 0; i < rows; i++) set_input(&in[i], type, X(i), how, (ptrdiff_t)i);
    if (FSM_DOUBLE && op == FSM_SOFTMAX && n >= LEAST && !max && !both) { /* 1.05 to 1.15 times as fast; float32 0.95 to
                                                                             1.03 */
        sum_rows_once(&b, in, how, terms, terms_pitch, rows, n);
    } else {
        for (size_t i = 0; i < rows; i++) b.max[i] = max ? max[i] : row_max(type, how, &in[i], n);
        rows == 1 ? open_rows(&b, LANES) : open_rows(&b, BATCH);
        for (size_t i = 0; how && i < rows; i++)
            if (!(b.max[i] > -(T)INFINITY)) b.shift[i] = 0; /* nothing, or NaN */
        if (both) rest = b;
        for (size_t i = 0; i < rows; i++) sum_row(type, how, use, &b, &rest, i, &in[i], TERMS(i), n);
    }
    if (op == FSM_SOFTMAX)
        close_softmax(&b, rows);
    else if (op == FSM_LOG_SOFTMAX)
        close_log_softmax(&b, rows);
    else
        close_reduction(&b, rows, log_n, y, y_pitch, norms);
    if (both)
        close_norms(&rest, rows, norms);
    else if (op == FSM_LOG_SOFTMAX && norms)
        put_norms(&b, rows, norms);
    if (fsm_is_map(op))
        for (size_t i = 0; i < rows; i++) finish_row(op, type, &b, i, &in[i], TERMS(i), Y(i), n, how);
}
#undef X
#undef Y
#undef TERMS

#endif
