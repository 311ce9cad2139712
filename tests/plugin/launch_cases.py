"""Run many launches in one process: read cases from stdin, fork one child for each.

Importing SGLang costs seconds; a fork does not. Every child goes the way of the real launcher, up
to where processes would be spawned. Input: JSON list of {"name", "argv", "env", "after"}. Output:
JSON dict of name to {"code", "output", "backend", "active", "facts", "after"}.
"""

from hata_sglang.seams import cpu_preview

cpu_preview.enable()

import json  # noqa: E402
import os  # noqa: E402
import pickle  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import traceback  # noqa: E402

from sglang.srt.plugins import load_plugins  # noqa: E402
from sglang.srt.server_args import prepare_server_args  # noqa: E402


def launch(argv):
    """Parse and resolve like SGLang's launcher."""
    args = prepare_server_args(argv)
    if hasattr(args, "resolve_once"):  # later than 0.5.16
        args.resolve_once()
    return args


def facts(args):
    """What a scheduler that gets these arguments serves; None for stock attention."""
    from sglang.srt.configs.model_config import ModelConfig

    from hata_sglang.seams.session import Session

    session = Session.of(ModelConfig.from_server_args(pickle.loads(pickle.dumps(args))))
    return session and session.facts()


def resolve(argv, after):
    """Launch a server, then a stock one if there is `after`; return what the processes would see.

    The YAML is gone before any of them looks.
    """
    from hata_sglang.seams import versions

    args = launch(argv)
    answer = {
        "backend": versions.resolved(args).attention_backend,
        "active": os.environ.get("HATA_SGLANG_ACTIVE"),
    }
    if path := os.environ.get("HATA_CONFIG"):
        os.unlink(path)
    if after:
        answer["after"] = facts(launch(after))
    return {**answer, "facts": facts(args)}


def run(case):
    """One launch in a forked child: its exit code and everything it printed."""
    with tempfile.TemporaryFile("w+") as log, tempfile.TemporaryFile("w+") as answer:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                os.environ.update(case["env"])
                json.dump(resolve(case["argv"], case.get("after")), answer)
                answer.flush()
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        log.seek(0)
        answer.seek(0)
        return {"code": code, "output": log.read(), **json.loads(answer.read() or "{}")}


if __name__ == "__main__":
    load_plugins()
    cases = json.load(sys.stdin)
    json.dump({case["name"]: run(case) for case in cases}, sys.stdout)
