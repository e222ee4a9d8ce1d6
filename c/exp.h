/* e^t as a mantissa and a power of two, for lanes of T.
 *
 *   t = n ln2 + r, |r| <= ln2/2;   e^t = 2^n (1 + s),   s = r + r^2 q(r)
 *
 * n is rounded by adding MAGIC, which also leaves it in the low bits of z, from where a shift makes it an exponent. With
 * v_exp_magic(N) for an integer N of the caller's the scale is 2^(n-N+BOOST): the shift of a softmax costs nothing and is
 * exact. n - N = -BIAS gives the scale +0.
 *
 * r: n LN2_HI cancels exactly against t (|t| < 2^12), so the reduction is rounded once, by the LN2_LO step. Worst errors,
 * checked by tests/exp_check.c (float32: over all inputs; float64: over samples):
 *   float32  1.0128 ulp at t = 0x1.da72c4p+5              without FMA 0.9886 ulp at t = -0x1.769da2p+2
 *   float64  1.0031 ulp at t = 0x1.a75d747be5f25p+9                   0.9703 ulp at t = 0x1.d4f2319b23224p+5
 * Lost: Horner down to the constant term (one operation less, but 1.4 ulp of what 1 + s rounds to); one more degree (one
 * operation more, 0.98 ulp); adding the LN2_LO step to s instead of r (one more, 0.89 ulp).
 * Lost, though faster (float32, AVX2, whole calls): a table of 2^(j/S) in a register. S = 8 and degree 3 gains 3 to 10 %,
 * S = 4 and degree 4 gains 2 to 7 %, but logsumexp is 1.7 ulp off instead of 1.4, more than is promised; with the entries'
 * rounding errors put back into r (logsumexp 1.4, softmax 2.1 instead of 2.4) nothing is gained. */
#ifndef FSM_EXP_H
#define FSM_EXP_H

#include "unroll.h"

static inline vec v_exp_magic(vec n) { return v_set1(MAGIC) + (v_set1(BIAS) - n); }

/* s and scale = 2^(n - N + BOOST) of k vectors, in step, each with an N of its own. */
TEMPLATE void v_exp_parts(size_t k, const vec *t, const vec *magic, vec *s, vec *scale) {
    static const T c[] = FSM_K(EXP); /* of r^2, r^3, ... */
    enum { LAST = sizeof c / sizeof *c - 1 };
    vec z[LOCKSTEP], n[LOCKSTEP], r[LOCKSTEP], q[LOCKSTEP];
    EACH (u, k) z[u] = v_fma(t[u], v_set1(FSM_K(LOG2E)), magic[u]);
    EACH (u, k) n[u] = z[u] - magic[u];
    EACH (u, k) r[u] = v_fnma(n[u], v_set1(REDUCE_HI), t[u]);
    EACH (u, k) r[u] = v_fnma(n[u], v_set1(REDUCE_LO), r[u]);
    EACH (u, k) q[u] = v_fma(v_set1(c[LAST]), r[u], v_set1(c[LAST - 1]));
    UNROLL
    for (int i = LAST - 1; i--;)
        EACH (u, k) q[u] = v_fma(q[u], r[u], v_set1(c[i]));
    EACH (u, k) s[u] = v_fma(q[u], r[u] * r[u], r[u]);
    EACH (u, k) scale[u] = (vec)((ivec)z[u] << MANTISSA);
}

/* 2^BOOST e^t 2^-N for k vectors, where magic = v_exp_magic(N) and lo = v_exp_lo(N); +0 at lo and below; NaN for NaN.
 * (1 + s) scale in one step: the scale is a power of two, so that only 1 + s is rounded. */
TEMPLATE void v_exp(size_t k, vec *t, vec lo, vec magic) {
    vec same[LOCKSTEP], s[LOCKSTEP], scale[LOCKSTEP];
    EACH (u, k) t[u] = v_max(lo, t[u]), same[u] = magic;
    v_exp_parts(k, t, same, s, scale);
    EACH (u, k) t[u] = v_fma(s[u], scale[u], scale[u]);
}

/* Where n - N becomes -BIAS; a quarter above it, so that no rounding mode of the caller's makes it less. */
static inline vec v_exp_lo(vec n) { return (n - v_set1(BIAS) + v_set1((T)0.25)) * v_set1(FSM_K(LN2)); }

#endif
