"""What LLVM must be told for the passes of rounding to stay in registers: a product of two narrow matrices, and 16 steps of descent at once.

Each number is a chain of fused multiply-adds in the order of its terms, whatever the width of the registers: the same on every processor.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

CONFIGURED = any(getattr(config, name) for name in ("CPU_NAME", "CPU_FEATURES"))  # another processor than this one was asked for
WIDE = not CONFIGURED and bool(llvm.get_host_cpu_features().get("avx512f"))
ROWS, COLUMNS = (8, 32) if WIDE else (4, 16)  # of a product: its sums fill half of the registers
STEPS = 16  # of descent

_FLOAT, _BIT, _INT32, _INT64 = ir.FloatType(), ir.IntType(1), ir.IntType(32), ir.IntType(64)
_address = types.int64


def _declared(builder: Any, name: str, kind: Any, arguments: int) -> Any:
    lanes = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
    whole = f"llvm.{name}.{lanes}"
    return builder.module.globals.get(whole) or ir.Function(builder.module, ir.FunctionType(kind, [kind] * arguments), whole)


def _place(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _loaded(builder: Any, address: Any, kind: Any) -> Any:
    loaded = builder.load(_place(builder, address, kind))
    loaded.align = 4
    return loaded


def _stored(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, _place(builder, address, value.type)).align = 4


def _spread(builder: Any, value: Any, kind: Any) -> Any:
    """One number in all lanes."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _INT32(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_INT32, kind.count), [0] * kind.count))


@intrinsic
def _multiply(context: Any, a: Any, a_step: Any, b: Any, b_step: Any, terms: Any, out: Any, out_step: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, a_step, b, b_step, terms, out, out_step = arguments
        row = ir.VectorType(_FLOAT, COLUMNS)
        a_bytes, b_bytes, out_bytes = (builder.mul(step, _INT64(4)) for step in (a_step, b_step, out_step))
        before, head, body, done = builder.block, *(builder.append_basic_block(name) for name in ("head", "term", "done"))
        builder.branch(head)
        builder.position_at_end(head)
        term, a_at, b_at = (builder.phi(_INT64) for _ in range(3))
        sums = [builder.phi(row) for _ in range(ROWS)]
        builder.cbranch(builder.icmp_signed("<", term, terms), body, done)
        builder.position_at_end(body)
        across = _loaded(builder, b_at, row)
        add = _declared(builder, "fma", row, 3)
        added = []
        for i in range(ROWS):
            down = _loaded(builder, builder.add(a_at, _INT64(4 * i)), _FLOAT)
            added.append(builder.call(add, [_spread(builder, down, row), across, sums[i]]))
        later = builder.add(term, _INT64(1)), builder.add(a_at, a_bytes), builder.add(b_at, b_bytes)
        builder.branch(head)
        nothing = ir.Constant(row, [0.0] * COLUMNS)
        first = (_INT64(0), a, b, *[nothing] * ROWS)
        for phi, start, following in zip((term, a_at, b_at, *sums), first, (*later, *added), strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(following, body)
        builder.position_at_end(done)
        for i in range(ROWS):
            _stored(builder, sums[i], builder.add(out, builder.mul(out_bytes, _INT64(i))))
        return context.get_dummy_value()

    return types.void(_address, types.int64, _address, types.int64, types.int64, _address, types.int64), generate


# (a, a_step, b, b_step, terms, out, out_step): out (ROWS, COLUMNS) = a' b of a (terms, ROWS) and b (terms, COLUMNS), float32 at these
# addresses, a row every so many numbers.
multiply: Any = _multiply


@intrinsic
def _descend(context: Any, levels: Any, slopes: Any, expected: Any, diagonal: Any, tops: Any, moves: Any, along: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        steps = ir.VectorType(_FLOAT, STEPS)
        level, slope, v, curvature, top = (_loaded(builder, address, steps) for address in arguments[:5])
        slope = builder.fadd(slope, builder.fmul(v, _spread(builder, arguments[6], steps)))
        slope = builder.fdiv(slope, builder.fadd(builder.fmul(v, v), curvature))
        nearest = builder.call(_declared(builder, "rint", steps, 1), [builder.fsub(level, slope)])
        nearest = builder.select(builder.fcmp_ordered("<", nearest, top), nearest, top)
        nothing = ir.Constant(steps, [0.0] * STEPS)
        nearest = builder.select(builder.fcmp_ordered(">", nearest, nothing), nearest, nothing)
        move = builder.fsub(nearest, level)
        _stored(builder, move, arguments[5])
        bits = builder.bitcast(builder.fcmp_unordered("!=", move, nothing), ir.IntType(STEPS))
        return builder.zext(bits, _INT64)

    return types.uint64(*[_address] * 6, types.float32), generate


# (levels, slopes, expected, diagonal, tops, moves, along): what STEPS dimensions would move by if each were the first; which at all, a bit each
descend: Any = _descend


@intrinsic
def _follow(context: Any, slopes: Any, row: Any, move: Any, count: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        slopes, row, move, count = arguments
        steps = ir.VectorType(_FLOAT, STEPS)
        moves, add = _spread(builder, move, steps), _declared(builder, "fma", steps, 3)
        with cgutils.for_range_slice(builder, _INT64(0), count, _INT64(STEPS)) as (at, _):
            place, across = (builder.add(address, builder.mul(at, _INT64(4))) for address in (slopes, row))
            _stored(builder, builder.call(add, [_loaded(builder, across, steps), moves, _loaded(builder, place, steps)]), place)
        return context.get_dummy_value()

    return types.void(_address, _address, types.float32, types.int64), generate


# (slopes, row, move, count): add `move` times the `count` numbers of a row of the metric to the slopes
follow: Any = _follow


@intrinsic
def _lowest(context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(_BIT, 1))

    return types.int64(types.uint64), generate


lowest: Any = _lowest  # (bits) -> the number of the lowest that is set; at least one is


@intrinsic
def _fused(context: Any, a: Any, b: Any, c: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.call(_declared(builder, "fma", _FLOAT, 3), list(arguments))

    return types.float32(types.float32, types.float32, types.float32), generate


fused: Any = _fused  # a b + c, rounded once


@intrinsic
def _whole(context: Any, a: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.call(_declared(builder, "rint", _FLOAT, 1), list(arguments))

    return types.float32(types.float32), generate


whole: Any = _whole  # the nearest whole number, half to even
