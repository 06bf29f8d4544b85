"""Sizes read from a checkpoint against those of the real model."""

import argparse

import numpy as np
import pytest
import torch

from espnet_kd.models.espnet_versions import default_config
from espnet_kd.report.size import ModelSize, read_tensors, size_of


def test_a_tiny_model(tmp_path):
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 3),  # 12 + 3
        torch.nn.BatchNorm1d(3),  # 3 + 3, and 3 + 3 + 1 that are not trained
        torch.nn.Linear(3, 2, bias=False).double(),  # 6 of 8 bytes
    )
    torch.save(model.state_dict(), tmp_path / "model.pth")
    assert size_of(read_tensors(tmp_path / "model.pth")) == ModelSize(
        27, 21 * 4 + 6 * 4 + 6 * 8
    )


def test_tied_weights_count_once(tmp_path):
    weight = torch.zeros(5, 2)
    torch.save({"embed.weight": weight, "output.weight": weight}, tmp_path / "m.pth")
    assert size_of(read_tensors(tmp_path / "m.pth")) == ModelSize(10, 40)


@pytest.mark.parametrize("encoder", ["conformer", "transformer", "e_branchformer"])
def test_an_espnet_model(tmp_path, encoder):
    from espnet2.tasks.asr import ASRTask

    stats = tmp_path / "feats_stats.npz"
    np.savez(stats, count=10, sum=np.zeros(80), sum_square=np.full(80, 10.0))
    conf = {"output_size": 16, "attention_heads": 2, "num_blocks": 1}
    args = default_config(ASRTask)
    args.update(
        token_list=["<blank>", "<unk>", "a", "b", "<sos/eos>"],
        encoder=encoder,
        encoder_conf=conf,
        decoder="transformer",
        decoder_conf={"attention_heads": 2, "linear_units": 16, "num_blocks": 1},
        normalize="global_mvn",
        normalize_conf={"stats_file": str(stats)},
        init=None,
    )
    model = ASRTask.build_model(argparse.Namespace(**args))
    torch.save(model.state_dict(), tmp_path / "valid.loss.ave.pth")
    found = size_of(read_tensors(tmp_path / "valid.loss.ave.pth"))
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.bytes == sum(
        t.numel() * t.element_size()
        for t in model.state_dict().values()
        if t.is_floating_point()
    )


@pytest.mark.parametrize(
    "content",
    [{"model": {"w": torch.zeros(2)}, "reporter": argparse.Namespace()}, [1], {"n": 1}],
)
def test_other_files_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match="checkpoint.pth: not a model.*valid.loss.ave"):
        size_of(read_tensors(tmp_path / "checkpoint.pth"))


def test_an_absent_file_is_called_absent(tmp_path):
    with pytest.raises(FileNotFoundError):
        size_of(read_tensors(tmp_path / "absent.pth"))
