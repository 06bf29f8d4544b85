"""WSJ0 and WSJ1 in small, as the LDC distributes them: discs, index files, SPHERE
audio and transcripts with every convention of .dot files. The words are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np

RATE = 16000


class Utterance(NamedTuple):
    """An utterance: its location and its three transcripts."""

    id: str
    disc: str
    folder: str  # from wsj0/ or wsj1/ on, without the speaker's
    dot: str
    text: str  # of `dot`, as in ESPnet's and Kaldi's recipes
    lsn: str

    @property
    def tail(self) -> str:
        return f"{self.folder}/{self.id[:3]}/{self.id}"


UTTERANCES = [
    Utterance(  # spoken punctuation, WSJ0 only
        "01ic0201",
        "11-1.1",
        "wsj0/si_tr_s",
        r"Prices rose \,COMMA but slowly .PERIOD",
        "PRICES ROSE ,COMMA BUT SLOWLY .PERIOD",
        "PRICES ROSE ,COMMA BUT SLOWLY .PERIOD",
    ),
    Utterance(
        "01ic0202",
        "11-1.1",
        "wsj0/si_tr_s",
        r"\"DOUBLE\-QUOTE Sell \"DOUBLE\-QUOTE he said \-\-DASH now",
        '"DOUBLE-QUOTE SELL "DOUBLE-QUOTE HE SAID -DASH NOW',
        '"DOUBLE-QUOTE SELL "DOUBLE-QUOTE HE SAID --DASH NOW',
    ),
    Utterance(  # noise, swallowed word, escapes, mispronounced, pause, noise over, cut
        "02bc0201",
        "11-2.1",
        "wsj0/si_tr_s",
        r"[loud_breath] It\'s <the> I\. B\. M\. *plan* . of [<door_slam] May ~",
        "<NOISE> IT'S THE I. B. M. *PLAN* OF MAY",
        "IT'S THE I. B. M. PLAN OF MAY",
    ),
    Utterance(  # in the index, but not used by any recipe
        "401c0201",
        "11-2.1",
        "wsj0/si_tr_s",
        "Nobody reads this",
        "NOBODY READS THIS",
        "NOBODY READS THIS",
    ),
    Utterance(  # noise over the next word, a range of noise, emphasis
        "460c0201",
        "13-1.1",
        "wsj1/si_tr_s",
        "[door_slam>] He [phone_ring/] was there [/phone_ring] !twice [tongue_click]",
        "HE WAS THERE !TWICE <NOISE>",
        "HE WAS THERE TWICE",
    ),
    Utterance(  # words of Nov'93, marks within marks, lengthening
        "460c0202",
        "13-1.1",
        "wsj1/si_tr_s",
        r"Ten \%PERCENT <*in*> s:ome two \.POINT five <isn\'t> it",
        "TEN PERCENT <*IN*> S:OME TWO POINT FIVE ISN'T IT",
        "TEN PERCENT IN SOME TWO POINT FIVE ISN'T IT",
    ),
    Utterance(  # a mark with a hyphen, which the recipes keep
        "461c0201",
        "13-1.1",
        "wsj1/si_tr_s",
        r"[lip-smack] They re\:build the pier",
        "[LIP-SMACK] THEY RE:BUILD THE PIER",
        "THEY RE:BUILD THE PIER",
    ),
    Utterance(
        "4k0c0301",
        "13-16.1",
        "wsj1/si_dt_20",
        "A dry spring [misc_noise]",
        "A DRY SPRING <NOISE>",
        "A DRY SPRING",
    ),
    Utterance(
        "4k0c030a",
        "13-16.1",
        "wsj1/si_dt_20",
        r"Rates fell to nine \-HYPHEN four",
        "RATES FELL TO NINE -HYPHEN FOUR",
        "RATES FELL TO NINE -HYPHEN FOUR",
    ),
    Utterance(
        "440c0401",
        "11-14.1",
        "wsj0/si_et_20",
        r"The mayor\'s bridge",
        "THE MAYOR'S BRIDGE",
        "THE MAYOR'S BRIDGE",
    ),
    Utterance(
        "440c0402",
        "11-14.1",
        "wsj0/si_et_20",
        "We ship ten boats",
        "WE SHIP TEN BOATS",
        "WE SHIP TEN BOATS",
    ),
]
SETS = {
    "train_si284": [
        u for u in UTTERANCES if u.folder.endswith("si_tr_s") and u.id[:3] != "401"
    ],
    "test_dev93": [u for u in UTTERANCES if u.folder == "wsj1/si_dt_20"],
    "test_eval92": [u for u in UTTERANCES if u.folder == "wsj0/si_et_20"],
}
# A session's transcripts are on several discs.
TRANSCRIPTS = {
    "wsj0/si_tr_s": [
        ("11-4.1", "wsj0/transcrp/dots/si_tr_s"),
        ("11-10.1", "wsj0/transcrp/dots/si_tr_s"),
    ],
    "wsj1/si_tr_s": [("13-34.1", "wsj1/trans/wsj1/si_tr_s")],
    "wsj1/si_dt_20": [("13-34.1", "wsj1/trans/wsj1/si_dt_20")],
    "wsj0/si_et_20": [("11-14.1", "wsj0/si_et_20")],
}


def samples(utterance_id: str) -> np.ndarray:
    """A tone in noise of its own for each utterance: (samples,), int16."""
    seed = crc32(utterance_id.encode())
    rng = np.random.default_rng(seed)
    time = np.arange(12000 + seed % 8000) / RATE
    wave = 4000 * np.sin(2 * np.pi * (200 + seed % 800) * time)
    return (wave + 300 * rng.standard_normal(len(time))).astype(np.int16)


def write_tree(
    root: Path,
    *,
    shorten: bool = False,
    rename: Callable[[str], str] = lambda path: path,
) -> None:
    """Write both corpora below `root`.

    Args:
        shorten: compress the audio, as the distribution does (sph2pipe reads it).
        rename: changes a path, which begins with the disc, e.g. 13-34.1/wsj1/doc.
    """
    files: dict[str, bytes] = {}
    for number, utterance in enumerate(UTTERANCES):
        audio = sphere(
            samples(utterance.id)[None],
            coding="shorten" if shorten else "pcm",
            big_endian=number % 2 == 1,
            extra=f"utterance_id -s8 {utterance.id}\n",
        )
        files[f"{utterance.disc}/{utterance.tail}.wv1"] = audio
    # The other microphone, not in any set.
    files["11-7.1/wsj0/si_tr_s/01i/01ic0201.wv2"] = b"not read"
    files |= _indices() | _transcripts()
    for path, content in files.items():
        target = root / rename(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _indices() -> dict[str, bytes]:
    def index(comment: str, folders: list[str], suffix: str, colon: str = ":") -> bytes:
        lines = [f";; {comment}\n", ";;\n"]
        lines += [
            f"{u.disc.replace('-', '_').replace('.', '_')}{colon}{u.tail}{suffix}\n"
            for u in UTTERANCES
            if u.folder in folders
        ]
        return "".join(lines).encode()

    # Lines of si_et_20.ndx end without .wv1.
    return {
        "11-13.1/wsj0/doc/indices/train/tr_s_wv1.ndx": index(
            "Index for WSJ0 SI-short", ["wsj0/si_tr_s"], ".wv1"
        ),
        "13-34.1/wsj1/doc/indices/si_tr_s.ndx": index(
            "Index for WSJ1 SI-short", ["wsj1/si_tr_s"], ".wv1"
        ),
        "13-34.1/wsj1/doc/indices/h1_p0.ndx": index(
            "Hub 1, primary", ["wsj1/si_dt_20"], ".wv1", ": "
        ).replace(b"\n", b"\r\n"),
        "11-13.1/wsj0/doc/indices/test/nvp/si_et_20.ndx": index(
            "20,000 words", ["wsj0/si_et_20"], ""
        ),
        # The same name in another folder: the evaluation of Nov'93.
        "13-32.1/wsj1/doc/indices/wsj1/eval/h1_p0.ndx": (
            b"13_32_1:wsj1/si_et_h1/wsj64k/4oa/4oac0201.wv1\n"
        ),
    }


def _transcripts() -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for utterance in UTTERANCES:
        session = f"{utterance.id[:3]}/{utterance.id[:6]}00"
        prompt = utterance.lsn.capitalize().replace(".", r"\.").replace("'", r"\'")
        for disc, folder in TRANSCRIPTS[utterance.folder]:
            for suffix, line in {
                "dot": f"{utterance.dot} ({utterance.id})",
                "lsn": f"{utterance.lsn} ({utterance.id.upper()})",
                "ptx": f"{prompt} ({utterance.id} 87.051.870113-0174.2.1)",
            }.items():
                path = f"{disc}/{folder}/{session}.{suffix}"
                files[path] = files.get(path, b"") + f"{line}\n".encode()
    return files


# ---------------------------------------------------------------- SPHERE files


def sphere(
    audio: np.ndarray,
    *,
    rate: int = RATE,
    coding: str = "pcm",
    big_endian: bool = False,
    extra: str = "",
) -> bytes:
    """A SPHERE file: a header of 1024 bytes and samples.

    Args:
        audio: (channels, samples), int16; with "ulaw" the codes, uint8.
        coding: "pcm", "ulaw", or "shorten" (of one channel of PCM).
        extra: more lines of the header.
    """
    channels, count = audio.shape
    width = audio.dtype.itemsize
    order = "10" if big_endian else "01"
    name = "pcm,embedded-shorten-v2.00" if coding == "shorten" else coding
    head = (
        f"NIST_1A\n   1024\n{extra}channel_count -i {channels}\n"
        f"sample_count -i {count}\nsample_rate -i {rate}\nsample_n_bytes -i {width}\n"
        f"sample_byte_format -s{width} {order[:width]}\n"
        f"sample_sig_bits -i {8 * width}\n"
        f"sample_coding -s{len(name)} {name}\nend_head\n"
    )
    interleaved = np.ascontiguousarray(audio.T)
    if coding == "shorten":
        body = shortened(audio[0], big_endian)
    elif big_endian:
        body = interleaved.byteswap().tobytes()
    else:
        body = interleaved.tobytes()
    return head.encode().ljust(1024) + body


def shortened(signal: np.ndarray, big_endian: bool = False, block: int = 256) -> bytes:
    """A shorten 2.0 stream (Robinson, CUED/F-INFENG/TR.156) of a signal (samples,).

    Of the format this uses first differences and Rice codes.
    """
    kind, difference, end, new_block = 3 if big_endian else 5, 1, 4, 5
    bits = [_number(value) for value in (kind, 1, block, 0, 0, 0)]
    residuals = np.diff(signal.astype(int), prepend=0)
    for start in range(0, len(residuals), block):
        part = residuals[start : start + block]
        if len(part) < block:
            bits += [_rice(new_block, 2), _number(len(part))]
        folded = np.where(part >= 0, 2 * part, -2 * part - 1)
        width = int(max(1, np.log2(folded.mean() + 1)))  # of the Rice code
        bits += [_rice(difference, 2), _rice(width - 1, 3)]
        bits += [_rice(int(value), width) for value in folded]
    stream = "".join(bits) + _rice(end, 2)
    stream += "0" * (-len(stream) % 32)
    return b"ajkg\x02" + int(stream, 2).to_bytes(len(stream) // 8, "big")


def _rice(value: int, width: int) -> str:
    """Unary high part, then `width` low bits."""
    low = f"{value & ((1 << width) - 1):0{width}b}" if width else ""
    return "0" * (value >> width) + "1" + low


def _number(value: int) -> str:
    """A number with its own width before it."""
    width = value.bit_length()
    return _rice(width, 2) + _rice(value, width)
