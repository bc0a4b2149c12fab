"""A cluster of many machines on one: Postgres, an S3 server, a Ray head and Ray workers, Dagster's code server and daemon, each a process.

Each Ray worker is in a network namespace with an address of its own where that is permitted (Linux, root, the command `ip`); elsewhere it
has a loopback address of its own. What is configured is what a deployment configures: `deploy/postgres-ray/dagster.yaml` and the
environment. Nothing listens beyond this machine, and everything is gone when the `with` block ends.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

DAGSTER_YAML = Path(__file__).parent / "postgres-ray" / "dagster.yaml"
BIN = Path(sys.executable).parent
START_SECONDS = 120  # patience with one service on a busy machine
BUCKET = "paired-index"
POSTGRES_BINARIES = "/usr/lib/postgresql/*/bin"  # where Debian hides them


class LocalCluster:
    """`with LocalCluster(workers=2) as cluster:` what is built in `cluster.root`, in a bucket, is built on its workers.

    `environment` is what a process needs to be part of it; `more` is added to that. `s3` is the command of the S3 server, which takes -H and -p.
    """

    root = f"s3://{BUCKET}/build"

    def __init__(self, workers: int = 2, more: Mapping[str, str] | None = None, s3: Sequence[str] = ("moto_server",)) -> None:
        self.s3 = s3
        self.folder = Path(tempfile.mkdtemp(prefix="paired-index-cluster-", dir="/tmp"))
        self.folder.chmod(0o755)  # Postgres runs as another user where we are root
        self.workers = {f"worker-{number}": number for number in range(1, workers + 1)}
        self.network: Network = Network(workers)
        self.environment = os.environ | {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # a run on a node is `dagster api execute_run`
            "NO_PROXY": "*",
            "DAGSTER_HOME": str(self.folder / "dagster"),
            "DAGSTER_COMPUTE_LOGS": str(self.folder / "logs"),
            "DAGSTER_POSTGRES_HOST": self.network.head,
            "DAGSTER_POSTGRES_PORT": str(free_port()),
            "DAGSTER_POSTGRES_USER": "dagster",
            "DAGSTER_POSTGRES_PASSWORD": secrets.token_urlsafe(16),
            "DAGSTER_POSTGRES_DB": "dagster",
            "RAY_DASHBOARD": f"http://{self.network.head}:{free_port()}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "AWS_ENDPOINT_URL": f"http://{self.network.head}:{free_port()}",
            "AWS_ACCESS_KEY_ID": "demo",
            "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(16),
            "AWS_DEFAULT_REGION": "us-east-1",
            "PAIRED_INDEX_ROOT": self.root,
            **(more or {}),
        }
        self.ray_port = free_port()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._closing = ExitStack()

    def __enter__(self) -> LocalCluster:
        with ExitStack() as undo:  # if one service does not start, the others are stopped
            undo.callback(shutil.rmtree, self.folder, ignore_errors=True)
            undo.enter_context(self.network)
            undo.callback(self._stop_all)
            self._start_postgres()
            self._start_s3()
            self._start_ray()
            self._closing = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def start_dagster(self) -> None:
        """The code server and the daemon: sensors, automation, backfills, monitoring and retries begin."""
        home, port = Path(self.environment["DAGSTER_HOME"]), free_port()
        home.mkdir()
        shutil.copy(DAGSTER_YAML, home / "dagster.yaml")
        self.workspace.write_text(f"load_from:\n  - grpc_server: {{host: 127.0.0.1, port: {port}, location_name: paired_index}}\n")
        definitions = ["-m", "dagster_project.definitions"]
        self._start("code-server", ["dagster", "code-server", "start", "-h", "127.0.0.1", "-p", str(port), *definitions])
        self._wait_for("code-server", lambda: answers("127.0.0.1", port))
        self._start("daemon", ["dagster-daemon", "run", "-w", str(self.workspace)])

    @property
    def workspace(self) -> Path:
        return Path(self.environment["DAGSTER_HOME"]) / "workspace.yaml"

    def kill(self, name: str) -> None:
        """A node as when its plug is pulled: every process on it gets SIGKILL."""
        process = self._running.pop(name)
        for number in [process.pid, *descendants(process.pid)]:
            with suppress(ProcessLookupError):  # it may have ended since it was seen
                os.kill(number, signal.SIGKILL)
        process.wait()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def _start_postgres(self) -> None:
        data, password = self.folder / "postgres", self.folder / "password"
        user = "postgres" if os.geteuid() == 0 else None  # it refuses to be root
        data.mkdir()
        password.write_text(self.environment["DAGSTER_POSTGRES_PASSWORD"])
        if user:
            shutil.chown(data, user)
            shutil.chown(password, user)
        auth = ["--auth-local=reject", "--auth-host=scram-sha-256", f"--pwfile={password}"]
        made = [postgres_binary("initdb"), "-D", str(data), "-U", self.environment["DAGSTER_POSTGRES_USER"], *auth, "--no-sync"]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL, user=user, cwd=data)
        password.unlink()
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {self.network.head}/24 scram-sha-256\n")
        port = self.environment["DAGSTER_POSTGRES_PORT"]
        serve = [postgres_binary("postgres"), "-D", str(data), "-h", self.network.head, "-p", port, "-k", "", "-c", "fsync=off"]
        self._start("postgres", serve, user=user)
        self._wait_for("postgres", self._make_database)

    def _make_database(self) -> bool:
        import psycopg2

        given = {name: self.environment[f"DAGSTER_POSTGRES_{name.upper()}"] for name in ("host", "port", "user", "password")}
        try:
            connection = psycopg2.connect(dbname="postgres", connect_timeout=5, **given)
        except psycopg2.OperationalError:
            return False
        connection.autocommit = True
        connection.cursor().execute("CREATE DATABASE dagster")
        connection.close()
        return True

    def _start_s3(self) -> None:
        import s3fs

        address = self.environment["AWS_ENDPOINT_URL"]
        port = address.rpartition(":")[2]
        self._start("s3", [*self.s3, "-H", self.network.head, "-p", port])
        self._wait_for("s3", lambda: answers(self.network.head, int(port)))
        given = {"key": self.environment["AWS_ACCESS_KEY_ID"], "secret": self.environment["AWS_SECRET_ACCESS_KEY"]}
        s3fs.S3FileSystem(endpoint_url=address, skip_instance_cache=True, **given).mkdir(BUCKET)

    def _start_ray(self) -> None:
        head, dashboard = self.network.head, int(self.environment["RAY_DASHBOARD"].rpartition(":")[2])
        common = ["ray", "start", "--block", "--disable-usage-stats", "--object-store-memory=100000000", "--num-gpus=0"]
        ports = [f"--port={self.ray_port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"]
        where = [f"--node-ip-address={head}", f"--dashboard-host={head}", f"--temp-dir={self.folder / 'ray'}"]
        self._start("ray-head", [*common, "--head", "--num-cpus=0", *ports, *where])
        self._wait_for("ray-head", lambda: answers(head, dashboard))
        for name, number in self.workers.items():
            mine = [f"--node-ip-address={self.network.address(number)}", f"--dashboard-agent-listen-port={free_port()}"]
            only_here = [f'--resources={{"{name}": 1}}', "--num-cpus=1"]
            join = [*self.network.inside(number), *common, f"--address={head}:{self.ray_port}", *mine, *only_here]
            self._start(name, join, PAIRED_INDEX_CACHE=str(self.folder / name))
            self._wait_for(name, partial(self._is_alive, name))

    def nodes(self) -> dict[str, str]:
        """Address -> name of the workers that Ray counts as alive."""
        from ray.util.state import list_nodes

        names = {self.network.address(number): name for name, number in self.workers.items()}
        alive = list_nodes(address=self.environment["RAY_DASHBOARD"], filters=[("state", "=", "ALIVE")])
        return {node.node_ip: names[node.node_ip] for node in alive if node.node_ip in names}

    def _is_alive(self, worker: str) -> bool:
        return worker in self.nodes().values()

    def _start(self, name: str, command: list[str], user: str | None = None, **more: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                command, stdout=log, stderr=log, env=self.environment | more, cwd=self.folder, user=user, start_new_session=True
            )

    def _wait_for(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if self._running[name].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} does not start:\n{self.log(name)[-2000:]}")
            time.sleep(0.5)

    def _stop_all(self) -> None:
        for name in reversed(list(self._running)):
            self.kill(name)


class Network:
    """The addresses of the head (this machine) and of the workers."""

    def __init__(self, workers: int) -> None:
        self.workers = range(1, workers + 1)
        self.bridge = f"pi{os.getpid()}"  # names of interfaces have 15 characters
        # Of a range set aside for tests (RFC 2544), which no real network has; each cluster in another, if one was killed and its bridge stayed.
        self.subnet = f"198.18.{os.getpid() % 256}"
        self.separate = os.geteuid() == 0 and shutil.which("ip") is not None and can_make_namespaces(self.bridge)
        self.head = f"{self.subnet}.1" if self.separate else "127.0.0.1"

    def address(self, worker: int) -> str:
        return f"{self.subnet if self.separate else '127.0.0'}.{worker + 1}"

    def inside(self, worker: int) -> list[str]:
        """What precedes a command that is to run on this worker."""
        return ["ip", "netns", "exec", f"{self.bridge}-{worker}"] if self.separate else []

    def __enter__(self) -> Network:
        if self.separate:
            ip("link", "add", self.bridge, "type", "bridge")
            ip("address", "add", f"{self.head}/24", "dev", self.bridge)
            ip("link", "set", self.bridge, "up")
            for worker in self.workers:
                space, outer = f"{self.bridge}-{worker}", f"{self.bridge}v{worker}"
                ip("netns", "add", space)
                ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
                ip("link", "set", outer, "master", self.bridge, "up")
                ip("-n", space, "address", "add", f"{self.address(worker)}/24", "dev", "eth0")
                for device in ("lo", "eth0"):
                    ip("-n", space, "link", "set", device, "up")
        return self

    def __exit__(self, *_: object) -> None:
        if self.separate:
            for worker in self.workers:
                ip("netns", "delete", f"{self.bridge}-{worker}")
            ip("link", "delete", self.bridge)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def can_make_namespaces(name: str) -> bool:
    try:
        ip("netns", "add", name)
        ip("netns", "delete", name)
    except subprocess.CalledProcessError:
        return False
    return True


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def answers(host: str, port: int) -> bool:
    with socket.socket() as one:
        one.settimeout(2)
        return one.connect_ex((host, port)) == 0


def postgres_binary(name: str) -> str:
    found = shutil.which(name) or next((str(path) for path in sorted(Path("/").glob(f"{POSTGRES_BINARIES[1:]}/{name}"))), None)
    if found is None:
        raise RuntimeError(f"{name} is not installed: install the package postgresql (15 or newer)")
    return found


def descendants(process: int) -> list[int]:
    """The ids of the processes under this one, whatever their group and session."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            children.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    found = list(children.get(process, []))
    for one in found:
        found += children.get(one, [])
    return found
