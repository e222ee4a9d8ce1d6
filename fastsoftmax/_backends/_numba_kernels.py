# What is jitted or staged is not Python to a type checker: Numba types it, from the arguments.
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-untyped-calls=False
# mypy: check-untyped-defs=False
"""The row kernels in Numba: the C kernels' algorithm, step for step and bit for bit.

The file goes from the bottom up: SIMD lanes as a Numba type, elementary functions, sums, rows, kernels.
Loops and decisions are Numba's. What is computed between them is *staged*: Python over `Value`s, run while Numba writes
the code, so that one source serves lanes and single numbers of both types, and only a handful of functions is compiled.

Lost: LLVM's loop vectoriser. It never takes a float maximum, checks at run time whether x and y overlap and so leaves
in-place calls scalar, and has to go through memory for the order of summation that the C kernels have.
Lost: a jitted function for everything that is staged: the same machine code after 7 s instead of 4 (softmax, float32).
There is no fast-math here: `reassoc` alone folds the rounding (z + MAGIC) - MAGIC away.
"""

from __future__ import annotations

import functools
import inspect
import operator
import zlib
from pathlib import Path
from types import FunctionType

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from fastsoftmax._backends import coefficients

BLOCK = 8192  # elements whose terms are summed in lanes; the blocks' sums are added in order
WIDTH = 16  # lanes of a vector, which LLVM cuts into ymm, zmm or q; a group, whose two eights are added
PEAK = 2.0**-6  # a row whose other terms are a smaller part than this of the sum has a peak
TILE = 16  # rows gathered at once where rows do not lie in a piece
REBASE = 277.0  # how far a running maximum may rise above the one that set the base: about 400 ln 2

SQRT_HALF = float.fromhex("0x1.6a09e667f3bcdp-1")
SQRT_TWO_LESS_1 = 0.41421356237309503


class Format:
    """A floating-point type and its constants."""

    def __init__(self, k: coefficients.Constants, mantissa: int, bias: int, boost: int, shift_from: float) -> None:
        self.k = k
        self.mantissa = mantissa
        self.magic = 1.5 * 2.0**mantissa  # z + magic rounds z to an integer and leaves it in the low bits
        self.bias = bias + boost
        self.up = 2.0**boost  # a factor of all terms, so that subnormal results are rounded once
        self.down = 2.0**-boost
        self.up_from_64 = 2.0 ** (boost - 54)  # turns a term of float64 into one of this type
        self.shift_from = shift_from  # from this |maximum| on x - maximum is exact wherever it matters


FORMATS = {
    types.float32: Format(coefficients.F32, 23, 127, 24, 210.0),
    types.float64: Format(coefficients.F64, 52, 1023, 54, 1500.0),
}

jit = njit(forceinline=True, error_model="numpy")


# ---- staging ----


class Lanes(types.Type):
    """`count` numbers of a type in registers: LLVM's vectors as a Numba type."""

    def __init__(self, dtype, count=WIDTH):
        self.dtype = dtype
        self.count = count
        super().__init__(name=f"Lanes({dtype}, {count})")


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    def __init__(self, manager, lanes):
        super().__init__(manager, lanes, ir.VectorType(manager.lookup(lanes.dtype).get_value_type(), lanes.count))


INTEGERS = {types.float32: types.int32, types.float64: types.int64}
INSTRUCTIONS = {"add": "fadd", "sub": "fsub", "mul": "fmul", "truediv": "fdiv"}


class Value:
    """A number, lanes or a pointer, in code that is being written. Plain numbers become constants of its type."""

    def __init__(self, context, builder, kind, llvm):
        self.context, self.builder, self.kind, self.llvm = context, builder, kind, llvm
        self.dtype = getattr(kind, "dtype", kind)

    @property
    def format(self):
        return FORMATS[self.dtype]

    def new(self, kind, llvm):
        return Value(self.context, self.builder, kind, llvm)

    def like(self, number):
        """The number as a constant in the type and the lanes of this value."""
        if isinstance(number, Value):
            return number
        llvm = self.context.get_constant(self.dtype, number)
        if isinstance(self.kind, Lanes):
            llvm = ir.Constant(self.context.get_value_type(self.kind), [llvm] * self.kind.count)
        return self.new(self.kind, llvm)

    def cast(self, kind):
        """The number, or every lane, in another type."""
        if isinstance(self.kind, Lanes):
            kind = Lanes(kind, self.kind.count)
            return self.new(kind, self.builder.fpext(self.llvm, self.context.get_value_type(kind)))
        return self.new(kind, self.context.cast(self.builder, self.llvm, self.kind, kind))

    def bits(self, kind=None):
        """The same bits as integers, or as `kind`."""
        if kind is None:
            kind = INTEGERS[self.dtype]
            kind = Lanes(kind, self.kind.count) if isinstance(self.kind, Lanes) else kind
        return self.new(kind, self.builder.bitcast(self.llvm, self.context.get_value_type(kind)))

    def call(self, name, kind, *arguments):
        result = ir.VoidType() if kind == types.void else self.context.get_value_type(kind)
        function_type = ir.FunctionType(result, [a.type for a in arguments])
        function = cgutils.get_or_insert_function(self.builder.module, function_type, name)
        return self.new(kind, self.builder.call(function, arguments))

    def _operate(self, a, b, name):
        a, b = self.like(a).llvm, self.like(b).llvm
        instruction = INSTRUCTIONS.get(name, name) if self.dtype in FORMATS else name
        return self.new(self.kind, getattr(self.builder, instruction)(a, b))

    def __add__(self, other):
        return self._operate(self, other, "add")

    def __sub__(self, other):
        return self._operate(self, other, "sub")

    def __rsub__(self, other):
        return self._operate(other, self, "sub")

    def __mul__(self, other):
        return self._operate(self, other, "mul")

    def __truediv__(self, other):
        return self._operate(self, other, "truediv")

    def __rtruediv__(self, other):
        return self._operate(other, self, "truediv")

    def __lshift__(self, other):
        return self._operate(self, other, "shl")

    def __rshift__(self, other):
        return self._operate(self, other, "ashr")

    def __neg__(self):
        return self.new(self.kind, self.builder.fneg(self.llvm))

    __radd__, __rmul__ = __add__, __mul__


def _wrap(context, builder, kind, llvm):
    if isinstance(kind, types.BaseTuple):
        parts = zip(kind, cgutils.unpack_tuple(builder, llvm), strict=True)
        return tuple(_wrap(context, builder, *part) for part in parts)
    return Value(context, builder, kind, llvm)


def staged(result):
    """Let jitted code call a function over Values; result(types of the arguments) is the type of its result."""

    def decorate(function):
        def typed(typingctx, *kinds):
            kinds = [types.intp if isinstance(kind, types.Integer) else kind for kind in kinds]
            kind = result(*kinds)

            def generate(context, builder, signature, arguments):
                values = function(*map(_wrap, [context] * len(kinds), [builder] * len(kinds), kinds, arguments))
                if isinstance(kind, types.BaseTuple):
                    return context.make_tuple(builder, kind, [v.llvm for v in values])
                return values.llvm if values is not None else context.get_dummy_value()

            return kind(*kinds), generate

        first = inspect.Parameter("typingctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        typed.__signature__ = inspect.Signature([first, *inspect.signature(function).parameters.values()])
        typed.__name__, typed.__doc__ = function.__name__, function.__doc__
        return intrinsic(typed)

    return decorate


def fma(a, b, c):
    """a * b + c, rounded once."""
    a, b = c.like(a), c.like(b)
    suffix = f"f{c.dtype.bitwidth}"
    suffix = f"v{c.kind.count}{suffix}" if isinstance(c.kind, Lanes) else suffix
    return c.call(f"llvm.fma.{suffix}", c.kind, a.llvm, b.llvm, c.llvm)


def horner(x, series):
    """series[0] + x (series[1] + x (series[2] + ...)) in fused steps."""
    q = x.like(series[-1])
    for c in series[-2::-1]:
        q = fma(q, x, x.like(c))
    return q


def where(a, comparison, b, yes, no):
    """yes where the comparison holds, no elsewhere. None holds for a NaN."""
    truth = a.builder.fcmp_ordered(comparison, a.llvm, a.like(b).llvm)
    return a.new(a.kind, a.builder.select(truth, a.like(yes).llvm, a.like(no).llvm))


def larger(a, b):
    """The larger; b if a is NaN."""
    return where(a, ">", b, a, b)


def spread(number, lanes):
    """The number in all lanes."""
    vector = number.context.get_value_type(lanes)
    one = number.builder.insert_element(ir.Constant(vector, ir.Undefined), number.llvm, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes.count), None)
    return number.new(lanes, number.builder.shuffle_vector(one, one, zeros))


def halves(v):
    """The first and the second half of the lanes; of two lanes, the two numbers."""
    count = v.kind.count // 2
    if count == 1:
        return [v.new(v.dtype, v.builder.extract_element(v.llvm, ir.IntType(32)(i))) for i in (0, 1)]
    numbers = ir.VectorType(ir.IntType(32), count)
    parts = [ir.Constant(numbers, list(range(start, start + count))) for start in (0, count)]
    return [v.new(Lanes(v.dtype, count), v.builder.shuffle_vector(v.llvm, v.llvm, part)) for part in parts]


def fold(v, combine, lanes=1):
    """Lane i with lane i + half, until so many are left."""
    while getattr(v.kind, "count", 1) > lanes:
        v = combine(*halves(v))
    return v


def _place(p, index, count):
    """What a masked load or store of `count` lanes at p[index] takes: the vector's address, alignment and mask."""
    address = p.builder.gep(p.llvm, [index.llvm])
    address = p.builder.bitcast(address, p.context.get_value_type(Lanes(p.dtype)).as_pointer())
    lanes = Lanes(types.int32)
    mask = p.builder.icmp_signed(
        "<",
        ir.Constant(p.context.get_value_type(lanes), list(range(WIDTH))),
        spread(count.cast(types.int32), lanes).llvm,
    )
    return address, ir.IntType(32)(p.dtype.bitwidth // 8), mask


def load_first(p, index, count, rest=-np.inf):
    """The first `count` lanes from p[index], `rest` in the others; reads no further. A constant 16 is a plain load."""
    lanes = Lanes(p.dtype)
    rest = p.new(lanes, None).like(rest).llvm
    return p.call(f"llvm.masked.load.v{WIDTH}f{p.dtype.bitwidth}.p0", lanes, *_place(p, index, count), rest)


def store_first(p, index, count, v):
    """The first `count` lanes to p[index]."""
    p.call(f"llvm.masked.store.v{WIDTH}f{p.dtype.bitwidth}.p0", types.void, v.llvm, *_place(p, index, count))


# Of the types of a function's arguments, the type of its result.
def _first(kind, *_):
    return kind


def _lanes(pointer, *_):
    return Lanes(pointer.dtype)


def _pair(kind, *_):
    return types.UniTuple(kind, 2)


load = staged(_lanes)(lambda p, index, count: load_first(p, index, count))
load_or_zero = staged(_lanes)(lambda p, index, count: load_first(p, index, count, 0.0))
store = staged(lambda *_: types.void)(store_first)
maximum = staged(_first)(larger)


@intrinsic
def pointer_to(typingctx, array, i, j):
    """The address of array[i, 0, j] or array[i, j]."""

    def generate(context, builder, signature, arguments):
        struct = context.make_array(array)(context, builder, arguments[0])
        indices = [arguments[1], ir.IntType(64)(0), arguments[2]] if array.ndim == 3 else list(arguments[1:])
        return cgutils.get_item_pointer(context, builder, array, struct, indices, wraparound=False)

    return types.CPointer(array.dtype)(array, types.intp, types.intp), generate


@staged(_first)
def advanced(p, steps):
    return p.new(p.kind, p.builder.gep(p.llvm, [steps.llvm]))


@staged(lambda number, pointer: pointer.dtype)
def narrow(number, pointer):
    """A double rounded to the type that the pointer points to."""
    return number.cast(pointer.dtype)


# ---- elementary functions ----


def exp_parts(t, magic):
    """(s, scale) with e^t = (1 + s) 2^n and scale = 2^(n - N + BOOST), for magic = MAGIC + BIAS - N."""
    k = t.format.k
    z = fma(t, k.LOG2E, magic)
    n = z - magic
    r = fma(-n, k.LN2_HI, t)
    r = fma(-n, k.LN2_LO, r)
    return fma(horner(r, k.EXP), r * r, r), (z.bits() << t.format.mantissa).bits(z.kind)


def shift_of(m):
    """(c, N) for the maximum m: terms are e^(x - c) 2^-N, where either c = 0 or x - c is exact."""
    magic, edge = m.like(m.format.magic), m.like(m.format.shift_from)
    bits = m.dtype.bitwidth
    magnitude = m.call(f"llvm.fabs.f{bits}", m.dtype, m.llvm)
    near = m.call(f"llvm.minnum.f{bits}", m.dtype, magnitude.llvm, edge.llvm)  # the product must not overflow; LLVM
    near = m.call(f"llvm.copysign.f{bits}", m.dtype, near.llvm, m.llvm)  # would take it out of a mere selection
    n = fma(near, m.format.k.LOG2E, magic) - magic
    return where(magnitude, ">=", edge, m, 0.0), where(magnitude, ">=", edge, 0.0, n)


def base_of(c, n):
    """What term() needs of them. The lowest exponent is a quarter up, so that no rounding mode makes it less."""
    floor = where(c, ">", 0.0, 0.0, -np.inf)  # below, x - c could overflow; the term is 0 either way
    lowest = (n - n.format.bias + 0.25) * n.format.k.LN2
    return c, n.format.magic + (n.format.bias - n), lowest, floor


def term(x, base):
    """e^(x - c) 2^(BOOST - N), +0 far below the maximum, NaN for NaN."""
    c, magic, lowest, floor = base
    t = where(x, "<", floor, floor, x) - c
    s, scale = exp_parts(where(t, "<", lowest, lowest, t), magic)
    return fma(s, scale, scale)


def two_sum(a, b):
    """a + b and what the rounding left out."""
    h = a + b
    bb = h - a
    return h, (a - (h - bb)) + (b - bb)


def log_reduced(k, f, low):
    """k ln2 + log(1 + f) + low, for 1 + f in [sqrt(1/2), sqrt(2)] and a small correction low (fdlibm's way)."""
    constants = f.format.k
    s = f / (2.0 + f)
    w = s * s
    half = 0.5 * f * f
    r = w * horner(w, constants.LOG)
    return fma(k, constants.LN2_HI, f - (half - fma(s, half + r, fma(k, constants.LN2_LO, low))))


def log_pair(a, low):
    """log(a + low) in double, for a >= 1; where a = 1 as accurate as low is."""
    bits = a.bits()
    k = (bits - a.like(SQRT_HALF).bits()) >> 52
    z = (bits - (k << 52)).bits(types.float64)
    down = ((1023 - k) << 52).bits(types.float64)
    f, f_low = z - 1.0, low * down
    total = f + f_low
    return log_reduced(k.cast(types.float64), total, ((f - total) + f_low) / (1.0 + total))


def maximum_parts(t, n):
    """The term of the maximum in double with its low part and 2^54; t = m - c."""
    s, scale = exp_parts(t, base_of(t, n)[1])
    high = 1.0 + s
    return high * scale, (s - (high - 1.0)) * scale


def log_of_sum(count, total, total_low, high, low):
    """log(count + total / maximum's term): the log-sum-exp less the maximum, >= 0, without cancellation."""
    total, total_low = normal(total, total_low)
    r = total / high
    r_low = (fma(-r, high, total) + (total_low - r * low)) / high
    a, a_low = two_sum(count, r)
    return log_pair(a, a_low + r_low)


@staged(_first)
def log_of_count(n):
    return log_pair(n.cast(types.float64), n.cast(types.float64).like(0.0))


# ---- sums in the one order that all backends keep ----


@staged(lambda m, p: types.UniTuple(Lanes(p.dtype), 5))
def row_base(m, p):
    """All that the terms of a row with maximum m need, in lanes."""
    return [spread(v, Lanes(p.dtype)) for v in (*base_of(*shift_of(m)), m)]


def eight(v):
    """A group's two eights of lanes, added."""
    return fold(v, operator.add, 8)


def stored(x, y, i, k, base):
    """Terms i .. i + k - 1, stored in y; and none counted."""
    v = term(load_first(x, i, k), base[:4])
    store_first(y, i, k, v)
    return eight(v), i.like(0)


def masked(x, y, i, k, base):
    """Terms i .. i + k - 1, 0 for a maximum; and how many maxima there are."""
    v = load_first(x, i, k)
    equal = v.builder.bitcast(v.builder.fcmp_ordered("==", v.llvm, base[4].llvm), ir.IntType(WIDTH))
    count = i.call(f"llvm.ctpop.i{WIDTH}", types.uint16, equal).cast(types.intp)
    return eight(where(v, "==", base[4], 0.0, term(v, base[:4]))), count


visit = staged(lambda x, *_: types.Tuple([Lanes(x.dtype, 8), types.intp]))
visit_stored, visit_masked = visit(stored), visit(masked)


@staged(lambda base: Lanes(types.float64, 8))
def no_sum(base):
    return spread(base[0].new(types.float64, None).like(0.0), Lanes(types.float64, 8))


@staged(_pair)
def add_group(high, low, s):
    """A block's sum in eight lanes of double, with eight lanes of a group added."""
    if s.dtype == types.float32:
        return high + s.cast(types.float64), low
    high, e = two_sum(high, s)
    return high, low + e


@staged(lambda lanes, *_: types.UniTuple(lanes.dtype, 2))
def fold_sum(high, low, s):
    """A block's sum in two doubles; s tells the type of the terms."""
    if s.dtype == types.float32:
        return fold(high, operator.add), fold(low, operator.add)
    while isinstance(high.kind, Lanes):
        (a, b), (a_low, b_low) = halves(high), halves(low)
        high, e = two_sum(a, b)
        low = (a_low + b_low) + e
    return high, low


@staged(lambda lanes: lanes.dtype)
def fold_maximum(v):
    return fold(v, larger)


@staged(_pair)
def add_block(total, total_low, high, low):
    """A row's sum in two doubles, with a block's added."""
    total, e = two_sum(total, high)
    return total, total_low + (e + low)


def normal(total, total_low):
    s = total + total_low
    return s, (total - s) + total_low


@jit
def block_sum(visit, x, y, begin, end, base):
    """The terms of a block as (high, low) in double, and the count of the maxima."""
    high = low = no_sum(base)
    count, i = 0, begin
    while i + WIDTH <= end:
        s, k = visit(x, y, i, WIDTH, base)
        high, low = add_group(high, low, s)
        count, i = count + k, i + WIDTH
    if i < end:
        s, k = visit(x, y, i, end - i, base)
        high, low = add_group(high, low, s)
        count += k
    total, total_low = fold_sum(high, low, base[0])
    return total, total_low, count


@jit
def row_sum(visit, x, y, n, base):
    """The terms of a row as (high, low) in double, and the count of the maxima."""
    total, total_low, count = 0.0, 0.0, 0
    for begin in range(0, n, BLOCK):
        high, low, k = block_sum(visit, x, y, begin, min(begin + BLOCK, n), base)
        total, total_low = add_block(total, total_low, high, low)
        count += k
    return total, total_low, count


# ---- rows and pieces of rows ----


@jit
def largest(x, begin, end):
    """The maximum of a piece of a row, NaN left out; -inf where there is nothing else."""
    a = b = c = d = load(x, begin, 0)
    i = begin
    while i + 64 <= end:
        a, b = maximum(load(x, i, 16), a), maximum(load(x, i + 16, 16), b)
        c, d = maximum(load(x, i + 32, 16), c), maximum(load(x, i + 48, 16), d)
        i += 64
    while i < end:
        a = maximum(load(x, i, min(WIDTH, end - i)), a)
        i += WIDTH
    return fold_maximum(maximum(maximum(a, b), maximum(c, d)))


@jit
def map_lanes(function, x, y, begin, end, parameters):
    """y = function(x, parameters)."""
    i = begin
    while i + WIDTH <= end:
        store(y, i, WIDTH, function(load(x, i, WIDTH), parameters))
        i += WIDTH
    if i < end:
        store(y, i, end - i, function(load_or_zero(x, i, end - i), parameters))


@jit
def fill_nan(y, begin, end):
    nan = narrow(np.nan, y)
    for i in range(begin, end):
        y[i] = nan


@jit
def is_finite(m):
    return m - m == 0


def top_of(m):
    """The term of the maximum, in double, and what rounding took from it."""
    c, n = shift_of(m)
    t = m - c
    s, scale = exp_parts(t, base_of(c, n)[1])
    rounded = fma(s, scale, scale).cast(types.float64)
    if m.dtype == types.float64:
        return rounded, (s - ((1.0 + s) - 1.0)) * scale
    r = fma(-n.cast(types.float64), coefficients.F64.LN2, t.cast(types.float64))
    exact = (1.0 + fma(horner(r, m.format.k.EXP), r * r, r)) * m.format.up
    return rounded, exact - rounded


@staged(lambda m, total, low, y: types.UniTuple(Lanes(y.dtype), 4))
def reciprocal(m, total, low, y):
    """1 / the sum as two numbers of y's type; the term of a maximum that is nearly all of it (else 0), and its result.

    What rounding took from the maximum's term is put back into the sum: an ulp less at worst. That term itself stays as
    it is but where it is all but alone: there the result must not pass 1.
    """
    rounded, lost = top_of(m)
    s, s_low = normal(total, low + lost)
    inverse = high = 1.0 / s
    if y.dtype == types.float32:
        high = inverse.cast(y.dtype)
        low = (inverse - high.cast(types.float64)).cast(y.dtype)
        top = ((rounded + lost) * inverse).cast(y.dtype)
    else:
        low = fma(-s_low, high, fma(-s, high, s.like(1.0))) * high
        top = fma(rounded, high, fma(rounded, low, lost * high))
    peak = where(s - rounded, "<", s * PEAK, rounded, 0.0).cast(y.dtype)
    return [spread(v, Lanes(y.dtype)) for v in (high, low, peak, top)]


def scaled(term, inverse):
    return fma(term, inverse[0], term * inverse[1])


def scaled_peak(term, inverse):
    return where(term, "==", inverse[2], inverse[3], scaled(term, inverse))


scale_all, scale_peak = staged(_first)(scaled), staged(_first)(scaled_peak)


@staged(lambda *_: types.boolean)
def has_peak(inverse):
    first = ir.IntType(32)(0)
    peak = inverse[2].new(inverse[2].dtype, inverse[2].builder.extract_element(inverse[2].llvm, first))
    return peak.new(types.boolean, peak.builder.fcmp_ordered(">", peak.llvm, peak.like(0.0).llvm))


@jit
def scale(y, begin, end, inverse):
    if has_peak(inverse):
        map_lanes(scale_peak, y, y, begin, end, inverse)
    else:
        map_lanes(scale_all, y, y, begin, end, inverse)


@staged(lambda m, log_sum, y: types.UniTuple(Lanes(y.dtype), 2))
def log_sum_exp(m, log_sum, y):
    """m + log_sum as two numbers of y's type."""
    m = m.cast(types.float64)
    high, low = two_sum(m, log_sum)
    if y.dtype == types.float32:
        high = high.cast(y.dtype)
        low = ((m - high.cast(types.float64)) + log_sum).cast(y.dtype)
    return spread(high, Lanes(y.dtype)), spread(low, Lanes(y.dtype))


@staged(_first)
def lowered(x, k):
    return (x - k[0]) - k[1]


@staged(lambda *_: types.float64)
def log_of_row(m, total, total_low, count):
    """The row's log-sum-exp less its maximum."""
    c, n = shift_of(m)
    high, low = maximum_parts((m - c).cast(types.float64), n.cast(types.float64))
    unit = m.format.up_from_64
    return log_of_sum(count.cast(types.float64), total, total_low, high * unit, low * unit)


@jit
def softmax_row(x, y, n):
    m = largest(x, 0, n)
    if is_finite(m):
        s, s_low, _ = row_sum(visit_stored, x, y, n, row_base(m, x))
        if s == s:
            scale(y, 0, n, reciprocal(m, s, s_low, y))
            return
    fill_nan(y, 0, n)


@jit
def log_softmax_row(x, y, n):
    m = largest(x, 0, n)
    if is_finite(m):
        s, s_low, count = row_sum(visit_masked, x, x, n, row_base(m, x))
        if s == s:
            map_lanes(lowered, x, y, 0, n, log_sum_exp(m, log_of_row(m, s, s_low, count), y))
            return
    fill_nan(y, 0, n)


@jit
def finished(x, n, m, s, s_low, count):
    """(maximum, log-sum-exp less the maximum) of a row, from its sum."""
    if is_finite(m):
        return (np.float64(m), log_of_row(m, s, s_low, count)) if s == s else (np.nan, 0.0)
    for i in range(n):
        if x[i] != x[i]:
            return np.nan, 0.0
    return np.float64(m), 0.0


@jit
def log_sum_exp_row(x, n):
    m = largest(x, 0, n)
    s, s_low, count = 0.0, 0.0, 0
    if is_finite(m):
        s, s_low, count = row_sum(visit_masked, x, x, n, row_base(m, x))
    return finished(x, n, m, s, s_low, count)


@jit
def sum_of(m, log_sum, n):
    return m + log_sum


@jit
def mean_of(m, log_sum, n):
    return m + (log_sum - log_of_count(n))


@staged(lambda *_: types.UniTuple(types.float64, 4))
def rebased(m, origin, c, n, total, low):
    """(c, N) of a new base for the maximum m, and the running sum on it: the factor is e^(c - c') 2^(N - N')."""
    c_new, n_new = shift_of(m)
    down = m.call("llvm.minnum.f64", m.dtype, (c - c_new).llvm, m.like(0.0).llvm)  # it is, but for the first element
    factor = term(down, base_of(m.like(0.0), n_new - n)) * m.format.down
    factor = where(origin, "==", -np.inf, 0.0, factor)
    return c_new, n_new, total * factor, low * factor


maximum_term = staged(_pair)(maximum_parts)
log_of_terms = staged(_first)(log_of_sum)


@staged(_first)
def other_term(v, c, n):
    return term(v, base_of(c, n))


@staged(_pair)
def times(count, high):
    product = count * high
    return product, fma(count, high, -product)


@jit
def logcumsumexp_row(x, y, n):
    """A running sum of the terms below the running maximum; the maxima are counted, not added."""
    m, count, high, low = -np.inf, 0.0, 0.0, 0.0  # the maximum, how often it came, its term
    total, total_low = 0.0, 0.0
    origin, c, shift = -np.inf, 0.0, 0.0  # the element that set the base, and the base
    result = -np.inf
    for i in range(n):
        v = np.float64(x[i])
        if v != v or m != m:
            m = result = np.nan
        elif v == np.inf or m == np.inf:
            m = result = np.inf
        elif v != -np.inf:
            if v > m:
                added, added_low = times(count, high)
                total, total_low = add_block(total, total_low, added, added_low)
                if v - origin > REBASE:
                    c, shift, total, total_low = rebased(v, origin, c, shift, total, total_low)
                    origin = v
                m, count = v, 1.0
                high, low = maximum_term(m - c, shift)
            elif v == m:
                count += 1.0
            else:
                total, total_low = add_block(total, total_low, other_term(v, c, shift), 0.0)
            result = m + log_of_terms(count, total, total_low, high, low)
        y[i] = narrow(result, y)


def exp_of_minus_abs(x):
    """2^BOOST e^-|x|."""
    zero = x.like(0.0)
    return term(where(x, ">", zero, -x, x), base_of(zero, zero))


@staged(_first)
def sigmoid_of(x, _):
    e = exp_of_minus_abs(x)
    return where(x, ">=", 0.0, x.format.up, e) / (1.0 + e * x.format.down) * x.format.down


@staged(_first)
def softplus_of(x, _):
    e = exp_of_minus_abs(x) * x.format.down
    f = where(e, ">", SQRT_TWO_LESS_1, (e - 1.0) * 0.5, e)
    k = where(e, ">", SQRT_TWO_LESS_1, 1.0, e.like(0.0))
    return where(x, "<", 0.0, 0.0, x) + log_reduced(k, f, x.like(0.0))


@jit
def sigmoid_row(x, y, n):
    map_lanes(sigmoid_of, x, y, 0, n, 0)


@jit
def softplus_row(x, y, n):
    map_lanes(softplus_of, x, y, 0, n, 0)


# ---- kernels: units `start` up to `stop`, a row where rows lie in one piece (direct), else a tile of rows ----


@jit
def new_tile(x, direct):
    """Room for TILE rows, whose distance is no multiple of 4 KiB: they would all fall into one set of the cache."""
    if direct:
        return np.empty((1, 1), x.dtype)
    return np.empty((min(TILE, x.shape[2]), (x.shape[1] + 15) // 16 * 16 + 16), x.dtype)


@jit
def place_of(unit, inner, direct):
    """(outer, first of inner, how many) of a unit's rows."""
    if direct:
        return unit // inner, unit % inner, 1
    tiles = (inner + TILE - 1) // TILE
    first = unit % tiles * TILE
    return unit // tiles, first, min(TILE, inner - first)


@jit
def gather(x, o, first, width, tile):
    for j in range(x.shape[1]):
        for k in range(width):
            tile[k, j] = x[o, j, first + k]


@jit
def map_rows(row, x, y, start, stop, direct):
    tile = new_tile(x, direct)
    for unit in range(start, stop):
        o, first, width = place_of(unit, x.shape[2], direct)
        p, q = pointer_to(x, o, first), pointer_to(y, o, first)
        if not direct:
            gather(x, o, first, width, tile)
            p = q = pointer_to(tile, 0, 0)
        for k in range(width):
            row(advanced(p, k * tile.shape[1]), advanced(q, k * tile.shape[1]), x.shape[1])
        if not direct:
            for j in range(x.shape[1]):
                for k in range(width):
                    y[o, j, first + k] = tile[k, j]


@jit
def reduce_rows(result, x, y, start, stop, direct):
    tile = new_tile(x, direct)
    for unit in range(start, stop):
        o, first, width = place_of(unit, x.shape[2], direct)
        p = pointer_to(x, o, first)
        if not direct:
            gather(x, o, first, width, tile)
            p = pointer_to(tile, 0, 0)
        for k in range(width):
            m, log_sum = log_sum_exp_row(advanced(p, k * tile.shape[1]), x.shape[1])
            y[o, first + k] = result(m, log_sum, x.shape[1])


def softmax(x, y, start, stop, direct):
    map_rows(softmax_row, x, y, start, stop, direct)


def log_softmax(x, y, start, stop, direct):
    map_rows(log_softmax_row, x, y, start, stop, direct)


def logcumsumexp(x, y, start, stop, direct):
    map_rows(logcumsumexp_row, x, y, start, stop, direct)


def sigmoid(x, y, start, stop, direct):
    map_rows(sigmoid_row, x, y, start, stop, direct)


def softplus(x, y, start, stop, direct):
    map_rows(softplus_row, x, y, start, stop, direct)


def logsumexp(x, y, start, stop, direct):
    reduce_rows(sum_of, x, y, start, stop, direct)


def logmeanexp(x, y, start, stop, direct):
    reduce_rows(mean_of, x, y, start, stop, direct)


# ---- one huge row in three steps, each over blocks `start` up to `stop` ----
# work holds four numbers a block: the maximum, the sum (high and low) and the count.


@jit
def row_pointer(x, row):
    return pointer_to(x, row // x.shape[2], row % x.shape[2])


@jit
def span(start, stop, n):
    """From which to which element."""
    return start * BLOCK, min(stop * BLOCK, n)


@jit
def maximum_of(x, work):
    """The row's maximum, in x's type."""
    m = -np.inf
    for b in range(work.shape[1]):
        m = max(m, work[0, b])
    return narrow(m, x)


@jit
def total_of(work):
    total, total_low, count = 0.0, 0.0, 0.0
    for b in range(work.shape[1]):
        total, total_low = add_block(total, total_low, work[1, b], work[2, b])
        count += work[3, b]
    return total, total_low, count


@jit
def sum_blocks(visit, x, y, n, work, start, stop):
    m = maximum_of(x, work)
    if is_finite(m):
        for b in range(start, stop):
            begin, end = span(b, b + 1, n)
            work[1, b], work[2, b], work[3, b] = block_sum(visit, x, y, begin, end, row_base(m, x))


def block_maxima(x, y, work, row, start, stop):
    for b in range(start, stop):
        work[0, b] = largest(row_pointer(x, row), *span(b, b + 1, x.shape[1]))


def block_terms(x, y, work, row, start, stop):
    p, q = row_pointer(x, row), row_pointer(y, row)
    sum_blocks(visit_stored, p, q, x.shape[1], work, start, stop)


def block_sums(x, y, work, row, start, stop):
    p = row_pointer(x, row)
    sum_blocks(visit_masked, p, p, x.shape[1], work, start, stop)


def block_scale(x, y, work, row, start, stop):
    p = row_pointer(y, row)
    begin, end = span(start, stop, x.shape[1])
    m = maximum_of(p, work)
    s, s_low, _ = total_of(work)
    if is_finite(m) and s == s:
        scale(p, begin, end, reciprocal(m, s, s_low, p))
    else:
        fill_nan(p, begin, end)


def block_lower(x, y, work, row, start, stop):
    p, q = row_pointer(x, row), row_pointer(y, row)
    begin, end = span(start, stop, x.shape[1])
    m = maximum_of(p, work)
    s, s_low, count = total_of(work)
    if is_finite(m) and s == s:
        map_lanes(lowered, p, q, begin, end, log_sum_exp(m, log_of_row(m, s, s_low, count), q))
    else:
        fill_nan(q, begin, end)


@jit
def finish_blocks(result, x, y, work, row):
    p = row_pointer(x, row)
    s, s_low, count = total_of(work)
    m, log_sum = finished(p, x.shape[1], maximum_of(p, work), s, s_low, count)
    y[row // x.shape[2], row % x.shape[2]] = result(m, log_sum, x.shape[1])


def block_logsumexp(x, y, work, row, start, stop):
    finish_blocks(sum_of, x, y, work, row)


def block_logmeanexp(x, y, work, row, start, stop):
    finish_blocks(mean_of, x, y, work, row)


KERNELS = {f.__name__: f for f in (softmax, log_softmax, logcumsumexp, sigmoid, softplus, logsumexp, logmeanexp)}
STEPS = {
    "softmax": (block_maxima, block_terms, block_scale),
    "log_softmax": (block_maxima, block_sums, block_lower),
    "logsumexp": (block_maxima, block_sums, block_logsumexp),
    "logmeanexp": (block_maxima, block_sums, block_logmeanexp),
}


# ---- compilation ----


@functools.cache
def _fingerprint():
    """Of all that the machine code depends on: of its sources Numba's cache knows this file's time and size only."""
    return f"{zlib.crc32(Path(__file__).read_bytes() + repr(coefficients.F32 + coefficients.F64).encode()):08x}"


def _compile(function, signature, cache):
    named = FunctionType(function.__code__, function.__globals__)
    named.__qualname__ = f"{function.__name__}_{_fingerprint()}"
    dispatcher = njit(nogil=True, error_model="numpy", cache=cache)(named)
    dispatcher.compile(signature)
    # The entry point unpacks its arguments itself: 0.4 µs a call; the dispatcher, finding out their types, takes 1.
    return dispatcher.overloads[signature].entry_point


def compiled(function, dtype, reduction, step):
    """The machine code of a kernel (or of a step) for arrays of float32 or float64 and of any strides."""
    number = types.float32 if dtype == np.float32 else types.float64
    arrays = types.Array(number, 3, "A", readonly=True), types.Array(number, 2 if reduction else 3, "A")
    if step:
        signature = (*arrays, types.Array(types.float64, 2, "C"), types.intp, types.intp, types.intp)
    else:
        signature = (*arrays, types.intp, types.intp, types.boolean)
    try:
        return _compile(function, signature, cache=True)
    except Exception:  # no directory for it is RuntimeError, a full disk OSError, a damaged file nearly anything
        return _compile(function, signature, cache=False)
