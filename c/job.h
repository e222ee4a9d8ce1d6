/* An array as rows.c and backward.c see it, its tasks, and scratch memory for them. Included by these two. */
#ifndef FSM_JOB_H
#define FSM_JOB_H

enum {
    CHUNK = 1 << 14, /* elements that a thread claims at once, roughly */
    SQUARE = 16,     /* rows of a tile, and elements of them copied at once: sixteen float32 are a cache line */
    PAD = 16,        /* elements between the rows of a tile, so that they do not all fall on one set of the cache */
    LINE = 64,       /* bytes */
    NUMBERS = 256,   /* rows that are worked on together, at most, where something is kept of each */

    /* Bytes of results that do not stay in the cache, and are better written past it. */
    PAST_CACHE = 16 << 20,
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

/* Nobody goes from one to the next where there is but one, and whatever the distance is, it might overflow. */
static ptrdiff_t step_of(size_t count, ptrdiff_t stride) { return count > 1 ? stride : 0; }

struct job {
    const struct fsm_kernels *kernels;
    fsm_op op;
    fsm_type type;
    const char *x;
    char *y;
    const fsm_modifiers *modifiers; /* or NULL */
    bool swapped;                   /* what is inner here is outer there */
    struct dim outer, inner, row;   /* rows of the inner dimension are worked on together */
    bool again, past, once; /* long rows: terms are computed twice instead of stored; results go past the cache; x
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
    size_t outer, inner;
    const void *x;
    void *y;
    size_t rows;
};

static struct task task_of(const struct job *j, size_t index) {
    size_t outer = index / j->groups, inner = index % j->groups * j->together, left = j->inner.count - inner;
    return (struct task){outer, inner, x_row(j, outer, inner), y_row(j, outer, inner),
                         left < j->together ? left : j->together};
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

/* Rows whose elements are apart, of so many bytes, to be gathered at once: SQUARE, or fewer if that is too much memory. */
static size_t square_of(size_t row_bytes) {
    size_t widest = ((size_t)64 << 20) / row_bytes;
    return widest < 1 ? 1 : widest < SQUARE ? widest : SQUARE;
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

#endif
