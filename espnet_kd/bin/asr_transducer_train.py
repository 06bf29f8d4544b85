#!/usr/bin/env python3
"""Train a student (or, without `kd_conf`, a stock model) of ESPnet's `asr_transducer` task."""

from espnet_kd.tasks.asr_transducer import ASRTransducerKDTask


def get_parser():
    """The parser of `espnet2.bin.asr_transducer_train` with the KD options."""
    return ASRTransducerKDTask.get_parser()


def main(cmd=None):
    """Train; takes the command line of `espnet2.bin.asr_transducer_train`."""
    ASRTransducerKDTask.main(cmd=cmd)


if __name__ == "__main__":
    main()
