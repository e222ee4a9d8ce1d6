/* Rows longer than a block, in parts of a block: each has a base of its own, so that they can be summed in any order and
 * by any thread, reading x once; then they are joined in order. Included by kernels.c alone. */
#ifndef FSM_PARTS_H
#define FSM_PARTS_H

#define EXP_PAIR(isa) PASTE(fsm_exp, pair, isa)

/* e^t = (hi + lo) 2^n for t <= 0, or as small as makes no difference. */
struct exp_pair {
    double hi, lo, n;
};

/* One copy an ISA, as TAKE_LOGS. */
struct exp_pair EXP_PAIR(FSM_ISA)(double t);

#if FSM_DOUBLE
struct exp_pair EXP_PAIR(FSM_ISA)(double t) {
    if (!(t > -4000)) return (struct exp_pair){1, 0, -8000};
    vec scale, s, tv = v_set1(t), magic = v_set1(MAGIC);
    v_exp_parts(1, &tv, &magic, &s, &scale);
    vec hi = v_set1(1) + s, lo = s - (hi - v_set1(1));
    return (struct exp_pair){hi[0], lo[0], t_fma(t, FSM_K(LOG2E), MAGIC) - MAGIC};
}
#endif

static void sum_part(fsm_op op, fsm_type type, bool modified, struct batch *b, struct batch *rest,
                     const struct input *in, T *terms, size_t n, bool once, const T *max) {
    enum use use = op != FSM_SOFTMAX ? SKIP_MAX : rest ? STORE_AND_SUM_BOTH : terms ? STORE : ADD;
    if (once && !max && !rest && op == FSM_SOFTMAX && type == OWN_TYPE &&
        sum_once(modified, terms ? STORE_AND_FIND_MAX : ADD_AND_FIND_MAX, b, 0, in, terms, n))
        return;
    b->max[0] = max ? *max : row_max(type, modified, in, n);
    open_rows(b, 1);
    if (!(b->max[0] > -(T)INFINITY)) b->shift[0] = 0; /* nothing, or NaN */
    sum_row(type, modified, use, b, rest, 0, in, terms, n);
}

static void kernel_part(fsm_op op, fsm_type type, const struct fsm_modify *how, struct fsm_part *part, const void *x,
                        void *terms, size_t n, bool once, const void *max, bool norm) {
    struct batch b, rest;
    struct input in;
    set_input(&in, type, x, how, 0);
    bool both = norm && op == FSM_SOFTMAX;
    sum_part(op, type, how, &b, both ? &rest : NULL, &in, terms, n, once, max);
    *part = (struct fsm_part){.max = (double)b.max[0], .shift = (double)b.shift[0], .base = (double)b.base[0]};
    part->sum = (struct fsm_sum){b.sum[0], b.low[0], b.count[0]};
    if (both) part->rest = (struct fsm_sum){rest.sum[0], rest.low[0], rest.count[0]};
}

/* hi + lo times f, the product of the upper parts exact. */
static void multiply(double *hi, double *lo, struct exp_pair f) {
    double p = *hi * f.hi;
    *lo = fma(*hi, f.hi, -p) + (*hi * f.lo + *lo * f.hi);
    *hi = p;
}

/* total += (hi + lo) f. */
static void add_times(struct fsm_sum *total, double hi, double lo, struct exp_pair f) {
    multiply(&hi, &lo, f);
    add_pair(&total->hi, &total->lo, ldexp(hi, (int)f.n), ldexp(lo, (int)f.n));
}

/* a - b, which does not overflow; -4000 and what is below are one. */
static double difference(double a, double b) {
    double half = a * 0.5 - b * 0.5;
    return half > -2000 ? half * 2 : -4000;
}

/* What a part's terms are in the unit of the whole row: times (hi + lo) 2^n. Rows and parts without a finite maximum have
 * no term that counts. */
static struct exp_pair unit_of(const struct fsm_part *part, T shift, T base) {
    if (!isfinite(shift) || !isfinite(part->max)) return (struct exp_pair){1, 0, 0};
    bool same = part->shift == (double)shift; /* else exact wherever the factor is not far below all that counts */
    struct exp_pair f = same ? (struct exp_pair){1, 0, 0} : EXP_PAIR(FSM_ISA)(difference(part->shift, (double)shift));
    f.n += part->base - (double)base;
    return f;
}

/* The sum of a row; without the maxima, if the parts' sums are without theirs. */
static void join_part(bool without, struct fsm_sum *total, const struct fsm_part *part, const struct fsm_sum *sum,
                      const struct batch *b) {
    add_times(total, sum->hi, sum->lo, unit_of(part, b->shift[0], b->base[0]));
    if (!without) return;
    if (part->max == (double)b->max[0]) {
        total->count += sum->count;
    } else if (sum->count > 0) { /* its maxima were left out, but are not the row's */
        struct exp_pair f = EXP_PAIR(FSM_ISA)(difference(part->max, (double)b->shift[0]));
        f.n += BOOST - (double)b->base[0];
        add_times(total, sum->count, 0, f);
    }
}

/* What the last pass takes: the row's result for this part's terms, times two powers of two that are exact. */
static void scale_part(struct fsm_part *part, const struct batch *b) {
    enum { FURTHEST = FSM_DOUBLE ? -1000 : -100 };
    struct exp_pair f = unit_of(part, b->shift[0], b->base[0]);
    double hi = (double)b->hi[0], lo = (double)b->lo[0], down = f.n < FURTHEST ? FURTHEST : f.n, rest = f.n - down;
    multiply(&hi, &lo, f);
    double upper = FSM_DOUBLE ? hi : (double)(T)(hi + lo);
    part->lo = (hi - upper) + lo;
    part->hi = upper;
    part->down = ldexp(1, (int)down);
    part->further = ldexp(1, (int)(rest < FURTHEST ? FURTHEST : rest));
    part->peak = part->max == (double)b->max[0] ? (double)b->peak[0] : -1;
    part->top = (double)b->top[0];
}

static void put_total(struct batch *b, const struct fsm_sum *total) {
    b->sum[0] = total->hi, b->low[0] = total->lo, b->count[0] = total->count;
}

static void kernel_join(fsm_op op, struct fsm_part *parts, size_t count, size_t n, void *y, void *norm) {
    struct batch b;
    clear(&b);
    b.max[0] = -(T)INFINITY;
    for (size_t i = 0; i < count; i++) b.max[0] = (T)parts[i].max > b.max[0] ? (T)parts[i].max : b.max[0];
    open_rows(&b, LANES);
    struct fsm_sum total = {0, 0, 0}, rest = {0, 0, 0};
    for (size_t i = 0; i < count; i++) join_part(op != FSM_SOFTMAX, &total, &parts[i], &parts[i].sum, &b);
    if (op == FSM_SOFTMAX && norm) {
        for (size_t i = 0; i < count; i++) join_part(true, &rest, &parts[i], &parts[i].rest, &b);
        put_total(&b, &rest);
        close_log_softmax(&b, 1);
        put_norms(&b, 1, norm);
    }
    put_total(&b, &total);
    if (op == FSM_SOFTMAX) {
        close_softmax(&b, 1);
        for (size_t i = 0; i < count; i++) scale_part(&parts[i], &b);
    } else if (op == FSM_LOG_SOFTMAX) {
        close_log_softmax(&b, 1);
        if (norm) put_norms(&b, 1, norm);
        for (size_t i = 0; i < count; i++) parts[i].hi = (double)b.hi[0], parts[i].lo = (double)b.lo[0];
    } else {
        close_reduction(&b, 1, op == FSM_LOGMEANEXP ? log_of_count(n) : 0, y, 0, norm);
    }
}

/* ---- The last pass of a part ---- */

/* The terms once more, k vectors of them from element i on. */
TEMPLATE void finish_again_some(fsm_type type, bool modified, bool plain, bool past, size_t k, const struct last *l,
                                const struct base *b, const struct input *in, void *y, size_t i) {
    vec t[LOCKSTEP];
    UNROLL
    for (size_t u = 0; u < k * W; u += LINE) __builtin_prefetch(x_at(type, in->x, i + u + AHEAD));
    read_vectors(type, modified, k, in, i, t);
    terms_of(k, !plain, t, b);
    EACH (u, k) {
        t[u] = plain ? scaled(t[u], l) : scaled_part(t[u], l);
        past ? v_stream(y_at(type, y, i + u * W), t[u]) : store_as(type, y_at(type, y, i + u * W), t[u]);
    }
}

TEMPLATE void finish_again(fsm_type type, bool modified, bool plain, bool past, const struct last *l,
                           const struct base *b, const struct input *in, void *y, size_t n) {
    size_t head = type != OWN_TYPE ? 0 : unaligned(y) < n ? unaligned(y) : n;
    for (size_t i = 0; i < n;) {
        size_t k = i < head ? head : n - i < W ? n - i : W;
        if (k < W) {
            vec t = term_of(!plain, read_part(type, modified, in, i, k, 0), b);
            store_part_as(type, y_at(type, y, i), k, plain ? scaled(t, l) : scaled_part(t, l));
        } else if (n - i < LOCKSTEP * W) {
            finish_again_some(type, modified, plain, past, 1, l, b, in, y, i);
        } else {
            finish_again_some(type, modified, plain, past, LOCKSTEP, l, b, in, y, i);
            k = LOCKSTEP * W;
        }
        i += k;
    }
}

TEMPLATE void finish_as(fsm_type type, bool modified, fsm_op op, const struct fsm_part *p, const struct input *in,
                        const void *terms, void *y, size_t n, bool past) {
    struct last l = {v_set1((T)p->hi),  v_set1((T)p->lo),   v_set1((T)p->peak),
                     v_set1((T)p->top), v_set1((T)p->down), v_set1((T)p->further)};
    struct base b = base_of(v_set1((T)p->shift), v_set1((T)p->base));
    struct input kept = {.x = terms};
    bool plain = p->shift == 0 && p->down == 1 && p->peak < 0 && !isnan(p->hi);
    past = past && type == OWN_TYPE;
#define AGAIN(plain, past) finish_again(type, modified, plain, past, &l, &b, in, y, n)
    if (op == FSM_LOG_SOFTMAX && past)
        apply_with(shifted_special, type, modified, type, true, &l, in, y, n);
    else if (op == FSM_LOG_SOFTMAX)
        apply_with(shifted_special, type, modified, type, false, &l, in, y, n);
    else if (!terms && past)
        plain ? AGAIN(true, true) : AGAIN(false, true);
    else if (!terms)
        plain ? AGAIN(true, false) : AGAIN(false, false);
    else if (plain)
        apply_with(scaled, OWN_TYPE, false, type, false, &l, &kept, y, n);
    else
        apply_with(scaled_part, OWN_TYPE, false, type, false, &l, &kept, y, n);
    if (past) v_streamed();
#undef AGAIN
}

static void kernel_finish(fsm_op op, fsm_type type, const struct fsm_modify *how, const struct fsm_part *p,
                          const void *x, const void *terms, void *y, size_t n, bool past) {
    struct input in;
    set_input(&in, type, x, how, 0);
    AS_TYPE(finish_as, type, how, op, p, &in, terms, y, n, past);
}

#endif
