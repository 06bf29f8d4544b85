"""How much of a trained transducer's lattices has a gradient that matters.

    python -m benchmarks.occupied --config exp/asr_x/config.yaml \
        --model_file exp/asr_x/valid.loss.ave.pth --data_dir dump/raw/test

For every utterance the transducer loss of its reference is differentiated down to the
nodes of the lattice. Prints, as one row of a Markdown table, which share of the nodes
has a gradient above fractions of the largest one (`kd_conf.tolerance`).
"""

import argparse
from pathlib import Path

import soundfile
import torch
from espnet2.text.build_tokenizer import build_tokenizer
from espnet2.text.token_id_converter import TokenIDConverter
from tqdm import tqdm

from espnet_kd.lattice import Lattices
from espnet_kd.lattice.kept_classes import class_log_probs
from espnet_kd.lattice.logits import Logits
from espnet_kd.lattice.nodes import Nodes, make_layout
from espnet_kd.lattice.reading import read_nodes
from espnet_kd.models.branches import encode
from espnet_kd.models.config import read_config
from espnet_kd.models.joint import joint_logits
from espnet_kd.models.loading import load_model

TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


def read_table(path: Path) -> dict[str, str]:
    rows = (line.split(maxsplit=1) for line in path.read_text().splitlines())
    return {key: value for key, value in rows}


def node_gradients(logits: Logits, labels: torch.Tensor) -> torch.Tensor:
    """Largest gradient of each node (N,) of one utterance's transducer loss."""
    lengths = (torch.tensor([n]) for n in (logits.shape[1], labels.shape[1]))
    layout = make_layout(logits, labels, *lengths)
    nodes = Nodes.where(layout.nodes)
    ids = layout.arc_classes(nodes, 0)
    with torch.no_grad():
        read = read_nodes(logits, nodes, ids, (1.0,))
    scores, rest = (x.detach().requires_grad_() for x in (read.scores, read.rest))
    log_probs = class_log_probs(scores, rest[:, 0], ids, slice(None))
    total = Lattices.from_nodes(layout, nodes, log_probs).total_score().sum()
    return torch.cat(torch.autograd.grad(total, [scores, rest]), dim=1).abs().amax(1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--model_file", required=True)
    parser.add_argument("--data_dir", required=True, type=Path)
    parser.add_argument("--num_utterances", default=100, type=int)
    args = parser.parse_args()

    config, model = read_config(args.config), load_model(args.config, args.model_file)
    tokenizer = build_tokenizer(config["token_type"], bpemodel=config["bpemodel"])
    converter = TokenIDConverter(config["token_list"])
    wavs, texts = (read_table(args.data_dir / name) for name in ("wav.scp", "text"))
    above, total = torch.zeros(len(TOLERANCES)), 0
    for key in tqdm(list(texts)[: args.num_utterances]):
        speech = torch.from_numpy(soundfile.read(wavs[key], dtype="float32")[0])
        labels = converter.tokens2ids(tokenizer.text2tokens(texts[key]))
        labels = torch.tensor([labels])
        with torch.no_grad():
            encoder_out, _ = encode(model, speech[None], torch.tensor([len(speech)]))
            lengths = torch.tensor([labels.shape[1]])
            logits = joint_logits(model, encoder_out, labels, lengths)
        gradients = node_gradients(logits, labels)
        shares = gradients / gradients.max()
        above += torch.stack([(shares > x).sum() for x in TOLERANCES])
        total += len(shares)
    cells = " | ".join(f"{100 * float(x) / total:.1f}" for x in above)
    print(f"| {args.model_file} | {total} | {cells} |")


if __name__ == "__main__":
    main()
