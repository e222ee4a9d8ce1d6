/* The vocabulary of AVX-512 (F, BW, DQ, VL): sixteen float32 or eight float64 lanes. Each word is explained in scalar.h. */
#if !defined(__AVX512F__) || !defined(__AVX512DQ__) || !defined(__AVX512VL__) || !defined(__AVX512BW__)
#error "simd/avx512.h needs -mavx512f -mavx512bw -mavx512dq -mavx512vl"
#endif
#include <immintrin.h>

#define FSM_FMA 1
#include "../type.h"

typedef __m512d dvec;
#define DOUBLES 8

static inline dvec v_dset1(double a) { return _mm512_set1_pd(a); }
static inline dvec v_dload(const double *p) { return _mm512_loadu_pd(p); }
static inline dvec v_dfma(dvec a, dvec b, dvec c) { return _mm512_fmadd_pd(a, b, c); }
static inline dvec v_dif_less(dvec a, dvec b, dvec c, dvec d) {
    return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_LT_OQ), d, c);
}

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
static inline void v_transpose(vec m[8]) {
    vec a[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm512_unpacklo_pd(m[i], m[i + 1]);
        a[i + 1] = _mm512_unpackhi_pd(m[i], m[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) { /* quarters 0 and 2, and 1 and 3, of rows i .. i + 3 */
            m[i + j] = _mm512_shuffle_f64x2(a[i + j], a[i + j + 2], 0x88);
            m[i + j + 2] = _mm512_shuffle_f64x2(a[i + j], a[i + j + 2], 0xdd);
        }
    for (int j = 0; j < 4; j++) {
        a[j] = _mm512_shuffle_f64x2(m[j], m[j + 4], 0x88);
        a[j + 4] = _mm512_shuffle_f64x2(m[j], m[j + 4], 0xdd);
    }
    for (int j = 0; j < 8; j++) m[j] = a[j];
}
static inline void v_stream(T *p, vec a) { _mm512_stream_pd(p, a); }
static inline mask v_true(const unsigned char *p) {
    __m128i bytes = _mm_loadl_epi64((const __m128i *)(const void *)p);
    return (mask)_mm_test_epi8_mask(bytes, bytes);
}
static inline void v_doubles(vec a, dvec d[1]) { d[0] = a; }
static inline vec v_singles(const dvec d[1]) { return d[0]; }
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

typedef uint16_t half_vec __attribute__((vector_size(32)));
static inline ivec v_wide(half_vec h) { return (ivec)_mm512_cvtepu16_epi32((__m256i)h); }
static inline half_vec v_upper(ivec a) { return (half_vec)_mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)a, 16)); }
static inline vec v_from_f16(half_vec h) { return _mm512_cvtph_ps((__m256i)h); }
static inline half_vec v_to_f16(vec a) { return (half_vec)_mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT); }
static inline void v_widen(const vec s[1], dvec d[1]) {
    d[0] = _mm512_cvtps_pd(_mm512_castps512_ps256(s[0]) + _mm512_extractf32x8_ps(s[0], 1));
}
static inline vec v_singles(const dvec d[2]) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(d[0])), _mm512_cvtpd_ps(d[1]), 1);
}
static inline void v_doubles(vec a, dvec d[2]) {
    d[0] = _mm512_cvtps_pd(_mm512_castps512_ps256(a));
    d[1] = _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1));
}
static inline void v_transpose(vec m[16]) {
    vec a[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_ps(m[i], m[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps(m[i], m[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) { /* m[i + k]: column k of every quarter, of rows i .. i + 3 */
            m[i + 2 * j] = _mm512_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
            m[i + 2 * j + 1] = _mm512_shuffle_ps(a[i + j], a[i + j + 2], 0xee);
        }
    for (int k = 0; k < 4; k++) { /* a 4 x 4 of quarters */
        vec b0 = _mm512_shuffle_f32x4(m[k], m[k + 4], 0x88), b1 = _mm512_shuffle_f32x4(m[k], m[k + 4], 0xdd);
        vec b2 = _mm512_shuffle_f32x4(m[k + 8], m[k + 12], 0x88), b3 = _mm512_shuffle_f32x4(m[k + 8], m[k + 12], 0xdd);
        a[k] = _mm512_shuffle_f32x4(b0, b2, 0x88);
        a[k + 4] = _mm512_shuffle_f32x4(b1, b3, 0x88);
        a[k + 8] = _mm512_shuffle_f32x4(b0, b2, 0xdd);
        a[k + 12] = _mm512_shuffle_f32x4(b1, b3, 0xdd);
    }
    for (int k = 0; k < 16; k++) m[k] = a[k];
}
static inline void v_stream(T *p, vec a) { _mm512_stream_ps(p, a); }
static inline mask v_true(const unsigned char *p) {
    __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)p);
    return _mm_test_epi8_mask(bytes, bytes);
}
#endif

/* Whether all |a| of k vectors lie between two numbers, NaN aside. */
#if FSM_DOUBLE
#define SIZES(a, b, which) _mm512_range_pd(a, b, which)
#else
#define SIZES(a, b, which) _mm512_range_ps(a, b, which)
#endif
static inline __attribute__((always_inline)) bool v_moderate(size_t k, const vec *a, T least, T most) {
    enum { SMALLER = 0xa, LARGER = 0xb }; /* in absolute value */
    vec small = SIZES(a[0], a[0], SMALLER), large = small;
    for (size_t u = 1; u < k; u++) small = SIZES(small, a[u], SMALLER), large = SIZES(large, a[u], LARGER);
    return !v_count(v_less(small, v_set1(least)) | v_less(v_set1(most), large));
}
#define V_MODERATE v_moderate

#define STREAMS 1
static inline void v_streamed(void) { _mm_sfence(); }
static inline vec v_times(vec a, vec hi, vec lo) { return v_fma(a, hi, a * lo); }
