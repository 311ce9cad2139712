"""``hata-sglang config check``: what a YAML file means for one model, and whether it fits."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hata_sglang.config import HataConfig, LayerPlan
from hata_sglang.config.budget import MAX_TOKENS
from hata_sglang.config.layer_ranges import MAX_LAYER, format_layers
from hata_sglang.config.problems import shorten
from hata_sglang.errors import Problem, Refusal, printable, refuse_any
from hata_sglang.files import open_regular
from hata_sglang.shape import ModelShape
from hata_sglang.weights.auto import ServedModel, missing_sets
from hata_sglang.weights.card import Card
from hata_sglang.weights.encoders import load_encoders
from hata_sglang.weights.store import load_weights, shipped_weights

# Contexts at which the table gives the tokens read, beside the model's own.
LENGTHS = (6_000, 32_768)

#: Those of large multimodal models have some 100 KB.
MAX_CONFIG_BYTES = 2**24


@dataclass(frozen=True)
class ModelFacts(ModelShape):
    """What a checkpoint's ``config.json`` says about its attention.

    Attributes
    ----------
    hf_config : transformers.PretrainedConfig
        The text part, where the file nests one.
    architecture : str
    dtype : str
        Of the weights, and by default of K and V.
    kv_bytes : int
        Bytes of K and V per token over all layers.
    """

    hf_config: Any
    architecture: str
    dtype: str
    kv_bytes: int


def read_model(folder: str | Path) -> ModelFacts:
    """Read ``config.json`` of a checkpoint; nothing is downloaded.

    Parameters
    ----------
    folder : str or Path
        The checkpoint.

    Returns
    -------
    ModelFacts

    Raises
    ------
    Refusal
        If there is no ``config.json``, transformers cannot read it, or it lacks a number needed.
    """
    folder = Path(folder)
    # Functions of os.path, as those of pathlib raise for a name that is too long.
    if not os.path.isfile(folder / "config.json"):
        found = "no config.json in it" if os.path.isdir(folder) else "no such folder"
        expected = "a model's folder, with config.json"
        raise Refusal.of("--model", expected, f"{printable(str(folder), 300)}: {found}")
    with open_regular(folder / "config.json", "a model's config.json", MAX_CONFIG_BYTES):
        pass  # transformers reads it, whatever its size

    import torch
    from transformers import AutoConfig

    try:
        whole = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever transformers meets in a malformed file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        expected = f"a config.json that transformers can read ({folder})"
        raise Refusal.of("--model", expected, reason) from error
    text = whole.get_text_config()

    needed = ("num_hidden_layers", "num_attention_heads", "hidden_size", "max_position_embeddings")
    _check_sizes({key: getattr(text, key, None) for key in needed}, folder)
    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    _check_sizes({"num_key_value_heads": kv_heads, "head_dim": head_dim}, folder)
    dtype = getattr(text, "dtype", None) or getattr(whole, "dtype", None) or torch.bfloat16
    return ModelFacts(
        hf_config=text,
        architecture=(whole.architectures or [type(text).__name__])[0],
        num_layers=text.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        context_len=text.max_position_embeddings,
        dtype=str(dtype).removeprefix("torch."),
        kv_bytes=2 * kv_heads * head_dim * dtype.itemsize * text.num_hidden_layers,
    )


def _check_sizes(sizes: Mapping[str, Any], folder: Path) -> None:
    most = {"num_hidden_layers": MAX_LAYER + 1}
    refuse_any(
        Problem(
            "--model",
            f"a decoder whose config.json gives {key} (1 to {most.get(key, MAX_TOKENS)})",
            f"{shorten(size)} in {folder}",
        )
        for key, size in sizes.items()
        if type(size) is not int or not 1 <= size <= most.get(key, MAX_TOKENS)
    )


def card_line(card: Card) -> str:
    """One line about a set of hash weights: what it is for, and how good it was when trained.

    Parameters
    ----------
    card : Card

    Returns
    -------
    str
    """
    options = "".join(
        f", {name} {value:g}" if isinstance(value, float) else f", {name} {value}"
        for name, value in sorted(card.options.items())
    )
    line = f"{card.method}, {card.bits} bits{options}, {len(card.layers)} layers of {card.model}"
    for measured in card.held_out:
        masses = ", ".join(f"{name} {mass:.3f}" for name, mass in sorted(measured.mean.items()))
        line += f"; attention mass kept at {measured.budget} tokens: {masses}"
        if measured.output_error:
            errors = ", ".join(
                f"{name} {e:.3f}" for name, e in sorted(measured.output_error.items())
            )
            line += f", error of the output: {errors}"
    if card.held_out:
        chose = card.training_data.step_chosen_on == "held_out"
        note = "flattered: these texts also chose the training step" if chose else "held-out texts"
        line += f" ({note})"
    return printable(line)


def build_table(plans: Sequence[LayerPlan], model: ModelFacts) -> Table:
    """The resolved table, one line per layer.

    Parameters
    ----------
    plans : sequence of LayerPlan
        Of all layers, with the bits of their weights.
    model : ModelFacts

    Returns
    -------
    rich.table.Table
    """
    lengths = (model.context_len, *LENGTHS)
    table = Table(
        caption="@N: tokens attended per KV head at a context of N; "
        "code B: bytes of codes and scales per token"
    )
    columns = ["layer", "mode", "method", "bits", "budget", *(f"@{each:,}" for each in lengths)]
    for column in (*columns, "sink", "recent", "code B"):
        table.add_column(column, justify="left" if column in ("mode", "method") else "right")
    for plan in plans:
        if plan.dense:
            cells = ["dense", "-", "-", "-", *(f"{each:,}" for each in lengths), "-", "-", 0]
        else:
            reads = [f"{plan.budget.tokens(each):,}" for each in lengths]
            code_bytes = plan.code_bytes * model.num_kv_heads
            cells = ["sparse", plan.method, plan.bits or "-", plan.budget, *reads]
            cells += [plan.sink, plan.recent, code_bytes]
        table.add_row(str(plan.layer), *map(str, cells))
    return table


def summarise(config: HataConfig, plans: Sequence[LayerPlan], model: ModelFacts) -> tuple[str, ...]:
    """What the table does not say: the model, the sparse layers, the memory.

    Parameters
    ----------
    config : HataConfig
    plans : sequence of LayerPlan
        Of all layers, with the bits of their weights.
    model : ModelFacts

    Returns
    -------
    tuple of str
        One sentence or two per line.
    """
    sparse = [plan.layer for plan in plans if not plan.dense]
    mean = format_layers(plan.layer for plan in plans if plan.left_out == "mean")
    code_bytes = sum(plan.code_bytes for plan in plans) * model.num_kv_heads
    traffic = () if config.traffic is None else (f"Traffic: {config.traffic}.",)
    return (
        f"Model: {model.architecture}, {model.num_layers} layers, {model.num_heads} query and "
        f"{model.num_kv_heads} KV heads of {model.head_dim}, context {model.context_len:,} tokens.",
        f"Sparse: {len(sparse)} of {model.num_layers} layers ({format_layers(sparse)}); "
        f"inner backend: {config.inner_backend}.",
        f"Mean of the values left out, in layers: {mean}.",
        f"Memory per token, all layers: codes {code_bytes:,} B, K and V {model.kv_bytes:,} B "
        f"({model.dtype}): codes add {code_bytes / model.kv_bytes:.1%}.",
        *traffic,
    )


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hata-sglang config check`` on `parser`."""
    parser.set_defaults(action=run_check)
    parser.add_argument("file", metavar="FILE", type=Path, help="the YAML configuration")
    parser.add_argument(
        "--model",
        metavar="DIR",
        type=Path,
        required=True,
        help="folder of the model's checkpoint, or demo: the demo model",
    )


def run_check(args: argparse.Namespace) -> int:
    """Run ``hata-sglang config check``: print what the file means, or refuse.

    Returns
    -------
    int
        Exit code 0.

    Raises
    ------
    Refusal
        With what is wrong with the file, the model or the weights.
    """
    from hata_sglang.demo.model import model_folder

    folder = model_folder(args.model)
    config = HataConfig.load(args.file)
    model = read_model(folder)
    asked = config.resolve(model.num_layers, model.context_len)
    served = ServedModel(model.hf_config, folder)
    for own in missing_sets(asked, model.group, served):
        print(
            f"Weights auto: there is no set of {own.method}, {own.bits} bits, for this model yet. "
            "A server makes it before it starts, once; then this command shows what layers do."
        )
        return 0
    loaded = load_encoders(asked, model, served)
    plans = loaded.plans

    # Piped output has no width of its own; the table needs about 115 columns.
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    console.print(build_table(plans, model))
    lines = [*summarise(config, plans, model)]
    lines += [f"Weights {ref}: {card_line(own.card)}." for ref, own in loaded.sets.items()]
    for line in lines:
        console.print(escape(printable(line)), soft_wrap=True)
    return 0


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    """``hata-sglang weights`` has no arguments."""
    parser.set_defaults(action=run_weights)


def run_weights(args: argparse.Namespace) -> int:
    """Run ``hata-sglang weights``: a line about every shipped set."""
    # Loaded whole: a set whose checksum is wrong is refused here as it would be by a server.
    for name in shipped_weights():
        print(f"{name}\n    {card_line(load_weights(name).card)}")
    return 0
