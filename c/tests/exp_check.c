/* Checks exp.h: float32 on all inputs, float64 on samples, against the next wider type. Compiled once per ISA and type,
 * as kernels.c is; float32 has main().
 *
 *   exp_check_<isa> [stride [threads]]     every stride-th input; 1, the default, is all of them
 *
 * For each x it asks for the term that x has in a row whose maximum is max(x, 0), as choose_base() chooses the base.
 * Prints the worst error and its input; exits 0, 1, or 77 where the CPU lacks the ISA. The bounds are those that exp.h
 * claims, and the inputs said to be the worst are always among those tried: a claim that is too high fails as well. */
#if !defined _POSIX_C_SOURCE && !defined __APPLE__
#define _POSIX_C_SOURCE 200809L
#endif
#define STRING_(a) #a
#define STRING(a) STRING_(a)
static const char isa_name[] = STRING(FSM_ISA);

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "../kernels.h"
#include FSM_SIMD
#include "../exp.h"
#include "../terms.h"

#include <float.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

bool exp_check_f64(uint64_t stride, unsigned threads);

#if FSM_DOUBLE
typedef long double wide;
typedef uint64_t word;
#define WIDE_EXP expl
#define WIDE_LDEXP ldexpl
#define DIGITS DBL_MANT_DIG
#define LOWEST DBL_MIN_EXP
#define CLAIM (FSM_FMA ? 1.0031 : 0.9703)
#define CLAIMED (FSM_FMA ? 0x1.a75d747be5f25p+9 : 0x1.d4f2319b23224p+5)
#define COUNT ((uint64_t)1 << 28)
#define NAME "float64"
#else
typedef double wide;
typedef uint32_t word;
#define WIDE_EXP exp
#define WIDE_LDEXP ldexp
#define DIGITS FLT_MANT_DIG
#define LOWEST FLT_MIN_EXP
#define CLAIM (FSM_FMA ? 1.0128 : 0.9886)
#define CLAIMED (FSM_FMA ? 0x1.da72c4p+5f : -0x1.769da2p+2f)
#define COUNT ((uint64_t)1 << 32)
#define NAME "float32"
#endif
#define TOLERANCE 0.0005 /* also what the 64 bits of long double on x86 cost */

enum { BATCHED = 64, MOST_THREADS = 64 };

struct part {
    uint64_t from, to, stride;
    uint64_t normal, nothing, boosted, nan; /* terms: how many of each kind */
    double worst;
    T at;
    uint64_t wrong; /* rules broken; the first: */
    T wrong_x, wrong_term;
    pthread_t thread;
    bool started;
};

static T from_bits(word bits) {
    T x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static word to_bits(T x) {
    word bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static void break_rule(struct part *p, T x, T term) {
    if (!p->wrong++) {
        p->wrong_x = x;
        p->wrong_term = term;
    }
}

/* term and apart = (1 + s) scale are what the kernels make of x. */
static void check_one(struct part *p, T x, T shift, T base, T term, T apart) {
    if (isnan(x) || isinf(x - shift)) { /* x = -inf counts as nothing */
        p->nan += isnan(x) != 0;
        if (isnan(x) ? !isnan(term) : to_bits(term) != 0) break_rule(p, x, term);
        return;
    }
    if (isinf(x)) { /* inf - inf */
        p->nan++;
        if (!isnan(term)) break_rule(p, x, term);
        return;
    }
    const wide t = (wide)x - (wide)shift, lowest_n = -BIAS + (wide)0.5 + (wide)base;
    if (t < (lowest_n - (wide)0.01) * (wide)FSM_F64_LN2) { /* n - N would be -BIAS: exactly +0 */
        p->nothing++;
        if (to_bits(term) != 0) break_rule(p, x, term);
        return;
    }
    if (t < (lowest_n + (wide)0.01) * (wide)FSM_F64_LN2 && to_bits(term) == 0) return; /* at the edge: either */
    const wide exact = WIDE_LDEXP(WIDE_EXP(t), (int)(BOOST - base));
    int exponent;
    (void)frexpl(exact, &exponent);
    if (exponent < LOWEST) {
        exponent = LOWEST;
        p->boosted++;
    } else {
        p->normal++;
        const int least =
            LOWEST + (FSM_FMA ? 0 : DIGITS); /* without FMA the product s scale of v_exp is subnormal sooner */
        if (to_bits(term) != to_bits(apart) && exponent > least) break_rule(p, x, term);
    }
    const double error = (double)ldexpl(fabsl((long double)term - exact), DIGITS - exponent);
    if (!(error <= p->worst)) {
        p->worst = error;
        p->at = x;
    }
}

static void check_batch(struct part *p, const T *x, size_t count) {
    T shift[BATCHED], base[BATCHED], term[BATCHED], apart[BATCHED];
    for (size_t i = 0; i < count; i++) choose_base(x[i] > 0 ? x[i] : 0, &shift[i], &base[i]);
    for (size_t i = 0; i < count; i += W) { /* every lane with a base of its own */
        const struct base b = base_of(v_load(shift + i), v_load(base + i));
        const vec t = v_max(b.lo, v_max(b.floor, v_load(x + i)) - b.shift);
        vec s, scale;
        v_exp_parts(1, &t, &b.magic, &s, &scale);
        v_store(term + i, term_of(true, v_load(x + i), &b));
        v_store(apart + i, (v_set1(1) + s) * scale);
    }
    for (size_t i = 0; i < count; i++) check_one(p, x[i], shift[i], base[i], term[i], apart[i]);
}

#if FSM_DOUBLE
/* All exponents that matter and a bit more, both signs, random mantissas. */
static T input(uint64_t i) {
    uint64_t z = i * 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    z ^= z >> 31;
    const uint64_t exponent = i % 4 ? 1023 + 11 - i / 4 % 8 : i / 4 % 64 ? 1023 + 14 - i / 4 % 64 : z >> 7 & 0x7ff;
    return from_bits((z & 0x800fffffffffffff) | exponent << 52);
}
#else
static T input(uint64_t i) { return from_bits((word)i); }
#endif

static void *check_part(void *part) {
    struct part *p = part;
    T x[BATCHED] = {0};
    size_t count = 0;
    for (uint64_t i = p->from; i < p->to; i += p->stride) {
        x[count++] = input(i);
        if (count == BATCHED || p->to - i <= p->stride) {
            check_batch(p, x, BATCHED);
            count = 0;
        }
    }
    return NULL;
}

/* The ends of all binades, and the input that is said to be the worst. */
static void check_edges(struct part *p) {
    const word exponents = (word)1 << (8 * sizeof(T) - MANTISSA);
    T x[BATCHED] = {0};
    for (word e = 0; e < exponents; e++) {
        x[0] = from_bits(e << MANTISSA);
        x[1] = from_bits((e << MANTISSA) + 1);
        x[2] = from_bits((e << MANTISSA) - 1);
        x[3] = CLAIMED;
        check_batch(p, x, BATCHED);
    }
}

static void add(struct part *sum, const struct part *p) {
    if (!(p->worst <= sum->worst)) {
        sum->worst = p->worst;
        sum->at = p->at;
    }
    if (!sum->wrong) {
        sum->wrong_x = p->wrong_x;
        sum->wrong_term = p->wrong_term;
    }
    sum->wrong += p->wrong;
    sum->normal += p->normal;
    sum->nothing += p->nothing;
    sum->boosted += p->boosted;
    sum->nan += p->nan;
}

static bool check_all(uint64_t stride, unsigned threads) {
    static struct part parts[MOST_THREADS];
    struct part all = {0};
    const uint64_t each = COUNT / stride / threads * stride; /* the last takes what is left */
    for (unsigned i = 0; i < threads; i++) {
        parts[i] = (struct part){.from = i * each, .to = i + 1 < threads ? (i + 1) * each : COUNT, .stride = stride};
        parts[i].started = i && pthread_create(&parts[i].thread, NULL, check_part, &parts[i]) == 0;
    }
    for (unsigned i = 0; i < threads; i++)
        if (!parts[i].started) check_part(&parts[i]);
    check_edges(&all);
    for (unsigned i = 0; i < threads; i++) {
        if (parts[i].started) pthread_join(parts[i].thread, NULL);
        add(&all, &parts[i]);
    }
    const bool good = fabs(all.worst - CLAIM) <= TOLERANCE && !all.wrong;
    printf("%s %s: %.4f ulp at %a, claimed %.4f; %" PRIu64 " normal, %" PRIu64 " to be subnormal, %" PRIu64
           " zero, %" PRIu64 " NaN: %s\n",
           isa_name, NAME, all.worst, (double)all.at, CLAIM, all.normal, all.boosted, all.nothing, all.nan,
           good ? "ok" : "FAILED");
    if (all.wrong)
        printf("%" PRIu64 " break the rules, first x = %a, whose term is %a\n", all.wrong, (double)all.wrong_x,
               (double)all.wrong_term);
    return good;
}

#if FSM_DOUBLE
bool exp_check_f64(uint64_t stride, unsigned threads) {
#if LDBL_MANT_DIG >= 64
    return check_all(stride, threads);
#else
    printf("float64: long double is too short here to check against\n");
    return true;
#endif
}
#else
int main(int argc, char **argv) {
    const fsm_isa *isa;
    for (size_t i = 0; (isa = fsm_isa_usable(i)) && strcmp(fsm_isa_name(isa), isa_name) != 0;) i++;
    if (!isa) {
        printf("this CPU lacks %s\n", isa_name);
        return 77;
    }
    uint64_t stride = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    unsigned long threads = argc > 2 ? strtoul(argv[2], NULL, 10) : 1;
    if (!stride || stride > COUNT || !threads || threads > MOST_THREADS) {
        fprintf(stderr, "usage: %s [stride [threads]], 1 <= threads <= %d\n", argv[0], MOST_THREADS);
        return 2;
    }
    bool good = check_all(stride, (unsigned)threads);
    good &= exp_check_f64(stride, (unsigned)threads);
    return !good;
}
#endif
