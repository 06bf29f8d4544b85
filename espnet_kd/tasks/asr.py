"""ESPnet's `asr` task with teachers."""

from espnet2.tasks.asr import ASRTask

from espnet_kd.tasks.mixin import KDTaskMixin


class ASRKDTask(KDTaskMixin, ASRTask):
    """`ASRTask` with `kd_conf` and `teacher_*` options."""
