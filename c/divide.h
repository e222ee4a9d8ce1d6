/* Division by one number for many, rounded as the processor rounds it. Included by kernels.c alone. */
#ifndef FSM_DIVIDE_H
#define FSM_DIVIDE_H

#include "unroll.h"

#ifdef V_MODERATE /* all |x| of k vectors lie between two numbers */

/* By the reciprocal, where the ISA says that a division takes longer: q = x (1/t), with 1/t in two parts, is x/t to less than a
 * unit in the last place, and x - q t exact, so that adding (x - q t)(1/t) rounds correctly (Markstein, IBM J. Res. Dev. 34(1),
 * 1990) as long as nothing of it overflows or becomes subnormal. AVX-512 on an Intel Xeon: log_softmax with a temperature takes
 * 1.2 to 1.5 times (float32; float64 1.2 to 1.35) as long as without, with divisions 1.4 to 1.7 (1.5 to 1.9). AVX2 on Zen 3, where eight divisions take 3.4 cycles, lost. */
#define NARROW (FSM_DOUBLE ? (T)0x1p-400 : (T)0x1p-30) /* t */
#define WIDE (FSM_DOUBLE ? (T)0x1p-400 : (T)0x1p-60)   /* x */

struct divisor {
    T by, inverse, rest; /* inverse 0: the processor divides */
};

static inline struct divisor v_divisor(T by) {
    T inverse = 1 / by;
    if (!(by > NARROW && by < 1 / NARROW)) return (struct divisor){by, 0, 0};
    return (struct divisor){by, inverse, t_fma(-inverse, by, 1) / by};
}

TEMPLATE void v_divide(size_t k, vec *x, const struct divisor *d) {
    vec by = v_set1(d->by), inverse = v_set1(d->inverse), rest = v_set1(d->rest);
    if (d->inverse == 0 || !V_MODERATE(k, x, WIDE, 1 / WIDE)) {
        EACH (u, k) x[u] /= by;
        return;
    }
    EACH (u, k) {
        vec q = v_fma(x[u], inverse, x[u] * rest);
        x[u] = v_fma(v_fnma(q, by, x[u]), inverse, q);
    }
}

#else

struct divisor {
    T by;
};

static inline struct divisor v_divisor(T by) { return (struct divisor){by}; }
TEMPLATE void v_divide(size_t k, vec *x, const struct divisor *d) {
    EACH (u, k) x[u] /= v_set1(d->by);
}

#endif

#endif
