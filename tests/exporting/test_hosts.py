"""The scripts for several hosts, run in bash with launchers that only write down what they were given."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from autotune.config.knobs import RunConfig
from autotune.config.partition import CommunicationKnobs
from autotune.config.tuned import Launch, TunedConfig
from autotune.exporting import hosts
from autotune.exporting.targets import export

SCRIPTS = ["torchrun", "slurm", "mpirun"]
LAUNCHERS = {"torchrun": "torchrun", "slurm": "srun", "mpirun": "mpirun"}
BOUND = {"OMP_PLACES": "{0}", "OMP_PROC_BIND": "true", "GOMP_CPU_AFFINITY": "0"}
IN_A_JOB = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NTASKS_PER_NODE": "4"}


@dataclass(frozen=True)
class Started:
    """What a launcher was given."""

    arguments: list[str]
    environment: dict[str, str]

    def option(self, name: str) -> str:
        """The value of ``name=value`` or of ``name value``."""
        for i, argument in enumerate(self.arguments):
            if argument == name:
                return self.arguments[i + 1]
            if argument.startswith(f"{name}="):
                return argument.removeprefix(f"{name}=")
        raise AssertionError(f"no {name} in {self.arguments}")

    @property
    def forwarded(self) -> list[str]:
        """Names after ``-x``."""
        return [name for option, name in zip(self.arguments, self.arguments[1:], strict=False) if option == "-x"]


class Cluster:
    """A folder with the only executables that a script sees."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = folder / "bin", folder / "seen"
        self.folder.mkdir()
        self.seen.mkdir()
        for name in ("torchrun", "srun", "mpirun", "mpiexec"):
            self.add(name, f'printf "%s\\0" "$@" >{self.seen}/{name}.arguments; /usr/bin/env -0 >{self.seen}/{name}.environment')
        self.named("node-a")
        self.job("node-a")

    def add(self, name: str, body: str) -> None:
        file = self.folder / name
        file.write_text(f"#!/bin/bash\n{body}\n")
        file.chmod(0o755)

    def named(self, name: str, addresses: str = "10.0.0.1 fe80::1") -> None:
        self.add("uname", f'[[ "$*" == -n ]] && echo {name}')
        self.add("hostname", f'[[ "$*" == -I ]] && echo "{addresses} "')

    def job(self, *names: str) -> None:
        self.add("scontrol", f'[[ "$1 $2 $#" == "show hostnames 3" ]] && printf "%s\\n" {shlex.join(names)}')

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        file = self.folder.parent / "start.sh"
        file.write_text(script)
        subprocess.run(["/bin/bash", "-n", file], check=True)
        return subprocess.run(
            ["/bin/bash", file, *arguments], env={"PATH": str(self.folder), **environment}, capture_output=True, text=True, timeout=20
        )

    def start(self, script: str, *arguments: str, **environment: str) -> Started:
        done = self.run(script, *arguments, **environment)
        assert (done.returncode, done.stderr) == (0, "")
        (file,) = self.seen.glob("*.arguments")
        given = file.read_text().split("\0")[:-1]
        entries = file.with_suffix(".environment").read_text().split("\0")
        return Started(given, dict(entry.split("=", 1) for entry in entries if entry))

    def refuse(self, script: str, **environment: str) -> str:
        done = self.run(script, **environment)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert list(self.seen.iterdir()) == []
        return done.stderr


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.fixture
def four(tuned_config: TunedConfig) -> TunedConfig:
    """A config for four sockets, whose environment has the binding of the rank that tuned."""
    environment = {"OMP_NUM_THREADS": "2", "OMP_PLACES": "{0},{1}", "MALLOC_TRIM_THRESHOLD_": "4", "ODD": "it's $HOME", "RANK": "7"}
    launch = Launch(threads=2, cpus=(0, 1), environment=environment)
    return tuned_config.model_copy(update={"sockets": 4, "launch": launch})


def edited(script: str, **values: str) -> str:
    """The script with its edit lines changed; each must be there once and marked as one, or below a comment that is."""
    for name, value in values.items():
        option = f"#SBATCH --{name.replace('_', '-')}"
        pattern = rf"(?m)^{option}=\S+$" if name.islower() else rf"(?m)^{name}=\S+  # edit: "
        line = f"{option}={value}" if name.islower() else f"{name}={value}  # edit: "
        script, count = re.subn(pattern, lambda _, line=line: line, script)
        assert count == 1, name
    return script


def two_hosts(script: str) -> str:
    return edited(script, HOSTS="(node-a node-b)", RANKS_PER_HOST="2")


@pytest.mark.parametrize("to", SCRIPTS)
def test_one_host_is_the_default_and_meets_on_loopback(cluster: Cluster, four: TunedConfig, to: str) -> None:
    started = cluster.start(export(four, to, "x.yaml"), "--steps", "3", **IN_A_JOB)
    assert started.environment["MASTER_ADDR"] == "127.0.0.1"
    assert started.environment["MASTER_PORT"] == str(hosts.PORT)
    assert started.environment["GLOO_SOCKET_IFNAME"] == "lo"
    config = str(Path("x.yaml").absolute())
    assert started.arguments[-8:] == ["-m", "autotune", "run", four.model, "--config", config, "--steps", "3"]


@pytest.mark.parametrize("to", SCRIPTS)
def test_ranks_get_the_environment_but_neither_binding_nor_rank(cluster: Cluster, four: TunedConfig, to: str) -> None:
    leftovers = {**BOUND, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    seen = cluster.start(export(four, to, "x.yaml"), **IN_A_JOB, **leftovers).environment
    assert {"OMP_NUM_THREADS": "2", "MALLOC_TRIM_THRESHOLD_": "4", "ODD": "it's $HOME"}.items() <= seen.items()
    assert not leftovers.keys() & seen.keys()


@pytest.mark.parametrize(
    ("name", "addresses", "listed", "rank"),
    [
        ("node-a", "", "(node-a node-b)", "0"),
        ("node-b", "", "(node-a node-b)", "1"),
        ("node-b.rack.example", "", "(node-a node-b)", "1"),
        ("node-b", "", "(node-a.example node-b.example)", "1"),
        ("x", "172.17.0.1 10.0.0.2", "(10.0.0.1 10.0.0.2)", "1"),
        ("a.rack2", "", "(a.rack1 a.rack2)", "1"),
        ("node-1", "", "(node-11 node-1)", "1"),
    ],
)
def test_torchrun_finds_its_place_among_the_hosts(
    cluster: Cluster, four: TunedConfig, name: str, addresses: str, listed: str, rank: str
) -> None:
    cluster.named(name, addresses)
    started = cluster.start(edited(export(four, "torchrun", "x.yaml"), HOSTS=listed, RANKS_PER_HOST="2"))
    assert started.option("--nnodes") == started.option("--nproc-per-node") == "2"
    assert started.option("--node-rank") == rank
    assert started.option("--master-addr") == started.environment["MASTER_ADDR"] == listed[1:].split()[0]
    assert started.option("--master-port") == started.environment["MASTER_PORT"] == str(hosts.PORT)
    assert "GLOO_SOCKET_IFNAME" not in started.environment


def test_torchrun_takes_its_place_from_the_environment(cluster: Cluster, four: TunedConfig) -> None:
    cluster.named("elsewhere")
    assert cluster.start(two_hosts(export(four, "torchrun", "x.yaml")), NODE_RANK="1").option("--node-rank") == "1"


@pytest.mark.parametrize(
    ("name", "listed", "environment", "message"),
    [
        ("elsewhere", "(node-a node-b)", {}, "HOSTS must have this host once, got elsewhere 0 times in node-a node-b"),
        ("node-a", "(node-a node-a)", {}, "got node-a 2 times"),
        ("a", "(a.rack1 a.rack2)", {}, "got a 2 times"),
        ("node-a", "(node-a node-b)", {"NODE_RANK": "2"}, "NODE_RANK must be 0 to 1, got 2"),
        ("node-a", "(node-a node-b)", {"NODE_RANK": "x"}, "NODE_RANK must be 0 to 1, got x"),
        ("node-a", "(node-a node-b)", {"NODE_RANK": "08"}, "NODE_RANK must be 0 to 1, got 08"),
    ],
)
def test_torchrun_refuses_a_host_without_a_place(
    cluster: Cluster, four: TunedConfig, name: str, listed: str, environment: dict[str, str], message: str
) -> None:
    cluster.named(name, "")
    script = edited(export(four, "torchrun", "x.yaml"), HOSTS=listed, RANKS_PER_HOST="2")
    assert message in cluster.refuse(script, **environment)


def test_torchrun_on_one_socket_stands_alone(cluster: Cluster, tuned_config: TunedConfig) -> None:
    assert cluster.start(export(tuned_config, "torchrun", "x.yaml")).arguments[:2] == ["--standalone", "--nproc-per-node=1"]


def test_slurm_starts_a_task_a_socket_and_leaves_binding_to_it(cluster: Cluster, four: TunedConfig) -> None:
    cluster.job("node-a", "node-b")
    script = export(four, "slurm", "x.yaml")
    started = cluster.start(script, SLURM_JOB_NODELIST="node-[a-b]", SLURM_NTASKS_PER_NODE="2")
    shape = {name: started.option(name) for name in ("--nodes", "--ntasks", "--ntasks-per-node", "--cpu-bind", "--mpi", "--export")}
    assert list(shape.values()) == ["2", "4", "2", "none", "none", "ALL"]
    assert not any(argument.startswith(("-c", "--cpus-per-task")) for argument in started.arguments[: started.arguments.index("-m")])
    assert started.arguments[started.arguments.index("-m") - 1] == "python"
    assert started.environment["MASTER_ADDR"] == "node-a"


def test_slurm_asks_for_whole_nodes_before_its_first_command(four: TunedConfig) -> None:
    knobs = RunConfig(threads=2, communication=CommunicationKnobs(communication_cores=1))
    script = export(four.model_copy(update={"config": knobs}), "slurm", "x.yaml")
    head = script[: script.index("\n\n")].splitlines()
    assert all(line.startswith("#") for line in head)
    asked = [line.removeprefix("#SBATCH --") for line in head if line.startswith("#SBATCH")]
    assert asked == ["job-name=autotune", "exclusive", "mem=0", "nodes=1", "ntasks-per-node=4", "cpus-per-task=3"]
    assert "#SBATCH" not in script[script.index("\n\n") :]


def test_slurm_is_started_with_sbatch(cluster: Cluster, four: TunedConfig) -> None:
    assert "start it with sbatch" in cluster.refuse(export(four, "slurm", "x.yaml"))


def test_slurm_ends_where_the_hosts_cannot_be_listed(cluster: Cluster, four: TunedConfig) -> None:
    cluster.add("scontrol", "echo no controller >&2; exit 1")
    done = cluster.run(export(four, "slurm", "x.yaml"), **IN_A_JOB)
    assert (done.returncode, done.stderr) == (1, "no controller\n")
    assert list(cluster.seen.iterdir()) == []


def test_mpirun_fills_the_hosts_and_forwards_the_environment(cluster: Cluster, four: TunedConfig) -> None:
    started = cluster.start(edited(two_hosts(export(four, "mpirun", "x.yaml")), INTERFACE="eth0"))
    assert (started.option("-np"), started.option("--host"), started.option("--bind-to")) == ("4", "node-a:2,node-b:2", "none")
    names = ["MALLOC_TRIM_THRESHOLD_", "MASTER_ADDR", "MASTER_PORT", "ODD", "OMP_NUM_THREADS", "PYTHONSAFEPATH", "GLOO_SOCKET_IFNAME"]
    assert started.forwarded == names
    assert set(names) <= started.environment.keys()
    assert started.environment["GLOO_SOCKET_IFNAME"] == "eth0"


def test_mpirun_names_the_interpreter_that_this_host_finds(cluster: Cluster, four: TunedConfig) -> None:
    cluster.add("python", "")
    arguments = cluster.start(export(four, "mpirun", "x.yaml")).arguments
    assert arguments[arguments.index("-m") - 1] == str(cluster.folder / "python")


def test_mpirun_has_the_line_for_mpich_in_a_comment(cluster: Cluster, four: TunedConfig) -> None:
    lines = two_hosts(export(four, "mpirun", "x.yaml")).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("# MPICH"))
    script = "\n".join([*lines[:at], *(line.removeprefix("#   ") for line in lines[at + 1 :] if line.startswith("#   "))])
    started = cluster.start(f"{script}\n", "--steps", "3")
    assert (started.option("-n"), started.option("-ppn"), started.option("-hosts")) == ("4", "2", "node-a,node-b")
    given = [started.arguments[i + 1 : i + 3] for i, argument in enumerate(started.arguments) if argument == "-genv"]
    assert ["ODD", "it's $HOME"] in given
    assert ["MASTER_ADDR", "node-a"] in given
    assert started.arguments[-2:] == ["--steps", "3"]


@pytest.mark.parametrize("to", SCRIPTS)
@pytest.mark.parametrize("sockets", [2, 3, 5])
def test_hosts_that_do_not_make_the_sockets_are_refused(cluster: Cluster, four: TunedConfig, to: str, sockets: int) -> None:
    cluster.job("node-a", "node-b")
    script = export(four.model_copy(update={"sockets": sockets}), to, "x.yaml")
    script = script if to == "slurm" else two_hosts(script)
    message = cluster.refuse(script, SLURM_JOB_NODELIST="node-[a-b]", SLURM_NTASKS_PER_NODE="2")
    assert f"must be the {sockets} sockets of the config, got 2 x 2" in message
    assert ("--ntasks-per-node" if to == "slurm" else "RANKS_PER_HOST") in message


@pytest.mark.parametrize("to", ["torchrun", "mpirun"])
@pytest.mark.parametrize("ranks", ["''", "0", "-4", "04", "four", "'a[$(touch /tmp/no)]'"])
def test_ranks_per_host_must_be_a_number(cluster: Cluster, four: TunedConfig, to: str, ranks: str) -> None:
    script = re.sub(r"(?m)^RANKS_PER_HOST=\S+", lambda _: f"RANKS_PER_HOST={ranks}", export(four, to, "x.yaml"))
    assert f"got 1 x {shlex.split(ranks)[0]} (HOSTS, RANKS_PER_HOST)" in cluster.refuse(script)


@pytest.mark.parametrize("to", SCRIPTS)
def test_the_meeting_point_is_what_the_lines_say(cluster: Cluster, four: TunedConfig, to: str) -> None:
    cluster.job("node-a", "node-b")
    script = export(four, to, "x.yaml")
    script = edited(script if to == "slurm" else two_hosts(script), RENDEZVOUS="10.0.0.1", MASTER_PORT="4000", INTERFACE="ib0")
    started = cluster.start(script, SLURM_JOB_NODELIST="node-[a-b]", SLURM_NTASKS_PER_NODE="2", GLOO_SOCKET_IFNAME="eth9")
    seen = [started.environment[name] for name in ("MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME")]
    assert seen == ["10.0.0.1", "4000", "ib0"]


def test_mpirun_can_start_one_socket(cluster: Cluster, tuned_config: TunedConfig) -> None:
    started = cluster.start(export(tuned_config, "mpirun", "x.yaml"))
    assert (started.option("-np"), started.option("--host")) == ("1", "localhost:1")


@pytest.mark.parametrize("to", SCRIPTS)
@pytest.mark.parametrize("sockets", [1, 4])
@pytest.mark.parametrize(
    "name", ['it\'s a "model".yaml', "a b/$(touch x)`touch x`\\.yaml[max_rows=10]", "two\ntouch x\n#lines", "é #SBATCH"]
)
def test_names_reach_autotune_as_they_are(cluster: Cluster, four: TunedConfig, tmp_path: Path, to: str, sockets: int, name: str) -> None:
    config = four.model_copy(update={"sockets": sockets, "model": name})
    script = export(config, to, tmp_path / name)
    started = cluster.start(script, "--data", "it's $HOME", **{**IN_A_JOB, "SLURM_NTASKS_PER_NODE": str(sockets)})
    assert started.arguments[-6:] == ["run", name, "--config", str(tmp_path / name), "--data", "it's $HOME"]


@pytest.mark.parametrize("to", SCRIPTS)
def test_the_config_can_lie_elsewhere(cluster: Cluster, four: TunedConfig, to: str) -> None:
    script = export(four, to, "x.yaml")
    assert cluster.start(script, **IN_A_JOB, AUTOTUNE_CONFIG="/else where/y.yaml").arguments[-1] == "/else where/y.yaml"
    assert cluster.start(edited(script, CONFIG="/z.yaml"), **IN_A_JOB).arguments[-1] == "/z.yaml"


@pytest.mark.parametrize("to", SCRIPTS)
def test_lines_fit_an_editor(four: TunedConfig, to: str) -> None:
    assert max(map(len, export(four, to, "x.yaml").splitlines())) <= 140
