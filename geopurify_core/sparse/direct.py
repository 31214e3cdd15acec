"""Products of gathered rows with a kernel, added where they belong, without a buffer in between. Needs numba.

For narrow layers moving rows costs as much as multiplying them. Here four pairs at a time are multiplied in registers,
straight from the input rows, and added to their output rows: 4 rows x 16 to 64 channels, while a piece of the kernel of
64 input channels stays in the first-level cache. A row's sum does not depend on which rows it is grouped with.
"""
# mypy: ignore-errors

from __future__ import annotations

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from geopurify_core.jit import compiled

LANES = 16
DEPTH = 64  # input channels for which a piece of the kernel is used before the next one
# How many times 16 channels stay in registers: 4 x 4 sums of 16 are half of what AVX-512 has; elsewhere 4 x 1 must do.
MOST_VECTORS = 4 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 1

_WIDEST, _WIDEST_WITHOUT_AVX512 = 256, 128  # output channels

_INDEX = ir.IntType(64)
_VECTOR = ir.VectorType(ir.FloatType(), LANES)


@intrinsic
def _add_products(typing_context, vectors, source, rows, low, high, weights, column, target, targets):
    """target[targets[i], column : column + 16 n] += source[rows[i], low : high] · weights[low : high, column : …].

    As many rows as the tuples ``rows`` and ``targets`` hold; n is the length of ``vectors``; low < high.
    """
    n, count = len(vectors), len(rows)

    def codegen(context, builder, signature, args):
        source_at, weights_at, target_at = (
            _Rows(context.make_array(signature.args[i])(context, builder, args[i]), builder) for i in (1, 5, 7)
        )
        low_at, high_at, column_at = args[3], args[4], args[6]
        inputs = [source_at.row(row) for row in cgutils.unpack_tuple(builder, args[2], count)]
        weights_at = _Rows(weights_at.array, builder, column_at)
        entry, loop, done = builder.block, builder.append_basic_block("channel"), builder.append_basic_block("done")
        builder.branch(loop)

        builder.position_at_end(loop)
        at = builder.phi(_INDEX)
        at.add_incoming(low_at, entry)
        sums = [builder.phi(_VECTOR) for _ in range(count * n)]
        loaded = [builder.load(pointer, align=4) for pointer in _vectors(builder, weights_at.row(at), n)]
        added = []
        for i, pointer in enumerate(inputs):
            value = _everywhere(builder, builder.load(builder.gep(pointer, [at])))
            added += [_fused(builder, value, loaded[v], sums[i * n + v]) for v in range(n)]
        following = builder.add(at, _INDEX(1))
        at.add_incoming(following, loop)
        for before, after in zip(sums, added, strict=True):
            before.add_incoming(ir.Constant(_VECTOR, [0.0] * LANES), entry)
            before.add_incoming(after, loop)
        builder.cbranch(builder.icmp_signed("<", following, high_at), loop, done)

        builder.position_at_end(done)
        for i, row in enumerate(cgutils.unpack_tuple(builder, args[8], count)):
            out = _vectors(builder, builder.gep(target_at.row(row), [column_at]), n)
            for vector, pointer in zip(added[i * n : (i + 1) * n], out, strict=True):
                builder.store(builder.fadd(builder.load(pointer, align=4), vector), pointer, align=4)
        return context.get_dummy_value()

    return types.void(vectors, source, rows, low, high, weights, column, target, targets), codegen


class _Rows:
    """Where the rows of a contiguous array begin, or some columns further on."""

    def __init__(self, array, builder, offset=None):
        self.array, self._builder = array, builder
        self._width = cgutils.unpack_tuple(builder, array.shape, 2)[1]
        self._data = array.data if offset is None else builder.gep(array.data, [offset])

    def row(self, index):
        return self._builder.gep(self._data, [self._builder.mul(index, self._width)])


def _vectors(builder, pointer, count):
    """Pointers to ``count`` vectors that follow each other."""
    return [builder.bitcast(builder.gep(pointer, [_INDEX(i * LANES)]), _VECTOR.as_pointer()) for i in range(count)]


def _everywhere(builder, value):
    """A vector of sixteen times ``value``."""
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.IntType(32)(0))
    places = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), places)


def _fused(builder, a, b, c):
    """a · b + c with one rounding."""
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32"), [a, b, c])


@compiled()
def add_products(vectors, source, weights, in_rows, out_rows, start, stop, target):
    """target[out_rows[p]] += source[in_rows[p]] · weights for the pairs p in [start, stop), float32, contiguous.

    The channels of ``target`` are a multiple of 16 · len(vectors); an output row occurs at most once.
    """
    channels = source.shape[1]
    for low in range(0, channels, DEPTH):
        high = min(low + DEPTH, channels)
        for column in range(0, target.shape[1], LANES * len(vectors)):
            p = start
            while p + 4 <= stop:
                rows = (_at(in_rows, p), _at(in_rows, p + 1), _at(in_rows, p + 2), _at(in_rows, p + 3))
                outs = (_at(out_rows, p), _at(out_rows, p + 1), _at(out_rows, p + 2), _at(out_rows, p + 3))
                _add_products(vectors, source, rows, low, high, weights, column, target, outs)
                p += 4
            while p < stop:
                rows, outs = (_at(in_rows, p),), (_at(out_rows, p),)
                _add_products(vectors, source, rows, low, high, weights, column, target, outs)
                p += 1


@compiled(inline=True)
def _at(rows, place):
    return np.int64(rows[place])


def vectors_for(width: int) -> tuple[int, ...]:
    """A tuple as long as the number of vectors held at once for outputs of this width, a multiple of 16."""
    vectors = width // LANES
    return (0,) * next(n for n in range(MOST_VECTORS, 0, -1) if vectors % n == 0)


def suits(width: int) -> bool:
    """Whether outputs of this width are faster this way: measured up to 256 channels where AVX-512 is.

    At 64, 96, 128 and 256 channels 2.4, 1.6, 1.4 and 1.05 times the rate of gather, product and scatter; none at 512.
    """
    return 0 < width <= (_WIDEST if MOST_VECTORS > 1 else _WIDEST_WITHOUT_AVX512) and width % LANES == 0
