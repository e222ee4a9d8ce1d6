/* From softmax to the gradient of a loss. Included by kernels.c alone. */
#ifndef FSM_GRADIENT_H
#define FSM_GRADIENT_H

static void kernel_times(void *vy, size_t n, double factor) {
    T *y = vy;
    vec f = v_set1((T)factor);
    size_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W)
        EACH (u, 4) v_store(y + i + u * W, v_load(y + i + u * W) * f);
    for (; i + W <= n; i += W) v_store(y + i, v_load(y + i) * f);
    if (i < n) v_store_part(y + i, n - i, v_load_part(y + i, n - i, 0) * f);
}

/* (1 + s) 2^k - 1 with the upper part's difference exact, or close to -1: nothing cancels. */
static double kernel_expm1(double t) {
    if (isnan(t)) return t;
    struct exp_pair e = EXP_PAIR(FSM_ISA)(t);
    return (ldexp(e.hi, (int)e.n) - 1) + ldexp(e.lo, (int)e.n);
}

#endif
