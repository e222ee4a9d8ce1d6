/* The exact results, in long double. Included by selfcheck.c alone. */
#ifndef FSM_SELFCHECK_EXACT_H
#define FSM_SELFCHECK_EXACT_H

/* Is long double long enough? Valgrind's is not, whatever the compiler says. */
static bool can_compare(void) {
    volatile long double one = 1, more = 0x1p-63L;
    return LDBL_MANT_DIG >= 64 && one + more != one;
}

struct exact {
    long double y, floor; /* errors count in ulp of the larger; floor < 0: not computed */
};

struct row {
    size_t n;
    long double *x, *e;        /* e^(x - max) */
    long double max, sum, log; /* of all; log (sum e^(x - max)), without cancellation */
    bool nan;
};

/* Pairwise, leaving out what equals the maximum. */
static long double sum_below(const struct row *r, size_t from, size_t to) {
    if (to - from > 8) return sum_below(r, from, from + (to - from) / 2) + sum_below(r, from + (to - from) / 2, to);
    long double sum = 0;
    for (size_t i = from; i < to; i++) sum += r->x[i] < r->max ? r->e[i] : 0;
    return sum;
}

static void open_row(struct row *r) {
    size_t count = 0;
    r->max = -(long double)INFINITY;
    r->nan = false;
    for (size_t i = 0; i < r->n; i++) {
        r->nan |= isnan(r->x[i]) != 0;
        if (r->x[i] > r->max) r->max = r->x[i];
    }
    if (!isfinite(r->max)) return;
    for (size_t i = 0; i < r->n; i++) {
        r->e[i] = expl(r->x[i] - r->max);
        count += r->x[i] == r->max;
    }
    long double below = sum_below(r, 0, r->n);
    r->sum = (long double)count + below;
    r->log = logl((long double)count) + log1pl(below / (long double)count);
}

/* Results that cost a logarithm or an exponential each are sampled on long rows. */
static bool sampled(const struct row *r, size_t i) { return r->n < 300 || i % 32 == 5 || i + 4 > r->n; }

static struct exact softmax_at(const struct row *r, size_t i) {
    return (struct exact){r->nan || !isfinite(r->max) ? (long double)NAN : r->e[i] / r->sum, 0};
}
static struct exact log_softmax_at(const struct row *r, size_t i) {
    return (struct exact){r->nan || !isfinite(r->max) ? (long double)NAN : (r->x[i] - r->max) - r->log, 0};
}
static struct exact logsumexp_of(const struct row *r, bool mean) {
    long double log_n = logl((long double)r->n);
    if (r->nan || !isfinite(r->max)) return (struct exact){r->nan ? (long double)NAN : r->max, 0};
    return (struct exact){r->max + (r->log - (mean ? log_n : 0)), mean ? log_n : r->log};
}
static struct exact sigmoid_at(const struct row *r, size_t i) {
    long double x = r->x[i], e = expl(-fabsl(x));
    return (struct exact){isnan(x) ? x : x < 0 ? e / (1 + e) : 1 / (1 + e), sampled(r, i) ? 0 : -1};
}
static struct exact softplus_at(const struct row *r, size_t i) {
    long double x = r->x[i];
    return (struct exact){isnan(x) ? x : (x > 0 ? x : 0) + log1pl(expl(-fabsl(x))), 0};
}

/* Sums of e^(x - base), where no base is so far below that long double overflows. */
static void logcumsumexp(const struct row *r, struct exact *y) {
    long double base = 0, max = -(long double)INFINITY, top = 0, count = 0, below = 0, lost = 0;
    for (size_t i = 0; i < r->n; i++) {
        long double x = r->x[i], more = 0;
        if (isnan(max) || isnan(x)) {
            max = (long double)NAN;
        } else if (x > max) {
            more = count * top;
            if (!isfinite(max) || x - base > 5000) {
                long double to = x - r->max > -5000 ? r->max : x;
                below = isfinite(max) ? (below + more) * expl(base - to) : 0;
                lost = more = 0;
                base = to;
            }
            max = x;
            count = 1;
            top = base == r->max ? r->e[i] : expl(x - base);
        } else if (x == max) {
            count++;
        } else {
            more = base == r->max ? r->e[i] : expl(x - base);
        }
        long double sum = below + (more - lost); /* Kahan */
        lost = (sum - below) - (more - lost);
        below = sum;
        if (!isfinite(max)) {
            y[i] = (struct exact){max, 0};
        } else if (sampled(r, i)) {
            long double log = logl(count) + log1pl(below / (count * top));
            y[i] = (struct exact){max + log, log};
        } else {
            y[i] = (struct exact){0, -1};
        }
    }
}

static void compute_exact(const struct row *r, fsm_op op, struct exact *y) {
    if (ops[op].one) *y = logsumexp_of(r, op == FSM_LOGMEANEXP);
    if (op == FSM_LOGCUMSUMEXP) logcumsumexp(r, y);
    for (size_t i = 0; i < r->n; i++) {
        if (op == FSM_SOFTMAX) y[i] = softmax_at(r, i);
        if (op == FSM_LOG_SOFTMAX) y[i] = log_softmax_at(r, i);
        bool skip = !sampled(r, i);
        if (op == FSM_SIGMOID) y[i] = skip ? (struct exact){0, -1} : sigmoid_at(r, i);
        if (op == FSM_SOFTPLUS) y[i] = skip ? (struct exact){0, -1} : softplus_at(r, i);
    }
}

static long double error_ulp(fsm_type type, double got, struct exact want) {
    if (want.floor < 0) return 0;
    if (isnan(want.y)) return isnan(got) ? 0 : (long double)INFINITY;
    if ((double)want.y == got) return 0; /* also infinities, and what overflows to them */
    int exponent, overflow = type == FSM_F32 ? FLT_MAX_EXP : DBL_MAX_EXP;
    long double size = fmaxl(fabsl(want.y), want.floor);
    frexpl(size, &exponent);
    if (exponent > overflow) return !signbit(got) == !signbit(want.y) && isinf(got) ? 0 : (long double)INFINITY;
    exponent -= types[type].digits;
    if (exponent < types[type].lowest || size == 0) exponent = types[type].lowest;
    return ldexpl(fabsl((long double)got - want.y), -exponent);
}

#endif
