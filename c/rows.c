/* From arrays to rows: layouts, tiles and threads. Knows no instruction set and does no arithmetic on elements. */
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#include "dispatch.h"
#include "pool.h"

enum {
    CHUNK = 1 << 14,     /* elements that a thread claims at once, roughly */
    SQUARE = 16,         /* rows of a tile, and elements of them copied at once: sixteen float32 are a cache line */
    PAD = 16,            /* elements between the rows of a tile, so that they do not all fall on one set of the cache */
    SHARE_FROM = 1 << 16 /* rows from this length are shared by the threads when there are few of them */
};

/* ---- Elements of either type ---- */

static const size_t size_of[FSM_TYPE_COUNT] = {sizeof(float), sizeof(double)};

static const char *at(const void *p, ptrdiff_t i, fsm_type type) {
    return (const char *)p + i * (ptrdiff_t)size_of[type];
}

static bool gives_one_number(fsm_op op) { return op == FSM_LOGSUMEXP || op == FSM_LOGMEANEXP; }
static bool by_element(fsm_op op) { return op == FSM_SIGMOID || op == FSM_SOFTPLUS; }
static bool can_share(fsm_op op) { return !by_element(op) && op != FSM_LOGCUMSUMEXP; }

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
    size_t together;              /* how many of them at most */
    char *tiles;                  /* scratch, one tile a thread; NULL where rows are used in place */
    size_t tile_bytes;
    atomic_flag *tile_taken;
};

static const void *x_row(const struct job *j, size_t outer, size_t inner) {
    return at(j->x, (ptrdiff_t)outer * j->outer.x + (ptrdiff_t)inner * j->inner.x, j->type);
}
static void *y_row(const struct job *j, size_t outer, size_t inner) {
    return j->y + ((ptrdiff_t)outer * j->outer.y + (ptrdiff_t)inner * j->inner.y) * (ptrdiff_t)size_of[j->type];
}

/* ---- Rows that lie in one piece ---- */

static size_t groups(const struct job *j) { return (j->inner.count + j->together - 1) / j->together; }

static void run_rows(void *job, size_t index) {
    const struct job *j = job;
    size_t outer = index / groups(j), inner = index % groups(j) * j->together;
    size_t count = j->inner.count - inner < j->together ? j->inner.count - inner : j->together;
    j->kernels->rows(j->op, x_row(j, outer, inner), j->inner.x, y_row(j, outer, inner), j->inner.y, count,
                     j->row.count);
}

/* ---- Rows whose elements are apart: a tile of them is gathered, worked on in place, scattered ---- */

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
    } else {
        COPY(double)
    }
}

/* One of as many tiles as there are threads, so one is always free. */
static size_t take_tile(struct job *j) {
    size_t i = 0;
    while (atomic_flag_test_and_set_explicit(&j->tile_taken[i], memory_order_acquire)) i++;
    return i;
}

static void run_tile(void *job, size_t index) {
    struct job *j = job;
    size_t outer = index / groups(j), inner = index % groups(j) * j->together, n = j->row.count;
    size_t count = j->inner.count - inner < j->together ? j->inner.count - inner : j->together;
    size_t mine = take_tile(j);
    char *tile = j->tiles + mine * j->tile_bytes;
    ptrdiff_t pitch = (ptrdiff_t)n + PAD;
    copy(j->type, x_row(j, outer, inner), j->inner.x, j->row.x, tile, pitch, 1, count, n);
    if (gives_one_number(j->op)) {
        j->kernels->rows(j->op, tile, pitch, y_row(j, outer, inner), j->inner.y, count, n);
    } else {
        j->kernels->rows(j->op, tile, pitch, tile, pitch, count, n);
        copy(j->type, tile, 1, pitch, y_row(j, outer, inner), j->row.y, j->inner.y, n, count);
    }
    atomic_flag_clear_explicit(&j->tile_taken[mine], memory_order_release);
}

/* ---- One long row, shared by the threads ---- */

struct shared_row {
    const struct job *job;
    const void *x;
    void *y;
    struct fsm_row row;
    double *max;         /* of each block */
    struct fsm_sum *sum; /* of each block */
};

static size_t block_at(const struct shared_row *s, size_t i) {
    size_t left = s->job->row.count - i * FSM_BLOCK;
    return left < FSM_BLOCK ? left : FSM_BLOCK;
}
static const void *x_block(const struct shared_row *s, size_t i) {
    return at(s->x, (ptrdiff_t)(i * FSM_BLOCK), s->job->type);
}
static void *y_block(const struct shared_row *s, size_t i) {
    return gives_one_number(s->job->op) ? s->y : (char *)s->y + i * FSM_BLOCK * size_of[s->job->type];
}

static void share_max(void *shared, size_t i) {
    struct shared_row *s = shared;
    s->max[i] = s->job->kernels->max(x_block(s, i), block_at(s, i));
}
static void share_sum(void *shared, size_t i) {
    struct shared_row *s = shared;
    s->sum[i] = s->job->kernels->block_sum(s->job->op, &s->row, x_block(s, i), y_block(s, i), block_at(s, i));
}
static void share_apply(void *shared, size_t i) {
    struct shared_row *s = shared;
    s->job->kernels->apply(s->job->op, &s->row, x_block(s, i), y_block(s, i), block_at(s, i));
}

static void run_shared(struct shared_row *s, unsigned threads) {
    const struct job *j = s->job;
    size_t n = j->row.count, blocks = (n + FSM_BLOCK - 1) / FSM_BLOCK;
    fsm_pool_run(share_max, s, blocks, threads);
    s->row.max = s->max[0];
    for (size_t i = 1; i < blocks; i++) s->row.max = s->max[i] > s->row.max ? s->max[i] : s->row.max;
    j->kernels->row_open(&s->row);
    fsm_pool_run(share_sum, s, blocks, threads);
    struct fsm_sum total = {0, 0, 0};
    for (size_t i = 0; i < blocks; i++) fsm_sum_add(&total, s->sum[i]);
    j->kernels->row_close(j->op, &s->row, total, s->x, s->y, n);
    if (!gives_one_number(j->op)) fsm_pool_run(share_apply, s, blocks, threads);
}

/* ---- Choosing among them ---- */

static fsm_status share_rows(struct job *j, unsigned threads) {
    size_t blocks = (j->row.count + FSM_BLOCK - 1) / FSM_BLOCK;
    struct fsm_sum *sums = malloc(blocks * (sizeof *sums + sizeof(double)));
    if (!sums) return FSM_NO_MEMORY;
    struct shared_row s = {.job = j, .sum = sums, .max = (double *)(sums + blocks)};
    for (size_t i = 0; i < j->outer.count * j->inner.count; i++) {
        s.x = x_row(j, i / j->inner.count, i % j->inner.count);
        s.y = y_row(j, i / j->inner.count, i % j->inner.count);
        run_shared(&s, threads);
    }
    free(sums);
    return FSM_OK;
}

static fsm_status run_in_tiles(struct job *j, unsigned threads) {
    size_t row_bytes = (j->row.count + PAD) * size_of[j->type], widest = ((size_t)64 << 20) / row_bytes;
    j->together = widest < 1 ? 1 : widest < SQUARE ? widest : SQUARE;
    size_t tasks = j->outer.count * groups(j), slots = threads < 1 ? 1 : threads < tasks ? threads : tasks;
    j->tile_bytes = j->together * row_bytes;
    j->tiles = malloc(slots * j->tile_bytes);
    j->tile_taken = malloc(slots * sizeof *j->tile_taken);
    fsm_status status = j->tiles && j->tile_taken ? FSM_OK : FSM_NO_MEMORY;
    if (status == FSM_OK) {
        for (size_t i = 0; i < slots; i++) atomic_flag_clear(&j->tile_taken[i]);
        fsm_pool_run(run_tile, j, tasks, (unsigned)slots);
    }
    free(j->tiles);
    free(j->tile_taken);
    return status;
}

static fsm_status run_in_place(struct job *j, unsigned threads) {
    size_t n = j->row.count;
    j->together = n < CHUNK ? CHUNK / n : 1;
    size_t rows = j->outer.count * j->inner.count;
    if (threads > 1 && n >= SHARE_FROM && rows < 4 * (size_t)threads && can_share(j->op)) return share_rows(j, threads);
    fsm_pool_run(run_rows, j, j->outer.count * groups(j), threads);
    return FSM_OK;
}

static fsm_status fill_empty_rows(const struct job *j) {
    for (size_t o = 0; o < j->outer.count; o++)
        for (size_t i = 0; i < j->inner.count; i++) {
            double value = j->op == FSM_LOGSUMEXP ? -(double)INFINITY : (double)NAN;
            if (j->type == FSM_F32)
                *(float *)y_row(j, o, i) = (float)value;
            else
                *(double *)y_row(j, o, i) = value;
        }
    return FSM_OK;
}

/* ---- Contiguous elements on their own need no rows ---- */

static size_t all_elements(const struct job *j) { return j->outer.count * j->row.count * j->inner.count; }

static void run_elements(void *job, size_t index) {
    const struct job *j = job;
    size_t first = index * CHUNK, left = all_elements(j) - first;
    size_t offset = first * size_of[j->type];
    j->kernels->rows(j->op, j->x + offset, 0, j->y + offset, 0, 1, left < CHUNK ? left : CHUNK);
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
    struct job j = {.kernels = fsm_kernels_of(isa, type), .op = op, .type = type, .x = x, .y = y};
    bool one = gives_one_number(op);
    ptrdiff_t in = (ptrdiff_t)inner, row = (ptrdiff_t)n;
    ptrdiff_t dense[6] = {row * in, in, 1, one ? in : row * in, in, 1};
    const ptrdiff_t *s = strides ? strides : dense;
    j.outer = (struct dim){outer, s[0], s[3]};
    j.row = (struct dim){n, s[1], one ? 1 : s[4]};
    j.inner = (struct dim){inner, s[2], s[5]};
    if (!outer || !inner || (!n && !one)) return FSM_OK;
    if (!n) return fill_empty_rows(&j);
    if (by_element(op) && !strides) {
        fsm_pool_run(run_elements, &j, (all_elements(&j) + CHUNK - 1) / CHUNK, threads);
        return FSM_OK;
    }
    if (j.inner.count == 1 || (j.outer.count > 1 && distance(j.outer) < distance(j.inner))) swap(&j.outer, &j.inner);
    bool in_place = n == 1 || (j.row.x == 1 && j.row.y == 1);
    return in_place ? run_in_place(&j, threads) : run_in_tiles(&j, threads);
}

#define PLAIN(name, op, type, T) \
    void fsm_##name(const T *x, T *y, size_t rows, size_t n) { fsm_run(NULL, op, type, x, y, rows, n, 1, NULL, 1); }

PLAIN(softmax_f32, FSM_SOFTMAX, FSM_F32, float)
PLAIN(softmax_f64, FSM_SOFTMAX, FSM_F64, double)
PLAIN(log_softmax_f32, FSM_LOG_SOFTMAX, FSM_F32, float)
PLAIN(log_softmax_f64, FSM_LOG_SOFTMAX, FSM_F64, double)
PLAIN(logsumexp_f32, FSM_LOGSUMEXP, FSM_F32, float)
PLAIN(logsumexp_f64, FSM_LOGSUMEXP, FSM_F64, double)
