"""The launcher: what it adds to the user's command line, and the start of SGLang's server."""

from __future__ import annotations

import os
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from hata_sglang.errors import HataError, Refusal
from hata_sglang.seams import cpu_preview, refusing

MODEL_FLAGS = ("--model-path", "--model")
BACKEND_FLAGS = ("--attention-backend", "--decode-attention-backend")
#: With one of these SGLang prints and exits.
PASS_THROUGH = ("--help", "-h", "--version")
#: Eight of the demo model's longest contexts, 1.5 GB; SGLang would fill most of the memory.
CPU_POOL_TOKENS = "65536"
#: SGLang's own choice, xgrammar, ends the server at the first request with a grammar on a CPU.
#: outlines knows regular expressions and JSON schemas, this one EBNF as well.
CPU_GRAMMARS = "llguidance"


def complete_arguments(argv: list[str], *, on_cpu: bool) -> tuple[list[str], list[str]]:
    """Add to SGLang's arguments what a launch with hata needs and the user left out.

    Parameters
    ----------
    argv : list of str
        The command line without the program's name.
    on_cpu : bool
        Whether this machine has no CUDA device.

    Returns
    -------
    argv : list of str
        Complete arguments for SGLang.
    notes : list of str
        One sentence for every choice that was made, and why.
    """
    argv, notes = list(argv), []
    in_file = _settings_in_file(argv)

    def given(*flags: str) -> bool:
        words = {arg.partition("=")[0] for arg in argv} | set(in_file)
        return not words.isdisjoint(flags)

    def add(reason: str, *words: str) -> None:
        argv.extend(words)
        notes.append(f"{' '.join(words)}  ({reason})")

    if given(*PASS_THROUGH):
        return argv, notes
    if on_cpu and not given("--device"):
        add("no CUDA device found: a preview on the CPU", "--device", "cpu")
    if on_cpu and not given("--max-total-tokens", "--mem-fraction-static"):
        add("a preview needs no pool of all memory", "--max-total-tokens", CPU_POOL_TOKENS)
    if on_cpu and not given("--grammar-backend"):
        add("regex, JSON schema and EBNF on a CPU", "--grammar-backend", CPU_GRAMMARS)
    if not given(*BACKEND_FLAGS):
        add("the default of this launcher", "--attention-backend", "hata")
    used = any(
        f"{flag} hata" in " ".join(argv).replace("=", " ") or in_file.get(flag) == "hata"
        for flag in BACKEND_FLAGS
    )
    if not used:
        notes.append("not used: another attention backend was asked for")
    settings, what = "default.yaml", "no YAML named"
    if not given(*MODEL_FLAGS):
        from hata_sglang.demo.model import ensure_demo_model

        add("no model given: the demo model", "--model-path", str(ensure_demo_model()))
        settings, what = "demo.yaml", "for the demo model"
    if used and not given("--hata-config") and "HATA_CONFIG" not in os.environ:
        path = files("hata_sglang") / "configs" / settings
        chosen = yaml.safe_load(path.read_text("utf-8")).items()
        words = ", ".join(f"{key} {value}" for key, value in chosen)
        add(f"{what}: {words}", "--hata-config", str(path))
    return argv, notes


def _settings_in_file(argv: list[str]) -> dict[str, Any]:
    """Flags of SGLang's ``--config FILE``; what is wrong with the file SGLang itself says."""
    if "--config" not in argv[:-1]:
        return {}
    try:
        settings = yaml.safe_load(Path(argv[argv.index("--config") + 1]).read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    settings = settings if isinstance(settings, dict) else {}
    return {"--" + str(name).replace("_", "-"): value for name, value in settings.items()}


def require_plugin() -> None:
    """Stop where SGLang did not load this package: it would not know the name ``hata``.

    Because it was told not to, or because a method of another package cannot be loaded: SGLang logs
    that and goes on.

    Raises
    ------
    Refusal
    """
    from sglang.srt.server_args import ATTENTION_BACKEND_CHOICES

    if "hata" not in ATTENTION_BACKEND_CHOICES:
        from hata_sglang.methods import methods

        methods()
        allowed = os.environ.get("SGLANG_PLUGINS") or "nothing, and no entry point of hata-sglang"
        setting = "environment variable SGLANG_PLUGINS"
        raise Refusal.of(setting, "none, or hata in it", allowed)


def main() -> None:
    """Start the server; returns when it is shut down."""
    refusing.note_command_line()
    try:
        _run()
    except HataError as error:
        refusing.refuse(error)


def _run() -> None:
    on_cpu = cpu_preview.enable()
    argv, notes = complete_arguments(sys.argv[1:], on_cpu=on_cpu)
    if on_cpu and os.environ[cpu_preview.NO_COMPILER] == "1":
        notes.append(f"{cpu_preview.NO_COMPILER}=1  (no request waits for a C++ compiler)")
    for note in notes:
        print(f"hata: {note}", flush=True)

    from sglang.launch_server import run_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    load_plugins()
    require_plugin()
    server_args = prepare_server_args(argv)
    try:
        run_server(server_args)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)
