"""kd_set on hand-written shards: every filter, weight, id and shape by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource

from espnet_kd.bin import kd_set
from espnet_kd.data.files import write_json
from espnet_kd.targets.hypotheses import (
    Hypothesis,
    posteriors,
    read_cuts,
    wer,
    with_hypotheses,
)
from espnet_kd.targets.kd_set import histogram

RATE = 8000


def make_cut(utt_id, seconds, text=None, nbest=None, start=0.0, of=None):
    """A cut of 8 kHz audio; nbest is {text: probability}, in the search's order."""
    recording = Recording(
        utt_id,
        [AudioSource("file", [0], f"wav/{utt_id}.wav")],
        RATE,
        int((of or seconds) * RATE),
        of or seconds,
    )
    supervision = SupervisionSegment(
        utt_id, utt_id, 0.0, seconds, text=text, speaker=utt_id.split("-")[0]
    )
    cut = MonoCut(
        utt_id, start, seconds, 0, recording=recording, supervisions=[supervision]
    )
    if nbest is None:
        return cut
    scores = [float(np.log(share)) for _, share in nbest]
    return with_hypotheses(
        cut,
        [
            Hypothesis(
                words, [], score, None, p, None if text is None else wer(text, words)
            )
            for (words, _), score, p in zip(nbest, scores, posteriors(scores))
        ],
    )


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """Two labelled and three unlabelled utterances, 2 to 4 s long."""
    monkeypatch.chdir(tmp_path)
    labelled = [
        # 4 words in 2 s; WER 0, 1/4, 2/4
        make_cut(
            "s1-a", 2.0, "a b c d", [("a b c d", 0.5), ("a b c", 0.3), ("a b", 0.2)]
        ),
        # WER 1/2 and 0; the 1-best is wrong
        make_cut("s1-b", 2.0, "a b", [("a c", 0.6), ("a b", 0.4)]),
    ]
    unlabelled = [
        # the first and the last are the same words: posterior 0.4 + 0.2
        make_cut("s2-c", 2.0, None, [("a  b", 0.4), ("a c", 0.4), ("a b", 0.2)]),
        make_cut("s2-d", 2.0, None, [("", 1.0)]),
        # a loop: 20 words in 2 s
        make_cut("s2-e", 2.0, "not looked at", [(" ".join("a" * 20), 1.0)]),
        make_cut("s2-f", 4.0, None, []),
    ]
    CutSet(labelled).to_file("labelled.jsonl")
    CutSet(unlabelled).to_file("unlabelled.jsonl")
    return Path()


def build(*options):
    """Run the command; returns {utterance: (text, weight)} and the stats."""
    words = [part for option in options for part in str(option).split()]
    kd_set.main([*words, "--output_dir", "kd"])
    texts = table("kd/text")
    weights = table("kd/kd_weight")
    assert texts.keys() == weights.keys() == table("kd/wav.scp").keys()
    stats = json.loads(Path("kd/stats.json").read_text())
    return {key: (texts[key], float(weights[key])) for key in texts}, stats


def table(path):
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    keys = [line.split(maxsplit=1)[0] for line in lines]
    assert keys == sorted(keys) and len(set(keys)) == len(keys)
    return {key: line.partition(" ")[2] for key, line in zip(keys, lines)}


def left(stats, group):
    """Targets after each step."""
    return {step: row["targets"] for step, row in stats["steps"][group].items()}


def test_references_and_best_hypotheses(shards):
    found, stats = build("--labelled labelled.jsonl --unlabelled unlabelled.jsonl")
    assert found == {
        "s1-a": ("a b c d", 1.0),
        "s1-b": ("a b", 1.0),
        "s2-c": ("a b", 1.0),
        "s2-e": (" ".join("a" * 20), 1.0),
    }
    assert left(stats, "labelled") == {"references": 2}
    assert left(stats, "unlabelled") == {
        "decoded": 5,
        "merge_texts": 4,
        "drop_empty": 3,
        "nbest": 2,
    }
    decoded, kept = (
        stats["steps"]["unlabelled"][step] for step in ("decoded", "drop_empty")
    )
    assert (decoded["utterances"], kept["utterances"]) == (3, 2)
    assert decoded["hours"] == pytest.approx(6 / 3600)
    assert stats["weight_histogram"]["1.0+"] == stats["targets"] == 4


def test_files_of_the_folder(shards):
    build("--unlabelled unlabelled.jsonl --nbest 2")
    assert table("kd/utt2spk") == {"s2-c": "s2", "s2-c-kd2": "s2", "s2-e": "s2"}
    assert Path("kd/spk2utt").read_text() == "s2 s2-c s2-c-kd2 s2-e\n"
    assert table("kd/wav.scp")["s2-c-kd2"] == "wav/s2-c.wav"
    assert table("kd/utt2num_samples")["s2-c-kd2"] == "16000"
    assert Path("kd/feats_type").read_text() == "raw\n"
    assert not Path("kd/segments").exists()
    cuts = {cut.id: cut for cut in read_cuts("kd/kd_cuts.jsonl.gz")}
    supervision = cuts["s2-c-kd2"].supervisions[0]
    assert supervision.text == "a c" and supervision.id == "s2-c-kd2"
    assert supervision.custom == {
        "kd_weight": 0.5,
        "kd_rank": 2,
        "kd_utterance": "s2-c",
    }
    assert [path.name for path in Path().glob(".kd*")] == []


def test_uniform_weights_over_distinct_texts(shards):
    found, _ = build("--unlabelled unlabelled.jsonl --nbest 3")
    assert found["s2-c"] == ("a b", 0.5) and found["s2-c-kd2"] == ("a c", 0.5)
    assert "s2-c-kd3" not in found


def test_posterior_weights(shards):
    command = "--unlabelled unlabelled.jsonl --nbest 3 --weights posterior"
    found, _ = build(command)
    assert found["s2-c"][1] == pytest.approx(0.6)
    assert found["s2-c-kd2"][1] == pytest.approx(0.4)
    found, _ = build(command, "--posterior_scale 2")
    assert found["s2-c"][1] == pytest.approx(0.36 / 0.52)


def test_error_weights(shards):
    command = (
        "--labelled labelled.jsonl --unlabelled unlabelled.jsonl --nbest 3 "
        "--labelled_targets hypotheses --weights error_weighted"
    )
    found, _ = build(command, "--beta 2")
    e = np.exp
    assert found["s1-a"] == ("a b c d", pytest.approx(1 / 3))
    assert found["s1-a-kd2"] == ("a b c", pytest.approx(e(-2 * 0.25) / 3))
    assert found["s1-a-kd3"] == ("a b", pytest.approx(e(-2 * 0.5) / 3))
    assert found["s1-b"] == ("a c", pytest.approx(e(-2 * 0.5) / 2))
    # Without a reference: the expected WER of "a b" is 1/2 with posterior 0.4.
    assert found["s2-c"] == ("a b", pytest.approx(e(-2 * 0.4 / 2) / 2))
    assert found["s2-c-kd2"] == ("a c", pytest.approx(e(-2 * 0.6 / 2) / 2))

    assert (
        build(command, "--beta 0")[0]
        == build(command.replace("error_weighted", "uniform"))[0]
    )
    found, _ = build(command, "--beta 2 --posterior_scale 1")
    assert found["s1-a-kd2"][1] == pytest.approx(0.3 * e(-0.5))


def test_both_targets_merge_with_the_reference(shards):
    found, _ = build("--labelled labelled.jsonl --labelled_targets both --nbest 2")
    assert found == {
        "s1-a": ("a b c d", 1.5),
        "s1-a-kd2": ("a b c", 0.5),
        "s1-b": ("a b", 1.5),
        "s1-b-kd2": ("a c", 0.5),
    }


def test_filters(shards):
    command = (
        "--labelled labelled.jsonl --unlabelled unlabelled.jsonl --nbest 3 "
        "--labelled_targets hypotheses"
    )
    found, stats = build(command, "--max_wer 0.25")
    assert found["s1-a"] == ("a b c d", 0.5) and found["s1-a-kd2"] == ("a b c", 0.5)
    assert found["s1-b"] == ("a b", 1.0)  # its rank is 2, its id is the utterance's
    assert left(stats, "labelled")["max_wer"] == 3
    assert "max_wer" not in left(stats, "unlabelled")

    found, stats = build(command, "--max_expected_wer 0.2")
    assert found["s2-c"] == ("a b", 1.0) and "s2-c-kd2" not in found
    assert left(stats, "unlabelled")["max_expected_wer"] == 2
    assert left(stats, "labelled")["nbest"] == 5

    found, _ = build(command, "--min_posterior 0.5")
    assert found["s2-c"] == ("a b", 1.0)  # 0.4 + 0.2
    assert found["s1-a"] == ("a b c d", 1.0) and found["s1-b"] == ("a c", 1.0)
    assert "s1-a-kd2" not in found

    # 1-best words per second: 2, 1, 1 and 10; the empty ones do not count.
    found, stats = build(command, "--max_length_ratio 2 --min_length_ratio 0.9")
    assert stats["median_words_per_second"] == pytest.approx(1.5)
    assert set(found) == {"s1-a", "s1-a-kd2"}  # 2 and 1.5 words per second
    assert left(stats, "labelled")["min_length_ratio"] == 2
    assert left(stats, "unlabelled")["max_length_ratio"] == 0


def test_pseudo_label_wer(shards, capsys):
    Path("truth").write_text("s2-c a b\ns2-d a b c\ns2-e a\n")
    _, stats = build(
        "--unlabelled unlabelled.jsonl --reference_text truth --max_length_ratio 1"
    )
    # before: 0 + 3 + 19 errors of 6 words; after: s2-c alone
    assert stats["pseudo_label_wer"] == {"before": pytest.approx(22 / 6), "after": 0.0}
    printed = capsys.readouterr().out
    assert "max_length_ratio" in printed and "before the filters: 366.67%" in printed


def test_same_options_are_skipped_others_rebuild(shards, capsys):
    command = "--unlabelled unlabelled.jsonl"
    build(command)
    before = Path("kd/text").stat().st_mtime_ns
    build(command)
    assert Path("kd/text").stat().st_mtime_ns == before
    assert "exists already" in capsys.readouterr().out
    found, _ = build(command, "--nbest 2")
    assert "s2-c-kd2" in found
    cuts = list(read_cuts("unlabelled.jsonl"))[:1]
    CutSet(cuts).to_file("unlabelled.jsonl")
    assert set(build(command, "--nbest 2")[0]) == {"s2-c", "s2-c-kd2"}


def test_faults_leave_the_old_folder(shards):
    command = "--unlabelled unlabelled.jsonl"
    old, _ = build(command)
    for options, message in [
        (f"{command} unlabelled.jsonl", "s2-c occurs twice"),
        (f"{command} --max_length_ratio 0", "no target is left"),
        ("--labelled unlabelled.jsonl", "s2-c has no reference"),
        (f"{command} --min_posterior -1", "min_posterior=-1"),
        (f"{command} --nbest 0", "nbest=0"),
        (f"{command} --shape_dir shapes", "needs --token_list"),
        ("", "give --labelled"),
    ]:
        with pytest.raises(SystemExit, match=message):
            build(options)
    assert table("kd/text") == {key: text for key, (text, _) in old.items()}
    assert sorted(path.name for path in Path().iterdir()) == [
        "kd",
        "labelled.jsonl",
        "unlabelled.jsonl",
    ]
    Path("foreign").mkdir()
    Path("foreign/file").touch()
    with pytest.raises(SystemExit, match="foreign: exists and was not made by kd_set"):
        kd_set.main(["--unlabelled", "unlabelled.jsonl", "--output_dir", "foreign"])


def test_parts_of_recordings_are_refused(shards):
    cut = make_cut("s3-x", 1.0, None, [("a", 1.0)], start=0.5, of=3.0)
    CutSet([cut]).to_file("part.jsonl")
    with pytest.raises(
        SystemExit, match="s3-x is a part of recording.*asr.sh --stage 3"
    ):
        build("--unlabelled part.jsonl")


def test_shards_of_two_teachers_are_refused(shards):
    cuts = list(read_cuts("unlabelled.jsonl"))
    for number, beam in [(1, 4), (2, 5)]:
        CutSet(cuts[2 * number - 2 : 2 * number]).to_file(f"{number}.jsonl")
        write_json(
            f"{number}.fingerprint.json",
            {
                "inference": {"beam_size": beam},
                "utterances": 2,
                "utterance_ids": number,
            },
        )
    with pytest.raises(SystemExit, match=r"2.jsonl: inference.beam_size: 4 there, 5"):
        build("--unlabelled 1.jsonl 2.jsonl")
    _, stats = build("--unlabelled 1.jsonl")
    assert stats["options"]["teachers"]["unlabelled"] == {"inference": {"beam_size": 4}}
    write_json("1.fingerprint.json", {"utterances": 3})
    with pytest.raises(SystemExit, match="1.jsonl: holds 2 of 3 utterances"):
        build("--unlabelled 1.jsonl --nbest 2")


def test_histogram():
    counts = histogram([0.05, 0.1, 0.3, 0.99, 1.0, 1.5])
    assert [counts[name] for name in ("0.0-", "0.1-", "0.3-", "0.9-", "1.0+")] == [
        1,
        1,
        1,
        1,
        2,
    ]
    assert sum(counts.values()) == 6


def test_shapes_equal_those_of_collect_stats(tmp_path, monkeypatch):
    """Stock ESPnet reads the folder and counts the same shapes."""
    monkeypatch.chdir(tmp_path)
    Path("wav").mkdir()
    rng = np.random.default_rng(0)
    cuts = []
    for number, seconds in enumerate([0.5, 0.8125, 0.625]):
        cut = make_cut(
            f"s1-{number}",
            seconds,
            None,
            [("a b", 0.5), ("ab <n> z c", 0.3), ("c  c", 0.2)],
        )
        soundfile.write(
            f"wav/{cut.id}.wav", 0.1 * rng.standard_normal(cut.num_samples), RATE
        )
        cuts.append(cut)
    CutSet(cuts).to_file("decoded.jsonl")
    tokens = ["<blank>", "<unk>", "<n>", "<space>", "a", "b", "c", "<sos/eos>"]
    Path("tokens.txt").write_text("\n".join(tokens) + "\n")
    Path("nlsyms").write_text("<n>\n")
    tokenization = (
        "--token_type char --token_list tokens.txt --bpemodel none --cleaner none "
        "--g2p none --non_linguistic_symbols nlsyms"
    )
    found, _ = build(
        f"--unlabelled decoded.jsonl --nbest 3 --shape_dir shapes {tokenization}"
    )
    assert len(found) == 9

    data = " ".join(
        f"--{part}_data_path_and_name_and_type kd/{file} "
        f"--{part}_shape_file kd/wav.scp"
        for part in ("train", "valid")
        for file in ("wav.scp,speech,sound", "text,text,text")
    )
    # kd_weight is read as ESPnet's text_float with them.
    data += " --train_data_path_and_name_and_type kd/kd_weight,kd_weight,text_float"
    data += " --valid_data_path_and_name_and_type kd/kd_weight,kd_weight,text_float"
    command = (
        f"{sys.executable} -m espnet2.bin.asr_train --collect_stats true --ngpu 0 "
        f"--output_dir stats {tokenization} --use_preprocessor true {data} "
        "--allow_variable_data_keys true --batch_type unsorted --batch_size 4 "
        "--num_workers 0 --frontend_conf fs=8k --encoder transformer "
        "--encoder_conf num_blocks=1 "
        "--encoder_conf output_size=8 --encoder_conf attention_heads=2 "
        "--encoder_conf linear_units=8 --decoder rnn --decoder_conf hidden_size=8"
    )
    done = subprocess.run(command.split(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    size = len(tokens)
    stats = Path("stats/train")
    speech = sorted((stats / "speech_shape").read_text().splitlines())
    text = sorted((stats / "text_shape").read_text().splitlines())
    assert Path("shapes/speech_shape").read_text().splitlines() == speech
    assert Path("shapes/text_shape.char").read_text().splitlines() == [
        f"{line},{size}" for line in text  # as appended by stage 10 of asr.sh
    ]
    assert text[1] == "s1-0-kd2 8"  # a b <space> <n> <space> <unk> <space> c
    assert len((stats / "kd_weight_shape").read_text().splitlines()) == 9
