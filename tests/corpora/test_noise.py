"""Noise: its level is exact and its spectrum matches its name."""

import itertools

import numpy as np
import pytest

from espnet_kd.corpora import noise


def slope_db_per_octave(signal: np.ndarray) -> float:
    """Slope of the power spectrum between 1/64 and 1/4 of the sampling rate."""
    power = np.abs(np.fft.rfft(signal)) ** 2
    edges = len(signal) // np.array([64, 32, 16, 8, 4])
    bands = [np.mean(power[low:high]) for low, high in itertools.pairwise(edges)]
    return float(np.polyfit(range(4), 10 * np.log10(bands), 1)[0])


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 7.3, 20.0])
def test_snr_is_exact(snr_db: float) -> None:
    rng = np.random.default_rng(1)
    speech = np.sin(np.arange(5000) / 7) * np.linspace(0, 1, 5000)
    added = noise.mix_at_snr(speech, rng.standard_normal(5000), snr_db) - speech
    measured = 10 * np.log10(np.sum(speech**2) / np.sum(added**2))
    assert measured == pytest.approx(snr_db, abs=1e-9)


def test_impossible_mixtures_are_refused() -> None:
    with pytest.raises(ValueError, match="silent"):
        noise.mix_at_snr(np.zeros(10), np.ones(10), 5.0)
    with pytest.raises(ValueError, match="samples"):
        noise.mix_at_snr(np.ones(10), np.ones(11), 5.0)


def test_colours() -> None:
    rng = np.random.default_rng(2)
    assert slope_db_per_octave(noise.white(rng, 2**16)) == pytest.approx(0, abs=0.3)
    assert slope_db_per_octave(noise.pink(rng, 2**16)) == pytest.approx(-3, abs=0.3)


def test_speech_shaped_noise_has_the_envelope_of_the_recording() -> None:
    """A resonance of the recording is a resonance of the noise."""
    rng = np.random.default_rng(3)
    pole = 0.98 * np.exp(2j * np.pi * 0.12)
    coloured = np.zeros(20000)
    for n, x in enumerate(rng.standard_normal(20000)):
        coloured[n] = x
        if n > 1:
            coloured[n] += 2 * pole.real * coloured[n - 1]
            coloured[n] -= abs(pole) ** 2 * coloured[n - 2]
    shaped = noise.speech_shaped(rng, 2**14, coloured)
    power = np.abs(np.fft.rfft(shaped)) ** 2
    peak = np.argmax(np.convolve(power, np.ones(65), "same")) / 2**14
    assert peak == pytest.approx(0.12, abs=0.005)


def test_babble_has_the_recordings_without_gaps() -> None:
    rng = np.random.default_rng(4)
    recordings = [np.full(300, 1.0), np.full(700, -1.0)]
    mixture = noise.babble(rng, 5000, recordings)
    assert mixture.shape == (5000,)
    # Five talkers of +1 or -1 (each scaled to RMS 1): an odd sum, never zero.
    assert set(np.unique(np.round(mixture, 9))) <= {-5.0, -3.0, -1.0, 1.0, 3.0, 5.0}


def test_kinds_come_as_often_as_stated() -> None:
    rng = np.random.default_rng(5)
    recordings = [rng.standard_normal(400) for _ in range(3)]
    kinds = [noise.draw(rng, 50, recordings)[0] for _ in range(2000)]
    for kind, share in noise.KINDS.items():
        assert kinds.count(kind) / 2000 == pytest.approx(share, abs=0.04)
