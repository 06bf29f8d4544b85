"""Replaces `python` so that an unmodified asr.sh runs KD.

    ./run.sh --asr_config conf/train_asr_kd.yaml --python "python3 -m espnet_kd.shim"

`-m espnet2.bin.asr_train` and `-m espnet2.bin.asr_transducer_train` become the modules
of the same name in `espnet_kd.bin`. Everything else (`-m module`, `-c code`, a script)
runs as with python, with a stand-in for `warprnnt_pytorch` if it is missing. ESPnet's
inference refuses a checkpoint that does not fit, instead of decoding with it.
"""

from __future__ import annotations

import runpy
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

REPLACED = {
    "espnet2.bin.asr_train": "espnet_kd.bin.asr_train",
    "espnet2.bin.asr_transducer_train": "espnet_kd.bin.asr_transducer_train",
}


def main(argv: list[str]) -> None:
    """Run `python argv...` in this process."""
    if not argv:
        raise SystemExit(__doc__)
    option, *rest = argv
    if option == "-m" and rest:
        module, *arguments = rest
        if module.startswith("espnet2.bin."):
            from espnet_kd.models import warprnnt

            warprnnt.install()
        sys.argv = [module, *arguments]
        with _reading_models(module):
            runpy.run_module(
                REPLACED.get(module, module), run_name="__main__", alter_sys=True
            )
    elif option == "-c" and rest:
        code, *arguments = rest
        sys.argv = ["-c", *arguments]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    elif option.startswith("-"):
        raise SystemExit(
            f"espnet_kd.shim: cannot pass {option} on to python; "
            "use -m module, -c code or a script"
        )
    else:
        sys.argv = argv
        sys.path[0] = str(Path(option).resolve().parent)
        runpy.run_path(option, run_name="__main__")


def _reading_models(module: str) -> AbstractContextManager:
    """While active, ESPnet's inference loads a model completely or refuses it."""
    if not (module.startswith("espnet2.bin.") and "_inference" in module):
        return nullcontext()
    from espnet_kd.models.loading import whole_models

    return whole_models()


if __name__ == "__main__":
    main(sys.argv[1:])
