/* e^t as a mantissa and a power of two, for lanes of T.
 *
 *   t = n ln2 + r, |r| <= ln2/2;   e^t = 2^n (1 + s),   s = r + r^2 q(r)
 *
 * n is rounded by adding MAGIC, which also leaves it in the low bits of z, from where a shift makes it an exponent.
 * With magic = MAGIC + BIAS - N for an integer N of the caller's the scale is 2^(n-N+BOOST): the shift of a softmax costs
 * nothing and is exact. n - N = -BIAS gives the scale +0.
 *
 * r: n LN2_HI cancels exactly against t (|t| < 2^12), so the reduction is rounded once, by the LN2_LO step.
 * Worst errors, checked by tests/exp_check.c (float32: over all inputs; float64: over samples):
 *   float32  1.0128 ulp at t = 0x1.da72c4p+5      without FMA 0.9886 ulp at t = -0x1.769da2p+2
 *   float64  1.0031 ulp at t = 0x1.a75d747be5f25p+9            0.9703 ulp at t = 0x1.d4f2319b23224p+5
 * Lost: Horner down to the constant term (one operation less, but 1.4 ulp of what 1 + s rounds to); one more degree (one
 * operation more, 0.98 ulp); adding the LN2_LO step to s instead of r (one more, 0.89 ulp); a 16-entry table and degree 3
 * (a tenth faster with AVX-512, but such a table does not fit AVX2, and NEON and Numba would have to gather). */
#ifndef FSM_EXP_H
#define FSM_EXP_H

static inline vec v_exp_parts(vec t, vec magic, vec *scale) {
    static const T c[] = FSM_K(EXP); /* of r^2, r^3, ... */
    vec z = v_fma(t, v_set1(FSM_K(LOG2E)), magic);
    vec n = z - magic;
    vec r = v_fnma(n, v_set1(REDUCE_LO), v_fnma(n, v_set1(REDUCE_HI), t));
    int i = (int)(sizeof c / sizeof *c) - 1;
    vec q = v_set1(c[i]);
#pragma GCC unroll 16
    while (i--) q = v_fma(q, r, v_set1(c[i]));
    *scale = (vec)((ivec)z << MANTISSA);
    return v_fma(q, r * r, r);
}

/* 2^BOOST e^t 2^-N, where magic = MAGIC + BIAS - N and lo = v_exp_lo(N); +0 at lo and below; NaN for NaN.
 * (1 + s) scale in one step: the scale is a power of two, so that only 1 + s is rounded. */
static inline vec v_exp(vec t, vec lo, vec magic) {
    vec scale, s = v_exp_parts(v_max(lo, t), magic, &scale);
    return v_fma(s, scale, scale);
}

/* Where n - N becomes -BIAS; a quarter above it, so that no rounding mode of the caller's makes it less. */
static inline vec v_exp_lo(T n) { return v_set1((n - BIAS + (T)0.25) * FSM_K(LN2)); }

#endif
