/* What is done to the elements of a row in a pass of its own, before it is summed; else see input.h. Included by kernels.c alone. */
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

/* k vectors from element i on; the result has a bit set if any is something else than -inf. */
TEMPLATE ivec modify_some(size_t k, const struct input *in, T *z, size_t i, vec *max) {
    vec v[LOCKSTEP];
    ivec some = {0};
    for (size_t u = 0; k > 1 && u < k * W; u += LINE) {
        __builtin_prefetch((const T *)in->x + i + u + AHEAD / 4);
        __builtin_prefetch(z + i + u + SOON, 1);
    }
    read_vectors(OWN_TYPE, true, k, in, i, v);
    EACH (u, k) {
        some |= (ivec)v[u] ^ (ivec)v_set1(-(T)INFINITY);
        max[u] = v_max(v[u], max[u]);
        v_store(z + i + u * W, v[u]);
    }
    return some;
}

static bool modify_row(const struct input *in, T *z, size_t n, T *largest) {
    ivec some = {0};
    vec max[LOCKSTEP];
    EACH (u, LOCKSTEP) max[u] = v_set1(*largest);
    size_t i = 0;
    for (; i + LOCKSTEP * W <= n; i += LOCKSTEP * W) some |= modify_some(LOCKSTEP, in, z, i, max);
    for (; i + W <= n; i += W) some |= modify_some(1, in, z, i, max);
    if (i < n) {
        vec v = read_part(OWN_TYPE, true, in, i, n - i, -(T)INFINITY);
        some |= (ivec)v ^ (ivec)v_set1(-(T)INFINITY);
        max[0] = v_max(v, max[0]);
        v_store_part(z + i, n - i, v);
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

static bool kernel_modify(const struct fsm_modify *how, const void *x, void *z, size_t n, void *max) {
    struct input in;
    set_input(&in, OWN_TYPE, x, how, 0);
    if (how->softcap > 0) {
        cap_row(in.temperature.by, (T)how->softcap, x, z, n);
        in.x = z, in.temperature.by = 1;
    }
    return modify_row(&in, z, n, max);
}

#endif
