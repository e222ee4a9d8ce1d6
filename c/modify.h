/* What is done to the elements of a row before it is summed. Included by kernels.c alone. */
#ifndef FSM_MODIFY_H
#define FSM_MODIFY_H

/* ---- The soft cap ---- */

/* tanh, from e^(2|x|) = (1 + s) 2^n: numerator and denominator are e^(2|x|) -+ 1, of which the smaller cancels nothing. */
TEMPLATE void v_tanh(size_t k, vec *x) {
    vec t[LOCKSTEP], magic[LOCKSTEP], s[LOCKSTEP], scale[LOCKSTEP], one = v_set1(1), end = v_set1(40),
                                                                    sign = v_set1(-(T)0);
    EACH (u, k) {
        t[u] = (vec)((ivec)x[u] & ~(ivec)sign) * v_set1(2);
        t[u] = v_select(v_less(end, t[u]), end, t[u]); /* where it is 1 */
        magic[u] = v_exp_magic(v_set1(BOOST));
    }
    v_exp_parts(k, t, magic, s, scale);
    EACH (u, k) {
        vec size = v_fma(scale[u], s[u], scale[u] - one) / v_fma(scale[u], s[u], scale[u] + one);
        x[u] = (vec)((ivec)size | ((ivec)x[u] & (ivec)sign));
    }
}

/* ---- All of it ---- */

struct modifier {
    vec temperature;
    const T *bias;
    const unsigned char *where;
};

/* k vectors from element i on; the result has a bit set if any is something else than -inf. Division is the processor's own:
 * by the reciprocal in two parts, and corrected (Markstein, IBM J. Res. Dev. 34(1), 1990), it takes 3.7 cycles for eight float32
 * instead of 3.4, with all that has to be looked out for. */
TEMPLATE ivec modify_some(size_t k, bool divides, bool adds, bool masks, const struct modifier *m, const T *x, T *z,
                          size_t i, vec *max) {
    vec nothing = v_set1(-(T)INFINITY);
    ivec some = {0};
    for (size_t u = 0; k > 1 && u < k * W; u += LINE) {
        __builtin_prefetch(x + i + u + AHEAD / 4);
        __builtin_prefetch(z + i + u + SOON, 1);
    }
    EACH (u, k) {
        vec v = v_load(x + i + u * W);
        if (divides) v /= m->temperature;
        if (adds) v += v_load(m->bias + i + u * W);
        if (masks) {
            ivec out = v_bytes(m->where + i + u * W) == 0;
            v = (vec)(((ivec)v & ~out) | ((ivec)nothing & out));
        }
        some |= (ivec)v ^ (ivec)nothing;
        max[u] = v_max(v, max[u]);
        v_store(z + i + u * W, v);
    }
    return some;
}

TEMPLATE bool modify_with(bool divides, bool adds, bool masks, const struct modifier *m, const T *x, T *z, size_t n,
                          T *largest) {
    ivec some = {0};
    vec max[LOCKSTEP];
    EACH (u, LOCKSTEP) max[u] = v_set1(*largest);
    size_t i = 0;
    for (; i + LOCKSTEP * W <= n; i += LOCKSTEP * W)
        some |= modify_some(LOCKSTEP, divides, adds, masks, m, x, z, i, max);
    for (; i + W <= n; i += W) some |= modify_some(1, divides, adds, masks, m, x, z, i, max);
    if (i < n) { /* what is left, in whole vectors of nothing */
        T last[W], bias[W] = {0};
        unsigned char where[W] = {0};
        v_store(last, v_load_part(x + i, n - i, -(T)INFINITY));
        if (adds) memcpy(bias, m->bias + i, (n - i) * sizeof(T));
        if (masks) memcpy(where, m->where + i, n - i);
        struct modifier rest = {m->temperature, bias, where};
        some |= modify_some(1, divides, adds, masks, &rest, last, last, 0, max);
        v_store_part(z + i, n - i, v_load(last));
    }
    *largest = v_largest(v_max(v_max(max[0], max[1]), v_max(max[2], max[3])));
    bits_t any = 0;
    for (size_t u = 0; u < W; u++) any |= some[u];
    return any != 0;
}

/* x / t, then c tanh(x / c). */
TEMPLATE void divide_and_cap(size_t k, vec t, vec c, const T *x, T *z) {
    vec v[LOCKSTEP];
    EACH (u, k) v[u] = v_load(x + u * W) / t / c;
    v_tanh(k, v);
    EACH (u, k) v_store(z + u * W, c * v[u]);
}

static void cap_row(T t, T c, const T *x, T *z, size_t n) {
    vec by = v_set1(t), cap = v_set1(c);
    size_t i = 0;
    for (; i + LOCKSTEP * W <= n; i += LOCKSTEP * W) divide_and_cap(LOCKSTEP, by, cap, x + i, z + i);
    for (; i < n; i += W) {
        T last[W];
        size_t k = n - i < W ? n - i : W;
        v_store(last, k < W ? v_load_part(x + i, k, 0) : v_load(x + i));
        divide_and_cap(1, by, cap, last, last);
        k < W ? v_store_part(z + i, k, v_load(last)) : v_store(z + i, v_load(last));
    }
}

static bool kernel_modify(const struct fsm_modify *how, const void *vx, void *vz, size_t n, void *max) {
    const T *x = vx;
    T *z = vz;
    struct modifier m = {v_set1((T)how->temperature), how->bias, how->where};
    bool divides = how->temperature != 1;
    if (how->softcap > 0) {
        cap_row((T)how->temperature, (T)how->softcap, x, z, n);
        x = z, divides = false;
    }
    if (divides && m.bias && m.where) return modify_with(true, true, true, &m, x, z, n, max);
    if (divides && m.bias) return modify_with(true, true, false, &m, x, z, n, max);
    if (divides && m.where) return modify_with(true, false, true, &m, x, z, n, max);
    if (divides) return modify_with(true, false, false, &m, x, z, n, max);
    if (m.bias && m.where) return modify_with(false, true, true, &m, x, z, n, max);
    if (m.bias) return modify_with(false, true, false, &m, x, z, n, max);
    if (m.where) return modify_with(false, false, true, &m, x, z, n, max);
    return modify_with(false, false, false, &m, x, z, n, max);
}

#endif
