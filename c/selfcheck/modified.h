/* Rows of half types, and rows that are modified on their way. Included by selfcheck.c alone. */
#ifndef FSM_SELFCHECK_MODIFIED_H
#define FSM_SELFCHECK_MODIFIED_H

/* ---- Half types ---- */

static const struct half {
    fsm_type type;
    const char *name;
    int digits, lowest, highest; /* of the significand; exponents of the smallest and the largest normal numbers */
} halves[] = {{FSM_F16, "f16", 11, -14, 15}, {FSM_BF16, "bf16", 8, -126, 127}};

static float from_half(const struct half *h, uint16_t bits) {
    const int fraction = bits & ((1 << (h->digits - 1)) - 1), field = (bits & 0x7fff) >> (h->digits - 1);
    if (field == h->highest - h->lowest + 2) return fraction ? NAN : bits >> 15 ? -INFINITY : INFINITY;
    const int significand = field ? fraction + (1 << (h->digits - 1)) : fraction;
    return ldexpf(bits >> 15 ? -(float)significand : (float)significand,
                  (field ? field - 1 : 0) + h->lowest + 1 - h->digits);
}

static uint16_t to_half(const struct half *h, float x) {
    const int infinity = (h->highest - h->lowest + 2) << (h->digits - 1), sign = signbit(x) ? 0x8000 : 0;
    if (isnan(x)) return 0x7fff;
    if (x == 0 || isinf(x)) return (uint16_t)(sign | (x == 0 ? 0 : infinity));
    int exponent = ilogbf(x) < h->lowest ? h->lowest : ilogbf(x);
    const int significand = (int)lrint(ldexp(fabs((double)x), h->digits - 1 - exponent));
    const int bits = ((exponent - h->lowest) << (h->digits - 1)) + significand; /* a carry goes into the exponent */
    return (uint16_t)(sign | (bits < infinity ? bits : infinity));
}

/* x rounded to a half type, and its results: those of the rounded x in float32, rounded. */
static void check_half(const struct block *b, const struct half *h, const fsm_isa *isa, fsm_op op, struct result *r) {
    const size_t count = b->rows * b->n, results = ops[op].one ? b->rows : count;
    uint16_t *x = get_memory(count * sizeof *x), *y = get_memory(count * sizeof *y);
    float *wide = get_memory(count * sizeof *wide);
    for (size_t i = 0; i < count; i++) x[i] = to_half(h, ((const float *)b->x)[i]), wide[i] = from_half(h, x[i]);
    if (fsm_run(isa, op, FSM_F32, wide, b->out, b->rows, b->n, 1, NULL, 1) ||
        fsm_run(isa, op, h->type, x, y, b->rows, b->n, 1, NULL, 2))
        fail(r, "%s: an error was returned", h->name);
    for (size_t i = 0; i < results; i++) {
        const float want = ((const float *)b->out)[i];
        if (isnan(want) ? !isnan(from_half(h, y[i])) : y[i] != to_half(h, want))
            fail(r, "%s: %a was rounded to %a", h->name, (double)want, (double)from_half(h, y[i]));
    }
    free(x), free(y), free(wide);
}

/* ---- Modifiers ---- */

/* What modifies some rows, drawn at random: for each of them, each element, or all. */
struct modified {
    fsm_modifiers m;
    void *numbers, *bias, *lse; /* temperatures and then sinks, one a row; one an element */
    unsigned char *where;
    double empty[1];
    bool each; /* whether rows have biases and masks of their own */
};

enum { EVERY = 7 }; /* one block of so many: emulators are slow */

static struct modified draw_modifiers(const struct block *b) {
    const size_t size = types[b->type].size, count = b->rows * b->n, kind = b->turn / EVERY;
    struct modified d = {.numbers = get_memory(2 * b->rows * size), .bias = get_memory(count * size)};
    d.lse = get_memory(b->rows * size);
    d.where = get_memory(count);
    d.each = kind % 2;
    for (size_t i = 0; i < count; i++) put(b->type, d.bias, i, (double)normal(2) * UNIT), d.where[i] = draw() % 4 != 0;
    for (size_t k = 0; k < b->rows; k++) {
        put(b->type, d.numbers, k, (double)(draw() % 1000 + 1) / 256);
        put(b->type, d.numbers, b->rows + k, (double)normal(5) * UNIT);
    }
    if (kind % 3 == 2) put(b->type, d.numbers, 0, (double)INFINITY);
    put(b->type, d.empty, 0, 0.25);
    if (kind % 3 != 0) d.m.temperature = d.numbers;
    if (kind % 5 != 1) d.m.bias = d.bias, d.m.bias_type = b->type;
    if (kind % 5 < 2) d.m.where = d.where;
    if (kind % 4 == 3) d.m.sink = (char *)d.numbers + b->rows * size;
    if (kind % 4 == 1) d.m.softcap = 20;
    d.m.lse = d.lse;
    return d;
}

/* All elements by hand, from b->x to z, a row every `total`; the cap as rows of one. */
static void modify_by_hand(const struct block *b, const fsm_isa *isa, const struct modified *d, char *z, size_t total) {
    const size_t size = types[b->type].size, n = b->n, count = b->rows * n;
    const fsm_modifiers cap = {.softcap = d->m.softcap};
    const bool single = b->type == FSM_F32;
    void *x = get_memory(count * size);
    memcpy(x, b->x, count * size);
    for (size_t i = 0; d->m.temperature && i < count; i++)
        if (single)
            ((float *)x)[i] /= ((float *)d->numbers)[i / n];
        else
            ((double *)x)[i] /= ((double *)d->numbers)[i / n];
    if (cap.softcap > 0) fsm_run_modified(isa, FSM_LOGSUMEXP, b->type, x, x, count, 1, 1, NULL, 1, &cap);
    for (size_t i = 0; i < count; i++) {
        const size_t at = d->each ? i : i % n;
        if (d->m.bias && single) ((float *)x)[i] += ((float *)d->bias)[at];
        if (d->m.bias && !single) ((double *)x)[i] += ((double *)d->bias)[at];
        if (d->m.where && !d->where[at]) put(b->type, x, i, -(double)INFINITY);
        copy(b->type, z + (i / n * total + i % n) * size, (char *)x + i * size);
    }
    free(x);
}

static void check_modified(const struct block *b, const fsm_isa *isa, fsm_op op, struct result *r) {
    const size_t size = types[b->type].size, rows = b->rows, n = b->n, m = ops[op].one ? 1 : n;
    struct modified d = draw_modifiers(b);
    d.m.empty = d.empty;
    const size_t total = n + (d.m.sink ? 1 : 0);
    char *z = get_memory(rows * total * size), *want = get_memory(rows * total * size),
         *got = get_memory(rows * n * size);
    char *columns = get_memory(rows * n * size), *lse = get_memory(rows * size);
    modify_by_hand(b, isa, &d, z, total);
    for (size_t k = 0; k < rows; k++) {
        bool some = false;
        for (size_t i = 0; i < n; i++)
            copy(b->type, columns + (i * rows + k) * size, (char *)b->x + (k * n + i) * size);
        if (d.m.sink) put(b->type, z, k * total + n, get(b->type, d.numbers, rows + k));
        for (size_t i = 0; i < total; i++) some |= !(get(b->type, z, k * total + i) == -(double)INFINITY);
        char *row = want + k * m * size, *all = get_memory(total * size);
        fsm_run(isa, op, b->type, z + k * total * size, all, 1, total, 1, NULL, 1);
        fsm_run(isa, FSM_LOGSUMEXP, b->type, z + k * total * size, lse + k * size, 1, total, 1, NULL, 1);
        for (size_t i = 0; i < m; i++)
            copy(b->type, row + i * size, some || ops[op].one ? all + i * size : (char *)d.empty);
        free(all);
    }
    canonical_nans(b->type, want, rows * m);
    canonical_nans(b->type, lse, rows);
    add_to_digest(r, b->type, want, rows * m);
    for (int turned = 0; turned < 2; turned++) { /* rows, then columns */
        const ptrdiff_t next = turned ? 1 : (ptrdiff_t)n, step = turned ? (ptrdiff_t)rows : 1, own = d.each;
        const ptrdiff_t strides[6] = {0, step, next, 0, step, ops[op].one ? 1 : next};
        d.m.temperature_strides[1] = d.m.sink_strides[1] = d.m.lse_strides[1] = 1;
        d.m.bias_strides[1] = d.m.where_strides[1] = 1;
        d.m.bias_strides[2] = d.m.where_strides[2] = own * (ptrdiff_t)n;
        if (fsm_run_modified(isa, op, b->type, turned ? columns : b->x, got, 1, n, rows, strides, turned ? 2 : 5, &d.m))
            fail(r, "modified: an error was returned");
        canonical_nans(b->type, got, rows * m);
        canonical_nans(b->type, d.lse, rows);
        if (memcmp(d.lse, lse, rows * size)) fail(r, "modified: another logsumexp at n = %zu", n);
        for (size_t k = 0; k < rows; k++)
            for (size_t i = 0; i < m; i++) {
                const size_t place = turned && m > 1 ? i * rows + k : k * m + i;
                if (memcmp(got + place * size, want + (k * m + i) * size, size))
                    fail(r, "modified: other bits at n = %zu", n);
            }
    }
    free(z), free(want), free(got), free(columns), free(lse);
    free(d.numbers), free(d.bias), free(d.where), free(d.lse);
}

#endif
