/* The element type of this compilation (FSM_DOUBLE is 0 or 1) and the constants that belong to it. */
#ifndef FSM_TYPE_H
#define FSM_TYPE_H

#include <stddef.h>
#include <stdint.h>

#include "coefficients.h"

#if FSM_DOUBLE
typedef double T;
typedef int64_t bits_t;
#define FSM_K(name) FSM_F64_##name
#define MAGIC 0x1.8p52    /* z + MAGIC rounds z to an integer and leaves it in the low mantissa bits */
#define MANTISSA 52       /* bits to shift an integer up by to make it an exponent */
#define BOOST 80          /* terms carry 2^BOOST: a subnormal result is rounded once, and 2^26 terms that each round */
#define BIAS (1023 + 80)  /* to nothing still add up; the exponent field of a term of value 2^0 */
#define SHIFT_FROM 1600.0 /* from this |max| on, x - max is exact for every x that matters */
#define BOOST_UP 0x1p80
#define SQRT_HALF 0x1.6a09e667f3bcdp-1
#else
typedef float T;
typedef int32_t bits_t;
#define FSM_K(name) FSM_F32_##name
#define MAGIC 0x1.8p23f
#define MANTISSA 23
#define BOOST 48
#define BIAS (127 + 48)
#define SHIFT_FROM 250.0f
#define BOOST_UP 0x1p48f
#endif

#define d_fma(a, b, c) (FSM_FMA ? __builtin_fma(a, b, c) : (a) * (b) + (c))

#define BOOST_DOWN ((T)1 / BOOST_UP)
#define BOOST_UP_F64 0x1p80

/* Fused multiply-add where the ISA has it. The one ISA that has not rounds twice, and reduces its arguments with
 * constants short enough for the products to be exact all the same. */
#if FSM_FMA
#define REDUCE_HI FSM_K(LN2_HI)
#define REDUCE_LO FSM_K(LN2_LO)
#if FSM_DOUBLE
#define t_fma(a, b, c) __builtin_fma(a, b, c)
#else
#define t_fma(a, b, c) __builtin_fmaf(a, b, c)
#endif
#else
#define REDUCE_HI FSM_K(LN2_HI_NOFMA)
#define REDUCE_LO FSM_K(LN2_LO_NOFMA)
#define t_fma(a, b, c) ((a) * (b) + (c))
#endif

#endif
