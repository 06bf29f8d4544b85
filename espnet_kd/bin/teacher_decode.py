"""Decode cuts with a teacher: an n-best list per utterance, a shard per job.

    python -m espnet_kd.bin.teacher_decode \\
        --data_dir dump/raw/train --key_file keys.1 \\
        --teacher_config exp/asr_teacher/config.yaml \\
        --teacher_model_file exp/asr_teacher/valid.acc.ave.pth \\
        --inference_config conf/decode_asr.yaml --nbest 8 --output_file hyps.1.jsonl

Run it from the teacher's recipe folder. The searches are ESPnet's own. For labelled
audio the WER of each hypothesis is stored too. An interrupted job resumes where it
stopped; a shard of another teacher or other options is refused.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from espnet_kd.bin.command import command, new_parser
from espnet_kd.data.files import write_json
from espnet_kd.data.kaldi import cuts_from_kaldi
from espnet_kd.models.config import read_config, task_of
from espnet_kd.targets import fingerprint as fp
from espnet_kd.targets import shards
from espnet_kd.targets.hypotheses import read_cuts
from espnet_kd.teacher.decoding import TeacherDecoder, read_options, sampling_rate


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("teacher_decode", __doc__)
    data = parser.add_argument_group("data")
    source = data.add_mutually_exclusive_group(required=True)
    source.add_argument("--cuts", type=Path, help="manifest of cuts (.jsonl[.gz])")
    source.add_argument("--data_dir", type=Path, help="Kaldi data folder")
    data.add_argument(
        "--key_file",
        type=Path,
        help="ids to decode, first column of each line (one job's part); default: all",
    )
    data.add_argument(
        "--output_file", type=Path, required=True, help="shard to write (.jsonl)"
    )
    teacher = parser.add_argument_group("teacher")
    teacher.add_argument(
        "--teacher_config", type=Path, required=True, help="its config.yaml"
    )
    teacher.add_argument(
        "--teacher_model_file", type=Path, required=True, help="its checkpoint (.pth)"
    )
    teacher.add_argument(
        "--inference_config",
        type=Path,
        help="decode YAML of ESPnet: beam_size, ctc_weight, lm_weight, ...",
    )
    teacher.add_argument(
        "--nbest",
        type=positive,
        help="length of the list before merging duplicates; default: the YAML's, or 1",
    )
    teacher.add_argument("--lm_train_config", type=Path, help="config.yaml of an LM")
    teacher.add_argument("--lm_file", type=Path, help="checkpoint of the LM")
    teacher.add_argument("--ngram_file", type=Path, help="n-gram (task asr only)")
    job = parser.add_argument_group("job")
    job.add_argument("--ngpu", type=int, default=0, choices=(0, 1), help="GPUs")
    job.add_argument("--num_threads", type=positive, default=1, help="threads of torch")
    job.add_argument("--seed", type=int, default=0, help="of all random numbers")
    return parser


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return number


def run(args: argparse.Namespace) -> None:
    """Decode the utterances that are missing in the shard."""
    if args.output_file.suffix != ".jsonl":
        raise ValueError(
            f"output_file={args.output_file}: must be a plain .jsonl file, which can "
            "be resumed after a kill"
        )
    if (args.lm_train_config is None) != (args.lm_file is None):
        raise ValueError("--lm_train_config and --lm_file go together; one is missing")
    config = read_config(args.teacher_config)
    options = read_options(
        config, task_of(args.teacher_config), args.inference_config, args.nbest
    )
    cuts = shards.select_cuts(
        read_cuts(args.cuts) if args.cuts else cuts_from_kaldi(args.data_dir),
        args.key_file,
    )
    shards.check_cuts(cuts, sampling_rate(config, args.teacher_config))

    made_by = fingerprint(args, config, options, [cut.id for cut in cuts])
    check_shard(args.output_file, made_by)
    speed = ""
    if shards.decoded_ids(args.output_file) != {cut.id for cut in cuts}:
        decoder = load_decoder(args, options)
        args.output_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(fp.fingerprint_path(args.output_file), made_by)
        seconds, rtf = shards.decode_cuts(
            cuts, decoder.decode, args.output_file, decoder.batch_size
        )
        speed = f", {seconds:.0f} s, RTF {rtf:.3f}"
    print(f"{args.output_file}: {shards.summarise(args.output_file)}{speed}")


def fingerprint(
    args: argparse.Namespace, config: dict, options: dict, ids: list[str]
) -> fp.Fingerprint:
    """Everything that determines the content of the shard."""
    normalize = config.get("normalize_conf") or {}
    bpemodel = config.get("bpemodel")
    return {
        **fp.code_versions(),
        "task": task_of(args.teacher_config),
        "teacher_config": fp.hash_file(args.teacher_config),
        "teacher_model": fp.hash_file(args.teacher_model_file),
        "token_list": fp.hash_lines(config["token_list"]),
        "bpemodel": (
            fp.hash_file(bpemodel) if config.get("token_type") == "bpe" else bpemodel
        ),
        "feats_stats": fp.hash_file(normalize.get("stats_file")),
        "lm_config": fp.hash_file(args.lm_train_config),
        "lm": fp.hash_file(args.lm_file),
        "ngram": fp.hash_file(args.ngram_file),
        # Batches only change the rounding.
        "inference": {k: v for k, v in options.items() if k != "batch_size"},
        "seed": args.seed,
        "utterances": len(ids),
        "utterance_ids": fp.hash_lines(ids),
    }


def check_shard(shard: Path, made_by: fp.Fingerprint) -> None:
    """Refuse a shard made with other settings; repair an incomplete last line."""
    if not shard.is_file():
        return
    old = fp.read_fingerprint(shard)
    if old is None:
        raise ValueError(
            f"{shard}: exists without {fp.fingerprint_path(shard).name}, so its "
            "teacher is unknown; remove it or give another --output_file"
        )
    remedy = "Remove the shard to decode again, or give another --output_file."
    fp.require_same(old, made_by, shard, remedy)
    if shards.cut_torn_line(shard):
        print(f"{shard}: the last line is incomplete; its utterance is decoded again")


def load_decoder(args: argparse.Namespace, options: dict) -> TeacherDecoder:
    """Set up torch and load the teacher once."""
    import torch
    from espnet2.torch_utils.set_all_random_seed import set_all_random_seed

    torch.set_num_threads(args.num_threads)
    set_all_random_seed(args.seed)
    if args.ngpu and not torch.cuda.is_available():
        raise ValueError("ngpu=1: torch does not find a GPU; give --ngpu 0")
    return TeacherDecoder(
        args.teacher_config,
        args.teacher_model_file,
        options,
        lm_train_config=args.lm_train_config and str(args.lm_train_config),
        lm_file=args.lm_file and str(args.lm_file),
        ngram_file=args.ngram_file and str(args.ngram_file),
        device="cuda" if args.ngpu else "cpu",
    )


main = command(get_parser, run)

if __name__ == "__main__":
    sys.exit(main())
