"""Export a trained model as a plain ESPnet folder, in smaller forms, and measure these.

    python -m espnet_kd.bin.export --exp exp/asr_student --output_dir exp/asr_plain \\
        --model_file valid.loss.ave.pth --formats csr int8 \\
        --data_dir dump/raw/test --inference_config conf/decode_asr.yaml

Run it from the recipe folder. Stock ESPnet can decode with the new folder, without this
package. With --data_dir the word error rate and the real-time factor of each form are
measured and written to export.md and export.json in the folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from espnet_kd.bin.command import command, new_parser
from espnet_kd.bin.teacher_decode import positive
from espnet_kd.data.files import write_json, write_text
from espnet_kd.export.names import INFIXES, RECORD, TABLE


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("export", __doc__)
    parser.add_argument(
        "--exp", type=Path, required=True, help="folder of the trained model"
    )
    parser.add_argument(
        "--model_file", default="valid.acc.ave.pth", help="checkpoint in it"
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        help="folder to write; must be new, empty or an earlier export",
    )
    parser.add_argument(
        "--formats",
        nargs="*",
        choices=list(INFIXES),
        default=[],
        help="smaller forms of the weights, besides the dense ones",
    )
    measuring = parser.add_argument_group("measuring")
    measuring.add_argument(
        "--data_dir",
        type=Path,
        help="Kaldi data folder with text, to measure WER and real-time factor",
    )
    measuring.add_argument(
        "--inference_config", type=Path, help="decode YAML of ESPnet: beam_size, ..."
    )
    measuring.add_argument(
        "--max_utterances", type=positive, help="only the first ones; default: all"
    )
    measuring.add_argument(
        "--repeats", type=positive, default=3, help="passes over the data"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    """Write the folder, then its table."""
    from espnet_kd.export.folder import export_folder  # torch is slow to import
    from espnet_kd.export.measure import measure_forms, table

    forms = list(dict.fromkeys(args.formats))
    record = export_folder(
        args.exp,
        args.model_file,
        args.output_dir,
        forms,
        lambda s: print(f"writing {s}"),
    )
    if args.data_dir is not None:
        record["measured"] = measure_forms(
            args.output_dir,
            {form: each["file"] for form, each in record["forms"].items()},
            args.data_dir,
            args.inference_config,
            args.max_utterances,
            args.repeats,
        )
        write_json(args.output_dir / RECORD, record)
    text = table(record)
    write_text(args.output_dir / TABLE, text)
    print(text, end="")


main = command(get_parser, run)

if __name__ == "__main__":
    sys.exit(main())
