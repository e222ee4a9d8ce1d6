# What is jitted or staged is not Python to a type checker: Numba types it, from the arguments.
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-untyped-calls=False
# mypy: check-untyped-defs=False
"""SIMD lanes as a Numba type, and *staged* functions over them: Python over `Value`s, run while Numba writes the code.

Loops and decisions are Numba's; what is computed between them is staged, so that one source serves lanes and single
numbers of both types, and only a handful of functions is compiled.

Lost: LLVM's loop vectoriser. It never takes a float maximum, checks at run time whether x and y overlap and so leaves
in-place calls scalar, and has to go through memory for the order of summation that the C kernels have.
Lost: a jitted function for everything that is staged: the same machine code after 7 s instead of 4 (softmax, float32).
There is no fast-math here: `reassoc` alone folds the rounding (z + MAGIC) - MAGIC away.
"""

from __future__ import annotations

import inspect

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from fastsoftmax._backends import coefficients

SQUARE = 8  # rows that are turned into columns at once, and elements of them
WIDTH = 16  # lanes of a vector, which LLVM cuts into ymm, zmm or q; a group, whose two eights are added


class Format:
    """A floating-point type and its constants."""

    def __init__(self, k: coefficients.Constants, mantissa: int, bias: int, boost: int, shift_from: float) -> None:
        self.k = k
        self.mantissa = mantissa
        self.magic = 1.5 * 2.0**mantissa  # z + magic rounds z to an integer and leaves it in the low bits
        self.boost = boost
        self.bias = bias + boost
        self.up = 2.0**boost  # a factor of all terms: subnormal results are rounded once, and many tiny terms add up
        self.down = 2.0**-boost
        self.up_from_64 = 2.0 ** (boost - 80)  # turns a term of float64 into one of this type
        self.shift_from = shift_from  # from this |maximum| on x - maximum is exact wherever it matters


FORMATS = {
    types.float32: Format(coefficients.F32, 23, 127, 48, 250.0),
    types.float64: Format(coefficients.F64, 52, 1023, 80, 1600.0),
}

jit = njit(forceinline=True, error_model="numpy")


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

    def cast(self, dtype):
        """The number, or every lane, in another type."""
        if dtype == self.dtype:
            return self
        if not isinstance(self.kind, Lanes):
            return self.new(dtype, self.context.cast(self.builder, self.llvm, self.kind, dtype))
        kind = Lanes(dtype, self.kind.count)
        convert = self.builder.fpext if dtype.bitwidth > self.dtype.bitwidth else self.builder.fptrunc
        return self.new(kind, convert(self.llvm, self.context.get_value_type(kind)))

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

    def math(self, name, *others):
        """One of LLVM's own functions, of this value and the others."""
        suffix = f"f{self.dtype.bitwidth}"
        suffix = f"v{self.kind.count}{suffix}" if isinstance(self.kind, Lanes) else suffix
        arguments = [self.like(a).llvm for a in (self, *others)]
        return self.call(f"llvm.{name}.{suffix}", self.kind, *arguments)

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
        return self._operate(self, other, "lshr")

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
    return c.like(a).math("fma", b, c)


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


def least(a, b):
    """The smaller of two integers."""
    return a.new(a.kind, a.builder.select(a.builder.icmp_signed("<", a.llvm, b.llvm), a.llvm, b.llvm))


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


# ---- memory ----


def _vector_at(p, index, count):
    """The address of `count` lanes at p[index]."""
    vector = p.context.get_value_type(Lanes(p.dtype, count))
    return p.builder.bitcast(p.builder.gep(p.llvm, [index.llvm]), vector.as_pointer())


def load_lanes(p, index, count=WIDTH):
    """Lanes from p[index]."""
    numbers = p.builder.load(_vector_at(p, index, count), align=p.dtype.bitwidth // 8)
    return p.new(Lanes(p.dtype, count), numbers)


def load_number(p, index):
    """The number p[index]."""
    return p.new(p.dtype, p.builder.load(p.builder.gep(p.llvm, [index.llvm])))


def store_lanes(p, index, v):
    """Lanes to p[index]."""
    p.builder.store(v.llvm, _vector_at(p, index, v.kind.count), align=p.dtype.bitwidth // 8)


def load_first(p, index, count, rest, lanes=WIDTH):
    """The first `count` lanes from p[index], `rest` in the others; reads no further."""
    address, alignment = _vector_at(p, index, lanes), ir.IntType(32)(p.dtype.bitwidth // 8)
    integers, kind = Lanes(types.int32, lanes), Lanes(p.dtype, lanes)
    numbers = ir.Constant(p.context.get_value_type(integers), list(range(lanes)))
    mask = p.builder.icmp_signed("<", numbers, spread(count.cast(types.int32), integers).llvm)
    name = f"llvm.masked.load.v{lanes}{'f' if p.dtype in FORMATS else 'i'}{p.dtype.bitwidth}.p0"
    rest = p.new(kind, None).like(rest).llvm
    return p.call(name, kind, address, alignment, mask, rest)


def store_first(p, index, count, v):
    """The first `count` lanes to p[index], in pieces of 16, 8, 4, 2 and 1. A masked store takes 19 or more
    micro-operations on Zen."""
    lanes = v.kind.count
    spilled = p.new(p.kind, cgutils.alloca_once(p.builder, v.llvm.type))
    p.builder.store(v.llvm, spilled.llvm)
    spilled.llvm = p.builder.bitcast(spilled.llvm, p.llvm.type)
    done, piece = count.like(0), lanes
    while piece:
        has = count._operate(count, piece, "and_")
        with p.builder.if_then(p.builder.icmp_signed("!=", has.llvm, has.like(0).llvm)):
            store_lanes(p, index + done, load_lanes(spilled, done, piece))
        done, piece = done + has, piece // 2


def turned(rows):
    """A square of lanes, its rows as columns: one bit of the rows' numbers and of the lanes' exchanged at a time."""
    count = len(rows)
    integers, bit = ir.VectorType(ir.IntType(32), count), 1
    while bit < count:
        stay = ir.Constant(integers, [i if not i & bit else count + i - bit for i in range(count)])
        move = ir.Constant(integers, [i + bit if not i & bit else count + i for i in range(count)])
        for i in range(count):
            if not i & bit:
                a, b = rows[i], rows[i + bit]
                rows[i] = a.new(a.kind, a.builder.shuffle_vector(a.llvm, b.llvm, stay))
                rows[i + bit] = a.new(a.kind, a.builder.shuffle_vector(a.llvm, b.llvm, move))
        bit *= 2
    return rows


# Of the types of a function's arguments, the type of its result.
def _first(kind, *_):
    return kind


def _lanes(pointer, *_):
    return Lanes(pointer.dtype)


def _pair(kind, *_):
    return types.UniTuple(kind, 2)


def stack(size, dtype=None):
    """Room for so many numbers, of a type or of a pointer's, until the function returns that has it called."""

    @staged(lambda pointer: types.CPointer(dtype or pointer.dtype))
    def room(pointer):
        kind = types.CPointer(dtype or pointer.dtype)
        with pointer.builder.goto_entry_block():
            place = pointer.builder.alloca(pointer.context.get_value_type(kind.dtype), ir.IntType(64)(size))
            place.align = 64
        return pointer.new(kind, place)

    return room


load = staged(_lanes)(lambda p, index: load_lanes(p, index))
load_part = staged(_lanes)(lambda p, index, count: load_first(p, index, count, -np.inf))
load_part_or_zero = staged(_lanes)(lambda p, index, count: load_first(p, index, count, 0))
store = staged(lambda *_: types.void)(store_lanes)
store_part = staged(lambda *_: types.void)(store_first)
maximum = staged(_first)(larger)


@intrinsic
def pointer_to(typingctx, array, i, j):
    """The address of array[i, 0, j]."""

    def generate(context, builder, signature, arguments):
        struct = context.make_array(array)(context, builder, arguments[0])
        indices = [arguments[1], ir.IntType(64)(0), arguments[2]]
        return cgutils.get_item_pointer(context, builder, array, struct, indices, wraparound=False)

    return types.CPointer(array.dtype)(array, types.intp, types.intp), generate


@staged(_first)
def advanced(p, steps):
    return p.new(p.kind, p.builder.gep(p.llvm, [steps.llvm]))


@staged(lambda number, pointer: pointer.dtype)
def rounded(number, pointer):
    """A double rounded to the type that the pointer points to."""
    return number.cast(pointer.dtype)


@jit
def pitch_of(array, axis):
    """How far apart neighbours along an axis are, in elements."""
    return array.strides[axis] // array.itemsize


@staged(lambda *_: types.void)
def gather_square(p, pitch, k, last, j, count, tile, index, tile_pitch):
    """`count` elements from j on of rows k .. k + 7 into a tile's columns. Rows after the last are like it."""
    rows = [load_first(p, least(k + i, last) * pitch + j, count, 0.0, SQUARE) for i in range(SQUARE)]
    for i, line in enumerate(turned(rows)):
        store_lanes(tile, index + tile_pitch * i, line)


@staged(lambda *_: types.void)
def scatter_square(p, pitch, k, rows, j, count, tile, index, tile_pitch):
    """The other way; no row from number `rows` on is written."""
    lines = [load_lanes(tile, index + tile_pitch * i, SQUARE) for i in range(SQUARE)]
    for i, row in enumerate(turned(lines)):
        inside = p.builder.icmp_signed("<", (k + i).llvm, rows.llvm)
        some = count.new(count.kind, p.builder.select(inside, count.llvm, count.like(0).llvm))
        store_first(p, (k + i) * pitch + j, some, row)


# ---- what threads share ----


def _place_in(array, index):
    data = array.context.make_array(array.kind)(array.context, array.builder, array.llvm).data
    return array.builder.gep(data, [index.llvm])


@staged(lambda *_: types.intp)
def added(counters, index, steps):
    """counters[index], to which `steps` is added, whoever else does the same."""
    place = _place_in(counters, index)
    return steps.new(types.intp, steps.builder.atomic_rmw("add", place, steps.llvm, "seq_cst"))


@staged(lambda *_: types.intp)
def seen(counters, index):
    """counters[index] as it is now, and all that was written before it became that."""
    return index.new(types.intp, index.builder.load_atomic(_place_in(counters, index), "seq_cst", 8))
