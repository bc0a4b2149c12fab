"""Inner products of a query's whole-number weights with codes as they lie in the file: no table, no unpacked copy.

A scalar code's score is linear in its levels: ``sum_i first_i + W_i c_i`` with ``W_i = q_i step_i``. The weights become whole numbers of 16
bits, coarse and fine byte, and the levels are 4 or 8 bits: what AVX512-VNNI's `vpdpbusd` adds up, 64 products at a time. LLVM has it as an
intrinsic; on another processor the same sums are plain loops. Both are exact, so a sum does not depend on the machine.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.core import config
from numba.extending import intrinsic

LANES = 64  # bytes of a vector register; weights are padded with zeros to a multiple of it
CODE_PLANES = 4  # rows of weights: coarse and fine ones of the low nibbles and of the high, or two of whole bytes
CONFIGURED = any(getattr(config, name) for name in ("CPU_NAME", "CPU_FEATURES"))  # another processor than this one was asked for
HAS_VNNI = not CONFIGURED and all(llvm.get_host_cpu_features().get(name) for name in ("avx512vnni", "avx512bw"))

_BYTE, _BIT, _INT32, _INT64 = (ir.IntType(bits) for bits in (8, 1, 32, 64))
_BYTES, _SUMS = ir.VectorType(_BYTE, LANES), ir.VectorType(_INT32, LANES // 4)


def pointer_to(kind: Any) -> Any:
    """An intrinsic that reads an address as a pointer to `kind`."""

    @intrinsic
    def pointer(context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        to: Any = types.CPointer
        return to(kind)(types.int64), generate

    return pointer


float32_at, float64_at, int64_at, bytes_at, int8_at = map(pointer_to, (types.float32, types.float64, types.int64, types.uint8, types.int8))


def declared(module: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, arguments), name)


def _load(builder: Any, address: Any) -> Any:
    loaded = builder.load(builder.inttoptr(address, _BYTES.as_pointer()))
    loaded.align = 1
    return loaded


def load_within(builder: Any, address: Any, left: Any, lanes: int = LANES) -> Any:
    """The first `left` bytes of `lanes`, zeros behind them: what follows a code may be the end of the file."""
    mask, found, number = ir.VectorType(_BIT, lanes), ir.VectorType(_BYTE, lanes), ir.IntType(lanes)
    few = builder.trunc(left, number) if lanes < LANES else left
    some = builder.sub(builder.shl(number(1), builder.and_(few, number(lanes - 1))), number(1))
    bits = builder.select(builder.icmp_signed(">=", left, _INT64(lanes)), number(-1), some)
    pointer = builder.inttoptr(address, found.as_pointer())
    load = declared(builder.module, f"llvm.masked.load.v{lanes}i8.p0", found, [pointer.type, _INT32, mask, found])
    return builder.call(load, [pointer, _INT32(1), builder.bitcast(bits, mask), ir.Constant(found, [0] * lanes)])


def _add_products(builder: Any, sums: Any, levels: Any, weights: Any) -> Any:
    add = declared(builder.module, "llvm.x86.avx512.vpdpbusd.512", _SUMS, [_SUMS, _BYTES, _BYTES])
    return builder.call(add, [sums, levels, weights])


def _by_vnni(nibbles: bool) -> Any:
    @intrinsic
    def dot(context: Any, code: Any, weights: Any, stride: Any, size: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            code, weights, stride, size = arguments
            before, chunk, done = builder.block, builder.append_basic_block("chunk"), builder.append_basic_block("done")
            builder.branch(chunk)
            builder.position_at_end(chunk)
            at, *sums = builder.phi(_INT64), builder.phi(_SUMS), builder.phi(_SUMS)
            levels = load_within(builder, builder.add(code, at), builder.sub(size, at))
            parts = [levels]
            if nibbles:
                low, shift = (ir.Constant(_BYTES, [value] * LANES) for value in (15, 4))
                parts = [builder.and_(levels, low), builder.lshr(levels, shift)]
            added = []
            for plane, total in enumerate(sums):
                for half, part in enumerate(parts):
                    row = builder.mul(stride, _INT64(plane * len(parts) + half))
                    total = _add_products(builder, total, part, _load(builder, builder.add(builder.add(weights, at), row)))
                added.append(total)
            following = builder.add(at, _INT64(LANES))
            zero = ir.Constant(_SUMS, [0] * (LANES // 4))
            for phi, first, later in ((at, _INT64(0), following), *zip(sums, (zero, zero), added, strict=True)):
                phi.add_incoming(first, before)
                phi.add_incoming(later, chunk)
            builder.cbranch(builder.icmp_signed("<", following, size), chunk, done)
            builder.position_at_end(done)
            whole = builder.add(builder.shl(added[0], ir.Constant(_SUMS, [8] * (LANES // 4))), added[1])
            reduce = declared(builder.module, "llvm.vector.reduce.add.v16i32", _INT32, [_SUMS])
            return builder.call(reduce, [whole])

        return types.int32(types.int64, types.int64, types.int64, types.int64), generate

    return dot


@numba.njit(inline="always")
def _nibbles_in_loops(code: int, weights: int, stride: int, size: int) -> Any:
    levels, weight, coarse, fine = bytes_at(code), int8_at(weights), numba.int32(0), numba.int32(0)
    for i in range(size):
        low, high = numba.int32(levels[i] & 15), numba.int32(levels[i] >> 4)
        coarse += low * numba.int32(weight[i]) + high * numba.int32(weight[stride + i])
        fine += low * numba.int32(weight[2 * stride + i]) + high * numba.int32(weight[3 * stride + i])
    return (coarse << 8) + fine


@numba.njit(inline="always")
def _bytes_in_loops(code: int, weights: int, stride: int, size: int) -> Any:
    levels, weight, coarse, fine = bytes_at(code), int8_at(weights), numba.int32(0), numba.int32(0)
    for i in range(size):
        level = numba.int32(levels[i])
        coarse += level * numba.int32(weight[i])
        fine += level * numba.int32(weight[stride + i])
    return (coarse << 8) + fine


# (address of a code, address of the weights, bytes between two planes of them, bytes of a code) -> int32
dot_nibbles, dot_bytes = (_by_vnni(True), _by_vnni(False)) if HAS_VNNI else (_nibbles_in_loops, _bytes_in_loops)
