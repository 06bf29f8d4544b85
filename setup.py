"""Set-up of espnet_kd. What was tested is pinned in conf/constraints-{A,B,C}.txt."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
README = HERE / "README.md"


def version() -> str:
    """The version of the package, read without importing it."""
    for line in (HERE / "espnet_kd" / "__init__.py").read_text().splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise ValueError("espnet_kd/__init__.py: no line __version__ = ...")


setup(
    name="espnet_kd",
    version=version(),
    description="Knowledge distillation for ESPnet2 speech recognition",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["espnet_kd", "espnet_kd.*"]),
    # shipped/ links to egs/TEMPLATE/asr1 and conf/kd; a wheel holds the files.
    package_data={"espnet_kd": ["shipped/*/*.*", "shipped/*/utils/*"]},
    python_requires=">=3.10,<3.14",
    install_requires=[
        # Tested with 202412, 202511 and 202611. A newer one is accepted: a warning of
        # one line notes that it is untested (espnet_kd.models.espnet_versions).
        "espnet>=202412",
        "humanfriendly",
        "kaldialign>=0.9",
        "lhotse>=1.33",
        "matplotlib",
        "numpy",
        "pyyaml",
        "scipy",
        "sentencepiece",
        "soundfile",
        "torch>=1.13",  # ESPnet bounds it from above, since 202610
        "torchaudio",  # ESPnet's front ends import it; ESPnet does not require it
        "tqdm",
        # ESPnet's training imports these; from 202609 on they are extras of ESPnet.
        "editdistance",  # error rates in validation
        "opt-einsum",  # S4 decoders
        "tensorboard",  # use_tensorboard, true by default
    ],
    extras_require={
        # The only k2 on PyPI that can be imported: Linux, Python 3.10, torch 1.13.1.
        # On a later Python pip installs it all the same, and its import fails. On 3.10
        # pip may take another Python's wheel: install conf/k2-A.txt before.
        "k2": [
            "k2==1.23.4; python_version == '3.10' and platform_system == 'Linux'",
        ],
        "demo": ["espeakng-loader"],
        "test": [
            "kaldiio",  # Kaldi's archives, as other programs write them
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "resampy",  # ESPnet's recipes import it
            "setuptools",
            "wheel",
        ],
        "lint": ["black", "isort", "ruff"],
        "docs": ["furo", "myst-parser", "sphinx"],
    },
    keywords="speech recognition, knowledge distillation, ESPnet, k2, Lhotse",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
