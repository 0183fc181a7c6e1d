# SPDX-License-Identifier: Apache-2.0
"""A small GGUF v3 writer and reader.

Layout, all little endian:

    "GGUF"  u32 version = 3  u64 n_tensors  u64 n_keys
    n_keys    x  string key, u32 type, value       (string = u64 length, bytes; array = u32 type, u64 n, values)
    n_tensors x  string name, u32 n_dims, u64 dims[n_dims], u32 type, u64 offset
    padding to 32, then the tensor data, each tensor at a multiple of 32 from here

dims[0] is the row length: a weight that PyTorch calls [out, in] has dims {in, out}.
"""
import struct

import numpy as np

ALIGN = 32
# value type: code, struct letter
SCALARS = {"u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"), "i32": (5, "i"),
           "f32": (6, "f"), "bool": (7, "?"), "u64": (10, "Q"), "i64": (11, "q"), "f64": (12, "d")}
LETTER = {code: letter for code, letter in SCALARS.values()}
STRING, ARRAY = 8, 9
F32, F16, Q4_0, Q8_0, BF16 = 0, 1, 2, 8, 30


def _string(s):
    b = s.encode() if isinstance(s, str) else s
    return struct.pack("<Q", len(b)) + b


def _value(kind, v):
    """kind is "str", a scalar type, or "[...]" of one of them; returns type code and bytes."""
    if kind.startswith("["):
        code = _value(kind[1:-1], v[0])[0]
        return ARRAY, struct.pack("<IQ", code, len(v)) + b"".join(_value(kind[1:-1], x)[1] for x in v)
    if kind == "str":
        return STRING, _string(v)
    code, letter = SCALARS[kind]
    return code, struct.pack("<" + letter, v)


def write(path, keys, tensors):
    """keys: [(name, kind, value)]; tensors: [(name, numpy array of float16 or float32)]."""
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(keys))]
    for name, kind, value in keys:
        code, data = _value(kind, value)
        head += [_string(name), struct.pack("<I", code), data]
    offset = 0
    for name, a in tensors:
        head += [_string(name), struct.pack(f"<I{a.ndim}Q", a.ndim, *reversed(a.shape)),
                 struct.pack("<IQ", {np.dtype("f4"): F32, np.dtype("f2"): F16}[a.dtype], offset)]
        offset += -(-a.nbytes // ALIGN) * ALIGN
    head = b"".join(head)
    with open(path, "wb") as f:
        f.write(head + bytes(-len(head) % ALIGN))
        for _, a in tensors:
            f.write(np.ascontiguousarray(a).tobytes() + bytes(-a.nbytes % ALIGN))


def _dequantize(kind, raw, n):
    """n elements of a tensor as F32, exactly."""
    if kind == F32:
        return np.frombuffer(raw, "<f4", n)
    if kind == F16:
        return np.frombuffer(raw, "<f2", n).astype(np.float32)
    if kind == BF16:
        return (np.frombuffer(raw, "<u2", n).astype(np.uint32) << 16).view(np.float32)
    if kind == Q8_0:  # 32 elements: f16 scale, 32 x i8
        b = np.frombuffer(raw, np.dtype([("d", "<f2"), ("q", "i1", 32)]), n // 32)
        return (b["d"].astype(np.float32)[:, None] * b["q"].astype(np.float32)).ravel()
    if kind == Q4_0:  # 32 elements: f16 scale, 16 bytes; low halves are elements 0..15, high halves 16..31
        b = np.frombuffer(raw, np.dtype([("d", "<f2"), ("q", "u1", 16)]), n // 32)
        q = np.concatenate([b["q"] & 15, b["q"] >> 4], axis=1).astype(np.float32) - 8
        return (b["d"].astype(np.float32)[:, None] * q).ravel()
    raise ValueError(f"tensor type {kind} is not supported")


def read(path):
    """Returns ({key: value}, {name: F32 array in PyTorch's order of dimensions})."""
    with open(path, "rb") as f:
        data = f.read()
    pos = 0

    def take(fmt):
        nonlocal pos
        v = struct.unpack_from("<" + fmt, data, pos)
        pos += struct.calcsize("<" + fmt)
        return v if len(v) > 1 else v[0]

    def string():
        nonlocal pos
        n = take("Q")
        pos += n
        return data[pos - n:pos].decode("utf-8", "surrogateescape")

    def value(code):
        if code == STRING:
            return string()
        if code == ARRAY:
            of, n = take("IQ")
            return [value(of) for _ in range(n)]
        return take(LETTER[code])

    if data[:4] != b"GGUF":
        raise ValueError(f"{path} is not a GGUF file")
    pos = 4
    version, n_tensors, n_keys = take("IQQ")
    if version != 3:
        raise ValueError(f"{path}: GGUF version {version}, wanted 3")
    keys = {}
    for _ in range(n_keys):
        name = string()
        keys[name] = value(take("I"))
    infos = []
    for _ in range(n_tensors):
        name, n_dims = string(), take("I")
        dims = [take("Q") for _ in range(n_dims)]
        infos.append((name, dims[::-1], *take("IQ")))
    base = -(-pos // ALIGN) * ALIGN
    tensors = {name: _dequantize(kind, memoryview(data)[base + off:], int(np.prod(shape))).reshape(shape)
               for name, shape, kind, off in infos}
    return keys, tensors
