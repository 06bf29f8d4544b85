"""N-best decoding with ESPnet's own searches."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np
import yaml

from espnet_kd.models.config import (
    TaskName,
    read_config,
    reads_audio,
    sampling_rate_of,
    task_of,
)
from espnet_kd.models.espnet_versions import decodes_batches, installed_version, legacy
from espnet_kd.targets.hypotheses import SearchResult

SEARCH = {
    "asr": ("transducer_conf", "espnet2.asr.transducer.beam_search_transducer"),
    "asr_transducer": (
        "beam_search_config",
        "espnet2.asr_transducer.beam_search_transducer",
    ),
}
# Keys of decode YAMLs that concern the job, not the search.
JOB_KEYS = ("ngpu", "seed", "num_workers", "log_level")
# Keys that the teacher stage sets from its own options.
OWN_KEYS = (
    "asr_train_config",
    "asr_model_file",
    "lm_train_config",
    "lm_file",
    "ngram_file",
    "device",
)
# Shorter utterances are decoded alone: in a batch, one too short for an encoder's
# subsampling (at most 15 frames) would go unnoticed.
SECONDS_IN_BATCH = 0.5
# Keys whose searches return something other than the n-best list of one speaker.
NOT_NBEST_KEYS = ("enh_s2t_task", "multi_asr", "streaming")


def sampling_rate(config: Mapping[str, Any], path: str | Path = "config.yaml") -> int:
    """The sampling rate in Hz of a teacher's input, from its configuration.

    Raises:
        ValueError: the teacher's input is features, not audio.
    """
    if not reads_audio(config):
        raise ValueError(
            f"{path}: input_size={config['input_size']}: this teacher takes features, "
            "not audio; only teachers with a frontend (feats_type raw) can decode cuts"
        )
    return sampling_rate_of(config)


def read_options(
    config: Mapping[str, Any],
    task: TaskName,
    inference_config: str | Path | None = None,
    nbest: int | None = None,
) -> dict[str, Any]:
    """The search options of an ESPnet decode YAML, with the n-best size resolved.

    The transducer search of task `asr` has its own n-best size, 1 unless set by
    `transducer_conf`; here it always gets the requested size.

    Args:
        config: of the teacher.
        inference_config: YAML; None: the defaults of stock inference.
        nbest: overrides the YAML's; None: the YAML's, else 1.

    Raises:
        FileNotFoundError: the YAML file does not exist.
        ValueError: the YAML is not a mapping, or its `batch_size` asks for batches that
            the searches of this task or version of ESPnet cannot decode.
    """
    options: dict[str, Any] = {}
    if inference_config is not None:
        if not Path(inference_config).is_file():
            raise FileNotFoundError(
                f"{inference_config}: no such file; give a decode configuration of "
                "ESPnet, for example conf/decode_asr.yaml"
            )
        text = Path(inference_config).read_text(encoding="utf-8")
        options = yaml.safe_load(text) or {}
        if not isinstance(options, dict):
            raise ValueError(
                f"{inference_config}: must be a mapping of options to values"
            )
    batch_size = options.pop("batch_size", None) or 1
    if batch_size > 1:
        _check_batches(f"{inference_config}: batch_size={batch_size}", config, task)
    options = {key: value for key, value in options.items() if key not in JOB_KEYS}
    if batch_size > 1:
        options["batch_size"] = batch_size

    search_key = SEARCH[task][0]
    search = dict(options.get(search_key) or {})
    size = nbest or options.get("nbest") or search.get("nbest") or 1
    search.pop("nbest", None)
    options["nbest"] = size
    if task == "asr" and config.get("decoder") == "transducer":
        search["nbest"] = size
    if search:
        options[search_key] = search
    return options


def _check_batches(where: str, config: Mapping[str, Any], task: TaskName) -> None:
    if task == "asr_transducer" or config.get("decoder") == "transducer":
        reason = "ESPnet's searches of a transducer take"
    elif not decodes_batches():
        reason = f"ESPnet {installed_version()} takes"
    else:
        return
    raise ValueError(
        f"{where}: {reason} one utterance at a time (batches: 202610 and later, "
        "attention and CTC); set it to 1 or leave it out"
    )


class TeacherDecoder:
    """A trained ESPnet model with its stock search: from samples to an n-best list.

    Args:
        config: config.yaml of the teacher.
        model_file: its checkpoint.
        options: search options, as returned by `read_options`.
        lm_train_config, lm_file, ngram_file: language models of the search.
        device: "cpu" or "cuda".

    Raises:
        ValueError: an option unknown to the stock search, a teacher whose tokens cannot
            be turned into words, or weights that do not fit.
        FileNotFoundError: a file named in the configuration is missing.
    """

    def __init__(
        self,
        config: str | Path,
        model_file: str | Path,
        options: Mapping[str, Any],
        *,
        lm_train_config: str | None = None,
        lm_file: str | None = None,
        ngram_file: str | None = None,
        device: str = "cpu",
    ) -> None:
        from espnet_kd.models.loading import build_speech2text, stock_task

        conf = read_config(config)
        self.task = task_of(config)
        check_options(options, self.task)
        _check_beam(options, self.task, len(conf["token_list"]))
        models = {"lm_train_config": lm_train_config, "lm_file": lm_file}
        if self.task == "asr":
            models["ngram_file"] = ngram_file
        elif ngram_file is not None:
            raise ValueError(
                f"ngram_file={ngram_file}: the searches of task asr_transducer take no "
                "n-gram; use a neural LM (lm_file) or a teacher of task asr"
            )
        self.batch_size = options.get("batch_size", 1)
        try:
            self.speech2text = build_speech2text(
                config, model_file, device=device, **models, **options
            )
        except NotImplementedError as error:  # a search without batching
            raise ValueError(f"inference_config: {error}") from error
        if self.batch_size > 1:
            _prepare_for_batches(
                self.speech2text.asr_model, f"batch_size={self.batch_size}", config
            )
        if self.speech2text.tokenizer is None:
            raise ValueError(
                f"{config}: token_type or bpemodel is not set, so token ids cannot be "
                "turned into words; add them to the configuration"
            )
        self.preprocess = stock_task(self.task).build_preprocess_fn(
            self.speech2text.asr_train_args, False
        )
        self.too_short = _too_short_errors()
        self.min_samples = _padding(conf) + 1
        self.sampling_rate = sampling_rate_of(conf)

    def __call__(self, samples: np.ndarray) -> list[SearchResult]:
        """Decode one utterance of float32 samples (N,), full scale 1.0.

        Returns:
            The n-best list in the search's order, without duplicates; empty if the
            utterance is too short or the search found nothing.
        """
        if len(samples) < self.min_samples:
            return []
        try:
            found = self.speech2text(self._prepared(samples))
        except self.too_short:
            return []
        if isinstance(found, tuple):  # intermediate CTC outputs come along
            found = found[0]
        if self.task == "asr_transducer":
            found = self.speech2text.hypotheses_to_results(found)
        return _to_results(found)

    def decode(self, utterances: Sequence[np.ndarray]) -> list[list[SearchResult]]:
        """Decode utterances, in one batch if `batch_size` is set.

        Returns:
            The same as one call per utterance, up to rounding.
        """
        shortest = SECONDS_IN_BATCH * self.sampling_rate
        together = [n for n, each in enumerate(utterances) if len(each) >= shortest]
        if self.batch_size == 1 or len(together) == 1:
            together = []
        results = {}
        if together:
            batch = [self._prepared(utterances[n]) for n in together]
            found = self.speech2text.batch_decode(batch)
            results = dict(zip(together, map(_to_results, found)))
        return [
            results[n] if n in results else self(samples)
            for n, samples in enumerate(utterances)
        ]

    def _prepared(self, samples: np.ndarray) -> np.ndarray:
        if self.preprocess is None:
            return samples
        # Volume normalisation, if used in training.
        return self.preprocess("utterance", {"speech": samples})["speech"]


def _prepare_for_batches(model: Any, where: str, config: str | Path) -> None:
    """Give a model true lengths, or refuse one whose output depends on padding."""
    from espnet_kd.models.lengths import uncorrected, use_true_lengths

    wrong = uncorrected(model.encoder)
    if wrong is not None:
        raise ValueError(
            f"{where}: {wrong} ({config}): its output for a batch depends on padding; "
            "set it to 1"
        )
    use_true_lengths(model)


def _too_short_errors() -> tuple[type[Exception], ...]:
    """Exceptions of the encoders of both tasks for an utterance that is too short."""
    from espnet2.asr_transducer.utils import TooShortUttError

    subsampling = legacy("nets.pytorch_backend.transformer.subsampling")
    return subsampling.TooShortUttError, TooShortUttError


def _to_results(found: Sequence[tuple]) -> list[SearchResult]:
    return merge_duplicates(
        [
            SearchResult(text, list(ids), float(hyp.score), _lm_score(hyp))
            for text, _, ids, hyp in found
        ]
    )


def check_options(options: Mapping[str, Any], task: TaskName) -> None:
    """Refuse search options unknown to stock inference of `task`.

    Raises:
        ValueError: with the unknown keys and the list of known ones.
    """
    from espnet_kd.models.loading import speech2text_class

    search_key, search_module = SEARCH[task]
    _check_keys(f"inference_config ({task})", options, speech2text_class(task))
    search = importlib.import_module(search_module).BeamSearchTransducer
    _check_keys(search_key, options.get(search_key) or {}, search)


def _check_keys(where: str, options: Mapping[str, Any], target: type) -> None:
    known = set(inspect.signature(target.__init__).parameters)
    known -= {"self", *OWN_KEYS, *NOT_NBEST_KEYS}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(
            f"{where}: {', '.join(unknown)}: not an option of an n-best search with "
            f"this teacher; known: {', '.join(sorted(known))}"
        )


def _check_beam(options: Mapping[str, Any], task: TaskName, size: int) -> None:
    """A beam wider than the vocabulary breaks ESPnet's first search step."""
    from espnet_kd.models.loading import speech2text_class

    parameters = inspect.signature(speech2text_class(task).__init__).parameters
    default = parameters["beam_size"].default
    beam = options.get("beam_size", default)
    if beam > size:
        raise ValueError(
            f"inference_config: beam_size={beam} (ESPnet's default is {default}) is "
            f"wider than the teacher's token list of {size}; set it to {size} or less"
        )


def merge_duplicates(results: list[SearchResult]) -> list[SearchResult]:
    """Merge entries with equal token ids; their probabilities add up.

    Transducer searches return the same tokens several times, with scores of different
    alignments. The rank of the first one is kept.
    """
    merged: dict[tuple[int, ...], SearchResult] = {}
    for result in results:
        key = tuple(result.token_ids)
        if key in merged:
            total = float(np.logaddexp(merged[key].score, result.score))
            merged[key] = merged[key]._replace(score=total)
        else:
            merged[key] = result
    return list(merged.values())


def _lm_score(hypothesis: Any) -> float | None:
    score = (getattr(hypothesis, "scores", None) or {}).get("lm")
    return None if score is None else float(score)


def _padding(config: Mapping[str, Any]) -> int:
    """Samples that the centred STFT reflects at each end, the minimum length."""
    frontend = config.get("frontend_conf") or {}
    if (config.get("frontend") or "default") != "default":
        return 0
    return frontend.get("n_fft", 512) // 2
