/* A row longer than a block, in parts, which threads may share. Included by rows.c alone. */
#ifndef FSM_LONG_H
#define FSM_LONG_H

struct long_row {
    const struct job *job;
    struct source source;
    char *y;
    struct fsm_part *parts;
    char *terms;        /* where they are kept, or a row that is prepared; NULL: they are computed twice */
    atomic_bool some;   /* whether any element is not -inf */
    const void *factor; /* of the computed type: what results are multiplied by; or NULL */
    bool norm;          /* whether it is wanted */
    bool fused;         /* whether the kernels modify it */
};

static size_t parts_of(const struct job *j) { return (j->row.count + FSM_BLOCK - 1) / FSM_BLOCK; }
static size_t elements_of(const struct long_row *r, size_t i) {
    size_t left = r->job->row.count - i * FSM_BLOCK;
    return left < FSM_BLOCK ? left : FSM_BLOCK;
}
static size_t bytes_before(fsm_type type, size_t i) { return i * FSM_BLOCK * size_of[type]; }

/* What a long row needs beside itself: its parts; and its terms, if they are kept and have no room in y. */
static size_t bytes_of_parts(const struct job *j) {
    return (parts_of(j) * sizeof(struct fsm_part) + LINE - 1) / LINE * LINE;
}
static size_t bytes_of_terms(const struct job *j) {
    bool kept = is_half(j->type) && !fsm_is_reduction(j->op) && j->row.count <= MOST_TERMS;
    return kept ? j->row.count * sizeof(float) : 0;
}
static size_t bytes_for_long(const struct job *j) { return bytes_of_parts(j) + bytes_of_terms(j); }

/* ---- Rows that are prepared ---- */

/* Those that the kernels do not modify; and of a half type whose norms are wanted, which they find for float32 alone. */
static bool is_prepared(const struct long_row *r) {
    if (is_half(r->job->type) && (r->norm || fsm_has_target(r->job->op))) return true;
    return !is_bare(r->job) && !r->fused;
}

static char *terms_of_part(const struct long_row *r, size_t i, void *otherwise) {
    return r->terms ? r->terms + bytes_before(computed(r->job->type), i) : otherwise;
}
static void run_prepared_part(void *row, size_t i) {
    struct long_row *r = row;
    double tile[FSM_BLOCK];
    char *z = terms_of_part(r, i, tile);
    size_t n = elements_of(r, i);
    double number;
    void *max = least(r->job, &number, 0);
    if (prepare(r->job, &r->source, i * FSM_BLOCK, n, z, max))
        atomic_store_explicit(&r->some, true, memory_order_relaxed);
    r->job->kernels->part(r->job->op, computed(r->job->type), NULL, &r->parts[i], z, r->terms || r->norm ? z : NULL, n,
                          false, r->job->modifiers ? max : NULL, r->norm);
}
static bool is_empty(const struct long_row *r) { return r->job->modifiers && r->job->modifiers->empty && !r->some; }

static void run_prepared_finish(void *row, size_t i) {
    struct long_row *r = row;
    const struct job *j = r->job;
    double tile[FSM_BLOCK];
    char *z = terms_of_part(r, i, tile);
    size_t n = elements_of(r, i);
    if (is_empty(r)) {
        fill_empty(j, computed(j->type), z, n);
    } else {
        double max;
        if (!r->terms) prepare(j, &r->source, i * FSM_BLOCK, n, z, least(j, &max, 0));
        j->kernels->finish(j->op, computed(j->type), NULL, &r->parts[i], z, r->terms ? z : NULL, z, n, false);
    }
    if (r->factor) j->kernels->times(z, n, r->factor);
    if (is_half(j->type)) j->kernels->narrow(j->type, (float *)(void *)z, 0, r->y + bytes_before(j->type, i), 0, 1, n);
}

/* ---- Rows that are not ---- */

static void run_part(void *row, size_t i) {
    struct long_row *r = row;
    const struct job *j = r->job;
    struct fsm_part *part = &r->parts[i];
    struct fsm_modify how;
    if (r->fused) how = how_of(j, &r->source, i * FSM_BLOCK);
    j->kernels->part(j->op, j->type, r->fused ? &how : NULL, part, r->source.x + bytes_before(j->type, i),
                     terms_of_part(r, i, NULL), elements_of(r, i), j->once, NULL, r->norm);
    if (r->fused && (part->max > -(double)INFINITY || isnan(part->sum.hi)))
        atomic_store_explicit(&r->some, true, memory_order_relaxed);
}

static void run_finish(void *row, size_t i) {
    struct long_row *r = row;
    const struct job *j = r->job;
    const size_t bytes = bytes_before(j->type, i), n = elements_of(r, i);
    struct fsm_modify how;
    if (r->fused) how = how_of(j, &r->source, i * FSM_BLOCK);
    if (is_empty(r))
        fill_empty(j, j->type, r->y + bytes, n);
    else
        j->kernels->finish(j->op, j->type, r->fused ? &how : NULL, &r->parts[i], r->source.x + bytes,
                           terms_of_part(r, i, NULL), r->y + bytes, n, j->past);
    if (r->factor) j->kernels->times(r->y + bytes, n, r->factor);
}

/* ---- Both ---- */

/* The parts of a row, summed and joined. `beside` is memory, bytes_for_long of it; a reduction's number, the norm (NULL: not wanted)
 * and the factor (NULL: none; it may become known before finish_parts) are of the computed type. */
static struct long_row sum_parts(const struct job *j, struct source source, void *y, void *norm, char *beside,
                                 unsigned threads) {
    struct fsm_part *parts = (struct fsm_part *)(void *)beside;
    struct long_row r = {.job = j, .source = source, .y = y, .parts = parts, .norm = norm};
    r.fused = !is_bare(j) && is_fused(j);
    if (is_half(j->type) && bytes_of_terms(j))
        r.terms = beside + bytes_of_parts(j);
    else if (!is_half(j->type) && !fsm_is_reduction(j->op) && !j->again)
        r.terms = y;
    fsm_pool_run(is_prepared(&r) ? run_prepared_part : run_part, &r, parts_of(j), threads);
    j->kernels->join(j->op, parts, parts_of(j), j->row.count, y, norm);
    return r;
}

static void finish_parts(struct long_row *r, unsigned threads) {
    if (!fsm_is_reduction(r->job->op))
        fsm_pool_run(is_prepared(r) ? run_prepared_finish : run_finish, r, parts_of(r->job), threads);
}

static void run_parts(const struct job *j, struct source source, void *y, void *norm, const void *factor, char *beside,
                      unsigned threads) {
    struct long_row r = sum_parts(j, source, y, norm, beside, threads);
    r.factor = factor;
    finish_parts(&r, threads);
}

static void run_long_loss(const struct job *j, size_t outer, size_t inner, struct source source, char *y, char *beside,
                          unsigned threads) {
    struct fsm_targets t = targets_of(j, outer, inner);
    struct losses l;
    double max;
    float number;
    size_t target = *t.target == t.ignored ? 0 : (size_t)*t.target;
    prepare(j, &source, target, 1, l.log_probs, least(j, &max, 0)); /* now: y may be x */
    struct job plain = *j;
    plain.op = plain_op(j->op);
    struct long_row r =
        sum_parts(&plain, source, j->op == FSM_LOG_PROB ? (void *)&number : y, l.norms, beside, threads);
    put_lses(j, outer, inner, &l, 1);
    find_losses(j, &t, outer, inner, 1, &l);
    if (j->op == FSM_LOG_PROB) return;
    if (value_of(j, l.slopes) == 0) {
        memset(y, 0, j->row.count * size_of[j->type]);
    } else {
        r.factor = l.slopes;
        finish_parts(&r, threads);
    }
    if (*t.target != t.ignored)
        put_number(j, j->type, y + target * size_of[j->type], value_of(j, at(l.slopes, 1, computed(j->type))));
}

static void run_long(const struct job *j, size_t outer, size_t inner, const void *x, void *y, char *beside,
                     unsigned threads) {
    struct source source = source_of(j, x, outer, inner);
    struct losses l;
    float number;
    bool half_number = is_half(j->type) && fsm_is_reduction(j->op), lse = j->modifiers && j->modifiers->lse;
    if (fsm_has_target(j->op)) {
        run_long_loss(j, outer, inner, source, y, beside, threads);
        return;
    }
    if (lse && !wants_norms(j)) {
        struct job other = *j;
        other.op = FSM_LOGSUMEXP;
        run_parts(&other, source, lse_of(j, outer, inner), NULL, NULL, beside, threads);
    }
    run_parts(j, source, half_number ? (void *)&number : y, wants_norms(j) ? l.norms : NULL, NULL, beside, threads);
    if (wants_norms(j)) put_lses(j, outer, inner, &l, 1);
    if (half_number) put_number(j, j->type, y, (double)number);
}

static bool is_long(const struct job *j) { return fsm_is_blockwise(j->op) && j->row.count > FSM_BLOCK; }

static void run_task_long(void *job, size_t index) {
    struct job *j = job;
    struct task t = task_of(j, index);
    size_t mine = take_piece(j);
    run_long(j, t.outer, t.inner, t.x, t.y, piece(j, mine), 1);
    give_back(j, mine);
}

static fsm_status share_rows(struct job *j, unsigned threads) {
    char *beside = malloc(bytes_for_long(j));
    if (!beside) return FSM_NO_MEMORY;
    for (size_t o = 0; o < j->outer.count; o++)
        for (size_t i = 0; i < j->inner.count; i++) run_long(j, o, i, x_row(j, o, i), y_row(j, o, i), beside, threads);
    free(beside);
    return FSM_OK;
}

/* All rows, which are long and lie in one piece. */
static fsm_status run_whole_long(struct job *j, unsigned threads) {
    group_rows(j, 1);
    if (threads > 1 && j->outer.count * j->inner.count < 4 * (size_t)threads) return share_rows(j, threads);
    return run_with_scratch(run_task_long, j, bytes_for_long(j), threads);
}

#endif
