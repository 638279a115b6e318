"""The launch recipes: they parse, name flags and fields that exist, and agree on exit codes."""

from __future__ import annotations

import ast
import dataclasses
import os
import pathlib
import re
import subprocess
from typing import Any

import pytest
import yaml
from absl import flags

import generate
from fasttta_jax.config import RunConfig
from fasttta_jax.multihost import exit_codes, startup

REPOSITORY = pathlib.Path(__file__).parents[2]
FOLDER = REPOSITORY / "launch"
SHELL = sorted([*FOLDER.glob("*.sh"), *FOLDER.glob("*.sbatch")])
YAML = sorted(FOLDER.glob("jobset_*.yaml"))
GENERATING = sorted(FOLDER.glob("generate*"))
RECIPES = sorted({*SHELL, *YAML} - {*GENERATING})
ABORTED, KILLED = 134, 137  # as a shell sees signals 6 and 9


def names(files: list[pathlib.Path]) -> list[str]:
    return [file.name for file in files]


def flags_of_train() -> set[str]:
    """First arguments of the DEFINE_* calls in train.py and cli.py."""
    found = set()
    for file in (REPOSITORY / "train.py", REPOSITORY / "fasttta_jax" / "cli.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            function = getattr(node, "func", None)
            if getattr(function, "attr", "").startswith("DEFINE_"):
                found.add(node.args[0].value)  # type: ignore[attr-defined]
    return found


def train_arguments(text: str) -> list[str]:
    """What a recipe, or the example in its header, hands to train.py."""
    return re.findall(r"--(config(?:\.[\w.]+)?|workdir|[a-z]+_[a-z_]+)=", text)


@pytest.mark.parametrize("recipe", RECIPES, ids=names(RECIPES))
def test_flags_and_fields_exist(recipe: pathlib.Path) -> None:
    arguments = train_arguments(recipe.read_text())
    assert {"config", "workdir"} <= set(arguments)
    for argument in arguments:
        head, *fields = argument.split(".")
        assert head in flags_of_train(), argument
        node: Any = RunConfig()
        for field in fields:
            assert field in {known.name for known in dataclasses.fields(node)}, argument
            node = getattr(node, field)


def test_flags_of_the_readme_exist() -> None:
    text = (FOLDER / "README.md").read_text()
    flags = re.findall(r"--([a-z_]+)=", text)
    assert {"coordinator_address", "num_processes", "process_id"} <= set(flags)
    assert set(flags) <= flags_of_train()
    for variable in startup.VARIABLES:
        assert f"`{variable}`" in text
    for recipe in (*RECIPES, *GENERATING):
        assert f"`{recipe.name}`" in text


@pytest.mark.parametrize("recipe", RECIPES, ids=names(RECIPES))
def test_configs_that_are_named_exist(recipe: pathlib.Path) -> None:
    configs = re.findall(r"configs/\w+\.py", recipe.read_text())
    assert configs
    for config in configs:
        assert (REPOSITORY / config).is_file(), config


@pytest.mark.parametrize("recipe", SHELL, ids=names(SHELL))
def test_shell_recipes_parse_and_say_what_is_missing(recipe: pathlib.Path) -> None:
    subprocess.run(["bash", "-n", str(recipe)], check=True, timeout=10)
    if recipe.suffix == ".sh":
        assert os.access(recipe, os.X_OK)
    done = subprocess.run(
        ["bash", str(recipe)],
        env={"PATH": os.environ["PATH"], "HOME": "/", "SLURM_SUBMIT_DIR": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert done.returncode != 0
    assert re.search(r"the config file|a name for|the table of prompts", done.stderr)


def stub(folder: pathlib.Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("code", "again"),
    [(0, False), (exit_codes.ERROR, False), (ABORTED, True), (KILLED, True)]
    + [(code, True) for code in exit_codes.START_AGAIN],
)
def test_slurm_requeues_what_is_worth_another_start(
    tmp_path: pathlib.Path, code: int, again: bool
) -> None:
    """With a scheduler of two commands: srun ends with a code, scontrol writes what it is told."""
    stub(tmp_path, "srun", f'echo "$@" > {tmp_path}/ran; exit {code}')
    stub(tmp_path, "scontrol", f'echo "$@" > {tmp_path}/told')
    arguments = ["configs/tiny.py", str(tmp_path / "run"), "--config.seed=3"]
    done = subprocess.run(
        ["bash", str(FOLDER / "slurm.sbatch"), *arguments],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_SUBMIT_DIR": str(REPOSITORY),
            "SLURM_JOB_ID": "77",
        },
        timeout=10,
        check=False,
    )
    assert done.returncode == code
    ran = (tmp_path / "ran").read_text()
    assert f"python train.py --config=configs/tiny.py --workdir={tmp_path}/run" in ran
    assert "--config.seed=3" in ran
    assert (tmp_path / "told").exists() == again
    if again:
        assert (tmp_path / "told").read_text() == "requeue 77\n"


@pytest.mark.parametrize("recipe", GENERATING, ids=names(GENERATING))
def test_flags_of_generating_exist(recipe: pathlib.Path) -> None:
    known = flags.FlagValues()
    generate.define_flags(known)
    text = re.sub(r"^#SBATCH.*$", "", recipe.read_text(), flags=re.MULTILINE)
    given = set(re.findall(r"(?:^| )(?:- )?--([a-z_]+)=", text, re.MULTILINE))
    assert {"prompts", "out"} <= given <= set(known)


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, False), (KILLED, True), (143, True)])
def test_slurm_makes_what_is_missing(tmp_path: pathlib.Path, code: int, again: bool) -> None:
    stub(tmp_path, "srun", f'echo "$@" > {tmp_path}/ran; exit {code}')
    stub(tmp_path, "scontrol", f'echo "$@" > {tmp_path}/told')
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(REPOSITORY),
        "SLURM_JOB_ID": "77",
    }
    command = ["bash", str(FOLDER / "generate.sbatch"), "a.csv", str(tmp_path / "sounds")]
    done = subprocess.run(
        [*command, "--store=tar"], env=environment, timeout=10, check=False, capture_output=True
    )
    assert done.returncode == code
    ran = (tmp_path / "ran").read_text()
    assert f"python generate.py --prompts=a.csv --out={tmp_path}/sounds" in ran
    assert ran.endswith("--store=tar\n")
    assert (tmp_path / "told").exists() == again


def test_kubernetes_shares_the_prompts_by_index() -> None:
    spec = yaml.safe_load((FOLDER / "generate_job.yaml").read_text())["spec"]
    assert spec["completionMode"] == "Indexed"
    (container,) = spec["template"]["spec"]["containers"]
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    assert given["JAX_NUM_PROCESSES"] == str(spec["completions"])
    assert ("JOB_COMPLETION_INDEX", "JAX_NUM_PROCESSES") in startup.SHARES
    rule = spec["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert (rule["containerName"], rule["values"]) == (container["name"], [exit_codes.ERROR])


@pytest.mark.parametrize(
    ("code", "again"),
    [(0, False), (exit_codes.ERROR, False), (exit_codes.PREEMPTED, False)]
    + [(code, True) for code in (exit_codes.LOST, exit_codes.HUNG, ABORTED, KILLED)],
)
def test_a_tpu_worker_starts_again_after_what_is_worth_it(
    tmp_path: pathlib.Path, code: int, again: bool
) -> None:
    """The command that each worker is given, run here; train.py ends with a code, then with 0."""
    (tmp_path / "fasttta_jax").mkdir()
    stub(tmp_path, "gcloud", 'for last; do :; done; bash -c "${last#--command=}"')
    stub(tmp_path, "sleep", "")
    stub(
        tmp_path,
        "python",
        f'echo "$@" >> {tmp_path}/ran; [ $(wc -l < {tmp_path}/ran) -gt 1 ] && exit 0; exit {code}',
    )
    prompts = "--config.sample_prompts=('a','b')"  # that a shell must not take apart
    done = subprocess.run(
        ["bash", str(FOLDER / "tpu_vm.sh"), "base", "configs/tiny.py", prompts],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "TPU": "pod",
            "ZONE": "zone",
            "BUCKET": "gs://bucket",
        },
        timeout=10,
        check=False,
    )
    runs = (tmp_path / "ran").read_text().splitlines()
    assert len(runs) == 1 + again
    assert done.returncode == (0 if again else code)
    assert runs[0].startswith("train.py --config=configs/tiny.py --workdir=gs://bucket/runs/base")
    assert runs[0].endswith(prompts)


def test_xpk_restarts_on_our_codes() -> None:
    codes = re.findall(r"--restart-on-exit-codes=([\d,]+)", (FOLDER / "xpk.sh").read_text())
    assert codes == [",".join(map(str, exit_codes.START_AGAIN))]


@pytest.mark.parametrize("recipe", YAML, ids=names(YAML))
def test_jobset_gives_up_on_errors_alone(recipe: pathlib.Path) -> None:
    spec = yaml.safe_load(recipe.read_text())["spec"]
    assert spec["failurePolicy"]["maxRestarts"] > 0
    assert spec["failurePolicy"]["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    (group,) = spec["replicatedJobs"]
    job = group["template"]["spec"]
    assert job["backoffLimit"] == 0  # any other failure restarts the set
    assert job["parallelism"] == job["completions"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {
        "containerName": container["name"],
        "operator": "In",
        "values": [exit_codes.ERROR],
    }
    assert pod["restartPolicy"] == "Never"  # which podFailurePolicy demands


def test_gpu_jobset_gives_each_pod_its_place() -> None:
    manifest = yaml.safe_load((FOLDER / "jobset_gpu.yaml").read_text())
    (group,) = manifest["spec"]["replicatedJobs"]
    job = group["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    given = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert set(startup.VARIABLES) <= set(given)
    name = manifest["metadata"]["name"]
    assert given["JAX_COORDINATOR_ADDRESS"] == f"{name}-{group['name']}-0-0.{name}:1234"
    assert given["JAX_NUM_PROCESSES"] == str(job["parallelism"] * group["replicas"])


def test_readme_lists_the_exit_codes() -> None:
    text = (FOLDER / "README.md").read_text()
    table = dict(re.findall(r"^\| (\d+) \|.*\| (yes|no) \|$", text, flags=re.MULTILINE))
    again = {str(code) for code in (*exit_codes.START_AGAIN, ABORTED, KILLED)}
    assert {code for code, answer in table.items() if answer == "yes"} == again
    assert {code for code, answer in table.items() if answer == "no"} == {"0", "1"}
