/* Direct calls of cross_entropy and token_logprobs. Included by prelude.h alone. */
#ifndef FSM_DIRECT_LOSSES_H
#define FSM_DIRECT_LOSSES_H

enum { LOGITS, TARGET, AXIS, IGNORED, REDUCTION, GRADIENT, LOSS_ARGUMENTS };
enum { LOG_PROBS, NONE, SUM, MEAN }; /* reductions, as _losses.py numbers them; the first is of token_logprobs */
enum { FEW = 64 };                   /* rows whose losses need no memory */

/* Whether target is an int64 for each row. */
static bool are_targets(const struct direct *how, PyObject *given, const struct rows *r) {
    const struct array *t = (const struct array *)given, *x = r->x;
    if ((uintptr_t)Py_TYPE(given) != how->ndarray || (uintptr_t)t->dtype != how->integer) return false;
    if ((t->flags & NATIVE) != NATIVE || t->ndim != x->ndim - 1) return false;
    for (int i = 0; i < t->ndim; i++)
        if (t->shape[i] != x->shape[i + (i >= r->first)]) return false;
    return true;
}

/* The i-th loss of logarithms in the computed type. */
static double loss_at(const void *logs, fsm_type type, size_t i) {
    return 0 - (type == FSM_F64 ? ((const double *)logs)[i] : (double)((const float *)logs)[i]);
}

/* The sum, as if computed exactly and rounded once (see _sums.py). */
static double sum_of_losses(const void *logs, fsm_type type, size_t rows) {
    double hi = 0, lo = 0, plain = 0;
    for (size_t i = 0; i < rows; i++) {
        double v = loss_at(logs, type, i), sum = hi + v, back = sum - hi;
        lo += (hi - (sum - back)) + (v - back);
        hi = sum;
        plain += v;
    }
    return plain - plain == 0 ? hi + lo : plain;
}

/* A number rounded to a half type: to nearest, ties to even. */
static uint16_t to_half(double v, fsm_type type) {
    if (v < 0) return 0x8000 | to_half(-v, type);
    int digits = type == FSM_F16 ? 11 : 8, lowest = type == FSM_F16 ? -14 : -126, e;
    uint16_t infinity = type == FSM_F16 ? 0x7c00 : 0x7f80;
    if (!(v <= 1e39)) return infinity | (v != v);
    (void)frexp(v, &e); /* v < 2^e */
    e = v == 0 || e - 1 < lowest ? lowest : e - 1;
    double units = nearbyint(ldexp(v, digits - 1 - e)); /* of the last place; those of the next power of two carry on */
    double bits = units + ldexp(e - lowest, digits - 1);
    return bits < infinity ? (uint16_t)bits : infinity;
}

static void put_loss(void *p, size_t i, fsm_type type, double value) {
    if (type == FSM_F32)
        ((float *)p)[i] = (float)value;
    else if (type == FSM_F64)
        ((double *)p)[i] = value;
    else
        ((uint16_t *)p)[i] = to_half(value, type);
}

/* What rows have in common, and what becomes of their logarithms: a result of one number, or of as many as rows. */
struct loss {
    fsm_modifiers m;
    size_t rows, counted; /* those that are not ignored */
    double share;         /* of each in the loss, and the same in float32 */
    float share32;
};

/* False for what is not simple. */
static bool take_targets(const struct direct *how, PyObject *const *args, const struct rows *r, bool mean,
                         struct loss *l) {
    int overflow = 0;
    if (!are_targets(how, args[TARGET], r) || !PyLong_CheckExact(args[IGNORED])) return false;
    memset(&l->m, 0, sizeof l->m);
    l->m.target = (const int64_t *)(const void *)((struct array *)args[TARGET])->data;
    l->m.ignored = PyLong_AsLongLongAndOverflow(args[IGNORED], &overflow);
    l->m.target_strides[0] = l->m.log_prob_strides[0] = (ptrdiff_t)r->inner;
    l->m.target_strides[1] = l->m.log_prob_strides[1] = 1;
    l->rows = r->size / r->n, l->counted = 0;
    for (size_t i = 0; i < l->rows; i++) l->counted += l->m.target[i] != l->m.ignored;
    l->share = mean && l->counted ? 1 / (double)l->counted : 1;
    l->share32 = (float)l->share;
    l->m.scale = r->type == FSM_F64 ? (void *)&l->share : (void *)&l->share32;
    return !overflow;
}

/* Whether the gradient can go to y: an array that fits, and lies apart from the targets. */
static bool can_take_gradient(const struct direct *how, const struct rows *r, const struct array *y,
                              const struct loss *l) {
    size_t bytes = r->size * r->bytes;
    const char *targets = (const char *)l->m.target;
    return fits(how, r->x, y, r->x->ndim, r->x->ndim, bytes, bytes) &&
           (y->data >= targets + l->rows * sizeof(int64_t) || targets >= y->data + bytes);
}

/* Logarithms to `logs`, of which there is room for doubles; gradients to g, if there is one. */
static fsm_status find_logs(const struct direct *how, const struct rows *r, struct loss *l, PyObject *g, void *logs,
                            long threads) {
    void *beside = (float *)logs + l->rows; /* results of half types, that nobody asked for */
    bool half = r->type != FSM_F32 && r->type != FSM_F64;
    l->m.log_prob = g || half ? logs : NULL;
    return run_rows(how, r, g ? FSM_LOSS_GRAD : FSM_LOG_PROB,
                    g      ? data_of(g, false, r->type)
                    : half ? beside
                           : logs,
                    threads, &l->m);
}

static void put_losses(const struct rows *r, const struct loss *l, const void *logs, long reduction, void *value) {
    for (size_t i = 0; reduction == LOG_PROBS && i < l->rows; i++)
        put_loss(value, i, r->type, 0 - loss_at(logs, r->type, i));
    for (size_t i = 0; reduction == NONE && i < l->rows; i++) put_loss(value, i, r->type, loss_at(logs, r->type, i));
    if (reduction == LOG_PROBS || reduction == NONE) return;
    double sum = sum_of_losses(logs, r->type, l->rows);
    put_loss(value, 0, r->type, reduction == SUM ? sum : l->counted ? sum / (double)l->counted : Py_NAN);
}

/* loss(logits, target, axis, ignored, reduction, gradient): the loss, with a gradient (True, or the array it is put in) a pair;
 * or None for what is not simple. */
static PyObject *loss(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    const struct direct *how = PyLong_AsVoidPtr(self);
    struct rows r;
    struct loss l;
    if (count != LOSS_ARGUMENTS || args[AXIS] == Py_None || !take_rows(how, args[LOGITS], args[AXIS], &r))
        Py_RETURN_NONE;
    long reduction = PyLong_AsLong(args[REDUCTION]);
    PyObject *gradient = args[GRADIENT] == Py_False ? NULL : args[GRADIENT];
    if (!take_targets(how, args, &r, reduction == MEAN, &l)) Py_RETURN_NONE;
    if (reduction == LOG_PROBS && l.counted < l.rows) Py_RETURN_NONE; /* where none can be ignored */
    if (gradient && gradient != Py_True && !can_take_gradient(how, &r, (struct array *)gradient, &l)) Py_RETURN_NONE;
    long threads = threads_of(how, &r);
    if (threads < 1) return NULL;

    bool scalar = reduction == SUM || reduction == MEAN || r.x->ndim == 1;
    double few[FEW], *logs = l.rows > FEW ? PyMem_Malloc(l.rows * sizeof *logs) : few;
    PyObject *y = scalar ? new_scalar(how->scalars[r.type]) : new_array(how, r.x, r.first, r.x->dtype);
    PyObject *g = !gradient             ? NULL
                  : gradient == Py_True ? new_array(how, r.x, r.x->ndim, r.x->dtype)
                                        : Py_NewRef(gradient);
    PyObject *result = NULL;
    if (!logs) {
        PyErr_NoMemory();
    } else if (y && (g || !gradient)) {
        if (find_logs(how, &r, &l, g, logs, threads) != FSM_OK) {
            result = Py_NewRef(Py_None); /* the caller finds out why, and says so */
        } else {
            put_losses(&r, &l, logs, reduction, data_of(y, scalar, r.type));
            result = g ? PyTuple_Pack(2, y, g) : Py_NewRef(y);
        }
    }
    if (logs != few) PyMem_Free(logs);
    Py_XDECREF(y);
    Py_XDECREF(g);
    return result;
}

#endif
