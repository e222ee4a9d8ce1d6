/* Losses and gradients. Included by selfcheck.c alone. */
#ifndef FSM_SELFCHECK_LOSSES_H
#define FSM_SELFCHECK_LOSSES_H

/* ---- Losses ---- */

/* Against softmax (b->y) and log_softmax, taken apart by hand; the last of several rows is ignored. */
static void check_loss(const struct block *b, const fsm_isa *isa, struct result *r) {
    const size_t size = types[b->type].size, rows = b->rows, n = b->n, count = rows * n;
    const bool single = b->type == FSM_F32;
    char *logs = get_memory(count * size), *columns = get_memory(count * size), *got = get_memory(2 * rows * size);
    char *numbers = get_memory(rows * size), *gradients[2] = {get_memory(count * size), get_memory(count * size)};
    int64_t *targets = get_memory(rows * sizeof *targets);
    fsm_modifiers m = {.target = targets, .target_strides = {0, 1}, .ignored = -7};
    m.scale = numbers, m.scale_strides[1] = m.log_prob_strides[1] = 1;
    m.log_prob = got + rows * size;
    fsm_run(isa, FSM_LOG_SOFTMAX, b->type, b->x, logs, rows, n, 1, NULL, 1);
    canonical_nans(b->type, logs, count);
    for (size_t k = 0; k < rows; k++) {
        targets[k] = k && k + 1 == rows ? m.ignored : (int64_t)(draw() % n);
        put(b->type, numbers, k, b->turn % 2 ? 1 : (double)(draw() % 1000 + 1) / 256);
        for (size_t i = 0; i < n; i++)
            copy(b->type, columns + (i * rows + k) * size, (char *)b->x + (k * n + i) * size);
    }
    for (int turned = 0; turned < 2; turned++) {
        const ptrdiff_t next = turned ? 1 : (ptrdiff_t)n, step = turned ? (ptrdiff_t)rows : 1;
        const ptrdiff_t strides[6] = {0, step, next, 0, step, next}, one[6] = {0, step, next, 0, 1, 1};
        const void *x = turned ? columns : b->x;
        char *g = gradients[turned];
        if (fsm_run_modified(isa, FSM_LOSS_GRAD, b->type, x, g, 1, n, rows, strides, 3, &m) ||
            fsm_run_modified(isa, FSM_LOG_PROB, b->type, x, got, 1, n, rows, one, 1, &m))
            fail(r, "loss: an error was returned");
        canonical_nans(b->type, got, 2 * rows);
        canonical_nans(b->type, g, count);
        for (size_t k = 0; k < rows; k++) {
            const bool ignored = targets[k] == m.ignored;
            const size_t t = ignored ? 0 : (size_t)targets[k];
            const double want = ignored ? 0 : get(b->type, logs, k * n + t), s = get(b->type, numbers, k);
            for (int twice = 0; twice < 2; twice++) {
                const double log_prob = get(b->type, got, k + (twice ? rows : 0));
                if (!(log_prob == want || (isnan(log_prob) && isnan(want)))) fail(r, "loss: other bits at n = %zu", n);
            }
            for (size_t i = 0; i < n; i++) {
                const size_t place = turned ? i * rows + k : k * n + i;
                const double p = get(b->type, b->y, k * n + i), slope = get(b->type, g, place);
                const double exact = ignored ? 0 : single ? (double)((float)p * (float)s) : p * s;
                const bool near = fabs(slope - (p - 1) * s) <= (single ? 1e-6 : 1e-15) * s;
                if (isnan(slope) ? !isnan(exact) : !ignored && i == t ? !near : slope != exact)
                    fail(r, "loss: a wrong gradient at n = %zu", n);
                if (turned && memcmp(g + place * size, gradients[0] + (k * n + i) * size, size))
                    fail(r, "loss: another gradient in columns at n = %zu", n);
            }
        }
    }
    add_to_digest(r, b->type, gradients[0], count);
    free(logs), free(columns), free(got), free(numbers), free(targets), free(gradients[0]), free(gradients[1]);
}

/* ---- Gradients ---- */

/* The first row's against the formulas. */
static void check_vjp_errors(const struct block *b, fsm_op op, const void *g, const void *dx, struct result *r) {
    long double sum = 0;
    for (size_t i = 0; i < b->n; i++)
        sum += (long double)get(b->type, g, i) * (op == FSM_SOFTMAX ? (long double)get(b->type, b->y, i) : 1);
    for (size_t i = 0; i < b->n; i += b->n < 300 ? 1 : 32) {
        const long double gi = get(b->type, g, i), y = get(b->type, b->y, i), e = op == FSM_SOFTMAX ? y : expl(y);
        const long double own = op == FSM_SOFTMAX ? y * gi : gi, other = e * sum;
        const struct exact want = {op == FSM_SOFTMAX ? y * (gi - sum) : own - other, fmaxl(fabsl(own), fabsl(other))};
        const long double error = error_ulp(b->type, get(b->type, dx, i), want);
        if (!(error <= 4)) fail(r, "vjp: %Lg ulp off at n = %zu", error, b->n);
    }
}

/* Rows, columns, and all in reverse order: where element i of row k is, and the strides of all three arrays. */
static size_t place_of(const struct block *b, int layout, size_t k, size_t i) {
    const size_t place = k * b->n + i;
    return layout == 0 ? place : layout == 1 ? i * b->rows + k : b->rows * b->n - 1 - place;
}

static void check_vjp(const struct block *b, const fsm_isa *isa, fsm_op op, bool accuracy, struct result *r) {
    const size_t size = types[b->type].size, n = b->n, count = b->rows * n;
    const ptrdiff_t s[3][3] = {{(ptrdiff_t)n, 1, 1}, {1, (ptrdiff_t)b->rows, 1}, {-(ptrdiff_t)n, -1, 1}};
    char *g = get_memory(count * size), *want = get_memory(count * size);
    char *in = get_memory(count * size), *out = get_memory(count * size);
    size_t left = count;
    do put(b->type, g, left - 1, (double)normal(1) * UNIT);
    while (--left);
    if (fsm_vjp(isa, op, b->type, g, b->y, want, b->rows, n, 1, NULL, 1)) fail(r, "vjp: an error was returned");
    canonical_nans(b->type, want, count);
    add_to_digest(r, b->type, want, count);
    if (accuracy) check_vjp_errors(b, op, g, want, r);
    for (int l = 0; l < 3; l++) {
        const ptrdiff_t *a = s[l], strides[9] = {a[0], a[1], a[2], a[0], a[1], a[2], a[0], a[1], a[2]};
        const size_t first = place_of(b, l, 0, 0) * size;
        for (size_t i = 0; i < count; i++) {
            copy(b->type, in + place_of(b, l, i / n, i % n) * size, g + i * size);
            copy(b->type, out + place_of(b, l, i / n, i % n) * size, (char *)b->y + i * size);
        }
        if (fsm_vjp(isa, op, b->type, in + first, out + first, (l ? out : in) + first, l == 1 ? 1 : b->rows, n,
                    l == 1 ? b->rows : 1, strides, 5))
            fail(r, "vjp: an error was returned");
        canonical_nans(b->type, l ? out : in, count);
        for (size_t i = 0; i < count; i++)
            if (memcmp((l ? out : in) + place_of(b, l, i / n, i % n) * size, want + i * size, size))
                fail(r, "vjp: other bits in layout %d at n = %zu", l, n);
    }
    free(g), free(want), free(in), free(out);
}

#endif
