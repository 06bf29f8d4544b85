"""From the Lhotse manifests of a corpus to the recipe's data/ folders.

<data>/manifests/<set>_recordings.jsonl.gz, <set>_supervisions.jsonl.gz
<data>/<set>/{wav.scp,segments,text,utt2spk,...}      one utterance per supervision
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_kd.data.files import write_text, write_whole
from espnet_kd.data.kaldi import cuts_to_kaldi

if TYPE_CHECKING:  # Lhotse is slow to import
    from lhotse import MonoCut, RecordingSet, SupervisionSet


def write_set(
    recordings: RecordingSet,
    supervisions: SupervisionSet,
    name: str,
    data_dir: Path,
    *,
    expected: int | None = None,
) -> int:
    """Write the manifests and the Kaldi folder of a set; returns the number of its
    utterances.

    Args:
        recordings: one channel each.
        supervisions: one per utterance, which takes its id. An id must begin with its
            speaker's, or Kaldi's sorting of utt2spk breaks.
        name: of the set, for example train_si284.
        data_dir: the recipe's data/ folder.
        expected: number of utterances in the corpus, None if not known.

    Raises:
        ValueError: if the number of utterances is not the expected one, or an id does
            not begin with its speaker's; nothing is written then.
    """
    for segment in supervisions:
        if not segment.id.startswith(segment.speaker or ""):
            raise ValueError(
                f"{name}: utterance {segment.id} does not begin with its speaker "
                f"{segment.speaker}, so Kaldi's tables could not be sorted."
            )
    if expected is not None and len(supervisions) != expected:
        raise ValueError(
            f"{name}: {len(supervisions)} utterances, the corpus has {expected}. Part "
            "of it is missing or changed; --check_counts false accepts that."
        )
    manifests = data_dir / "manifests"
    for kind, manifest in {
        "recordings": recordings,
        "supervisions": supervisions,
    }.items():
        write_whole(manifests / f"{name}_{kind}.jsonl.gz", manifest.to_file)
    number = cuts_to_kaldi(utterances(recordings, supervisions), data_dir / name)
    hours = sum(segment.duration for segment in supervisions) / 3600
    print(f"{data_dir / name}: {number} utterances, {hours:.2f} h")
    return number


def utterances(
    recordings: RecordingSet, supervisions: SupervisionSet
) -> Iterator[MonoCut]:
    """A cut for each supervision, with its id and its part of the recording."""
    from lhotse import CutSet

    cuts = CutSet.from_manifests(recordings=recordings, supervisions=supervisions)
    for cut in cuts.trim_to_supervisions(keep_overlapping=False):
        yield cut.with_id(cut.supervisions[0].id)


def once(
    data_dir: Path, options: dict[str, object], prepare: Callable[[], None]
) -> None:
    """Prepare the data unless this was done before with the same options.

    The options are stored in ``data_dir``/.done, which is written last: an interrupted
    preparation is done again.

    Args:
        options: everything that determines the data; compared as JSON.
    """
    mark = data_dir / ".done"
    wanted = json.dumps(options, sort_keys=True, default=str) + "\n"
    if mark.exists() and mark.read_text(encoding="utf-8") == wanted:
        print(f"{data_dir}: already prepared with these options (see {mark})")
        return
    mark.unlink(missing_ok=True)
    prepare()
    write_text(mark, wanted)
