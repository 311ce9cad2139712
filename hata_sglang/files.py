"""Files that users name: found whatever the name, opened if regular and not too large."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hata_sglang.errors import Refusal

#: Beside a checkpoint that this package made: what it was made of.
MANIFEST = "hata-demo-model.json"
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def open_regular(path: str | Path, expected: str, limit: int) -> Iterator[BinaryIO]:
    """Open a file to read, if it is a regular one and not too large.

    Parameters
    ----------
    path : str or Path
    expected : str
        What the file should be, for messages, such as "a YAML file".
    limit : int
        Largest size, in bytes.

    Yields
    ------
    file
        Binary.

    Raises
    ------
    Refusal
        If the file cannot be opened or read, is a folder, FIFO, socket or device, or has more than
        `limit` bytes.
    """
    try:
        # Looked at before it is opened: opening a FIFO would wait for somebody to write to it.
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            found = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
            raise Refusal.of(path, f"{expected} (a regular file)", found)
        if status.st_size > limit:
            found = f"{status.st_size:,} bytes"
            raise Refusal.of(path, f"{expected} of at most {limit:,} bytes", found)
        file = open(path, "rb")  # noqa: SIM115
    except (FileNotFoundError, NotADirectoryError, ValueError):
        # ValueError: no file has a name with a NUL or half a character in it.
        raise Refusal.of(path, expected, "no such file") from None
    except OSError as error:
        raise _unreadable(path, expected, error) from error
    with file:
        try:
            yield file
        except OSError as error:
            raise _unreadable(path, expected, error) from error


def read_regular(path: str | Path, expected: str, limit: int) -> bytes:
    """Read a file whole; arguments and errors as for `open_regular`."""
    with open_regular(path, expected, limit) as file:
        # Not up to the limit: as many bytes would be allocated.
        size = os.fstat(file.fileno()).st_size
        content = file.read(size + 1)
    if len(content) > size:
        # It grows, or is one of /proc's, which say that they are empty.
        raise Refusal.of(path, f"{expected} of a known size", f"more than its {size:,} bytes")
    return content


def locate(path: str | Path, base: str | Path = ".") -> str:
    """Make a path that a user wrote absolute, whether or not there is such a file.

    Parameters
    ----------
    path : str or Path
        ``~`` and ``~user`` at its front stand for folders.
    base : str or Path
        Folder that a relative path holds from.

    Returns
    -------
    str
        With links followed, as far as they lead anywhere. What cannot be a path, such as one with a
        NUL, comes back joined to `base`: opening it says what is wrong.
    """
    # Functions of os.path, as those of pathlib raise for loops, long names and unknown users.
    try:
        return os.path.realpath(os.path.join(base, os.path.expanduser(path)))
    except ValueError:
        return os.path.join(base, path)


def _unreadable(path: str | Path, expected: str, error: OSError) -> Refusal:
    return Refusal.of(path, f"{expected} that can be read", error.strerror or str(error))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def default_cache_dir() -> Path:
    """Folder for downloaded and converted files.

    Returns
    -------
    Path
        ``$HATA_CACHE`` if it is set and not empty, else ``~/.cache/hata-sglang``.
    """
    configured = os.environ.get("HATA_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "hata-sglang"


def model_revision(model_dir: Path) -> str:
    """Identify a checkpoint by the SHA-256 of what its weights were read from.

    Returns
    -------
    str
        ``gguf-sha256:...`` for the demo model, else ``weights-sha256:...`` over
        the weight files in the order of their names.

    Raises
    ------
    Refusal
        If there are no weights.
    """
    manifest = model_dir / MANIFEST
    if manifest.is_file():
        return "gguf-sha256:" + json.loads(manifest.read_text(encoding="utf-8"))["gguf_sha256"]
    files = sorted(model_dir.glob("*.safetensors")) or sorted(model_dir.glob("*.bin"))
    if not files:
        raise Refusal.of("model", "*.safetensors or *.bin", f"none in {model_dir}")
    sums = [file_sha256(path) for path in files]
    return "weights-sha256:" + (sums[0] if len(sums) == 1 else "+".join(sums))
