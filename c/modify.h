/* What is done to the elements of a row before it is summed. Included by kernels.c alone. */
#ifndef FSM_MODIFY_H
#define FSM_MODIFY_H

/* ---- Division by one number: rounded as `/` rounds it ---- */

struct divisor {
    vec by, hi, lo; /* hi + lo = 1 / by */
};

/* From here to there, for divisors and what is divided, nothing that `divide` computes is subnormal or overflows. */
#if FSM_DOUBLE
#define DIVIDES_FROM 0x1p-400
#define DIVIDES_TO 0x1p400
#else
#define DIVIDES_FROM 0x1p-50f
#define DIVIDES_TO 0x1p50f
#endif

static inline struct divisor divisor_of(T by) {
    vec d = v_set1(by), hi = v_set1(1) / d;
    return (struct divisor){d, hi, v_fnma(hi, d, v_set1(1)) / d};
}

static inline vec magnitude(vec a) { return (vec)((ivec)a & ~(ivec)v_set1(-(T)0)); }

/* The quotient of hi + lo is less than an ulp off, and what it leaves is then exact, so that one more step rounds it correctly
 * (Markstein, IBM J. Res. Dev. 34(1), 1990). Half the time of four divisions. */
TEMPLATE void divide(size_t k, vec *x, const struct divisor *d) {
    vec most = magnitude(x[0]), least = most;
    EACH (u, k) {
        vec size = magnitude(x[u]);
        most = v_max(most, size);
        least = v_select(v_less(size, least), size, least);
    }
    if (!FSM_FMA || v_count(v_less(v_set1(DIVIDES_TO), most)) + v_count(v_less(least, v_set1(DIVIDES_FROM)))) {
        EACH (u, k) x[u] /= d->by;
    } else {
        EACH (u, k) {
            vec q = v_fma(x[u], d->hi, x[u] * d->lo);
            x[u] = v_fma(v_fnma(q, d->by, x[u]), d->hi, q);
        }
    }
}

/* ---- The soft cap ---- */

/* tanh, from e^(2|x|) = (1 + s) 2^n: numerator and denominator are e^(2|x|) -+ 1, of which the smaller cancels nothing. */
static inline vec v_tanh(vec x) {
    vec t = magnitude(x) * v_set1(2), end = v_set1(40), magic = v_exp_magic(v_set1(BOOST)), s, scale;
    t = v_select(v_less(end, t), end, t); /* where it is 1 */
    v_exp_parts(1, &t, &magic, &s, &scale);
    vec size = v_fma(scale, s, scale - v_set1(1)) / v_fma(scale, s, scale + v_set1(1));
    return (vec)((ivec)size | ((ivec)x & (ivec)v_set1(-(T)0)));
}

/* ---- All of it ---- */

struct modifier {
    struct divisor divisor;
    const T *bias;
    const unsigned char *where;
};

/* k vectors from element i on; the result has a bit set if any is something else than -inf. */
TEMPLATE ivec modify_some(size_t k, bool divides, bool adds, bool masks, const struct modifier *m, const T *x, T *z,
                          size_t i) {
    vec v[LOCKSTEP], nothing = v_set1(-(T)INFINITY);
    ivec some = {0};
    EACH (u, k) v[u] = v_load(x + i + u * W);
    if (divides) divide(k, v, &m->divisor);
    EACH (u, k) {
        if (adds) v[u] += v_load(m->bias + i + u * W);
        if (masks) {
            ivec out = v_bytes(m->where + i + u * W) == 0;
            v[u] = (vec)(((ivec)v[u] & ~out) | ((ivec)nothing & out));
        }
        some |= (ivec)v[u] ^ (ivec)nothing;
        v_store(z + i + u * W, v[u]);
    }
    return some;
}

TEMPLATE bool modify_with(bool divides, bool adds, bool masks, const struct modifier *m, const T *x, T *z, size_t n) {
    ivec some = {0};
    size_t i = 0;
    for (; i + LOCKSTEP * W <= n; i += LOCKSTEP * W) some |= modify_some(LOCKSTEP, divides, adds, masks, m, x, z, i);
    for (; i + W <= n; i += W) some |= modify_some(1, divides, adds, masks, m, x, z, i);
    if (i < n) { /* what is left, between whole vectors of nothing */
        T last[W], bias[W] = {0};
        unsigned char where[W] = {0};
        v_store(last, v_load_part(x + i, n - i, -(T)INFINITY));
        if (adds) memcpy(bias, m->bias + i, (n - i) * sizeof(T));
        if (masks) memcpy(where, m->where + i, n - i);
        struct modifier rest = {m->divisor, bias, where};
        some |= modify_some(1, divides, adds, masks, &rest, last, last, 0);
        v_store_part(z + i, n - i, v_load(last));
    }
    bits_t any = 0;
    for (size_t u = 0; u < W; u++) any |= some[u];
    return any != 0;
}

/* x / t, then c tanh(x / c). */
static void divide_and_cap(T t, T cap, const T *x, T *z, size_t n) {
    vec by = v_set1(t), c = v_set1(cap);
    for (size_t i = 0; i < n; i += W) {
        size_t k = n - i < W ? n - i : W;
        vec v = (k < W ? v_load_part(x + i, k, 0) : v_load(x + i)) / by;
        if (cap > 0) v = c * v_tanh(v / c);
        k < W ? v_store_part(z + i, k, v) : v_store(z + i, v);
    }
}

static bool kernel_modify(const struct fsm_modify *how, const void *vx, void *vz, size_t n) {
    const T *x = vx;
    T *z = vz, t = (T)how->temperature;
    struct modifier m = {divisor_of(t), how->bias, how->where};
    bool divides = t != 1;
    if (how->softcap > 0 || t < DIVIDES_FROM || t > DIVIDES_TO) {
        divide_and_cap(t, (T)how->softcap, x, z, n);
        x = z, divides = false;
    }
    if (divides && m.bias && m.where) return modify_with(true, true, true, &m, x, z, n);
    if (divides && m.bias) return modify_with(true, true, false, &m, x, z, n);
    if (divides && m.where) return modify_with(true, false, true, &m, x, z, n);
    if (divides) return modify_with(true, false, false, &m, x, z, n);
    if (m.bias && m.where) return modify_with(false, true, true, &m, x, z, n);
    if (m.bias) return modify_with(false, true, false, &m, x, z, n);
    if (m.where) return modify_with(false, false, true, &m, x, z, n);
    return modify_with(false, false, false, &m, x, z, n);
}

#endif
