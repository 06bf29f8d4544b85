"""Switchboard, Hub5 2000 and Fisher in small, in the layouts that the LDC and
Mississippi State distribute: two-channel mu-law SPHERE audio, and transcripts with
every convention. The words are ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np

RATE = 8000


class Line(NamedTuple):
    """A line of a transcript of Mississippi State, and its normalised text."""

    begin: float
    end: float
    written: str
    text: str  # empty: not an utterance


# Side -> its lines. Together they show every convention of the transcripts.
CALLS = {
    "sw02001": {
        "A": [
            Line(0.0, 0.1, "[silence]", ""),
            Line(0.1, 0.9, "hi um yeah I'd like", "hi um yeah i'd like"),
            Line(
                0.9,
                1.7,
                "[laughter-story] [noise] [laughter]",
                "story [noise] [laughter]",
            ),
            Line(1.7, 2.6, "[it'n/isn't] them_1 {yuppiedom}", "it'n them yuppiedom"),
        ],
        "B": [
            Line(0.0, 0.8, "[silence] ab[solute]- -[abou]t", "ab- -t"),
            Line(0.8, 1.7, "<b_aside> ammu[n]ition <e_aside> ok", "ammu-ition ok"),
            Line(1.7, 2.6, "IBM and IBM's CDs", "i b m and i b m's c d's"),
        ],
    },
    "sw02005": {
        "A": [
            Line(0.0, 0.7, "uh-huh", "uh-huh"),
            Line(
                0.7,
                1.4,
                "[vocalized-noise] [laughter-yea[h]-] no",
                "[vocalized-noise] yea- no",
            ),
            Line(1.4, 2.1, "Tuesday in Dallas", "tuesday in dallas"),
            Line(2.1, 2.6, "uh-huh", "uh-huh"),
        ],
        "B": [
            Line(0.1, 0.9, "the garden is large", "the garden is large"),
            Line(0.9, 1.6, "ex[specially]-/especially] so", "ex- so"),
            # A file's last line may end slightly after the audio.
            Line(1.6, 2.62, "[lem[guini]-/linguini] then", "lem- then"),
        ],
    },
}
DICTIONARY = """# file: $SWB/data/dictionary/sw-ms98-dict.text

CDs s iy d iy z
Dallas d ae l ih s
I ay
IBM ay b iy eh m
IBM's ay b iy eh m z
a ey
am ae m
hi hh ay
is ih z
"""


class Turn(NamedTuple):
    """A segment of eval2000: times, transcript of the stm, plain text of it."""

    call: str
    channel: str
    begin: str
    end: str
    transcript: str
    text: str | None  # None: not scored


IGNORED = "IGNORE_TIME_SEGMENT_IN_SCORING"
TURNS = [
    Turn(
        "en_4156",
        "A",
        "0.25",
        "1.05",
        "HE IS A { POLICE OFFICER / COP }",
        "he is a police officer",
    ),
    Turn(
        "en_4156",
        "A",
        "1.10",
        "1.80",
        "(%HESITATION) YEAH (OKAY)",
        "%hesitation yeah okay",
    ),
    Turn("en_4156", "A", "1.80", "2.00", IGNORED, None),
    Turn("en_4156", "B", "0.50", "1.50", "((%HESITATION)", "%hesitation"),
    Turn(
        "en_4156", "B", "1.60", "2.30", "<B_ASIDE> { @ / WELL } GO- GOING", "go- going"
    ),
    Turn(
        "sw_4390",
        "A",
        "0.10",
        "1.00",
        "UH-HUH THAT IS REALLY GOOD",
        "uh-huh that is really good",
    ),
    Turn("sw_4390", "B", "0.40", "1.20", "THE DOG'S HOUSE", "the dog's house"),
    Turn(
        "sw_4390", "B", "1.40", "2.50", "I. B. M. IS OKAY <E_ASIDE>", "i. b. m. is okay"
    ),
]
# In the manner of en20000405_hub5.glm.
GLM = """;; file hub5.glm
* name "hub5.glm"
* desc "mapping rules"
* format = 'NIST1'
* max_nrules = '2500'
* copy_no_hit = 'T'
* case_sensitive = 'F'
;; hesitations and backchannels
UH     => %HESITATION / [ ] __ [ ] ;; hesitation token
UM     => %HESITATION / [ ] __ [ ]
UH-HUH => %BCACK / [ ] __ [ ]
OKAY   => [O. K.] / [ ] __ [ ]
OK     => [O. K.] / [ ] __ [ ]
I. B. M. => I B M
GONNA  => GOING TO ;; everywhere
;; INPUT_DEPENDENT_APPLICATION = "ctm"
[HE'S] => [{HE IS / HE HAS}] / [ ] __ [ ]
[THAT'S] => [{THAT'S / THAT IS / THAT HAS}] / [ ] __ [ ]
[DOG'S] => [{DOG'S / DOG IS / DOG HAS}] / [ ] __ [ ]
"""
FISHER = """# fe_03_00001.sph
# Transcribed at the LDC

3.76 5.54 A: and i generally prefer

5.60 6.20 B: [laugh] i._b._m. [lipsmack] yeah

6.41 7.12 A: ((oh)) no
"""


def write_tree(folder: Path) -> dict[str, str]:
    """Write everything below `folder`; returns the variables of db.sh."""
    write_switchboard(folder / "LDC97S62", folder / "ms98")
    write_eval2000(folder / "LDC2002S09", folder / "LDC2002T43")
    write_fisher(folder / "LDC2004T19")
    return dict(
        SWBD=str(folder / "LDC97S62"),
        SWBD_TRANSCRIPTS=str(folder / "ms98"),
        EVAL2000=str(folder / "LDC2002S09"),
        EVAL2000_TRANSCRIPTS=str(folder / "LDC2002T43"),
        FISHER=str(folder / "LDC2004T19"),
    )


def write_switchboard(audio: Path, transcripts: Path) -> None:
    """LDC97S62 by discs, and swb_ms98_transcriptions."""
    root = transcripts / "swb_ms98_transcriptions"
    for disc, (call, sides) in enumerate(CALLS.items(), 1):
        write_sphere(audio / f"swb1_d{disc}" / "data" / f"{call}.sph", call)
        number = call[3:]
        for side, lines in sides.items():
            name = f"sw{number}{side}-ms98-{side.lower()}"
            written = "".join(
                f"{name}-{n:04d} {line.begin:.6f} {line.end:.6f} {line.written}\n"
                for n, line in enumerate(lines, 1)
            )
            path = root / number[:2] / number / f"{name}-trans.text"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(written)
            # The times of words beside it are not read.
            path.with_name(f"{name}-word.text").write_text(f"{name}-0001 0 0.1 x\n")
    (root / "sw-ms98-dict.text").write_text(DICTIONARY)


def write_eval2000(audio: Path, transcripts: Path) -> None:
    """LDC2002S09 (hub5e_00) and LDC2002T43 (2000_hub5_eng_eval_tr)."""
    english = audio / "hub5e_00" / "english"
    pem = [";; a comment\n"]
    stm = [';; LABEL "O" "Overall" "Overall"\n', ';; LABEL "en" "CALLHOME" "CH"\n']
    for turn in TURNS:
        place = f"{turn.call} {turn.channel}"
        pem.append(f"{place} unknown_speaker {turn.begin} {turn.end}\n")
        times = f"{turn.call}_{turn.channel} {turn.begin} {turn.end}"
        stm.append(f"{place} {times} <O,{turn.call[:2]},F> {turn.transcript}\n")
    for call in sorted({turn.call for turn in TURNS}):
        write_sphere(english / f"{call}.sph", call)
    (english / "hub5e_00.pem").write_text("".join([*pem, pem[-1]]))  # a line twice
    reference = transcripts / "2000_hub5_eng_eval_tr" / "reference"
    reference.mkdir(parents=True)
    (reference / "hub5e00.english.000405.stm").write_text("".join(stm))
    (reference / "en20000405_hub5.glm").write_text(GLM)


def write_fisher(folder: Path) -> None:
    """LDC2004T19: the LDC's and BBN's transcripts of a call."""
    trans = folder / "fe_03_p1_tran" / "data" / "trans" / "000"
    trans.mkdir(parents=True)
    (trans / "fe_03_00001.txt").write_text(FISHER)
    bbn = folder / "fe_03_p1_tran" / "data" / "bbn_orig" / "000" / "auto-segmented"
    bbn.mkdir(parents=True)
    (bbn / "fe_03_00001.trn").write_text(
        "AND I GENERALLY PREFER (fe_03_00001-A-0001)\n"
    )


def samples(call: str, seconds: float = 2.6) -> np.ndarray:
    """Both sides of a call: tones in noise, (samples, 2) int16 after mu-law."""
    return mu_law_decode(_codes(call, seconds))


def _codes(call: str, seconds: float = 2.6) -> np.ndarray:
    rng = np.random.default_rng(crc32(call.encode()))
    time = np.arange(int(RATE * seconds)) / RATE
    tones = np.stack([0.3 * np.sin(2 * np.pi * f * time) for f in (300, 700)], axis=1)
    noise = 0.02 * rng.standard_normal(tones.shape)
    return mu_law_encode((32767 * (tones + noise)).astype(np.int32))


def mu_law_encode(wave: np.ndarray) -> np.ndarray:
    """16-bit samples -> bytes of ITU-T G.711: sign, exponent (3), mantissa (4)."""
    size = np.minimum(np.abs(wave), 32635) + 132
    exponent = np.floor(np.log2(size)).astype(np.int32) - 7
    mantissa = (size >> (exponent + 3)) & 15
    return ~(np.where(wave < 0, 128, 0) | exponent << 4 | mantissa).astype(np.uint8)


def mu_law_decode(codes: np.ndarray) -> np.ndarray:
    """The samples, int16."""
    bits = (~codes).astype(np.int32)
    size = (((bits & 15) << 3) + 132 << ((bits >> 4) & 7)) - 132
    return np.where(bits & 128, -size, size).astype(np.int16)


def write_sphere(path: Path, call: str) -> None:
    """A call in the LDC's form: two channels, mu-law, interleaved samples."""
    codes = _codes(call)
    fields = {
        "conversation_id -s4": call[-4:],
        "database_id -s13": "SWITCHBOARD-1",
        "channel_count -i": 2,
        "sample_coding -s4": "ulaw",
        "channels_interleaved -s4": "TRUE",
        "sample_count -i": len(codes),
        "sample_rate -i": RATE,
        "sample_n_bytes -i": 1,
        "sample_sig_bits -i": 8,
    }
    lines = [f"{name} {value}" for name, value in fields.items()]
    header = "\n".join(["NIST_1A", "   1024", *lines, "end_head", ""]).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.ljust(1024) + codes.tobytes())
