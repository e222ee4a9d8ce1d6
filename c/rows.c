/* From arrays to rows: layouts, tiles and threads. Knows no instruction set and does no arithmetic on elements. */
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "dispatch.h"
#include "pool.h"

enum {
    /* Bytes of a float32 row from which on reading it twice and computing its terms twice is faster than writing and reading
     * its terms once more (by 2 %; at half that size 10 % slower). */
    PAST_MEMORY = 64 << 20,
    /* Bytes of a row from which on, with its results, it does not stay in the second level of the cache, and is better read
     * once: 1.07 to 1.15 times as fast (of shorter ones 0.91 to 1). */
    READ_ONCE = 3 << 17,
    /* Elements of a half type's row up to which its terms are kept: 1.45 times as fast (softmax; log_softmax 1.1). At twice
     * as many 1.3, but log_softmax slower; of 16 million it would take three times as long. */
    MOST_TERMS = 1 << 19,
};

#include "job.h"
#include "prepare.h"
#include "target.h"
#include "long.h"
#include "cut.h"
#include "modified.h"
#include "fused.h"

/* ---- Rows that lie in one piece ---- */

static void run_task(void *job, size_t index) {
    const struct job *j = job;
    struct task t = task_of(j, index);
    j->kernels->rows(j->op, j->type, NULL, t.x, j->inner.x, t.y, j->inner.y, t.rows, j->row.count, NULL, NULL);
}

static fsm_status run_in_place(struct job *j, unsigned threads) {
    size_t n = j->row.count, rows = j->outer.count * j->inner.count;
    group_rows(j, n < CHUNK ? CHUNK / n : 1);
    size_t bytes = n * size_of[j->type];
    if (j->kernels->streams && !is_half(j->type))
        j->again = j->past =
            j->op == FSM_LOG_SOFTMAX ? bytes * rows >= PAST_CACHE : j->type == FSM_F32 && bytes >= PAST_MEMORY;
    if (is_long(j)) return run_whole_long(j, threads);
    fsm_pool_run(run_task, j, tasks_of(j), threads);
    return FSM_OK;
}

/* ---- Rows whose elements are apart ---- */

static void run_task_apart(void *job, size_t index) {
    struct job *j = job;
    struct task t = task_of(j, index);
    size_t mine = take_piece(j);
    ptrdiff_t from[2] = {j->inner.x, j->row.x}, to[2] = {j->inner.y, j->row.y};
    j->kernels->apart(j->op, t.x, from, t.y, to, t.rows, j->row.count, piece(j, mine));
    give_back(j, mine);
}

/* Rows of a half type that cannot be taken block by block. */
static bool is_whole_half(const struct job *j) { return is_half(j->type) && !fsm_is_blockwise(j->op); }

/* What is needed beside the rows: what a long one does; a row of a half type as float32. */
static size_t bytes_beside(const struct job *j) {
    if (is_whole_half(j)) return j->row.count * sizeof(float);
    return is_long(j) ? bytes_for_long(j) : 0;
}

/* Where the kernels want rows in one piece, they are gathered, worked on in place, and scattered. */
static void run_task_gathered(void *job, size_t index) {
    struct job *j = job;
    struct task t = task_of(j, index);
    size_t mine = take_piece(j), n = j->row.count;
    char *tile = piece(j, mine) + bytes_beside(j);
    ptrdiff_t pitch = (ptrdiff_t)n + PAD;
    copy(j->type, t.x, j->inner.x, j->row.x, tile, pitch, 1, t.rows, n);
    bool one = fsm_is_reduction(j->op);
    if (is_whole_half(j)) {
        float *row = (float *)(void *)piece(j, mine);
        for (size_t i = 0; i < t.rows; i++) {
            j->kernels->widen(j->type, at(tile, (ptrdiff_t)i * pitch, j->type), 0, row, 0, 1, n);
            j->kernels->rows(j->op, FSM_F32, NULL, row, 0, row, 0, 1, n, NULL, NULL);
            j->kernels->narrow(j->type, row, 0, (char *)at(tile, (ptrdiff_t)i * pitch, j->type), 0, 1, n);
        }
    } else if (!is_long(j)) {
        j->kernels->rows(j->op, j->type, NULL, tile, pitch, one ? t.y : tile, one ? j->inner.y : pitch, t.rows, n, NULL,
                         NULL);
    } else {
        for (size_t i = 0; i < t.rows; i++) {
            char *row = tile + i * (size_t)pitch * size_of[j->type];
            char *number = (char *)t.y + (ptrdiff_t)i * j->inner.y * (ptrdiff_t)size_of[j->type];
            run_long(j, t.outer, t.inner + i, row, one ? number : row, piece(j, mine), 1);
        }
    }
    if (!one) copy(j->type, tile, 1, pitch, t.y, j->row.y, j->inner.y, n, t.rows);
    give_back(j, mine);
}

static fsm_status run_strided(struct job *j, unsigned threads) {
    size_t n = j->row.count, size = size_of[j->type];
    if (fsm_is_blockwise(j->op) && n <= FSM_BLOCK && !is_half(j->type)) {
        group_rows(j, n < CHUNK / FSM_STRIP ? CHUNK / n / FSM_STRIP * FSM_STRIP : FSM_STRIP);
        return run_with_scratch(run_task_apart, j, FSM_TILE(n) * size, threads);
    }
    size_t row_bytes = (n + PAD) * size;
    group_rows(j, square_of(row_bytes));
    return run_with_scratch(run_task_gathered, j, bytes_beside(j) + j->together * row_bytes, threads);
}

/* ---- Rows of nothing ---- */

static double of_nothing(fsm_op op) { return op == FSM_LOGSUMEXP ? -INFINITY : op == FSM_LOG_PROB ? 0 : NAN; }

static fsm_status fill_empty_rows(const struct job *j) {
    bool one = fsm_is_reduction(j->op), lse = j->modifiers && j->modifiers->lse;
    for (size_t o = 0; o < j->outer.count; o++)
        for (size_t i = 0; i < j->inner.count; i++) {
            if (one) put_number(j, j->type, y_row(j, o, i), of_nothing(j->op));
            if (lse) put_number(j, computed(j->type), lse_of(j, o, i), of_nothing(FSM_LOGSUMEXP));
            void *log_prob =
                j->modifiers ? number_of(j, j->modifiers->log_prob, j->modifiers->log_prob_strides, o, i) : NULL;
            if (log_prob) put_number(j, computed(j->type), log_prob, 0);
        }
    return FSM_OK;
}

/* ---- Contiguous elements on their own need no rows ---- */

static size_t all_elements(const struct job *j) { return j->outer.count * j->row.count * j->inner.count; }

static void run_elements(void *job, size_t index) {
    const struct job *j = job;
    size_t first = index * j->together, left = all_elements(j) - first;
    size_t offset = first * size_of[j->type];
    size_t n = left < j->together ? left : j->together;
    j->kernels->rows(j->op, j->type, NULL, j->x + offset, 0, j->y + offset, 0, 1, n, NULL, NULL);
}

static void swap(struct dim *a, struct dim *b) {
    struct dim c = *a;
    *a = *b;
    *b = c;
}

static size_t distance(struct dim d) { return (size_t)(d.x < 0 ? -d.x : d.x); }

fsm_status fsm_run(const fsm_isa *isa, fsm_op op, fsm_type type, const void *x, void *y, size_t outer, size_t n,
                   size_t inner, const ptrdiff_t *strides, unsigned threads) {
    return fsm_run_modified(isa, op, type, x, y, outer, n, inner, strides, threads, NULL);
}

fsm_status fsm_run_modified(const fsm_isa *isa, fsm_op op, fsm_type type, const void *x, void *y, size_t outer,
                            size_t n, size_t inner, const ptrdiff_t *strides, unsigned threads,
                            const fsm_modifiers *modifiers) {
    if ((unsigned)op >= FSM_OP_COUNT || (unsigned)type >= FSM_TYPE_COUNT) return FSM_INVALID;
    if (modifiers && !fsm_is_blockwise(op)) return FSM_INVALID;
    if (fsm_has_target(op) && (!modifiers || !modifiers->target || modifiers->empty)) return FSM_INVALID;
    const bool one = fsm_is_reduction(op);
    if (!outer || !inner || (!n && !one && !modifiers)) return FSM_OK;
    struct job j; /* not initialized at once: clearing it takes a tenth of the time of a short row */
    j.kernels = fsm_kernels_of(isa, type);
    j.op = op;
    j.type = type;
    j.x = x;
    j.y = y;
    j.modifiers = modifiers;
    j.swapped = false;
    j.again = j.past = false;
    j.once = n * size_of[type] >= READ_ONCE;
    ptrdiff_t in = (ptrdiff_t)inner, row = (ptrdiff_t)n;
    ptrdiff_t dense[6] = {row * in, in, 1, one ? in : row * in, in, 1};
    const ptrdiff_t *s = strides ? strides : dense;
    j.outer = (struct dim){outer, step_of(outer, s[0]), step_of(outer, s[3])};
    j.row = (struct dim){n, s[1], one ? 1 : s[4]};
    j.inner = (struct dim){inner, step_of(inner, s[2]), step_of(inner, s[5])};
    if (fsm_has_target(op) && !are_targets_in_range(&j)) return FSM_OUT_OF_RANGE;
    if (!n && !(modifiers && modifiers->sink)) return fill_empty_rows(&j);
    if (fsm_is_elementwise(op) && !strides) {
        j.together = is_half(type) ? FSM_BLOCK : CHUNK;
        fsm_pool_run(run_elements, &j, (all_elements(&j) + j.together - 1) / j.together, threads);
        return FSM_OK;
    }
    bool nearer = j.outer.count > 1 && distance(j.outer) < distance(j.inner);
    bool few = j.inner.count < SQUARE && j.outer.count > j.inner.count;
    if (few || (nearer && j.outer.count >= SQUARE)) swap(&j.outer, &j.inner), j.swapped = true;
    if (modifiers) return run_modified(&j, threads);
    bool in_place = n == 1 || (j.row.x == 1 && j.row.y == 1);
    if (is_whole_half(&j)) in_place = false;
    return in_place ? run_in_place(&j, threads) : run_strided(&j, threads);
}

#define PLAIN(name, op, type, T) \
    void fsm_##name(const T *x, T *y, size_t rows, size_t n) { fsm_run(NULL, op, type, x, y, rows, n, 1, NULL, 1); }

PLAIN(softmax_f32, FSM_SOFTMAX, FSM_F32, float)
PLAIN(softmax_f64, FSM_SOFTMAX, FSM_F64, double)
PLAIN(log_softmax_f32, FSM_LOG_SOFTMAX, FSM_F32, float)
PLAIN(log_softmax_f64, FSM_LOG_SOFTMAX, FSM_F64, double)
PLAIN(logsumexp_f32, FSM_LOGSUMEXP, FSM_F32, float)
PLAIN(logsumexp_f64, FSM_LOGSUMEXP, FSM_F64, double)
