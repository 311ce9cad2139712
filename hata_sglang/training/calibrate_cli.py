"""``hata-sglang calibrate``: from a running server's traffic to weights that it serves."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from hata_sglang.errors import HataError
from hata_sglang.training.cli import add_recipe_arguments, prepare


def add_calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``hata-sglang calibrate`` on `parser`."""
    parser.set_defaults(action=run_calibrate)
    need = parser.add_argument_group("which server")
    need.add_argument(
        "--url",
        default="http://127.0.0.1:30000",
        help="of a server on this machine whose YAML has `traffic` (default: port 30000)",
    )
    need.add_argument(
        "--out", type=Path, default=None, help="folder for the weights (default: in the cache)"
    )
    need.add_argument("--seed", type=int, default=0)
    add_recipe_arguments(parser.add_argument_group("how"))


def run_calibrate(args: argparse.Namespace) -> int:
    """Run ``hata-sglang calibrate``: train, compare, and swap what is not worse.

    Returns
    -------
    int
        Exit code 0. Failures raise `HataError`.
    """
    from hata_sglang.evaluation.client import Client
    from hata_sglang.methods import trainable
    from hata_sglang.seams.swap import ACTION
    from hata_sglang.training.calibrate import calibrate
    from hata_sglang.training.options import TrainOptions
    from hata_sglang.training.recipe_options import option_fields
    from hata_sglang.training.traffic import TrafficFolder
    from hata_sglang.weights import load_weights
    from hata_sglang.weights.auto import checkpoint

    client = Client(args.url)
    info = client.server_info()
    facts = _served(args.url, info)
    served = load_weights(facts["weights"])
    model_dir = checkpoint(info["model_path"], info["revision"])
    card = served.card
    folder = Path(facts["traffic"])
    out = (args.out or _default_out(folder.name, card)).resolve()
    if out == Path(facts["weights"]).resolve():
        raise HataError(f"--out: expected another folder than that of what is served, found {out}")
    # In place of what is served, and so of its kind.
    fields = option_fields(trainable(card.method).recipe)
    same = [f"{name}={value}" for name, value in card.options.items() if name in fields]
    done = calibrate(
        TrafficFolder(folder),
        served,
        model_dir,
        out,
        prepare(args, card.method, same),
        TrainOptions(
            seed=args.seed,
            budgets=tuple(args.budget),
            device=args.device,
            dtype=args.dtype,
            description="queries, keys and values of live requests to a server",
        ),
    )
    budget = args.budget[0]
    print(f"wrote {out}")
    print(
        f"attention mass on {done.card.training_data.held_out_sequences} held-out requests at "
        f"k = {budget.k}: {done.before:.4f} before, {done.after:.4f} after"
    )
    if done.after < done.before:
        raise HataError(
            "calibrate: expected weights that keep no less of the attention than those that are "
            f"served, found less; they are in {out}, and the server goes on with {card.name}"
        )
    print(client.request("/weights_checker", {"action": f"{ACTION}{out}"})["message"])
    return 0


def _served(url: str, info: dict[str, Any]) -> dict[str, Any]:
    """What a server says about its weights and samples."""
    facts = info["internal_states"][0].get("hata")
    if facts is None:
        raise HataError(f"{url}: expected a server with the attention backend hata, found another")
    if "traffic" not in facts:
        raise HataError(f"{url}: expected a server whose YAML has `traffic`, found none in it")
    if not isinstance(facts["weights"], str):
        expected = "one set of weights in all sparse layers"
        raise HataError(f"{url}: expected {expected}, found {facts['weights']}")
    return facts


def _default_out(model: str, card: Any) -> Path:
    from hata_sglang.files import default_cache_dir

    name = f"{card.method}-{card.bits}b-traffic-{time.strftime('%Y%m%d-%H%M%S')}"
    return default_cache_dir() / "weights" / model / name
