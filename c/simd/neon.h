/* The vocabulary of AArch64 NEON: four float32 or two float64 lanes. What each word means is said in scalar.h. */
#if !defined(__aarch64__) || !defined(__ARM_NEON)
#error "simd/neon.h needs AArch64"
#endif
#include <arm_neon.h>

#define FSM_FMA 1
#include "../type.h"

typedef float64x2_t dvec;
#define DOUBLES 2

static inline dvec v_dset1(double a) { return vdupq_n_f64(a); }
static inline dvec v_dload(const double *p) { return vld1q_f64(p); }
static inline dvec v_dfma(dvec a, dvec b, dvec c) { return vfmaq_f64(c, a, b); }
static inline dvec v_dif_less(dvec a, dvec b, dvec c, dvec d) { return vbslq_f64(vcltq_f64(a, b), c, d); }

#if FSM_DOUBLE
typedef float64x2_t vec;
typedef int64x2_t ivec;
typedef uint64x2_t mask;
#define W 2

static inline vec v_set1(T a) { return vdupq_n_f64(a); }
static inline vec v_load(const T *p) { return vld1q_f64(p); }
static inline void v_store(T *p, vec a) { vst1q_f64(p, a); }
static inline vec v_fma(vec a, vec b, vec c) { return vfmaq_f64(c, a, b); }
static inline vec v_fnma(vec a, vec b, vec c) { return vfmsq_f64(c, a, b); }
static inline vec v_max(vec a, vec b) { return vmaxq_f64(a, b); }
static inline mask v_equal(vec a, vec b) { return vceqq_f64(a, b); }
static inline mask v_less(vec a, vec b) { return vcltq_f64(a, b); }
static inline vec v_zero_if(mask m, vec a) { return (vec)vbicq_u64((uint64x2_t)a, m); }
static inline vec v_select(mask m, vec a, vec b) { return vbslq_f64(m, a, b); }
static inline int v_count(mask m) { return -(int)vaddvq_s64((int64x2_t)m); }
static inline T v_largest(vec a) { return vmaxvq_f64(a); }
static inline mask v_true(const unsigned char *p) { return (mask)((ivec){p[0], p[1]} != 0); }
static inline void v_transpose(vec m[2]) {
    vec a = vzip1q_f64(m[0], m[1]), b = vzip2q_f64(m[0], m[1]);
    m[0] = a;
    m[1] = b;
}
static inline void v_doubles(vec a, dvec d[1]) { d[0] = a; }
static inline vec v_singles(const dvec d[1]) { return d[0]; }
#else
typedef float32x4_t vec;
typedef int32x4_t ivec;
typedef uint32x4_t mask;
#define W 4

static inline vec v_set1(T a) { return vdupq_n_f32(a); }
static inline vec v_load(const T *p) { return vld1q_f32(p); }
static inline void v_store(T *p, vec a) { vst1q_f32(p, a); }
static inline vec v_fma(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
static inline vec v_fnma(vec a, vec b, vec c) { return vfmsq_f32(c, a, b); }
static inline vec v_max(vec a, vec b) { return vmaxq_f32(a, b); }
static inline mask v_equal(vec a, vec b) { return vceqq_f32(a, b); }
static inline mask v_less(vec a, vec b) { return vcltq_f32(a, b); }
static inline vec v_zero_if(mask m, vec a) { return (vec)vbicq_u32((uint32x4_t)a, m); }
static inline vec v_select(mask m, vec a, vec b) { return vbslq_f32(m, a, b); }
static inline int v_count(mask m) { return -vaddvq_s32((int32x4_t)m); }
static inline T v_largest(vec a) { return vmaxvq_f32(a); }
static inline mask v_true(const unsigned char *p) { return (mask)((ivec){p[0], p[1], p[2], p[3]} != 0); }

static inline vec v_singles(const dvec d[2]) { return vcvt_high_f32_f64(vcvt_f32_f64(d[0]), d[1]); }
static inline void v_doubles(vec a, dvec d[2]) {
    d[0] = vcvt_f64_f32(vget_low_f32(a));
    d[1] = vcvt_high_f64_f32(a);
}
typedef uint16x4_t half_vec;
static inline ivec v_wide(half_vec h) { return (ivec)vmovl_u16(h); }
static inline half_vec v_upper(ivec a) { return vshrn_n_u32((uint32x4_t)a, 16); }
static inline vec v_from_f16(half_vec h) { return vcvt_f32_f16(vreinterpret_f16_u16(h)); }
static inline half_vec v_to_f16(vec a) { return vreinterpret_u16_f16(vcvt_f16_f32(a)); }
static inline void v_widen(const vec s[2], dvec d[4]) {
    v_doubles(s[0], d);
    v_doubles(s[1], d + 2);
}
static inline void v_transpose(vec m[4]) {
    float64x2_t a = (float64x2_t)vzip1q_f32(m[0], m[1]), b = (float64x2_t)vzip2q_f32(m[0], m[1]);
    float64x2_t c = (float64x2_t)vzip1q_f32(m[2], m[3]), d = (float64x2_t)vzip2q_f32(m[2], m[3]);
    m[0] = (vec)vzip1q_f64(a, c);
    m[1] = (vec)vzip2q_f64(a, c);
    m[2] = (vec)vzip1q_f64(b, d);
    m[3] = (vec)vzip2q_f64(b, d);
}
#endif

static inline void v_stream(T *p, vec a) { v_store(p, a); }
#define STREAMS 0
static inline void v_streamed(void) {}

static inline vec v_load_part(const T *p, size_t k, T fill) {
    vec a = v_set1(fill);
    for (size_t i = 0; i < k; i++) a[i] = p[i];
    return a;
}
static inline void v_store_part(T *p, size_t k, vec a) {
    for (size_t i = 0; i < k; i++) p[i] = a[i];
}

static inline vec v_times(vec a, vec hi, vec lo) { return v_fma(a, hi, a * lo); }
