/* The types that rows are read and written in: that of the compilation, for float32 also the half types. What lies between, the
 * terms, is always of that of the compilation. Included by kernels.c alone. */
#ifndef FSM_FORMAT_H
#define FSM_FORMAT_H

#define OWN_TYPE (FSM_DOUBLE ? FSM_F64 : FSM_F32)

TEMPLATE const void *x_at(fsm_type type, const void *x, ptrdiff_t i) {
    return type == OWN_TYPE ? (const void *)((const T *)x + i) : (const uint16_t *)x + i;
}
TEMPLATE void *y_at(fsm_type type, void *y, ptrdiff_t i) {
    return type == OWN_TYPE ? (void *)((T *)y + i) : (uint16_t *)y + i;
}

#if FSM_DOUBLE
TEMPLATE vec load_as(fsm_type type, const void *x) { return (void)type, v_load(x); }
TEMPLATE vec load_part_as(fsm_type type, const void *x, size_t k, T fill) {
    return (void)type, v_load_part(x, k, fill);
}
TEMPLATE void store_as(fsm_type type, void *y, vec a) { (void)type, v_store(y, a); }
TEMPLATE void store_part_as(fsm_type type, void *y, size_t k, vec a) { (void)type, v_store_part(y, k, a); }
#else
TEMPLATE vec from_half(fsm_type type, half_vec h) { return type == FSM_F16 ? v_from_f16(h) : (vec)(v_wide(h) << 16); }

/* To nearest, ties to even. Of bfloat16 NaNs must have a lower half of 0, as those have that come from bfloat16 or are our own: others
 * could be rounded to no NaN. */
TEMPLATE half_vec to_half(fsm_type type, vec a) {
    if (type == FSM_F16) return v_to_f16(a);
    ivec bits = (ivec)a;
    return v_upper(bits + 0x7fff + (bits >> 16 & 1));
}

TEMPLATE vec load_as(fsm_type type, const void *x) {
    if (type == FSM_F32) return v_load(x);
    half_vec h;
    memcpy(&h, x, sizeof h);
    return from_half(type, h);
}
TEMPLATE vec load_part_as(fsm_type type, const void *x, size_t k, T fill) {
    if (type == FSM_F32) return v_load_part(x, k, fill);
    T all[W];
    half_vec h = {0};
    memcpy(&h, x, k * sizeof(uint16_t));
    v_store(all, from_half(type, h));
    return v_load_part(all, k, fill);
}
TEMPLATE void store_as(fsm_type type, void *y, vec a) {
    if (type == FSM_F32) {
        v_store(y, a);
        return;
    }
    half_vec h = to_half(type, a);
    memcpy(y, &h, sizeof h);
}
TEMPLATE void store_part_as(fsm_type type, void *y, size_t k, vec a) {
    if (type == FSM_F32) {
        v_store_part(y, k, a);
        return;
    }
    half_vec h = to_half(type, a);
    memcpy(y, &h, k * sizeof(uint16_t));
}
#endif

#endif
