/* The vocabulary of AVX-512 (F, BW, DQ, VL): sixteen float32 or eight float64 lanes. Each word is explained in scalar.h. */
#if !defined(__AVX512F__) || !defined(__AVX512DQ__) || !defined(__AVX512VL__) || !defined(__AVX512BW__)
#error "simd/avx512.h needs -mavx512f -mavx512bw -mavx512dq -mavx512vl"
#endif
#include <immintrin.h>

#define FSM_FMA 1
#include "../type.h"

typedef __m512d dvec;
#define DOUBLES 8

#if FSM_DOUBLE
typedef __m512d vec;
typedef bits_t ivec __attribute__((vector_size(64)));
typedef __mmask8 mask;
#define W 8

static inline vec v_set1(T a) { return _mm512_set1_pd(a); }
static inline vec v_load(const T *p) { return _mm512_loadu_pd(p); }
static inline void v_store(T *p, vec a) { _mm512_storeu_pd(p, a); }
static inline vec v_fma(vec a, vec b, vec c) { return _mm512_fmadd_pd(a, b, c); }
static inline vec v_fnma(vec a, vec b, vec c) { return _mm512_fnmadd_pd(a, b, c); }
static inline vec v_max(vec a, vec b) { return _mm512_max_pd(a, b); }
static inline mask v_equal(vec a, vec b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
static inline mask v_less(vec a, vec b) { return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ); }
static inline vec v_zero_if(mask m, vec a) { return _mm512_maskz_mov_pd((mask)~m, a); }
static inline vec v_select(mask m, vec a, vec b) { return _mm512_mask_blend_pd(m, b, a); }
static inline int v_count(mask m) { return __builtin_popcount(m); }
static inline T v_largest(vec a) { return _mm512_reduce_max_pd(a); }

static inline mask first_lanes(size_t k) { return (mask)((1U << k) - 1); }
static inline vec v_load_part(const T *p, size_t k, T fill) {
    return _mm512_mask_loadu_pd(v_set1(fill), first_lanes(k), p);
}
static inline void v_store_part(T *p, size_t k, vec a) { _mm512_mask_storeu_pd(p, first_lanes(k), a); }
#else
typedef __m512 vec;
typedef bits_t ivec __attribute__((vector_size(64)));
typedef __mmask16 mask;
#define W 16

static inline vec v_set1(T a) { return _mm512_set1_ps(a); }
static inline vec v_load(const T *p) { return _mm512_loadu_ps(p); }
static inline void v_store(T *p, vec a) { _mm512_storeu_ps(p, a); }
static inline vec v_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline vec v_fnma(vec a, vec b, vec c) { return _mm512_fnmadd_ps(a, b, c); }
static inline vec v_max(vec a, vec b) { return _mm512_max_ps(a, b); }
static inline mask v_equal(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
static inline mask v_less(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
static inline vec v_zero_if(mask m, vec a) { return _mm512_maskz_mov_ps((mask)~m, a); }
static inline vec v_select(mask m, vec a, vec b) { return _mm512_mask_blend_ps(m, b, a); }
static inline int v_count(mask m) { return __builtin_popcount(m); }
static inline T v_largest(vec a) { return _mm512_reduce_max_ps(a); }

static inline mask first_lanes(size_t k) { return (mask)((1U << k) - 1); }
static inline vec v_load_part(const T *p, size_t k, T fill) {
    return _mm512_mask_loadu_ps(v_set1(fill), first_lanes(k), p);
}
static inline void v_store_part(T *p, size_t k, vec a) { _mm512_mask_storeu_ps(p, first_lanes(k), a); }

static inline void v_widen(const vec s[1], dvec d[1]) {
    d[0] = _mm512_cvtps_pd(_mm512_castps512_ps256(s[0]) + _mm512_extractf32x8_ps(s[0], 1));
}
#endif

static inline vec v_times(vec a, vec hi, vec lo) { return v_fma(a, hi, a * lo); }
