/* A row as it is read: in any of the formats, and modified on its way (fsm_modify). Included by kernels.c alone. */
#ifndef FSM_INPUT_H
#define FSM_INPUT_H

struct input {
    const void *x;
    /* Of a row that is modified: */
    const void *bias;           /* or NULL */
    const unsigned char *where; /* or NULL */
    bool half;                  /* the bias is of the row's half type */
    struct divisor temperature; /* by 1: x is not divided */
};

/* The row-th of several. Field by field: a copy of the whole waits for its parts to be stored, an eighth of the time of rows of 128
 * elements. */
TEMPLATE void set_input(struct input *in, fsm_type type, const void *x, const struct fsm_modify *how, ptrdiff_t row) {
    const T *temperature = how ? how->temperature : NULL;
    in->x = x;
    in->half = how && type != OWN_TYPE && how->bias_type == type;
    in->bias = how && how->bias ? x_at(in->half ? type : OWN_TYPE, how->bias, row * how->bias_pitch) : NULL;
    in->where = how && how->where ? how->where + row * how->where_pitch : NULL;
    in->temperature = temperature ? v_divisor(temperature[row * how->temperature_pitch]) : (struct divisor){.by = 1};
}

/* What is done to the rows after so many, in *rest; NULL if nothing is. */
static const struct fsm_modify *skip_rows(const struct fsm_modify *how, fsm_type type, size_t rows,
                                          struct fsm_modify *rest) {
    if (!how) return NULL;
    const ptrdiff_t n = (ptrdiff_t)rows;
    struct fsm_modify next = *how;
    bool half = type != OWN_TYPE && how->bias_type == type;
    if (how->temperature) next.temperature = (const T *)how->temperature + n * how->temperature_pitch;
    if (how->bias) next.bias = x_at(half ? type : OWN_TYPE, how->bias, n * how->bias_pitch);
    if (how->where) next.where = how->where + n * how->where_pitch;
    *rest = next;
    return rest;
}

/* k vectors from element i on; the conditions are the same for all of a row, and foreseen. */
TEMPLATE void modify_vectors(fsm_type type, size_t k, const struct input *in, size_t i, vec *v) {
    if (in->temperature.by != 1) v_divide(k, v, &in->temperature);
    if (in->bias && type != OWN_TYPE && in->half)
        EACH (u, k) v[u] += load_as(type, x_at(type, in->bias, i + u * W));
    else if (in->bias)
        EACH (u, k) v[u] += v_load((const T *)in->bias + i + u * W);
    if (in->where)
        EACH (u, k) v[u] = v_select(v_true(in->where + i + u * W), v[u], v_set1(-(T)INFINITY));
}

TEMPLATE void read_vectors(fsm_type type, bool modified, size_t k, const struct input *in, size_t i, vec *v) {
    EACH (u, k) v[u] = load_as(type, x_at(type, in->x, i + u * W));
    if (modified) modify_vectors(type, k, in, i, v);
}

TEMPLATE vec read_vector(fsm_type type, bool modified, const struct input *in, size_t i) {
    vec v;
    read_vectors(type, modified, 1, in, i, &v);
    return v;
}

/* The first n < W lanes; the others are `fill`, or -inf if there is a mask. */
TEMPLATE vec read_part(fsm_type type, bool modified, const struct input *in, size_t i, size_t n, T fill) {
    vec v = load_part_as(type, x_at(type, in->x, i), n, fill);
    if (!modified) return v;
    T bias[W] = {0};
    unsigned char where[W] = {0};
    if (in->bias && type != OWN_TYPE && in->half)
        v_store(bias, load_part_as(type, x_at(type, in->bias, i), n, 0));
    else if (in->bias)
        v_store(bias, v_load_part((const T *)in->bias + i, n, 0));
    if (in->where) memcpy(where, in->where + i, n);
    struct input rest = {NULL, in->bias ? bias : NULL, in->where ? where : NULL, false, in->temperature};
    modify_vectors(OWN_TYPE, 1, &rest, 0, &v);
    if (!isinf(in->temperature.by)) return v;
    T all[W]; /* -inf divided by it is NaN, which must not be beyond the end */
    v_store(all, v);
    return v_load_part(all, n, fill);
}

#endif
