#!/usr/bin/env python3
"""Train a student (or, without `kd_conf`, a stock model) of ESPnet's `asr` task."""

from espnet_kd.bin.command import ending
from espnet_kd.tasks.asr import ASRKDTask
from espnet_kd.tasks.mixin import ConfigurationError


def get_parser():
    """The parser of `espnet2.bin.asr_train` with the KD options."""
    return ASRKDTask.get_parser()


def main(cmd=None):
    """Train; takes the command line of `espnet2.bin.asr_train`."""
    with ending("asr_train", (ConfigurationError,)):
        ASRKDTask.main(cmd=cmd)


if __name__ == "__main__":
    main()
