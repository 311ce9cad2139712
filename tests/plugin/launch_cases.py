"""Run many launches in one process: read cases from stdin, fork one child for each.

Importing SGLang costs seconds; a fork does not. Every child goes the way of the real launcher, up
to where processes would be spawned. Input: JSON list of {"name", "argv", "env"}. Output: JSON dict
of name to {"code", "output", "backend", "active"}.
"""

from hata_sglang.seams import cpu_preview

cpu_preview.enable()

import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import traceback  # noqa: E402

from sglang.srt.plugins import load_plugins  # noqa: E402
from sglang.srt.server_args import prepare_server_args  # noqa: E402


def resolve(argv):
    """Parse and resolve like SGLang's launcher; return what the processes would see."""
    args = prepare_server_args(argv)
    if hasattr(args, "resolve_once"):  # later than 0.5.16
        args.resolve_once()
    from hata_sglang.seams import versions

    return {
        "backend": versions.resolved(args).attention_backend,
        "active": os.environ.get("HATA_SGLANG_ACTIVE"),
    }


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
                json.dump(resolve(case["argv"]), answer)
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
