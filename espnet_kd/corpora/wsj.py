"""Wall Street Journal (WSJ0: LDC93S6A or B, WSJ1: LDC94S13A or B) as Lhotse manifests.

The distribution is two sets of discs; index files list the utterances of each set:

    <wsj0>/11-13.1/wsj0/doc/indices/train/tr_s_wv1.ndx         index files with lines
    <wsj1>/13-34.1/wsj1/doc/indices/h1_p0.ndx                  <disc>:<audio file>
    <wsj0>/11-1.1/wsj0/si_tr_s/01i/01ic0201.wv1                audio: SPHERE, shorten
    <wsj1>/13-16.1/wsj1/si_dt_20/4k0/4k0c0301.wv1
    <wsj0>/11-4.1/wsj0/transcrp/dots/si_tr_s/01i/01ic0200.dot  transcripts of a session
    <wsj1>/13-34.1/wsj1/trans/wsj1/si_dt_20/4k0/4k0c0300.dot

Copies differ in the names of the disc folders (13-34.1, 13_34.1, 13_34_1, merged into
one) and in case (13-16.1 came in upper case). So a file is identified by its path from
wsj0/ or wsj1/ on, in lower case, and the disc of an index entry is ignored.

An utterance id is <speaker, 3><type><session, 2><utterance, 2>. Sets and exclusions are
those of Kaldi's and ESPnet's recipes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from espnet_kd.corpora import sphere
from espnet_kd.corpora.wsj_text import normalize, read_transcripts

if TYPE_CHECKING:  # Lhotse is slow to import
    from lhotse import RecordingSet, SupervisionSet
    from lhotse.utils import Pathlike

    Manifests = dict[str, RecordingSet | SupervisionSet]


class Subset(NamedTuple):
    """The index files of a set and its number of utterances."""

    indices: tuple[str, ...]
    size: int


SUBSETS = {
    "train_si284": Subset(
        ("wsj0/doc/indices/train/tr_s_wv1.ndx", "wsj1/doc/indices/si_tr_s.ndx"), 37416
    ),
    "test_dev93": Subset(("wsj1/doc/indices/h1_p0.ndx",), 503),
    "test_eval92": Subset(("wsj0/doc/indices/test/nvp/si_et_20.ndx",), 333),
}
TRANSCRIPTS = ("dot", "lsn", "ptx")
# 98 of the 7236 entries of tr_s_wv1.ndx, which no recipe uses (so SI-84 has 7138).
LEFT_OUT = "wsj0/si_tr_s/401/"
ENTRY = re.compile(r"[\d_]+:\s*(\S+)")
REMEDY = "Give the folders that hold all discs (11-1.1 to 11-15.1, 13-1.1 to 13-34.1)."


def prepare_wsj(
    wsj0_dir: Pathlike,
    wsj1_dir: Pathlike,
    *,
    transcripts: str = "dot",
    partial: bool = False,
    num_jobs: int = 1,
) -> dict[str, Manifests]:
    """Make the manifests of train_si284, test_dev93 and test_eval92 (close microphone).

    Only audio headers are read. Text is normalised by `wsj_text.normalize`.

    Args:
        wsj0_dir: folder with the discs of WSJ0, or wsj0/ itself.
        wsj1_dir: the same for WSJ1; may be the same folder.
        transcripts: which of the distributed transcripts become text: "dot" (as in
            Kaldi's and ESPnet's recipes), "lsn" (words only, no noise) or "ptx" (the
            prompts).
        partial: leave out utterances without audio or transcript.
        num_jobs: headers read in parallel.

    Returns:
        for each set {"recordings": RecordingSet, "supervisions": SupervisionSet}; ids
        of both are utterance ids, sorted.

    Raises:
        FileNotFoundError: if an index file is missing, audio or a transcript (unless
            `partial`), or sph2pipe for compressed audio.
        ValueError: at a damaged index file, transcript or audio header.
    """
    if transcripts not in TRANSCRIPTS:
        raise ValueError(
            f"transcripts: '{transcripts}' is not one of {', '.join(TRANSCRIPTS)}"
        )
    corpus = _Corpus([Path(wsj0_dir), Path(wsj1_dir)], transcripts)
    return {
        name: _manifests(name, corpus, subset, partial, num_jobs)
        for name, subset in SUBSETS.items()
    }


class _Corpus:
    """The files below the given folders, identified by the part of their path that is
    the same in every copy."""

    def __init__(self, roots: list[Path], transcripts: str):
        self.roots = " or ".join(map(str, dict.fromkeys(roots)))
        self.suffix = f".{transcripts}"
        self.files: dict[str, Path] = {}  # wsj0/... or wsj1/...
        self.sessions: dict[str, Path] = {}  # 01ic0200.dot
        for root in dict.fromkeys(roots):
            self._walk(root)

    def _walk(self, root: Path) -> None:
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder. {REMEDY}")
        folders = os.walk(root, followlinks=True)
        for folder, subfolders, names in tqdm(
            folders, str(root), unit="folder", disable=None
        ):
            subfolders.sort()
            for name in sorted(names):
                path, suffix = Path(folder, name), Path(name).suffix.lower()
                if suffix in (".ndx", ".wv1"):
                    for tail in _tails(path):
                        self.files.setdefault(tail, path)
                elif suffix == self.suffix:
                    # A session's transcripts are on several discs.
                    self.sessions.setdefault(name.lower(), path)

    def index(self, tail: str) -> Path:
        """The path of an index file."""
        if tail not in self.files:
            raise FileNotFoundError(f"{tail}: not found below {self.roots}. {REMEDY}")
        return self.files[tail]

    def transcript(self, utterance: str) -> str | None:
        """The transcript of an utterance as written, None if not found."""
        path = self.sessions.get(f"{utterance[:6]}00{self.suffix}")
        return None if path is None else _session(path).get(utterance)


# Index files go from session to session.
_session = lru_cache(maxsize=8)(read_transcripts)


def _tails(path: Path) -> Iterator[str]:
    """The part of a path from each folder named wsj0 or wsj1 on."""
    parts = [part.lower() for part in path.absolute().parts]
    for start, part in enumerate(parts):
        if part in ("wsj0", "wsj1"):
            yield "/".join(parts[start:])


def _entries(index: Path) -> Iterator[str]:
    """The audio files listed in an index, as keys of `_Corpus.files`."""
    lines = index.read_text(encoding="latin-1").splitlines()
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith(";"):
            continue
        match = ENTRY.fullmatch(line)
        if match is None:
            raise ValueError(
                f"{index}: line {number} is not '<disc>:<file>': {line!r}. Copy the "
                "file again from the distribution."
            )
        tail = match[1].lower()
        if not tail.endswith(".wv1"):  # si_et_20.ndx names utterances
            tail += ".wv1"
        if not tail.startswith(LEFT_OUT):
            yield tail


def _manifests(
    name: str, corpus: _Corpus, subset: Subset, partial: bool, num_jobs: int
) -> Manifests:
    from lhotse import RecordingSet, SupervisionSegment, SupervisionSet

    audio: dict[str, Path] = {}
    text: dict[str, str] = {}
    lacking = []
    for tail in (t for index in subset.indices for t in _entries(corpus.index(index))):
        utterance = Path(tail).stem
        transcript = corpus.transcript(utterance)
        if tail not in corpus.files:
            lacking.append(tail)
        elif transcript is None:
            lacking.append(f"the transcript of {utterance} ({corpus.suffix})")
        else:
            audio[utterance] = corpus.files[tail]
            text[utterance] = normalize(transcript)
    if lacking:
        what = f"{name}: {len(lacking)} utterances lack audio or transcript"
        if not partial:
            raise FileNotFoundError(
                f"{what}: {lacking[0]} not found below {corpus.roots}. {REMEDY} With "
                "--check_counts false they are left out."
            )
        print(f"{what} and are left out, the first: {lacking[0]}")

    utterances = sorted(audio)
    with ThreadPoolExecutor(num_jobs) as pool:
        found = pool.map(lambda u: sphere.recording(audio[u], u), utterances)
        progress = tqdm(found, name, total=len(audio), unit="header", disable=None)
        recordings = list(progress)
    supervisions = [
        SupervisionSegment(
            id=recording.id,
            recording_id=recording.id,
            start=0.0,
            duration=recording.duration,
            text=text[recording.id],
            language="English",
            speaker=recording.id[:3],
        )
        for recording in recordings
    ]
    return {
        "recordings": RecordingSet.from_recordings(recordings),
        "supervisions": SupervisionSet.from_segments(supervisions),
    }
