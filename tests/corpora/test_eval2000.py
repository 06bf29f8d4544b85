"""eval2000 from a small tree in its layout: segments, texts, scoring."""

import shutil
from pathlib import Path

import pytest
import soundfile

from espnet_kd.corpora.corpus import write_set
from espnet_kd.corpora.eval2000 import (
    Stretch,
    extend,
    plain_words,
    prepare_eval2000,
    read_stm,
    scored,
)
from espnet_kd.data.kaldi import read_table
from tests.corpora import swbd_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("hub5")
    places = folder / "LDC2002S09", folder / "LDC2002T43"
    swbd_tree.write_eval2000(*places)
    return places


def utterance_id(turn: swbd_tree.Turn) -> str:
    times = [f"{round(100 * float(time)):06d}" for time in (turn.begin, turn.end)]
    return f"{turn.call}-{turn.channel}_{'-'.join(times)}"


TURNS = {utterance_id(turn): turn for turn in swbd_tree.TURNS}


@pytest.fixture(scope="module")
def data(tree, tmp_path_factory) -> Path:
    """data/ with the set."""
    data = tmp_path_factory.mktemp("recipe") / "data"
    test = prepare_eval2000(*tree, data / "wav", partial=True)
    write_set(test.recordings, test.supervisions, "eval2000", data)
    return data


class TestSet:
    def test_texts(self, data):
        """A segment that is not scored is not an utterance."""
        assert dict(read_table(data / "eval2000" / "text")) == {
            key: turn.text for key, turn in TURNS.items() if turn.text is not None
        }

    def test_segments_are_extended_at_either_end(self, data):
        """By 0.1 s as in Kaldi's recipe; neighbours share the time between them."""
        rows = dict(read_table(data / "eval2000" / "segments"))
        # 1.05 and 1.10 are 0.05 s apart: each gets half of it.
        assert rows["en_4156-A_000025-000105"] == "en_4156-A 0.15 1.075"
        # The next one, which is not scored, begins at 1.80.
        assert rows["en_4156-A_000110-000180"] == "en_4156-A 1.075 1.8"
        # Not before the beginning, not after the end at 2.6 s.
        assert rows["sw_4390-A_000010-000100"] == "sw_4390-A 0 1.1"
        assert rows["sw_4390-B_000140-000250"] == "sw_4390-B 1.3 2.6"

    def test_audio_of_each_side(self, data):
        for side, location in read_table(data / "eval2000" / "wav.scp"):
            wave = soundfile.read(location, dtype="int16")[0]
            call, channel = side.split("-")
            assert (wave == swbd_tree.samples(call)[:, "AB".index(channel)]).all()

    def test_files_for_scoring(self, tree):
        test = prepare_eval2000(*tree, tree[0] / "wav", partial=True)
        assert test.glm == swbd_tree.GLM
        assert "((" not in test.stm and "ASIDE" not in test.stm
        assert test.stm.count("\n") == len(swbd_tree.TURNS) + 2


class TestStm:
    def test_fields(self, tmp_path):
        path = tmp_path / "stm"
        path.write_text(
            ";; comment\n\n"
            "en_4156 A en_4156_A 357.64 359.64 <O,en,F,en-F>  HE IS {A / B}\n"
            "sw_4390 B sw_4390_B 1.005 2 NO LABEL\n"
            "sw_4390 B sw_4390_B 3 4 <O,sw>\n"
            "sw_4390 B sw_4390_B 5 6 IGNORE_TIME_SEGMENT_IN_SCORING\n"
        )
        first, second, third, last = read_stm(path)
        assert first.id == "en_4156-A_035764-035964"
        assert (first.label, first.transcript) == ("<O,en,F,en-F>", "HE IS {A / B}")
        assert (second.label, second.transcript) == ("", "NO LABEL")
        assert (third.label, third.transcript) == ("<O,sw>", "")
        assert scored([first, second, third, last]) == [first, second, third]

    @pytest.mark.parametrize(
        "line, message",
        [
            ("en_4156 A speaker 1.0\n", "line 1 is not"),
            ("en_4156 A speaker one 2.0 WORD\n", "line 1 is not"),
            ("e A s 1.0 2.0 WORD\n" * 2, "line 2: segment e-A_000100-000200 occurs tw"),
        ],
    )
    def test_damage(self, tmp_path, line, message):
        path = tmp_path / "stm"
        path.write_text(line)
        with pytest.raises(ValueError, match=message):
            read_stm(path)

    @pytest.mark.parametrize(
        "transcript, text",
        [
            ("A { B C / D } E", "a b c e"),
            ("A { @ / B }", "a"),
            ("{ A { B / C } / D } E", "a b e"),
            ("(%HESITATION) (A B) C-", "%hesitation a b c-"),
            ("( %UH ) UH-HUH <COUGH>", "%uh uh-huh"),
            ("{ @ / WELL }", "%hesitation"),
        ],
    )
    def test_plain_words(self, transcript, text):
        assert plain_words(transcript) == text


def test_extension_as_kaldi():
    """The examples at the end of Kaldi's extend_segments.pl, except for their 1 s."""
    lengths = {"A": 10.0, "B": 3.02}
    stretches = {
        "a1": Stretch("A", 0.0, 2.0),
        "a2": Stretch("A", 1.0, 3.0),  # overlap: no change where they meet
        "a3": Stretch("A", 3.1, 4.0),  # 0.1 s between: a half for each
        "b1": Stretch("B", 1.0, 3.0),
    }
    assert extend(stretches, lengths) == {
        "a1": (0.0, 2.0),
        "a2": (1.0, 3.05),
        "a3": (3.05, 4.1),
        "b1": (0.9, 3.02),
    }


def test_segment_behind_the_audio(tree, tmp_path, capsys):
    """It is not an utterance; one that begins before the end of its side is."""
    copy = [shutil.copytree(place, tmp_path / place.name) for place in tree]
    for place, file in zip(copy, ("*.pem", "*.stm")):
        path = next(place.rglob(file))
        # Of 2.6 s of audio; beside the one that follows 1.40 2.50 at once.
        path.write_text(
            path.read_text()
            + "sw_4390 B sw_4390_B 2.50 2.70"
            + (" <O> YES" if file == "*.stm" else "")
            + "\nsw_4390 B sw_4390_B 2.70 3.00"
            + (" <O> NO\n" if file == "*.stm" else "\n")
        )
    test = prepare_eval2000(*copy, tmp_path / "wav", partial=True)
    write_set(test.recordings, test.supervisions, "eval2000", tmp_path / "data")
    rows = dict(read_table(tmp_path / "data" / "eval2000" / "segments"))
    assert rows["sw_4390-B_000250-000270"] == "sw_4390-B 2.5 2.6"
    lost = "sw_4390-B_000270-000300"
    assert lost not in rows and "YES\n" in test.stm and "NO\n" in test.stm
    out = capsys.readouterr().out
    assert f"{lost} is left out: it begins at 2.70 s, its side has only 2.6 s" in out


class TestRefusals:
    def test_number_of_calls(self, tree, tmp_path):
        with pytest.raises(ValueError, match="2 calls, eval2000 has 40"):
            prepare_eval2000(*tree, tmp_path)

    @pytest.mark.parametrize("name", ["hub5e_00.pem", "*.stm", "*.glm"])
    def test_missing_file(self, tree, tmp_path, name):
        copy = [shutil.copytree(place, tmp_path / place.name) for place in tree]
        for place in copy:
            for path in place.rglob(name):
                path.unlink()
        with pytest.raises(FileNotFoundError, match="LDC2002T43 .* EVAL2000_TRANSCR"):
            prepare_eval2000(*copy, tmp_path / "wav", partial=True)

    def test_other_segments(self, tree, tmp_path):
        copy = shutil.copytree(tree[0], tmp_path / "audio")
        path = next(copy.rglob("*.pem"))
        path.write_text(path.read_text().replace("0.25 1.05", "0.25 1.06"))
        with pytest.raises(ValueError, match="differ in 2 segments.*en_4156-A_000025"):
            prepare_eval2000(copy, tree[1], tmp_path / "wav", partial=True)

    def test_damaged_pem(self, tree, tmp_path):
        copy = shutil.copytree(tree[0], tmp_path / "audio")
        path = next(copy.rglob("*.pem"))
        path.write_text(path.read_text() + "en_4156 A\n")
        with pytest.raises(ValueError, match="hub5e_00.pem: line 11 is not"):
            prepare_eval2000(copy, tree[1], tmp_path / "wav", partial=True)
