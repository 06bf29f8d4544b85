"""Fingerprints: the teacher, options and code that made a shard of targets."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

from espnet_kd.models.espnet_versions import installed_version

Fingerprint = dict[str, Any]
# Fields that describe one job's part of the data; shards share all others.
PART = ("utterances", "utterance_ids")


def fingerprint_path(shard: str | Path) -> Path:
    """decode.1.jsonl -> decode.1.fingerprint.json, in the same folder."""
    return Path(shard).with_suffix(".fingerprint.json")


def hash_file(path: str | Path | None) -> str | None:
    """SHA-256 of a file, None for None.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    if path is None:
        return None
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path}: no such file from the current folder; run from the recipe folder"
        )
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def hash_lines(lines: Sequence[str]) -> str:
    """SHA-256 of strings, in order."""
    return hashlib.sha256("\n".join(lines).encode("utf-8")).hexdigest()


def code_versions() -> dict[str, str]:
    """Versions of this package and of ESPnet, which runs the searches."""
    import espnet_kd

    return {
        "espnet_kd": getattr(espnet_kd, "__version__", "unknown"),
        "espnet": installed_version(),
    }


def read_fingerprint(shard: str | Path) -> Fingerprint | None:
    """The fingerprint beside a shard, None if not found."""
    path = fingerprint_path(shard)
    if not path.is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield (field, old value, new value); nested fields are joined by a dot."""
    for key in sorted(set(old) | set(new)):
        one, other = old.get(key), new.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from differences(one, other, f"{prefix}{key}.")
        elif one != other:
            yield f"{prefix}{key}", one, other


def require_same(
    old: Mapping[str, Any], new: Mapping[str, Any], where: str | Path, remedy: str
) -> None:
    """Refuse two fingerprints that differ.

    Raises:
        ValueError: names each field that differs, and both values.
    """
    # JSON turns tuples into lists; compare what can be stored.
    found = list(differences(old, json.loads(json.dumps(new))))
    if found:
        fields = "; ".join(
            f"{key}: {one} there, {other} now" for key, one, other in found
        )
        raise ValueError(f"{where}: {fields}. {remedy}")


def common_part(shards: Sequence[str | Path]) -> Fingerprint | None:
    """The fingerprint shared by the shards of one decoding, all checked as complete.

    Returns:
        None if no shard has a fingerprint (cuts made by other means).

    Raises:
        ValueError: two shards differ in a field, or a shard holds fewer utterances
            than given to its job (it was interrupted).
    """
    common, first = None, None
    for shard in shards:
        found = read_fingerprint(shard)
        if found is None:
            continue
        with open(shard, "rb") as stream:
            written = sum(line.endswith(b"\n") for line in stream)
        if written != found["utterances"]:
            raise ValueError(
                f"{shard}: holds {written} of {found['utterances']} utterances; run "
                "its teacher_decode job again, it resumes where it stopped"
            )
        shared = {key: value for key, value in found.items() if key not in PART}
        if common is None:
            common, first = shared, shard
        remedy = f"Decode it like {first}, or make two KD sets."
        require_same(common, shared, shard, remedy)
    return common
