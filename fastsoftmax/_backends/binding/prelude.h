#include "fastsoftmax.h"
#include <stdbool.h>
#include <stdint.h>

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
    size_t tiny_below;                        /* elements that are no longer a tiny call, see there, */
    size_t alone_below[DIRECT_TYPES];         /* nor always one for a single thread: to ask takes 1 us */
    uintptr_t ndarray, dtypes[DIRECT_TYPES], scalars[DIRECT_TYPES]; /* types and dtypes, as fsm_type numbers them; 0: unknown */
    uintptr_t numpy;                          /* the capsule with NumPy's table of functions */
    void **functions;                         /* that table, set here */
    uintptr_t threads;                        /* (elements, dtype): for how many threads a call is */
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

/* call(x, axis, out): the result, or None for what is not an array of these dtypes, contiguous, and along one axis or all. */
static PyObject *call(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    const struct direct *how = PyLong_AsVoidPtr(self);
    if (count != 3 || (uintptr_t)Py_TYPE(args[0]) != how->ndarray) Py_RETURN_NONE;
    const struct array *x = (const struct array *)args[0];
    fsm_type type = FSM_F32;
    while (type < DIRECT_TYPES && (uintptr_t)x->dtype != how->dtypes[type]) type++;
    if (type == DIRECT_TYPES || (x->flags & NATIVE) != NATIVE || x->ndim > MOST_DIMENSIONS) Py_RETURN_NONE;
    size_t size = times(1, x->shape, x->shape + x->ndim), bytes = type == FSM_F64 ? 8 : type == FSM_F32 ? 4 : 2;
    if (size == 0) Py_RETURN_NONE;

    size_t n = size, inner = 1;
    int ndim = how->reduces ? 0 : x->ndim, gone = ndim; /* of the result, with all of x as one row */
    if (args[1] != Py_None) {
        int overflow = 0;
        if (!PyLong_CheckExact(args[1])) Py_RETURN_NONE;
        long axis = PyLong_AsLongAndOverflow(args[1], &overflow);
        if (axis < 0) axis += x->ndim;
        if (overflow || axis < 0 || axis >= x->ndim) Py_RETURN_NONE;
        n = (size_t)x->shape[axis];
        inner = times(1, x->shape + axis + 1, x->shape + x->ndim);
        if (how->reduces) ndim = x->ndim - 1, gone = (int)axis;
    }

    long threads = size < how->alone_below[type] ? 1 : ask_threads(how, size, x->dtype);
    if (threads < 1) return NULL;

    /* Letting go of the GIL takes 40 ns, and 5 us when another thread waits for it. */
    bool tiny = size < how->tiny_below, scalar = false;
    PyObject *y = args[2];
    if (y != Py_None) {
        if (!fits(how, x, (struct array *)y, ndim, gone, size * bytes, size / (how->reduces ? n : 1) * bytes))
            Py_RETURN_NONE;
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
    fsm_status status =
        fsm_run(how->isa, how->op, type, x->data, to, size / n / inner, n, inner, NULL, (unsigned)threads);
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
