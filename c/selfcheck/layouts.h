/* The same rows elsewhere in memory, on more threads, in place: no bit may change. Included by selfcheck.c alone. */
#ifndef FSM_SELFCHECK_LAYOUTS_H
#define FSM_SELFCHECK_LAYOUTS_H

/* All that a layout may change is where things lie. Row k is outer k / inner, inner k % inner. */
struct layout {
    const char *name;
    size_t outer, inner;
    ptrdiff_t x[3], y[3]; /* strides of outer, n, inner */
    unsigned threads;
    bool plain, in_place; /* strides given as NULL; y is x */
};

struct block {
    fsm_type type;
    size_t rows, n;
    void *x, *y, *in, *out; /* dense, and as a layout has them */
    void *row;              /* scratch */
    size_t turn;            /* which layout: one a block, in turns, since emulators are slow */
};

enum { UNTOUCHED = 0xA5 };

/* Where the first element is, so that the lowest lies one element in, and how many elements that takes. */
static size_t first_of(const ptrdiff_t s[3], const size_t count[3], size_t *extent) {
    ptrdiff_t low = 1, high = 2;
    for (int d = 0; d < 3; d++) {
        ptrdiff_t reach = (ptrdiff_t)(count[d] - 1) * s[d];
        *(reach < 0 ? &low : &high) += reach < 0 ? -reach : reach;
    }
    *extent = (size_t)(low + high);
    return (size_t)low;
}

static void canonical_nans(fsm_type type, void *p, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (isnan(get(type, p, i))) put(type, p, i, (double)NAN);
}

/* Where row k begins, in bytes. */
static ptrdiff_t row_at(const struct layout *l, const ptrdiff_t s[3], size_t first, size_t k, size_t size) {
    ptrdiff_t at = (ptrdiff_t)(k / l->inner) * s[0] + (ptrdiff_t)(k % l->inner) * s[2];
    return ((ptrdiff_t)first + at) * (ptrdiff_t)size;
}

static void check_layout(const struct block *b, const fsm_isa *isa, fsm_op op, const struct layout *l,
                         struct result *r) {
    const size_t size = types[b->type].size, m = ops[op].one ? 1 : b->n;
    const size_t in[3] = {l->outer, b->n, l->inner}, out[3] = {l->outer, m, l->inner};
    const ptrdiff_t *sx = l->x, *sy = l->in_place ? l->x : l->y;
    size_t x_extent, y_extent, x_first = first_of(sx, in, &x_extent), y_first = first_of(sy, out, &y_extent);
    char *x = b->in, *y = l->in_place ? b->in : b->out;
    memset(x, UNTOUCHED, x_extent * size);
    memset(y, UNTOUCHED, y_extent * size);
    for (size_t k = 0; k < b->rows; k++) {
        char *to = x + row_at(l, sx, x_first, k, size), *from = (char *)b->x + k * b->n * size;
        for (size_t i = 0; i < b->n; i++, to += sx[1] * (ptrdiff_t)size) copy(b->type, to, from + i * size);
    }
    const ptrdiff_t strides[6] = {sx[0], sx[1], sx[2], sy[0], sy[1], sy[2]};
    if (fsm_run(isa, op, b->type, x + x_first * size, y + y_first * size, l->outer, b->n, l->inner,
                l->plain ? NULL : strides, l->threads))
        fail(r, "%s: an error was returned", l->name);
    const bool repeated = sx[0] == 0 && l->outer > 1; /* all rows are one: the last that was copied */
    for (size_t k = 0; k < b->rows; k++) {
        char *got = y + row_at(l, sy, y_first, k, size), *row = b->row;
        for (size_t i = 0; i < m; i++, got += sy[1] * (ptrdiff_t)size) {
            copy(b->type, row + i * size, got);
            memset(got, UNTOUCHED, size);
        }
        canonical_nans(b->type, row, m);
        if (memcmp(row, (char *)b->y + (repeated ? b->rows - 1 : k) * m * size, m * size))
            fail(r, "%s: other bits at n = %zu", l->name, b->n);
    }
    if (y[0] != (char)UNTOUCHED || memcmp(y, y + 1, y_extent * size - 1))
        fail(r, "%s: wrote beyond its rows at n = %zu", l->name, b->n);
}

static void check_other_layout(const struct block *b, const fsm_isa *isa, fsm_op op, struct result *r) {
    const size_t rows = b->rows, outer = rows < 2 ? 1 : 2, inner = rows / outer;
    const ptrdiff_t n = (ptrdiff_t)b->n, m = ops[op].one ? 1 : n, k = (ptrdiff_t)rows, w = (ptrdiff_t)inner;
    const ptrdiff_t x = 2 * n + 1, y = 3 * m + 1;
    const struct layout layouts[] = {
        {"rows, 2 threads", rows, 1, {n, 1, 1}, {m, 1, 1}, 2, true, false},
        {"rows in place, 5 threads", rows, 1, {n, 1, 1}, {m, 1, 1}, 5, true, !ops[op].one},
        {"columns", 1, rows, {n * k, k, 1}, {m * k, k, 1}, 1, true, false},
        {"columns in place, 5 threads", 1, rows, {n * k, k, 1}, {m * k, k, 1}, 5, true, !ops[op].one},
        {"rows of columns, 2 threads", outer, inner, {n * w, w, 1}, {m * w, w, 1}, 2, true, false},
        {"apart, 5 threads", outer, inner, {x * w, 2, x}, {y * w, 3, y}, 5, false, false},
        {"reversed", rows, 1, {-n - 1, -1, 1}, {-m - 2, -1, 1}, 1, false, false},
        {"reversed rows", rows, 1, {-n - 1, 1, 1}, {-m - 2, 1, 1}, 1, false, false},
        {"with gaps", rows, 1, {n + 5, 1, 1}, {m + 3, 1, 1}, 1, false, false},
        {"one row repeated", rows, 1, {0, 1, 1}, {m, 1, 1}, 1, false, false},
    };
    check_layout(b, isa, op, &layouts[b->turn % (sizeof layouts / sizeof *layouts)], r);
}

#endif
