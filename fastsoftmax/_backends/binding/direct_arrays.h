/* What direct calls ask of NumPy: new arrays and scalars, whether arrays are simple; and of Python: how many threads.
 * Included by prelude.h alone. */
#ifndef FSM_DIRECT_ARRAYS_H
#define FSM_DIRECT_ARRAYS_H

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

#endif
