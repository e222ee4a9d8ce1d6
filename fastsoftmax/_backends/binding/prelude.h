#include "fastsoftmax.h"
#include <stdbool.h>
#include <stdint.h>

/* Small calls. Through cffi one costs 500 ns before anything is computed: two buffers, a tuple of ten arguments, the GIL.
 * So for small arrays Python calls a function of this file as it does its own, without cffi. */

/* What is read of NumPy's objects, and what comes before it: PyArrayObject_fields and the scalars, which NumPy compiles
 * into every extension that includes its headers (ndarraytypes.h, arrayscalars.h; the headers themselves would make NumPy
 * a requirement of the build). c.py makes a small function only where they are what Python says. */
struct array {
    PyObject_HEAD
    char *data;
    int ndim;
    intptr_t *shape, *strides;
    void *base, *dtype;
    int flags;
};
struct scalar32 {
    PyObject_HEAD
    float value;
};
struct scalar64 {
    PyObject_HEAD
    double value;
};

/* What a small function does, and the objects it needs, borrowed from c.py. */
struct small {
    const fsm_isa *isa;
    fsm_op op;
    int reduces;
    size_t below;                               /* elements that are no longer a small call */
    size_t tiny_below;                          /* nor a tiny one, see there */
    uintptr_t ndarray, dtypes[2], scalars[2];   /* types and dtypes of float32 and float64 */
    uintptr_t copy, empty_like, empty;          /* functions of NumPy */
};

#if defined METH_FASTCALL && !defined Py_GIL_DISABLED && !defined PYPY_VERSION

static PyObject *object(uintptr_t address) { return (PyObject *)address; }

/* An empty array of one number a row: of the shape of x, but for the last axis. */
static PyObject *one_a_row(const struct small *how, const struct array *x) {
    PyObject *shape = PyTuple_New(x->ndim - 1), *y = NULL;
    bool ok = shape;
    for (int i = 0; ok && i < x->ndim - 1; i++) {
        PyObject *length = PyLong_FromSsize_t(x->shape[i]);
        ok = length && PyTuple_SetItem(shape, i, length) == 0;
    }
    if (ok) y = PyObject_CallFunctionObjArgs(object(how->empty), shape, (PyObject *)x->dtype, NULL);
    Py_XDECREF(shape);
    return y;
}

/* call(x, axis): the result, or None for what is not small, or not contiguous, or not along the last axis or all. */
static PyObject *call(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    const struct small *how = PyLong_AsVoidPtr(self);
    if (count != 2 || (uintptr_t)Py_TYPE(args[0]) != how->ndarray) Py_RETURN_NONE;
    const struct array *x = (const struct array *)args[0];
    PyObject *axis = args[1];
    fsm_type type = (uintptr_t)x->dtype == how->dtypes[FSM_F64] ? FSM_F64 : FSM_F32;
    int plain = 0x1 | 0x100; /* NPY_ARRAY_C_CONTIGUOUS, NPY_ARRAY_ALIGNED; these dtypes are in native byte order */
    if ((uintptr_t)x->dtype != how->dtypes[type] || (x->flags & plain) != plain) Py_RETURN_NONE;

    size_t size = 1;
    for (int i = 0; i < x->ndim; i++) size *= (size_t)x->shape[i];
    if (size == 0 || size >= how->below) Py_RETURN_NONE;
    size_t n = size;
    if (axis != Py_None) {
        int overflow = 0;
        if (!PyLong_CheckExact(axis) || x->ndim == 0) Py_RETURN_NONE;
        long given = PyLong_AsLongAndOverflow(axis, &overflow);
        if (overflow || (given != -1 && given != x->ndim - 1)) Py_RETURN_NONE;
        n = (size_t)x->shape[x->ndim - 1];
    }

    /* A copy takes 80 ns less than empty_like, and making it as much from about 700 elements. Letting go of the GIL takes
     * 40 ns, and 5 us when another thread waits for it. */
    bool tiny = size < how->tiny_below, scalar = how->reduces && (axis == Py_None || x->ndim == 1);
    PyObject *y;
    if (scalar)
        y = PyObject_CallFunctionObjArgs(object(how->scalars[type]), NULL);
    else if (how->reduces)
        y = one_a_row(how, x);
    else
        y = PyObject_CallFunctionObjArgs(object(tiny ? how->copy : how->empty_like), args[0], NULL);
    if (!y) return NULL;
    void *to = !scalar           ? (void *)((struct array *)y)->data
               : type == FSM_F32 ? (void *)&((struct scalar32 *)y)->value
                                 : (void *)&((struct scalar64 *)y)->value;

    PyThreadState *state = tiny ? NULL : PyEval_SaveThread();
    fsm_run(how->isa, how->op, type, x->data, to, size / n, n, 1, NULL, 1); /* rows in one piece: needs no memory */
    if (state) PyEval_RestoreThread(state);
    return y;
}

static PyMethodDef method = {"small", (PyCFunction)(void (*)(void))call, METH_FASTCALL, NULL};

/* Append such a function to a list, which is how cffi can hand it over. */
static int small_function(const struct small *how, uintptr_t list) {
    PyGILState_STATE state = PyGILState_Ensure();
    PyObject *self = PyLong_FromVoidPtr((void *)how);
    PyObject *function = self ? PyCFunction_NewEx(&method, self, NULL) : NULL;
    int status = function ? PyList_Append(object(list), function) : -1;
    Py_XDECREF(function);
    Py_XDECREF(self);
    if (status) PyErr_Clear();
    PyGILState_Release(state);
    return status;
}

#else /* no such functions here: every call goes through cffi */
static int small_function(const struct small *how, uintptr_t list) { return -1; }
#endif
