"""Scores of eval2000 by its stm and glm, counted by sclite."""

import itertools
import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from espnet_kd.bin import score_eval2000 as command
from espnet_kd.corpora.telephone import utterance_id
from espnet_kd.report.sclite import SCTK_FOLDER, find_sclite
from espnet_kd.report.stm_scoring import HESITATIONS, Scorer, kept_words
from tests.corpora import swbd_tree

# Folders that are searched for SCTK's programs.
SCTK = f"{os.environ['PATH']}:{SCTK_FOLDER}"
REPO = Path(__file__).parents[2]
needs_sclite = pytest.mark.skipif(
    find_sclite() is None, reason="sclite is not installed (apt install sctk)"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """data/eval2000 with the files needed for scoring."""
    folder = tmp_path_factory.mktemp("data") / "eval2000"
    swbd_tree.write_eval2000(folder.parent / "audio", folder.parent / "text")
    folder.mkdir()
    for name in ("stm", "glm"):
        shutil.copy(next(folder.parent.rglob(f"*.{name}")), folder / name)
    return folder


HYPOTHESES = {
    "en_4156-A_000025-000105": "he's a cop",
    "en_4156-A_000110-000180": "uh yeah [noise]",
    "en_4156-B_000050-000150": "um the-",
    "en_4156-B_000160-000230": "well gone going",
    "sw_4390-A_000010-000100": "uh-huh that's rarely good",
    "sw_4390-B_000040-000120": "dog's house",
    "sw_4390-B_000140-000250": "i b m is ok then",
}


@needs_sclite
class TestScorer:
    def test_by_hand(self, data):
        found = Scorer(data / "stm", data / "glm")(HYPOTHESES)
        counts = {
            key: row.tolist() for key, row in zip(found["all"].ids, found["all"].counts)
        }
        assert counts == {
            # {HE IS / HE HAS} A COP against HE IS A {POLICE OFFICER / COP}
            "en_4156-A_000025-000105": [0, 0, 0, 4],
            # (%HESITATION) YEAH (O.) (K.): nothing is missed
            "en_4156-A_000110-000180": [0, 0, 0, 4],
            "en_4156-B_000050-000150": [0, 0, 0, 1],
            # GO- is right as GONE
            "en_4156-B_000160-000230": [0, 0, 0, 3],
            # %BCACK THAT IS REALLY GOOD: rarely is wrong
            "sw_4390-A_000010-000100": [1, 0, 0, 5],
            # THE is lost; in the reference DOG'S stays, the hypothesis may be that
            "sw_4390-B_000040-000120": [0, 1, 0, 3],
            # I B M IS O. K., and then too many
            "sw_4390-B_000140-000250": [0, 0, 1, 6],
        }
        assert found["swbd"].totals.tolist() == [1, 1, 1, 14]
        assert found["callhm"].totals.tolist() == [0, 0, 0, 12]
        assert len(found["all"].ids) == 7  # without the ignored one

    def test_missing_utterance(self, data, caplog):
        """Every word of its reference is missing, of alternatives the shortest."""
        some = dict(list(HYPOTHESES.items())[1:])
        found = Scorer(data / "stm", data / "glm")(some)["callhm"]
        assert found.ids[0] == "en_4156-A_000025-000105"
        assert found.counts[0].tolist() == [0, 4, 0, 4]  # HE IS A COP
        assert "1 of 7 segments have no hypothesis" in caplog.text

    def test_unknown_utterance(self, data):
        more = {**HYPOTHESES, "sw_4390-B_000300-000400": "yes"}
        with pytest.raises(ValueError, match="no reference: sw_4390-B_000300-000400"):
            Scorer(data / "stm", data / "glm")(more)

    def test_unknown_calls(self, data, tmp_path):
        stm = tmp_path / "stm"
        stm.write_text("fsh_1 A s 0 1 YES\n")
        with pytest.raises(ValueError, match="1 of 1 segments are not in a subset"):
            Scorer(stm, data / "glm")


def test_unscored_words():
    text = "uh well [noise] Um fra- -ment <unk> uh-huh [laughter] hmm"
    assert kept_words(text) == "well -ment uh-huh hmm"


def test_the_filter_of_the_recipe_leaves_the_same():
    """local/wer_output_filter, in awk, against `kept_words`."""
    words = ["yes", "UH", "[Noise]", "fra-", "-ment", "<unk>", "[laughter]", "uh-huh"]
    words += [*HESITATIONS, "[vocalized-noise]", "oh"]
    lines = [f"id-{n} {word} no" for n, word in enumerate(words)] + ["id-", "uh"]
    done = subprocess.run(
        [REPO / "egs/swbd/asr1/local/wer_output_filter"],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        check=True,
    )
    expected = []
    for line in lines:
        key, *rest = line.split()
        expected.append(f"{key} {kept_words(' '.join(rest))}".rstrip())
    assert done.stdout.splitlines() == expected


def test_a_set_that_nobody_decoded(tmp_path, caplog):
    output = tmp_path / "score.md"
    system = ("--system", "one", str(tmp_path / "exp"))
    assert command.main([*system, "--output", str(output)]) == 0
    assert "nothing is decoded" in caplog.text and not output.exists()


@needs_sclite
class TestCommand:
    def test_table_of_each_subset(self, data, tmp_path):
        text = tmp_path / "text"
        text.write_text("".join(f"{key} {t}\n" for key, t in HYPOTHESES.items()))
        output = tmp_path / "score.md"
        options = ["--data_dir", str(data), "--output", str(output)]
        hyps = ["--hyp", "one", str(text), "--hyp", "two", str(text)]
        command.main([*options, *hyps, "--baseline", "one"])
        table = output.read_text()
        assert re.findall(r"^## (.*)$", table, re.MULTILINE) == [
            "swbd: 3 segments",
            "callhm: 4 segments",
            "all: 7 segments",
        ]
        rates = re.findall(r"^\| (?:one|two)\D* \|\s+([\d.]+) ", table, re.MULTILINE)
        assert rates == ["21.43", "21.43", "0.00", "0.00", "11.54", "11.54"]

    def test_experiments(self, data, tmp_path):
        for name in ("a", "b"):
            folder = tmp_path / name / "decode" / data.name
            folder.mkdir(parents=True)
            lines = (f"{key} {text}\n" for key, text in HYPOTHESES.items())
            (folder / "text").write_text("".join(lines))
        output = tmp_path / "score.md"
        options = ["--data_dir", str(data), "--output", str(output)]
        for name in ("a", "b", "not_decoded"):
            options += ["--system", name, str(tmp_path / name)]
        command.main([*options, "--baseline", "not_decoded"])
        rates = re.findall(
            r"^\| (a|b) +\|\s+([\d.]+) ", output.read_text(), re.MULTILINE
        )
        expected = ["21.43", "0.00", "11.54"]
        assert rates == [(name, rate) for rate in expected for name in "ab"]

    def test_message(self, data, tmp_path):
        text = tmp_path / "text"
        text.write_text("a b\n")
        with pytest.raises(SystemExit, match="score_eval2000: .*no reference: a"):
            command.main(["--data_dir", str(data), "--hyp", "x", str(text)])


def test_without_sclite(data, tmp_path, monkeypatch):
    """Reported before anything is read or aligned, with what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("espnet_kd.report.sclite.SCTK_FOLDER", str(tmp_path))
    message = "score_eval2000: sclite: not found on PATH.*apt install sctk.*to PATH"
    with pytest.raises(SystemExit, match=message):
        command.main(["--data_dir", str(data), "--hyp", "x", "absent"])


@pytest.mark.skipif(
    not (find_sclite() and shutil.which("csrfilt.sh", path=SCTK)),
    reason="SCTK is not installed (apt install sctk)",
)
def test_nist_pipeline_gives_the_same(data, tmp_path):
    """The pipeline of hubscr.pl: csrfilt.sh on stm and ctm, aligned by sclite."""
    segments, hypotheses = conversation(random.Random(2))
    (tmp_path / "stm").write_text("".join(f"{line}\n" for line in segments))
    (tmp_path / "ctm").write_text("".join(ctm(segments, hypotheses)))
    environment = {**os.environ, "PATH": SCTK}
    for name, kind in (("stm", "ref"), ("ctm", "hyp")):
        filtering = ["csrfilt.sh", "-i", name, "-t", kind, "-dh", str(data / "glm")]
        with open(tmp_path / name) as source, open(tmp_path / f"{name}.f", "w") as out:
            subprocess.run(
                filtering, stdin=source, stdout=out, env=environment, check=True
            )
    options = f"-r {tmp_path}/stm.f stm -h {tmp_path}/ctm.f ctm -F -D -o rsum stdout"
    summary = subprocess.run(
        [find_sclite(), *options.split()], capture_output=True, text=True
    ).stdout
    numbers = re.search(r"\| Sum\s*\|\s*(\d+)\s+(\d+)\s*\|([\d\s]+)\|", summary)
    _, sub, deleted, inserted, *_ = map(int, numbers[3].split())
    found = Scorer(tmp_path / "stm", data / "glm")(hypotheses)["all"]
    assert len(found.ids) == int(numbers[1])
    assert found.totals.tolist() == [sub, deleted, inserted, int(numbers[2])]
    assert sub and deleted and inserted


def conversation(rng: random.Random) -> tuple[list[str], dict[str, str]]:
    """Lines of a stm with every convention, and possible hypotheses."""
    words = "he's ok uh-huh gonna dog's that's yeah well-known i b m house".split()
    segments, hypotheses = [], {}
    for call, channel in itertools.product(("en_4156", "sw_4390"), "AB"):
        begin = 1.0
        for _ in range(40):
            end = round(begin + rng.uniform(0.5, 4), 2)
            spoken = rng.choices(words, k=rng.randint(0, 9))
            special = ["(%HESITATION)", "(HOU-)", "{ DOG / CAT }", "{ @ / OK }", "HOU-"]
            marked = [
                rng.choice([*special, f"({word})"]) if rng.random() < 0.15 else word
                for word in spoken
            ]
            output = [w if rng.random() < 0.8 else rng.choice(words) for w in spoken]
            output = [w for w in output if rng.random() < 0.9]
            output += rng.choices(
                [*words, "uh", "[noise]", "fra-"], k=rng.randint(0, 1)
            )
            transcript = " ".join(marked).upper()
            if rng.random() < 0.1:
                transcript = swbd_tree.IGNORED
            else:
                key = utterance_id(f"{call}-{channel}", begin, end)
                hypotheses[key] = " ".join(output)
            times = f"{begin:.2f} {end:.2f}"
            segments.append(
                f"{call} {channel} {call}_{channel} {times} <O> {transcript}"
            )
            begin = round(end + rng.uniform(0, 1), 2)
    return segments, hypotheses


def ctm(segments: list[str], hypotheses: dict[str, str]) -> list[str]:
    """The scored words of each utterance, evenly over its segment."""
    lines = []
    for segment in segments:
        call, channel, _, begin, end, *_ = segment.split()
        key = utterance_id(f"{call}-{channel}", begin, end)
        words = kept_words(hypotheses.get(key, "")).split()
        step = (float(end) - float(begin)) / max(len(words), 1)
        for n, word in enumerate(words):
            start = float(begin) + n * step
            lines.append(f"{call} {channel} {start:.4f} {step:.4f} {word}\n")
    return lines
