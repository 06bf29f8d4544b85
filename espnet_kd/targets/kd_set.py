"""The KD training set: a Kaldi data folder with a weight for each target."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, Sequence

from espnet_kd.data.files import write_json
from espnet_kd.data.kaldi import cuts_to_kaldi, write_table
from espnet_kd.targets.hypotheses import FIELD, edits, hypotheses_of, reference_of
from espnet_kd.targets.selection import (
    FilterCounts,
    Filters,
    Target,
    Weighting,
    median_words_per_second,
    merge_reference,
    select,
)

if TYPE_CHECKING:  # Lhotse is slow to import
    from lhotse import CutSet
    from lhotse.cut import Cut

STATS = "stats.json"
CUTS = "kd_cuts.jsonl.gz"
BINS = 10  # of the histogram over weights from 0 to 1; another one holds 1 and above


@dataclass
class KDSetSpec:
    """The inputs of a KD set.

    Attributes:
        labelled: decoded cuts with references.
        unlabelled: decoded cuts; their text, if any, is never used.
        references: labelled cuts that need no decoding, all with weight 1.
        labelled_targets: "reference", "hypotheses" or "both", for `labelled`.
        nbest: hypotheses kept for each utterance.
        true_texts: reference texts of unlabelled utterances, only used to print the WER
            of the pseudo-labels.
    """

    labelled: Sequence[CutSet] = ()
    unlabelled: Sequence[CutSet] = ()
    references: Sequence[CutSet] = ()
    labelled_targets: str = "reference"
    nbest: int = 1
    filters: Filters = field(default_factory=Filters)
    weighting: Weighting = field(default_factory=Weighting)
    true_texts: dict[str, str] | None = None


class KDSet:
    """Iterates once over the cuts of a spec, and counts.

    Attributes once `cuts()` is exhausted:
        num_samples, texts, weights: by id of the target.
        counters: steps of selection, by group.
        pseudo: {"before" | "after": [word errors, words]} against `true_texts`.
    """

    def __init__(self, spec: KDSetSpec) -> None:
        self.spec = spec
        self.num_samples: dict[str, int] = {}
        self.texts: dict[str, str] = {}
        self.weights: dict[str, float] = {}
        self.counters = {group: FilterCounts() for group in ("labelled", "unlabelled")}
        self.pseudo = {"before": [0, 0], "after": [0, 0]}
        decoded = [*spec.unlabelled]
        if spec.labelled_targets != "reference":
            decoded += spec.labelled
        self.median = median_words_per_second(itertools.chain.from_iterable(decoded))

    def cuts(self) -> Iterator[Cut]:
        """Yield one cut for each target.

        Raises:
            ValueError: an utterance occurs twice, lacks a reference that is needed, or
                is a part of a longer recording.
        """
        sources: Iterable[tuple[Iterable[CutSet], Callable[[Cut], list[Target]]]] = (
            (self.spec.references, self._reference),
            (self.spec.labelled, self._labelled),
            (self.spec.unlabelled, self._unlabelled),
        )
        for sets, targets_of in sources:
            for cut in itertools.chain.from_iterable(sets):
                require_whole_recording(cut)
                for cut_of_target in expand(cut, targets_of(cut)):
                    self._note(cut_of_target)
                    yield cut_of_target

    def _note(self, cut: Cut) -> None:
        if cut.id in self.texts:
            raise ValueError(
                f"utterance {cut.id} occurs twice; data sets of a KD set must not "
                "overlap, and each shard must be given once"
            )
        self.num_samples[cut.id] = cut.num_samples
        self.texts[cut.id] = cut.supervisions[0].text
        self.weights[cut.id] = cut.supervisions[0].custom["kd_weight"]

    def _reference(self, cut: Cut) -> list[Target]:
        reference = reference_of(cut)
        if reference is None:
            raise ValueError(
                f"cut {cut.id} has no reference; decode it and give its shard as "
                "--unlabelled"
            )
        text = " ".join(reference.split())
        self.counters["labelled"].add("references", int(bool(text)), cut.duration)
        return [Target(text, 1.0, 0)] if text else []

    def _labelled(self, cut: Cut) -> list[Target]:
        references = self._reference(cut)
        if self.spec.labelled_targets == "reference":
            return references
        targets = self._select(cut, labelled=True)
        if self.spec.labelled_targets == "hypotheses" or not references:
            return targets
        return merge_reference(references[0].text, targets)

    def _unlabelled(self, cut: Cut) -> list[Target]:
        targets = self._select(cut, labelled=False)
        true_text = (self.spec.true_texts or {}).get(cut.id)
        if true_text is not None:
            found = hypotheses_of(cut)
            self._judge("before", true_text, found[0].text if found else "")
            if targets:
                self._judge("after", true_text, targets[0].text)
        return targets

    def _select(self, cut: Cut, labelled: bool) -> list[Target]:
        return select(
            cut,
            labelled=labelled,
            filters=self.spec.filters,
            median=self.median,
            nbest=self.spec.nbest,
            weighting=self.spec.weighting,
            counter=self.counters["labelled" if labelled else "unlabelled"],
        )

    def _judge(self, when: str, true_text: str, text: str) -> None:
        self.pseudo[when][0] += edits(true_text, text)
        self.pseudo[when][1] += len(true_text.split())

    def stats(self) -> dict[str, Any]:
        """All counts, for stats.json."""
        return {
            "targets": len(self.texts),
            "steps": {group: each.as_dict() for group, each in self.counters.items()},
            "median_words_per_second": self.median,
            "weight_histogram": histogram(self.weights.values()),
            "pseudo_label_wer": {
                when: errors / words if words else None
                for when, (errors, words) in self.pseudo.items()
            },
        }


def require_whole_recording(cut: Cut) -> None:
    """Refuse a part of a recording: ESPnet's wav.scp has one file per utterance.

    Raises:
        ValueError: names the cut and the remedy.
    """
    if cut.start or cut.num_samples != cut.recording.num_samples:
        raise ValueError(
            f"cut {cut.id} is a part of recording {cut.recording.id}; ESPnet trains "
            "from one file per utterance. Cut the audio first: asr.sh --stage 3 "
            "(scripts/audio/format_wav_scp.sh --segments ...), and decode its output"
        )


def expand(cut: Cut, targets: Sequence[Target]) -> Iterator[Cut]:
    """One cut for each target; the first keeps the id, others end in -kd2, -kd3, ...

    With a suffix ids still begin with the speaker, as Kaldi's order of utt2spk needs.
    The supervision's `kd_weight`, `kd_rank` (0 is the reference) and `kd_utterance`
    (the id of the original utterance) record the origin of a cut.
    """
    for number, target in enumerate(targets, 1):
        new_id = cut.id if number == 1 else f"{cut.id}-kd{number}"
        old = cut.supervisions[0]
        custom = {
            key: value for key, value in (old.custom or {}).items() if key != FIELD
        }
        custom.update(kd_weight=target.weight, kd_rank=target.rank, kd_utterance=cut.id)
        supervision = replace(
            old,
            id=new_id,
            text=target.text,
            speaker=old.speaker or cut.id,
            custom=custom,
        )
        yield replace(cut, id=new_id, supervisions=[supervision])


def histogram(weights: Iterable[float]) -> dict[str, int]:
    """Number of weights in [0, 0.1), [0.1, 0.2), ..., and from 1 on."""
    counts = [0] * (BINS + 1)
    for weight in weights:
        # An error-weighted 0.3 may be 0.29999...; the bins are for display.
        counts[min(BINS, int(weight * BINS + 1e-9))] += 1
    names = [f"{number / BINS:.1f}-" for number in range(BINS)] + ["1.0+"]
    return dict(zip(names, counts))


def build(kd_set: KDSet, data_dir: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Write the set as a Kaldi folder; returns the stats.

    Besides the files of `cuts_to_kaldi`: `kd_weight` ("<utterance> <weight>", ESPnet's
    text_float), `kd_cuts.jsonl.gz` and `stats.json`.

    Raises:
        ValueError: no target is left, or an input is invalid.
    """
    from lhotse.serialization import SequentialJsonlWriter

    with SequentialJsonlWriter(str(data_dir / CUTS)) as writer:

        def written() -> Iterator[Cut]:
            for cut in kd_set.cuts():
                writer.write(cut)
                yield cut

        cuts_to_kaldi(written(), data_dir)
    stats = {"options": options, **kd_set.stats()}
    if not kd_set.texts:
        steps = "; ".join(
            f"{group}: " + ", ".join(f"{k} {v['targets']}" for k, v in rows.items())
            for group, rows in stats["steps"].items()
            if rows
        )
        raise ValueError(f"no target is left ({steps}); loosen the filters")
    write_table(
        data_dir / "kd_weight",
        ((key, f"{value:.8g}") for key, value in kd_set.weights.items()),
    )
    write_json(data_dir / STATS, stats)
    return stats
