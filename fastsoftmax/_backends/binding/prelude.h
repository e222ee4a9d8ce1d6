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

#include "direct_arrays.h"
#include "direct_modifiers.h"
#include "direct_calls.h"
#include "direct_losses.h"

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
