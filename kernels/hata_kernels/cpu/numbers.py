"""Compiled helpers for bits and numbers: floats of every size come and go as 16-bit words."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from .compiling import FLAGS


@intrinsic
def popcount(typing_context, word):
    """Set bits of an integer, by the processor's instruction."""

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return (word(word), generate) if isinstance(word, types.Integer) else None


@intrinsic
def as_float(typing_context, bits):
    """The float32 that the low 32 bits of an integer stand for."""

    def generate(context, builder, signature, arguments):
        word = builder.trunc(arguments[0], ir.IntType(32))
        return builder.bitcast(word, ir.FloatType())

    return (types.float32(bits), generate) if isinstance(bits, types.Integer) else None


@intrinsic
def as_bits(typing_context, number):
    """The bits of a float32, as int64."""

    def generate(context, builder, signature, arguments):
        word = builder.bitcast(arguments[0], ir.IntType(32))
        return builder.zext(word, ir.IntType(64))

    return (types.int64(number), generate) if number == types.float32 else None


@intrinsic
def prefetch(typing_context, address):
    """Ask for the cache line of an address, without waiting for it."""

    def generate(context, builder, signature, arguments):
        number, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        place = builder.inttoptr(arguments[0], pointer)
        builder.call(function, [place, number(0), number(3), number(1)])  # to read, all caches
        return context.get_dummy_value()

    return (types.void(address), generate) if isinstance(address, types.Integer) else None


@njit(**FLAGS)
def load(words, token, head, kind, out):
    """Turn numbers ``words[token, head]``, of one of `KINDS`, into float32 ``out [D]``."""
    # Unsigned, because Numba lets signed indices count from the end, at a price.
    t, h = np.uint64(token), np.uint64(head)
    if kind == 0:
        for i in range(len(out)):
            out[i] = as_float(np.int64(words[t, h, i]) << 16)
    elif kind == 1:
        for i in range(len(out)):
            word = np.int64(words[t, h, i])
            bits = (word & 0x7FFF) << 13
            # The exponents of the two differ by 112; infinities and NaNs have the largest.
            size = as_float(bits) * np.float32(2.0**112)
            if bits >= 0x0F800000:
                size = as_float(bits | 0x7F800000)
            out[i] = -size if word & 0x8000 else size
    else:
        for i in range(len(out)):
            out[i] = as_float(np.int64(words[t, h, 2 * i]) | np.int64(words[t, h, 2 * i + 1]) << 16)


@njit(**FLAGS)
def store(numbers, kind, out):
    """Turn float32 numbers ``[D]`` into words of one of `KINDS`, rounded to the nearest, even."""
    for i in range(len(numbers)):
        bits = as_bits(numbers[i])
        if kind == 0:
            rounded = bits + 0x7FFF + (bits >> 16 & 1) >> 16
            if numbers[i] != numbers[i]:
                rounded = bits >> 16 | 0x40
            out[i] = rounded
        elif kind == 1:
            sign, size = bits >> 16 & 0x8000, bits & 0x7FFFFFFF
            if size >= 0x47800000:  # too large: infinity, or NaN
                half = 0x7E00 if size > 0x7F800000 else 0x7C00
            elif size < 0x38800000:  # below the normal ones, which this sum shifts into place
                half = as_bits(as_float(size) + np.float32(0.5)) - 0x3F000000
            else:
                half = size - (112 << 23) + 0xFFF + (size >> 13 & 1) >> 13
            out[i] = half | sign
        else:
            out[2 * i], out[2 * i + 1] = bits & 0xFFFF, bits >> 16


@njit(**FLAGS)
def exp(x):
    """Exponential of a float32 of -87 to 88, to about its last bit and without a branch.

    Cephes' ``expf``: a power of 2 times a polynomial of what is left.
    """
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    # ln 2 in two parts; the first has so few digits that n times it is exact.
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    return (p * r * r + r + np.float32(1)) * as_float((np.int64(n) + 127) << 23)
