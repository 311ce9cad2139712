"""SGLang's servers on a GPU with the demo model; many at a time share the GPU."""

from __future__ import annotations

import pytest

from hata_sglang.evaluation.server import ServerProcess
from hata_sglang.evaluation.tasks import TASKS

#: Several servers share one GPU: a small pool each, and graphs of few sizes, which start sooner.
SHARED = ("--max-total-tokens", "100000", "--mem-fraction-static", "0.5")
SHARED += ("--cuda-graph-max-bs-decode", "32")


@pytest.fixture(scope="session")
def model_log_probabilities(demo_model):
    """Function of (prompt, answer), ids both: the answer's log-probabilities.

    By transformers in float32 on the CPU, which shares no kernel with any server.
    """
    import torch
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32).eval()

    @torch.no_grad()
    def log_probabilities(prompt: list[int], answer: list[int]) -> list[float]:
        ids = torch.tensor([prompt + answer])
        values = net(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return values.gather(1, torch.tensor(answer)[:, None])[:, 0].tolist()

    return log_probabilities


@pytest.fixture(scope="session")
def facts(demo_tokenizer):
    """Ten questions about numbers hidden in two documents of 6,000 tokens."""
    tasks = (TASKS["niah_single_1"], TASKS["niah_single_2"])
    return [each for task in tasks for each in task.samples(5, 6000, demo_tokenizer, 0)]


@pytest.fixture(scope="session")
def facts_of_one_document(demo_tokenizer):
    """Ten questions about one document of 6,000 tokens."""
    return TASKS["niah_single_2"].samples(10, 6000, demo_tokenizer, 1)


@pytest.fixture(scope="session")
def serve(demo_model, tmp_path_factory):
    """Function that makes a server: a YAML's text for hata, None for the stock backend."""

    def make(yaml: str | None, *flags: str, shared: bool = True, **options) -> ServerProcess:
        folder = tmp_path_factory.mktemp("server")
        arguments = ["--model-path", str(demo_model), *flags]
        if shared:
            arguments += SHARED
        if yaml is not None:
            (folder / "my.yaml").write_text(yaml)
            arguments += ["--hata-config", str(folder / "my.yaml")]
        return ServerProcess(arguments, log=folder / "server.log", timeout=600, **options)

    return make
