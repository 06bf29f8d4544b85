"""WSJ: its transcripts, and manifests from small copies of the distribution."""

import shutil
from pathlib import Path

import lhotse
import numpy as np
import pytest

from espnet_kd.bin import prepare_wsj as command
from espnet_kd.corpora.wsj import SUBSETS, prepare_wsj
from espnet_kd.corpora.wsj_text import non_linguistic, normalize, read_transcripts
from tests.corpora import wsj_tree
from tests.corpora.wsj_tree import SETS

# Names of the disc folders as they occur.
LAYOUTS = {
    "dashes": lambda path: path,
    "underscores": lambda path: path.replace("-", "_", 1),
    "under csr_1 and csr_2_comp": lambda path: (
        f"{'csr_1' if path[:2] == '11' else 'csr_2_comp'}/{path.replace('.', '_', 1)}"
    ),
    "disc 13-16.1 in capitals": lambda path: (
        path.upper() if path.startswith("13-16.1") else path
    ),
    "capitals": str.upper,
    "merged": lambda path: path.partition("/")[2],
    "below wsj1": lambda path: f"corpora/wsj1/{path}",
}


@pytest.mark.parametrize(
    "dot, text",
    [
        # Spoken punctuation, escaped or not, stays as written.
        (r"one \,COMMA two .PERIOD", "ONE ,COMMA TWO .PERIOD"),
        (r"\(LEFT\-PAREN A\. T\. & T\.", "(LEFT-PAREN A. T. & T."),
        # The spellings of Nov'93 and of the CMU dictionary; only whole words.
        (r"ten \%PERCENT %percent", "TEN PERCENT PERCENT"),
        (r"two \.POINT .point", "TWO POINT POINT"),
        (r"so \-\-DASH no-\-DASH", "SO -DASH NO--DASH"),
        # A noise is <NOISE>, even if it touches a word; over a word it is dropped.
        ("[loud_breath] yes[cough]", "<NOISE> <NOISE>"),
        ("[<tap] a [tap>] b", "A B"),
        ("[phone_ring/] a b [/phone_ring]", "A B"),
        # Not a noise by the recipes' rule (no letters, digits or _ alone).
        ("[lip-smack] a", "[LIP-SMACK] A"),
        # Swallowed words are kept; other angle brackets stay.
        (r"<and> <isn\'t> <*in*> <re-do>", "AND ISN'T <*IN*> <RE-DO>"),
        # No words; a period or a tilde of a word stays.
        ("a . b ~", "A B"),
        (r"Mr\. ~PARAGRAPH", "MR. ~PARAGRAPH"),
        # Marks are characters.
        ("*misspoken* !now l:ong", "*MISSPOKEN* !NOW L:ONG"),
        ("  spaced \t out ", "SPACED OUT"),
        ("[noise/] . ~", ""),
    ],
)
def test_text_rules(dot, text):
    assert normalize(dot) == text


def test_non_linguistic():
    texts = ["A <NOISE> B", "<*IN*> <NOISE>", "X[Y"]
    assert non_linguistic(texts) == ["<*IN*>", "<NOISE>"]


def test_transcript_files(tmp_path):
    path = tmp_path / "460c0200.dot"
    path.write_text("One (of) two (460C0201)\n\nThree (460c0202 87.051.870113-01)\r\n")
    assert read_transcripts(path) == {"460c0201": "One (of) two", "460c0202": "Three"}
    path.write_text("One (460c0201)\nTwo (460c02)\n")
    with pytest.raises(ValueError, match=r"460c0200.dot: line 2 .*'Two \(460c02\)'"):
        read_transcripts(path)


def check(manifests: dict, texts: str = "text") -> None:
    """Every utterance of the tree, and no other, with its audio and its text."""
    assert manifests.keys() == SETS.keys()
    for name, utterances in SETS.items():
        recordings = manifests[name]["recordings"]
        supervisions = manifests[name]["supervisions"]
        lhotse.validate_recordings_and_supervisions(recordings, supervisions)
        ids = [u.id for u in utterances]
        assert [r.id for r in recordings] == [s.id for s in supervisions] == ids
        for utterance, recording, segment in zip(utterances, recordings, supervisions):
            assert segment.text == getattr(utterance, texts)
            assert segment.speaker == utterance.id[:3]
            assert segment.duration == recording.duration
            audio = wsj_tree.samples(utterance.id) / 2**15
            assert np.array_equal(recording.load_audio()[0], audio.astype("float32"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    wsj_tree.write_tree(tmp_path, rename=LAYOUTS[layout])
    check(prepare_wsj(tmp_path, tmp_path, num_jobs=2))


def test_two_folders_through_links(tmp_path, monkeypatch):
    """A folder of links to the discs of each corpus; paths relative to the recipe."""
    wsj_tree.write_tree(tmp_path / "discs")
    for disc in (tmp_path / "discs").iterdir():
        corpus = tmp_path / ("wsj0" if disc.name.startswith("11") else "wsj1")
        corpus.mkdir(exist_ok=True)
        (corpus / disc.name).symlink_to(disc)
    monkeypatch.chdir(tmp_path)
    manifests = prepare_wsj("wsj0", "wsj1")
    check(manifests)
    first = next(iter(manifests["train_si284"]["recordings"]))
    assert first.sources[0].source == "wsj0/11-1.1/wsj0/si_tr_s/01i/01ic0201.wv1"


@pytest.mark.skipif(shutil.which("sph2pipe") is None, reason="sph2pipe is not on PATH")
def test_compressed_as_distributed(tmp_path):
    wsj_tree.write_tree(tmp_path, shorten=True)
    check(prepare_wsj(tmp_path, tmp_path))


def test_compressed_without_sph2pipe(tmp_path, monkeypatch):
    wsj_tree.write_tree(tmp_path, shorten=True)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="lhotse install-sph2pipe"):
        prepare_wsj(tmp_path, tmp_path)


def test_lexical_snor(tmp_path):
    """Upper case, without noise and marks, except for the CMU spelling of the dash."""
    wsj_tree.write_tree(tmp_path)
    manifests = prepare_wsj(tmp_path, tmp_path, transcripts="lsn")
    for name, utterances in SETS.items():
        texts = [s.text for s in manifests[name]["supervisions"]]
        assert texts == [u.lsn.replace("--DASH", "-DASH") for u in utterances]


def test_prompts(tmp_path):
    wsj_tree.write_tree(tmp_path)
    manifests = prepare_wsj(tmp_path, tmp_path, transcripts="ptx")
    texts = [s.text for s in manifests["test_eval92"]["supervisions"]]
    assert texts == ["THE MAYOR'S BRIDGE", "WE SHIP TEN BOATS"]
    with pytest.raises(
        ValueError, match="transcripts: 'txt' is not one of dot, lsn, ptx"
    ):
        prepare_wsj(tmp_path, tmp_path, transcripts="txt")


def test_missing_utterances_are_named_or_left_out(tmp_path, capsys):
    wsj_tree.write_tree(tmp_path)
    (tmp_path / "13-1.1/wsj1/si_tr_s/461/461c0201.wv1").unlink()
    for disc in "11-4.1", "11-10.1":
        (tmp_path / disc / "wsj0/transcrp/dots/si_tr_s/02b/02bc0200.dot").unlink()
    with pytest.raises(FileNotFoundError, match="train_si284: 2 utterances lack") as e:
        prepare_wsj(tmp_path, tmp_path)
    assert "the transcript of 02bc0201 (.dot) not found below" in str(e.value)
    manifests = prepare_wsj(tmp_path, tmp_path, partial=True)
    ids = [s.id for s in manifests["train_si284"]["supervisions"]]
    assert ids == ["01ic0201", "01ic0202", "460c0201", "460c0202"]
    assert "train_si284: 2 utterances lack" in capsys.readouterr().out


def test_a_missing_disc_is_named(tmp_path):
    wsj_tree.write_tree(tmp_path)
    shutil.rmtree(tmp_path / "11-13.1")
    with pytest.raises(
        FileNotFoundError, match="tr_s_wv1.ndx: not found below .*discs"
    ):
        prepare_wsj(tmp_path, tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        prepare_wsj(tmp_path / "nowhere", tmp_path)


def test_a_damaged_index_is_named(tmp_path):
    wsj_tree.write_tree(tmp_path)
    index = tmp_path / "13-34.1/wsj1/doc/indices/si_tr_s.ndx"
    index.write_text(index.read_text() + "460c0203\n")
    with pytest.raises(ValueError, match="si_tr_s.ndx: line 6 is not '<disc>:<file>'"):
        prepare_wsj(tmp_path, tmp_path)


class TestCommand:
    def test_data_folders(self, tmp_path, monkeypatch, capsys):
        wsj_tree.write_tree(tmp_path / "corpus")
        monkeypatch.chdir(tmp_path)
        words = "--wsj0_dir corpus --wsj1_dir corpus --check_counts false".split()
        command.main(words)
        for name, utterances in SETS.items():
            lines = Path("data", name, "text").read_text().splitlines()
            assert lines == [f"{u.id} {u.text}" for u in utterances]
            speakers = Path("data", name, "utt2spk").read_text().splitlines()
            assert speakers == [f"{u.id} {u.id[:3]}" for u in utterances]
            manifest = f"data/manifests/{name}_supervisions.jsonl.gz"
            assert len(lhotse.load_manifest(manifest)) == len(utterances)
        assert Path("data/nlsyms.txt").read_text() == "<*IN*>\n<NOISE>\n"
        capsys.readouterr()
        shutil.move("corpus", "elsewhere")
        command.main(words)
        assert "already prepared" in capsys.readouterr().out

    def test_counts_are_checked(self, tmp_path):
        wsj_tree.write_tree(tmp_path / "corpus")
        options = f"--wsj0_dir {tmp_path}/corpus --wsj1_dir {tmp_path}/corpus"
        with pytest.raises(SystemExit) as error:
            command.main([*options.split(), "--output_dir", str(tmp_path / "data")])
        assert "train_si284: 6 utterances, the corpus has 37416" in str(error.value)
        assert "--check_counts false" in str(error.value)
        assert not (tmp_path / "data" / "train_si284").exists()

    def test_published_sizes(self):
        """SI-84 has 7138 utterances, WSJ1's si_tr_s 30278 (Kaldi's recipe)."""
        sizes = {name: subset.size for name, subset in SUBSETS.items()}
        assert sizes == {
            "train_si284": 7138 + 30278,
            "test_dev93": 503,
            "test_eval92": 333,
        }
