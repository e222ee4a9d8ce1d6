/* From a row as it is given to what the kernels take: the half types as float32, modifiers applied. Included by rows.c alone. */
#ifndef FSM_PREPARE_H
#define FSM_PREPARE_H

/* The type that rows are computed in, whatever they are given in. */
static fsm_type computed(fsm_type type) { return is_half(type) ? FSM_F32 : type; }

/* A row, and what its elements meet on their way; what is not the same for all of it begins at its first element. */
struct source {
    const char *x;              /* elements next to each other */
    const void *temperature;    /* or NULL */
    const char *bias;           /* or NULL */
    const unsigned char *where; /* or NULL */
};

/* How far something of a row is from that of the first row, given its strides for outer and for inner. */
static ptrdiff_t distance_of(const struct job *j, ptrdiff_t by_outer, ptrdiff_t by_inner, size_t outer, size_t inner) {
    return j->swapped ? (ptrdiff_t)inner * by_outer + (ptrdiff_t)outer * by_inner
                      : (ptrdiff_t)outer * by_outer + (ptrdiff_t)inner * by_inner;
}

/* The number of a row in an array of the computed type; NULL where there is no array. */
static void *number_of(const struct job *j, const void *numbers, const ptrdiff_t *strides, size_t outer, size_t inner) {
    ptrdiff_t i = distance_of(j, strides[0], strides[1], outer, inner);
    return numbers ? (void *)at(numbers, i, computed(j->type)) : NULL;
}

static void *lse_of(const struct job *j, size_t outer, size_t inner) {
    return number_of(j, j->modifiers->lse, j->modifiers->lse_strides, outer, inner);
}

static double value_of(const struct job *j, const void *number) {
    return computed(j->type) == FSM_F32 ? (double)*(const float *)number : *(const double *)number;
}

/* A number of any type, rounded to it. */
static void put_number(const struct job *j, fsm_type type, void *p, double value) {
    float rounded = (float)value;
    if (type == FSM_F64)
        *(double *)p = value;
    else if (type == FSM_F32)
        *(float *)p = rounded;
    else
        j->kernels->narrow(type, &rounded, 0, p, 0, 1, 1);
}

static struct source source_of(const struct job *j, const void *x, size_t outer, size_t inner) {
    struct source s = {x, NULL, NULL, NULL};
    const fsm_modifiers *m = j->modifiers;
    if (!m) return s;
    s.temperature = number_of(j, m->temperature, m->temperature_strides, outer, inner);
    if (m->bias)
        s.bias = at(m->bias, distance_of(j, m->bias_strides[0], m->bias_strides[2], outer, inner), m->bias_type);
    if (m->where) s.where = m->where + distance_of(j, m->where_strides[0], m->where_strides[2], outer, inner);
    return s;
}

enum { PIECE = 1024 }; /* elements of bias and where that are brought next to each other at once */

static const void *bias_piece(const struct job *j, const char *from, size_t n, double *to) {
    fsm_type type = j->modifiers->bias_type;
    ptrdiff_t step = j->modifiers->bias_strides[1];
    uint16_t halves[PIECE];
    void *row = is_half(type) ? (void *)halves : (void *)to;
    if (step == 1 && !is_half(type)) return from;
    copy(type, from, 0, step, row, 0, 1, 1, n);
    if (is_half(type)) j->kernels->widen(type, halves, 0, (float *)(void *)to, 0, 1, n);
    return to;
}

static const unsigned char *where_piece(const struct job *j, const unsigned char *from, size_t n, unsigned char *to) {
    ptrdiff_t step = j->modifiers->where_strides[1];
    if (step == 1) return from;
    for (size_t i = 0; i < n; i++) to[i] = from[(ptrdiff_t)i * step];
    return to;
}

/* Whether nothing is done to rows but to take them as they are. */
static bool is_bare(const struct job *j) {
    const fsm_modifiers *m = j->modifiers;
    return !m || !(m->temperature || m->softcap > 0 || m->bias || m->where || m->sink || m->empty);
}

/* n elements from `first` on, as the kernels take them. With modifiers also: whether any is not -inf; and max, of the computed
 * type, becomes the largest of them, if that is larger. */
static bool prepare(const struct job *j, const struct source *s, size_t first, size_t n, void *z, void *max) {
    const void *x = at(s->x, (ptrdiff_t)first, j->type);
    if (is_half(j->type)) {
        j->kernels->widen(j->type, x, 0, z, 0, 1, n);
        x = z;
    }
    const fsm_modifiers *m = j->modifiers;
    if (!m) return true;
    bool whole = (!m->bias || (m->bias_strides[1] == 1 && !is_half(m->bias_type))) &&
                 (!m->where || m->where_strides[1] == 1),
         any = false;
    double bias[PIECE];
    unsigned char where[PIECE];
    for (size_t i = 0, k = whole ? n : PIECE; i < n; i += k) {
        k = n - i < k ? n - i : k;
        ptrdiff_t place = (ptrdiff_t)(first + i);
        struct fsm_modify how = {.temperature = s->temperature, .softcap = m->softcap, .bias_type = computed(j->type)};
        if (m->bias) how.bias = bias_piece(j, at(s->bias, place * m->bias_strides[1], m->bias_type), k, bias);
        if (m->where) how.where = where_piece(j, s->where + place * m->where_strides[1], k, where);
        ptrdiff_t here = (ptrdiff_t)i;
        any |= j->kernels->modify(&how, at(x, here, computed(j->type)), (char *)at(z, here, computed(j->type)), k, max);
    }
    return any;
}

/* ---- Rows that the kernels modify themselves, on the way ---- */

/* Whether norms are wanted along with it: for losses, and for the logsumexp of maps. */
static bool wants_norms(const struct job *j) {
    return fsm_has_target(j->op) || (j->modifiers && j->modifiers->lse && fsm_is_map(j->op));
}

/* Not what takes a pass of its own, nor norms of half types. */
static bool is_fused(const struct job *j) {
    const fsm_modifiers *m = j->modifiers;
    if (m->softcap > 0 || m->sink || fsm_has_target(j->op)) return false;
    if (m->lse && (!wants_norms(j) || is_half(j->type))) return false;
    return (!m->bias || m->bias_strides[1] == 1) && (!m->where || m->where_strides[1] == 1);
}

/* How the rows from this one on are modified, next to each other along the inner dimension, from one element on. */
static struct fsm_modify how_of(const struct job *j, const struct source *s, size_t first) {
    const fsm_modifiers *m = j->modifiers;
    const int along = j->swapped ? 0 : 2;
    return (struct fsm_modify){
        .temperature = s->temperature,
        .temperature_pitch = step_of(j->inner.count, m->temperature_strides[along / 2]),
        .bias = m->bias ? at(s->bias, (ptrdiff_t)first, m->bias_type) : NULL,
        .bias_type = m->bias_type,
        .bias_pitch = step_of(j->inner.count, m->bias_strides[along]),
        .where = m->where ? s->where + first : NULL,
        .where_pitch = step_of(j->inner.count, m->where_strides[along]),
        .empty = m->empty,
    };
}

/* The largest of no numbers, in place i of an array of the computed type. */
static void *least(const struct job *j, double *numbers, size_t i) {
    static const float f32 = -INFINITY;
    static const double f64 = -INFINITY;
    char *place = (char *)at(numbers, (ptrdiff_t)i, computed(j->type));
    copy(computed(j->type), computed(j->type) == FSM_F64 ? (const void *)&f64 : &f32, 0, 0, place, 0, 0, 1, 1);
    return place;
}

/* ---- Results that are the same throughout ---- */

/* What a row of nothing but -inf becomes, or a part of one. */
static void fill_empty(const struct job *j, fsm_type type, void *y, size_t n) {
    j->kernels->fill(type, y, n, value_of(j, j->modifiers->empty));
}

#endif
