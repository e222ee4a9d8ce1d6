/* Modifiers of direct calls: floats, and contiguous arrays that broadcast along whole groups of dimensions.
 * Included by prelude.h alone. */
#ifndef FSM_DIRECT_MODIFIERS_H
#define FSM_DIRECT_MODIFIERS_H

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

#endif
