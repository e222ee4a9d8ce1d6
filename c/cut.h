/* The masked ends of rows, which are cut off: causal masks, padding. Included by rows.c alone. */
#ifndef FSM_CUT_H
#define FSM_CUT_H

/* The elements of some rows that are worked on; the others are masked in all of them. */
struct cut {
    size_t from, to;
};

enum {
    SOME = 64,  /* bytes of a mask looked at together */
    WORTH = 64, /* elements of a row from which on it is worth looking */
    ROUND = 64, /* elements that are summed together at most */
};

static bool is_masked(const unsigned char *where) {
    uint64_t any = 0, word;
    for (size_t i = 0; i < SOME; i += sizeof word) {
        memcpy(&word, where + i, sizeof word);
        any |= word;
    }
    return !any;
}
static size_t first_kept(const unsigned char *where, size_t end) {
    size_t i = 0;
    while (i + SOME <= end && is_masked(where + i)) i += SOME;
    while (i < end && !where[i]) i++;
    return i;
}
static size_t last_kept(const unsigned char *where, size_t begin, size_t end) {
    while (begin + SOME <= end && is_masked(where + end - SOME)) end -= SOME;
    while (begin < end && !where[end - 1]) end--;
    return end;
}

/* Whole groups at the front, so that sums are added up in the same order; as many at the end as are summed together, which is
 * faster than some alone; and no long rows, which are cut into parts elsewhere. A
 * mean counts all elements, and a sink has its place after them. */
static struct cut cut_of(const struct job *j, size_t outer, size_t inner, size_t rows) {
    const fsm_modifiers *m = j->modifiers;
    size_t n = j->row.count;
    if (!m->where || m->where_strides[1] != 1 || m->sink || n < WORTH || n > FSM_BLOCK || j->op == FSM_LOGMEANEXP)
        return (struct cut){0, n};
    struct cut c = {n, 0};
    for (size_t r = 0; r < rows; r++) {
        const unsigned char *where = source_of(j, NULL, outer, inner + r).where;
        c.from = first_kept(where, c.from);
        c.to = last_kept(where, c.to, n);
    }
    if (c.from >= c.to) return (struct cut){0, FSM_GROUP};
    c.from = c.from / FSM_GROUP * FSM_GROUP;
    c.to = c.from + (c.to - c.from + ROUND - 1) / ROUND * ROUND;
    if (c.to > n) c.to = n;
    return c;
}

/* The results of what was cut off: NaN in a row of NaN, else what -inf gives. */
static void fill_ends(const struct job *j, fsm_type type, char *row, struct cut c) {
    double first;
    const char *kept = at(row, (ptrdiff_t)c.from, type);
    if (is_half(type)) {
        float wide;
        j->kernels->widen(type, kept, 0, &wide, 0, 1, 1);
        first = (double)wide;
    } else {
        first = value_of(j, kept);
    }
    double value = isnan(first) ? first : j->op == FSM_LOG_SOFTMAX ? -(double)INFINITY : 0;
    j->kernels->fill(type, row, c.from, value);
    j->kernels->fill(type, (char *)at(row, (ptrdiff_t)c.to, type), j->row.count - c.to, value);
}

#endif
