"""Argument checks whose errors name the argument, what was expected and what was found."""

from __future__ import annotations

from collections.abc import Sequence

import torch

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.int32, torch.int64)


def expect(condition: bool, name: str, expected: object, found: object) -> None:
    """Raise ``ValueError`` naming an argument unless ``condition`` holds.

    Parameters
    ----------
    condition : bool
        What must hold.
    name, expected, found : object
        The parts of the message ``name: expected ..., found ...``.

    Raises
    ------
    ValueError
        When ``condition`` is false.
    """
    if not condition:
        raise ValueError(f"{name}: expected {expected}, found {found}")


def expect_tensor(
    name: str,
    tensor: torch.Tensor,
    *,
    shape: Sequence[int | None] | None = None,
    dtypes: Sequence[torch.dtype] | None = None,
    device: torch.device | None = None,
    contiguous: bool = False,
) -> None:
    """Check shape, dtype, device and contiguity of a tensor, as far as each is given.

    Parameters
    ----------
    name : str
        The argument's name, for the message.
    tensor : torch.Tensor
        The argument.
    shape : sequence of int or None, optional
        Expected shape; None in a place accepts any size there.
    dtypes : sequence of torch.dtype, optional
        Accepted dtypes.
    device : torch.device, optional
        Expected device.
    contiguous : bool
        Whether the tensor must be contiguous.

    Raises
    ------
    ValueError
        When any of them does not hold.
    """
    # Decode steps check every call: messages are made for what does not fit alone.
    if shape is not None and not _has_shape(tensor, shape):
        wanted = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
        expect(False, f"{name}.shape", wanted, list(tensor.shape))
    if dtypes is not None and tensor.dtype not in dtypes:
        expect(False, f"{name}.dtype", " or ".join(map(str, dtypes)), tensor.dtype)
    if device is not None and tensor.device != device:
        expect(False, f"{name}.device", device, tensor.device)
    if contiguous and not tensor.is_contiguous():
        expect(False, f"{name} strides", "a contiguous tensor", tensor.stride())


def _has_shape(tensor: torch.Tensor, shape: Sequence[int | None]) -> bool:
    if tensor.dim() != len(shape):
        return False
    return all(want is None or want == have for want, have in zip(shape, tensor.shape, strict=True))


def expect_table(
    name: str, table: torch.Tensor, rows: int | None, device: torch.device | None = None
) -> None:
    """Check a table of slots: int32 ``[rows, any]``, maybe a slice of a wider one.

    Parameters
    ----------
    name : str
        The argument's name, for the message.
    table : torch.Tensor
        The argument.
    rows : int, optional
        None accepts any number.
    device : torch.device, optional
        Expected device.

    Raises
    ------
    ValueError
        When shape, dtype or device do not fit, or neighbours of a row are apart.
    """
    expect_tensor(name, table, shape=(rows, None), dtypes=(torch.int32,), device=device)
    expect(table.stride(1) == 1, f"{name}.stride(1)", 1, table.stride(1))


def expect_rows(
    token_slots: torch.Tensor,
    seq_lens: torch.Tensor,
    batch: int,
    sink: int,
    recent: int,
    device: torch.device,
) -> None:
    """Check which tokens so many requests have, and how many of them are kept in any case.

    Raises
    ------
    ValueError
        When a shape, dtype or device does not fit, or ``sink`` or ``recent`` is below 0.
    """
    expect(sink >= 0, "sink", "at least 0", sink)
    expect(recent >= 0, "recent", "at least 0", recent)
    expect_table("token_slots", token_slots, batch, device)
    where = {"device": device, "contiguous": True}
    expect_tensor("seq_lens", seq_lens, shape=(batch,), dtypes=INTEGERS, **where)


def expect_lengths(
    name: str, lengths: torch.Tensor, most: int, expected: str | None = None
) -> list[int]:
    """Return the values of a CPU tensor of lengths, none below 1 or above ``most``.

    Parameters
    ----------
    name : str
        The argument's name, for the message.
    lengths : torch.Tensor
        Integers.
    most : int
        The largest that fits.
    expected : str, optional
        For the message. Default: ``1 to most``.

    Raises
    ------
    ValueError
        When one does not fit.
    """
    values = lengths.tolist()
    fits = all(1 <= value <= most for value in values)
    expect(fits, name, expected or f"1 to {most}", values)
    return values
