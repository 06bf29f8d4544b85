"""Switchboard from a small tree in its layout: audio, ids, text, the sets, Fisher."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from lhotse import SupervisionSegment

from espnet_kd.bin import prepare_switchboard as command
from espnet_kd.corpora import telephone
from espnet_kd.corpora.switchboard import limit_repeats, prepare_switchboard
from espnet_kd.corpora.switchboard_text import fisher_text, normalize, read_acronyms
from espnet_kd.data.kaldi import cuts_from_kaldi, read_table
from tests.corpora import swbd_tree

REPO = Path(__file__).parents[2]
RECIPE = REPO / "egs" / "swbd" / "asr1"
OPTIONS = {
    "SWBD": "--audio_dir",
    "SWBD_TRANSCRIPTS": "--transcripts_dir",
    "EVAL2000": "--eval2000_dir",
    "EVAL2000_TRANSCRIPTS": "--eval2000_transcripts_dir",
    "FISHER": "--fisher_dir",
}
# Ids and times as Kaldi's swbd1_data_prep.sh writes them.
LINES = {
    f"{call}-{side}_{100 * line.begin:06.0f}-{100 * line.end:06.0f}": line
    for call, sides in swbd_tree.CALLS.items()
    for side, lines in sides.items()
    for line in lines
    if line.text
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("ldc")
    return {n: Path(p) for n, p in swbd_tree.write_tree(folder).items()}


def words(tree: dict[str, Path], *more: str) -> list[str]:
    named = [word for name, path in tree.items() for word in (OPTIONS[name], str(path))]
    return [*named, "--num_jobs", "2", *more]


@pytest.fixture(scope="module")
def data(tree, tmp_path_factory) -> Path:
    """data/ as made by the command."""
    data = tmp_path_factory.mktemp("recipe") / "data"
    options = ("--output_dir", str(data), "--check_counts", "false", "--num_dev", "3")
    command.main(words(tree, *options))
    return data


class TestSets:
    def test_ids_and_texts(self, data):
        ids = sorted(LINES)
        dev = dict(read_table(data / "train_dev" / "text"))
        train = dict(read_table(data / "train_nodup" / "text"))
        assert list(dev) == ids[:3] and list(train) == ids[3:]
        assert {**dev, **train} == {key: LINES[key].text for key in ids}

    def test_a_side_is_a_speaker_and_a_recording(self, data):
        for name in ("train_dev", "train_nodup"):
            for key, speaker in read_table(data / name / "utt2spk"):
                assert speaker == key[:9]
            for key, segment in read_table(data / name / "segments"):
                assert segment.split()[0] == key[:9]

    def test_segments(self, data):
        rows = dict(read_table(data / "train_nodup" / "segments"))
        assert rows["sw02005-A_000070-000140"] == "sw02005-A 0.7 1.4"
        # The last line of the call ends after its 2.6 s of audio.
        assert rows["sw02005-B_000160-000262"] == "sw02005-B 1.6 2.6"

    def test_audio_of_each_side(self, data):
        """The channel itself, bit by bit, in a file that any tool can read."""
        for key, location in read_table(data / "train_nodup" / "wav.scp"):
            wave, rate = soundfile.read(location, dtype="int16")
            call, side = key.split("-")
            expected = swbd_tree.samples(call)[:, "AB".index(side)]
            assert rate == 8000 and (wave == expected).all()
            assert soundfile.info(location).subtype == "ULAW"

    def test_cuts_can_be_read(self, data):
        cuts = {cut.id: cut for cut in cuts_from_kaldi(data / "train_nodup")}
        wave = cuts["sw02005-A_000140-000210"].load_audio()[0]
        assert len(wave) == 5600

    def test_manifests_and_symbols(self, data):
        assert (data / "manifests" / "train_nodup_supervisions.jsonl.gz").exists()
        symbols = (data / "nlsyms.txt").read_text().split()
        assert symbols == ["[laughter]", "[noise]", "[vocalized-noise]"]

    def test_fisher(self, data):
        text = dict(read_table(data / "local" / "other_text" / "text"))
        assert text == {
            "fe_03_00001-A_000376-000554": "and i generally prefer",
            "fe_03_00001-B_000560-000620": "[laughter] i b m [noise] yeah",
        }

    def test_done_once(self, data, tree, capsys):
        options = ("--output_dir", str(data), "--check_counts", "false")
        command.main(words(tree, *options, "--num_dev", "3"))
        assert capsys.readouterr().out.count("already prepared") == 2  # Fisher too

    def test_done_without_the_variables(self, data):
        """A later call of local/data.sh need not know where the corpora are."""
        shutil.copy(RECIPE / "db.sh", data.parent)
        files = data / ".done", data / "train_dev/text", data / "local/other_text/text"
        before = [file.stat().st_mtime_ns for file in files]
        answer = subprocess.run(
            [RECIPE / "local/data.sh", "--check_counts", "false", "--num_dev", "3"],
            cwd=data.parent,
            env=dict(
                PATH=os.environ["PATH"], PYTHONPATH=str(REPO), python=sys.executable
            ),
            capture_output=True,
            text=True,
        )
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.startswith("data: already prepared")
        assert [file.stat().st_mtime_ns for file in files] == before

    def test_fisher_later(self, tree, tmp_path, capsys):
        """Text for an LM is added to data that are done."""
        options = ("--output_dir", str(tmp_path), "--check_counts", "false")
        plain = {name: path for name, path in tree.items() if name != "FISHER"}
        text = tmp_path / "local" / "other_text" / "text"
        command.main(words(plain, *options, "--num_dev", "3"))
        assert not text.exists()
        command.main(words(tree, *options, "--num_dev", "3"))
        assert f"{tmp_path}: already prepared" in capsys.readouterr().out
        assert len(dict(read_table(text))) == 2

    def test_all_corpora_in_one_folder(self, data, tree, tmp_path):
        """Calls of Hub5 2000 are not Switchboard's; case does not matter."""
        copy = shutil.copytree(tree["SWBD"].parent, tmp_path / "ldc")
        for path in copy.rglob("sw02005.sph"):
            path.rename(path.with_name("SW02005.SPH"))
        one = {name: copy for name in tree}
        options = ("--output_dir", str(tmp_path / "data"), "--check_counts", "false")
        command.main(words(one, *options, "--num_dev", "3"))
        for name in ("train_dev", "train_nodup", "eval2000"):
            for file in ("text", "segments"):
                here = (tmp_path / "data" / name / file).read_text()
                assert here == (data / name / file).read_text()
        assert sorted(telephone.find_calls(copy, "sw0*.sph")) == ["sw02001", "sw02005"]


class TestText:
    @pytest.mark.parametrize(
        "written, text",
        [
            # The examples in the comments of Kaldi's swbd1_map_words.pl.
            ("[LAUGHTER-STORY]", "story"),
            ("[IT'N/ISN'T]", "it'n"),
            ("[LEM[GUINI]-/LINGUINI]", "lem-"),
            ("-[AN]Y", "-y"),
            ("[AN]Y", "-y"),
            ("AB[SOLUTE]-", "ab-"),
            ("AB[SOLUTE]", "ab-"),
            ("EX[SPECIALLY]-/ESPECIALLY]", "ex-"),
            ("{YUPPIEDOM}", "yuppiedom"),
            ("AMMU[N]IT-", "ammu-it-"),
            ("THEM_1", "them"),
            ("them_1's them_1'll", "them's them'll"),
            ("-[40]1K", "-1k"),
            ("-[A]B[OUT]-", "-b-"),
            # Nested and joined.
            ("[laughter-ab[solute]-]", "ab-"),
            ("[laughter-[it'n/isn't]]", "it'n"),
            ("<b_aside>No <E_ASIDE> [Silence]", "no"),
            ("[silence]", ""),
            ("[Noise] [VOCALIZED-NOISE]", "[noise] [vocalized-noise]"),
            ("plain, isn't it", "plain, isn't it"),
        ],
    )
    def test_conventions(self, written, text):
        assert normalize(written, {}) == text

    def test_acronyms(self, tmp_path):
        """IBM is pronounced letter by letter; I, a, hi and am are not."""
        dictionary = tmp_path / "dict"
        dictionary.write_text(swbd_tree.DICTIONARY + "AM ey eh m\nADS ey d iy eh s\n")
        assert read_acronyms(dictionary) == {
            "IBM": "i b m",
            "IBM's": "i b m's",
            "CDs": "c d's",
            "AM": "a m",
            "ADS": "a d s",
        }

    def test_acronyms_keep_their_case(self):
        assert normalize("at ten AM I am", {"AM": "a m"}) == "at ten a m i am"

    def test_unclear_words_of_fisher(self, tmp_path):
        path = tmp_path / "fe_03_00007.txt"
        path.write_text("1 2 A: (( what )) no\n2.00 3.5 B: what [mn]\n# x\n")
        assert list(fisher_text(path)) == [
            ("fe_03_00007-B_000200-000350", "what [noise]")
        ]


class TestRepeats:
    @staticmethod
    def segments(texts: list[str]) -> list[SupervisionSegment]:
        return [
            SupervisionSegment(f"u{n:05d}", "r", 0.0, 1.0, text=text)
            for n, text in enumerate(texts)
        ]

    def test_rare_texts_stay(self):
        segments = self.segments(["yeah"] * 2 + ["no"])
        assert limit_repeats(segments, most=3) == segments

    def test_draws_as_kaldi(self):
        """Its k = (k + 103349) % 71147; kept where k / 71147 < most / n."""
        segments = self.segments(["uh-huh"] * 10 + ["no"] + ["uh-huh"] * 10)
        drawn = [(103349 * n % 71147) / 71147 < 4 / 20 for n in range(1, 21)]
        kept = {s.id for s in limit_repeats(segments, most=4)}
        repeated = [s.id for s in segments if s.text == "uh-huh"]
        assert [name in kept for name in repeated] == drawn
        assert "u00010" in kept and 0 < sum(drawn) < 20


class TestRefusals:
    def prepare(self, tree, tmp_path, **changes):
        places = dict(audio_dir=tree["SWBD"], transcripts_dir=tree["SWBD_TRANSCRIPTS"])
        options = dict(partial=True, dev_size=3)
        return prepare_switchboard(
            wav_dir=tmp_path / "wav", **{**places, **options, **changes}
        )

    def test_number_of_calls(self, tree, tmp_path):
        with pytest.raises(ValueError, match="2 calls, LDC97S62 has 2435 or 2438"):
            self.prepare(tree, tmp_path, partial=False)

    @pytest.mark.parametrize(
        "option, word", [("audio_dir", ".sph"), ("transcripts_dir", "openslr.org/5")]
    )
    def test_missing_part(self, tree, tmp_path, option, word):
        with pytest.raises(FileNotFoundError, match=word):
            self.prepare(tree, tmp_path, **{option: tmp_path})

    def test_missing_dictionary(self, tree, tmp_path):
        copy = shutil.copytree(tree["SWBD_TRANSCRIPTS"], tmp_path / "ms98")
        next(copy.rglob("*dict.text")).unlink()
        with pytest.raises(FileNotFoundError, match="sw-ms98-dict.text"):
            self.prepare(tree, tmp_path, transcripts_dir=copy)

    def test_nothing_left_to_train_on(self, tree, tmp_path):
        with pytest.raises(ValueError, match="none is left for train_nodup"):
            self.prepare(tree, tmp_path, dev_size=4000)

    def test_transcript_behind_the_audio(self, tree, tmp_path):
        copy = shutil.copytree(tree["SWBD_TRANSCRIPTS"], tmp_path / "ms98")
        path = next(copy.rglob("sw2001B*trans.text"))
        path.write_text(path.read_text() + "sw2001B-ms98-b-0009 9.0 9.5 yes\n")
        with pytest.raises(ValueError, match="sw2001B-ms98-b-0009 begins at 9.0 s"):
            self.prepare(tree, tmp_path, transcripts_dir=copy)

    def test_side_without_audio(self, tree, tmp_path):
        calls = telephone.find_calls(tree["SWBD"], "*.sph")
        sides = telephone.recordings({"sw02001": calls["sw02001"]}, tmp_path / "wav")
        with pytest.raises(FileNotFoundError, match="1 sides .* sw02005-A"):
            telephone.require_sides(["sw02001-A", "sw02005-A"], sides, Path("text"))

    def test_cut_off_audio(self, tree, tmp_path):
        copy = shutil.copytree(tree["SWBD"], tmp_path / "audio")
        path = next(copy.rglob("sw02005.sph"))
        path.write_bytes(path.read_bytes()[:9000])
        with pytest.raises(ValueError, match="sw02005.sph"):
            self.prepare(tree, tmp_path, audio_dir=copy)

    def test_compressed_calls_need_sph2pipe(self, tree, tmp_path, monkeypatch):
        copy = shutil.copytree(tree["SWBD"], tmp_path / "audio")
        path = next(copy.rglob("sw02005.sph"))
        plain, packed = b"-s4 ulaw\n", b"-s27 ulaw,embedded-shorten-v2.00\n"
        header, body = path.read_bytes()[:1024], path.read_bytes()[1024:]
        header = header.replace(plain, packed).rstrip(b" ").ljust(1024)[:1024]
        path.write_bytes(header + body)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(FileNotFoundError, match="sph2pipe is not on PATH"):
            self.prepare(tree, tmp_path, audio_dir=copy)

    def test_linked_folders(self, tree, tmp_path):
        for disc in tree["SWBD"].iterdir():
            (tmp_path / disc.name).symlink_to(disc)
        sets = self.prepare(tree, tmp_path, audio_dir=tmp_path)
        assert len(sets["train_dev"]["supervisions"]) == 3

    def test_one_channel(self, tree, tmp_path):
        copy = shutil.copytree(tree["SWBD"], tmp_path / "audio")
        path = next(copy.rglob("sw02005.sph"))
        path.write_bytes(path.read_bytes().replace(b"count -i 2\n", b"count -i 1\n"))
        with pytest.raises(ValueError, match="channel_count is 1"):
            self.prepare(tree, tmp_path, audio_dir=copy)

    def test_message_of_the_command(self, tree, tmp_path):
        with pytest.raises(SystemExit, match="prepare_switchboard: .*2435"):
            command.main(words(tree, "--output_dir", str(tmp_path / "data")))
