/* The vocabulary of kernels.c, and its plainest form: vectors of one lane, no fused multiply-add, any CPU.
 *
 * An ISA header is included once per element type T (see type.h) and gives
 *   W, vec, ivec, mask    lanes; a vector of W T's; of W integers of T's size; the answer of a comparison
 *   + - * / & | << >>     the compiler's own, on vec and ivec (GCC's vector extension); casts between them keep the bits
 *   v_set1 v_load v_store
 *   v_load_part(p, k, fill), v_store_part(p, k, a)   the first k < W lanes only; no byte beyond them is touched
 *   v_fma(a, b, c) = a*b + c     v_fnma(a, b, c) = c - a*b     v_times(a, hi, lo) = a*(hi + lo), rounded once
 *   v_max(a, b)           a NaN in b is kept, one in a may be dropped
 *   v_equal v_less v_select(m, a, b) = m ? a : b     v_zero_if(m, a) = m ? +0 : a     v_count(m) = lanes that hold
 *   v_largest(a)          the largest lane
 *   dvec, DOUBLES         a vector of doubles, for sums and what becomes of them; v_dset1 v_dload v_dfma as above, and
 *                         v_dif_less(a, b, c, d) = a < b ? c : d
 *   v_doubles(a, d)       the lanes as doubles, W / DOUBLES vectors of them; v_singles(d) rounds them to T
 *   v_widen(s, d)         float32 only: the eight lane sums as doubles; where W = 16, of the two halves added
 *   half_vec              float32 only: W 16-bit integers; v_from_f16(h), v_to_f16(a), to nearest, ties to even; v_wide(h)
 *                         as integers; v_upper(a) of integers their upper halves
 *   v_true(p)             of W bytes, which are not 0
 *   v_transpose(m)        W vectors: lane j of m[i] goes to lane i of m[j]
 *   v_stream(p, a)        v_store past the cache, p a multiple of the vector's size; v_streamed() before others may look;
 *                         STREAMS is 0 where it is no more than v_store
 */
#define FSM_FMA 0
#include "../type.h"

typedef double dvec __attribute__((vector_size(8)));
#define DOUBLES 1

static inline dvec v_dset1(double a) { return (dvec){a}; }
static inline dvec v_dload(const double *p) { return (dvec){*p}; }
static inline dvec v_dfma(dvec a, dvec b, dvec c) {
    return FSM_DOUBLE ? (dvec){__builtin_fma(a[0], b[0], c[0])} : a * b + c;
}
static inline dvec v_dif_less(dvec a, dvec b, dvec c, dvec d) { return a[0] < b[0] ? c : d; }

typedef T vec __attribute__((vector_size(sizeof(T))));
typedef bits_t ivec __attribute__((vector_size(sizeof(T))));
typedef ivec mask;
#define W 1

static inline vec v_set1(T a) { return (vec){a}; }
static inline vec v_load(const T *p) { return (vec){*p}; }
static inline void v_store(T *p, vec a) { *p = a[0]; }
static inline vec v_load_part(const T *p, size_t k, T fill) { return (vec){k ? *p : fill}; }
static inline void v_store_part(T *p, size_t k, vec a) {
    if (k) *p = a[0];
}
static inline vec v_fma(vec a, vec b, vec c) { return a * b + c; }
static inline vec v_fnma(vec a, vec b, vec c) { return c - a * b; }
#if FSM_DOUBLE /* the product in two parts, after Veltkamp and Dekker (1971) */
static inline vec upper_half(vec a) {
    vec c = a * v_set1(0x1p27 + 1);
    return c - (c - a);
}
static inline vec v_times(vec a, vec hi, vec lo) {
    vec ah = upper_half(a), al = a - ah, hh = upper_half(hi), hl = hi - hh, p = a * hi;
    return p + ((((ah * hh - p) + ah * hl) + al * hh) + al * hl + a * lo);
}
#else
static inline vec v_times(vec a, vec hi, vec lo) {
    return (vec){(float)((double)a[0] * ((double)hi[0] + (double)lo[0]))};
}
#endif
static inline vec v_max(vec a, vec b) { return a[0] > b[0] ? a : b; }
static inline mask v_equal(vec a, vec b) { return (mask)(a == b); }
static inline mask v_less(vec a, vec b) { return (mask)(a < b); }
static inline vec v_select(mask m, vec a, vec b) { return m[0] ? a : b; }
static inline vec v_zero_if(mask m, vec a) { return (vec)(~m & (ivec)a); }
static inline int v_count(mask m) { return m[0] != 0; }
static inline T v_largest(vec a) { return a[0]; }
static inline mask v_true(const unsigned char *p) { return (mask){*p ? -1 : 0}; }
static inline void v_transpose(vec m[1]) { (void)m; }
static inline void v_stream(T *p, vec a) { v_store(p, a); }
#define STREAMS 0
static inline void v_streamed(void) {}
static inline void v_doubles(vec a, dvec d[1]) { d[0] = (dvec){(double)a[0]}; }
static inline vec v_singles(const dvec d[1]) { return (vec){(T)d[0][0]}; }
#if !FSM_DOUBLE
typedef uint16_t half_vec __attribute__((vector_size(2)));
static inline ivec v_wide(half_vec h) { return __builtin_convertvector(h, ivec); }
static inline half_vec v_upper(ivec a) { return __builtin_convertvector(a >> 16, half_vec); }
static inline vec v_from_f16(half_vec h) {
    uint32_t sign = h[0] & 0x8000U, rest = h[0] & 0x7fffU;
    if (rest < 0x400) return v_set1((sign ? -0x1p-24f : 0x1p-24f) * (T)rest);
    uint32_t bits = rest < 0x7c00 ? (rest << 13) + (112 << 23) : rest << 13 | 0x7f800000;
    return (vec)(ivec){(bits_t)(bits | sign << 16)};
}
static inline half_vec v_to_f16(vec a) {
    ivec size = (ivec)a & 0x7fffffff, nearest = (size + 0xfff + (size >> 13 & 1) - (112 << 23)) >> 13;
    if (size[0] >= 0x477ff000) nearest = (ivec){size[0] > 0x7f800000 ? 0x7e00 : 0x7c00}; /* 65520 is rounded to inf */
    if (size[0] < 0x38800000) nearest = (ivec)((vec)size + v_set1(0.5f)) - (ivec)v_set1(0.5f); /* subnormal */
    return (half_vec){(uint16_t)(nearest[0] | (((ivec)a)[0] >> 16 & 0x8000))};
}
static inline void v_widen(const vec s[8], dvec d[8]) {
    for (int i = 0; i < 8; i++) d[i] = (dvec){(double)s[i][0]};
}
#endif
