"""A small ONNX file, written by hand: protobuf with the field numbers of onnx.proto3, operator set 13."""

from __future__ import annotations

from collections.abc import Sequence

_FLOAT = 1  # TensorProto.DataType
_INT, _INTS = 2, 7  # AttributeProto.AttributeType


def mean_network(shape: Sequence[int | str], *, sigmoid: bool = True) -> bytes:
    """The mean of a float tensor [batch, x, y], through a sigmoid unless told otherwise: [batch, 1]."""
    reduce = _node("ReduceMean", "input_features", "mean", _ints("axes", (1, 2)) + _int("keepdims", 1))
    flatten = _node("Flatten", "mean", "flat", _int("axis", 1))
    end = _node("Sigmoid" if sigmoid else "Identity", "flat", "probability", b"")
    graph = (
        b"".join(_bytes(1, node) for node in (reduce, flatten, end))
        + _bytes(2, b"graph")
        + _bytes(11, _value("input_features", shape))
        + _bytes(12, _value("probability", ("batch", 1)))
    )
    operators = _bytes(1, b"") + _number(2, 13)
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, operators)


def _node(kind: str, source: str, target: str, attributes: bytes) -> bytes:
    return _bytes(1, source.encode()) + _bytes(2, target.encode()) + _bytes(4, kind.encode()) + attributes


def _int(name: str, value: int) -> bytes:
    return _bytes(5, _bytes(1, name.encode()) + _number(3, value) + _number(20, _INT))


def _ints(name: str, values: Sequence[int]) -> bytes:
    numbers = b"".join(_number(8, value) for value in values)
    return _bytes(5, _bytes(1, name.encode()) + numbers + _number(20, _INTS))


def _value(name: str, shape: Sequence[int | str]) -> bytes:
    dimensions = b"".join(
        _bytes(1, _number(1, size) if isinstance(size, int) else _bytes(2, size.encode())) for size in shape
    )
    tensor = _number(1, _FLOAT) + _bytes(2, dimensions)
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, tensor))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
