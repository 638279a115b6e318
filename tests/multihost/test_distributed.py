"""Hosts of a job exchange values, fail together, and refuse to start where they differ."""

from __future__ import annotations

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.multihost import (
    coordination,
    distributed,
    startup,
)
from fasttta_jax.multihost.distributed import HostsDisagree, StartError
from tests.support import launch

ADDRESS, COUNT, INDEX = startup.VARIABLES


@pytest.fixture(autouse=True)
def _outside_any_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_")) or name in startup.VARIABLES:
            monkeypatch.delenv(name)


class TestOneHost:
    def test_start_and_finish_do_nothing(self) -> None:
        program = (
            "from fasttta_jax.multihost import coordination, distributed\n"
            "distributed.start()\n"
            "print(coordination.is_running(), coordination.index(), coordination.count())\n"
            "distributed.finish()\n"
        )
        (result,) = launch.run(["-c", program], num_processes=1)  # before jax's first computation
        assert result.stdout.split() == ["False", "0", "1"]

    def test_exchanges_are_trivial(self) -> None:
        assert distributed.gather({"a": (1, 2)}) == [{"a": [1, 2]}]
        distributed.check_agreement({"config": {"seed": 1}})
        distributed.agree_ok(None)
        assert distributed.on_first_host(max, 2, 3) == 3

    def test_errors_keep_their_identity(self) -> None:
        error = ValueError("mine")
        with pytest.raises(ValueError, match="mine") as caught:
            distributed.agree_ok(error)
        assert caught.value is error
        with pytest.raises(ZeroDivisionError):
            distributed.on_first_host(lambda: 1 / 0)

    def test_to_host_gives_whole_arrays(self) -> None:
        mesh = jax.make_mesh((8,), ("data",))
        sharding = jax.NamedSharding(mesh, jax.P("data"))
        tree = {"x": jax.device_put(jnp.arange(16.0), sharding), "step": jnp.int32(3)}
        whole = distributed.to_host(tree)
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(whole))
        np.testing.assert_array_equal(whole["x"], np.arange(16.0))
        assert whole["step"] == 3


class TestPlace:
    def test_arguments_come_before_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in ((ADDRESS, "other:1"), (COUNT, "9"), (INDEX, "8")):
            monkeypatch.setenv(name, value)
        assert startup.find_place("host:1234", 4, 0) == ("host:1234", 4, 0, "flags")
        assert startup.find_place(None, None, None) == ("other:1", 9, 8, "environment")

    def test_nothing_given_is_left_to_detection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert startup.find_place(None, None, None) is None
        monkeypatch.setenv(ADDRESS, "10.0.0.1:1234")  # jax takes it for the rest that it detects
        assert startup.find_place(None, None, None) is None

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (("host:1", None, None), "--num_processes and --process_id are not set; set all three"),
            (("host:1", 2, None), "--process_id is not set"),
            ((None, 2, 0), "--coordinator_address is not set"),
            (("host", 2, 0), r"--coordinator_address is 'host'; allowed: host:port"),
            (("host:1", 0, 0), "--num_processes is 0; allowed: 1 or more"),
            (("host:1", 2, 2), "--process_id is 2; allowed: from 0 to 1, as --num_processes is 2"),
            (("host:1", 2, -1), "--process_id is -1; allowed: from 0 to 1"),
        ],
    )
    def test_half_a_place_is_refused(self, given: tuple, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            distributed.start(*given)
        assert not coordination.is_running()

    def test_wrong_environment_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(COUNT, "2")
        with pytest.raises(ValueError, match=f"{ADDRESS} and {INDEX} are not set"):
            distributed.start()
        monkeypatch.setenv(ADDRESS, "host:1")
        monkeypatch.setenv(INDEX, "first")
        with pytest.raises(ValueError, match=f"{INDEX} is 'first'; allowed: a whole number"):
            distributed.start()

    @pytest.mark.parametrize(
        ("tasks", "gpus", "ids"),
        [
            ("1(x4)", "8", list(range(8))),
            ("1", "2", [0, 1]),
            ("8(x4)", "8", None),
            ("1(x4)", "1", None),
            ("1,2", "8", None),
            ("", "", None),
        ],
    )
    def test_a_nodes_only_slurm_task_has_all_its_gpus(
        self, monkeypatch: pytest.MonkeyPatch, tasks: str, gpus: str, ids: list[int] | None
    ) -> None:
        monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", tasks)
        monkeypatch.setenv("SLURM_GPUS_ON_NODE", gpus)
        assert startup.slurm_device_ids() == ids


def test_slurm_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """What jax is left to find, found: a job of one task, as srun describes it to the task."""
    script = (
        "from fasttta_jax.multihost import coordination, distributed\n"
        "distributed.start(start_timeout=30)\n"
        "print(coordination.is_running(), coordination.count(), coordination.address())\n"
        "distributed.finish()\n"
    )
    port = launch.free_port()
    slurm = {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "JAX_COORDINATOR_PORT": str(port),
    }
    (result,) = launch.run(["-c", script], 1, 2, env=slurm)
    assert result.stdout.strip() == f"True 1 localhost:{port}"


def test_silent_coordinator_is_named(tmp_path: pathlib.Path) -> None:
    script = (
        "from fasttta_jax import cli\n"
        "from fasttta_jax.multihost import distributed\n"
        "cli.run(lambda: distributed.start('localhost:1', 2, 1, start_timeout=1))\n"
    )
    path = tmp_path / "script.py"
    path.write_text(script)
    with launch.start([str(path)], num_processes=1) as job:
        (result,) = job.wait(60)
    assert result.returncode == 69, job.outputs()
    assert "process 1 of 2 waited 1 s for its job: the coordinator localhost:1" in result.stderr
    assert "refused" in result.stderr
    assert "Check that process 0 runs on that machine" in result.stderr
    assert issubclass(StartError, RuntimeError)


EXCHANGES = """
import json, os, sys, time
import jax, numpy as np
from fasttta_jax.multihost import coordination, distributed

distributed.start()
distributed.start()
index = coordination.index()
said = {}

def attempt(name, function, *arguments, **options):
    try:
        said[name] = function(*arguments, **options)
    except Exception as error:
        said[name] = [type(error).__name__, str(error)]

def refuse():
    raise FileNotFoundError(2, "No such file", "/data")

def unusual():
    return "e".encode("utf-16").decode("ascii")

said["processes"] = [jax.process_index(), jax.process_count(), jax.device_count()]
attempt("gather", distributed.gather, {"host": index, "pair": (1, 2)})
attempt("many", lambda: [distributed.gather(index * n) for n in range(5)])
equal = {"config": {"seed": 1, "mesh": {"data": -1}}, "code": distributed.code_version()}
attempt("agree", distributed.check_agreement, equal)
other = {"config": {"seed": 1, "mesh": {"data": index}}, "data": ("ab" * 32) + str(index)}
if index:
    other["only"] = None
attempt("disagree", distributed.check_agreement, other)
attempt("first", distributed.on_first_host, lambda: ["from", index])
attempt("refuse", distributed.on_first_host, refuse)
attempt("unusual", distributed.on_first_host, unusual)
attempt("not_json", distributed.on_first_host, object)
attempt("all_well", distributed.agree_ok, None)
attempt("one_ill", distributed.agree_ok, OSError("disk full") if index else None)
attempt("same_ill", distributed.agree_ok, ValueError("loss is nan"))
attempt("all_ill", distributed.agree_ok, [ValueError("here"), OSError("there")][index])
mesh = jax.make_mesh((4,), ("data",))
place = lambda spec: jax.device_put(np.arange(8.0), jax.NamedSharding(mesh, spec))
whole = distributed.to_host({"rows": place(jax.P("data")), "copies": place(jax.P())})
said["whole"] = {name: value.tolist() for name, value in whole.items()}
if index:
    time.sleep(1.5)
attempt("late", distributed.gather, 1, what=["load", "save"][index], timeout=[0.5, 60][index])
print(json.dumps(said))
distributed.finish()
"""


def test_two_hosts_exchange_and_fail_together() -> None:
    results = launch.run(["-c", EXCHANGES], num_processes=2, devices_per_process=2)
    first, second = (json.loads(result.stdout.splitlines()[-1]) for result in results)
    assert first["processes"] == [0, 2, 4]
    assert second["processes"] == [1, 2, 4]
    for said in (first, second):
        assert said["gather"] == [{"host": 0, "pair": [1, 2]}, {"host": 1, "pair": [1, 2]}]
        assert said["many"] == [[0, n] for n in range(5)]
        assert said["agree"] is None
        kind, text = said["disagree"]
        assert kind == HostsDisagree.__name__
        assert "config.mesh.data: 0 on host 0; 1 on host 1" in text
        assert "only: absent on host 0; None on host 1" in text
        assert "config.seed" not in text
        (line,) = [line for line in text.splitlines() if line.startswith("  data: ")]
        assert line.count("sha256") == 2
        assert len(line) < 160
        assert said["first"] == ["from", 0]
        assert said["refuse"] == ["FileNotFoundError", "[Errno 2] No such file: '/data'"]
        assert said["not_json"][0] == "TypeError"
        assert said["all_well"] is None
        assert said["one_ill"] == ["OSError", "host 1 of 2: disk full"]
        assert said["same_ill"] == ["ValueError", "loss is nan"]
        assert said["all_ill"] == ["RuntimeError", "host 0 of 2: here; host 1 of 2: there"]
        assert said["whole"] == {name: list(range(8)) for name in ("rows", "copies")}
    # An error that cannot be made from its text alone keeps name and text.
    assert first["unusual"][0] == "UnicodeDecodeError"
    assert second["unusual"] == ["RuntimeError", f"UnicodeDecodeError: {first['unusual'][1]}"]
    assert first["late"][0] == "TimeoutError"
    assert "host 1 of 2 did not come to load within 0.5 s" in first["late"][1]
    assert second["late"][0] == "RuntimeError"
    assert "host 0 at 'load', host 1 at 'save'" in second["late"][1]


def test_different_numbers_of_processes_are_refused() -> None:
    script = (
        "import os\n"
        "from fasttta_jax.multihost import distributed\n"
        "index = int(os.environ['JAX_PROCESS_ID'])\n"
        "address = os.environ['JAX_COORDINATOR_ADDRESS']\n"
        "try:\n"
        "    distributed.start(address, 2 + index, index, start_timeout=30)\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    with launch.start(["-c", script], num_processes=2, devices_per_process=1) as job:
        results = job.wait(60)
    for result in results:
        assert "it was given as 2 by process 0, 3 by process 1" in result.stdout, job.outputs()


def test_code_version_follows_the_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    version = distributed.code_version()
    assert version["jax"] == jax.__version__
    assert {"flax", "optax", "orbax-checkpoint"} <= set(version)
    hashes = set()
    for content in ("x = 1\n", "x = 2\n"):
        (tmp_path / "module.py").write_text(content)
        monkeypatch.setattr(distributed, "PACKAGE", tmp_path)
        distributed.code_version.cache_clear()
        hashes.add(distributed.code_version()["fasttta_jax"])
    distributed.code_version.cache_clear()
    assert len(hashes) == 2
