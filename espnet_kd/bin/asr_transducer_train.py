#!/usr/bin/env python3
"""Train a student (without `kd_conf` a stock model) of ESPnet's `asr_transducer`."""

from espnet_kd.bin.command import ending
from espnet_kd.tasks.asr_transducer import ASRTransducerKDTask
from espnet_kd.tasks.mixin import ConfigurationError


def get_parser():
    """The parser of `espnet2.bin.asr_transducer_train` with the KD options."""
    return ASRTransducerKDTask.get_parser()


def main(cmd=None):
    """Train; takes the command line of `espnet2.bin.asr_transducer_train`."""
    with ending("asr_transducer_train", (ConfigurationError,)):
        ASRTransducerKDTask.main(cmd=cmd)


if __name__ == "__main__":
    main()
