/* Rows with targets: their log-probabilities, and from softmax to the gradient of a loss. Included by kernels.c alone. */
#ifndef FSM_GRADIENT_H
#define FSM_GRADIENT_H

static int64_t target_of(const struct fsm_targets *t, size_t row) { return t->target[(ptrdiff_t)row * t->target_step]; }

static void kernel_pick(const struct fsm_targets *t, const void *vx, ptrdiff_t pitch, size_t from, size_t to,
                        size_t rows, void *picked) {
    const T *x = vx;
    T *y = picked;
    for (size_t r = 0; r < rows; r++, x += pitch) {
        int64_t target = target_of(t, r);
        bool there = target >= (int64_t)from && target < (int64_t)to;
        y[r] = there ? x[target - (int64_t)from] : -(T)INFINITY;
    }
}

/* (x - hi) - lo, the bits of log_softmax. */
static void kernel_log_probs(const struct fsm_targets *t, size_t rows, const void *norms, void *picked) {
    const T *norm = norms;
    T *y = picked;
    for (size_t r = 0; r < rows; r++, norm += 2) y[r] = target_of(t, r) == t->ignored ? 0 : (y[r] - norm[0]) - norm[1];
}

/* p = e^t and p - 1 for t <= 0, from (1 + s) 2^n: where (2^n - 1) + s 2^n does not cancel. At most 1.6 ulp off. Results that would
 * be subnormal are the smallest that is not. */
static inline void exp_and_expm1(vec t, T *p, T *less) {
    vec magic = v_exp_magic(v_set1(BOOST)), s, scale;
    t = v_max(v_set1(FSM_DOUBLE ? -708 : -87), t);
    v_exp_parts(1, &t, &magic, &s, &scale);
    v_store(p, v_fma(scale, s, scale));
    v_store(less, v_fma(scale, s, scale - v_set1(1)));
}

static inline T number(const void *numbers, ptrdiff_t step, size_t row, T otherwise) {
    return numbers ? ((const T *)numbers)[(ptrdiff_t)row * step] : otherwise;
}

static void kernel_slopes(const struct fsm_targets *t, size_t rows, const void *norms, const void *log_probs,
                          void *slopes) {
    const T *logs = log_probs;
    T *slope = slopes, p[W], less[W];
    for (size_t r = 0; r < rows; r++, slope += 2) {
        if (r % W == 0) exp_and_expm1(rows - r < W ? v_load_part(logs + r, rows - r, 0) : v_load(logs + r), p, less);
        T divisor = number(t->temperature, t->temperature_step, r, 1);
        T by_loss = number(t->scale, t->scale_step, r, 1) / divisor;
        T by_lse = t->lse_scale == 0 ? 0 : (T)t->lse_scale * ((const T *)norms)[2 * r] / divisor;
        bool none = target_of(t, r) == t->ignored || (by_loss == 0 && by_lse == 0);
        slope[0] = none ? 0 : by_loss + by_lse;
        slope[1] = none ? 0 : by_loss * less[r % W] + by_lse * p[r % W];
    }
}

static void kernel_times(void *vy, size_t n, const void *factor) {
    T *y = vy;
    vec f = v_set1(*(const T *)factor);
    size_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W)
        EACH (u, 4) v_store(y + i + u * W, v_load(y + i + u * W) * f);
    for (; i + W <= n; i += W) v_store(y + i, v_load(y + i) * f);
    if (i < n) v_store_part(y + i, n - i, v_load_part(y + i, n - i, 0) * f);
}

/* Whether all rows that have a gradient have this factor. */
static bool is_factor_of_all(T factor, const T *slopes, size_t rows) {
    bool same = true;
    for (size_t r = 0; r < rows; r++) same &= slopes[2 * r] == factor || slopes[2 * r] == 0;
    return same;
}

static void kernel_gradients(const struct fsm_targets *t, const void *slopes, void *vy, ptrdiff_t pitch, size_t rows,
                             size_t n) {
    const T *slope = slopes;
    T *y = vy;
    bool done = is_factor_of_all(slope[0], slope, rows) && pitch == (ptrdiff_t)n; /* short rows as if one */
    if (done && slope[0] != 1) kernel_times(y, rows * n, slope);
    for (size_t r = 0; r < rows; r++, y += pitch, slope += 2) {
        if (slope[0] == 0)
            memset(y, 0, n * sizeof(T));
        else if (!done && slope[0] != 1)
            kernel_times(y, n, slope);
        if (target_of(t, r) != t->ignored) y[target_of(t, r)] = slope[1];
    }
}

#endif
