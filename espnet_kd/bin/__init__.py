"""One command per stage: ``python -m espnet_kd.bin.<command> --help``."""
