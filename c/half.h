/* float16 (IEEE binary16) and bfloat16 as float32 and back. Included by kernels.c alone, for float32. */
#ifndef FSM_HALF_H
#define FSM_HALF_H

static inline vec v_from_bf16(half_vec h) { return (vec)(__builtin_convertvector(h, ivec) << 16); }

/* To nearest, ties to even. */
static inline half_vec v_to_bf16(vec a) {
    ivec bits = (ivec)v_select(v_equal(a, a), a, v_set1((T)NAN)); /* others could be rounded to no NaN */
    return __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, half_vec);
}

TEMPLATE void widen_with(vec (*from)(half_vec), const uint16_t *x, T *to, size_t n) {
    half_vec h = {0};
    size_t i = 0;
    for (; i + W <= n; i += W) {
        memcpy(&h, x + i, sizeof h);
        v_store(to + i, from(h));
    }
    if (i == n) return;
    memcpy(&h, x + i, (n - i) * sizeof *x);
    v_store_part(to + i, n - i, from(h));
}

TEMPLATE void narrow_with(half_vec (*to)(vec), const T *x, uint16_t *y, size_t n) {
    half_vec h;
    size_t i = 0;
    for (; i + W <= n; i += W) {
        h = to(v_load(x + i));
        memcpy(y + i, &h, sizeof h);
    }
    if (i == n) return;
    h = to(v_load_part(x + i, n - i, 0));
    memcpy(y + i, &h, (n - i) * sizeof *y);
}

static void kernel_widen(fsm_type type, const void *x, float *to, size_t n) {
    type == FSM_F16 ? widen_with(v_from_f16, x, to, n) : widen_with(v_from_bf16, x, to, n);
}

static void kernel_narrow(fsm_type type, const float *x, void *y, size_t n) {
    type == FSM_F16 ? narrow_with(v_to_f16, x, y, n) : narrow_with(v_to_bf16, x, y, n);
}

#endif
