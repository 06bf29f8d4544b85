"""LibriSpeech (openslr.org/12) as the sets of a distillation experiment.

    train_clean_100         100 h, text
    train_unlabelled_860    train-clean-360 + train-other-500, 860 h, no text;
                            the transcripts are in text_reference
    train_960               both, text
    dev                     dev_clean + dev_other
    dev_clean, dev_other, test_clean, test_other

Lhotse reads the corpus: a recording of one utterance per FLAC file, which wav.scp names
directly. The speaker is the reader. (Kaldi's recipe uses reader-chapter, because it
normalises features by chapter; nothing here does.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from espnet_kd.corpora.corpus import write_set
from espnet_kd.data.kaldi import write_table

if TYPE_CHECKING:  # Lhotse is slow to import
    from lhotse import RecordingSet, SupervisionSet

# Number of utterances in each part (folder) of the corpus.
PARTS = {
    "train-clean-100": 28539,
    "train-clean-360": 104014,
    "train-other-500": 148688,
    "dev-clean": 2703,
    "dev-other": 2864,
    "test-clean": 2620,
    "test-other": 2939,
}
UNLABELLED = "train_unlabelled_860"
SETS = {
    "train_clean_100": ("train-clean-100",),
    UNLABELLED: ("train-clean-360", "train-other-500"),
    "train_960": ("train-clean-100", "train-clean-360", "train-other-500"),
    "dev": ("dev-clean", "dev-other"),
    "dev_clean": ("dev-clean",),
    "dev_other": ("dev-other",),
    "test_clean": ("test-clean",),
    "test_other": ("test-other",),
}


class Part(NamedTuple):
    """The manifests of a part of the corpus."""

    recordings: RecordingSet
    supervisions: SupervisionSet


def write_sets(
    parts: dict[str, Part], data_dir: Path, *, check_counts: bool = True
) -> None:
    """Write each set whose parts are all given.

    Raises:
        ValueError: if no set has all its parts, or a set does not have as many
            utterances as the corpus.
    """
    from lhotse import RecordingSet, SupervisionSet
    from lhotse.utils import fastcopy

    names = [name for name, members in SETS.items() if parts.keys() >= set(members)]
    if not names:
        wanted = ", ".join(f"{name}: {' '.join(SETS[name])}" for name in SETS)
        raise ValueError(
            f"{' '.join(parts)}: these parts do not make up any set ({wanted})."
        )
    for name in names:
        members = [parts[part] for part in SETS[name]]
        recordings = _by_id(item for each in members for item in each.recordings)
        segments = _by_id(item for each in members for item in each.supervisions)
        texts = [(segment.id, segment.text) for segment in segments]
        if name == UNLABELLED:
            segments = [fastcopy(segment, text=None) for segment in segments]
        write_set(
            RecordingSet.from_recordings(recordings),
            SupervisionSet.from_segments(segments),
            name,
            data_dir,
            expected=sum(PARTS[part] for part in SETS[name]) if check_counts else None,
        )
        if name == UNLABELLED:
            write_table(data_dir / name / "text_reference", texts)


def _by_id(items: Iterable[Any]) -> list[Any]:
    """Sorted as in the C locale; a walk through folders has no order."""
    return sorted(items, key=lambda item: item.id)


# ---------------------------------------------------------------- reading the corpus


def read_corpus(
    corpus_dir: Path, names: Sequence[str], num_jobs: int
) -> dict[str, Part]:
    """Read the parts of the corpus in its distributed form.

    Args:
        corpus_dir: the folder LibriSpeech/, or its parent.
        names: of the parts.
        num_jobs: headers of FLAC files read in parallel.

    Raises:
        FileNotFoundError: if a part is missing.
        ValueError: if a part holds no utterances, or a file is not audio.
    """
    if (corpus_dir / "LibriSpeech").is_dir():
        corpus_dir = corpus_dir / "LibriSpeech"
    for name in names:
        if not (corpus_dir / name).is_dir():
            raise FileNotFoundError(
                f"{corpus_dir / name}: no such folder. Give the folder of LibriSpeech "
                "(LIBRISPEECH in db.sh), or fewer --parts. `lhotse download "
                "librispeech downloads` fetches all, openslr.org/12 has each part."
            )
    return {name: _read_part(corpus_dir, name, num_jobs) for name in names}


def _read_part(corpus_dir: Path, name: str, num_jobs: int) -> Part:
    from lhotse.audio.utils import AudioLoadingError
    from lhotse.recipes import prepare_librispeech

    try:
        manifests = prepare_librispeech(
            corpus_dir, dataset_parts=name, num_jobs=num_jobs
        )
    except (AssertionError, AudioLoadingError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{corpus_dir / name}: {reason} This part is damaged: fetch it again."
        ) from error
    return Part(**manifests[name])


def read_manifests(manifest_dir: Path, names: Sequence[str]) -> dict[str, Part]:
    """Read the manifests written by `lhotse prepare librispeech`.

    Raises:
        FileNotFoundError: if a manifest, or audio that it names, is missing.
    """
    from lhotse.recipes.utils import read_manifests_if_cached

    manifests = read_manifests_if_cached(names, manifest_dir, prefix="librispeech")
    for name in names:
        for kind in Part._fields:
            if kind not in manifests.get(name, {}):
                path = manifest_dir / f"librispeech_{kind}_{name}.jsonl.gz"
                raise FileNotFoundError(
                    f"{path}: no such file. Give the folder into which `lhotse prepare "
                    "librispeech` wrote, or fewer --parts."
                )
        recording = next(iter(manifests[name]["recordings"]))
        source = recording.sources[0]
        if source.type == "file" and not Path(source.source).is_file():
            raise FileNotFoundError(
                f"{source.source}: no such file; {manifest_dir} has it as recording "
                f"{recording.id}. Relative paths start at the current folder: prepare "
                "the manifests with an absolute one."
            )
    return {name: Part(**manifests[name]) for name in names}
