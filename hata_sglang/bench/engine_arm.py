"""``python -m hata_sglang.bench.engine_arm TASK.json RESULTS.jsonl``: one engine, all workloads.

A process of its own per arm, started by `hata_sglang.bench.serve`: an engine cannot be taken out of
a process, nor hata out of SGLang. One JSON line is written as soon as a workload is done.
"""

from hata_sglang.seams import cpu_preview

# Before SGLang is imported, and in every spawned process: these import this module first.
ON_CPU = cpu_preview.enable()

import asyncio  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from hata_sglang.bench.gpu_memory import MemoryPeak  # noqa: E402
from hata_sglang.bench.streaming import Speed, Stream, record  # noqa: E402
from hata_sglang.bench.workloads import FIRST_TOKEN, Workload  # noqa: E402

CLOCK = time.perf_counter
#: Requests before the first that is timed: kernels are compiled and loaded on their first use.
WARM_UP_TOKENS, WARM_UP_OUTPUT = 2048, 8


class Arm:
    """An engine and what is asked of it.

    Parameters
    ----------
    argv : list of str
        Flags of ``sglang serve``.
    vocabulary : int
        Ids of prompts are below it.
    """

    def __init__(self, argv: list[str], vocabulary: int) -> None:
        import sglang
        from sglang.srt.plugins import load_plugins
        from sglang.srt.server_args import prepare_server_args

        load_plugins()
        start = CLOCK()
        self.engine = sglang.Engine(server_args=prepare_server_args(argv))
        self.start_s = CLOCK() - start
        self.vocabulary = vocabulary

    async def _ask(self, prompt: list[int], output: int) -> Stream:
        sent = CLOCK()
        chunks = await self.engine.async_generate(
            input_ids=prompt,
            sampling_params={"temperature": 0, "max_new_tokens": output, "ignore_eos": True},
            stream=True,
        )
        return await record(chunks, CLOCK, sent)

    def ask(self, prompts: list[list[int]], output: int) -> list[Stream]:
        """Send prompts together; wait for all."""

        async def together() -> list[Stream]:
            return await asyncio.gather(*(self._ask(prompt, output) for prompt in prompts))

        # The engine's own loop: SGLang's tokenizer manager is bound to it.
        return self.engine.loop.run_until_complete(together())

    def state(self) -> dict[str, Any]:
        """What the scheduler says of itself, hata's counters included."""
        return (self.engine.get_server_info().get("internal_states") or [{}])[0]

    def flush(self) -> None:
        """Empty the radix cache; SGLang refuses while the last step of a request still runs."""
        for _ in range(100):
            if self.engine.flush_cache().success:
                return
            time.sleep(0.1)
        raise RuntimeError("the engine is not idle 10 s after the last request ended")

    def warm_up(self, longest: int) -> None:
        """Compile and load what the first requests would wait for."""
        prompt = [FIRST_TOKEN + i % 64 for i in range(min(WARM_UP_TOKENS, longest))]
        self.ask([prompt, prompt[: len(prompt) // 2 + 1]], WARM_UP_OUTPUT)

    def run(self, workload: Workload, repeat: int) -> dict[str, Any]:
        """Run one workload on an empty cache; return its measurements."""
        self.flush()
        before = self.state().get("hata")
        prefill = None
        with MemoryPeak(on_cpu=ON_CPU) as memory:
            if document := workload.document(self.vocabulary, repeat):
                prefill = self.ask([document], 1)[0]
                prefill = prefill.times[0] - prefill.sent
            streams = self.ask(workload.prompts(self.vocabulary, repeat), workload.output)
        speed = Speed.of(streams)
        state = self.state()
        result = dict(vars(speed))
        # The time until every prompt was read, unless one document was read before.
        result["prefill_s"] = speed.ttft_max_s if prefill is None else prefill
        result["peak_gpu_memory_gb"] = memory.peak_gb
        result["pool_tokens"] = state.get("memory_usage", {}).get("token_capacity")
        result["start_s"] = self.start_s
        after = state.get("hata")
        if before and after and after["tokens_in_context"] > before["tokens_in_context"]:
            read, held = (after[k] - before[k] for k in ("tokens_attended", "tokens_in_context"))
            result["share_read"] = read / held
        return result


def main() -> None:
    """Run the task in a file."""
    task = json.loads(Path(sys.argv[1]).read_text())
    asked = [(Workload(**each["workload"]), each["repeat"]) for each in task["asked"]]
    arm = Arm(task["argv"], task["vocabulary"])
    arm.warm_up(max(workload.prompt for workload, _ in asked))
    with open(sys.argv[2], "w") as stream:
        for workload, repeat in asked:
            result = {"workload": workload.as_dict(), "repeat": repeat}
            print(json.dumps({**result, **arm.run(workload, repeat)}), file=stream, flush=True)
    arm.engine.shutdown()


if __name__ == "__main__":
    main()
