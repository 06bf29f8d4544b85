"""Synthetic speech: repeatable, separate speakers, audible words."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from espnet_kd.bin import prepare_mini
from espnet_kd.corpora import synthetic
from espnet_kd.corpora.espeak import RATE, Espeak
from espnet_kd.corpora.sets import PARTS
from espnet_kd.data.kaldi import cuts_from_kaldi
from espnet_kd.data.validate import validate_kaldi


@pytest.fixture(autouse=True)
def little_babble(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer sentences for the babble: the tests are about the rest."""
    monkeypatch.setattr(synthetic, "BABBLE_SENTENCES", 3)


def test_a_sentence_does_not_depend_on_earlier_ones() -> None:
    with closing(Espeak()) as synthesiser:
        first = synthesiser.say("turn the red light on", "en-us+f3")
        other = synthesiser.say("seven three", "en-029+m7", pitch=60, rate=150)
        again = synthesiser.say("turn the red light on", "en-us+f3")
    with closing(Espeak()) as synthesiser:
        fresh = synthesiser.say("turn the red light on", "en-us+f3")
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, fresh)
    assert 0.5 * RATE < len(first) < 3 * RATE
    assert 0.05 < np.max(np.abs(first)) <= 1
    assert len(other) != len(first)


def test_pitch_and_tempo_change_the_audio() -> None:
    with closing(Espeak()) as synthesiser:
        slow = synthesiser.say("one two three", "en-us", rate=120)
        fast = synthesiser.say("one two three", "en-us", rate=220)
        low = synthesiser.say("one two three", "en-us", pitch=20)
        high = synthesiser.say("one two three", "en-us", pitch=80)
    assert len(slow) > 1.4 * len(fast)
    assert _fundamental(high) > 1.2 * _fundamental(low)


def _fundamental(samples: np.ndarray) -> float:
    """Hz of the strongest period between 60 and 400 Hz."""
    spectrum = np.abs(np.fft.rfft(samples, 2 * len(samples))) ** 2
    correlation = np.fft.irfft(spectrum)
    lags = slice(RATE // 400, RATE // 60)
    return RATE / (lags.start + np.argmax(correlation[lags]))


def test_unknown_voice_is_refused_and_the_process_continues() -> None:
    with closing(Espeak()) as synthesiser:
        with pytest.raises(ChildProcessError, match="voice 'no-such-voice'"):
            synthesiser.say("one", "no-such-voice")
        assert len(synthesiser.say("one", "en-us")) > 0


def test_speakers_of_the_parts_are_disjoint() -> None:
    train, valid, test = (
        {speaker.voice.split("+")[1] for speaker in synthetic.speakers(part)}
        for part in ("labelled", "valid", "test")
    )
    assert not train & valid
    assert not train & test
    assert not valid & test
    assert synthetic.speakers("labelled") == synthetic.speakers("unlabelled")


def test_every_voice_exists_and_speakers_differ() -> None:
    """espeak-ng silently falls back to a plain voice for an unknown timbre."""
    people = [
        s for part in ("labelled", "valid", "test") for s in synthetic.speakers(part)
    ]
    assert len({speaker.id for speaker in people}) == len(people)
    plain = {}
    with closing(Espeak()) as synthesiser:
        for accent in synthetic.ACCENTS:
            plain[accent] = synthesiser.say("red", f"{accent}+no-such").tobytes()
        said = {synthesiser.say("red", s.voice).tobytes(): s.id for s in people}
    assert not set(plain.values()) & said.keys()


def test_vocabulary_is_small_and_complete() -> None:
    rng = np.random.default_rng(0)
    words = {word for _ in range(2000) for word in synthetic.sentence(rng).split()}
    slots = {word for choices in synthetic.SLOTS.values() for word in choices}
    assert slots <= words
    assert len(words) <= 30
    assert not [word for word in words if "{" in word]


def test_utterances_are_repeatable_and_independent_of_their_number() -> None:
    first = list(synthetic.utterances("test", 4, seed=3))
    more = list(synthetic.utterances("test", 6, seed=3))
    other = list(synthetic.utterances("test", 4, seed=4))
    for one, two in zip(first, more):
        assert one[:3] == two[:3]
        np.testing.assert_array_equal(one.samples, two.samples)
        assert 5 <= one.snr_db <= 20
    assert [u.text for u in other] != [u.text for u in first]


def test_command_makes_the_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    options = [
        "--num_train_teacher=8",
        "--num_train_labelled=3",
        "--num_train_unlabelled=5",
        "--num_valid=2",
        "--num_test=4",
    ]
    prepare_mini.main(options)
    sizes = {
        "train_teacher": 8,
        "train_labelled": 3,
        "train_unlabelled": 5,
        "train_full": 8,
        "valid": 2,
        "test": 4,
    }
    speakers = {}
    for name, size in sizes.items():
        assert validate_kaldi(Path("data", name)) == []
        cuts = list(cuts_from_kaldi(Path("data", name)))
        assert len(cuts) == size
        assert {cut.sampling_rate for cut in cuts} == {8000}
        speakers[name] = {cut.supervisions[0].speaker for cut in cuts}
    assert not Path("data/train_unlabelled/text").exists()
    assert Path("data/train_unlabelled/text_reference").exists()
    assert not speakers["test"] & (speakers["train_full"] | speakers["train_teacher"])
    assert {path.name for path in Path("data/wav").iterdir()} == set(PARTS)
    prepare_mini.main(options)
    assert "already made" in capsys.readouterr().out
