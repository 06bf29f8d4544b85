"""Stock inference with a model in each form, and the kernels for them."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from espnet_kd.data.files import write_whole
from espnet_kd.export.formats import compressed_names, load_compressed
from espnet_kd.export.names import form_of
from espnet_kd.models.config import read_config
from espnet_kd.models.espnet_versions import named_as
from espnet_kd.models.loading import build_speech2text, set_weights

# ESPnet's own switch: torch.quantization.quantize_dynamic of these modules.
INT8 = dict(
    quantize_asr_model=True,
    quantize_modules=["Linear", "LSTM"],
    quantize_dtype="qint8",
)


def load_speech2text(config: str | Path, file: str | Path, **options: Any) -> Any:
    """ESPnet's `Speech2Text` with a model in one of its forms, on the CPU.

    The name of the file determines its form: weights of a `.csr.pth` file are used as
    CSR (linear layers; others are made dense), those of a `.2to4.pth` file are made
    dense, an `.int8.pth` file is quantised as by ESPnet; any other is a checkpoint.

    Args:
        config: config.yaml of the model; the files that it names are looked up from
            the current folder.
        file: its weights.
        options: of `Speech2Text`, for example beam_size.

    Raises:
        FileNotFoundError: `file`, or a file named in the configuration, is missing.
        ValueError: the file's name and its content differ.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(
            f"{file}: no such model; espnet_kd.bin.export --formats writes it"
        )
    form = form_of(file)
    if form == "dense":
        return build_speech2text(config, file, **options)
    if form == "int8":
        options, state = {**options, **INT8}, _read_int8(file)
    else:
        state = load_compressed(file)
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        # Skip initialisation: its method may be gone from the installed ESPnet.
        plain = Path(folder) / "config.yaml"
        plain.write_text(yaml.safe_dump({**read_config(config), "init": None}))
        speech2text = build_speech2text(plain, None, **options)
    model = speech2text.asr_model
    set_weights(model, state, file, config)
    if form == "int8":
        _take_vectors(model)
    if form == "csr":
        use_csr(model, compressed_names(file))
    return speech2text


def save_int8(path: str | Path, config: str | Path, model_file: str | Path) -> None:
    """Write the state_dict of the model quantised as by ESPnet's `--quantize_asr_model
    true --quantize_modules Linear LSTM`: int8 weights of linear and LSTM layers with
    one scale per weight; activations are quantised at run time."""
    with _quiet():
        speech2text = build_speech2text(config, model_file, **INT8)
        state = speech2text.asr_model.state_dict()
        content = {"format": "int8", "state_dict": state}
        write_whole(path, lambda part: torch.save(content, part))


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch's warnings that quantised tensors will be removed; ESPnet and
    torch use them, not this package."""
    with warnings.catch_warnings():
        for what in (
            "torch.ao.quantization is",
            "torch.quantize_per",
            "TypedStorage is",
        ):
            warnings.filterwarnings("ignore", what)
        yield


def _read_int8(path: str | Path) -> dict:
    # Quantised LSTM weights are torch objects, which weights_only does not read.
    has_option = torch.__version__ >= "2"
    with _quiet():
        content = torch.load(path, **(dict(weights_only=False) if has_option else {}))
    if not (isinstance(content, dict) and content.get("format") == "int8"):
        raise ValueError(
            f"{path}: not a quantised model; give an .int8.pth file that "
            "espnet_kd.bin.export wrote"
        )
    return content["state_dict"]


# --------------------------------------------------------------------------- kernels


class CSRLinear(torch.nn.Linear):
    """A linear layer whose weight (out, in) is a CSR tensor; for inference."""

    def forward(self, input: Tensor) -> Tensor:
        """input (..., in) -> (..., out).

        With the sparse matrix first, because `F.linear` with a CSR weight takes 2 to 6
        times as long for 60 rows (torch 1.13 and 2.8); one row is multiplied as vector.
        """
        rows = input.reshape(-1, self.in_features)
        if self.bias is None:
            output = self.weight @ rows.t()
        elif len(rows) == 1:
            output = torch.addmv(self.bias, self.weight, rows[0]).unsqueeze(1)
        else:
            output = torch.addmm(self.bias.unsqueeze(1), self.weight, rows.t())
        shape = (*input.shape[:-1], self.out_features)
        return output.t().contiguous().view(shape)


def _take_vectors(model: torch.nn.Module) -> None:
    """Most searches of a transducer of task `asr` pass vectors to its joint network,
    which torch's quantised layers refuse (stock inference stops with an error)."""
    # torch will remove this package; only int8 needs it.
    from torch.ao.nn.quantized import dynamic

    class VectorLinear(dynamic.Linear):
        """A quantised linear layer that also accepts a vector."""

        def forward(self, x: Tensor) -> Tensor:
            """x (in,) or (..., in)."""
            return super().forward(x) if x.dim() > 1 else super().forward(x[None])[0]

    for module in model.modules():
        if type(module) is dynamic.Linear:
            module.__class__ = VectorLinear


def use_csr(model: torch.nn.Module, weights: Collection[str]) -> list[str]:
    """Let linear layers multiply by CSR weights, in place.

    Args:
        model: on the CPU; its layer objects stay the same.
        weights: names of the weights; those of other layers stay dense.

    Returns:
        Names of the layers whose kernel changed.
    """
    weights = named_as(model.state_dict().keys(), dict.fromkeys(weights))
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and f"{name}.weight" in weights
    }
    for layer in layers.values():
        with warnings.catch_warnings():  # "CSR support is in beta state"
            warnings.simplefilter("ignore", UserWarning)
            # int32 indices, which MKL uses directly.
            csr = layer.weight.detach().to_sparse_csr()
            csr = torch.sparse_csr_tensor(
                csr.crow_indices().int(),
                csr.col_indices().int(),
                csr.values(),
                csr.shape,
            )
        layer.weight = torch.nn.Parameter(csr, requires_grad=False)
        layer.__class__ = CSRLinear
    return list(layers)
