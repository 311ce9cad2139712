import pytest

from hata_sglang.errors import HataError
from hata_sglang.evaluation.sparsity import reading


def snapshot(steps: int, context: int, attended: int, layers: int = 1) -> dict[str, int]:
    counts = {"decode_steps": steps, "layer_steps": steps * layers}
    return {**counts, "tokens_in_context": context, "tokens_attended": attended}


def test_reading_tells_layers_steps_and_tokens_apart():
    # Four steps at contexts 101 to 104 in 28 layers, of which each reads 25 tokens.
    before, after = snapshot(2, 1000, 100, 28), snapshot(6, 1000 + 28 * 410, 100 + 28 * 100, 28)
    read = reading(before, after)
    assert (read.steps, read.layers, read.attended, read.context) == (4, 28, 25, 102.5)
    assert read.share == pytest.approx(25 / 102.5)


@pytest.mark.parametrize(
    "after", [snapshot(2, 1000, 100), snapshot(4, 2000, 1100)], ids=["no steps", "all attended"]
)
def test_reading_refuses_a_run_that_was_not_sparse(after):
    with pytest.raises(HataError, match="not sparse"):
        reading(snapshot(2, 1000, 100), after)
