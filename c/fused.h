/* Rows with modifiers: those that the kernels modify on the way, and who goes which way. Included by rows.c alone. */
#ifndef FSM_FUSED_H
#define FSM_FUSED_H

enum { FUSED = 49 }; /* rows from this length on are modified on the way; shorter ones are worked on side by side */

/* Where they may be cut, all results of a row of nothing are what -inf gives. */
static struct cut cut_of_fused(const struct job *j, size_t outer, size_t inner, size_t rows) {
    const void *empty = j->modifiers->empty;
    bool usual = !empty || value_of(j, empty) == (j->op == FSM_LOG_SOFTMAX ? -INFINITY : 0);
    return usual ? cut_of(j, outer, inner, rows) : (struct cut){0, j->row.count};
}

static void run_fused_rows(const struct job *j, size_t outer, size_t inner, size_t rows) {
    struct cut c = cut_of_fused(j, outer, inner, rows);
    const char *x = x_row(j, outer, inner);
    char *y = y_row(j, outer, inner);
    struct source s = source_of(j, x, outer, inner);
    struct fsm_modify how = how_of(j, &s, c.from);
    struct losses l;
    bool one = fsm_is_reduction(j->op);
    j->kernels->rows(j->op, j->type, is_bare(j) ? NULL : &how, at(x, (ptrdiff_t)c.from, j->type), j->inner.x,
                     one ? y : (char *)at(y, (ptrdiff_t)c.from, j->type), j->inner.y, rows, c.to - c.from, NULL,
                     wants_norms(j) ? l.norms : NULL);
    if (wants_norms(j)) put_lses(j, outer, inner, &l, rows);
    for (size_t r = 0; !one && c.to - c.from < j->row.count && r < rows; r++)
        fill_ends(j, j->type, (char *)at(y, (ptrdiff_t)r * j->inner.y, j->type), c);
}

static void run_task_fused(void *job, size_t index) {
    const struct job *j = job;
    struct task t = task_of(j, index);
    const size_t some = j->modifiers->where ? rows_together(j) : NUMBERS;
    for (size_t r = 0; r < t.rows; r += some)
        run_fused_rows(j, t.outer, t.inner + r, t.rows - r < some ? t.rows - r : some);
}

static fsm_status run_modified(struct job *j, unsigned threads) {
    if (j->row.count == 1) j->row.x = j->row.y = 1;
    if (is_in_one_piece(j) && is_long(j) && !j->modifiers->sink) return run_whole_long(j, threads);
    size_t some = rows_together(j), more = CHUNK / (some * total_of(j));
    group_rows(j, some * (more < 1 ? 1 : more));
    if (!is_in_one_piece(j) || j->row.count < FUSED || !is_fused(j))
        return run_with_scratch(run_task_modified, j, plan_of(j).bytes, threads);
    fsm_pool_run(run_task_fused, j, tasks_of(j), threads);
    return FSM_OK;
}

#endif
