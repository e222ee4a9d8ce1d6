#include "fastsoftmax.h"
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* Direct calls: a function that Python calls as it calls its own, without cffi, with NumPy's arrays as they are.
 *
 * softmax of 10 float32, all in all, in times of np.empty (140 to 220 ns on a shared Zen 3, Python 3.11):
 *    1.7  this
 *    3.4  with a result that a function of NumPy's was called for as Python does: x.copy(), the cheapest (1.2 of it)
 *    4.7  that, and one argument through cffi, id(y), from which C reads the same fields
 *    6.4  np.empty, and id(x) and id(y) through cffi, which makes a tuple of two arguments or more
 *   17    two ffi.from_buffer (1.1 each) and fsm_run through cffi (2.1, for ten arguments), all checks in Python
 * PyObject_GetBuffer takes 0.4 an array more than the fields; np.float32() as Python calls it, 0.8 more than its tp_alloc. */

/* What is read of NumPy's objects, and what comes before it: PyArrayObject_fields and the scalars, which NumPy compiles
 * into every extension that includes its headers (ndarraytypes.h, arrayscalars.h; the headers themselves would make NumPy
 * a requirement of the build), like the places in its table of functions (__multiarray_api.h). c.py makes a direct function
 * only where the fields are what Python says. */
struct array {
    PyObject_HEAD char *data;
    int ndim;
    intptr_t *shape, *strides;
    void *base, *dtype;
    int flags;
};
struct scalar32 {
    PyObject_HEAD float value;
};
struct scalar64 {
    PyObject_HEAD double value;
};
struct scalar16 {
    PyObject_HEAD uint16_t value;
};

enum { DIRECT_TYPES = FSM_BF16 + 1 };

enum direct_kind { DIRECT_CALL, DIRECT_LOSS, DIRECT_VJP };

/* What a direct function does, and the objects it needs, borrowed from c.py. */
struct direct {
    const fsm_isa *isa;
    fsm_op op;
    enum direct_kind kind;
    int reduces;
    size_t tiny_below;                /* elements that are no longer a tiny call, see there, */
    size_t alone_below[DIRECT_TYPES]; /* nor always one for a single thread: to ask takes 1 us */
    uintptr_t ndarray, dtypes[DIRECT_TYPES],
        scalars[DIRECT_TYPES];  /* types and dtypes, as fsm_type numbers them; 0: unknown */
    uintptr_t boolean, integer; /* the dtypes of a mask, and of targets */
    uintptr_t numpy;            /* the capsule with NumPy's table of functions */
    void **functions;           /* that table, set here */
    uintptr_t threads;          /* (elements, dtype): for how many threads a call is */
};

#if defined METH_FASTCALL && !defined Py_GIL_DISABLED && !defined PYPY_VERSION

static PyObject *object(uintptr_t address) { return (PyObject *)address; }

static size_t times(size_t product, const intptr_t *from, const intptr_t *to) {
    while (from < to) product *= (size_t)*from++;
    return product;
}

enum { GET_VERSION = 0, EMPTY = 184 }; /* places of PyArray_GetNDArrayCVersion and PyArray_Empty */

/* NumPy's table of functions; NULL of a version that is not known to have these. */
static void **functions_of(uintptr_t capsule) {
    void **table = PyCapsule_GetPointer(object(capsule), NULL);
    unsigned version = table ? ((unsigned (*)(void))table[GET_VERSION])() : 0;
    return version == 0x01000009 || version == 0x02000000 ? table : NULL;
}

enum { MOST_DIMENSIONS = 64 }; /* NPY_MAXDIMS */

/* An array of the shape of x without the axis that is gone (ndim: none). */
static PyObject *new_array(const struct direct *how, const struct array *x, int gone, void *dtype) {
    typedef PyObject *empty(int ndim, const intptr_t *shape, void *dtype, int fortran);
    intptr_t shape[MOST_DIMENSIONS];
    int ndim = x->ndim - (gone < x->ndim);
    for (int i = 0; i < ndim; i++) shape[i] = x->shape[i + (i >= gone)];
    Py_INCREF((PyObject *)dtype); /* for it to take */
    return ((empty *)how->functions[EMPTY])(ndim, shape, dtype, 0);
}

/* A scalar, as NumPy makes them. */
static PyObject *new_scalar(uintptr_t type) {
    allocfunc allocate = (allocfunc)PyType_GetSlot((PyTypeObject *)type, Py_tp_alloc);
    return allocate((PyTypeObject *)type, 0);
}

enum { NATIVE = 0x1 | 0x100, WRITEABLE = 0x400 }; /* NPY_ARRAY_C_CONTIGUOUS | _ALIGNED: and see `dtypes` */

/* Whether y is an array for the results: of that shape, and x itself (unless the op reduces) or apart from it. */
static bool fits(const struct direct *how, const struct array *x, const struct array *y, int ndim, int gone,
                 size_t x_bytes, size_t y_bytes) {
    if ((uintptr_t)Py_TYPE((PyObject *)y) != how->ndarray || y->dtype != x->dtype || y->ndim != ndim) return false;
    if ((y->flags & (NATIVE | WRITEABLE)) != (NATIVE | WRITEABLE)) return false;
    for (int i = 0; i < ndim; i++)
        if (y->shape[i] != x->shape[i + (i >= gone)]) return false;
    uintptr_t a = (uintptr_t)x->data, b = (uintptr_t)y->data;
    return a + x_bytes <= b || b + y_bytes <= a || (a == b && !how->reduces);
}

/* How many threads; -1 after an exception. */
static long ask_threads(const struct direct *how, size_t elements, void *dtype) {
    PyObject *size = PyLong_FromSize_t(elements);
    PyObject *count = size ? PyObject_CallFunctionObjArgs(object(how->threads), size, (PyObject *)dtype, NULL) : NULL;
    long threads = count ? PyLong_AsLong(count) : -1;
    Py_XDECREF(size);
    Py_XDECREF(count);
    return threads;
}

/* ---- Modifiers: floats, and contiguous arrays that broadcast along whole groups of dimensions ---- */

enum { WHERE = 3, TEMPERATURE, BIAS, SOFTCAP, RETURN_LSE, ARGUMENTS };

struct modified {
    fsm_modifiers m;
    float temperature32, empty32;
    double temperature64, empty64;
};

/* The strides of a for the outer dimensions of x, those of a row (from first to before last) and the inner ones. */
static bool strides_of(const struct array *a, const struct array *x, int first, int last, ptrdiff_t *strides) {
    int ends[] = {0, first, last, x->ndim}, missing = x->ndim - a->ndim;
    intptr_t step = 1;
    if (missing < 0) return false;
    for (int group = 2; group >= 0; group--) {
        intptr_t next = -1; /* the stride of the next dimension, if it goes on from the one after it */
        strides[group] = 0;
        for (int d = ends[group + 1]; d-- > ends[group];) {
            intptr_t length = d < missing ? 1 : a->shape[d - missing], stride = length == 1 ? 0 : step;
            if (length != 1 && length != x->shape[d]) return false;
            step *= length;
            if (x->shape[d] == 1) continue;
            if (next < 0) strides[group] = next = stride;
            if (stride != next) return false;
            next *= x->shape[d];
        }
    }
    return true;
}

static size_t size_of_type(fsm_type type) { return type == FSM_F64 ? 8 : type == FSM_F32 ? 4 : 2; }

/* Of an element of a mask or of numbers. */
static size_t bytes_of(const struct direct *how, const void *dtype) {
    for (fsm_type type = FSM_F32; type < DIRECT_TYPES; type++)
        if ((uintptr_t)dtype == how->dtypes[type]) return size_of_type(type);
    return 1;
}

/* An argument that is None or such an array, of one of two dtypes, apart from y; false if it is neither. */
static bool take_array(const struct direct *how, PyObject *given, const struct array *x, int first, int last,
                       uintptr_t dtype, uintptr_t other, const struct array *y, size_t y_bytes, const void **data,
                       ptrdiff_t *strides) {
    const struct array *a = (const struct array *)given;
    if (given == Py_None) return true;
    if ((uintptr_t)Py_TYPE(given) != how->ndarray || (a->flags & NATIVE) != NATIVE) return false;
    if ((uintptr_t)a->dtype != dtype && (uintptr_t)a->dtype != other) return false;
    size_t bytes = times(bytes_of(how, a->dtype), a->shape, a->shape + a->ndim);
    if (y && a->data < y->data + y_bytes && y->data < a->data + bytes) return false;
    *data = a->data;
    return strides_of(a, x, first, last, strides);
}

/* A float that is neither nearly 0 nor nearly infinite, in whatever type; _modified.py has the same limits. */
static bool take_float(PyObject *given, double *value) {
    if (!PyFloat_CheckExact(given)) return false;
    *value = PyFloat_AsDouble(given);
    return *value > 1e-30 && *value < 1e30;
}

static bool take_modifiers(const struct direct *how, PyObject *const *args, fsm_type type, const struct array *x,
                           int first, int last, const struct array *y, size_t y_bytes, struct modified *d) {
    bool single = type != FSM_F64;
    fsm_type computed = single ? FSM_F32 : FSM_F64;
    const void *where = NULL;
    memset(&d->m, 0, sizeof d->m);
    if (!take_float(args[TEMPERATURE], &d->temperature64)) return false;
    d->temperature32 = (float)d->temperature64;
    if (d->temperature64 != 1) d->m.temperature = single ? (void *)&d->temperature32 : (void *)&d->temperature64;
    if (args[SOFTCAP] != Py_None && !take_float(args[SOFTCAP], &d->m.softcap)) return false;
    if (!take_array(how, args[BIAS], x, first, last, how->dtypes[type], how->dtypes[computed], y, y_bytes, &d->m.bias,
                    d->m.bias_strides))
        return false;
    if (d->m.bias)
        d->m.bias_type = (uintptr_t)((const struct array *)args[BIAS])->dtype == how->dtypes[type] ? type : computed;
    if (!take_array(how, args[WHERE], x, first, last, how->boolean, how->boolean, y, y_bytes, &where,
                    d->m.where_strides))
        return false;
    d->m.where = where;
    d->empty64 = how->op == FSM_LOG_SOFTMAX ? -Py_HUGE_VAL : 0;
    d->empty32 = (float)d->empty64;
    if (where) /* the default, as _modified.py has it */
        d->m.empty = single ? (void *)&d->empty32 : (void *)&d->empty64;
    return true;
}

/* ---- Whole calls ---- */

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
    PyObject *lse = scalar ? new_scalar(how->scalars[computed])
                           : new_array(how, r->x, r->first, object(how->dtypes[computed]));
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
        result = status != FSM_OK ? Py_NewRef(Py_None) /* no scratch memory: the caller finds that out as well, and says so */
                 : lse            ? PyTuple_Pack(2, y, lse)
                                  : Py_NewRef(y);
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
    if (out && !(fits(how, y, out, y->ndim, y->ndim, bytes, bytes) && fits(how, g, out, y->ndim, y->ndim, bytes, bytes)))
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
    Py_RETURN_NONE; /* as above */
}

/* ---- Losses ---- */

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
    PyObject *g = !gradient ? NULL : gradient == Py_True ? new_array(how, r.x, r.x->ndim, r.x->dtype) : Py_NewRef(gradient);
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

static PyMethodDef methods[] = {{"direct", (PyCFunction)(void (*)(void))call, METH_FASTCALL, NULL},
                                {"loss", (PyCFunction)(void (*)(void))loss, METH_FASTCALL, NULL},
                                {"vjp", (PyCFunction)(void (*)(void))vjp, METH_FASTCALL, NULL}}; /* as direct_kind */

/* Append such a function to a list, which is how cffi can hand it over. */
static int direct_function(struct direct *how, uintptr_t list) {
    PyGILState_STATE state = PyGILState_Ensure();
    how->functions = functions_of(how->numpy);
    PyObject *self = how->functions ? PyLong_FromVoidPtr(how) : NULL;
    PyObject *function = self ? PyCFunction_NewEx(&methods[how->kind], self, NULL) : NULL;
    int status = function ? PyList_Append(object(list), function) : -1;
    Py_XDECREF(function);
    Py_XDECREF(self);
    if (status) PyErr_Clear();
    PyGILState_Release(state);
    return status;
}

#else /* no such functions here: every call goes through cffi */
static int direct_function(struct direct *how, uintptr_t list) { return -1; }
#endif
