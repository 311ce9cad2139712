"""The YAML configuration: which method each layer uses, and how much it may read.

    config = HataConfig.load("demo.yaml")
    plans = config.resolve(num_layers=30, context_len=8192)

Everything wrong with a file is reported in one `Refusal`. Nothing is guessed: unknown keys,
settings without effect and missing weights are refused (no silent dense runs, no random weights
unless ``method: random`` says so).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic_core import PydanticCustomError

from hata_sglang.config.budget import EXPECTED as BUDGET_EXPECTED
from hata_sglang.config.budget import MAX_TOKENS, Budget
from hata_sglang.config.layer_ranges import EXPECTED as RANGE_EXPECTED
from hata_sglang.config.layer_ranges import format_layers, format_range, layers_of, parse_range
from hata_sglang.config.plan import LayerPlan
from hata_sglang.config.problems import nearest, schema_problems, shorten
from hata_sglang.config.rules import mean_obstacle, rule_problems
from hata_sglang.config.traffic import EXPECTED as TRAFFIC_EXPECTED
from hata_sglang.config.traffic import Traffic
from hata_sglang.config.yaml_file import Source, read_mapping
from hata_sglang.errors import Problem, refuse_any
from hata_sglang.files import locate
from hata_sglang.methods import MAX_BITS, WORD_BITS, choice, method_names, methods

InnerBackend = Literal["auto", "flashinfer", "fa3", "triton", "torch_native"]
Attend = Literal["auto", "triton", "flashinfer"]
LeftOut = Literal["auto", "mean", "none"]

#: Torch's generator on a CPU takes 32 bits of a seed; a longer one would repeat a shorter one's
#: hyperplanes.
MAX_SEED = 2**32 - 1


def _known(name: str) -> str:
    if name not in methods():
        expected = f"{_METHOD} ({nearest(name, methods())})"
        raise PydanticCustomError("hata", "no method", {"expected": expected})
    return name


def _layer_key(value: Any) -> str:
    try:
        return format_range(parse_range(value))
    except ValueError:
        raise PydanticCustomError("hata", "not a range", {"expected": RANGE_EXPECTED}) from None


def _layer_list(value: Any) -> tuple[int, ...]:
    spans, bad = [], []
    for item in value if isinstance(value, list | tuple) else [value]:
        try:
            spans.append(parse_range(item))
        except ValueError:
            bad.append(shorten(item))
    if bad:
        expected = f"a list of layers, each {RANGE_EXPECTED}"
        raise PydanticCustomError(
            "hata", "not layers", {"expected": expected, "found": ", ".join(bad)}
        )
    return tuple(layers_of(spans))


#: In place of weights: `hata_sglang.weights.auto` finds or makes them.
AUTO = "auto"
_METHOD = choice(method_names())
_BITS = f"a multiple of 32 from 32 to {MAX_BITS}, or less by the method"
_WEIGHTS = "auto, a path, or the name of shipped weights"
_LEFT_OUT = "auto, mean or none"
_COUNT = "a number of tokens (integer, 0 to 2**31 - 1)"

Bits = Annotated[int, Field(ge=WORD_BITS, le=MAX_BITS, multiple_of=WORD_BITS)]
MethodName = Annotated[str, AfterValidator(_known)]
Count = Annotated[int, Field(ge=0, le=MAX_TOKENS)]


class LayerOverride(BaseModel):
    """Settings of one layer or range; what is left out holds as for the whole model."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    method: MethodName | None = Field(None, description=_METHOD)
    bits: Bits | None = Field(None, description=_BITS)
    weights: str | None = Field(None, min_length=1, description=_WEIGHTS)
    budget: Budget | None = Field(None, description=BUDGET_EXPECTED)
    sink: Count | None = Field(None, description=_COUNT)
    recent: Count | None = Field(None, description=_COUNT)
    left_out: LeftOut | None = Field(None, description=_LEFT_OUT)
    dense: bool | None = Field(None, description="true or false")


class HataConfig(BaseModel):
    """One YAML file. Build it with `load` or `parse`.

    Attributes
    ----------
    method : str
        How tokens are chosen: the name of a `hata_sglang.methods.Method`.
    bits : int or None
        Bits per code and KV head, a multiple of 32 up to the method's most. None stands for the
        bits of the weights, or the method's own number where it has no weights. Not with methods
        that keep no codes.
    weights : str or None
        Hash weights, for trained methods alone. ``auto``, or None, stands for a shipped set that
        fits the model, else one in the cache, else one that the server calibrates before it starts.
    seed : int or None
        0 to 2**32 - 1, only with methods that draw their weights; None stands for 0.
    budget : Budget
        Tokens attended per KV head.
    sink, recent : int
        First and last tokens always kept (16 and 64). Streaming keeps `sink` first tokens and
        fills the rest of the budget, `recent` or more, with the last.
    left_out : str
        Whether the mean of the values that a selection leaves out is mixed into the output, as a
        trained set weighs it. ``auto``: where the set does, and nothing else is against it.
    dense_layers : tuple of int
        Layers that attend to everything (0 and 1). The inner backend decodes them, or on a Hopper
        GPU and later ones hata's own dense kernel, which reads a prefix that requests share once.
    inner_backend : str
        Stock SGLang backend of prefill and dense layers.
    attend : str
        Who attends over the selected tokens on a GPU: this package's Triton kernels, FlashInfer's,
        or the faster of them where it was measured, else Triton's. A CPU takes auto alone.
    traffic : Traffic or None
        What is kept of live requests, to train on; None, the default, stands for nothing.
    layers : dict of str to LayerOverride
        Overrides by layer or range.

    Raises
    ------
    Refusal
        With every problem of the settings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    method: MethodName = Field(description=_METHOD)
    bits: Bits | None = Field(None, description=_BITS)
    weights: str | None = Field(None, min_length=1, description=_WEIGHTS)
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="an integer, 0 to 2**32 - 1")
    budget: Budget = Field(description=BUDGET_EXPECTED)
    sink: Count = Field(16, description=_COUNT)
    recent: Count = Field(64, description=_COUNT)
    left_out: LeftOut = Field("auto", description=_LEFT_OUT)
    dense_layers: Annotated[tuple[int, ...], BeforeValidator(_layer_list)] = Field(
        (0, 1), description=f"a list of layers, each {RANGE_EXPECTED}"
    )
    inner_backend: InnerBackend = Field(
        "auto", description="auto, flashinfer, fa3, triton or torch_native"
    )
    attend: Attend = Field("auto", description="auto, triton or flashinfer")
    traffic: Traffic | None = Field(None, description=TRAFFIC_EXPECTED)
    layers: dict[Annotated[str, BeforeValidator(_layer_key)], LayerOverride] = Field(
        default_factory=dict,
        description="a mapping of layers or ranges to settings, such as {'2-15': {budget: 1024}}",
    )

    _source: Source = PrivateAttr(default_factory=Source)

    @model_validator(mode="wrap")
    @classmethod
    def _report_all(
        cls, data: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> HataConfig:
        if not isinstance(data, Mapping):
            return handler(data)
        context = info.context or {}
        source: Source = context.get("source", Source())
        problems: Iterable[Problem] = context.get("problems", ())
        data = {str(key): value for key, value in data.items()}
        if isinstance(data.get("layers"), Mapping):
            # True would pass for layer 1: they are equal as keys of a dict.
            data["layers"] = {
                key if type(key) is int else str(key): own for key, own in data["layers"].items()
            }
        config = None
        try:
            config = handler(data)
        except ValidationError as error:
            problems = chain(problems, schema_problems(error, cls, source.name))
        fields = cls.model_fields.items()
        defaults = {
            key: field.get_default(call_default_factory=True)
            for key, field in fields
            if not field.is_required()
        }
        # Made one by one, as a refusal lists only the first of very many.
        refuse_any(chain(problems, rule_problems(data, defaults, source.name)))
        config._source = source
        return config

    @classmethod
    def load(cls, path: str | Path) -> HataConfig:
        """Read a YAML file; relative weights paths hold from the file's folder.

        Parameters
        ----------
        path : str or Path
            The file.

        Returns
        -------
        HataConfig

        Raises
        ------
        Refusal
            With every problem of the file, naming it and the line where known.
        """
        path = Path(path)
        mapping, source, problems = read_mapping(path)
        return cls._parse(mapping, path.resolve().parent, source, problems)

    @classmethod
    def parse(
        cls, mapping: Mapping[str, Any], base_dir: str | Path = ".", origin: str = ""
    ) -> HataConfig:
        """Check settings that are in memory already.

        Parameters
        ----------
        mapping : mapping
            What the YAML file would hold.
        base_dir : str or Path, default "."
            Folder that relative weights paths hold from.
        origin : str, default ""
            Where the settings came from, for messages.

        Returns
        -------
        HataConfig

        Raises
        ------
        Refusal
            With every problem of the settings.
        """
        return cls._parse(mapping, Path(base_dir).resolve(), Source(origin), [])

    @classmethod
    def _parse(
        cls, mapping: Mapping, base_dir: Path, source: Source, problems: Sequence[Problem]
    ) -> HataConfig:
        data = dict(mapping)
        _locate_weights(data, base_dir)
        traffic = data.get("traffic")
        if isinstance(traffic, Mapping) and isinstance(traffic.get("folder"), str | Path):
            data["traffic"] = {**traffic, "folder": locate(traffic["folder"], base_dir)}
        if isinstance(data.get("layers"), Mapping):
            data["layers"] = {
                key: _locate_weights(dict(own), base_dir) if isinstance(own, Mapping) else own
                for key, own in data["layers"].items()
            }
        return cls.model_validate(data, context={"source": source, "problems": problems})

    @property
    def origin(self) -> str:
        """Where the settings came from: a file's path, or what `parse` was told."""
        return self._source.origin

    def to_mapping(self) -> dict[str, Any]:
        """The settings in memory, to hand to another process.

        Returns
        -------
        dict
            What a YAML file would hold, of JSON's types; weights paths are absolute, names stay
            names. ``HataConfig.parse`` makes an equal configuration of it (unless a folder with the
            name of shipped weights lies where it runs).
        """
        return self.model_dump(mode="json", exclude_none=True)

    def resolve(self, num_layers: int, context_len: int) -> tuple[LayerPlan, ...]:
        """What each layer of a model does.

        Parameters
        ----------
        num_layers : int
            Layers of the model.
        context_len : int
            Longest context that the model serves, in tokens.

        Returns
        -------
        tuple of LayerPlan
            One per layer, in order; at least one is sparse.

        Raises
        ------
        Refusal
            If the settings name layers that the model lacks, leave every layer dense (a dense run
            would be reported as sparse), or keep no token to choose in the longest context.
        """
        name = self._source.name
        problems = []
        has = f"layers of the model (0 to {num_layers - 1})"
        if beyond := [layer for layer in self.dense_layers if layer >= num_layers]:
            problems.append(Problem(name(("dense_layers",)), has, format_layers(beyond)))
        overrides: dict[int, LayerOverride] = {}
        for key, override in self.layers.items():
            span = parse_range(key)
            if span[-1] >= num_layers:
                problems.append(Problem(name(("layers", key)), has, key))
            overrides.update(dict.fromkeys(span, override))

        plans = tuple(self._plan(n, overrides.get(n, LayerOverride())) for n in range(num_layers))
        if not problems and all(plan.dense for plan in plans):
            problems.append(
                Problem(
                    name(("dense_layers",)),
                    "at least one sparse layer",
                    f"all {num_layers} layers dense",
                )
            )
        kept = max((plan.sink + plan.recent for plan in plans if not plan.dense), default=0)
        if kept >= context_len:
            expected = f"sink + recent below the longest context ({context_len} tokens)"
            problems.append(Problem(name(("recent",)), expected, f"{kept} tokens"))
        refuse_any(problems)
        return plans

    def _plan(self, layer: int, own: LayerOverride) -> LayerPlan:
        dense = layer in self.dense_layers if own.dense is None else own.dense
        if dense:
            return LayerPlan(layer, dense=True)

        def pick(key: str) -> Any:
            value = getattr(own, key)
            return getattr(self, key) if value is None else value

        method, left_out = methods()[pick("method")], pick("left_out")
        if left_out == "auto" and mean_obstacle(method, pick("recent"), self.attend):
            left_out = "none"
        bits = pick("bits") if method.coded else 0
        return LayerPlan(
            layer=layer,
            dense=False,
            method=method.name,
            bits=method.default_bits if bits is None and not method.trained else bits,
            weights=self._weights(own) if method.trained else None,
            seed=(self.seed or 0) if method.tensors is not None else None,
            budget=pick("budget"),
            sink=pick("sink"),
            recent=pick("recent"),
            left_out=left_out,
        )

    def _weights(self, own: LayerOverride) -> str:
        if own.weights is not None:
            return own.weights
        # The whole model's were trained for its method.
        other = own.method is not None and own.method != self.method
        return AUTO if other or self.weights is None else self.weights


def _locate_weights(settings: dict, base_dir: Path) -> dict:
    """Make a weights path absolute, in place; a shipped name stays as it is.

    What looks like a path (a separator, a leading dot or tilde) or exists in `base_dir` is a path.
    Any other word but ``auto`` is a name, looked up among the shipped weights.
    """
    value = settings.get("weights")
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str) and value not in ("", AUTO):
        looks_like_path = "/" in value or value.startswith((".", "~"))
        path = locate(value, base_dir)
        settings["weights"] = path if looks_like_path or os.path.exists(path) else value
    return settings
