/* Natural logarithms for lanes of T, after fdlibm's e_log.c (Sun Microsystems, 1993):
 *
 *   log(1 + f) = f - (f^2/2 - s (f^2/2 + R(s^2))),   s = f / (2 + f),   for 1 + f in [sqrt(1/2), sqrt(2)]
 */
#ifndef FSM_LOG_H
#define FSM_LOG_H

/* k ln2 + log(1 + f) + low, where low is a small correction, of some vectors in step. */
TEMPLATE void v_log_reduced(size_t count, const vec *k, const vec *f, const vec *low, vec *log) {
    static const T c[] = FSM_K(LOG); /* of w, w^2, ... */
    enum { LAST = sizeof c / sizeof *c - 1 };
    vec s[LOCKSTEP], w[LOCKSTEP], half[LOCKSTEP], r[LOCKSTEP], tail[LOCKSTEP];
    EACH (u, count) s[u] = f[u] / (f[u] + v_set1(2));
    EACH (u, count) w[u] = s[u] * s[u];
    EACH (u, count) half[u] = v_set1((T)0.5) * f[u] * f[u];
    EACH (u, count) r[u] = v_set1(c[LAST]);
    UNROLL
    for (int i = LAST; i--;)
        EACH (u, count) r[u] = v_fma(r[u], w[u], v_set1(c[i]));
    EACH (u, count) tail[u] = v_fma(s[u], half[u] + w[u] * r[u], v_fma(k[u], v_set1(FSM_K(LN2_LO)), low[u]));
    EACH (u, count) log[u] = v_fma(k[u], v_set1(FSM_K(LN2_HI)), f[u] - (half[u] - tail[u]));
}

/* log(1 + e) for e in [0, 1]; below 1.1 ulp of the result. */
static inline vec v_log1p_unit(vec e) {
    mask upper = v_less(v_set1((T)0.41421356237309503), e);
    vec f = v_select(upper, (e - v_set1(1)) * v_set1((T)0.5), e);
    vec k = v_select(upper, v_set1(1), v_set1(0)), low = v_set1(0), log;
    v_log_reduced(1, &k, &f, &low, &log);
    return log;
}

#if FSM_DOUBLE
/* log(a + low) for a >= 1 and |low| <= ulp(a): relative to the result also where a = 1 and low is all there is. */
TEMPLATE void v_log_pair(size_t count, const vec *a, const vec *low, vec *log) {
    vec k[LOCKSTEP], f[LOCKSTEP], rest[LOCKSTEP];
    EACH (u, count) {
        ivec e = ((ivec)a[u] - (ivec)v_set1(SQRT_HALF)) >> MANTISSA; /* >= 0, since a >= 1 */
        vec z = (vec)((ivec)a[u] - (e << MANTISSA));
        vec down = (vec)((ivec)v_set1(1) - (e << MANTISSA)); /* 2^-e */
        k[u] = (vec)(e | (ivec)v_set1(0x1p52)) - v_set1(0x1p52);
        vec g = z - v_set1(1), gl = low[u] * down;
        f[u] = g + gl;
        rest[u] = ((g - f[u]) + gl) / (f[u] + v_set1(1));
    }
    v_log_reduced(count, k, f, rest, log);
}
#endif

#endif
