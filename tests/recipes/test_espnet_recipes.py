"""kd.sh, option by option, in every recipe of ESPnet: nothing is trained."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from espnet2.tasks.asr import ASRTask

from tests.recipes import espnet_recipes
from tests.recipes.espnet_recipes import REPO, copy_recipe, line_with_kd_sh

ASR_SH = "egs2/TEMPLATE/asr1/asr.sh"
# Recipes of 202611 whose run.sh does not pass its options on, as on the page.
DEAF = {"chime7_task1", "chime8_task1", "clotho_v2", "ml_openslr63", "ml_superb"}
DEAF |= {"tedlium3"}


def calls_of(script: str, program: str) -> list[str]:
    """The lines of a shell script that name a program, continued ones joined."""
    lines = script.replace("\\\n", " ").splitlines()
    named = re.compile(rf"(?<![\w.-]){re.escape(program)}(?![\w.-])")
    return [line for line in lines if named.search(re.sub(r"(^|\s)#.*", "", line))]


def test_every_call_of_asr_sh_becomes_one_of_kd_sh(espnet_root: Path, tmp_path: Path):
    """By the command of docs/dropping_in.md, in every run.sh of the tree."""
    scripts = sorted(espnet_root.glob("egs2/*/asr1/run*.sh"))
    assert scripts
    for path in scripts:
        shutil.copy(path, tmp_path / "run.sh")
        subprocess.run(["bash", "-c", line_with_kd_sh()], cwd=tmp_path, check=True)
        before, after = (
            (tmp_path / name).read_text() for name in ("run.sh", "run_kd.sh")
        )
        calls = calls_of(before, "asr.sh")
        assert calls, path
        assert calls_of(after, "asr.sh") == [], path
        assert len(calls_of(after, "kd.sh")) == len(calls), path
        # And nothing else is changed.
        assert re.sub(r"\bkd\.sh\b", "asr.sh", after) == before, path


@pytest.mark.parametrize(
    "line",
    [
        "./asr.sh \\\n    --lang en",
        "  ./asr.sh --lang en",
        "\tbash asr.sh --lang en",
        'if true; then "./asr.sh" --lang en; fi',
        "true && exec ./asr.sh --lang en",
        '"${PWD}/asr.sh" --lang en',
        "(./asr.sh --lang en) | cat",
    ],
)
def test_ways_to_call_asr_sh(tmp_path: Path, line: str):
    """As people write them; a script whose name ends the same way is unchanged."""
    for name in ("asr.sh", "kd.sh", "enh_asr.sh"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tmp_path / name).chmod(0o755)
    (tmp_path / "run.sh").write_text(f"./enh_asr.sh\n{line}\n")
    done = subprocess.run(
        ["bash", "-c", f"{line_with_kd_sh()}; bash run_kd.sh"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "enh_asr.sh\nkd.sh --lang en\n"


def test_the_recipes_are_those_of_environment_c():
    """Of another release they would be skipped there, in CI too."""
    pins = (REPO / "conf/constraints-C.txt").read_text().splitlines()
    assert f"espnet=={espnet_recipes.RELEASE}" in pins


def test_recipes_that_pass_no_options_on(espnet_root: Path):
    """docs/dropping_in.md names them: options of run_kd.sh are lost there."""
    if espnet_root != espnet_recipes.FOLDER:
        pytest.skip("other releases have other recipes")
    deaf = {
        path.parents[1].name
        for path in espnet_root.glob("egs2/*/asr1/run.sh")
        if not any("$@" in call for call in calls_of(path.read_text(), "asr.sh"))
    }
    page = (REPO / "docs/dropping_in.md").read_text()
    assert deaf == DEAF
    assert all(f"`{name}`" in page for name in DEAF)


def test_torn_archive_leaves_nothing_half_done(tmp_path: Path, monkeypatch):
    """What a killed run left is cleared away; a second call does not download."""
    name = espnet_recipes.FOLDER.name
    downloads = []

    def download(folder: Path) -> Path:
        assert not folder.exists()
        downloads.append(folder)
        source = tmp_path / f"source/{name}/egs2"
        for recipe in ("TEMPLATE", "corpus"):
            (source / recipe / "asr1").mkdir(parents=True, exist_ok=True)
        (source / "TEMPLATE/asr1/scripts").mkdir(exist_ok=True)
        (source / "TEMPLATE/asr1/scripts/tool.sh").write_text("true")
        (source.parent / "other").write_text("not needed")
        folder.mkdir()
        archive = folder / f"{name}.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(source.parent, name)
        if len(downloads) == 1:
            archive.write_bytes(archive.read_bytes()[:-40])
        return archive

    monkeypatch.setattr(espnet_recipes, "FOLDER", tmp_path / "cache" / name)
    monkeypatch.setattr(espnet_recipes, "download", download)
    with pytest.raises(EOFError):
        espnet_recipes.fetch()
    assert not (tmp_path / "cache" / name).exists()
    for _ in range(2):
        folder = espnet_recipes.fetch()
    assert len(downloads) == 2
    assert {path.name for path in folder.parent.iterdir()} == {name, f"{name}.lock"}
    assert (folder / "egs2/corpus/asr1/scripts/tool.sh").read_text() == "true"
    assert not (folder / "other").exists()


def test_a_registry_that_does_not_answer_is_reported(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(espnet_recipes, "FOLDER", tmp_path / "espnet-0")
    for name, value in {
        "NO_INDEX": "1",
        "FIND_LINKS": "",
        "CONFIG_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(ConnectionError, match="No matching distribution found"):
        espnet_recipes.fetch()
    assert not (tmp_path / "espnet-0").exists()


# The options of a script and their defaults, which are between these two lines.
DEFAULTS = r"""
eval "$(sed -n '/^stage=1 /,/^help_message=/p' "$0" | sed '$d')"
for name in $(compgen -v); do [[ ! ${name} =~ ^[a-z] ]] || declare -p "${name}"; done
"""
NAMES = """
for name in data_feats token_list bpemodel asr_stats_dir asr_exp lm_exp \\
    ngram_exp inference_tag; do echo "${name} ${!name}"; done
"""
KD_NAMES = """
mkdir -p "${asr_exp}" "${lm_exp}"
touch "${asr_exp}/.command" "${lm_exp}/config.yaml" # an LM, and a student of ours
choose_lm
choose_search student "${asr_task}" "${asr_exp}" "${inference_asr_model}" >/dev/null
inference_tag=${tag}
"""


def test_every_option_of_asr_sh_is_accepted(espnet_root: Path):
    """Under its name and with its default."""
    found = []
    for script in espnet_root / ASR_SH, REPO / "egs/TEMPLATE/asr1/kd.sh":
        command = ["env", "-i", shutil.which("bash"), "-c", DEFAULTS, str(script)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(set(re.findall('declare -- (.*="[^"]*")', done.stdout)))
    asr, kd = found
    assert 'nj="32"' in asr and len(asr) > 90
    assert asr - kd == set()


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--token_type char",
        "--token_type word --lang en",
        "--lang en --nbpe 5000 --speed_perturb_factors 0.9|1.0|1.1",
        "--lang en --asr_args --max_epoch|5|--optim_conf|lr=0.1 --bpemode bpe",
        "--asr_tag x --lm_tag y --expdir e --dumpdir d --token_type char",
        "--lm_config conf/train_lm.yaml --lm_args --max_epoch|3 --use_ngram true",
        "--use_lm false --inference_args --beam_size|3|--ctc_weight|0.3",
        "--inference_asr_model a/valid.loss.ave.pth --inference_lm 3epoch.pth",
        "--inference_tag mine --asr_exp exp/own --asr_stats_dir s --lm_exp lm/own",
    ],
)
def test_names_are_asr_shs(espnet_root: Path, tmp_path: Path, options: str):
    """Both scripts up to where they do something, then the names they would use."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "asr.sh").symlink_to(espnet_root / ASR_SH)
    for name in ("utils", "scripts", "cmd.sh"):
        (tmp_path / name).symlink_to((espnet_root / ASR_SH).with_name(name))
    (tmp_path / "path.sh").write_text("export PATH=utils:$PATH\n")
    asr = (tmp_path / "asr.sh").read_text().split("# ====", 1)[0]
    kd = (REPO / "egs/TEMPLATE/asr1/kd.sh").read_text().split("if runs 12 ")[0]
    given = (
        "--train_set a --valid_set b --test_sets c --asr_config conf/train_x.yaml "
        f"--inference_config conf/decode_x.yaml --skip_data_prep true "
        f"--skip_train true --skip_eval true {options}"
    )
    words = [word.replace("|", " ") for word in given.split()]
    derived = {}
    for name, text in (("asr", asr + NAMES), ("kd", kd + KD_NAMES + NAMES)):
        (tmp_path / f"{name}_names.sh").write_text(text)
        done = subprocess.run(
            ["bash", f"./{name}_names.sh", *words, "--python", sys.executable],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPO)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        lines = re.findall(r"^(\w+) (.*)$", done.stdout, re.M)
        derived[name] = dict(lines)
    assert set(derived["asr"]) >= {"asr_exp", "inference_tag"}
    assert derived["kd"] == derived["asr"]


# The line of each run.sh, from which the names of files follow.
LINES = {
    "librispeech": "train_960_sp dev bpe LM",
    "librispeech_100": "train_clean_100_sp dev bpe",
    "wsj": "train_si284 test_dev93 char LM",
    "swbd": "train_nodup_sp train_dev bpe",
    "an4": "train_nodev_sp train_dev bpe LM",
    "aishell": "train_sp dev char",
    "timit": "train dev word",
}
KD_LINE = (
    "--skip_stages 5 --teacher_exp exp/asr_large --kd_config conf/kd/sequence.yaml "
    "--asr_tag small --dry_run true --stage"
)


def run(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """A program in a recipe, with the Python and the package of the tests."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
    )


def names_by_asr_sh(folder: Path, *options: str) -> dict[str, str]:
    """The names that a recipe's asr.sh derives from the line in its run.sh."""
    text = (folder / "asr.sh").read_text().split("# ====", 1)[0]
    more = "asr_config inference_lm valid_set test_sets eval_valid_set nlsyms_txt"
    (folder / "names.sh").write_text(
        text + NAMES.replace("data_feats", f"{more} data_feats")
    )
    line = (folder / "run.sh").read_text()
    (folder / "run_names.sh").write_text(line.replace("./asr.sh", "bash names.sh"))
    done = run(folder, "bash", "run_names.sh", *options)
    if done.returncode:
        raise ValueError(done.stdout)
    return dict(re.findall(r"^(\w+) (.*)$", done.stdout, re.M))


def files_of(recipe: str, names: dict[str, str]) -> set[str]:
    """The files of asr.sh and the teacher's training that stages 6 to 14 read."""
    train, valid, tokens, *lm = LINES[recipe].split()
    assert names["valid_set"] == valid
    stats, data = names["asr_stats_dir"], names["data_feats"]
    files = [f"{data}/{train}/{name}" for name in ("wav.scp", "text")]
    files += [f"{data}/{valid}/wav.scp", names["token_list"]]
    files += [names["bpemodel"]] * (tokens == "bpe")
    for part in ("train", "valid"):
        shapes = ("speech_shape", f"text_shape.{tokens}")
        files += [f"{stats}/{part}/{name}" for name in shapes]
    files += [f"{stats}/train/feats_stats.npz"]
    files += [f"exp/asr_large/{name}" for name in ("config.yaml", "valid.acc.ave.pth")]
    sets = names["test_sets"].split() + [valid] * (names["eval_valid_set"] == "true")
    files += [f"{data}/{each}/{name}" for each in sets for name in ("wav.scp", "text")]
    files += [names["nlsyms_txt"]] * (names["nlsyms_txt"] != "none")
    files += [f"{names['lm_exp']}/config.yaml"] * bool(lm)
    return set(files)


@pytest.fixture
def recipe(request, espnet_root: Path, tmp_path: Path) -> Path:
    """A recipe of ESPnet into which kd.sh is dropped as on the page."""
    if not (espnet_root / "egs2" / request.param / "asr1/run.sh").exists():
        pytest.skip(f"{espnet_root} has no egs2/{request.param}/asr1")
    folder = copy_recipe(espnet_root, request.param, tmp_path)
    # AISHELL's path.sh looks for this.
    (tmp_path / "tools/kenlm/build/bin").mkdir(parents=True)
    module = (sys.executable, "-m", "espnet_kd.bin.install_recipe", ".")
    for command in (module, ("bash", "-c", line_with_kd_sh())):
        done = run(folder, *command)
        assert done.returncode == 0, done.stderr
    return folder


def make(folder: Path, files: set[str], names: dict[str, str]) -> None:
    """The files as asr.sh leaves them, abridged; run.sh trains the teacher."""
    lm = f"{names['lm_exp']}/config.yaml"
    if lm in files:
        files = {*files, f"{names['lm_exp']}/{names['inference_lm']}"}
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("utterance 1\n")
    tokens = ["<blank>", "<unk>", *"abc", "<sos/eos>"]
    (folder / names["token_list"]).write_text("\n".join(tokens) + "\n")
    line = ["--config", str(folder / names["asr_config"]), "--output_dir", "exp"]
    teacher = dict(vars(ASRTask.get_parser().parse_args(line)), token_list=tokens)
    for name in files & {"exp/asr_large/config.yaml", lm}:
        (folder / name).write_text(yaml.safe_dump(teacher))


def lacking(output: str) -> set[str]:
    """The files that kd.sh reports as missing."""
    errors = re.findall(r"^Error: (?:--use_lm true: )?(.*)$", output, re.MULTILINE)
    assert all(
        re.match(r"\S+: not found; |\S+ not found: |\S+: not found$", e) for e in errors
    )
    return {error.split()[0].rstrip(":") for error in errors}


@pytest.mark.parametrize("recipe", LINES, indirect=True)
def test_a_recipes_own_line(recipe: Path):
    """kd.sh accepts it, and looks for asr.sh's results by asr.sh's names."""
    names = names_by_asr_sh(recipe, "--asr_tag", "small")
    files = files_of(recipe.parent.name, names)
    before = set(recipe.rglob("*"))
    line = ("bash", "run_kd.sh", *KD_LINE.split())
    done = run(recipe, *line, "6")
    assert done.returncode == 1
    assert lacking(done.stderr) == files
    # From stage 1 on, everything but other people's models is made.
    assert lacking(run(recipe, *line, "1").stderr) == {
        name for name in files if name.startswith(("exp/asr_large", names["lm_exp"]))
    }
    assert set(recipe.rglob("*")) == before
    make(recipe, files, names)
    done = run(recipe, *line, "6")
    assert done.returncode == 0, done.stderr
    stages = re.findall(r"^ ?(\d+) .*  will run$", done.stdout, re.MULTILINE)
    assert stages == ["6", "8", "9", "10", "12", "13", "14"]


@pytest.mark.parametrize("recipe", ["tedlium3"], indirect=True)
def test_options_that_a_recipe_loses_are_missed(recipe: Path):
    """Its run.sh passes none on: kd.sh would begin at stage 1, and refuses."""
    before = set(recipe.rglob("*"))
    done = run(recipe, "bash", "run_kd.sh", *KD_LINE.split(), "6")
    assert done.returncode == 1
    assert "--teacher_exp (a trained teacher) or --teacher_asr_config" in done.stderr
    assert "--kd_config is needed" in done.stderr
    assert set(recipe.rglob("*")) == before


@pytest.mark.parametrize(
    "recipe, refused",
    [
        ("stop", "--token_type whisper_multilingual"),
        ("librimix", "--num_ref 2"),
        ("speechcommands", "--feats_type fbank_pitch"),
        ("uslu14", "--use_prompt true"),
    ],
    indirect=["recipe"],
)
def test_a_recipe_that_kd_cannot_train(recipe: Path, refused: str):
    """The message names the option of its run.sh."""
    done = run(recipe, "bash", "run_kd.sh", *KD_LINE.split(), "6")
    assert done.returncode == 1
    assert f"Error: {refused}: " in done.stderr


@pytest.mark.parametrize("recipe", ["an4"], indirect=True)
@pytest.mark.parametrize(
    "option, value",
    [
        ("--valid_set", "train_nodev"),
        ("--test_sets", "test train_nodev"),
        ("--use_word_lm", "true"),
        ("--token_type", "phn"),
        ("--feats_type", "fbanks"),
    ],
)
def test_what_asr_sh_refuses_is_refused_at_once(recipe: Path, option: str, value: str):
    """Not only in stage 12, where kd.sh calls asr.sh."""
    with pytest.raises(ValueError, match="Error: "):
        names_by_asr_sh(recipe, option, value)
    done = run(recipe, "bash", "run_kd.sh", *KD_LINE.split(), "1", option, value)
    assert done.returncode == 1
    assert f"Error: {option} {value}: " in done.stderr
