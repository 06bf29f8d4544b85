"""Scores of eval2000 as usually reported: NIST's stm and glm, by subset.

The scoring of Kaldi's and ESPnet's score.sh (hubscr.pl), by segments instead of times:

    hypothesis  noises, hesitations and broken-off words are left out; they are
                optional in the reference, so nothing is lost
    both        the glm's rules, upper case, no hyphens within words (`report.glm`)
    segment     the reference with its alternatives against the decoded utterance,
                aligned by `sclite -F -D`: the best alternative counts, an optional
                word may be left out, and a fragment is correct if a word begins with
                it

sw_ calls are the subset swbd, en_ calls callhm.
"""

from __future__ import annotations

import logging
from pathlib import Path

from espnet_kd.corpora.eval2000 import HESITATION, SUBSETS, read_stm, scored
from espnet_kd.corpora.switchboard_text import NOISES
from espnet_kd.report.glm import GlobalMap, read_glm
from espnet_kd.report.sclite import require_sclite
from espnet_kd.report.scoring import ScoredSet, require_same_ids, sclite_counts

# Words that the glm maps to %HESITATION, as in Kaldi's and ESPnet's score.sh.
HESITATIONS = frozenset(
    [HESITATION, *"uh um eh mm hm ah huh ha er oof hee ach eee ew".split()]
)
NO_WORDS = frozenset((*NOISES, "<unk>"))

Texts = dict[str, str]


def kept_words(text: str) -> str:
    """The scored words of a hypothesis: no noises, hesitations or fragments."""
    return " ".join(
        word
        for word in text.split()
        if word.lower() not in NO_WORDS | HESITATIONS and not word.endswith("-")
    )


class Scorer:
    """The references of a stm file and the rules of a glm file, ready to score.

    Args:
        stm: e.g. data/eval2000/stm.
        glm: e.g. data/eval2000/glm.

    Raises:
        FileNotFoundError: sclite is not installed, or a file is missing.
        ValueError: at a damaged file, or if a call does not belong to a subset.
    """

    def __init__(self, stm: Path, glm: Path):
        require_sclite()
        rules = read_glm(glm, "ref")
        self.hypothesis_rules: GlobalMap = read_glm(glm, "hyp")
        self.references = {s.id: rules(s.transcript) for s in scored(read_stm(stm))}
        self.subsets = {
            name: {key for key in self.references if key.startswith(prefix)}
            for name, prefix in SUBSETS.items()
        }
        lost = self.references.keys() - set().union(*self.subsets.values())
        if lost or not self.references:
            raise ValueError(
                f"{stm}: {len(lost)} of {len(self.references)} segments are not in a "
                f"subset; calls must begin with {' or '.join(SUBSETS.values())}."
            )

    def __call__(self, hypotheses: Texts) -> dict[str, ScoredSet]:
        """Score utterance id -> words; returns subset ("all" too) -> counts.

        A segment without a hypothesis counts as an empty hypothesis, as by NIST, with a
        warning. A subset without segments is left out.

        Raises:
            ValueError: an utterance is not a scored segment.
        """
        missing = self.references.keys() - hypotheses
        if missing:
            logging.warning(
                f"{len(missing)} of {len(self.references)} segments have no hypothesis "
                f"and their words count as deletions; the first is {min(missing)}"
            )
        hypotheses = {**dict.fromkeys(missing, ""), **hypotheses}
        require_same_ids(self.references, hypotheses)
        ids = sorted(self.references)
        texts = [self.hypothesis_rules(kept_words(hypotheses[i])) for i in ids]
        references = [self.references[i] for i in ids]
        counts = sclite_counts(references, texts, "-F", "-D")
        parts = {**self.subsets, "all": set(ids)}
        return {
            name: ScoredSet(
                tuple(i for i in ids if i in members),
                counts[[i in members for i in ids]],
            )
            for name, members in parts.items()
            if members
        }
