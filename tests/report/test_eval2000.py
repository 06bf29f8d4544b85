"""Alternatives, optional words and fragments; eval2000 by its stm and glm; sclite."""

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
from espnet_kd.report.alternatives import errors, parse
from espnet_kd.report.eval2000 import HESITATIONS, Scorer, kept_words
from espnet_kd.report.sclite import SCTK_FOLDER, find_sclite
from espnet_kd.report.scoring import sclite_counts
from tests.corpora import swbd_tree

REPO = Path(__file__).parents[2]
needs_sclite = pytest.mark.skipif(find_sclite() is None, reason="sclite is not there")


class TestAlternatives:
    @pytest.mark.parametrize(
        "reference, hypothesis, expected",
        [  # substitutions, deletions, insertions, reference words
            ("a b c", "a x c", (1, 0, 0, 3)),
            ("a b c", "a c", (0, 1, 0, 3)),
            ("a c", "a b c", (0, 0, 1, 2)),
            ("", "", (0, 0, 0, 0)),
            ("", "a", (0, 0, 1, 0)),
            ("A b", "a B", (0, 0, 0, 2)),
            # Of alternatives the one that fits best, with its own length.
            ("a { b / c d }", "a c d", (0, 0, 0, 3)),
            ("a { b / c d }", "a b", (0, 0, 0, 2)),
            ("a { b / @ }", "a", (0, 0, 0, 1)),
            ("a { b / { c / d e } } f", "a d e f", (0, 0, 0, 4)),
            ("he is", "{he is / he has}", (0, 0, 0, 2)),
            ("that is", "{that's / that is / that has} x", (0, 0, 1, 2)),
            # An optional word: right or absent is correct, another word is not.
            ("a (b) c", "a c", (0, 0, 0, 3)),
            ("a (b) c", "a b c", (0, 0, 0, 3)),
            ("a (b) c", "a x c", (1, 0, 0, 3)),
            # A fragment is right where a word begins or ends so.
            ("hou- a", "house a", (0, 0, 0, 2)),
            ("-use a", "house a", (0, 0, 0, 2)),
            ("house a", "hou- a", (0, 0, 0, 2)),
            ("hou- a", "mouse a", (1, 0, 0, 2)),
            ("(hou-) a", "a", (0, 0, 0, 2)),
        ],
    )
    def test_by_hand(self, reference, hypothesis, expected):
        assert errors(parse(reference), parse(hypothesis)) == expected

    def test_best_of_all_readings(self):
        """Against every reading of both sides and the textbook recursion."""
        rng = random.Random(5)
        for _ in range(200):
            sides = [[choices(rng) for _ in range(rng.randint(0, 4))] for _ in "rh"]
            texts = [" ".join(slot_text(slot) for slot in side) for side in sides]
            readings = [
                [" ".join(r).split() for r in itertools.product(*side)]
                for side in sides
            ]
            least = min(weighted(r, h) for r in readings[0] for h in readings[1])
            s, d, i, _ = errors(parse(texts[0]), parse(texts[1]))
            assert 4 * s + 3 * (d + i) == least, texts

    @pytest.mark.parametrize("text", ["a } b", "{ a / b", "a / b"])
    def test_braces_that_do_not_match(self, text):
        with pytest.raises(ValueError, match="[{]"):
            parse(text)


def choices(rng: random.Random) -> list[str]:
    """A slot: the readings of one place."""
    words = [rng.choice("abc") for _ in range(3)]
    return rng.choice(
        [words[:1], words[:2], [words[0], ""], [f"{words[0]} {words[1]}", words[2]]]
    )


def slot_text(slot: list[str]) -> str:
    alternatives = " / ".join(reading or "@" for reading in slot)
    return alternatives if len(slot) == 1 else f"{{ {alternatives} }}"


def weighted(ref: list[str], hyp: list[str]) -> int:
    """Edit distance with sclite's weights 4, 3 and 3."""
    row = [3 * j for j in range(len(hyp) + 1)]
    for i, r in enumerate(ref, 1):
        above, row = row, [3 * i]
        for j, h in enumerate(hyp, 1):
            row.append(min(above[j] + 3, row[j - 1] + 3, above[j - 1] + 4 * (r != h)))
    return row[-1]


@needs_sclite
def test_sclite_counts_alternatives_alike():
    """Words, fragments, optional words and alternatives at random."""
    rng = random.Random(11)
    words = "a b c house hou- -se (uh) (b) (hou-) { a / b c } { a / @ }".split(" ")
    tokens = [*words[:9], "{ a / b c }", "{ c / (uh) b }", "{ house / hou- }"]
    pairs = []
    for _ in range(500):
        ref = rng.choices([*tokens, "{ a / @ }"], k=rng.randint(1, 8))
        hyp = [t for t in ref if rng.random() < 0.8 and t != "{ a / @ }"]
        hyp = [t if rng.random() < 0.8 else rng.choice(tokens) for t in hyp]
        pairs.append((" ".join(ref), " ".join(hyp)))
    theirs = sclite_counts(*map(list, zip(*pairs)), "-F", "-D").tolist()
    assert [list(errors(parse(r), parse(h))) for r, h in pairs] == theirs


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """data/eval2000 with the files that scoring reads."""
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


class TestScorer:
    @pytest.mark.parametrize(
        "aligner", ["own", pytest.param("sclite", marks=needs_sclite)]
    )
    def test_by_hand(self, data, aligner):
        found = Scorer(data / "stm", data / "glm", aligner)(HYPOTHESES)
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
        assert len(found["all"].ids) == 7  # the one that is ignored is not there

    def test_missing_utterance(self, data, caplog):
        """Every word of its reference is lost, of alternatives the shortest."""
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
        with pytest.raises(ValueError, match="1 of 1 segments belong to no subset"):
            Scorer(stm, data / "glm")


def test_what_is_not_scored():
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
        output.unlink()
        command.main([*options, "--inference_tag", "other"])
        assert not output.exists()

    def test_message(self, data, tmp_path):
        text = tmp_path / "text"
        text.write_text("a b\n")
        with pytest.raises(SystemExit, match="score_eval2000: .*no reference: a"):
            command.main(["--data_dir", str(data), "--hyp", "x", str(text)])


@needs_sclite
@pytest.mark.skipif(
    shutil.which("csrfilt.sh", path=SCTK_FOLDER) is None, reason="SCTK is not installed"
)
def test_nist_pipeline_gives_the_same(data, tmp_path):
    """What hubscr.pl runs: csrfilt.sh on stm and ctm, which sclite aligns."""
    segments, hypotheses = conversation(random.Random(2))
    (tmp_path / "stm").write_text("".join(f"{line}\n" for line in segments))
    (tmp_path / "ctm").write_text("".join(ctm(segments, hypotheses)))
    environment = {**os.environ, "PATH": f"{SCTK_FOLDER}:{os.environ['PATH']}"}
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
    """Lines of a stm with every convention, and what a recogniser might say."""
    words = "he's ok uh-huh gonna dog's that's yeah well-known i b m house".split()
    segments, hypotheses = [], {}
    for call, channel in itertools.product(("en_4156", "sw_4390"), "AB"):
        begin = 1.0
        for _ in range(40):
            end = round(begin + rng.uniform(0.5, 4), 2)
            said = rng.choices(words, k=rng.randint(0, 9))
            special = ["(%HESITATION)", "(HOU-)", "{ DOG / CAT }", "{ @ / OK }", "HOU-"]
            marked = [
                rng.choice([*special, f"({word})"]) if rng.random() < 0.15 else word
                for word in said
            ]
            heard = [w if rng.random() < 0.8 else rng.choice(words) for w in said]
            heard = [w for w in heard if rng.random() < 0.9]
            heard += rng.choices([*words, "uh", "[noise]", "fra-"], k=rng.randint(0, 1))
            transcript = " ".join(marked).upper()
            if rng.random() < 0.1:
                transcript = swbd_tree.IGNORED
            else:
                key = utterance_id(f"{call}-{channel}", begin, end)
                hypotheses[key] = " ".join(heard)
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
