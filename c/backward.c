/* Gradients of arrays: from arrays to rows, as rows.c does it, with one array more. */
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#include "dispatch.h"
#include "pool.h"

#include "job.h"

/* The work, in which x is the y of the function, and y is dx; and where g lies beside them. */
struct back {
    struct job job; /* first: tasks are given this alone */
    const char *g;
    ptrdiff_t g_outer, g_row, g_inner;
};

static const void *g_of(const struct back *b, size_t outer, size_t inner) {
    return at(b->g, (ptrdiff_t)outer * b->g_outer + (ptrdiff_t)inner * b->g_inner, b->job.type);
}

/* Elements next to each other, and what lies between two such rows of each array. */
struct lines {
    const void *g, *y;
    void *dx;
    ptrdiff_t g_pitch, y_pitch, dx_pitch;
};

/* ---- Rows of at most a block ---- */

static void run_half_rows(const struct job *j, struct lines l, size_t rows, size_t n) {
    float g[FSM_BLOCK], y[FSM_BLOCK];
    const ptrdiff_t pitch = (ptrdiff_t)n;
    for (size_t some = FSM_BLOCK / n; rows; rows -= some) {
        if (some > rows) some = rows;
        j->kernels->widen(j->type, l.g, l.g_pitch, g, pitch, some, n);
        j->kernels->widen(j->type, l.y, l.y_pitch, y, pitch, some, n);
        j->kernels->vjp(j->op, g, pitch, y, pitch, y, pitch, some, n, false);
        j->kernels->narrow(j->type, y, pitch, l.dx, l.dx_pitch, some, n);
        l.g = at(l.g, (ptrdiff_t)some * l.g_pitch, j->type);
        l.y = at(l.y, (ptrdiff_t)some * l.y_pitch, j->type);
        l.dx = (char *)at(l.dx, (ptrdiff_t)some * l.dx_pitch, j->type);
    }
}

static void run_rows(const struct job *j, struct lines l, size_t rows, size_t n) {
    if (is_half(j->type))
        run_half_rows(j, l, rows, n);
    else
        j->kernels->vjp(j->op, l.g, l.g_pitch, l.y, l.y_pitch, l.dx, l.dx_pitch, rows, n, j->past);
}

/* ---- A longer row, in parts, which threads may share ---- */

struct long_row {
    const struct job *job;
    const char *g, *y;
    char *dx;
    struct fsm_dot *dots;
};

static bool is_long(const struct job *j) { return j->row.count > FSM_BLOCK; }
static size_t parts_of(const struct job *j) { return (j->row.count + FSM_BLOCK - 1) / FSM_BLOCK; }
static size_t bytes_of_dots(const struct job *j) {
    return is_long(j) ? (parts_of(j) * sizeof(struct fsm_dot) + LINE - 1) / LINE * LINE : 0;
}

/* A part of a row, its half types widened into tiles, where dx goes, too. */
struct part {
    const void *g, *y;
    void *dx;
    size_t first, n;
};
static struct part part_of(const struct long_row *r, size_t i, float *g, float *y) {
    const struct job *j = r->job;
    const size_t first = i * FSM_BLOCK, left = j->row.count - first, n = left < FSM_BLOCK ? left : FSM_BLOCK;
    const char *from_g = at(r->g, (ptrdiff_t)first, j->type), *from_y = at(r->y, (ptrdiff_t)first, j->type);
    if (!is_half(j->type)) return (struct part){from_g, from_y, (char *)at(r->dx, (ptrdiff_t)first, j->type), first, n};
    j->kernels->widen(j->type, from_g, 0, g, 0, 1, n);
    j->kernels->widen(j->type, from_y, 0, y, 0, 1, n);
    return (struct part){g, y, y, first, n};
}

static void run_dot(void *row, size_t i) {
    struct long_row *r = row;
    float g[FSM_BLOCK], y[FSM_BLOCK];
    struct part p = part_of(r, i, g, y);
    r->dots[i] = r->job->kernels->dot(r->job->op, p.g, p.y, p.n);
}

static void run_pull(void *row, size_t i) {
    struct long_row *r = row;
    const struct job *j = r->job;
    float g[FSM_BLOCK], y[FSM_BLOCK];
    struct part p = part_of(r, i, g, y);
    j->kernels->pull(j->op, &r->dots[i], p.g, p.y, p.dx, p.n, j->past);
    if (is_half(j->type)) j->kernels->narrow(j->type, y, 0, (char *)at(r->dx, (ptrdiff_t)p.first, j->type), 0, 1, p.n);
}

/* `beside` is memory, bytes_of_dots of it. */
static void run_long(const struct job *j, const void *g, const void *y, void *dx, char *beside, unsigned threads) {
    struct long_row r = {j, g, y, dx, (struct fsm_dot *)(void *)beside};
    fsm_pool_run(run_dot, &r, parts_of(j), threads);
    j->kernels->join_dots(r.dots, parts_of(j));
    fsm_pool_run(run_pull, &r, parts_of(j), threads);
}

/* ---- Rows that lie in one piece ---- */

static void run_task(void *job, size_t index) {
    const struct back *b = job;
    const struct job *j = job;
    const struct task t = task_of(j, index);
    const struct lines l = {g_of(b, t.outer, t.inner), t.x, t.y, b->g_inner, j->inner.x, j->inner.y};
    run_rows(j, l, t.rows, j->row.count);
}

static void run_task_long(void *job, size_t index) {
    struct job *j = job;
    const struct task t = task_of(j, index);
    size_t mine = take_piece(j);
    run_long(j, g_of(job, t.outer, t.inner), t.x, t.y, piece(j, mine), 1);
    give_back(j, mine);
}

/* Fewer rows than threads: these share each of them. */
static fsm_status share_rows(struct back *b, unsigned threads) {
    struct job *j = &b->job;
    char *beside = malloc(bytes_of_dots(j));
    if (!beside) return FSM_NO_MEMORY;
    for (size_t o = 0; o < j->outer.count; o++)
        for (size_t i = 0; i < j->inner.count; i++)
            run_long(j, g_of(b, o, i), x_row(j, o, i), y_row(j, o, i), beside, threads);
    free(beside);
    return FSM_OK;
}

static fsm_status run_in_place(struct back *b, unsigned threads) {
    struct job *j = &b->job;
    const size_t n = j->row.count, rows = j->outer.count * j->inner.count;
    j->past = j->kernels->streams && !is_half(j->type) && rows * n * size_of[j->type] >= PAST_CACHE;
    group_rows(j, n < CHUNK ? CHUNK / n : 1);
    if (is_long(j) && threads > 1 && rows < 4 * (size_t)threads) return share_rows(b, threads);
    if (is_long(j)) return run_with_scratch(run_task_long, j, bytes_of_dots(j), threads);
    fsm_pool_run(run_task, b, tasks_of(j), threads);
    return FSM_OK;
}

/* ---- Rows that lie side by side ---- */

static void run_task_columns(void *job, size_t index) {
    const struct back *b = job;
    const struct job *j = job;
    const struct task t = task_of(j, index);
    j->kernels->vjp_columns(j->op, g_of(b, t.outer, t.inner), b->g_row, t.x, j->row.x, t.y, j->row.y, t.rows,
                            j->row.count);
}

static fsm_status run_columns(struct back *b, unsigned threads) {
    const size_t many = CHUNK / b->job.row.count / FSM_STRIP * FSM_STRIP;
    group_rows(&b->job, many < FSM_STRIP ? FSM_STRIP : many);
    fsm_pool_run(run_task_columns, b, tasks_of(&b->job), threads);
    return FSM_OK;
}

/* ---- Rows whose elements are apart: gathered, worked on there, and scattered ---- */

static size_t bytes_of_tile(const struct job *j, size_t rows) { return rows * (j->row.count + PAD) * size_of[j->type]; }

static void run_task_gathered(void *job, size_t index) {
    struct back *b = job;
    struct job *j = job;
    const struct task t = task_of(j, index);
    const size_t mine = take_piece(j), n = j->row.count;
    const ptrdiff_t pitch = (ptrdiff_t)n + PAD;
    char *beside = piece(j, mine), *g = beside + bytes_of_dots(j), *y = g + bytes_of_tile(j, j->together);
    copy(j->type, g_of(b, t.outer, t.inner), b->g_inner, b->g_row, g, pitch, 1, t.rows, n);
    copy(j->type, t.x, j->inner.x, j->row.x, y, pitch, 1, t.rows, n);
    if (!is_long(j)) {
        run_rows(j, (struct lines){g, y, y, pitch, pitch, pitch}, t.rows, n);
    } else {
        for (size_t i = 0; i < t.rows; i++) {
            char *row = (char *)at(y, (ptrdiff_t)i * pitch, j->type);
            run_long(j, at(g, (ptrdiff_t)i * pitch, j->type), row, row, beside, 1);
        }
    }
    if (j->row.y == 1)
        copy(j->type, y, pitch, 1, t.y, j->inner.y, 1, t.rows, n);
    else
        copy(j->type, y, 1, pitch, t.y, j->row.y, j->inner.y, n, t.rows);
    give_back(j, mine);
}

static fsm_status run_gathered(struct back *b, unsigned threads) {
    struct job *j = &b->job;
    const size_t fits = square_of(2 * bytes_of_tile(j, 1)), many = CHUNK / j->row.count / SQUARE * SQUARE;
    group_rows(j, fits < SQUARE || many < SQUARE ? fits : many);
    return run_with_scratch(run_task_gathered, j, bytes_of_dots(j) + 2 * bytes_of_tile(j, j->together), threads);
}

/* ---- All of it ---- */

static size_t distance(ptrdiff_t stride) { return (size_t)(stride < 0 ? -stride : stride); }

/* Rows of the inner dimension are worked on together: those that lie closer, if they are enough. */
static void choose_inner(struct back *b) {
    struct job *j = &b->job;
    const bool nearer = j->outer.count > 1 && distance(j->outer.x) < distance(j->inner.x);
    const bool few = j->inner.count < SQUARE && j->outer.count > j->inner.count;
    if (!few && !(nearer && j->outer.count >= SQUARE)) return;
    const struct dim outer = j->outer;
    const ptrdiff_t g = b->g_outer;
    j->outer = j->inner, b->g_outer = b->g_inner;
    j->inner = outer, b->g_inner = g;
}

fsm_status fsm_vjp(const fsm_isa *isa, fsm_op op, fsm_type type, const void *g, const void *y, void *dx, size_t outer,
                   size_t n, size_t inner, const ptrdiff_t *strides, unsigned threads) {
    if ((op != FSM_SOFTMAX && op != FSM_LOG_SOFTMAX) || (unsigned)type >= FSM_TYPE_COUNT) return FSM_INVALID;
    if (!outer || !n || !inner) return FSM_OK;
    const ptrdiff_t in = (ptrdiff_t)inner, all = (ptrdiff_t)n * in, dense[9] = {all, in, 1, all, in, 1, all, in, 1};
    const ptrdiff_t *s = strides ? strides : dense;
    struct back b = {.g = g, .g_outer = step_of(outer, s[0]), .g_row = s[1], .g_inner = step_of(inner, s[2])};
    b.job.kernels = fsm_kernels_of(isa, type);
    b.job.op = op, b.job.type = type;
    b.job.x = y, b.job.y = dx;
    b.job.outer = (struct dim){outer, step_of(outer, s[3]), step_of(outer, s[6])};
    b.job.row = (struct dim){n, s[4], s[7]};
    b.job.inner = (struct dim){inner, step_of(inner, s[5]), step_of(inner, s[8])};
    choose_inner(&b);
    const bool in_place = n == 1 || (b.g_row == 1 && b.job.row.x == 1 && b.job.row.y == 1);
    const bool columns = b.g_inner == 1 && b.job.inner.x == 1 && b.job.inner.y == 1 && b.job.inner.count >= SQUARE;
    return in_place                    ? run_in_place(&b, threads)
           : columns && !is_half(type) ? run_columns(&b, threads)
                                       : run_gathered(&b, threads);
}
