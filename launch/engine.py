"""Ask a model from a script, without a server, on a machine without a GPU.

HATA_CONFIG=hata_sglang/configs/demo.yaml python launch/engine.py "$(hata-sglang demo-model)"
"""

import sys

import sglang

if __name__ == "__main__":  # the processes that SGLang spawns import this file, too
    engine = sglang.Engine(
        model_path=sys.argv[1],
        attention_backend="hata",
        device="cpu",  # needed on a CPU; leave out this line and the next two on a GPU
        max_total_tokens=65536,  # of the KV cache; without it SGLang takes most of the memory
        grammar_backend="llguidance",  # only for regex, json_schema and ebnf
    )
    answer = engine.generate("The capital of France is", {"temperature": 0, "max_new_tokens": 8})
    print(answer["text"])
    print(engine.get_server_info()["internal_states"][0]["hata"])
    engine.shutdown()
