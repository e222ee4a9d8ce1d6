/* The vocabulary of AVX2 + FMA: eight float32 or four float64 lanes. What each word means is said in scalar.h. */
#if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__)
#error "simd/avx2.h needs -mavx2 -mfma -mf16c"
#endif
#include <immintrin.h>

#define FSM_FMA 1
#include "../type.h"

typedef __m256d dvec;
#define DOUBLES 4

static inline dvec v_dset1(double a) { return _mm256_set1_pd(a); }
static inline dvec v_dload(const double *p) { return _mm256_loadu_pd(p); }
static inline dvec v_dfma(dvec a, dvec b, dvec c) { return _mm256_fmadd_pd(a, b, c); }
static inline dvec v_dif_less(dvec a, dvec b, dvec c, dvec d) {
    return _mm256_blendv_pd(d, c, _mm256_cmp_pd(a, b, _CMP_LT_OQ));
}

#if FSM_DOUBLE
typedef __m256d vec;
typedef bits_t ivec __attribute__((vector_size(32)));
typedef __m256d mask;
#define W 4

static inline vec v_set1(T a) { return _mm256_set1_pd(a); }
static inline vec v_load(const T *p) { return _mm256_loadu_pd(p); }
static inline void v_store(T *p, vec a) { _mm256_storeu_pd(p, a); }
static inline vec v_fma(vec a, vec b, vec c) { return _mm256_fmadd_pd(a, b, c); }
static inline vec v_fnma(vec a, vec b, vec c) { return _mm256_fnmadd_pd(a, b, c); }
static inline vec v_max(vec a, vec b) { return _mm256_max_pd(a, b); }
static inline mask v_equal(vec a, vec b) { return _mm256_cmp_pd(a, b, _CMP_EQ_OQ); }
static inline mask v_less(vec a, vec b) { return _mm256_cmp_pd(a, b, _CMP_LT_OQ); }
static inline vec v_zero_if(mask m, vec a) { return _mm256_andnot_pd(m, a); }
static inline vec v_select(mask m, vec a, vec b) { return _mm256_blendv_pd(b, a, m); }
static inline int v_count(mask m) { return __builtin_popcount((unsigned)_mm256_movemask_pd(m)); }

static inline __m256i first_lanes(size_t k) {
    static const int64_t ones[8] = {-1, -1, -1, -1, 0, 0, 0, 0};
    return _mm256_loadu_si256((const __m256i *)(const void *)(ones + W - k));
}
static inline vec v_load_part(const T *p, size_t k, T fill) {
    __m256i m = first_lanes(k);
    return _mm256_blendv_pd(v_set1(fill), _mm256_maskload_pd(p, m), _mm256_castsi256_pd(m));
}
static inline void v_store_part(T *p, size_t k, vec a) { /* a masked store takes 19 or more micro-operations on Zen */
    __m128d half = _mm256_castpd256_pd128(a);
    if (k & 2) {
        _mm_storeu_pd(p, half);
        p += 2;
        half = _mm256_extractf128_pd(a, 1);
    }
    if (k & 1) _mm_store_sd(p, half);
}
static inline T v_largest(vec a) {
    __m128d two = _mm_max_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return two[0] > two[1] ? two[0] : two[1];
}
static inline void v_transpose(vec m[4]) {
    vec a = _mm256_unpacklo_pd(m[0], m[1]), b = _mm256_unpackhi_pd(m[0], m[1]);
    vec c = _mm256_unpacklo_pd(m[2], m[3]), d = _mm256_unpackhi_pd(m[2], m[3]);
    m[0] = _mm256_permute2f128_pd(a, c, 0x20);
    m[1] = _mm256_permute2f128_pd(b, d, 0x20);
    m[2] = _mm256_permute2f128_pd(a, c, 0x31);
    m[3] = _mm256_permute2f128_pd(b, d, 0x31);
}
static inline void v_stream(T *p, vec a) { _mm256_stream_pd(p, a); }
static inline mask v_true(const unsigned char *p) {
    int four;
    memcpy(&four, p, sizeof four);
    return (mask)((ivec)_mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four)) != 0);
}
static inline void v_doubles(vec a, dvec d[1]) { d[0] = a; }
static inline vec v_singles(const dvec d[1]) { return d[0]; }
#else
typedef __m256 vec;
typedef bits_t ivec __attribute__((vector_size(32)));
typedef __m256 mask;
#define W 8

static inline vec v_set1(T a) { return _mm256_set1_ps(a); }
static inline vec v_load(const T *p) { return _mm256_loadu_ps(p); }
static inline void v_store(T *p, vec a) { _mm256_storeu_ps(p, a); }
static inline vec v_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline vec v_fnma(vec a, vec b, vec c) { return _mm256_fnmadd_ps(a, b, c); }
static inline vec v_max(vec a, vec b) { return _mm256_max_ps(a, b); }
static inline mask v_equal(vec a, vec b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
static inline mask v_less(vec a, vec b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
static inline vec v_zero_if(mask m, vec a) { return _mm256_andnot_ps(m, a); }
static inline vec v_select(mask m, vec a, vec b) { return _mm256_blendv_ps(b, a, m); }
static inline int v_count(mask m) { return __builtin_popcount((unsigned)_mm256_movemask_ps(m)); }

static inline __m256i first_lanes(size_t k) {
    static const int32_t ones[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
    return _mm256_loadu_si256((const __m256i *)(const void *)(ones + W - k));
}
static inline vec v_load_part(const T *p, size_t k, T fill) {
    __m256i m = first_lanes(k);
    return _mm256_blendv_ps(v_set1(fill), _mm256_maskload_ps(p, m), _mm256_castsi256_ps(m));
}
static inline void v_store_part(T *p, size_t k, vec a) {
    __m128 half = _mm256_castps256_ps128(a);
    if (k & 4) {
        _mm_storeu_ps(p, half);
        p += 4;
        half = _mm256_extractf128_ps(a, 1);
    }
    if (k & 2) {
        _mm_storel_pi((__m64 *)(void *)p, half);
        p += 2;
        half = _mm_movehl_ps(half, half);
    }
    if (k & 1) _mm_store_ss(p, half);
}
static inline T v_largest(vec a) {
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return two[0] > two[1] ? two[0] : two[1];
}
static inline vec v_singles(const dvec d[2]) { return _mm256_set_m128(_mm256_cvtpd_ps(d[1]), _mm256_cvtpd_ps(d[0])); }
static inline void v_doubles(vec a, dvec d[2]) {
    d[0] = _mm256_cvtps_pd(_mm256_castps256_ps128(a));
    d[1] = _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1));
}
typedef uint16_t half_vec __attribute__((vector_size(16)));
static inline ivec v_wide(half_vec h) { return (ivec)_mm256_cvtepu16_epi32((__m128i)h); }
static inline half_vec v_upper(ivec a) {
    __m256i upper = _mm256_srli_epi32((__m256i)a, 16);
    return (half_vec)_mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
}
static inline vec v_from_f16(half_vec h) { return _mm256_cvtph_ps((__m128i)h); }
static inline half_vec v_to_f16(vec a) { return (half_vec)_mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT); }
static inline void v_widen(const vec lanes[1], dvec d[2]) { v_doubles(lanes[0], d); }
static inline void v_transpose(vec m[8]) {
    vec pairs[8];
    for (int i = 0; i < 8; i += 2) { /* 00 10 01 11 | 04 14 05 15 and 02 12 03 13 | 06 16 07 17 */
        pairs[i] = _mm256_unpacklo_ps(m[i], m[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(m[i], m[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) { /* 00 10 20 30 | 04 14 24 34 and 01 11 21 31 | 05 15 25 35 */
            m[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0x44);
            m[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0xee);
        }
    for (int i = 0; i < 4; i++) {
        vec upper = m[i], lower = m[i + 4];
        m[i] = _mm256_permute2f128_ps(upper, lower, 0x20);
        m[i + 4] = _mm256_permute2f128_ps(upper, lower, 0x31);
    }
}
static inline void v_stream(T *p, vec a) { _mm256_stream_ps(p, a); }
static inline mask v_true(const unsigned char *p) {
    return (mask)((ivec)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)) != 0);
}
#endif

#define STREAMS 1
static inline void v_streamed(void) { _mm_sfence(); }
static inline vec v_times(vec a, vec hi, vec lo) { return v_fma(a, hi, a * lo); }
