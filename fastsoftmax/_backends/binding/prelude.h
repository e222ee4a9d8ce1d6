#include "fastsoftmax.h"
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

/* What a direct function does, and the objects it needs, borrowed from c.py. */
struct direct {
    const fsm_isa *isa;
    fsm_op op;
    int reduces;
    size_t tiny_below;                /* elements that are no longer a tiny call, see there, */
    size_t alone_below[DIRECT_TYPES]; /* nor always one for a single thread: to ask takes 1 us */
    uintptr_t ndarray, dtypes[DIRECT_TYPES],
        scalars[DIRECT_TYPES]; /* types and dtypes, as fsm_type numbers them; 0: unknown */
    uintptr_t boolean;         /* the dtype of a mask */
    uintptr_t numpy;           /* the capsule with NumPy's table of functions */
    void **functions;          /* that table, set here */
    uintptr_t threads;         /* (elements, dtype): for how many threads a call is */
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
static PyObject *new_array(const struct direct *how, const struct array *x, int gone) {
    typedef PyObject *empty(int ndim, const intptr_t *shape, void *dtype, int fortran);
    intptr_t shape[MOST_DIMENSIONS];
    int ndim = x->ndim - (gone < x->ndim);
    for (int i = 0; i < ndim; i++) shape[i] = x->shape[i + (i >= gone)];
    Py_INCREF((PyObject *)x->dtype); /* for it to take */
    return ((empty *)how->functions[EMPTY])(ndim, shape, x->dtype, 0);
}

/* A scalar, as NumPy makes them. */
static PyObject *new_scalar(uintptr_t type) {
    allocfunc allocate = (allocfunc)PyType_GetSlot((PyTypeObject *)type, Py_tp_alloc);
    return allocate((PyTypeObject *)type, 0);
}

enum { NATIVE = 0x1 | 0x100, WRITEABLE = 0x400 }; /* NPY_ARRAY_C_CONTIGUOUS | _ALIGNED: and see `dtypes` */

/* Whether y is an array for the results: of that shape, and x itself or apart from it. */
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

enum { WHERE = 3, TEMPERATURE, BIAS, SOFTCAP, ARGUMENTS };

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

/* An argument that is None or such an array, of one of two dtypes, apart from y; false if it is neither. */
static bool take_array(const struct direct *how, PyObject *given, const struct array *x, int first, int last,
                       uintptr_t dtype, uintptr_t other, const struct array *y, size_t y_bytes, const void **data,
                       ptrdiff_t *strides) {
    const struct array *a = (const struct array *)given;
    if (given == Py_None) return true;
    if ((uintptr_t)Py_TYPE(given) != how->ndarray || (a->flags & NATIVE) != NATIVE) return false;
    if ((uintptr_t)a->dtype != dtype && (uintptr_t)a->dtype != other) return false;
    size_t bytes = times(8, a->shape, a->shape + a->ndim); /* at most */
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

/* call(x, axis, out), or with where, temperature, bias and softcap: the result, or None for what is not an array of these
 * dtypes, contiguous, and along one axis or all. */
static PyObject *call(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    const struct direct *how = PyLong_AsVoidPtr(self);
    if ((count != WHERE && count != ARGUMENTS) || (uintptr_t)Py_TYPE(args[0]) != how->ndarray) Py_RETURN_NONE;
    const struct array *x = (const struct array *)args[0];
    fsm_type type = FSM_F32;
    while (type < DIRECT_TYPES && (uintptr_t)x->dtype != how->dtypes[type]) type++;
    if (type == DIRECT_TYPES || (x->flags & NATIVE) != NATIVE || x->ndim > MOST_DIMENSIONS) Py_RETURN_NONE;
    size_t size = times(1, x->shape, x->shape + x->ndim), bytes = type == FSM_F64 ? 8 : type == FSM_F32 ? 4 : 2;
    if (size == 0) Py_RETURN_NONE;

    size_t n = size, inner = 1;
    int first = 0, last = x->ndim;                      /* dimensions of a row */
    int ndim = how->reduces ? 0 : x->ndim, gone = ndim; /* of the result, with all of x as one row */
    if (args[1] != Py_None) {
        int overflow = 0;
        if (!PyLong_CheckExact(args[1])) Py_RETURN_NONE;
        long axis = PyLong_AsLongAndOverflow(args[1], &overflow);
        if (axis < 0) axis += x->ndim;
        if (overflow || axis < 0 || axis >= x->ndim) Py_RETURN_NONE;
        n = (size_t)x->shape[axis];
        first = (int)axis, last = first + 1;
        inner = times(1, x->shape + axis + 1, x->shape + x->ndim);
        if (how->reduces) ndim = x->ndim - 1, gone = (int)axis;
    }

    long threads = size < how->alone_below[type] ? 1 : ask_threads(how, size, x->dtype);
    if (threads < 1) return NULL;

    /* Letting go of the GIL takes 40 ns, and 5 us when another thread waits for it. */
    bool tiny = size < how->tiny_below, scalar = false;
    PyObject *y = args[2];
    const struct array *given = y != Py_None ? (struct array *)y : NULL;
    struct modified d;
    if (given && !fits(how, x, given, ndim, gone, size * bytes, size / (how->reduces ? n : 1) * bytes)) Py_RETURN_NONE;
    if (count == ARGUMENTS && !take_modifiers(how, args, type, x, first, last, given, size * bytes, &d)) Py_RETURN_NONE;
    if (given) {
        Py_INCREF(y);
    } else if (how->reduces && ndim == 0) {
        scalar = true;
        y = new_scalar(how->scalars[type]);
    } else {
        y = new_array(how, x, gone);
    }
    if (!y) return NULL;
    void *to = !scalar           ? (void *)((struct array *)y)->data
               : type == FSM_F32 ? (void *)&((struct scalar32 *)y)->value
               : type == FSM_F64 ? (void *)&((struct scalar64 *)y)->value
                                 : (void *)&((struct scalar16 *)y)->value;

    PyThreadState *state = tiny ? NULL : PyEval_SaveThread();
    fsm_status status = fsm_run_modified(how->isa, how->op, type, x->data, to, size / n / inner, n, inner, NULL,
                                         (unsigned)threads, count == ARGUMENTS ? &d.m : NULL);
    if (state) PyEval_RestoreThread(state);
    if (status == FSM_OK) return y;
    Py_DECREF(y);
    Py_RETURN_NONE; /* no scratch memory: the caller finds that out as well, and says so */
}

static PyMethodDef method = {"direct", (PyCFunction)(void (*)(void))call, METH_FASTCALL, NULL};

/* Append such a function to a list, which is how cffi can hand it over. */
static int direct_function(struct direct *how, uintptr_t list) {
    PyGILState_STATE state = PyGILState_Ensure();
    how->functions = functions_of(how->numpy);
    PyObject *self = how->functions ? PyLong_FromVoidPtr(how) : NULL;
    PyObject *function = self ? PyCFunction_NewEx(&method, self, NULL) : NULL;
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
