/* Checks divide.h: v_divide must give what the processor's division gives, to the bit, NaN aside. Compiled once per ISA and type,
 * as kernels.c is; float32 has main().
 *
 *   divide_check_<isa> [divisors]
 *
 * So many divisors of each kind, by default 200: of every size, near powers of two, with few and with all bits; for each, numbers
 * of every size and, of the last, quotients as near as can be to the middle of two numbers. Exits 0, 1, or 77 where the CPU lacks
 * the ISA. */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../kernels.h"
#include FSM_SIMD
#include "../divide.h"

size_t divide_check_f64(unsigned divisors);

enum { COUNT = 4096, DIGITS = FSM_DOUBLE ? 53 : 24, LARGEST = FSM_DOUBLE ? 1023 : 127 };

static uint64_t state = 1;
static uint64_t next_bits(void) { /* splitmix64 */
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* 1 to 2, with as many bits below the first as are asked for. */
static T mantissa(int bits) { return 1 + (T)ldexp((double)(next_bits() >> 11 & (((uint64_t)1 << bits) - 1)), -bits); }
static T of_size(T m, int most) { return (T)ldexp((double)m, (int)(next_bits() % (2 * (unsigned)most)) - most); }

static T divisor(unsigned i) {
    switch (i % 4) {
        case 0:
            return of_size(mantissa(DIGITS - 1), LARGEST - 1);
        case 1:
            return mantissa(DIGITS - 1);
        case 2:
            return 2 - (T)ldexp((double)(1 + next_bits() % 64), 1 - DIGITS); /* all but a few bits set */
        default:
            return mantissa(4) * 8;
    }
}

static void numbers(T by, T *x) {
    static const T special[] = {0, -(T)0, (T)INFINITY, -(T)INFINITY, (T)NAN};
    for (size_t i = 0; i < COUNT; i++) {
        T near = mantissa(DIGITS - 1) * by; /* rounded: the quotient is next to a number */
        T between = (T)((double)(mantissa(DIGITS - 2) + (T)ldexp(1, 1 - DIGITS)) * (double)by); /* or to a middle */
        switch (i / 4 % 4) { /* four in step are alike */
            case 0:
                x[i] = of_size(mantissa(DIGITS - 1), LARGEST);
                break;
            case 1:
                x[i] = near;
                break;
            case 2:
                x[i] = -between;
                break;
            default:
                x[i] = next_bits() % 8 ? mantissa(8) : special[next_bits() % 5];
        }
    }
}

static size_t check(T by) {
    static int shown;
    T x[COUNT], y[COUNT];
    struct divisor d = v_divisor(by);
    size_t wrong = 0;
    numbers(by, x);
    for (size_t i = 0; i < COUNT; i += LOCKSTEP * W) {
        vec v[LOCKSTEP];
        EACH (u, LOCKSTEP) v[u] = v_load(x + i + u * W);
        v_divide(LOCKSTEP, v, &d);
        EACH (u, LOCKSTEP) v_store(y + i + u * W, v[u]);
    }
    for (size_t i = 0; i < COUNT; i++) {
        volatile T quotient = x[i] / by;
        T want = quotient;
        if (isnan(want) ? isnan(y[i]) : memcmp(&want, &y[i], sizeof want) == 0) continue;
        if (shown++ < 5) printf("%a / %a = %a, not %a\n", (double)x[i], (double)by, (double)want, (double)y[i]);
        wrong++;
    }
    return wrong;
}

static size_t check_all(unsigned divisors) {
    size_t wrong = 0;
    for (unsigned i = 0; i < 4 * divisors; i++) wrong += check(divisor(i));
    return wrong;
}

#if FSM_DOUBLE
size_t divide_check_f64(unsigned divisors) { return check_all(divisors); }
#else
#define STRING_(a) #a
#define STRING(a) STRING_(a)
static const char isa_name[] = STRING(FSM_ISA);

static bool usable(void) {
    const fsm_isa *isa;
    for (size_t i = 0; (isa = fsm_isa_usable(i)); i++)
        if (strcmp(fsm_isa_name(isa), isa_name) == 0) return true;
    return false;
}

int main(int argc, char **argv) {
    unsigned divisors = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : 200;
    if (!usable()) {
        printf("this CPU lacks %s\n", isa_name);
        return 77;
    }
    size_t wrong = check_all(divisors) + divide_check_f64(divisors);
    printf("%s: %.0f quotients of each type, %zu wrong\n", isa_name, 4.0 * divisors * COUNT, wrong);
    return wrong != 0;
}
#endif
