/* Natural logarithms for lanes of T, after fdlibm's e_log.c (Sun Microsystems, 1993):
 *
 *   log(1 + f) = f - (f^2/2 - s (f^2/2 + R(s^2))),   s = f / (2 + f),   for 1 + f in [sqrt(1/2), sqrt(2)]
 */
#ifndef FSM_LOG_H
#define FSM_LOG_H

/* k ln2 + log(1 + f) + low, where low is a small correction. */
static inline vec v_log_reduced(vec k, vec f, vec low) {
    static const T c[] = FSM_K(LOG); /* of w, w^2, ... */
    vec s = f / (f + v_set1(2)), w = s * s, half = v_set1((T)0.5) * f * f;
    int i = (int)(sizeof c / sizeof *c) - 1;
    vec r = v_set1(c[i]);
#pragma GCC unroll 16
    while (i--) r = v_fma(r, w, v_set1(c[i]));
    vec tail = v_fma(s, half + w * r, v_fma(k, v_set1(FSM_K(LN2_LO)), low));
    return v_fma(k, v_set1(FSM_K(LN2_HI)), f - (half - tail));
}

/* log(1 + e) for e in [0, 1]; below 1.1 ulp of the result. */
static inline vec v_log1p_unit(vec e) {
    mask upper = v_less(v_set1((T)0.41421356237309503), e);
    vec f = v_select(upper, (e - v_set1(1)) * v_set1((T)0.5), e);
    return v_log_reduced(v_select(upper, v_set1(1), v_set1(0)), f, v_set1(0));
}

#if FSM_DOUBLE
/* log(a + low) for a >= 1 and |low| <= ulp(a): relative to the result also where a = 1 and low is all there is. */
static inline vec v_log_pair(vec a, vec low) {
    ivec bits = (ivec)a - (ivec)v_set1(SQRT_HALF), k = bits >> MANTISSA; /* >= 0, since a >= 1 */
    vec z = (vec)((ivec)a - (k << MANTISSA));
    vec down = (vec)((ivec)v_set1(1) - (k << MANTISSA)); /* 2^-k */
    vec kf = (vec)(k | (ivec)v_set1(0x1p52)) - v_set1(0x1p52);
    vec f = z - v_set1(1), fl = low * down;
    vec sum = f + fl;
    return v_log_reduced(kf, sum, ((f - sum) + fl) / (sum + v_set1(1)));
}
#endif

#endif
