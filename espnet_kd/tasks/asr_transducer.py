"""ESPnet's `asr_transducer` task with teachers."""

from espnet2.tasks.asr_transducer import ASRTransducerTask

from espnet_kd.tasks.mixin import KDTaskMixin


class ASRTransducerKDTask(KDTaskMixin, ASRTransducerTask):
    """`ASRTransducerTask` with `kd_conf` and `teacher_*` options."""
