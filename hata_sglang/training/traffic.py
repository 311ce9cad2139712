"""Captures of live requests: a folder that a server fills within bounds, and training reads."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from hata_sglang.errors import HataError
from hata_sglang.training.capture import Capture, CaptureStore

#: What the names of folders of requests begin with; of those that are being written.
_WHOLE, _PART = "request-", ".part-"


class TrafficFolder:
    """A folder of captures, one folder for each request, in the order in which they came.

    No text and no token is in it, nor who asked: queries and keys after RoPE, values, positions and
    scales. Only the user who runs the server may read it.

    Parameters
    ----------
    folder : Path
        For one checkpoint (`traffic_folder`) and one server. Made when the first request comes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def requests(self) -> list[Path]:
        """Folders of the requests that are whole, the oldest first."""
        return sorted(self.folder.glob(f"{_WHOLE}*")) if self.folder.is_dir() else []

    @contextmanager
    def snapshot(self) -> Iterator[TrafficFolder]:
        """The requests as they are now, whatever the server drops meanwhile: links to their files.

        Yields
        ------
        TrafficFolder
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".reading-", dir=self.folder) as links:
            for request in self.requests():
                link = Path(links) / request.name
                try:
                    shutil.copytree(request, link, copy_function=os.link)
                except (FileNotFoundError, shutil.Error):  # dropped just now
                    shutil.rmtree(link, ignore_errors=True)
            yield TrafficFolder(Path(links))

    def alike(self) -> tuple[list[int], list[Path]]:
        """The layers of the newest request, and the requests that have them all, oldest first."""
        requests = self.requests()
        if not requests:
            return [], []
        layers = self.layers(requests[-1])
        return layers, [own for own in requests if set(layers) <= set(self.layers(own))]

    def layers(self, request: Path) -> list[int]:
        """The layers of a request, rising."""
        return sorted(int(path.name.rpartition("-")[2]) for path in request.glob("layer-*"))

    def read(self, request: Path, layer: int) -> Capture:
        """One layer of a request, float32.

        Raises
        ------
        HataError
            If its file is damaged, or gone.
        """
        store = CaptureStore(request)
        try:
            return store.read(layer, 0)
        except (OSError, SafetensorError, KeyError) as error:
            path = store.path(layer, 0)
            raise HataError(f"{path}: expected captures of a layer, found {error}") from None

    def tokens(self, request: Path) -> int:
        """Length of a request, by the header of its first layer's file."""
        with safe_open(CaptureStore(request).path(self.layers(request)[0], 0), "pt") as file:
            return file.get_slice("k").get_shape()[0]

    def begin(self) -> Path:
        """A folder to `write` a request to; what an earlier server left unfinished goes."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        for left in self.folder.glob(f"{_PART}*"):
            shutil.rmtree(left, ignore_errors=True)
        # Nanoseconds have 19 digits for some centuries, so that names are in the order of time.
        part = self.folder / f"{_PART}{time.time_ns()}"
        part.mkdir(mode=0o700)
        return part

    def write(self, part: Path, layer: int, capture: Capture) -> None:
        """Add a layer to a request that `begin` began."""
        store = CaptureStore(part)
        store.write(layer, 0, capture)
        file = store.path(layer, 0)
        file.chmod(0o600)
        file.parent.chmod(0o700)

    def finish(self, part: Path, most: int) -> None:
        """Make a request one of the whole ones, and drop the oldest beyond so many."""
        os.replace(part, self.folder / part.name.replace(_PART, _WHOLE))
        for old in self.requests()[:-most]:
            shutil.rmtree(old, ignore_errors=True)

    def drop(self, part: Path) -> None:
        """Give up a request."""
        shutil.rmtree(part, ignore_errors=True)
