/* Sixteen rows side by side, lane by lane: short rows, transposed; and rows whose elements are apart, such as those along
 * axis 0, which need no transposing. The order of summation is that of one row, so the bits are too. Included by
 * kernels.c alone. */
#ifndef FSM_TILE_H
#define FSM_TILE_H

/* Rows in memory: element i of row r is at [i * step + r * next]. */
struct layout {
    ptrdiff_t next, step;
};

/* A tile holds element i of row r at [i * BATCH + r], and has room for n + W elements of each. Rows whose elements are apart
 * are taken in strips of up to TILES: for each element of them all, whole cache lines next to each other are read and
 * written (a tile at a time takes twice as long: each of its lines is on another page). */
enum { TILES = FSM_STRIP / BATCH };

static inline size_t tile_size(size_t n) { return (n + W) * BATCH; }

/* ---- Into the tile ---- */

static inline void find_maxima(const T *t, size_t rows, size_t n, struct batch *b) {
    for (size_t r = 0; r < rows; r += W) {
        vec m = v_set1(-(T)INFINITY);
        for (size_t i = 0; i < n; i++) m = v_max(v_load(t + i * BATCH + r), m);
        v_store(b->max + r, m);
    }
}

static inline vec load_some(const T *p, size_t k) { return k < W ? v_load_part(p, k, 0) : v_load(p); }

static void fill_from_rows(const T *x, ptrdiff_t next, size_t rows, size_t n, T *t) {
    for (size_t r = 0; r < BATCH; r += W)
        for (size_t i = 0; i < n; i += W) {
            vec m[W];
            EACH (j, W) m[j] = r + j < rows ? load_some(x + (ptrdiff_t)(r + j) * next + i, n - i) : v_set1(0);
            v_transpose(m);
            EACH (j, W) v_store(t + (i + j) * BATCH + r, m[j]);
        }
}

/* Lines are on other pages than the lines before them, which no CPU foresees: they are fetched so many lines early (4 or 16
 * gain less). Along axis 0 of 1000 x 1000 and 512 x 4096 this makes softmax 1.1 times as fast (float64: 1.3). */
enum { EARLY = 8 };

TEMPLATE void fetch_line(const T *line, ptrdiff_t step, size_t left, size_t width, bool for_writing) {
    const T *later = line + (ptrdiff_t)(left > EARLY ? EARLY : 0) * step;
    for (size_t r = 0; r < width; r += LINE)
        for_writing ? __builtin_prefetch(later + r, 1) : __builtin_prefetch(later + r, 0);
}

/* Some whole tiles from the columns next to each other, and their maxima in the same go (1.1 times as fast as to look at the
 * tiles again: memory is what this waits for). */
TEMPLATE void fill_tiles(size_t tiles, const T *x, ptrdiff_t step, size_t n, T *t, struct batch *b) {
    vec most[TILES * BATCH / W];
    EACH (i, tiles * BATCH / W) most[i] = v_set1(-(T)INFINITY);
    for (size_t i = 0; i < n; i++, x += step, t += BATCH) {
        fetch_line(x, step, n - i, tiles * BATCH, false);
        EACH (k, tiles * BATCH / W) {
            vec a = v_load(x + k * W);
            v_store(t + k * W / BATCH * tile_size(n) + k * W % BATCH, a);
            most[k] = v_max(a, most[k]);
        }
    }
    EACH (k, tiles * BATCH / W) v_store(b[k * W / BATCH].max + k * W % BATCH, most[k]);
}

/* Apart: in the same function as what short rows need, it makes these a twelfth slower. */
__attribute__((noinline)) static void fill_from_columns(const T *x, ptrdiff_t step, size_t rows, size_t n, T *t,
                                                        struct batch *b) {
    size_t whole = rows / BATCH;
    _Static_assert(TILES == 4, "one case for each number of tiles");
    switch (whole) {
        case 4:
            fill_tiles(4, x, step, n, t, b);
            break;
        case 3:
            fill_tiles(3, x, step, n, t, b);
            break;
        case 2:
            fill_tiles(2, x, step, n, t, b);
            break;
        case 1:
            fill_tiles(1, x, step, n, t, b);
    }
    x += whole * BATCH;
    t += whole * tile_size(n);
    rows -= whole * BATCH;
    for (size_t i = 0; i < n; i++)
        for (size_t r = 0; r < rows; r += W)
            v_store(t + i * BATCH + r, load_some(x + (ptrdiff_t)i * step + r, rows - r));
    if (rows) find_maxima(t, rows, n, &b[whole]);
}

static void fill_from_anywhere(const T *x, struct layout a, size_t rows, size_t n, T *t) {
    for (size_t i = 0; i < n; i++)
        for (size_t r = 0; r < BATCH; r++)
            t[i * BATCH + r] = r < rows ? x[(ptrdiff_t)i * a.step + (ptrdiff_t)r * a.next] : 0;
}

/* Tiles of up to a strip of rows, and the maximum of each row. */
static inline void fill(const T *x, struct layout a, size_t rows, size_t n, T *t, struct batch *b) {
    if (a.step != 1 && a.next == 1) {
        fill_from_columns(x, a.step, rows, n, t, b);
        return;
    }
    for (; rows; x += BATCH * a.next, t += tile_size(n), b++) {
        size_t some = rows < BATCH ? rows : BATCH;
        if (a.step == 1)
            fill_from_rows(x, a.next, some, n, t);
        else
            fill_from_anywhere(x, a, some, n, t);
        find_maxima(t, some, n, b);
        rows -= some;
    }
}

/* What deliver_to_rows reads beyond n elements, and fill_from_rows alone has set: whatever was there before might raise a flag. */
static void clear_beyond(size_t rows, size_t n, T *t) {
    for (size_t r = 0; r < rows; r += BATCH, t += tile_size(n)) memset(t + n * BATCH, 0, W * BATCH * sizeof(T));
}

/* ---- Out of it, through the last pass ---- */

static inline void store_some(T *p, size_t k, vec a) {
    if (k < W)
        v_store_part(p, k, a);
    else
        v_store(p, a);
}

/* From the last elements of all rows to the first: where rows follow each other without a gap, a row's last vector may run
 * on into the next row, which is written later. */
TEMPLATE void deliver_to_rows(last_pass f, const struct last *l, const T *t, T *y, ptrdiff_t next, size_t rows,
                              size_t n) {
    const T *end = y + rows * n; /* if they do */
    bool dense = next == (ptrdiff_t)n;
    for (size_t i = (n - 1) / W * W + W; i;) {
        i -= W;
        for (size_t r = 0; r < rows; r += W) {
            vec m[W];
            EACH (j, W) m[j] = f(v_load(t + (i + j) * BATCH + r), &l[r / W]);
            v_transpose(m);
            EACH (j, W) {
                T *to = y + (ptrdiff_t)(r + j) * next + i;
                if (r + j < rows) store_some(to, dense && to + W <= end ? W : n - i, m[j]);
            }
        }
    }
}

TEMPLATE void deliver_to_columns(last_pass f, const struct last *l, const T *t, T *y, ptrdiff_t step, size_t rows,
                                 size_t n) {
    size_t whole = rows / BATCH, next = tile_size(n);
    for (size_t i = 0; i < n; i++, y += step, t += BATCH) {
        fetch_line(y, step, n - i, rows, true);
        for (size_t k = 0; k < whole; k++) {
            UNROLL
            for (size_t r = 0; r < BATCH; r += W)
                v_store(y + k * BATCH + r, f(v_load(t + k * next + r), &l[(k * BATCH + r) / W]));
        }
        for (size_t r = whole * BATCH; r < rows; r += W)
            store_some(y + r, rows - r, f(v_load(t + whole * next + r % BATCH), &l[r / W]));
    }
}

TEMPLATE void deliver_anywhere(last_pass f, const struct last *l, const T *t, T *y, struct layout a, size_t rows,
                               size_t n) {
    for (size_t i = 0; i < n; i++) {
        T line[BATCH];
        for (size_t r = 0; r < rows; r += W) v_store(line + r, f(v_load(t + i * BATCH + r), &l[r / W]));
        for (size_t r = 0; r < rows; r++) y[(ptrdiff_t)i * a.step + (ptrdiff_t)r * a.next] = line[r];
    }
}

TEMPLATE void deliver_with(last_pass f, const struct batch *b, const T *t, T *y, struct layout a, size_t rows,
                           size_t n) {
    struct last l[TILES * BATCH / W];
    for (size_t r = 0; r < rows; r += W) {
        const struct batch *of = b + r / BATCH;
        size_t j = r % BATCH;
        l[r / W] = last_of(v_load(of->hi + j), v_load(of->lo + j), v_load(of->peak + j), v_load(of->top + j));
    }
    if (a.step != 1 && a.next == 1) {
        deliver_to_columns(f, l, t, y, a.step, rows, n);
        return;
    }
    for (const struct last *k = l; rows; y += BATCH * a.next, t += tile_size(n), k += BATCH / W) {
        size_t some = rows < BATCH ? rows : BATCH;
        if (a.step == 1)
            deliver_to_rows(f, k, t, y, a.next, some, n);
        else
            deliver_anywhere(f, k, t, y, a, some, n);
        rows -= some;
    }
}

/* ---- Within it: W rows at a time ---- */

struct columns {
    struct base base;
    vec max, count;
    dvec hi[W / DOUBLES][FSM_LANES], lo[W / DOUBLES][FSM_LANES];
};

/* The terms of k elements, some lines apart; 0 in place of those to be skipped. */
TEMPLATE void terms_of_lines(enum use use, bool far, size_t k, struct columns *c, T *const *at, vec *term) {
    vec x[LOCKSTEP];
    EACH (u, k) x[u] = term[u] = v_load(at[u]);
    terms_of(k, far, term, &c->base);
    if (use == STORE)
        EACH (u, k) v_store(at[u], term[u]);
    if (use == SKIP_MAX)
        EACH (u, k) {
            mask top = v_equal(x[u], c->max);
            c->count += v_select(top, v_set1(1), v_set1(0));
            term[u] = v_zero_if(top, term[u]);
        }
}

enum { PAIRS = LOCKSTEP / 2 }; /* of elements whose terms are computed together */

/* The sums of k pairs of elements l and l + 8 of a group. */
TEMPLATE void take_pairs(enum use use, bool far, size_t k, struct columns *c, T *t, size_t l, vec *lane) {
    vec term[LOCKSTEP];
    T *at[LOCKSTEP];
    EACH (u, 2 * k) at[u] = t + (l + u / 2 + u % 2 * FSM_LANES) * BATCH;
    terms_of_lines(use, far, 2 * k, c, at, term);
    EACH (u, k) lane[l + u] = term[2 * u] + term[2 * u + 1];
}

/* k elements that have no other to be added to. */
TEMPLATE void take_singles(enum use use, bool far, size_t k, struct columns *c, T *t, size_t l, vec *lane) {
    T *at[LOCKSTEP];
    EACH (u, k) at[u] = t + (l + u) * BATCH;
    terms_of_lines(use, far, k, c, at, lane + l);
}

/* A row's last group, of n <= FSM_GROUP elements. */
TEMPLATE void last_group(enum use use, bool far, struct columns *c, T *t, size_t n, vec *lane) {
    size_t l = 0, lanes = n < FSM_LANES ? n : FSM_LANES;
    EACH (u, FSM_LANES) lane[u] = v_set1(0);
    for (; l + FSM_LANES + PAIRS <= n; l += PAIRS) take_pairs(use, far, PAIRS, c, t, l, lane);
    for (; l + FSM_LANES < n; l++) take_pairs(use, far, 1, c, t, l, lane);
    for (; l + LOCKSTEP <= lanes; l += LOCKSTEP) take_singles(use, far, LOCKSTEP, c, t, l, lane);
    for (; l < lanes; l++) take_singles(use, far, 1, c, t, l, lane);
}

TEMPLATE void add_to_columns(struct columns *c, size_t from, size_t count, const vec *lane) {
    EACH (l, count) {
        dvec d[W / DOUBLES];
        v_doubles(lane[from + l], d);
        EACH (p, W / DOUBLES) add_double(&c->hi[p][from + l], &c->lo[p][from + l], d[p]);
    }
}

TEMPLATE void sum_columns(enum use use, bool far, struct batch *b, size_t r, T *t, size_t n) {
    struct columns c;
    vec lane[FSM_LANES];
    c.base = base_of(v_load(b->shift + r), v_load(b->base + r));
    c.max = v_load(b->max + r);
    c.count = v_set1(0);
    EACH (p, W / DOUBLES)
        EACH (l, FSM_LANES) c.hi[p][l] = c.lo[p][l] = (dvec){0};
    for (; n > FSM_GROUP; n -= FSM_GROUP, t += FSM_GROUP * BATCH) {
        UNROLL
        for (size_t l = 0; l < FSM_LANES; l += PAIRS) {
            take_pairs(use, far, PAIRS, &c, t, l, lane);
            add_to_columns(&c, l, PAIRS, lane);
        }
    }
    last_group(use, far, &c, t, n, lane);
    add_to_columns(&c, 0, FSM_LANES, lane);
    EACH (p, W / DOUBLES) {
        fold(c.hi[p], c.lo[p]);
        memcpy(b->sum + r + p * DOUBLES, c.hi[p], sizeof(dvec));
        memcpy(b->low + r + p * DOUBLES, c.lo[p], sizeof(dvec));
    }
    for (size_t j = 0; j < W; j++) b->count[r + j] = (double)c.count[j];
}

static void sum_tile(enum use use, struct batch *b, T *t, size_t rows, size_t n) {
    for (size_t r = 0; r < rows; r += W) {
        bool far = any_far(b, r, W);
        if (use == STORE && far)
            sum_columns(STORE, true, b, r, t + r, n);
        else if (use == STORE)
            sum_columns(STORE, false, b, r, t + r, n);
        else if (far)
            sum_columns(SKIP_MAX, true, b, r, t + r, n);
        else
            sum_columns(SKIP_MAX, false, b, r, t + r, n);
    }
}

/* ---- Whole rows of n <= FSM_BLOCK elements, at most a strip ---- */

/* A tile of up to BATCH rows, from the maxima to the closing; norms as kernels.h has them. */
static void reduce_tile(fsm_op op, struct batch *b, T *t, size_t rows, size_t n, double log_n, T *y, ptrdiff_t y_next,
                        T *norms) {
    open_rows(b, BATCH);
    if (op == FSM_SOFTMAX && norms) { /* before the terms take the place of x */
        sum_tile(SKIP_MAX, b, t, rows, n);
        close_log_softmax(b, rows);
        put_norms(b, rows, norms);
    }
    sum_tile(op == FSM_SOFTMAX ? STORE : SKIP_MAX, b, t, rows, n);
    if (op == FSM_SOFTMAX) {
        close_softmax(b, BATCH);
    } else if (op == FSM_LOG_SOFTMAX) {
        close_log_softmax(b, BATCH);
        if (norms) put_norms(b, rows, norms);
    } else {
        close_reduction(b, rows, log_n, y, y_next, norms);
    }
}

static void tilewise(fsm_op op, const T *x, struct layout from, T *y, struct layout to, size_t rows, size_t n,
                     double log_n, T *tiles, T *norms) {
    struct batch b[TILES];
    bool special = false;
    if (rows % BATCH) clear(&b[rows / BATCH]);
    fill(x, from, rows, n, tiles, b);
    if (fsm_is_map(op) && from.step != 1 && to.step == 1) clear_beyond(rows, n, tiles);
    for (size_t r = 0; r < rows; r += BATCH) {
        size_t some = rows - r < BATCH ? rows - r : BATCH;
        reduce_tile(op, &b[r / BATCH], tiles + r / BATCH * tile_size(n), some, n, log_n, y + (ptrdiff_t)r * to.next,
                    to.next, norms ? norms + 2 * r : NULL);
        special |= fsm_is_map(op) && any_special(&b[r / BATCH], some);
    }
    if (op == FSM_LOG_SOFTMAX && special)
        deliver_with(shifted_special, b, tiles, y, to, rows, n);
    else if (op == FSM_LOG_SOFTMAX)
        deliver_with(shifted, b, tiles, y, to, rows, n);
    else if (op == FSM_SOFTMAX && special)
        deliver_with(scaled_special, b, tiles, y, to, rows, n);
    else if (op == FSM_SOFTMAX)
        deliver_with(scaled, b, tiles, y, to, rows, n);
}

#endif
