/* sigmoid and softplus: every element for itself. Included by kernels.c alone. */
#ifndef FSM_ELEMENTS_H
#define FSM_ELEMENTS_H

/* e^-|x| with the factor 2^BOOST. */
static inline vec exp_minus_abs(vec x) {
    vec minus = v_select(v_less(v_set1(0), x), -x, x);
    v_exp(1, &minus, v_exp_lo(v_set1(0)), v_exp_magic(v_set1(0)));
    return minus;
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

#endif
