"""Speech from the espeak-ng library that the `espeakng-loader` package carries.

espeak-ng draws random numbers and cannot be reset, so its output depends on the time of
day and on earlier sentences. Here a small process opens the library once and forks for
every sentence: each is synthesised from the same state, a crash costs one sentence, and
only a small process is forked (this file imports neither torch nor Lhotse).

    request   one line of JSON: {"text", "voice", "pitch", "rate"}
    answer    8 bytes: the number of samples (-1: failure), then 16-bit samples
"""

import ctypes
import json
import os
import struct
import subprocess
import sys
from typing import BinaryIO

import numpy as np

RATE = 22050  # Hz, fixed in the library

# Constants of espeak-ng's speak_lib.h.
AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_DONT_EXIT = 0x8000
CHARS_UTF8 = 1
POS_CHARACTER = 1
PARAMETER_RATE = 1
PARAMETER_PITCH = 3


class Espeak:
    """Synthesise sentences, each from the same state of the library.

    Close it after use: `with contextlib.closing(Espeak()) as espeak`.
    """

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def say(
        self, text: str, voice: str, pitch: int = 50, rate: int = 175
    ) -> np.ndarray:
        """Synthesise a sentence.

        Args:
            text: English words.
            voice: accent and timbre, for example "en-us+f3".
            pitch: 0-100, 50 is the voice's default.
            rate: words per minute, 80-450.

        Returns:
            (samples,) float64 at RATE, full scale 1.0.

        Raises:
            ChildProcessError: if the library, or the voice, is missing.
        """
        request = {"text": text, "voice": voice, "pitch": pitch, "rate": rate}
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer will be missing too
        header = self.process.stdout.read(8)
        number = struct.unpack("<q", header)[0] if len(header) == 8 else -1
        if number <= 0:
            raise ChildProcessError(
                f"espeak-ng could not synthesise '{text}' with voice '{voice}'; its "
                "message is above. Is it installed? pip install espeakng-loader"
            )
        samples = np.frombuffer(self.process.stdout.read(2 * number), dtype="<i2")
        return samples / 32768.0


# ---------------------------------------------------------------- inside the process


def _open_library() -> ctypes.CDLL:
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    data_path = espeakng_loader.get_data_path().encode()
    rate = library.espeak_Initialize(
        AUDIO_OUTPUT_SYNCHRONOUS, 0, data_path, INITIALIZE_DONT_EXIT
    )
    if rate != RATE:
        raise RuntimeError(f"espeak_Initialize({data_path!r}) gave {rate}, not {RATE}")
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # default: the time of day
    return library


def _speak(library: ctypes.CDLL, request: dict) -> bytes:
    """The 16-bit samples of one request."""
    pieces: list[bytes] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    def keep(samples: int | None, number: int, events: int | None) -> int:
        if samples and number > 0:
            pieces.append(ctypes.string_at(samples, 2 * number))
        return 0

    library.espeak_SetSynthCallback(keep)
    if library.espeak_SetVoiceByName(request["voice"].encode()) != 0:
        raise ValueError(f"no voice {request['voice']}")
    library.espeak_SetParameter(PARAMETER_RATE, request["rate"], 0)
    library.espeak_SetParameter(PARAMETER_PITCH, request["pitch"], 0)
    text = request["text"].encode() + b"\0"
    library.espeak_Synth(
        text, ctypes.c_size_t(len(text)), 0, POS_CHARACTER, 0, CHARS_UTF8, None, None
    )
    library.espeak_Synchronize()
    return b"".join(pieces)


def _answer_in_child(library: ctypes.CDLL, line: bytes, output: BinaryIO) -> bool:
    """Fork and synthesise in the child; returns whether it succeeded."""
    child = os.fork()
    if child == 0:
        try:
            samples = _speak(library, json.loads(line))
            output.write(struct.pack("<q", len(samples) // 2) + samples)
            output.flush()
            os._exit(0)
        except BaseException as error:  # a child must never return
            print(f"espeak: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def serve() -> None:
    """Answer requests from standard input until it ends."""
    library = _open_library()
    output = sys.stdout.buffer
    for line in sys.stdin.buffer:
        if not _answer_in_child(library, line, output):
            output.write(struct.pack("<q", -1))
            output.flush()


if __name__ == "__main__":
    serve()
