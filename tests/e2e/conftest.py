"""Real servers on the CPU with the demo model; one at a time, each started once per session."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from hata_sglang.evaluation.server import ServerProcess

NEW_TOKENS = 16
#: float32, because bf16 products depend on the batch they are computed in (for SGLang alone too).
FLAGS = ("--dtype", "float32")


class Client:
    """SGLang's native API, by token ids."""

    def __init__(self, server: ServerProcess):
        self.server = server

    def post(self, path: str, body: dict | None = None):
        request = urllib.request.Request(
            self.server.base_url + path,
            json.dumps(body or {}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=900) as response:
            text = response.read().decode()
        return json.loads(text) if text.startswith(("{", "[")) else text

    def generate(self, ids, new_tokens: int = NEW_TOKENS):
        """Greedy continuation of one prompt, or of several as one batch: token ids."""
        answer = self.post(
            "/generate",
            {
                "input_ids": ids,
                "sampling_params": {
                    "temperature": 0,
                    "max_new_tokens": new_tokens,
                    "ignore_eos": True,
                },
            },
        )
        if isinstance(answer, list):
            return [one["output_ids"] for one in answer]
        return answer["output_ids"]

    def together(self, prompts):
        """The same prompts as separate requests at the same time."""
        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(self.generate, prompts))

    def flush(self):
        """Empty the radix cache; SGLang refuses while the last step of a request still runs."""
        for _ in range(100):
            try:
                return self.post("/flush_cache")
            except urllib.error.HTTPError as error:
                if error.code != 400:
                    raise
                time.sleep(0.1)
        raise AssertionError("the server is not idle after 10 s")

    def counters(self):
        return self.server.client.counters()


def pytest_collection_modifyitems(items):
    """A fixture here starts servers and fills them; its time counts to the first test's."""
    for item in items:
        if "e2e" in item.path.parts:
            item.add_marker(pytest.mark.timeout(2400))


@pytest.fixture(scope="session")
def connect():
    """Function that makes a `Client` of a running server."""
    return Client


@pytest.fixture(scope="session")
def start(demo_model, tmp_path_factory):
    """Function that makes a ServerProcess: YAML text for hata, None for the stock backend."""

    def make(yaml: str | None, *flags: str, module: str = "hata_sglang.launch_server"):
        folder = tmp_path_factory.mktemp("server")
        if yaml is None:
            arguments = ["--attention-backend", "torch_native"]
        else:
            (folder / "hata.yaml").write_text(yaml)
            arguments = ["--hata-config", str(folder / "hata.yaml")]
        arguments += [
            "--model-path",
            str(demo_model),
            "--max-total-tokens",
            "40000",
            *FLAGS,
            *flags,
        ]
        return ServerProcess(
            arguments,
            module=module,
            log=folder / "server.log",
            timeout=900,
            env={"HF_HUB_OFFLINE": "1", "PATH": os.environ["PATH"]},
        )

    return make
