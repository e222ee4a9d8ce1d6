/* Gradients: g, that of the results y of a softmax or a log_softmax, brought back to its input. Included by kernels.c alone.
 *
 *   softmax       dx = y (g - s),   s = sum g y
 *   log_softmax   dx = g - e^y s,   s = sum g
 *
 * s is summed in double (float64: in two parts, with the rounding errors of the products) in sixteen lanes: element i of a block
 * in lane i mod 16, then lane l and l + 8, and on as fold() does; blocks in order. The last pass is in T, for softmax with s in two
 * parts: two differences and a product, each rounded, so that dx is within 3 ulp of itself; for log_softmax of the larger of g
 * and e^y s. Lost: that pass in double, within 0.51 ulp, but 1.5 times as long (float32, AVX2, rows of 100 to 4096). */
#ifndef FSM_BACKWARD_H
#define FSM_BACKWARD_H

/* ---- The sum of a block ---- */

TEMPLATE void add_gradient(fsm_op op, dvec *hi, dvec *lo, dvec g, dvec y) {
    if (op == FSM_LOG_SOFTMAX) {
        add_double(hi, lo, g);
        return;
    }
#if FSM_DOUBLE
    dvec p = g * y;
    *lo += v_dfma(g, y, -p);
    add_double(hi, lo, p);
#else
    *hi = v_dfma(g, y, *hi); /* the product is exact */
#endif
}

/* A group in its sixteen lanes: s[0] has the first eight. */
TEMPLATE void add_gradients(fsm_op op, struct sums *s, const vec *g, const vec *y) {
    EACH (u, VECTORS) {
        dvec a[W / DOUBLES], b[W / DOUBLES];
        v_doubles(g[u], a);
        v_doubles(op == FSM_SOFTMAX ? y[u] : g[u], b);
        EACH (p, W / DOUBLES) {
            struct sums *eight = s + (u * W + p * DOUBLES) / FSM_LANES;
            const size_t k = (u * W + p * DOUBLES) % FSM_LANES / DOUBLES;
            add_gradient(op, &eight->hi[k], &eight->lo[k], a[p], b[p]);
        }
    }
}

TEMPLATE struct fsm_dot dot_at(fsm_op op, const T *g, const T *y, size_t n) {
    struct sums s[2] = {{{{0}}, {{0}}}, {{{0}}, {{0}}}};
    vec a[VECTORS], b[VECTORS];
    size_t i = 0;
    for (; i + FSM_GROUP <= n; i += FSM_GROUP) {
        UNROLL
        for (size_t u = 0; u < FSM_GROUP; u += LINE) {
            __builtin_prefetch(g + i + u + AHEAD);
            if (op == FSM_SOFTMAX) __builtin_prefetch(y + i + u + AHEAD);
        }
        EACH (u, VECTORS) a[u] = v_load(g + i + u * W), b[u] = op == FSM_SOFTMAX ? v_load(y + i + u * W) : a[u];
        add_gradients(op, s, a, b);
    }
    if (i < n) {
        EACH (u, VECTORS) {
            const size_t from = i + u * W, k = n > from ? n - from : 0;
            a[u] = k >= W ? v_load(g + from) : k ? v_load_part(g + from, k, 0) : v_set1(0);
            b[u] = op != FSM_SOFTMAX ? a[u] : k >= W ? v_load(y + from) : k ? v_load_part(y + from, k, 0) : v_set1(0);
        }
        add_gradients(op, s, a, b);
    }
    struct fsm_dot dot;
    EACH (k, PARTS) fold_pair(&s[0].hi[k], &s[0].lo[k], s[1].hi[k], s[1].lo[k]);
    fold_row(&s[0], &dot.hi, &dot.lo);
    return dot;
}

/* A row of nothing but -inf, as a mask makes it, has no gradient. The first element nearly always tells. */
static bool all_nothing(const T *y, size_t n) {
    const T nothing = -(T)INFINITY;
    if (y[0] != nothing) return false;
    for (size_t i = 0; i < n; i += W) {
        vec v = n - i < W ? v_load_part(y + i, n - i, nothing) : v_load(y + i);
        if (v_count(v_equal(v, v_set1(nothing))) < (int)W) return false;
    }
    return true;
}

static struct fsm_dot kernel_dot(fsm_op op, const void *g, const void *y, size_t n) {
    struct fsm_dot dot = op == FSM_SOFTMAX ? dot_at(FSM_SOFTMAX, g, y, n) : dot_at(FSM_LOG_SOFTMAX, g, y, n);
    dot.some = op == FSM_SOFTMAX || !all_nothing(y, n);
    return dot;
}

static void kernel_join_dots(struct fsm_dot *parts, size_t count) {
    struct fsm_dot all = parts[0];
    for (size_t i = 1; i < count; i++) {
        add_pair(&all.hi, &all.lo, parts[i].hi, parts[i].lo);
        all.some |= parts[i].some;
    }
    for (size_t i = 0; i < count; i++) parts[i] = all;
}

/* ---- The last pass ---- */

/* Above it y is no logarithm of a softmax, nor a rounding error off one, and e^y might overflow: NaN. */
#define MOST_LOG 32

/* What it takes from a row: the sum, in two parts, or as a factor of terms. */
struct pull {
    vec hi, lo;
    struct base base;
};

/* Terms carry 2^BOOST, which the factor takes back; if that made it subnormal, the terms are without, since those that vanish
 * then make no difference. */
static inline void factors_of(fsm_op op, const struct fsm_dot *dot, T *hi, T *lo, T *base) {
    const double low = isfinite(dot->hi) ? dot->lo : 0, sum = dot->hi + low; /* of infinities the lower part is NaN */
    const bool small = fabs(sum) < (FSM_DOUBLE ? 0x1p-900 : 0x1p-60);
    if (op == FSM_SOFTMAX) {
        *hi = (T)sum;
        *lo = isfinite(*hi) ? (T)((dot->hi - (double)*hi) + low) : 0;
        *base = 0;
    } else {
        *hi = (T)sum * (small ? 1 : BOOST_DOWN);
        *lo = 0;
        *base = small ? BOOST : 0;
    }
}

static inline struct pull pull_of(fsm_op op, const struct fsm_dot *dot) {
    T hi, lo, base;
    factors_of(op, dot, &hi, &lo, &base);
    return (struct pull){v_set1(hi), v_set1(lo), base_of(v_set1(0), v_set1(base))};
}

/* k vectors, of y in y, become those of dx. */
TEMPLATE void pull_some(fsm_op op, size_t k, const struct pull *p, const vec *g, vec *y) {
    if (op == FSM_SOFTMAX) {
        EACH (u, k) y[u] *= (g[u] - p->hi) - p->lo;
        return;
    }
    EACH (u, k) y[u] = v_select(v_less(v_set1(MOST_LOG), y[u]), v_set1((T)NAN), y[u]);
    terms_of(k, false, y, &p->base);
    EACH (u, k) y[u] = v_fnma(y[u], p->hi, g[u]);
}

TEMPLATE void pull_vectors(fsm_op op, bool stream, size_t k, const struct pull *p, const T *g, const T *y, T *dx) {
    vec a[LOCKSTEP], b[LOCKSTEP];
    UNROLL
    for (size_t u = 0; u < k * W; u += LINE)
        if (op == FSM_LOG_SOFTMAX) __builtin_prefetch(y + u + AHEAD); /* which the sum does not read */
    EACH (u, k) a[u] = v_load(g + u * W), b[u] = v_load(y + u * W);
    pull_some(op, k, p, a, b);
    EACH (u, k) stream ? v_stream(dx + u * W, b[u]) : v_store(dx + u * W, b[u]);
}

TEMPLATE void pull_few(fsm_op op, const struct pull *p, const T *g, const T *y, T *dx, size_t n) {
    vec a = v_load_part(g, n, 0), b = v_load_part(y, n, 0);
    pull_some(op, 1, p, &a, &b);
    v_store_part(dx, n, b);
}

TEMPLATE void pull_with(fsm_op op, bool stream, const struct pull *p, const T *g, const T *y, T *dx, size_t n) {
    size_t i = n < ALIGNED ? 0 : unaligned(dx);
    stream = stream && n >= ALIGNED;
    if (i) pull_few(op, p, g, y, dx, i);
    for (; i + LOCKSTEP * W <= n; i += LOCKSTEP * W)
        stream ? pull_vectors(op, true, LOCKSTEP, p, g + i, y + i, dx + i)
               : pull_vectors(op, false, LOCKSTEP, p, g + i, y + i, dx + i);
    for (; i + W <= n; i += W) pull_vectors(op, false, 1, p, g + i, y + i, dx + i);
    if (i < n) pull_few(op, p, g + i, y + i, dx + i, n - i);
}

static void kernel_pull(fsm_op op, const struct fsm_dot *dot, const void *g, const void *y, void *dx, size_t n,
                        bool past) {
    if (!dot->some) {
        memset(dx, 0, n * sizeof(T));
        return;
    }
    struct pull p = pull_of(op, dot);
    if (op == FSM_SOFTMAX)
        past ? pull_with(FSM_SOFTMAX, true, &p, g, y, dx, n) : pull_with(FSM_SOFTMAX, false, &p, g, y, dx, n);
    else
        past ? pull_with(FSM_LOG_SOFTMAX, true, &p, g, y, dx, n) : pull_with(FSM_LOG_SOFTMAX, false, &p, g, y, dx, n);
    if (past) v_streamed();
}

/* ---- Whole rows, some together, so that their latencies overlap ---- */

static void kernel_vjp(fsm_op op, const void *vg, ptrdiff_t g_pitch, const void *vy, ptrdiff_t y_pitch, void *vdx,
                       ptrdiff_t dx_pitch, size_t rows, size_t n, bool past) {
    const T *g = vg, *y = vy;
    T *dx = vdx;
    struct fsm_dot dots[BATCH];
    size_t batch = n < 4096 / BATCH ? BATCH : n < 4096 ? 4096 / n : 1;
    for (; rows; rows -= batch) {
        batch = rows < batch ? rows : batch;
        for (size_t i = 0; i < batch; i++)
            dots[i] = kernel_dot(op, g + (ptrdiff_t)i * g_pitch, y + (ptrdiff_t)i * y_pitch, n);
        for (size_t i = 0; i < batch; i++, g += g_pitch, y += y_pitch, dx += dx_pitch)
            kernel_pull(op, &dots[i], g, y, dx, n, past);
    }
}

/* ---- Rows side by side: columns, a vector of them at a time, their sums in the lanes of vectors ---- */

enum { ACROSS = 64 }; /* columns at once: their sums are 16 KiB */

struct columns_back {
    const T *g, *y;
    ptrdiff_t g_step, y_step; /* from one element to the next */
    T *dx;
    ptrdiff_t dx_step;
    size_t count;                                    /* columns */
    dvec hi[ACROSS / DOUBLES], lo[ACROSS / DOUBLES]; /* the sum of each */
};

static inline vec load_across(const T *p, size_t k) { return k < W ? v_load_part(p, k, 0) : v_load(p); }

/* The sums of a block of n elements of each, from element `first` on. */
TEMPLATE void dot_columns(fsm_op op, struct columns_back *c, size_t first, size_t n) {
    dvec hi[FSM_GROUP][ACROSS / DOUBLES], lo[FSM_GROUP][ACROSS / DOUBLES];
    memset(hi, 0, sizeof hi);
    memset(lo, 0, sizeof lo);
    for (size_t i = 0; i < n; i++) {
        const T *g = c->g + (ptrdiff_t)(first + i) * c->g_step, *y = c->y + (ptrdiff_t)(first + i) * c->y_step;
        dvec *h = hi[i % FSM_GROUP], *l = lo[i % FSM_GROUP];
        fetch_line(g, c->g_step, n - i, c->count, false);
        fetch_line(y, c->y_step, n - i, c->count, false);
        for (size_t k = 0; k < c->count; k += W) {
            dvec a[W / DOUBLES], b[W / DOUBLES];
            vec v = load_across(g + k, c->count - k);
            v_doubles(v, a);
            v_doubles(op == FSM_SOFTMAX ? load_across(y + k, c->count - k) : v, b);
            EACH (p, W / DOUBLES) add_gradient(op, &h[k / DOUBLES + p], &l[k / DOUBLES + p], a[p], b[p]);
        }
    }
    for (size_t k = 0; k * DOUBLES < c->count; k++) {
        for (size_t half = FSM_GROUP / 2; half; half /= 2)
            for (size_t i = 0; i < half; i++) fold_pair(&hi[i][k], &lo[i][k], hi[i + half][k], lo[i + half][k]);
        if (!first) {
            c->hi[k] = hi[0][k], c->lo[k] = lo[0][k];
        } else { /* as add_pair, for both types */
            dvec sum = c->hi[k] + hi[0][k], back = sum - c->hi[k];
            c->lo[k] += ((c->hi[k] - (sum - back)) + (hi[0][k] - back)) + lo[0][k];
            c->hi[k] = sum;
        }
    }
}

/* What the last pass takes, for W columns from k on. */
static inline struct pull pull_of_columns(fsm_op op, const struct columns_back *c, size_t k) {
    T hi[W], lo[W], base[W];
    for (size_t r = 0; r < W; r++) {
        struct fsm_dot dot = {c->hi[(k + r) / DOUBLES][(k + r) % DOUBLES], c->lo[(k + r) / DOUBLES][(k + r) % DOUBLES],
                              true};
        factors_of(op, &dot, &hi[r], &lo[r], &base[r]);
    }
    return (struct pull){v_load(hi), v_load(lo), base_of(v_set1(0), v_load(base))};
}

TEMPLATE void pull_columns(fsm_op op, const struct columns_back *c, const struct pull *p, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const T *g = c->g + (ptrdiff_t)i * c->g_step, *y = c->y + (ptrdiff_t)i * c->y_step;
        T *dx = c->dx + (ptrdiff_t)i * c->dx_step;
        fetch_line(g, c->g_step, n - i, c->count, false);
        fetch_line(y, c->y_step, n - i, c->count, false);
        fetch_line(dx, c->dx_step, n - i, c->count, true);
        for (size_t k = 0; k < c->count; k += W) {
            vec a = load_across(g + k, c->count - k), b = load_across(y + k, c->count - k);
            pull_some(op, 1, &p[k / W], &a, &b);
            c->count - k < W ? v_store_part(dx + k, c->count - k, b) : v_store(dx + k, b);
        }
    }
}

TEMPLATE void vjp_columns(fsm_op op, struct columns_back *c, size_t n) {
    struct pull p[ACROSS / W];
    bool nothing[ACROSS];
    for (size_t k = 0; k < c->count; k++) { /* before anything is written: dx may be y */
        size_t i = 0;
        while (op == FSM_LOG_SOFTMAX && i < n && c->y[(ptrdiff_t)i * c->y_step + (ptrdiff_t)k] == -(T)INFINITY) i++;
        nothing[k] = i == n;
    }
    for (size_t i = 0; i < n; i += FSM_BLOCK) dot_columns(op, c, i, n - i < FSM_BLOCK ? n - i : FSM_BLOCK);
    for (size_t k = 0; k < c->count; k += W) p[k / W] = pull_of_columns(op, c, k);
    pull_columns(op, c, p, n);
    for (size_t k = 0; k < c->count; k++)
        for (size_t i = 0; nothing[k] && i < n; i++) c->dx[(ptrdiff_t)i * c->dx_step + (ptrdiff_t)k] = 0;
}

static void kernel_vjp_columns(fsm_op op, const void *vg, ptrdiff_t g_step, const void *vy, ptrdiff_t y_step, void *vdx,
                               ptrdiff_t dx_step, size_t rows, size_t n) {
    struct columns_back c = {.g = vg, .y = vy, .g_step = g_step, .y_step = y_step, .dx = vdx, .dx_step = dx_step};
    memset(c.hi, 0, sizeof c.hi);
    memset(c.lo, 0, sizeof c.lo);
    for (; rows; rows -= c.count, c.g += c.count, c.y += c.count, c.dx += c.count) {
        c.count = rows < ACROSS ? rows : ACROSS;
        op == FSM_SOFTMAX ? vjp_columns(FSM_SOFTMAX, &c, n) : vjp_columns(FSM_LOG_SOFTMAX, &c, n);
    }
}

#endif
