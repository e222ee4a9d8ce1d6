/* Rows that have a target, and what is known of their losses. Included by rows.c alone. */
#ifndef FSM_TARGET_H
#define FSM_TARGET_H

static bool are_targets_in_range(const struct job *j) {
    const fsm_modifiers *m = j->modifiers;
    int64_t n = j->row.count > INT64_MAX ? INT64_MAX : (int64_t)j->row.count;
    bool good = true;
    for (size_t o = 0; o < j->outer.count; o++)
        for (size_t i = 0; i < j->inner.count; i++) {
            int64_t target = m->target[distance_of(j, m->target_strides[0], m->target_strides[1], o, i)];
            good &= (target >= 0 && target < n) | (target == m->ignored);
        }
    return good;
}

/* Rows from one on, next to each other along the inner dimension, as the kernels take them. */
static struct fsm_targets targets_of(const struct job *j, size_t outer, size_t inner) {
    const fsm_modifiers *m = j->modifiers;
    int along = !j->swapped; /* of two strides, that of what is inner here */
    return (struct fsm_targets){
        .target = m->target + distance_of(j, m->target_strides[0], m->target_strides[1], outer, inner),
        .target_step = m->target_strides[along],
        .ignored = m->ignored,
        .scale = number_of(j, m->scale, m->scale_strides, outer, inner),
        .scale_step = m->scale_strides[along],
        .temperature = number_of(j, m->temperature, m->temperature_strides, outer, inner),
        .temperature_step = m->temperature_strides[along],
        .lse_scale = m->lse_scale,
    };
}

/* Of some rows, numbers of the computed type: norms and slopes two each. log_probs are the targets themselves first. Doubles have
 * room for all. */
struct losses {
    double norms[2 * NUMBERS], log_probs[NUMBERS], slopes[2 * NUMBERS];
};

/* logsumexp of rows, from their norms. */
static void put_lses(const struct job *j, size_t outer, size_t inner, const struct losses *l, size_t rows) {
    fsm_type type = computed(j->type);
    for (size_t r = 0; j->modifiers->lse && r < rows; r++) {
        double hi = value_of(j, at(l->norms, 2 * (ptrdiff_t)r, type));
        double lse = isnan(hi) ? value_of(j, at(l->norms, 2 * (ptrdiff_t)r + 1, type)) : hi;
        put_number(j, type, lse_of(j, outer, inner + r), lse);
    }
}

/* From norms and targets to losses, and to where these are wanted: y for FSM_LOG_PROB. */
static void find_losses(const struct job *j, const struct fsm_targets *t, size_t outer, size_t inner, size_t rows,
                        struct losses *l) {
    const fsm_modifiers *m = j->modifiers;
    fsm_type type = computed(j->type);
    j->kernels->log_probs(t, rows, l->norms, l->log_probs);
    if (j->op == FSM_LOSS_GRAD) j->kernels->slopes(t, rows, l->norms, l->log_probs, l->slopes);
    if (m->log_prob)
        copy(type, l->log_probs, 0, 1, number_of(j, m->log_prob, m->log_prob_strides, outer, inner), 0,
             m->log_prob_strides[!j->swapped], 1, rows);
    if (j->op == FSM_LOG_PROB && !is_half(j->type))
        copy(type, l->log_probs, 0, 1, y_row(j, outer, inner), 0, j->inner.y, 1, rows);
    else if (j->op == FSM_LOG_PROB)
        j->kernels->narrow(j->type, (float *)(void *)l->log_probs, 1, y_row(j, outer, inner), j->inner.y, rows, 1);
}

/* The op of rows by the kernels that what is wanted of them is made of. */
static fsm_op plain_op(fsm_op op) {
    return op == FSM_LOG_PROB ? FSM_LOGSUMEXP : op == FSM_LOSS_GRAD ? FSM_SOFTMAX : op;
}

#endif
