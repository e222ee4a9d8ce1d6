/* Direct calls of softmax, log_softmax and logsumexp, and of the gradients of the first two.
 * Included by prelude.h alone. */
#ifndef FSM_DIRECT_CALLS_H
#define FSM_DIRECT_CALLS_H

/* An array and what its rows are: n elements of dimensions first to before last. */
struct rows {
    const struct array *x;
    fsm_type type;
    size_t size, bytes, n, inner; /* bytes of an element */
    int first, last;
};

/* x, which must be an array of these dtypes, contiguous, and its rows along one axis or all (None). */
static bool take_rows(const struct direct *how, PyObject *given, PyObject *along, struct rows *r) {
    const struct array *x = r->x = (const struct array *)given;
    if ((uintptr_t)Py_TYPE(given) != how->ndarray) return false;
    r->type = FSM_F32;
    while (r->type < DIRECT_TYPES && (uintptr_t)x->dtype != how->dtypes[r->type]) r->type++;
    if (r->type == DIRECT_TYPES || (x->flags & NATIVE) != NATIVE || x->ndim > MOST_DIMENSIONS) return false;
    r->size = r->n = times(1, x->shape, x->shape + x->ndim);
    r->bytes = size_of_type(r->type);
    r->inner = 1, r->first = 0, r->last = x->ndim;
    if (r->size == 0) return false;
    if (along == Py_None) return true;
    int overflow = 0;
    if (!PyLong_CheckExact(along)) return false;
    long axis = PyLong_AsLongAndOverflow(along, &overflow);
    if (axis < 0) axis += x->ndim;
    if (overflow || axis < 0 || axis >= x->ndim) return false;
    r->n = (size_t)x->shape[axis];
    r->first = (int)axis, r->last = r->first + 1;
    r->inner = times(1, x->shape + axis + 1, x->shape + x->ndim);
    return true;
}

/* Run it; letting go of the GIL takes 40 ns, and 5 us when another thread waits for it. */
static fsm_status run_rows(const struct direct *how, const struct rows *r, fsm_op op, void *to, long threads,
                           const fsm_modifiers *modifiers) {
    PyThreadState *state = r->size < how->tiny_below ? NULL : PyEval_SaveThread();
    fsm_status status = fsm_run_modified(how->isa, op, r->type, r->x->data, to, r->size / r->n / r->inner, r->n,
                                         r->inner, NULL, (unsigned)threads, modifiers);
    if (state) PyEval_RestoreThread(state);
    return status;
}

static long threads_of(const struct direct *how, const struct rows *r) {
    return r->size < how->alone_below[r->type] ? 1 : ask_threads(how, r->size, r->x->dtype);
}

static void *data_of(PyObject *y, bool scalar, fsm_type type) {
    return !scalar           ? (void *)((struct array *)y)->data
           : type == FSM_F32 ? (void *)&((struct scalar32 *)y)->value
           : type == FSM_F64 ? (void *)&((struct scalar64 *)y)->value
                             : (void *)&((struct scalar16 *)y)->value;
}

/* Where the logsumexp of each row goes, a new array or scalar of the type computed in; NULL after an exception. */
static PyObject *new_lse(const struct direct *how, const struct rows *r, bool scalar, fsm_modifiers *m) {
    fsm_type computed = r->type == FSM_F64 ? FSM_F64 : FSM_F32;
    PyObject *lse =
        scalar ? new_scalar(how->scalars[computed]) : new_array(how, r->x, r->first, object(how->dtypes[computed]));
    if (lse) m->lse = data_of(lse, scalar, computed);
    m->lse_strides[0] = (ptrdiff_t)r->inner;
    m->lse_strides[1] = 1;
    return lse;
}

/* call(x, axis, out), or with where, temperature, bias, softcap and return_lse: the result, with logsumexp a pair; or None for
 * what is not simple. */
static PyObject *call(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    const struct direct *how = PyLong_AsVoidPtr(self);
    struct rows r;
    if ((count != WHERE && count != ARGUMENTS) || !take_rows(how, args[0], args[1], &r)) Py_RETURN_NONE;
    bool all = args[1] == Py_None, with_lse = count == ARGUMENTS && args[RETURN_LSE] == Py_True;
    if (count == ARGUMENTS && !with_lse && args[RETURN_LSE] != Py_False) Py_RETURN_NONE;
    int ndim = !how->reduces ? r.x->ndim : all ? 0 : r.x->ndim - 1; /* of the result, */
    int gone = !how->reduces || all ? ndim : r.first;               /* with all of x as one row for None */

    long threads = threads_of(how, &r);
    if (threads < 1) return NULL;
    size_t x_bytes = r.size * r.bytes, y_bytes = how->reduces ? x_bytes / r.n : x_bytes;
    const struct array *given = args[2] != Py_None ? (struct array *)args[2] : NULL;
    struct modified d;
    if (given && !fits(how, r.x, given, ndim, gone, x_bytes, y_bytes)) Py_RETURN_NONE;
    if (count == ARGUMENTS && !take_modifiers(how, args, r.type, r.x, r.first, r.last, given, x_bytes, &d))
        Py_RETURN_NONE;
    bool scalar = !given && how->reduces && ndim == 0;
    PyObject *y = given    ? Py_NewRef(args[2])
                  : scalar ? new_scalar(how->scalars[r.type])
                           : new_array(how, r.x, gone, r.x->dtype);
    PyObject *lse = with_lse && y ? new_lse(how, &r, all || r.x->ndim == 1, &d.m) : NULL, *result = NULL;
    if (y && (lse || !with_lse)) {
        fsm_status status =
            run_rows(how, &r, how->op, data_of(y, scalar, r.type), threads, count == ARGUMENTS ? &d.m : NULL);
        /* Without scratch memory: None, the caller finds that out as well, and says so. */
        result = status != FSM_OK ? Py_NewRef(Py_None) : lse ? PyTuple_Pack(2, y, lse) : Py_NewRef(y);
    }
    Py_XDECREF(y);
    Py_XDECREF(lse);
    return result;
}

/* ---- Gradients ---- */

enum { GIVEN, RESULT, ALONG, OUT, VJP_ARGUMENTS };

/* vjp(g, y, axis, out): the result, or None for what is not simple. */
static PyObject *vjp(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    const struct direct *how = PyLong_AsVoidPtr(self);
    struct rows r;
    if (count != VJP_ARGUMENTS || !take_rows(how, args[RESULT], args[ALONG], &r)) Py_RETURN_NONE;
    const struct array *y = r.x, *g = (const struct array *)args[GIVEN];
    const size_t bytes = r.size * r.bytes;
    if ((uintptr_t)Py_TYPE(args[GIVEN]) != how->ndarray || g->dtype != y->dtype) Py_RETURN_NONE;
    if ((g->flags & NATIVE) != NATIVE || g->ndim != y->ndim) Py_RETURN_NONE;
    for (int i = 0; i < y->ndim; i++)
        if (g->shape[i] != y->shape[i]) Py_RETURN_NONE;
    const struct array *out = args[OUT] != Py_None ? (const struct array *)args[OUT] : NULL;
    if (out &&
        !(fits(how, y, out, y->ndim, y->ndim, bytes, bytes) && fits(how, g, out, y->ndim, y->ndim, bytes, bytes)))
        Py_RETURN_NONE;
    const long threads = threads_of(how, &r);
    if (threads < 1) return NULL;
    PyObject *dx = out ? Py_NewRef(args[OUT]) : new_array(how, y, y->ndim, y->dtype);
    if (!dx) return NULL;
    PyThreadState *state = r.size < how->tiny_below ? NULL : PyEval_SaveThread();
    fsm_status status = fsm_vjp(how->isa, how->op, r.type, g->data, y->data, data_of(dx, false, r.type),
                                r.size / r.n / r.inner, r.n, r.inner, NULL, (unsigned)threads);
    if (state) PyEval_RestoreThread(state);
    if (status == FSM_OK) return dx;
    Py_DECREF(dx);
    Py_RETURN_NONE; /* as in call */
}

#endif
