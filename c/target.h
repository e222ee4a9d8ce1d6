/* Rows that have a target: its log-probability, and the gradient of a loss made of it. Included by rows.c alone. */
#ifndef FSM_TARGET_H
#define FSM_TARGET_H

static int64_t target_of(const struct job *j, size_t outer, size_t inner) {
    const ptrdiff_t *strides = j->modifiers->target_strides;
    return j->modifiers->target[distance_of(j, strides[0], strides[1], outer, inner)];
}
static bool is_ignored(const struct job *j, size_t outer, size_t inner) {
    return target_of(j, outer, inner) == j->modifiers->ignored;
}

static bool are_targets_in_range(const struct job *j) {
    bool good = true;
    for (size_t o = 0; o < j->outer.count; o++)
        for (size_t i = 0; i < j->inner.count; i++) {
            int64_t target = target_of(j, o, i);
            good &= (target >= 0 && (uint64_t)target < j->row.count) || target == j->modifiers->ignored;
        }
    return good;
}

/* What is known of a row once it is summed, and what becomes of it. Doubles hold float32 values exactly. */
struct loss {
    double log_prob;
    double factor; /* what softmax is multiplied by for the gradient; 0: there is none at all */
    double at_target;
};

/* The norms (FSM_LOG_NORM) of rows are two numbers each. */
static const void *norm_of(const struct job *j, const void *norms, size_t row) {
    return at(norms, 2 * (ptrdiff_t)row, computed(j->type));
}

/* logsumexp from the norm, if it is not NaN: then there is no log_softmax, but logsumexp may be infinite. */
static bool put_lse(const struct job *j, const void *norm, void *lse) {
    double hi = value_of(j, norm);
    if (!isnan(hi)) put_number(j, computed(j->type), lse, hi);
    return !isnan(hi);
}

/* x less the norm (FSM_LOG_NORM), with the bits of log_softmax. */
static double log_prob_of(const struct job *j, double x, const void *norm) {
    double hi = value_of(j, norm), lo = value_of(j, at(norm, 1, computed(j->type)));
    if (isnan(hi)) return NAN;
    return computed(j->type) == FSM_F32 ? (double)(((float)x - (float)hi) - (float)lo) : (x - hi) - lo;
}

/* p at the target less 1 is e^log p - 1, where nothing cancels. */
static struct loss loss_of(const struct job *j, size_t outer, size_t inner, double x, const void *norm) {
    const fsm_modifiers *m = j->modifiers;
    if (is_ignored(j, outer, inner)) return (struct loss){0, 0, 0};
    struct loss l = {log_prob_of(j, x, norm), 0, 0};
    if (j->op != FSM_LOSS_GRAD) return l;
    const void *scale = number_of(j, m->scale, m->scale_strides, outer, inner);
    double temperature = source_of(j, NULL, outer, inner).temperature;
    double by_loss = (scale ? value_of(j, scale) : 1) / temperature;
    double by_lse = m->lse_scale == 0 ? 0 : m->lse_scale * value_of(j, norm) / temperature;
    if (by_loss == 0 && by_lse == 0) return l;
    double less = j->kernels->expm1(l.log_prob);
    l.factor = by_loss + by_lse;
    l.at_target = by_loss * less + by_lse * (1 + less);
    return l;
}

/* What is wanted of the row besides its results. */
static void put_loss(const struct job *j, size_t outer, size_t inner, const struct loss *l) {
    void *log_prob = number_of(j, j->modifiers->log_prob, j->modifiers->log_prob_strides, outer, inner);
    if (log_prob) put_number(j, computed(j->type), log_prob, l->log_prob);
}

#endif
