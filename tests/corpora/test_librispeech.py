"""LibriSpeech's sets, from a small tree in its distributed form."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lhotse import RecordingSet, SupervisionSet
from lhotse.recipes import prepare_librispeech as lhotse_prepare

from espnet_kd.bin import prepare_librispeech
from espnet_kd.corpora.librispeech import PARTS, SETS
from espnet_kd.data.kaldi import cuts_from_kaldi
from espnet_kd.data.validate import validate_kaldi
from tests.corpora.librispeech_tree import write_tree

REPO = Path(__file__).parents[2]
DEV_TEXT = """116-288045-0000 THAT WAS THE FIRST OF THEM
116-288045-0001 SHE BADE HIM GOOD DAY
84-121123-0000 DON'T HE SAID
84-121123-0001 GO
8842-302196-0000 HE BEGAN A CONFUSED COMPLAINT
"""
DEV_SPEAKERS = """116 116-288045-0000 116-288045-0001
84 84-121123-0000 84-121123-0001
8842 8842-302196-0000
"""
UNLABELLED_REFERENCE = """14-208-0000 SHE BADE HIM GOOD DAY
14-208-0001 IT IS NOT MINE
1455-134435-0000 IT IS NOT MINE
20-205-0000 DON'T HE SAID
20-205-0001 GO
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder LibriSpeech/."""
    return write_tree(tmp_path_factory.mktemp("corpus"))


def prepare(corpus: Path, data: Path, *options: str) -> None:
    words = ("--corpus_dir", str(corpus), "--output_dir", str(data), *options)
    prepare_librispeech.main([*words, "--num_jobs", "1"])


@pytest.fixture(scope="module")
def data(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe's data/ folder of the whole tree."""
    folder = tmp_path_factory.mktemp("data")
    prepare(corpus.parent, folder, "--check_counts", "false")
    return folder


def table(path: Path) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in path.read_text().splitlines())


def test_the_parts_are_those_of_the_corpus():
    """281241 + 5567 + 5559 utterances, of which 28539 are the 100 h (openslr.org/12,
    as the Hugging Face hub's card of librispeech_asr counts them)."""
    sizes = {name: sum(PARTS[part] for part in SETS[name]) for name in SETS}
    assert sizes == {
        "train_clean_100": 28539,
        "train_unlabelled_860": 252702,
        "train_960": 281241,
        "dev": 5567,
        "dev_clean": 2703,
        "dev_other": 2864,
        "test_clean": 2620,
        "test_other": 2939,
    }
    assert sizes["test_clean"] + sizes["test_other"] == 5559


def test_sets(data: Path):
    sizes = {name: len(list(cuts_from_kaldi(data / name))) for name in SETS}
    assert sizes == {
        "train_clean_100": 6,
        "train_unlabelled_860": 5,
        "train_960": 11,
        "dev": 5,
        "dev_clean": 3,
        "dev_other": 2,
        "test_clean": 2,
        "test_other": 2,
    }
    for name in SETS:
        assert validate_kaldi(data / name) == []
    assert (data / "dev" / "text").read_text() == DEV_TEXT
    assert (data / "dev" / "spk2utt").read_text() == DEV_SPEAKERS


def test_unlabelled_audio_has_references_instead_of_text(data: Path):
    unlabelled = data / "train_unlabelled_860"
    assert not (unlabelled / "text").exists()
    assert (unlabelled / "text_reference").read_text() == UNLABELLED_REFERENCE
    segments = SupervisionSet.from_file(
        data / "manifests" / "train_unlabelled_860_supervisions.jsonl.gz"
    )
    assert [segment.text for segment in segments] == [None] * 5
    all_texts = table(data / "train_960" / "text")
    known = {
        **table(data / "train_clean_100" / "text"),
        **table(unlabelled / "text_reference"),
    }
    assert all_texts == known


def test_audio_is_the_corpus_own(corpus: Path, data: Path):
    locations = table(data / "train_clean_100" / "wav.scp")
    folder = corpus / "train-clean-100"
    assert set(locations.values()) == {str(path) for path in folder.rglob("*.flac")}
    for name, path in locations.items():
        assert (
            path == f"{folder}/{name.rsplit('-', 1)[0].replace('-', '/')}/{name}.flac"
        )


def test_tables_are_sorted_as_kaldi_sorts(data: Path):
    for path in data.glob("*/utt2spk"):
        for key in ("-k1,1", "-k2,2 -k1,1"):  # by utterance; by speaker
            words = ["sort", "-c", *key.split(), str(path)]
            assert subprocess.run(words, env={"LC_ALL": "C"}).returncode == 0


def test_chosen_parts_make_the_sets_that_they_complete(corpus: Path, tmp_path: Path):
    parts = ("--parts", "train-clean-100", "dev-clean", "dev-other", "test-clean")
    prepare(corpus, tmp_path, "--check_counts", "false", *parts)
    made = {path.parent.name for path in tmp_path.glob("*/wav.scp")}
    assert made == {"train_clean_100", "dev", "dev_clean", "dev_other", "test_clean"}
    with pytest.raises(SystemExit, match="train-clean-360: these parts do not make up"):
        prepare(corpus, tmp_path, "--parts", "train-clean-360")


def test_existing_manifests_replace_the_corpus(
    corpus: Path, data: Path, tmp_path: Path
):
    lhotse_prepare(corpus, output_dir=tmp_path / "manifests")
    manifests = ("--manifest_dir", str(tmp_path / "manifests"))
    prepare(
        tmp_path / "nowhere", tmp_path / "data", "--check_counts", "false", *manifests
    )
    for name in SETS:
        for path in (data / name).iterdir():
            assert (
                tmp_path / "data" / name / path.name
            ).read_text() == path.read_text()
    (tmp_path / "manifests" / "librispeech_supervisions_dev-other.jsonl.gz").unlink()
    with pytest.raises(
        SystemExit, match="supervisions_dev-other.jsonl.gz: no such file"
    ):
        prepare(corpus, tmp_path / "other", *manifests)


def test_manifests_of_missing_audio_are_refused(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(corpus)
    lhotse_prepare(".", dataset_parts="test-clean", output_dir=tmp_path)
    monkeypatch.chdir(tmp_path)
    parts = ("--parts", "test-clean", "--manifest_dir", str(tmp_path))
    with pytest.raises(SystemExit, match="test-clean/61/70968/.*: no such file; "):
        prepare(corpus, tmp_path / "data", *parts)


def test_an_incomplete_corpus_is_refused(corpus: Path, tmp_path: Path):
    with pytest.raises(SystemExit) as stop:
        prepare(corpus, tmp_path)
    assert "train_clean_100: 6 utterances, the corpus has 28539" in stop.value.code
    assert not (tmp_path / ".done").exists()
    with pytest.raises(SystemExit, match="nowhere/train-clean-100: no such folder"):
        prepare(tmp_path / "nowhere", tmp_path)


@pytest.mark.parametrize("fault", ["empty", "no audio"])
def test_a_damaged_part_is_named(fault: str, tmp_path: Path):
    chapter = tmp_path / "LibriSpeech" / "dev-clean" / "84" / "121123"
    chapter.mkdir(parents=True)
    if fault == "no audio":
        (chapter / "84-121123.trans.txt").write_text("84-121123-0000 GO\n")
        (chapter / "84-121123-0000.flac").write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        prepare(tmp_path, tmp_path / "data", "--parts", "dev-clean")
    assert f"{chapter.parents[1]}: " in stop.value.code
    assert "fetch it again" in stop.value.code
    assert ("84-121123-0000.flac" in stop.value.code) == (fault == "no audio")


def test_finished_work_is_not_repeated(
    corpus: Path, data: Path, capsys: pytest.CaptureFixture
):
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    prepare(corpus.parent, data, "--check_counts", "false")
    assert "already prepared" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before


def test_the_text_for_a_language_model(corpus: Path, tmp_path: Path):
    """local/data.sh writes it under the name used in asr.sh's recipes."""
    recipe = REPO / "egs" / "librispeech" / "asr1"
    for name in ("db.sh", "local"):
        (tmp_path / name).symlink_to(recipe / name)
    with gzip.open(tmp_path / "norm.txt.gz", "wt") as text:
        text.write("A B\n\nC\n")
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPO),
        "LIBRISPEECH": str(corpus),
        "LIBRISPEECH_LM_TEXT": "norm.txt.gz",
        "python": sys.executable,
    }
    words = ["local/data.sh", "--check_counts", "false", "--parts", "test-clean"]
    subprocess.run(words, cwd=tmp_path, env=environment, check=True)
    lines = (tmp_path / "data/local/other_text/text").read_text()
    assert lines == "lm-00000001 A B\nlm-00000003 C\n"
    recordings = tmp_path / "data/manifests/test_clean_recordings.jsonl.gz"
    assert len(RecordingSet.from_file(recordings)) == 2
