"""train.py from the command line: wrong fields and values are answered with the right ones."""

import pathlib

import pytest

from fasttta_jax.multihost import exit_codes
from tests.support import commands, launch


def train(*arguments: str) -> tuple[int, str]:
    result = commands.run("train.py", *arguments, timeout=120)
    return result.returncode, result.stdout + result.stderr


CONFIG = "--config=configs/demo_teacher.py"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (
            ["--config.bachelor=1"],
            ["config.bachelor is not a field; the fields of config are: ", "num_steps"],
        ),
        (["--config.optimizer.lr=1"], ["the fields of config.optimizer are: ", "learning_rate"]),
        (
            ["--config.data.path.x=1"],
            ["config.data.path.x is not a field; config.data.path is one, and has none of its own"],
        ),
        (["--config.num_steps=many"], ["num_steps", "many"]),
        (
            ["--config.diffusion.prediction=x0"],
            ["diffusion.prediction is 'x0'; allowed: one of 'epsilon', 'v'"],
        ),
        (["--config.mesh.data=3"], ["mesh.data=3", "does not multiply to the 1 devices"]),
        (["--config.data.path=nowhere"], ["data.path is 'nowhere', which has no records/ folder"]),
    ],
)
def test_wrong_config_is_explained(
    arguments: list[str], messages: list[str], encoded_dataset: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    dataset = f"--config.data.path={encoded_dataset}"
    shape = ["--config.model.token_dim=8", "--config.model.num_tokens=8"]
    code, log = train(CONFIG, f"--workdir={tmp_path}", dataset, *shape, *arguments)
    assert code != 0
    for message in messages:
        assert message in log
    assert "Traceback" not in log


def test_missing_flags_and_help() -> None:
    code, log = train(CONFIG)
    assert code != 0
    assert "--workdir" in log
    code, log = train("--help")
    assert "python train.py --config=configs/demo_teacher.py --workdir=runs/demo/teacher" in log
    assert "Folder of the run; resumes if it holds one." in log


def test_unknown_config_variant(tmp_path: pathlib.Path) -> None:
    code, log = train("--config=configs/demo_student.py:frozen", f"--workdir={tmp_path}")
    assert code != 0
    assert "variant is 'frozen'; allowed:" in log
    assert "Traceback" not in log


FAILS_AS_ORBAX = """
from absl import logging
from fasttta_jax import cli

class Late:
    def __del__(self):
        raise RuntimeError("Event loop is closed")

def main():
    try:
        raise OSError("no room")
    except OSError:
        logging.exception("in a thread of the library")
        Late()
        raise

cli.run(main)
"""


def test_what_a_library_logs_and_raises_is_said_once() -> None:
    result = commands.run("-c", FAILS_AS_ORBAX)
    assert result.returncode == exit_codes.ERROR
    assert "error: no room" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Event loop" not in result.stderr


@pytest.mark.parametrize("override", [[], ["--config.num_steps=3"]])
def test_a_config_file_that_is_not_there_is_named(
    override: list[str], tmp_path: pathlib.Path
) -> None:
    code, log = train("--config=configs/demo_techer.py", f"--workdir={tmp_path}", *override)
    assert code != 0
    assert log.startswith("error: --config is 'configs/demo_techer.py', and there is no such file")


def test_a_config_file_without_a_config_is_named(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "three.py"
    file.write_text("def get_config():\n    return 3\n")
    code, log = train(f"--config={file}", f"--workdir={tmp_path}")
    assert code != 0
    assert f"'{file}', which cannot be read: its get_config() returns an object of type int" in log


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_flag_that_is_no_finite_number_is_named(value: str) -> None:
    result = commands.run("generate.py", "--prompt=rain", "--out=unused", f"--rms_dbfs={value}")
    assert result.returncode != 0
    assert f"error: --rms_dbfs is {value}; allowed: a finite number" in result.stderr


def test_home_is_expanded_where_the_shell_does_not(tmp_path: pathlib.Path) -> None:
    home = pathlib.Path("~").expanduser()
    _, log = train(CONFIG, f"--workdir={tmp_path}", "--config.data.path=~/not/there")
    assert f"data.path is '{home}/not/there'" in log


LOOP = ["-m", "tests.multihost.multiprocess.host_loop"]


def test_hosts_end_together_and_in_order(tmp_path: pathlib.Path) -> None:
    """None waits in vain for another that has ended, and every host says where it is."""
    command = [*LOOP, f"--folder={tmp_path}", "--num_steps=3"]
    results = launch.run(command, num_processes=2, devices_per_process=1)
    for host, result in enumerate(results):
        assert "complete" in result.stdout
        assert f"host {host} of 2: 1 of 2 devices (cpu)" in result.stderr


@pytest.mark.parametrize(
    ("fault", "host", "text"),
    [("error", 0, "this shard is broken"), ("bug", 1, "TypeError: not a number")],
)
def test_an_error_on_one_host_ends_all_and_is_told_by_all(
    tmp_path: pathlib.Path, fault: str, host: int, text: str
) -> None:
    flags = [f"--folder={tmp_path}", f"--fault={fault}", f"--host={host}"]
    with launch.start([*LOOP, *flags], num_processes=2, devices_per_process=1) as job:
        results = job.wait(60)
    assert [result.returncode for result in results] == [exit_codes.ERROR] * 2, job.outputs()
    assert f"error on host {host} of 2: {text}" in results[host].stderr
    assert f"host {host} of 2 stopped: {text}; this host stops too" in results[1 - host].stderr
    assert ("Traceback" in results[host].stderr) == (fault == "bug")
    assert "Traceback" not in results[1 - host].stderr


def test_exit_codes_differ_and_are_not_those_of_signals() -> None:
    codes = {exit_codes.ERROR, *exit_codes.START_AGAIN}
    assert len(codes) == 4
    assert all(0 < code < 128 for code in codes)
