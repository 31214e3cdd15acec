"""F ← A F at the speed of a dense product. Importable only where numba is.

Four voxels that follow each other in space share most of their neighbours. Their rows of A are merged into one list of
columns with four weights each (zero where a voxel does not listen), so every feature row is loaded once for four, and
the product runs in registers: 4 voxels x 16 to 64 channels. Columns are listed in ascending order, and adding zero
times a finite number changes nothing: the sum of a voxel is therefore the same to the last bit whichever voxels it is
grouped with, and a subset of rows comes out as it would among all.
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
from geopurify_core.mapping.half import narrow, widen

GROUP = 4
LANES = 16
_LOOK_BACK = 400  # groups whose features are taken to be in the second-level cache still
_FETCH_AHEAD = 2  # groups
# How many times 16 channels stay in registers: 4 x 4 sums of 16 are half of what AVX-512 has; elsewhere 4 x 1 must do.
MOST_VECTORS = 4 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 1

_INDEX, _BIT = ir.IntType(64), ir.IntType(1)
_VECTOR = ir.VectorType(ir.FloatType(), LANES)


@intrinsic
def _lowest_bit(typing_context, word):
    """Number of the lowest bit that is set."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(_INDEX, [_INDEX, _BIT])
        count = cgutils.get_or_insert_function(builder.module, kind, "llvm.cttz.i64")
        return builder.call(count, [args[0], _BIT(1)])

    return types.int64(types.uint64), codegen


@compiled()
def merge_rows(start, stop, rows, rank, neighbors, weights):
    """Groups [start, stop) of four: group g holds ``rows[4 g : 4 g + 4]``.

    Returns (first, columns, shares, fresh_first, fresh): group g has the columns ``columns[first[g - start] :
    first[g - start + 1]]``, as ranks in ascending order, and ``shares`` (columns, 4) says how much each of its rows
    takes of each. ``fresh`` lists those among them that no group shortly before has used, for :func:`multiply` to fetch
    ahead of time.
    """
    k, total = neighbors.shape[1], len(rank)
    words, place = np.zeros((total + 63) // 64, dtype=np.uint64), np.empty(total, dtype=np.int32)
    used = np.full(total, -_LOOK_BACK - 1, dtype=np.int32)
    first, fresh_first = np.zeros(stop - start + 1, dtype=np.int64), np.zeros(stop - start + 1, dtype=np.int64)
    columns = np.empty((stop - start) * GROUP * k, dtype=np.int32)
    fresh, shares = np.empty_like(columns), np.zeros((len(columns), GROUP), dtype=np.float32)
    ranks = np.empty((GROUP, k), dtype=np.int32)
    end = fresh_end = 0
    for g in range(stop - start):
        members = rows[(start + g) * GROUP : (start + g + 1) * GROUP]
        low, high = total, 0
        for r in range(len(members)):
            for j in range(k):
                column = rank[neighbors[members[r], j]]
                ranks[r, j] = column
                words[column >> 6] |= np.uint64(1) << np.uint64(column & 63)
                low, high = min(low, column), max(high, column)
        for at in range(low >> 6, (high >> 6) + 1):
            word = words[at]
            words[at] = np.uint64(0)
            while word != np.uint64(0):
                column = (at << 6) + _lowest_bit(word)
                word &= word - np.uint64(1)
                columns[end], place[column] = column, end
                end += 1
                if used[column] < g - _LOOK_BACK:
                    fresh[fresh_end] = column
                    fresh_end += 1
                used[column] = g
        for r in range(len(members)):
            for j in range(k):
                shares[place[ranks[r, j]], r] += weights[members[r], j]
        first[g + 1], fresh_first[g + 1] = end, fresh_end
    return first, columns[:end].copy(), shares[:end].copy(), fresh_first, fresh[:fresh_end].copy()


@intrinsic
def _multiply_group(typing_context, vectors, columns, shares, start, stop, source, channel, target, row):
    """target[row : row + 4, channel : channel + 16 n] = sharesᵀ source[columns]; n is the length of ``vectors``."""
    n = len(vectors)

    def codegen(context, builder, signature, args):
        column_data, share_data, source_array, target_array = (
            context.make_array(signature.args[i])(context, builder, args[i]) for i in (1, 2, 5, 7)
        )
        low, high, channel_at, row_at = args[3], args[4], args[6], args[8]
        width = cgutils.unpack_tuple(builder, source_array.shape, 2)[1]
        entry, loop, done = builder.block, builder.append_basic_block("column"), builder.append_basic_block("done")
        source_at = builder.gep(source_array.data, [channel_at])
        builder.branch(loop)

        builder.position_at_end(loop)
        at = builder.phi(_INDEX)
        at.add_incoming(low, entry)
        sums = [builder.phi(_VECTOR) for _ in range(GROUP * n)]
        column = builder.sext(builder.load(builder.gep(column_data.data, [at])), _INDEX)
        features = _vectors_at(builder, builder.gep(source_at, [builder.mul(column, width)]), n)
        share = builder.gep(share_data.data, [builder.mul(at, _INDEX(GROUP))])
        added = _fused_sums(builder, share, [builder.load(f, align=4) for f in features], sums)
        following = builder.add(at, _INDEX(1))
        at.add_incoming(following, loop)
        for before, after in zip(sums, added, strict=True):
            before.add_incoming(ir.Constant(_VECTOR, [0.0] * LANES), entry)
            before.add_incoming(after, loop)
        builder.cbranch(builder.icmp_signed("<", following, high), loop, done)

        builder.position_at_end(done)
        for r in range(GROUP):
            out = builder.mul(builder.add(row_at, _INDEX(r)), width)
            out = builder.gep(target_array.data, [builder.add(out, channel_at)])
            for vector, pointer in zip(added[r * n : (r + 1) * n], _vectors_at(builder, out, n), strict=True):
                builder.store(vector, pointer, align=4)
        return context.get_dummy_value()

    return types.void(vectors, columns, shares, start, stop, source, channel, target, row), codegen


def _vectors_at(builder, pointer, count):
    """Pointers to ``count`` vectors that follow each other."""
    return [builder.bitcast(builder.gep(pointer, [_INDEX(i * LANES)]), _VECTOR.as_pointer()) for i in range(count)]


def _fused_sums(builder, share, features, sums):
    """sums[r, v] + share[r] · features[v] for the four rows r, with one rounding."""
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    fused = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")
    undefined, zero = ir.Constant(_VECTOR, ir.Undefined), ir.IntType(32)(0)
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    result = []
    for r in range(GROUP):
        one = builder.insert_element(undefined, builder.load(builder.gep(share, [_INDEX(r)])), zero)
        weight = builder.shuffle_vector(one, undefined, everywhere)
        for v, feature in enumerate(features):
            result.append(builder.call(fused, [weight, feature, sums[r * len(features) + v]]))
    return result


@intrinsic
def _fetch(typing_context, source, row, channel):
    """Ask for the cache line of source[row, channel]."""

    def codegen(context, builder, signature, args):
        array = context.make_array(signature.args[0])(context, builder, args[0])
        width = cgutils.unpack_tuple(builder, array.shape, 2)[1]
        at = builder.gep(array.data, [builder.add(builder.mul(args[1], width), args[2])])
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(fetch, [builder.bitcast(at, byte), number(0), number(3), number(1)])  # to read, soon, as data
        return context.get_dummy_value()

    return types.void(source, row, channel), codegen


@compiled()
def multiply(vectors, begin, first, columns, shares, fresh_first, fresh, source, target):
    """Rows [4 begin, …) of target = A source, for merged rows whose first group is ``begin``.

    ``source`` and ``target`` are (rows, channels) float32, contiguous, channels a multiple of 16 · len(vectors), and
    ``target`` has room for whole groups. Every group has at least one column.
    """
    last = len(first) - 2
    for g in range(last + 1):
        ahead = min(g + _FETCH_AHEAD, last)
        for i in range(fresh_first[ahead], fresh_first[ahead + 1]):
            for channel in range(0, source.shape[1], LANES):
                _fetch(source, np.int64(fresh[i]), np.int64(channel))
        for channel in range(0, source.shape[1], LANES * len(vectors)):
            _multiply_group(
                vectors, columns, shares, first[g], first[g + 1], source, np.int64(channel), target, GROUP * (begin + g)
            )


@compiled()
def multiply_features(start, stop, vectors, rows, features, right, block):
    """Groups [start, stop) of block = features[rows] · right, for right (C, n) float32; float16 comes as bits."""
    channels, last = features.shape[1], len(rows) - 1
    columns, shares = np.arange(channels).astype(np.int32), np.empty((channels, GROUP), dtype=np.float32)
    for g in range(start, stop):
        at = g * GROUP
        a, b = features[rows[at]], features[rows[min(at + 1, last)]]
        c, d = features[rows[min(at + 2, last)]], features[rows[min(at + 3, last)]]
        for j in range(channels):
            shares[j, 0] = widen(a[j])
            shares[j, 1] = widen(b[j])
            shares[j, 2] = widen(c[j])
            shares[j, 3] = widen(d[j])
        for column in range(0, right.shape[1], LANES * len(vectors)):
            _multiply_group(vectors, columns, shares, 0, channels, right, np.int64(column), block, at)


@compiled()
def load_block(start, stop, rows, features, low, high, block):
    """block[i, : high - low] = features[rows[i], low : high] in float32, zeros after it; float16 comes as bits."""
    for i in range(start, stop):
        source = features[rows[i]]
        for c in range(low, high):
            block[i, c - low] = widen(source[c])
        block[i, high - low :] = np.float32(0.0)


@compiled()
def store_block(start, stop, rows, block, out, low, high):
    """out[rows[i], low : high] = block[i]."""
    for i in range(start, stop):
        target = out[rows[i]]
        for c in range(low, high):
            target[c] = block[i, c - low]


@compiled()
def store_half_block(start, stop, rows, block, out, low, high):
    """The same into the bits of float16, rounded to nearest."""
    for i in range(start, stop):
        target = out[rows[i]]
        for c in range(low, high):
            target[c] = narrow(block[i, c - low])


@compiled()
def store_columns(start, stop, rows, block, out, low, high):
    """out[low + c, rows[i]] = block[i, c]."""
    for i in range(start, stop):
        row = rows[i]
        for c in range(low, high):
            out[c, row] = block[i, c - low]


@compiled(reassociate=True)
def add_squares(start, stop, block, square):
    """square[i] += |block[i]|², in float32 within the block and float64 across blocks."""
    for i in range(start, stop):
        total = np.float32(0.0)
        for c in range(block.shape[1]):
            total += block[i, c] * block[i, c]
        square[i] += total


@compiled()
def count_unusual(start, stop, bits, exponent):
    """How many values have all exponent bits set, NaN or infinity; the exponent stands right below the sign."""
    count = 0
    sign = exponent ^ exponent
    for i in range(start, stop):
        row, largest = bits[i], sign
        for c in range(len(row)):  # vectors can take a maximum, counting is for the rare row that needs it
            largest = max(largest, row[c] & exponent)
        if largest == exponent:
            for c in range(len(row)):
                count += (row[c] & exponent) == exponent
    return count
