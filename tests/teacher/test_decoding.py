"""teacher_decode on real tiny ESPnet models: stock searches, shards, resume."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from espnet_kd.bin import teacher_decode
from espnet_kd.data.kaldi import cuts_from_kaldi
from espnet_kd.models.config import read_config, task_of
from espnet_kd.models.espnet_versions import (
    decodes_batches,
    default_config,
    installed_version,
)
from espnet_kd.targets import fingerprint as fp
from espnet_kd.targets.hypotheses import (
    Hypothesis,
    SearchResult,
    hypotheses_of,
    read_cuts,
)
from espnet_kd.targets.shards import (
    check_cuts,
    cut_torn_line,
    select_cuts,
    summarise,
    to_hypotheses,
)
from espnet_kd.teacher.decoding import (
    TeacherDecoder,
    check_options,
    merge_duplicates,
    read_options,
    sampling_rate,
)
from tests.starts import environment
from tests.teacher.conftest import write_model

KINDS = ["attention", "transducer", "asr_transducer"]
BEAM = {"beam_size": 4}


def stock_nbest(kind, model, samples, nbest, **lm):
    """(text, token ids, score) of stock Speech2Text, used as its own docs show."""
    from espnet2.bin import asr_inference, asr_transducer_inference

    if kind == "asr_transducer":
        stock = asr_transducer_inference.Speech2Text(
            model.config, model.checkpoint, nbest=nbest, **BEAM
        )
        found = stock.hypotheses_to_results(stock(samples))
    else:
        conf = dict(transducer_conf={"nbest": nbest}) if kind == "transducer" else {}
        stock = asr_inference.Speech2Text(
            model.config, model.checkpoint, nbest=nbest, **BEAM, **conf, **lm
        )
        found = stock(samples)
    return [(text, ids, hyp) for text, _, ids, hyp in found]


def decode(tmp_path, data_dir, model, *more, out="out.jsonl", batch=1):
    """Run the command in this process; returns the shard."""
    config = tmp_path / "decode.yaml"
    options = dict(BEAM, batch_size=batch)
    config.write_text(yaml.safe_dump(options), encoding="utf-8")
    shard = tmp_path / out
    teacher_decode.main(
        f"--data_dir {data_dir} --teacher_config {model.config} "
        f"--teacher_model_file {model.checkpoint} --inference_config {config} "
        f"--output_file {shard}".split() + [str(each) for each in more]
    )
    return shard


@pytest.mark.parametrize("kind", KINDS)
def test_nbest_equals_the_stock_search(kind, models, data_dir, tmp_path, capsys):
    shard = decode(tmp_path, data_dir, models[kind], "--nbest", 4)
    cuts = {cut.id: cut for cut in read_cuts(shard)}
    assert len(cuts) == 6
    utt_id = "spk1-utt3"
    samples, _ = soundfile.read(data_dir / f"{utt_id}.wav", dtype="float32")
    expected: dict[tuple, list] = {}
    for text, ids, hyp in stock_nbest(kind, models[kind], samples, 4):
        expected.setdefault((text, *ids), []).append(float(hyp.score))
    found = hypotheses_of(cuts[utt_id])

    assert [(each.text, *each.token_ids) for each in found] == list(expected)
    if kind == "attention":
        assert len(found) == 4
    # Equal tokens through other alignments are one hypothesis: probabilities add.
    scores = [np.logaddexp.reduce(each) for each in expected.values()]
    assert [each.score for each in found] == pytest.approx(scores, abs=1e-4)
    share = np.exp(scores) / np.exp(scores).sum()
    assert [each.posterior for each in found] == pytest.approx(share, abs=1e-4)

    assert cuts[utt_id].supervisions[0].text == "a bc"
    assert all(each.wer is not None for each in found)
    assert hypotheses_of(cuts["spk0-short"]) == []
    printed = capsys.readouterr().out
    assert "6 utterances" in printed and "1 without hypothesis" in printed


def test_unlabelled_segments_and_key_file(models, data_dir, tmp_path):
    """Segments are respected, ids come from the key file, WER needs a text."""
    folder = tmp_path / "segments"
    folder.mkdir()
    wav = data_dir / "spk0-utt4.wav"
    (folder / "wav.scp").write_text(f"rec {wav}\n")
    (folder / "segments").write_text("s-1 rec 0.1 0.6\ns-2 rec 0.2 0.8\n")
    (folder / "utt2spk").write_text("s-1 s\ns-2 s\n")
    keys = tmp_path / "keys"
    keys.write_text("s-2 more columns\n")
    shard = decode(
        tmp_path, folder, models["attention"], "--key_file", keys, "--nbest", 2
    )
    (cut,) = read_cuts(shard)
    samples, rate = soundfile.read(wav, dtype="float32")
    part = samples[int(0.2 * rate) : int(0.8 * rate)]
    stock = stock_nbest("attention", models["attention"], part, 2)
    assert cut.id == "s-2"
    assert [each.text for each in hypotheses_of(cut)] == [text for text, _, _ in stock]
    assert [each.wer for each in hypotheses_of(cut)] == [None, None]
    assert summarise(shard).wer is None


def test_lm_fusion(models, data_dir, tmp_path):
    """The LM reaches the search, its score is stored, and it is in the fingerprint."""
    from espnet2.tasks.lm import LMTask

    config = default_config(LMTask)
    tokens = read_config(models["attention"].config)["token_list"]
    config.update(token_list=tokens, token_type="char", lm_conf=dict(unit=8, nlayers=1))
    args = argparse.Namespace(**config)
    torch.manual_seed(1)
    torch.save(LMTask.build_model(args).state_dict(), tmp_path / "lm.pth")
    (tmp_path / "lm.yaml").write_text(yaml.safe_dump(vars(args)), encoding="utf-8")
    lm = dict(
        lm_train_config=str(tmp_path / "lm.yaml"), lm_file=str(tmp_path / "lm.pth")
    )
    options = [part for key, value in lm.items() for part in (f"--{key}", value)]
    keys = tmp_path / "keys"
    keys.write_text("spk1-utt1\n")
    more = ["--key_file", keys, "--nbest", 3]
    shard = decode(tmp_path, data_dir, models["attention"], *more, *options)

    (cut,) = read_cuts(shard)
    samples, _ = soundfile.read(data_dir / "spk1-utt1.wav", dtype="float32")
    stock = stock_nbest("attention", models["attention"], samples, 3, **lm)
    found = hypotheses_of(cut)
    assert [each.token_ids for each in found] == [ids for _, ids, _ in stock]
    expected = [float(hyp.scores["lm"]) for _, _, hyp in stock]
    assert [each.lm_score for each in found] == pytest.approx(expected)
    with pytest.raises(SystemExit, match="lm: [0-9a-f]{64} there, None now"):
        decode(tmp_path, data_dir, models["attention"], *more)


def test_kill_and_resume_gives_the_same_file(models, data_dir, tmp_path, monkeypatch):
    """SIGKILL in the middle, then an incomplete line: same file as uninterrupted."""
    monkeypatch.chdir(tmp_path)
    Path("train").mkdir()
    rng = np.random.default_rng(1)
    names = [f"utt{number:03d}" for number in range(24)]
    for name in names:
        soundfile.write(f"train/{name}.wav", 0.1 * rng.standard_normal(9600), 16000)
    lines = [f"{name} train/{name}.wav\n" for name in names]
    Path("train/wav.scp").write_text("".join(lines))
    model, train = models["transducer"], Path("train")
    whole = decode(Path(), train, model, "--nbest", 3, out="whole.jsonl")
    assert str(tmp_path) not in whole.read_text()  # relative paths stay relative

    command = (
        f"{sys.executable} -m espnet_kd.bin.teacher_decode --data_dir train --nbest 3 "
        f"--teacher_config {model.config} --teacher_model_file {model.checkpoint} "
        "--inference_config decode.yaml --output_file killed.jsonl"
    )
    process = subprocess.Popen(
        command.split(), env=environment(), stderr=subprocess.DEVNULL
    )
    killed = Path("killed.jsonl")
    while process.poll() is None:
        if killed.is_file() and killed.read_bytes().count(b"\n") >= 3:
            process.send_signal(signal.SIGKILL)
            process.wait()
        time.sleep(0.002)
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    cut_torn_line(killed)
    content = killed.read_bytes()
    done = content.count(b"\n")
    assert 3 <= done < len(names)
    assert whole.read_bytes().startswith(content)

    with pytest.raises(ValueError, match=f"holds {done} of 24 utterances"):
        fp.common_part([killed])
    killed.write_bytes(
        whole.read_bytes()[: len(content) + 200]
    )  # torn in line done + 1
    decode(Path(), train, model, "--nbest", 3, out="killed.jsonl")
    assert killed.read_bytes() == whole.read_bytes()
    assert fp.common_part([killed, whole])["inference"] == {
        "beam_size": 4,
        "nbest": 3,
        "transducer_conf": {"nbest": 3},
    }

    def no_teacher(*_):
        raise AssertionError("a finished shard needs no teacher")

    monkeypatch.setattr(teacher_decode, "load_decoder", no_teacher)
    before = killed.stat().st_mtime_ns
    decode(Path(), train, model, "--nbest", 3, out="killed.jsonl")
    assert killed.stat().st_mtime_ns == before


@pytest.fixture
def batches() -> None:
    if not decodes_batches():
        pytest.skip(f"ESPnet {installed_version()} decodes no batches")


@pytest.mark.usefixtures("batches")
@pytest.mark.parametrize("kind", ["attention", "convolving"])
def test_batches_are_decoded_as_single_utterances(
    kind, models, data_dir, tmp_path, capsys
):
    """All but one of equal length, including short ones, and more than one batch."""
    model = models["attention"]
    if kind == "convolving":  # ESPnet lets it read padding
        model = write_model(tmp_path / "model", kind)
    alone = decode(tmp_path, data_dir, model, "--nbest", 4)
    together = tmp_path / "together.jsonl"
    for size in (4, 50):
        together.unlink(missing_ok=True)
        fp.fingerprint_path(together).unlink(missing_ok=True)
        decode(tmp_path, data_dir, model, "--nbest", 4, out=together.name, batch=size)
        for one, other in zip(read_cuts(alone), read_cuts(together), strict=True):
            assert one.id == other.id
            lists = hypotheses_of(one), hypotheses_of(other)
            texts, scores, ids = (
                [[getattr(h, field) for h in each] for each in lists]
                for field in ("text", "score", "token_ids")
            )
            assert texts[0] == texts[1] and ids[0] == ids[1]
            assert scores[0] == pytest.approx(scores[1], abs=1e-4)
        assert "1 without hypothesis" in capsys.readouterr().out.splitlines()[-1]

    # A job may resume with another batch_size.
    content = together.read_bytes()
    together.write_bytes(b"".join(content.splitlines(True)[:3])[:-5])
    decode(tmp_path, data_dir, model, "--nbest", 4, out=together.name, batch=2)
    assert [c.id for c in read_cuts(together)] == [c.id for c in read_cuts(alone)]


@pytest.mark.usefixtures("batches")
def test_a_short_utterance_does_not_break_its_batch(models):
    """0.05 s are enough samples for a frame, but not enough frames to subsample."""
    model = models["attention"]
    decoder = TeacherDecoder(*model, dict(BEAM, nbest=2, batch_size=8))
    rng = np.random.default_rng(2)
    seconds = [0.6, 0.05, 0.9, 0.0, 0.55, 0.3]
    waves = [
        0.1 * rng.standard_normal(int(16000 * s)).astype(np.float32) for s in seconds
    ]
    found = decoder.decode(waves)
    assert [len(each) for each in found] == [2, 0, 2, 0, 2, 2]
    for results, samples in zip(found, waves):
        single = decoder(samples)
        assert [r.token_ids for r in results] == [r.token_ids for r in single]
    assert decoder.decode([]) == []


@pytest.mark.usefixtures("batches")
def test_searches_without_batching_are_refused(models):
    options = dict(BEAM, time_sync=True, batch_size=2)
    message = "inference_config: BeamSearchTimeSync with batching is not yet supported"
    with pytest.raises(ValueError, match=message):
        TeacherDecoder(*models["attention"], options)


def test_another_fingerprint_is_refused(models, data_dir, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("spk0-utt0\n")
    attention = models["attention"]
    shard = decode(tmp_path, data_dir, attention, "--key_file", keys, "--nbest", 2)
    content = shard.read_bytes()
    with pytest.raises(SystemExit, match=r"inference\.nbest: 2 there, 3 now"):
        decode(tmp_path, data_dir, attention, "--key_file", keys, "--nbest", 3)
    with pytest.raises(SystemExit, match="teacher_model: [0-9a-f]{64} there"):
        decode(tmp_path, data_dir, models["transducer"], "--key_file", keys)
    keys.write_text("spk0-utt0\nspk1-utt1\n")
    with pytest.raises(SystemExit, match="utterances: 1 there, 2 now"):
        decode(tmp_path, data_dir, attention, "--key_file", keys, "--nbest", 2)
    assert shard.read_bytes() == content
    fp.fingerprint_path(shard).unlink()
    with pytest.raises(SystemExit, match="exists without out.fingerprint.json"):
        decode(tmp_path, data_dir, attention)


def test_inputs_that_are_refused(models, data_dir, tmp_path):
    with pytest.raises(SystemExit, match="plain .jsonl file"):
        decode(tmp_path, data_dir, models["attention"], out="out.jsonl.gz")
    with pytest.raises(SystemExit, match="one is missing"):
        decode(tmp_path, data_dir, models["attention"], "--lm_file", "lm.pth")
    keys = tmp_path / "keys"
    keys.write_text("nobody\n")
    with pytest.raises(SystemExit, match="1 ids are not among the cuts: nobody"):
        decode(tmp_path, data_dir, models["attention"], "--key_file", keys)
    with pytest.raises(
        ValueError, match="sampling rate 16000 Hz, the teacher's is 8000"
    ):
        check_cuts(select_cuts(cuts_from_kaldi(data_dir), None), 8000)
    assert not list(tmp_path.glob("out*"))


def test_sampling_rate_of_a_teacher():
    assert sampling_rate({}) == 16000
    assert sampling_rate({"frontend_conf": {"fs": "8k"}}) == 8000
    assert sampling_rate({"frontend_conf": {"fs": 22050}}) == 22050
    with pytest.raises(ValueError, match="input_size=83"):
        sampling_rate({"input_size": 83})


def test_options(models, tmp_path):
    path = tmp_path / "decode.yaml"
    path.write_text("beam_size: 3\nnbest: 5\nngpu: 1\nbatch_size: 1\n")
    attention = read_config(models["attention"].config)
    transducer = read_config(models["transducer"].config)
    assert read_options(attention, "asr", path) == {"beam_size": 3, "nbest": 5}
    assert read_options(transducer, "asr", path, nbest=2) == {
        "beam_size": 3,
        "nbest": 2,
        "transducer_conf": {"nbest": 2},
    }
    path.write_text("transducer_conf:\n  search_type: tsd\n  nbest: 6\n")
    assert read_options(transducer, "asr", path) == {
        "nbest": 6,
        "transducer_conf": {"search_type": "tsd", "nbest": 6},
    }
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_options(attention, "asr", tmp_path / "absent.yaml")
    path.write_text("batch_size: 8\n")
    message = (
        r"decode.yaml: batch_size=8: ESPnet.* one utterance at a time \(batches: 202610"
    )
    with pytest.raises(ValueError, match=message):
        read_options(transducer, "asr", path)
    with pytest.raises(ValueError, match=message):
        read_options({}, "asr_transducer", path)
    if not decodes_batches():
        with pytest.raises(ValueError, match=f"ESPnet {installed_version()} takes"):
            read_options(attention, "asr", path)
    else:
        assert read_options(attention, "asr", path) == {"batch_size": 8, "nbest": 1}

    check_options({"beam_size": 1, "ctc_weight": 0.3}, "asr")
    with pytest.raises(
        ValueError, match="ctc_wieght: not an option.*known: .*ctc_weight"
    ):
        check_options({"ctc_wieght": 0.3}, "asr")
    with pytest.raises(ValueError, match="ctc_weight: not an option"):
        check_options({"ctc_weight": 0.3}, "asr_transducer")
    with pytest.raises(ValueError, match="transducer_conf: serach_type"):
        check_options({"transducer_conf": {"serach_type": "tsd"}}, "asr")


def test_options_of_the_stage_itself_are_refused_in_a_yaml(models):
    model = models["attention"]
    with pytest.raises(ValueError, match=r"\(asr\): device: not an option"):
        TeacherDecoder(model.config, model.checkpoint, {"device": "cpu"})


@pytest.mark.usefixtures("batches")
def test_batches_of_an_encoder_that_reads_padding_are_refused(tmp_path):
    model = write_model(tmp_path / "model", "legacy")
    options = dict(beam_size=3, batch_size=2)
    with pytest.raises(ValueError, match="rel_pos_type legacy .*set it to 1"):
        TeacherDecoder(model.config, model.checkpoint, options)
    options["batch_size"] = 1
    assert TeacherDecoder(model.config, model.checkpoint, options)(np.ones(16000))


def test_ngram_is_refused_by_asr_transducer(models):
    model = models["asr_transducer"]
    assert task_of(model.config) == "asr_transducer"
    with pytest.raises(ValueError, match="take no n-gram"):
        TeacherDecoder(model.config, model.checkpoint, {}, ngram_file="4gram.bin")


def test_beam_wider_than_the_vocabulary_is_refused(models):
    model = models["attention"]
    with pytest.raises(ValueError, match=r"beam_size=20 .*token list of 7"):
        TeacherDecoder(model.config, model.checkpoint, {"nbest": 2})


def test_unreadable_audio_is_named(models, data_dir, tmp_path):
    """The job stops at the utterance; hypotheses before it are kept."""
    folder = tmp_path / "broken"
    folder.mkdir()
    good = data_dir / "spk0-utt0.wav"
    (folder / "wav.scp").write_text(f"u1 {good}\nu2 {folder}/absent.wav\n")
    (folder / "utt2num_samples").write_text("u1 8000\nu2 8000\n")
    with pytest.raises(SystemExit, match=r"cut u2: audio .*absent.wav cannot be read"):
        decode(tmp_path, folder, models["attention"])
    assert [cut.id for cut in read_cuts(tmp_path / "out.jsonl")] == ["u1"]


def test_merged_duplicates_keep_their_rank():
    log = np.log
    merged = merge_duplicates(
        [
            SearchResult("a", [2], log(0.3)),
            SearchResult("b", [3], log(0.2)),
            SearchResult("a", [2], log(0.1)),
        ]
    )
    assert [each.text for each in merged] == ["a", "b"]
    assert [np.exp(each.score) for each in merged] == pytest.approx([0.4, 0.2])


def test_hypotheses_from_results():
    results = [
        SearchResult("a b", [2, 5, 3], float(np.log(0.6)), -1.0),
        SearchResult("a c c", [2, 5, 4, 5, 4], float(np.log(0.2))),
    ]
    found = to_hypotheses(results, "a b c")
    assert found == [
        Hypothesis(
            "a b", [2, 5, 3], results[0].score, -1.0, pytest.approx(0.75), 1 / 3
        ),
        Hypothesis(
            "a c c", [2, 5, 4, 5, 4], results[1].score, None, pytest.approx(0.25), 1 / 3
        ),
    ]
    assert to_hypotheses([], "a") == []


def test_cut_torn_line(tmp_path):
    path = tmp_path / "shard.jsonl"
    for content, left in [
        (b"", b""),
        (b'{"id": 1}\n', b'{"id": 1}\n'),
        (b'{"id": 1}\n{"i', b'{"id": 1}\n'),
        (b'{"i', b""),
    ]:
        path.write_bytes(content)
        assert cut_torn_line(path) == (content != left)
        assert path.read_bytes() == left
