/* Rows with modifiers that are brought, modified, into memory where they are worked on, some at a time, each by one thread. Included
 * by rows.c alone. */
#ifndef FSM_MODIFIED_H
#define FSM_MODIFIED_H

enum {
    AT_ONCE = 4096, /* elements, roughly: they stay in the first level of the cache */
    RUN = 64,       /* rows up to this long are prepared several at once, if everything lies in one piece */
};

/* The elements of a row with its sink, which is the last of them. */
static size_t total_of(const struct job *j) { return j->row.count + (j->modifiers->sink ? 1 : 0); }

static bool is_in_one_piece(const struct job *j) { return j->row.x == 1 && j->row.y == 1; }

/* In y, or else in a tile of the computed type; half types that are not in one piece also go through one of their own. */
static bool is_in_y(const struct job *j) {
    return fsm_is_map(j->op) && !is_half(j->type) && j->row.y == 1 && !j->modifiers->sink;
}
static size_t pitch_of(const struct job *j) { return total_of(j) + (is_in_one_piece(j) ? 0 : PAD); }
static size_t rows_together(const struct job *j) {
    size_t rows = AT_ONCE / total_of(j), least = is_in_one_piece(j) ? 1 : square_of(pitch_of(j) * sizeof(double));
    rows = rows < least ? least : rows < NUMBERS ? rows : NUMBERS;
    return rows < j->inner.count ? rows : j->inner.count;
}

/* The same rows as numbers of the computed type, to which nothing more is to be done. */
static struct job plain_job(const struct job *j) {
    struct job plain = *j;
    plain.type = computed(j->type);
    plain.modifiers = NULL;
    plain.row.count = total_of(j);
    return plain;
}

/* Whether all rows of the inner dimension have the same bias or mask, which is repeated where several are prepared at once. */
static bool is_shared(const struct job *j, const void *what, const ptrdiff_t *strides) {
    return what && j->row.count <= RUN && strides[1] == 1 && strides[j->swapped ? 0 : 2] == 0;
}

/* What all tasks of a job go by: the same rows once they are prepared; and where in a thread's scratch what begins. Parts come
 * first, then half types as they are, then rows, then what they share. */
struct plan {
    const struct job *job;
    struct job plain;
    size_t halves, rows, bias, where, bytes;
};

static struct plan plan_of(const struct job *j) {
    const fsm_modifiers *m = j->modifiers;
    struct plan p = {.job = j, .plain = plain_job(j)};
    size_t elements = rows_together(j) * pitch_of(j);
    p.halves = is_long(&p.plain) ? bytes_for_long(&p.plain) : 0;
    p.rows = p.halves + (is_half(j->type) && !is_in_one_piece(j) ? (elements * 2 + LINE - 1) / LINE * LINE : 0);
    p.bias = p.rows + (is_in_y(j) ? 0 : elements * size_of[p.plain.type]);
    p.where = p.bias + (is_shared(j, m->bias, m->bias_strides) ? elements * size_of[m->bias_type] : 0);
    p.bytes = p.where + (is_shared(j, m->where, m->where_strides) ? elements : 0);
    return p;
}

/* What rows share, of so many rows. */
static void repeat(const struct plan *p, const struct source *s, size_t rows, char *scratch) {
    const fsm_modifiers *m = p->job->modifiers;
    size_t n = p->job->row.count;
    for (size_t r = 0; is_shared(p->job, m->bias, m->bias_strides) && r < rows; r++)
        memcpy(scratch + p->bias + r * n * size_of[m->bias_type], s->bias, n * size_of[m->bias_type]);
    for (size_t r = 0; is_shared(p->job, m->where, m->where_strides) && r < rows; r++)
        memcpy(scratch + p->where + r * n, s->where, n);
}

/* Whether a bias or mask of several rows is in one piece. */
static bool is_run_of(const struct job *j, const void *what, const ptrdiff_t *strides) {
    return !what || is_shared(j, what, strides) ||
           (strides[1] == 1 && strides[j->swapped ? 0 : 2] == (ptrdiff_t)j->row.count);
}

static bool is_run(const struct job *j, size_t rows, ptrdiff_t x_pitch, ptrdiff_t z_pitch) {
    const fsm_modifiers *m = j->modifiers;
    ptrdiff_t n = (ptrdiff_t)j->row.count;
    if (rows < 2 || n > RUN || x_pitch != n || z_pitch != n) return false;
    if (m->temperature && m->temperature_strides[!j->swapped]) return false;
    return is_run_of(j, m->bias, m->bias_strides) && is_run_of(j, m->where, m->where_strides);
}

/* ---- Rows, prepared ---- */

static bool is_nothing(const struct job *j, const char *z, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!(value_of(j, at(z, (ptrdiff_t)i, computed(j->type))) == -INFINITY)) return false;
    return true;
}

/* Rows from x into z, with their sinks; in which there is something besides -inf; and if the result is true, their maxima, of
 * the computed type. */
static bool prepare_rows(const struct plan *p, size_t outer, size_t inner, size_t rows, struct cut c, const char *x,
                         ptrdiff_t x_pitch, char *z, ptrdiff_t z_pitch, char *scratch, bool *some, double *max) {
    const struct job *j = p->job;
    const fsm_modifiers *m = j->modifiers;
    size_t n = j->row.count;
    if (c.to - c.from == n && is_run(j, rows, x_pitch, z_pitch)) {
        struct source s = source_of(j, x, outer, inner);
        if (is_shared(j, m->bias, m->bias_strides)) s.bias = scratch + p->bias;
        if (is_shared(j, m->where, m->where_strides)) s.where = (unsigned char *)scratch + p->where;
        prepare(j, &s, 0, rows * n, z, least(j, max, 0));
        for (size_t r = 0; m->empty && r < rows; r++)
            some[r] = !is_nothing(j, at(z, (ptrdiff_t)r * z_pitch, computed(j->type)), n);
        return false;
    }
    for (size_t r = 0; r < rows; r++) {
        struct source s = source_of(j, at(x, (ptrdiff_t)r * x_pitch, j->type), outer, inner + r);
        char *row = (char *)at(z, (ptrdiff_t)r * z_pitch, computed(j->type));
        void *most = least(j, max, r);
        some[r] = prepare(j, &s, c.from, c.to - c.from, (char *)at(row, (ptrdiff_t)c.from, computed(j->type)), most);
        const void *sink = number_of(j, m->sink, m->sink_strides, outer, inner + r);
        if (!sink) continue;
        copy(computed(j->type), sink, 0, 0, (char *)at(row, (ptrdiff_t)n, computed(j->type)), 0, 0, 1, 1);
        some[r] |= !(value_of(j, sink) == -INFINITY);
        if (value_of(j, sink) > value_of(j, most)) copy(computed(j->type), sink, 0, 0, most, 0, 0, 1, 1);
    }
    return true;
}

static void run_plain(const struct job *prepared, fsm_op op, const char *x, ptrdiff_t x_pitch, char *y,
                      ptrdiff_t y_pitch, size_t rows, const void *max, double *norms, char *beside) {
    struct job plain = *prepared;
    plain.op = op;
    if (!is_long(&plain)) {
        plain.kernels->rows(op, plain.type, NULL, x, x_pitch, y, y_pitch, rows, plain.row.count, max, norms);
        return;
    }
    for (size_t r = 0; r < rows; r++) {
        struct source row = {at(x, (ptrdiff_t)r * x_pitch, plain.type), NULL, NULL, NULL};
        void *norm = norms ? (void *)at(norms, 2 * (ptrdiff_t)r, plain.type) : NULL;
        run_parts(&plain, row, (char *)at(y, (ptrdiff_t)r * y_pitch, plain.type), norm, NULL, beside, 1);
    }
}

/* Results from z to y, if they are not there. */
static void deliver_rows(const struct job *j, char *z, ptrdiff_t z_pitch, char *halves, char *y, size_t rows) {
    size_t n = j->row.count;
    ptrdiff_t pitch = j->row.y == 1 ? j->inner.y : z_pitch;
    if (is_half(j->type)) {
        char *to = j->row.y == 1 ? y : halves;
        j->kernels->narrow(j->type, (float *)(void *)z, z_pitch, to, pitch, rows, n);
        z = to, z_pitch = pitch;
    }
    if (z == y) return;
    if (j->row.y != 1)
        copy(j->type, z, 1, z_pitch, y, j->row.y, j->inner.y, n, rows);
    else
        for (size_t r = 0; r < rows; r++)
            copy(j->type, at(z, (ptrdiff_t)r * z_pitch, j->type), 0, 1, (char *)at(y, (ptrdiff_t)r * pitch, j->type), 0,
                 1, 1, n);
}

static void run_modified_rows(const struct plan *p, size_t outer, size_t inner, size_t rows, char *scratch) {
    const struct job *j = p->job;
    const fsm_modifiers *m = j->modifiers;
    bool half = is_half(j->type), some[NUMBERS];
    float numbers[NUMBERS];
    double max[NUMBERS];
    char *halves = scratch + p->halves, *y = y_row(j, outer, inner), *z = is_in_y(j) ? y : scratch + p->rows;
    ptrdiff_t pitch = (ptrdiff_t)pitch_of(j), z_pitch = is_in_y(j) ? j->inner.y : pitch, x_pitch = j->inner.x;
    const char *x = x_row(j, outer, inner);
    if (j->row.x != 1) {
        char *to = half ? halves : z;
        copy(j->type, x, x_pitch, j->row.x, to, half ? pitch : z_pitch, 1, rows, j->row.count);
        x = to, x_pitch = half ? pitch : z_pitch;
    }
    struct cut c = cut_of(j, outer, inner, rows);
    const void *known = NULL;
    if (!is_bare(j) || half) {
        if (prepare_rows(p, outer, inner, rows, c, x, x_pitch, z, z_pitch, scratch, some, max)) known = max;
        x = z, x_pitch = z_pitch;
    }
    struct job plain = p->plain;
    plain.row.count -= j->row.count - (c.to - c.from);
    const char *from = at(x, (ptrdiff_t)c.from, plain.type);
    char *to = (char *)at(z, (ptrdiff_t)c.from, plain.type);
    struct fsm_targets targets;
    struct losses losses;
    double *norms = wants_norms(j) ? losses.norms : NULL;
    if (fsm_has_target(j->op)) {
        targets = targets_of(j, outer, inner);
        j->kernels->pick(&targets, from, x_pitch, c.from, c.to, rows, losses.log_probs);
    }
    if (m->lse && !norms)
        run_plain(&plain, FSM_LOGSUMEXP, from, x_pitch, lse_of(j, outer, inner), m->lse_strides[!j->swapped], rows,
                  known, NULL, scratch);
    bool one = fsm_is_reduction(j->op);
    char *results = !one ? to : half ? (char *)numbers : y;
    ptrdiff_t results_pitch = !one ? z_pitch : half ? 1 : j->inner.y;
    run_plain(&plain, plain_op(j->op), from, x_pitch, results, results_pitch, rows, known, norms, scratch);
    if (norms) put_lses(j, outer, inner, &losses, rows);
    if (fsm_has_target(j->op)) find_losses(j, &targets, outer, inner, rows, &losses);
    if (one) {
        if (half && !norms) j->kernels->narrow(j->type, numbers, 1, y, j->inner.y, rows, 1);
        return;
    }
    for (size_t r = 0; c.to - c.from < j->row.count && r < rows; r++)
        fill_ends(j, plain.type, (char *)at(z, (ptrdiff_t)r * z_pitch, plain.type), c);
    for (size_t r = 0; m->empty && r < rows; r++)
        if (!some[r]) fill_empty(j, plain.type, (char *)at(z, (ptrdiff_t)r * z_pitch, plain.type), j->row.count);
    if (fsm_has_target(j->op)) j->kernels->gradients(&targets, losses.slopes, z, z_pitch, rows, j->row.count);
    deliver_rows(j, z, z_pitch, halves, y, rows);
}

static void run_task_modified(void *job, size_t index) {
    struct job *j = job;
    struct plan p = plan_of(j);
    struct task t = task_of(j, index);
    size_t mine = take_piece(j), some = rows_together(j);
    struct source first = source_of(j, t.x, t.outer, t.inner);
    repeat(&p, &first, t.rows < some ? t.rows : some, piece(j, mine));
    for (size_t r = 0; r < t.rows; r += some)
        run_modified_rows(&p, t.outer, t.inner + r, t.rows - r < some ? t.rows - r : some, piece(j, mine));
    give_back(j, mine);
}

#endif
