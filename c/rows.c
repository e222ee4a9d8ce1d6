/* From arrays to rows: layouts, tiles and threads. Knows no instruction set and does no arithmetic on elements. */
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#include "dispatch.h"
#include "pool.h"

enum {
    CHUNK = 1 << 14, /* elements that a thread claims at once, roughly */
    SQUARE = 16,     /* rows of a tile, and elements of them copied at once: sixteen float32 are a cache line */
    PAD = 16,        /* elements between the rows of a tile, so that they do not all fall on one set of the cache */
    LINE = 64,       /* bytes */

    /* Bytes of results that do not stay in the cache, and are better written past it. */
    PAST_CACHE = 16 << 20,
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

/* ---- Elements of all types ---- */

static const size_t size_of[FSM_TYPE_COUNT] = {sizeof(float), sizeof(double), 2, 2};

/* The half types are worked on as float32. */
static bool is_half(fsm_type type) { return type == FSM_F16 || type == FSM_BF16; }

static const char *at(const void *p, ptrdiff_t i, fsm_type type) {
    return (const char *)p + i * (ptrdiff_t)size_of[type];
}

/* ---- The array as the work sees it ---- */

/* A dimension: how many, and how far apart in x and in y, in elements. */
struct dim {
    size_t count;
    ptrdiff_t x, y;
};

struct job {
    const struct fsm_kernels *kernels;
    fsm_op op;
    fsm_type type;
    const char *x;
    char *y;
    struct dim outer, inner, row; /* rows of the inner dimension are worked on together */
    bool again, past, once;       /* long rows: terms are computed twice instead of stored; results go past the cache; x
                                   * is read once */

    /* Set by group_rows: at most so many rows together; so many such groups to an outer index. */
    size_t together, groups;

    /* Set by run_with_scratch: as many pieces as there are threads, of so many bytes, and which are taken. */
    char *scratch;
    size_t scratch_bytes;
    atomic_flag *taken;
};

static const void *x_row(const struct job *j, size_t outer, size_t inner) {
    return at(j->x, (ptrdiff_t)outer * j->outer.x + (ptrdiff_t)inner * j->inner.x, j->type);
}
static void *y_row(const struct job *j, size_t outer, size_t inner) {
    return j->y + ((ptrdiff_t)outer * j->outer.y + (ptrdiff_t)inner * j->inner.y) * (ptrdiff_t)size_of[j->type];
}

static void group_rows(struct job *j, size_t together) {
    j->together = together;
    j->groups = (j->inner.count + together - 1) / together;
}
static size_t tasks_of(const struct job *j) { return j->outer.count * j->groups; }

/* The rows of one task: which, and how many. */
struct task {
    const void *x;
    void *y;
    size_t rows;
};

static struct task task_of(const struct job *j, size_t index) {
    size_t outer = index / j->groups, inner = index % j->groups * j->together, left = j->inner.count - inner;
    return (struct task){x_row(j, outer, inner), y_row(j, outer, inner), left < j->together ? left : j->together};
}

/* ---- Scratch memory: a piece a thread ---- */

/* One of as many pieces as there are threads, so one is always free. */
static size_t take_piece(struct job *j) {
    size_t i = 0;
    while (atomic_flag_test_and_set_explicit(&j->taken[i], memory_order_acquire)) i++;
    return i;
}

static char *piece(const struct job *j, size_t i) { return j->scratch + i * j->scratch_bytes; }

static void give_back(struct job *j, size_t i) { atomic_flag_clear_explicit(&j->taken[i], memory_order_release); }

/* Run all tasks with a piece of so many bytes for each that runs. */
static fsm_status run_with_scratch(void (*task)(void *, size_t), struct job *j, size_t bytes, unsigned threads) {
    size_t tasks = tasks_of(j), pieces = threads < 1 ? 1 : threads < tasks ? threads : tasks;
    j->scratch_bytes = (bytes + LINE - 1) / LINE * LINE;
    char *memory = malloc(pieces * (j->scratch_bytes + sizeof *j->taken) + LINE);
    if (!memory) return FSM_NO_MEMORY;
    j->scratch = memory + (LINE - (uintptr_t)memory % LINE);
    j->taken = (atomic_flag *)(void *)(j->scratch + pieces * j->scratch_bytes);
    for (size_t i = 0; i < pieces; i++) atomic_flag_clear(&j->taken[i]);
    fsm_pool_run(task, j, tasks, (unsigned)pieces);
    free(memory);
    return FSM_OK;
}

/* ---- Rows of a half type, through tiles of float32 that stay in the cache ---- */

enum { NUMBERS = 256 }; /* rows of a tile, at most */

/* Rows without gaps on both sides are one: a call for each of 10 elements takes twice as long. */
static void widen_rows(const struct job *j, const char *x, ptrdiff_t pitch, float *tile, ptrdiff_t tile_pitch,
                       size_t rows, size_t n) {
    if (pitch == (ptrdiff_t)n && tile_pitch == pitch) n *= rows, rows = 1;
    for (size_t i = 0; i < rows; i++)
        j->kernels->widen(j->type, at(x, (ptrdiff_t)i * pitch, j->type), tile + (ptrdiff_t)i * tile_pitch, n);
}

static void narrow_rows(const struct job *j, const float *tile, ptrdiff_t tile_pitch, char *y, ptrdiff_t pitch,
                        size_t rows, size_t n) {
    if (pitch == (ptrdiff_t)n && tile_pitch == pitch) n *= rows, rows = 1;
    for (size_t i = 0; i < rows; i++)
        j->kernels->narrow(j->type, tile + (ptrdiff_t)i * tile_pitch, (char *)at(y, (ptrdiff_t)i * pitch, j->type), n);
}

/* Rows of n <= FSM_BLOCK elements. */
static void run_half_rows(const struct job *j, const char *x, ptrdiff_t x_pitch, char *y, ptrdiff_t y_pitch,
                          size_t rows, size_t n) {
    float tile[FSM_BLOCK], numbers[NUMBERS];
    ptrdiff_t pitch = (ptrdiff_t)n;
    bool one = fsm_is_reduction(j->op);
    for (size_t some = FSM_BLOCK / n < NUMBERS ? FSM_BLOCK / n : NUMBERS; rows; rows -= some) {
        if (some > rows) some = rows;
        widen_rows(j, x, x_pitch, tile, pitch, some, n);
        j->kernels->rows(j->op, tile, pitch, one ? numbers : tile, one ? 1 : pitch, some, n);
        narrow_rows(j, one ? numbers : tile, one ? 1 : pitch, y, y_pitch, some, one ? 1 : n);
        x = at(x, (ptrdiff_t)some * x_pitch, j->type);
        y = (char *)at(y, (ptrdiff_t)some * y_pitch, j->type);
    }
}

static void run_rows(const struct job *j, const void *x, ptrdiff_t x_pitch, void *y, ptrdiff_t y_pitch, size_t rows,
                     size_t n) {
    if (is_half(j->type))
        run_half_rows(j, x, x_pitch, y, y_pitch, rows, n);
    else
        j->kernels->rows(j->op, x, x_pitch, y, y_pitch, rows, n);
}

/* ---- A row longer than a block, in parts ---- */

struct long_row {
    const struct job *job;
    const char *x;
    char *y;
    struct fsm_part *parts;
    float *terms; /* of a half type, while all of it stays in the cache: the row as float32; or NULL */
};

static size_t parts_of(const struct job *j) { return (j->row.count + FSM_BLOCK - 1) / FSM_BLOCK; }
static size_t elements_of(const struct long_row *r, size_t i) {
    size_t left = r->job->row.count - i * FSM_BLOCK;
    return left < FSM_BLOCK ? left : FSM_BLOCK;
}
static size_t bytes_before(const struct long_row *r, size_t i) { return i * FSM_BLOCK * size_of[r->job->type]; }

/* What a long row needs beside itself: its parts; and its terms, if they are kept and have no room in y. */
static size_t bytes_of_parts(const struct job *j) {
    return (parts_of(j) * sizeof(struct fsm_part) + LINE - 1) / LINE * LINE;
}
static size_t bytes_of_terms(const struct job *j) {
    bool kept = is_half(j->type) && !fsm_is_reduction(j->op) && j->row.count <= MOST_TERMS;
    return kept ? j->row.count * sizeof(float) : 0;
}
static size_t bytes_for_long(const struct job *j) { return bytes_of_parts(j) + bytes_of_terms(j); }

/* A half row's terms are float32. They are kept, or else computed once more. */
static void run_half_part(void *row, size_t i) {
    struct long_row *r = row;
    const struct fsm_kernels *k = r->job->kernels;
    float tile[FSM_BLOCK], *terms = r->terms ? r->terms + i * FSM_BLOCK : tile;
    k->widen(r->job->type, r->x + bytes_before(r, i), terms, elements_of(r, i));
    k->part(r->job->op, &r->parts[i], terms, r->terms ? terms : NULL, elements_of(r, i), false);
}
static void run_half_finish(void *row, size_t i) {
    struct long_row *r = row;
    const struct fsm_kernels *k = r->job->kernels;
    float tile[FSM_BLOCK], *terms = r->terms ? r->terms + i * FSM_BLOCK : tile;
    size_t bytes = bytes_before(r, i), n = elements_of(r, i);
    if (!r->terms) k->widen(r->job->type, r->x + bytes, terms, n);
    k->finish(r->job->op, &r->parts[i], terms, terms, n, !r->terms, false);
    k->narrow(r->job->type, terms, r->y + bytes, n);
}

static void run_part(void *row, size_t i) {
    struct long_row *r = row;
    void *y = r->job->again || fsm_is_reduction(r->job->op) ? NULL : r->y + bytes_before(r, i);
    r->job->kernels->part(r->job->op, &r->parts[i], r->x + bytes_before(r, i), y, elements_of(r, i), r->job->once);
}
static void run_finish(void *row, size_t i) {
    struct long_row *r = row;
    size_t bytes = bytes_before(r, i);
    r->job->kernels->finish(r->job->op, &r->parts[i], r->x + bytes, r->y + bytes, elements_of(r, i), r->job->again,
                            r->job->past);
}

static void run_long(const struct job *j, const void *x, void *y, char *beside, unsigned threads) {
    struct fsm_part *parts = (struct fsm_part *)(void *)beside;
    struct long_row r = {j, x, y, parts, bytes_of_terms(j) ? (float *)(void *)(beside + bytes_of_parts(j)) : NULL};
    size_t count = parts_of(j);
    bool half = is_half(j->type), one = fsm_is_reduction(j->op);
    float number;
    fsm_pool_run(half ? run_half_part : run_part, &r, count, threads);
    j->kernels->join(j->op, parts, count, j->row.count, half ? &number : y);
    if (half && one) j->kernels->narrow(j->type, &number, y, 1);
    if (!one) fsm_pool_run(half ? run_half_finish : run_finish, &r, count, threads);
}

static bool is_long(const struct job *j) { return fsm_is_blockwise(j->op) && j->row.count > FSM_BLOCK; }

static void run_task_long(void *job, size_t index) {
    struct job *j = job;
    struct task t = task_of(j, index);
    size_t mine = take_piece(j);
    run_long(j, t.x, t.y, piece(j, mine), 1);
    give_back(j, mine);
}

static fsm_status share_rows(struct job *j, unsigned threads) {
    char *beside = malloc(bytes_for_long(j));
    if (!beside) return FSM_NO_MEMORY;
    for (size_t i = 0; i < j->outer.count * j->inner.count; i++)
        run_long(j, x_row(j, i / j->inner.count, i % j->inner.count), y_row(j, i / j->inner.count, i % j->inner.count),
                 beside, threads);
    free(beside);
    return FSM_OK;
}

/* ---- Rows that lie in one piece ---- */

static void run_task(void *job, size_t index) {
    const struct job *j = job;
    struct task t = task_of(j, index);
    run_rows(j, t.x, j->inner.x, t.y, j->inner.y, t.rows, j->row.count);
}

static fsm_status run_in_place(struct job *j, unsigned threads) {
    size_t n = j->row.count, rows = j->outer.count * j->inner.count;
    group_rows(j, n < CHUNK && !is_long(j) ? CHUNK / n : 1);
    size_t bytes = n * size_of[j->type];
    if (j->kernels->streams && !is_half(j->type))
        j->again = j->past =
            j->op == FSM_LOG_SOFTMAX ? bytes * rows >= PAST_CACHE : j->type == FSM_F32 && bytes >= PAST_MEMORY;
    if (is_long(j) && threads > 1 && rows < 4 * (size_t)threads) return share_rows(j, threads);
    if (is_long(j)) return run_with_scratch(run_task_long, j, bytes_for_long(j), threads);
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

/* to[r][c] = from[r][c]; strides in elements. A square at a time, so that both sides move in whole cache lines, and along
 * the line that is written (read along it, scattering takes twice as long). */
#define COPY(T)                                                                                           \
    for (size_t c = 0; c < columns; c += SQUARE)                                                          \
        for (size_t r = 0; r < rows; r++) {                                                               \
            const T *a = (const T *)from + (ptrdiff_t)r * from_row + (ptrdiff_t)c * from_column;          \
            T *b = (T *)to + (ptrdiff_t)r * to_row + (ptrdiff_t)c * to_column;                            \
            size_t end = columns - c < SQUARE ? columns - c : SQUARE;                                     \
            for (size_t i = 0; i < end; i++) b[(ptrdiff_t)i * to_column] = a[(ptrdiff_t)i * from_column]; \
        }

static void copy(fsm_type type, const void *from, ptrdiff_t from_row, ptrdiff_t from_column, void *to, ptrdiff_t to_row,
                 ptrdiff_t to_column, size_t rows, size_t columns) {
    if (type == FSM_F32) {
        COPY(float)
    } else if (type == FSM_F64) {
        COPY(double)
    } else {
        COPY(uint16_t)
    }
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
            widen_rows(j, at(tile, (ptrdiff_t)i * pitch, j->type), 0, row, 0, 1, n);
            j->kernels->rows(j->op, row, 0, row, 0, 1, n);
            narrow_rows(j, row, 0, (char *)at(tile, (ptrdiff_t)i * pitch, j->type), 0, 1, n);
        }
    } else if (!is_long(j)) {
        run_rows(j, tile, pitch, one ? t.y : tile, one ? j->inner.y : pitch, t.rows, n);
    } else {
        for (size_t i = 0; i < t.rows; i++) {
            char *row = tile + i * (size_t)pitch * size_of[j->type];
            char *number = (char *)t.y + (ptrdiff_t)i * j->inner.y * (ptrdiff_t)size_of[j->type];
            run_long(j, row, one ? number : row, piece(j, mine), 1);
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
    size_t row_bytes = (n + PAD) * size, widest = ((size_t)64 << 20) / row_bytes;
    group_rows(j, widest < 1 ? 1 : widest < SQUARE ? widest : SQUARE);
    return run_with_scratch(run_task_gathered, j, bytes_beside(j) + j->together * row_bytes, threads);
}

/* ---- Rows of nothing ---- */

static fsm_status fill_empty_rows(const struct job *j) {
    for (size_t o = 0; o < j->outer.count; o++)
        for (size_t i = 0; i < j->inner.count; i++) {
            float value = j->op == FSM_LOGSUMEXP ? -INFINITY : NAN;
            if (j->type == FSM_F64)
                *(double *)y_row(j, o, i) = (double)value;
            else if (j->type == FSM_F32)
                *(float *)y_row(j, o, i) = value;
            else
                j->kernels->narrow(j->type, &value, y_row(j, o, i), 1);
        }
    return FSM_OK;
}

/* ---- Contiguous elements on their own need no rows ---- */

static size_t all_elements(const struct job *j) { return j->outer.count * j->row.count * j->inner.count; }

static void run_elements(void *job, size_t index) {
    const struct job *j = job;
    size_t first = index * j->together, left = all_elements(j) - first;
    size_t offset = first * size_of[j->type];
    run_rows(j, j->x + offset, 0, j->y + offset, 0, 1, left < j->together ? left : j->together);
}

static void swap(struct dim *a, struct dim *b) {
    struct dim c = *a;
    *a = *b;
    *b = c;
}

static size_t distance(struct dim d) { return (size_t)(d.x < 0 ? -d.x : d.x); }

fsm_status fsm_run(const fsm_isa *isa, fsm_op op, fsm_type type, const void *x, void *y, size_t outer, size_t n,
                   size_t inner, const ptrdiff_t *strides, unsigned threads) {
    if ((unsigned)op >= FSM_OP_COUNT || (unsigned)type >= FSM_TYPE_COUNT) return FSM_INVALID;
    struct job j; /* not initialized at once: clearing it takes a tenth of the time of a short row */
    j.kernels = fsm_kernels_of(isa, type);
    j.op = op;
    j.type = type;
    j.x = x;
    j.y = y;
    j.again = j.past = false;
    j.once = n * size_of[type] >= READ_ONCE;
    bool one = fsm_is_reduction(op);
    ptrdiff_t in = (ptrdiff_t)inner, row = (ptrdiff_t)n;
    ptrdiff_t dense[6] = {row * in, in, 1, one ? in : row * in, in, 1};
    const ptrdiff_t *s = strides ? strides : dense;
    j.outer = (struct dim){outer, s[0], s[3]};
    j.row = (struct dim){n, s[1], one ? 1 : s[4]};
    j.inner = (struct dim){inner, s[2], s[5]};
    if (!outer || !inner || (!n && !one)) return FSM_OK;
    if (!n) return fill_empty_rows(&j);
    if (fsm_is_elementwise(op) && !strides) {
        j.together = is_half(type) ? FSM_BLOCK : CHUNK;
        fsm_pool_run(run_elements, &j, (all_elements(&j) + j.together - 1) / j.together, threads);
        return FSM_OK;
    }
    bool nearer = j.outer.count > 1 && distance(j.outer) < distance(j.inner);
    bool few = j.inner.count < SQUARE && j.outer.count > j.inner.count;
    if (few || (nearer && j.outer.count >= SQUARE)) swap(&j.outer, &j.inner);
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
