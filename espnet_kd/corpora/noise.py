"""Noise for the small corpora: four kinds, mixed at an exact signal-to-noise ratio.

Signals are float64 arrays of shape (samples,), full scale 1.0. Every function takes
the random generator that it draws from, so that a seed determines everything.
"""

from collections.abc import Sequence

import numpy as np

# Probability of each kind of noise; babble is the hardest and the most frequent.
KINDS = {"babble": 0.34, "speech_shaped": 0.33, "pink": 0.20, "white": 0.13}
BABBLE_TALKERS = 5
LPC_ORDER = 16


def rms(signal: np.ndarray) -> float:
    """Root mean square of a signal."""
    return float(np.sqrt(np.mean(np.square(signal))))


def mix_at_snr(speech: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Add `noise` to `speech`, scaled to `snr_db` over the whole utterance.

    Raises:
        ValueError: if the lengths differ or one of the two is silent.
    """
    if speech.shape != noise.shape:
        raise ValueError(f"speech has {speech.shape} samples, noise {noise.shape}")
    if rms(speech) == 0 or rms(noise) == 0:
        raise ValueError("SNR is not defined if the speech or the noise is silent")
    return speech + noise * (rms(speech) / rms(noise) * 10 ** (-snr_db / 20))


def white(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """Noise with equal power at every frequency."""
    return rng.standard_normal(num_samples)


def pink(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """Noise whose power falls as 1/f."""
    spectrum = np.fft.rfft(rng.standard_normal(num_samples))
    spectrum[0] = 0.0
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    return np.fft.irfft(spectrum, num_samples)


def speech_shaped(
    rng: np.random.Generator, num_samples: int, recording: np.ndarray
) -> np.ndarray:
    """White noise filtered by the LPC envelope of a recording."""
    from scipy.linalg import solve_toeplitz  # SciPy is slow to import
    from scipy.signal import lfilter

    lags = [
        np.dot(recording[: len(recording) - lag], recording[lag:])
        for lag in range(LPC_ORDER + 1)
    ]
    lags[0] *= 1.0001  # a trace of white noise keeps the equations well conditioned
    predictor = solve_toeplitz(lags[:-1], lags[1:])
    return lfilter([1.0], np.r_[1.0, -predictor], rng.standard_normal(num_samples))


def babble(
    rng: np.random.Generator, num_samples: int, recordings: Sequence[np.ndarray]
) -> np.ndarray:
    """Several talkers at once, each an endless sequence of random recordings."""
    mixture = np.zeros(num_samples)
    for _ in range(BABBLE_TALKERS):
        pieces, missing = [], num_samples
        first = recordings[rng.integers(len(recordings))]
        pieces.append(first[rng.integers(len(first)) :])  # talkers start out of step
        missing -= len(pieces[0])
        while missing > 0:
            pieces.append(recordings[rng.integers(len(recordings))])
            missing -= len(pieces[-1])
        talker = np.concatenate(pieces)[:num_samples]
        mixture += talker / max(rms(talker), 1e-9)
    return mixture


def draw(
    rng: np.random.Generator, num_samples: int, recordings: Sequence[np.ndarray]
) -> tuple[str, np.ndarray]:
    """A random kind of noise; babble and speech-shaped noise need recordings."""
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    if kind == "babble":
        return kind, babble(rng, num_samples, recordings)
    if kind == "speech_shaped":
        recording = recordings[rng.integers(len(recordings))]
        return kind, speech_shaped(rng, num_samples, recording)
    return kind, (pink if kind == "pink" else white)(rng, num_samples)
