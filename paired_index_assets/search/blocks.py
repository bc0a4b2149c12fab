"""Inner products with 16 vectors at a time: levels in whole bytes, four of each of the 16 next to each other.

Sums of `dots.dot_bytes`, and the same numbers, without adding up across a register for each vector: lane v of a sum belongs to vector v.
Worth laying out what many queries are held against: the centroids, and a list that several queries of a batch look in.

    block of 16 vectors: levels 0..3 of vector 0, of vector 1, .. of vector 15, levels 4..7 of vector 0, ..

The width is padded with zeros to whole registers, the last block with vectors of any kind.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from paired_index_assets.files.compiling import compiled
from paired_index_assets.rows import UInt8
from paired_index_assets.search.dots import HAS_VNNI, bytes_at, declared, int8_at, load_within, pointer_to

VECTORS, QUAD = 16, 4
PLANES = 2  # of weights: the coarse bytes and the fine ones
REGISTERS = HAS_VNNI
MOST_BLOCKS = 4  # held against a query together, so that its weights are read once for them
LINE = 64  # bytes

int32_at, uint32_at, uint16_at = map(pointer_to, (types.int32, types.uint32, types.uint16))

_BIT, _BYTE, _INT32, _INT64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))
_BYTES, _SUMS = ir.VectorType(_BYTE, LINE), ir.VectorType(_INT32, VECTORS)


@compiled
def block_bytes(width: int) -> int:
    """Of 16 vectors of so many levels."""
    return VECTORS * LINE * ((width + LINE - 1) // LINE)


def _by_vnni(blocks: int) -> Any:
    """(levels, bytes of a block, weights, bytes between the two planes of weights, quads, threshold, sums) -> which sums, of `blocks` times 16 that are
    written to the address `sums`, are not below the threshold, one bit each."""

    @intrinsic
    def dot(context: Any, levels: Any, span: Any, weights: Any, stride: Any, quads: Any, threshold: Any, sums: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            levels, span, weights, stride, quads, threshold, sums = arguments
            add = declared(builder.module, "llvm.x86.avx512.vpdpbusd.512", _SUMS, [_SUMS, _BYTES, _BYTES])
            zero = ir.Constant(_SUMS, [0] * VECTORS)
            before, step, done = builder.block, builder.append_basic_block("quad"), builder.append_basic_block("done")
            builder.branch(step)
            builder.position_at_end(step)
            quad = builder.phi(_INT64)
            totals = [[builder.phi(_SUMS) for _ in range(blocks)] for _ in range(2)]
            at = builder.add(weights, builder.mul(quad, _INT64(QUAD)))
            of_planes = [_splat(builder, address) for address in (at, builder.add(at, stride))]
            row = builder.add(levels, builder.mul(quad, _INT64(LINE)))
            added: list[list[Any]] = [[], []]
            for block in range(blocks):
                place = builder.add(row, builder.mul(span, _INT64(block)))
                vectors = builder.load(builder.inttoptr(place, _BYTES.as_pointer()))
                vectors.align = 1
                for plane in range(2):
                    added[plane].append(builder.call(add, [totals[plane][block], vectors, of_planes[plane]]))
            following = builder.add(quad, _INT64(1))
            quad.add_incoming(_INT64(0), before)
            quad.add_incoming(following, step)
            for plane in range(2):
                for block in range(blocks):
                    totals[plane][block].add_incoming(zero, before)
                    totals[plane][block].add_incoming(added[plane][block], step)
            builder.cbranch(builder.icmp_signed("<", following, quads), step, done)
            builder.position_at_end(done)
            least = _splat_of(builder, threshold)
            result = _INT64(0)
            for block in range(blocks):
                whole = builder.add(builder.shl(added[0][block], ir.Constant(_SUMS, [8] * VECTORS)), added[1][block])
                target = builder.inttoptr(builder.add(sums, _INT64(LINE * block)), _SUMS.as_pointer())
                builder.store(whole, target).align = 1
                bits = builder.bitcast(builder.icmp_signed(">=", whole, least), ir.IntType(VECTORS))
                result = builder.or_(result, builder.shl(builder.zext(bits, _INT64), _INT64(VECTORS * block)))
            return result

        whole = types.int64
        return types.uint64(whole, whole, whole, whole, whole, types.int32, whole), generate

    return dot


def _splat(builder: Any, address: Any) -> Any:
    """The four bytes at an address, 16 times."""
    value = builder.load(builder.inttoptr(address, _INT32.as_pointer()))
    value.align = 1
    return builder.bitcast(_splat_of(builder, value), _BYTES)


def _splat_of(builder: Any, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(_SUMS, ir.Undefined), value, _INT32(0))
    return builder.shuffle_vector(one, one, ir.Constant(_SUMS, [0] * VECTORS))


def _in_loops(blocks: int) -> Any:
    @numba.njit(inline="always")
    def dot(levels: int, span: int, weights: int, stride: int, quads: int, threshold: int, sums: int) -> Any:
        total, weight, result = int32_at(sums), int8_at(weights), numba.uint64(0)
        for block in range(blocks):
            level = bytes_at(levels + block * span)
            for vector in range(VECTORS):
                coarse, fine = numba.int32(0), numba.int32(0)
                for i in range(quads * QUAD):
                    at = (i >> 2) * LINE + vector * QUAD + (i & 3)
                    coarse += numba.int32(level[at]) * numba.int32(weight[i])
                    fine += numba.int32(level[at]) * numba.int32(weight[stride + i])
                total[block * VECTORS + vector] = (coarse << 8) + fine
                if (coarse << 8) + fine >= threshold:
                    result |= numba.uint64(1) << numba.uint64(block * VECTORS + vector)
        return result

    return dot


@intrinsic
def _lowest(context: Any, mask: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(_BIT, 1))

    return types.int64(types.uint64), generate


lowest: Any = _lowest  # (mask) -> the number of its lowest bit that is set; at least one is


def weights_stride(width: int) -> int:
    """Bytes of a plane of weights."""
    return QUAD * -(-width // QUAD)


@compiled
def within(mask: Any, vectors: int) -> Any:
    """The bits of the first so many vectors."""
    return mask if vectors >= VECTORS * MOST_BLOCKS else mask & ((np.uint64(1) << np.uint64(vectors)) - np.uint64(1))


_make = _by_vnni if HAS_VNNI else _in_loops
_one, _two, _three, _four = (_make(blocks) for blocks in range(1, MOST_BLOCKS + 1))


@compiled
def dot_blocks(levels: int, span: int, weights: int, stride: int, quads: int, blocks: int, threshold: Any, sums: int) -> Any:
    """Hold 1 to 4 `blocks` against a query: their whole scores go to the address `sums` (int32, 16 a block); which are not below
    `threshold`, one bit each."""
    if blocks >= 4:
        return _four(levels, span, weights, stride, quads, np.int32(threshold), sums)
    if blocks == 3:
        return _three(levels, span, weights, stride, quads, np.int32(threshold), sums)
    if blocks == 2:
        return _two(levels, span, weights, stride, quads, np.int32(threshold), sums)
    return _one(levels, span, weights, stride, quads, np.int32(threshold), sums)


def in_blocks(levels: UInt8) -> UInt8:
    """The levels (n, width) of vectors laid out in blocks, at an address of whole lines."""
    vectors, width = levels.shape
    blocks, quads = -(-vectors // VECTORS), block_bytes.py_func(width) // LINE
    padded = np.zeros((blocks * VECTORS, quads * QUAD), np.uint8)
    padded[:vectors, :width] = levels
    out: UInt8 = aligned.py_func(padded.size)
    out[:] = padded.reshape(blocks, VECTORS, quads, QUAD).transpose(0, 2, 1, 3).ravel()
    return out


@compiled
def aligned(size: int) -> Any:
    """(size,) bytes at an address of whole lines: a register read across two costs two."""
    room = np.empty(size + LINE, np.uint8)
    first = -room.ctypes.data % LINE
    return room[first : first + size]


def _laid_by_registers(nibbles: bool) -> Any:
    """(addresses of 16 codes, first byte, bytes of a code, target): the 64 levels from that byte on of all 16 go to the address `target`."""

    @intrinsic
    def lay(context: Any, codes: Any, first: Any, size: Any, target: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            codes, first, size, target = arguments
            vectors = []
            for vector in range(VECTORS):
                place = builder.load(builder.inttoptr(builder.add(codes, _INT64(8 * vector)), _INT64.as_pointer()))
                found = load_within(builder, builder.add(place, first), builder.sub(size, first), LINE // 2 if nibbles else LINE)
                vectors.append(builder.bitcast(_apart(builder, found) if nibbles else found, _SUMS))
            for quad, row in enumerate(_transposed(builder, vectors)):
                builder.store(row, builder.inttoptr(builder.add(target, _INT64(LINE * quad)), _SUMS.as_pointer())).align = 1
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, types.int64), generate

    return lay


def _apart(builder: Any, code: Any) -> Any:
    """The nibbles of 32 bytes, a byte each."""
    words = ir.VectorType(ir.IntType(16), LINE // 2)
    wide = builder.zext(code, words)
    both = builder.or_(wide, builder.shl(wide, ir.Constant(words, [4] * (LINE // 2))))
    return builder.and_(both, ir.Constant(words, [0x0F0F] * (LINE // 2)))


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """16 registers of 16 numbers: number i of row j is number j of row i, in four steps of twice as large squares."""
    places = ir.VectorType(_INT32, VECTORS)
    for half in (1, 2, 4, 8):
        upper = ir.Constant(places, [VECTORS + i - half if i & half else i for i in range(VECTORS)])
        lower = ir.Constant(places, [VECTORS + i if i & half else i + half for i in range(VECTORS)])
        for i in range(VECTORS):
            if not i & half:
                a, b = rows[i], rows[i + half]
                rows[i], rows[i + half] = builder.shuffle_vector(a, b, upper), builder.shuffle_vector(a, b, lower)
    return rows


_lay_nibbles, _lay_bytes = _laid_by_registers(True), _laid_by_registers(False)


@compiled
def lay_out(codes: Any, count: int, size: int, bits: int, width: int, levels: int) -> None:
    """Lay the `count` codes of `size` bytes that lie at the addresses `codes` out in blocks, from the address `levels` on; `codes` has room
    for whole blocks."""
    span = block_bytes(width)
    if REGISTERS and bits != 6:
        for i in range(count, (count + VECTORS - 1) // VECTORS * VECTORS):
            codes[i] = codes[count - 1]
        for block in range((count + VECTORS - 1) // VECTORS):
            at, to = codes.ctypes.data + 8 * VECTORS * block, levels + span * block
            if bits == 4:
                for step in range((size + 31) // 32):
                    _lay_nibbles(at, 32 * step, size, to + VECTORS * LINE * step)
            else:
                for step in range((size + 63) // 64):
                    _lay_bytes(at, 64 * step, size, to + VECTORS * LINE * step)
    else:
        for i in range(count):
            spread(codes[i], size, bits, width, levels + i // VECTORS * span + i % VECTORS * QUAD)


@compiled
def spread(code: int, size: int, bits: int, width: int, levels: int) -> None:
    """Write the levels of a code of `size` bytes, which lies at an address, as one vector of a block: `levels` is the address of its first."""
    quads = (width + QUAD - 1) // QUAD
    to, byte = uint32_at(levels), bytes_at(code)
    if bits == 4:
        pairs = uint16_at(code)
        for quad in range(size // 2):
            to[quad * VECTORS] = _nibbles(np.uint32(pairs[quad]))
        if size % 2:
            to[size // 2 * VECTORS] = _nibbles(np.uint32(byte[size - 1]))
    elif bits == 8:
        whole = uint32_at(code)
        for quad in range(size // QUAD):
            to[quad * VECTORS] = whole[quad]
        if size % QUAD:
            rest = np.uint32(0)
            for i in range(size % QUAD):
                rest |= np.uint32(byte[size // QUAD * QUAD + i]) << np.uint32(8 * i)
            to[size // QUAD * VECTORS] = rest
    else:
        for quad in range(quads):
            four = np.uint32(0)
            for i in range(min(QUAD, width - QUAD * quad)):
                four |= np.uint32(level(byte, QUAD * quad + i, bits)) << np.uint32(8 * i)
            to[quad * VECTORS] = four


@compiled
def _nibbles(pair: Any) -> Any:
    """The four nibbles of two bytes, a byte each."""
    apart = (pair | pair << np.uint32(8)) & np.uint32(0x00FF00FF)
    return (apart | apart << np.uint32(4)) & np.uint32(0x0F0F0F0F)


@compiled
def level(code: Any, i: int, bits: int) -> Any:
    """Level i of a little-endian stream of `bits`."""
    at = i * bits
    byte, shift = at >> 3, at & 7
    value = np.int64(code[byte]) >> shift
    if shift + bits > 8:
        value |= np.int64(code[byte + 1]) << (8 - shift)
    return value & ((1 << bits) - 1)
