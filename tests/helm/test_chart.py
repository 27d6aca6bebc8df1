"""The chart, rendered by real helm: what Kubernetes and KubeRay accept, what may run, what is refused.

`make chart` brings helm and lets no test skip for want of it. KUBERAY_CRDS names the folder of KubeRay's
schemas: without it their tests skip, and where it is set a schema that is missing there fails them.
"""

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from service import train
from tests.conftest import ROOT, need_package

CHART = ROOT / "helm" / "gan-training"
BINARIES = ROOT / ".cache" / "helm"
KUBERNETES = "1.37"
RELEASE = "demo"
FILES = sorted(path.name for path in (CHART / "ci").glob("*-values.yaml"))
JOBS = [name for name in FILES if name.startswith("job")]
CLUSTERS = [name for name in FILES if name.startswith("cluster")]

# Kinds that Kubernetes brings, and so kubernetes-validate knows; the others are of operators.
BUILT_IN = {"ServiceAccount", "PodDisruptionBudget", "NetworkPolicy", "Pod", "ConfigMap", "CronJob"}
OPERATORS = {"RayCluster", "RayJob", "PodMonitor", "PrometheusRule"}

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Helm:
    """A helm binary, and a copy of the chart that it can render."""

    binary: Path
    chart: Path

    def run(self, command: str, *more: str, values: str | Manifest) -> subprocess.CompletedProcess[str]:
        """Run a command with a file of ci/, or with these values."""
        given = isinstance(values, dict)
        file = "-" if given else CHART / "ci" / values
        return subprocess.run(
            [self.binary, *command.split(), self.chart, *more, "--values", file],
            input=json.dumps(values) if given else None,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def render(self, values: str | Manifest) -> list[Manifest]:
        """All manifests of a file of ci/, or of these values."""
        rendered = _file(self, values) if isinstance(values, str) else _template(self, values)
        # of C where libyaml is there: in Python alone it takes ten times as long
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        return [document for document in yaml.load_all(rendered, Loader=loader) if document]

    def refusal(self, values: Manifest) -> str:
        """What helm says of values that it must not take, without its advice on debugging."""
        done = self.run(f"template {RELEASE}", values=values)
        assert done.returncode != 0, done.stdout
        return done.stderr


def _template(helm: Helm, values: str | Manifest) -> str:
    done = helm.run(f"template {RELEASE}", "--namespace=gan", values=values)
    assert done.returncode == 0, done.stderr
    return done.stdout


_file = cache(_template)


@pytest.fixture(scope="session")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart without its dependencies, whose archives only their repositories have.

    They lie behind conditions, and none of our templates are theirs. Nothing is there beside the chart's
    own folder.
    """
    root = tmp_path_factory.mktemp("chart")
    shutil.copytree(CHART, root / CHART.name, symlinks=True)
    description = root / CHART.name / "Chart.yaml"
    content = yaml.safe_load(description.read_text())
    del content["dependencies"]
    description.write_text(yaml.safe_dump(content))
    shutil.rmtree(description.parent / "charts", ignore_errors=True)
    return description.parent


@pytest.fixture(scope="session", params=["4.3", "3.17"])
def helm(request: pytest.FixtureRequest, chart: Path) -> Helm:
    return installed(request.param, chart)


@pytest.fixture(scope="session")
def helm4(chart: Path) -> Helm:
    """For the notes, which helm 3 shows only where it reaches a cluster."""
    return installed("4.3", chart)


def installed(version: str, chart: Path) -> Helm:
    """This helm, if `make chart` has brought it; else the test skips, and in `make chart` it fails."""
    binary = BINARIES / version / "helm"
    if not binary.exists():
        remedy = f"{binary} is missing: make chart"
        if os.environ.get("HELM_REQUIRED"):
            pytest.fail(remedy)
        pytest.skip(remedy)
    return Helm(binary, chart)


@pytest.fixture(params=FILES)
def manifests(helm: Helm, request: pytest.FixtureRequest) -> list[Manifest]:
    """What a file of ci/ renders to."""
    return helm.render(request.param)


def ci(name: str, **sections: Any) -> Manifest:
    """The values of a file of ci/, whole sections updated."""
    values = yaml.safe_load((CHART / "ci" / name).read_text())
    for key, section in sections.items():
        values[key] = values.get(key, {}) | section if isinstance(section, dict) else section
    return values


def one(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = (m for m in manifests if m["kind"] == kind)
    return found


def cluster_spec(manifests: list[Manifest]) -> Manifest:
    """Of the RayCluster, or of the one that the RayJob makes."""
    (ray,) = (m for m in manifests if m["kind"] in ("RayCluster", "RayJob"))
    return ray["spec"].get("rayClusterSpec", ray["spec"])


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Every pod that comes of the release, with what KubeRay adds to the head: the autoscaler."""
    spec = cluster_spec(manifests)
    head = copy.deepcopy(spec["headGroupSpec"]["template"])
    if spec["enableInTreeAutoscaling"]:
        known = ("env", "resources", "securityContext", "volumeMounts")
        options = {key: spec["autoscalerOptions"][key] for key in known}
        image = head["spec"]["containers"][0]["image"]
        head["spec"]["containers"].append({"name": "autoscaler", "image": image} | options)
    yield "head", head
    for group in spec["workerGroupSpecs"]:
        yield "worker", group["template"]
    for manifest in manifests:
        if manifest["kind"] == "RayJob":
            yield "submitter", manifest["spec"]["submitterPodTemplate"]
        if manifest["kind"] == "Pod":
            yield "test", manifest
        if manifest["kind"] == "CronJob":
            yield "submitter", manifest["spec"]["jobTemplate"]["spec"]["template"]


def containers(pod: Manifest) -> list[Manifest]:
    return pod["spec"]["containers"] + pod["spec"].get("initContainers", [])


def environment(container: Manifest) -> dict[str, Any]:
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in container.get("env", [])}


# What others accept --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_lint_finds_nothing(helm, name):
    done = helm.run("lint --strict", values=name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


def test_built_in_kinds_keep_to_the_schemas_of_kubernetes(manifests):
    assert {m["kind"] for m in manifests} <= BUILT_IN | OPERATORS
    for manifest in manifests:
        if manifest["kind"] in BUILT_IN:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_pod_templates_inside_ray_kinds_keep_to_the_schema_of_a_pod(manifests):
    for role, pod in pods(manifests):
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": role}} | pod
        whole["metadata"] = {"name": role} | pod["metadata"]
        kubernetes_validate.validate(whole, KUBERNETES, strict=True)


def test_ray_kinds_keep_to_the_schemas_of_kuberay_and_hold_nothing_unknown(manifests):
    (ray,) = (m for m in manifests if m["kind"].startswith("Ray"))
    schema = closed(kuberay_schema(ray["kind"]))
    schema["properties"]["metadata"] = {"type": "object"}
    jsonschema.Draft202012Validator(schema).validate(ray)


def kuberay_schema(kind: str) -> Any:
    """The schema of a kind, from the folder that KUBERAY_CRDS names."""
    folder = os.environ.get("KUBERAY_CRDS")
    if not folder:
        pytest.skip("KUBERAY_CRDS names no folder of KubeRay's schemas")
    path = Path(folder) / f"{kind.lower()}s.v1.schema.json"
    if not path.exists():
        pytest.fail(f"{path} is missing, but KUBERAY_CRDS names its folder")
    return json.loads(path.read_text())


def closed(schema: Any) -> Any:
    """The schema, refusing what the API server would silently drop: properties that it does not name."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        schema.setdefault("additionalProperties", False)
    return schema


@pytest.mark.parametrize("name", JOBS)
def test_service_train_takes_the_command_of_a_ray_job(helm, name, capsys):
    entrypoint = one(helm.render(name), "RayJob")["spec"]["entrypoint"]
    python, dash_m, module, *arguments = shlex.split(entrypoint)
    assert [python, dash_m, module] == ["python", "-m", "service.train"]
    train.main([*arguments, "--print-config"])
    config = yaml.safe_load(capsys.readouterr().out)
    values = ci(name)
    assert config["run"]["dir"] == values["job"]["runDir"]
    assert config["data"]["url"] == values["job"]["dataUrl"]
    gpus = values["workers"].get("gpus", 1)
    least, most = (values["workers"][key] * gpus for key in ("minReplicas", "maxReplicas"))
    assert config["scale"]["workers"] == f"{least}:{most}"
    assert config["scale"]["gpu"] is True
    assert config["scale"]["cpus"] * gpus <= values["workers"].get("cpus", 8)


@pytest.mark.parametrize("name", JOBS)
def test_the_shells_between_kuberay_and_the_run_change_nothing_of_the_command(helm, name):
    entrypoint = one(helm.render(name), "RayJob")["spec"]["entrypoint"]
    told = subprocess.run(
        ["bash", "-ce", f"printf '%s\\n' {entrypoint}"], capture_output=True, text=True, check=True
    )
    assert told.stdout.split("\n")[:-1] == entrypoint.split(" ")


def test_json_among_the_arguments_reaches_the_run_as_it_is(helm):
    amendments = '[{"training.lr_generator": "x0.5", "training.d_steps": 2}]'
    job = {"arguments": ["--collapse.amendments", amendments, "--evaluation.scores", '["fd", "kid"]']}
    manifests = helm.render(ci(JOBS[0], job=job))
    entrypoint = one(manifests, "RayJob")["spec"]["entrypoint"]
    told = subprocess.run(
        ["bash", "-ce", f"printf '%s\\n' {entrypoint}"], capture_output=True, text=True, check=True
    )
    assert told.stdout.split("\n")[-5:-1] == job["arguments"]
    (container,) = one(manifests, "Pod")["spec"]["containers"]
    assert shlex.split(container["args"][0])[-4:] == job["arguments"]


@pytest.mark.parametrize("name", JOBS)
def test_helm_test_checks_the_very_run_that_is_started(helm, name):
    manifests = helm.render(name)
    (container,) = one(manifests, "Pod")["spec"]["containers"]
    assert container["command"] == ["sh", "-c"]
    entrypoint = one(manifests, "RayJob")["spec"]["entrypoint"]
    assert container["args"] == [
        entrypoint.replace("python -m service.train", "exec python -m service.plan")
    ]
    head = cluster_spec(manifests)["headGroupSpec"]["template"]["spec"]["containers"][0]
    drained = environment(head)
    del drained["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]
    assert environment(container) == drained


# What may run --------------------------------------------------------------------------------------


def test_every_pod_is_restricted(manifests):
    for role, pod in pods(manifests):
        spec, security = pod["spec"], pod["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True, role
        assert security["runAsUser"] > 0, role
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, role
        assert not spec.keys() & {"hostPID", "hostIPC"}, role
        on_fabric = role == "worker" and "vpc.amazonaws.com/efa" in str(spec)
        assert spec.get("hostNetwork", False) == on_fabric, role
        assert all(v.keys() & {"emptyDir", "projected", "configMap"} for v in spec["volumes"]), role
        for container in containers(pod):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, (role, container["name"])
            added = {"add": ["IPC_LOCK"]} if on_fabric else {}
            assert own["capabilities"] == {"drop": ["ALL"]} | added, (role, container["name"])
            assert own["readOnlyRootFilesystem"] is True, (role, container["name"])
            assert not own.keys() & {"privileged", "runAsUser", "runAsNonRoot", "seccompProfile"}
            assert not any("hostPort" in port for port in container.get("ports", []))


def test_no_token_of_kubernetes_is_mounted_but_the_autoscalers(manifests):
    if accounts := [m for m in manifests if m["kind"] == "ServiceAccount"]:
        assert accounts[0]["automountServiceAccountToken"] is False
    for role, pod in pods(manifests):
        assert pod["spec"]["automountServiceAccountToken"] is False, role
        tokens = {v["name"] for v in pod["spec"]["volumes"] if "serviceAccountToken" in str(v)}
        holders = {
            container["name"]
            for container in containers(pod)
            for mount in container["volumeMounts"]
            if mount["name"] in tokens
        }
        scales = role == "head" and cluster_spec(manifests)["enableInTreeAutoscaling"]
        assert holders == ({"autoscaler"} if scales else set()), role


def test_every_container_has_limits_and_its_requests_are_the_same(manifests):
    for role, pod in pods(manifests):
        for container in containers(pod):
            resources = container["resources"]
            assert {"cpu", "memory"} <= resources["limits"].keys(), (role, container["name"])
            assert resources["requests"] == resources["limits"], (role, container["name"])
        for volume in pod["spec"]["volumes"]:
            if "emptyDir" in volume:
                assert volume["emptyDir"]["sizeLimit"], (role, volume["name"])


def test_ray_can_write_where_it_must_and_its_object_store_fits_into_shared_memory(manifests):
    spec = cluster_spec(manifests)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        container = pod["containers"][0]
        volumes = {v["name"]: v["emptyDir"] for v in pod["volumes"] if "emptyDir" in v}
        mounts = {m["mountPath"]: volumes.get(m["name"]) for m in container["volumeMounts"]}
        assert {"/tmp", "/tmp/ray", "/dev/shm", environment(container)["HOME"]} <= mounts.keys()
        assert mounts["/dev/shm"]["medium"] == "Memory"
        shared = quantity(mounts["/dev/shm"]["sizeLimit"])
        store = int(group["rayStartParams"]["object-store-memory"])
        assert store < shared < quantity(container["resources"]["limits"]["memory"])


def quantity(text: str) -> int:
    """Bytes of a quantity of Kubernetes."""
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", text).groups()
    return int(number) * {"Mi": 1 << 20, "Gi": 1 << 30}[unit]


def test_a_pod_outlives_the_draining_of_its_ray(manifests):
    spec = cluster_spec(manifests)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        drain = int(environment(pod["containers"][0])["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert pod["terminationGracePeriodSeconds"] >= drain + 30


def test_the_head_takes_no_workers_and_asks_for_a_token(manifests):
    spec = cluster_spec(manifests)
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in str(spec["headGroupSpec"])
    assert spec["authOptions"]["mode"] == "token"


@pytest.mark.parametrize("name", ["cluster-values.yaml", *JOBS])
def test_the_budget_keeps_the_head_and_nothing_else(helm, name):
    manifests = helm.render(name)
    budget = one(manifests, "PodDisruptionBudget")["spec"]
    assert budget["minAvailable"] == 1  # of a controller without a scale, Kubernetes takes only this
    kept = {role for role, pod in pods(manifests) if selects(budget["selector"], pod)}
    assert kept == {"head"}


def selects(selector: Manifest, pod: Manifest) -> bool:
    """Whether a label selector takes a pod."""
    labels = pod["metadata"]["labels"]
    equal = selector.get("matchLabels", {}).items() <= labels.items()
    asked = selector.get("matchExpressions", [])
    assert all(e["operator"] == "In" for e in asked)
    return equal and all(labels.get(e["key"]) in e["values"] for e in asked)


def test_secrets_are_named_and_never_written(manifests):
    assert "Secret" not in {m["kind"] for m in manifests}
    secret = re.compile(r"KEY|TOKEN|PASSWORD|SECRET|USERNAME")
    for role, pod in pods(manifests):
        for container in containers(pod):
            for name, value in environment(container).items():
                if secret.search(name):
                    assert "secretKeyRef" in value, (role, name)


def test_keys_come_from_the_secret_or_by_the_role(helm):
    def keys(name: str) -> set[str]:
        head = cluster_spec(helm.render(name))["headGroupSpec"]["template"]["spec"]["containers"][0]
        return {key for key in environment(head) if key.startswith("AWS_") and "KEY" in key}

    assert keys("cluster-values.yaml") == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert keys("job-values.yaml") == set()
    account = one(helm.render("job-values.yaml"), "ServiceAccount")
    assert "role/gan-training" in account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"]


# Who talks to whom ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cluster-values.yaml", *JOBS])
def test_every_pod_is_under_a_policy_for_what_comes_in_and_what_goes_out(helm, name):
    manifests = helm.render(name)
    policies = [m["spec"] for m in manifests if m["kind"] == "NetworkPolicy"]
    for role, pod in pods(manifests):
        types = {t for p in policies if selects(p["podSelector"], pod) for t in p["policyTypes"]}
        assert types == {"Ingress", "Egress"}, role


@pytest.mark.parametrize("name", ["cluster-values.yaml", *JOBS])
def test_only_ray_nodes_reach_all_ports_of_ray_nodes(helm, name):
    manifests = helm.render(name)
    everyone = dict(pods(manifests))
    for role, pod in everyone.items():
        rules = [rule for rule in ingress(manifests, pod) if "ports" not in rule]
        peers = {
            other
            for rule in rules
            for peer in rule["from"]
            for other, candidate in everyone.items()
            if selects(peer["podSelector"], candidate)
        }
        assert peers == ({"head", "worker"} if role in ("head", "worker") else set()), role


def ingress(manifests: list[Manifest], pod: Manifest) -> list[Manifest]:
    """The rules of what may come in to a pod."""
    policies = [m["spec"] for m in manifests if m["kind"] == "NetworkPolicy"]
    return [r for p in policies if selects(p["podSelector"], pod) for r in p.get("ingress", [])]


@pytest.mark.parametrize("name", JOBS)
def test_prometheus_scrapes_rays_metrics_and_the_runs_and_is_let_in(helm, name):
    manifests = helm.render(name)
    head = dict(pods(manifests))["head"]
    ports = {p["name"]: p["containerPort"] for p in head["spec"]["containers"][0]["ports"]}
    monitor = one(manifests, "PodMonitor")["spec"]
    scraped = {ports[endpoint["port"]] for endpoint in monitor["podMetricsEndpoints"]}
    arguments = shlex.split(one(manifests, "RayJob")["spec"]["entrypoint"])
    flags = dict(zip(arguments[3::2], arguments[4::2], strict=True))
    assert scraped == {8080, int(flags["--tracking.prometheus_port"])}
    assert flags["--tracking.prometheus_host"] == "0.0.0.0"
    for role, pod in pods(manifests):
        assert selects(monitor["selector"], pod) == (role in ("head", "worker"))
    namespace = {"kubernetes.io/metadata.name": "monitoring"}
    (rule,) = (
        rule
        for rule in ingress(manifests, head)
        if {"namespaceSelector": {"matchLabels": namespace}} in rule["from"]
    )
    assert {port["port"] for port in rule["ports"]} == scraped


@pytest.mark.parametrize("name", ["cluster-values.yaml", *JOBS])
def test_s3_and_mlflow_may_be_called_and_the_clouds_metadata_may_not(helm, name):
    manifests, values = helm.render(name), ci(name)
    rules = [r for m in manifests if m["kind"] == "NetworkPolicy" for r in m["spec"].get("egress", [])]
    called = [values["s3"].get("endpoint"), values.get("tracking", {}).get("uri")]
    called += ["http://demo-mlflow:5000"] if values.get("install", {}).get("mlflow") else []
    for address in filter(None, called):
        ports = {p["port"] for rule in rules for p in rule.get("ports", [])}
        # policies see the port of the pod behind a Service, not its own
        assert port_of(address) in ports or any("ports" not in rule for rule in rules if within(rule))
    for rule in rules:
        if "to" not in rule:
            assert {port["port"] for port in rule["ports"]} == {53}
        for peer in rule.get("to", []):
            if "ipBlock" in peer and peer["ipBlock"]["cidr"] == "0.0.0.0/0":
                assert peer["ipBlock"]["except"] == ["169.254.0.0/16"]


def within(rule: Manifest) -> bool:
    """Whether a rule lets out to other pods of the namespace, or of a named one."""
    peers = rule.get("to", [])
    return any(p == {"podSelector": {}} or "kubernetes.io/metadata.name" in str(p) for p in peers)


def port_of(address: str) -> int:
    scheme, _, rest = address.partition("://")
    _, _, port = rest.partition(":")
    return int(port) if port else {"http": 80, "https": 443}[scheme]


def egress(manifests: list[Manifest], pod: Manifest) -> list[Manifest]:
    """The rules of what may go out of a pod."""
    policies = [m["spec"] for m in manifests if m["kind"] == "NetworkPolicy"]
    return [r for p in policies if selects(p["podSelector"], pod) for r in p.get("egress", [])]


def test_only_what_values_name_is_let_out_and_only_the_autoscaler_calls_kubernetes(helm):
    values = ci("cluster-values.yaml", s3={"endpoint": "http://minio.storage.svc:9000"})
    values["tracking"] = {"uri": "http://mlflow.tracking.svc.cluster.local:5000"}
    manifests = helm.render(values)
    everyone = dict(pods(manifests))

    def peers(port: int, role: str) -> list[Manifest]:
        rules = [r for r in egress(manifests, everyone[role]) if "to" in r]
        return [
            p for r in rules for p in r["to"] if port in {each["port"] for each in r.get("ports", [])}
        ]

    def on_any_port(role: str) -> list[Manifest]:
        rules = [r for r in egress(manifests, everyone[role]) if "to" in r and "ports" not in r]
        return [p for r in rules for p in r["to"] if "namespaceSelector" in p]

    def namespace(name: str) -> Manifest:
        return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}

    for role in everyone:
        assert on_any_port(role) == [namespace("storage"), namespace("tracking")]
        assert bool(peers(443, role)) == (role == "head")
        assert bool(peers(6443, role)) == (role == "head")


def test_peers_may_be_named_and_pod_identity_is_let_out_only_where_it_is_used(helm):
    fabric = helm.render("cluster-fabric-values.yaml")
    worker = dict(pods(fabric))["worker"]
    to = [peer for rule in egress(fabric, worker) for peer in rule.get("to", ())]
    assert {"ipBlock": {"cidr": "203.0.113.0/24"}} in to
    assert {"ipBlock": {"cidr": "169.254.170.23/32"}} in to
    for name in ("cluster-values.yaml", *JOBS):
        assert "169.254.170.23" not in str(helm.render(name))


def test_a_role_may_be_turned_into_keys_wherever_s3_is(helm):
    role = {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/gan"}}
    elsewhere = {"endpoint": "http://10.0.0.5:9000", "existingSecret": ""}
    for account, wanted in ((role, True), ({"create": False, "name": "trainer"}, False)):
        values = ci("cluster-values.yaml", serviceAccount=account, s3=elsewhere)
        manifests = helm.render(values)
        worker = dict(pods(manifests))["worker"]
        ports = {p["port"] for rule in egress(manifests, worker) for p in rule.get("ports", ())}
        assert (443 in ports) == wanted


def test_nodes_on_the_network_of_their_machine_are_let_in_and_out(helm):
    manifests = helm.render("cluster-fabric-values.yaml")
    nodes = {"ipBlock": {"cidr": "10.0.0.0/16"}}
    for role in ("head", "worker"):
        pod = dict(pods(manifests))[role]
        assert any(nodes in rule["from"] and "ports" not in rule for rule in ingress(manifests, pod))
        assert any(
            nodes in rule.get("to", ()) and "ports" not in rule for rule in egress(manifests, pod)
        )


def test_the_mlflow_of_the_release_is_reached_by_the_runs_pods_alone(helm):
    def admitted(**policy: Any) -> list[Manifest]:
        manifests = helm.render(ci("job-kueue-values.yaml", networkPolicy=policy))
        server = {"app.kubernetes.io/name": "mlflow", "app.kubernetes.io/instance": RELEASE}
        (rule,) = ingress(manifests, {"metadata": {"labels": server}})
        return rule["from"]

    (own,) = admitted()
    everyone = dict(pods(helm.render("job-kueue-values.yaml")))
    assert all(selects(own["podSelector"], pod) for pod in everyone.values())
    desk = {"ipBlock": {"cidr": "10.1.0.0/16"}}
    assert admitted(mlflowFrom=[desk]) == [own, desk]


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("http://s3.local", 80),
        ("https://s3.local:9443", 9443),
        ("http://10.0.0.5:8333/", 8333),
    ],
)
def test_the_port_of_the_endpoint_is_let_out(helm, endpoint, port):
    manifests = helm.render(ci("cluster-values.yaml", s3={"endpoint": endpoint}))
    rules = [r for m in manifests if m["kind"] == "NetworkPolicy" for r in m["spec"].get("egress", [])]
    assert port in {p["port"] for rule in rules for p in rule.get("ports", [])}


# Modes, names, rules -------------------------------------------------------------------------------


def test_workers_scale_between_their_bounds_and_stay_where_these_are_equal(helm):
    spec = cluster_spec(helm.render("cluster-values.yaml"))
    (group,) = spec["workerGroupSpecs"]
    assert spec["enableInTreeAutoscaling"] is True
    # A number of replicas here would undo the autoscaler's at the next upgrade.
    assert (group["minReplicas"], group["maxReplicas"], "replicas" in group) == (0, 8, False)
    spec = cluster_spec(helm.render("cluster-cpu-values.yaml"))
    (group,) = spec["workerGroupSpecs"]
    assert spec["enableInTreeAutoscaling"] is False
    assert (group["minReplicas"], group["maxReplicas"], group["replicas"]) == (2, 2, 2)
    assert "gpu" not in str(group["template"]["spec"]["containers"])


def test_a_job_asks_for_no_worker_before_its_driver_does(helm):
    spec = one(helm.render("job-values.yaml"), "RayJob")["spec"]["rayClusterSpec"]
    (group,) = spec["workerGroupSpecs"]
    assert spec["enableInTreeAutoscaling"] is True
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (0, 0, 4)
    # a queue admits a fixed number of workers, all at once
    (group,) = cluster_spec(helm.render("job-kueue-values.yaml"))["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (2, 2, 2)


def test_deadlines_are_values_and_0_sets_none(helm):
    def deadlines(**job: Any) -> list[Any]:
        spec = one(helm.render(ci("job-values.yaml", job=job)), "RayJob")["spec"]
        return [spec.get(key) for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds")]

    assert deadlines() == [None, 3600]
    assert deadlines(activeDeadlineSeconds=86400, preRunningDeadlineSeconds=0) == [86400, None]


def test_groups_differ_from_workers_in_what_they_say_and_the_run_counts_all(helm, capsys):
    manifests = helm.render("cluster-fabric-values.yaml")
    whole, spot = cluster_spec(manifests)["workerGroupSpecs"]
    assert (whole["groupName"], spot["groupName"]) == ("workers", "spot")
    assert [g["rayStartParams"]["num-gpus"] for g in (whole, spot)] == ["8", "1"]
    limits = [g["template"]["spec"]["containers"][0]["resources"]["limits"] for g in (whole, spot)]
    assert (limits[0]["nvidia.com/gpu"], limits[0]["vpc.amazonaws.com/efa"]) == ("8", "4")
    assert limits[1]["nvidia.com/mig-3g.40gb"] == "1"
    for group, selector in ((whole, None), (spot, {"karpenter.sh/capacity-type": "spot"})):
        pod = group["template"]["spec"]
        assert pod.get("nodeSelector") == selector
        assert pod["runtimeClassName"] == "nvidia"
        assert {"tolerations", "affinity", "topologySpreadConstraints"} <= pod.keys()
    (container,) = one(manifests, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"][
        "containers"
    ]
    _, _, flags = container["args"][0].partition(" -- ")
    train.main([*shlex.split(flags), "--print-config"])
    scale = yaml.safe_load(capsys.readouterr().out)["scale"]
    assert (scale["workers"], scale["cpus"], scale["gpu"]) == ("16:40", 8, True)


def test_what_all_pods_share_is_in_all_of_them(helm):
    for role, pod in pods(helm.render("cluster-fabric-values.yaml")):
        assert pod["metadata"]["labels"]["team"] == "vision", role
        assert pod["metadata"]["annotations"]["example.com/owner"] == "vision", role
        assert {"name": "ca", "configMap": {"name": "private-ca"}} in pod["spec"]["volumes"], role
        container = pod["spec"]["containers"][0]
        assert environment(container)["AWS_CA_BUNDLE"] == "/ca/ca.crt", role
        assert {"name": "ca", "mountPath": "/ca", "readOnly": True} in container["volumeMounts"], role
        assert container["envFrom"] == [{"configMapRef": {"name": "proxy"}}], role
        assert container["image"].endswith("gan-training@sha256:" + "0123456789abcdef" * 4), role


def test_a_run_that_is_looked_after_is_submitted_with_the_clusters_token(helm):
    manifests = helm.render("cluster-fabric-values.yaml")
    spec = one(manifests, "CronJob")["spec"]
    assert (spec["schedule"], spec["concurrencyPolicy"]) == ("*/10 * * * *", "Forbid")
    (container,) = spec["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["args"][0].startswith(
        "exec python -m cluster.submit imagenet128 -- --preset biggan128"
    )
    assert environment(container)["RAY_API_SERVER_ADDRESS"] == "http://demo-head-svc.gan.svc:8265"
    assert "secretKeyRef" in environment(container)["RAY_AUTH_TOKEN"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--data.cache_dir", "/scratch/cache"], 4 * (50 << 30) // 5),
        (["--data.cache_dir=/scratch/cache"], 4 * (50 << 30) // 5),
        (["--data.cache_dir", "/scratch/cache", "--data.cache_bytes", "1000"], 1000),
        ([], None),
    ],
)
def test_a_cache_takes_four_fifths_of_its_volume_unless_it_is_told_otherwise(helm, arguments, told):
    values = ci("job-values.yaml", job={"arguments": arguments})
    words = shlex.split(one(helm.render(values), "RayJob")["spec"]["entrypoint"])
    found = [int(words[i + 1]) for i, word in enumerate(words) if word == "--data.cache_bytes"]
    assert found == ([] if told is None else [told])


def test_logs_go_where_kubernetes_keeps_them(helm):
    for role, pod in pods(helm.render("job-values.yaml")):
        if role in ("head", "worker"):
            assert environment(pod["spec"]["containers"][0])["RAY_LOG_TO_STDERR"] == "1"
    quiet = helm.render(ci("job-values.yaml", ray={"logToStdout": False}))
    assert "RAY_LOG_TO_STDERR" not in str(quiet)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart with stand-ins of its dependencies: their names, values and schemas, and no templates.

    SUBCHARTS names the folder of what they publish; each stand-in has the version that the chart wants.
    """
    folder = os.environ.get("SUBCHARTS")
    if not folder:
        pytest.skip("SUBCHARTS names no folder of the dependencies' values and schemas")
    chart = tmp_path_factory.mktemp("whole") / CHART.name
    shutil.copytree(CHART, chart)
    for dependency in yaml.safe_load((CHART / "Chart.yaml").read_text())["dependencies"]:
        stand_in = chart / "charts" / dependency["name"]
        shutil.copytree(Path(folder) / dependency["name"], stand_in)
        about = yaml.safe_load((stand_in / "Chart.yaml").read_text())
        about = {k: v for k, v in about.items() if k != "dependencies"}
        (stand_in / "Chart.yaml").write_text(yaml.safe_dump(about | {"version": dependency["version"]}))
        (stand_in / "templates").mkdir()
        name = "{{ .Chart.Name }}-{{ (.Values.service | default dict).port }}"
        manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "NAME"}}
        (stand_in / "templates" / "it.yaml").write_text(yaml.safe_dump(manifest).replace("NAME", name))
    return chart


@pytest.mark.parametrize("version", ["4.3", "3.17"])
@pytest.mark.parametrize("name", FILES)
def test_dependencies_take_the_values_that_they_get_and_come_only_when_asked(whole, version, name):
    manifests = installed(version, whole).render(name)
    found = {m["metadata"]["name"] for m in manifests if m["kind"] == "ConfigMap"} - {"demo-dashboard"}
    wanted = {"kuberay-operator-8080", "mlflow-5000"} if name == "job-kueue-values.yaml" else set()
    assert found == wanted


@pytest.mark.parametrize("version", ["4.3", "3.17"])
def test_what_a_dependency_does_not_know_is_refused(whole, version):
    wrong = ci("job-kueue-values.yaml", mlflow={"enabled": True})
    assert "enabled" in installed(version, whole).refusal(wrong)


@pytest.mark.parametrize("name", JOBS)
def test_a_dead_head_costs_a_restart_with_the_same_run_directory(helm, name):
    spec = one(helm.render(name), "RayJob")["spec"]
    assert spec["backoffLimit"] == 10
    assert spec["shutdownAfterJobFinishes"] is True
    assert f"--run.dir {ci(name)['job']['runDir']} " in spec["entrypoint"]


def test_a_changed_run_is_another_ray_job_and_the_same_run_is_the_same(helm):
    def name(**sections: Any) -> str:
        return one(helm.render(ci("job-values.yaml", **sections)), "RayJob")["metadata"]["name"]

    assert name() == name(monitoring={"enabled": False})
    assert name() != name(image={"tag": "9.9"})
    assert name() != name(job={"arguments": ["--run.images", "2"]})
    assert len(name()) <= 47  # KubeRay's bound


def test_a_queue_labels_what_it_is_to_admit(helm):
    labels = one(helm.render("job-kueue-values.yaml"), "RayJob")["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "gpus"
    assert "kueue" not in str(one(helm.render("cluster-values.yaml"), "RayCluster"))


def test_labels_that_kuberays_head_service_selects_by_are_left_to_it(manifests):
    for _, pod in pods(manifests):
        assert "app.kubernetes.io/name" not in pod["metadata"]["labels"]


def test_the_mlflow_of_the_release_is_tracked_to_unless_another_is_given(helm):
    assert "--tracking.uri http://demo-mlflow:5000 " in str(helm.render("job-kueue-values.yaml"))
    other = ci("job-kueue-values.yaml", tracking={"uri": "https://mlflow.example.com/team"})
    assert "--tracking.uri https://mlflow.example.com/team " in str(helm.render(other))


def rules(manifests: list[Manifest]) -> dict[str, dict[str, Any]]:
    groups = one(manifests, "PrometheusRule")["spec"]["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def test_alerts_are_those_of_the_runs_and_one_of_the_job(helm, tmp_path):
    own = yaml.safe_load((CHART / "files" / "rules.yml").read_text())
    manifests = helm.render("job-values.yaml")
    rendered = one(manifests, "PrometheusRule")["spec"]
    failed = rendered["groups"][0]["rules"].pop()
    assert rendered == own
    assert failed["alert"] == "GanJobFailed"
    name = one(manifests, "RayJob")["metadata"]["name"]
    series = f'kuberay_job_deployment_status{{name="{name}",deployment_status="%s",namespace="gan"}}'
    labels = {"severity": "critical", "name": name, "deployment_status": "Failed", "namespace": "gan"}
    alert = {"exp_labels": labels, "exp_annotations": {"summary": f"RayJob {name} failed"}}
    alert["exp_annotations"] |= {k: failed["annotations"][k] for k in ("description", "runbook")}
    states = [("Running", "1x10 stale"), ("Retrying", "_x11 1x10 stale"), ("Failed", "_x22 1x10")]
    cases = {
        "rule_files": ["rules.yml"],
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": series % s, "values": v} for s, v in states],
                "alert_rule_test": [
                    {"eval_time": "15m", "alertname": "GanJobFailed", "exp_alerts": []},
                    {"eval_time": "30m", "alertname": "GanJobFailed", "exp_alerts": [alert]},
                ],
            }
        ],
    }
    rendered["groups"][0]["rules"].append(failed)
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rendered))
    (tmp_path / "test.yml").write_text(yaml.safe_dump(cases))
    promtool = need_package("/usr/bin/promtool", "prometheus")
    done = subprocess.run(
        [promtool, "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_in_a_cluster_no_alert_speaks_of_a_job(helm):
    values = ci("cluster-values.yaml", monitoring={"enabled": True})
    assert "GanJobFailed" not in rules(helm.render(values))


def test_alerts_link_to_the_runbook_where_its_address_is_given(helm):
    plain = rules(helm.render("job-values.yaml"))
    assert {"runbook_url" in rule["annotations"] for rule in plain.values()} == {False}
    address = "https://docs.example.com/gan/runbook/"
    linked = rules(helm.render(ci("job-values.yaml", monitoring={"runbookUrl": address})))
    assert linked.keys() == plain.keys()
    for rule in linked.values():
        section = rule["annotations"]["runbook"].partition("#")[2]
        assert rule["annotations"]["runbook_url"] == f"{address}#{section}"


def test_the_dashboard_is_what_its_program_writes_and_comes_for_grafanas_sidecar(helm):
    program = [sys.executable, ROOT / "helm" / "dashboard.py"]
    written = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    assert (CHART / "files" / "dashboard.json").read_text() == written
    manifests = helm.render("job-values.yaml")
    found = [m for m in manifests if m["kind"] == "ConfigMap"]
    (board,) = (m for m in found if m["metadata"]["labels"].get("grafana_dashboard") == "1")
    assert json.loads(board["data"]["gan-training.json"]) == json.loads(written)
    off = helm.render(ci("job-values.yaml", monitoring={"dashboard": {"enabled": False, "labels": {}}}))
    assert not [m for m in off if m["kind"] == "ConfigMap"]


@pytest.mark.parametrize("name", FILES)
def test_notes_say_how_to_go_on(helm4, name):
    notes = helm4.run(f"install {RELEASE}", "--dry-run=client", "--namespace=gan", values=name).stdout
    if name in JOBS:
        job = one(helm4.render(name), "RayJob")["metadata"]["name"]
        assert f"kubectl -n gan get rayjob {job}\n" in notes
        assert ci(name)["job"]["runDir"] in notes
    else:
        assert "ray job submit --working-dir . -- python -m service.train" in notes
        assert "svc/demo-head-svc 8265" in notes
        assert "--tracking.prometheus_port 9464" in notes


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_command_of_the_notes_is_one_that_service_train_takes(helm4, name, capsys):
    notes = helm4.run(f"install {RELEASE}", "--dry-run=client", values=name).stdout
    command = notes.partition("-- python -m service.train")[2].partition("\n\n")[0]
    command = command.replace("PRESET", "biggan128").replace("\\\n", " ")
    train.main([*shlex.split(command), "--print-config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["scale"]["gpu"] is (name != "cluster-cpu-values.yaml")


def test_dependencies_are_pinned_and_each_behind_its_condition():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    dependencies = yaml.safe_load((CHART / "Chart.yaml").read_text())["dependencies"]
    assert {d["name"]: d["version"] for d in dependencies} == {
        "kuberay-operator": "1.7.0",
        "mlflow": "1.12.0",
    }
    for dependency in dependencies:
        # not among the dependency's own values, whose schema is closed
        section, _, key = dependency["condition"].partition(".")
        assert (section, values["install"][key]) == ("install", False)
        assert "enabled" not in values[dependency["name"]]
        assert dependency["repository"].startswith("https://")


# What is refused -----------------------------------------------------------------------------------


def test_the_defaults_alone_are_refused_with_what_is_missing(helm):
    assert "image.repository: not given" in helm.refusal({})


CLUSTER, JOB, QUEUE = "cluster-values.yaml", "job-values.yaml", "job-kueue-values.yaml"

REFUSALS: list[tuple[str, Manifest, str]] = [
    (CLUSTER, {"workerGroups": [{"name": "workers"}]}, "there are two groups workers; rename one"),
    (CLUSTER, {"workerGroups": [{"name": "cpus", "gpus": 0}]}, "cpus has 0 GPUs, workers 1; all groups"),
    (CLUSTER, {"workerGroups": [{"maxReplicas": 2}]}, "name"),
    (
        CLUSTER,
        {"workerGroups": [{"name": "a", "minReplicas": 9}]},
        r"a\.minReplicas: 9 is above a\.maxR",
    ),
    (CLUSTER, {"tracking": {"existingSecret": "a", "tokenSecret": "b"}}, "give one of them"),
    (CLUSTER, {"image": {"digest": "latest"}}, "digest"),
    (
        CLUSTER,
        {"workers": {"hostNetwork": True}},
        r"networkPolicy\.nodes: not given, and workers\.hostNetw",
    ),
    (CLUSTER, {"resubmit": {"name": "a" * 14}}, "name"),
    (CLUSTER, {"workers": {"capabilities": ["SYS_ADMIN"]}}, "capabilities"),
    (CLUSTER, {"pods": {"volumes": [{"emptyDir": {}}]}}, "name"),
    (CLUSTER, {"resubmit": {"schedule": "often"}}, "schedule"),
    (
        CLUSTER,
        {"resubmit": {"schedule": "@hourly"}},
        r"job\.preset: not given, and resubmit\.schedule is",
    ),
    (JOB, {"resubmit": {"schedule": "@hourly"}}, "whose run is started again by itself"),
    (JOB, {"monitoring": {"runbookUrl": "docs/runbook.md"}}, "runbookUrl"),
    (JOB, {"mlflow": {"enabled": True}, "install": {"mlfow": True}}, "mlfow"),
    (CLUSTER, {"worker": {}}, r"worker\b"),
    (CLUSTER, {"workers": {"maxReplica": 3}}, r"workers.*maxReplica\b"),
    (CLUSTER, {"workers": {"gpus": -1}}, r"workers.gpus"),
    (CLUSTER, {"workers": {"memory": "48GB"}}, r"workers.memory"),
    (CLUSTER, {"workers": {"sharedMemory": "48Gi"}}, r"workers\.sharedMemory: 48Gi.*workers\.memory"),
    (CLUSTER, {"head": {"sharedMemory": "9000Mi"}}, r"head\.sharedMemory: 9000Mi"),
    (CLUSTER, {"workers": {"minReplicas": 9}}, r"workers\.minReplicas: 9.*workers\.maxReplicas 8"),
    (CLUSTER, {"workers": {"maxReplicas": 0}}, r"workers.maxReplicas"),
    (CLUSTER, {"ray": {"securityContext": {"runAsUser": 0}}}, r"runAsUser"),
    (CLUSTER, {"ray": {"securityContext": {"privileged": True}}}, r"securityContext.*privileged"),
    (CLUSTER, {"s3": {"accessKey": "AKIA"}}, r"s3.*accessKey"),
    (CLUSTER, {"s3": {"endpoint": "http://key:secret@s3:8333"}}, r"s3.endpoint"),
    (CLUSTER, {"s3": {"existingSecret": ""}}, r"s3\.existingSecret: not given.*role-arn"),
    (CLUSTER, {"tracking": {"uri": "http://me:mine@mlflow"}}, r"tracking.uri"),
    (CLUSTER, {"serviceAccount": {"create": False}}, r"serviceAccount\.name: not given"),
    (CLUSTER, {"mode": "both"}, r"mode"),
    (CLUSTER, {"workers": None}, r"workers"),
    (CLUSTER, {"workers": {"cpus": None}}, r"workers.*cpus"),
    (CLUSTER, {"workers": {"drainSeconds": None}}, r"workers.*drainSeconds"),
    (CLUSTER, {"ray": {"securityContext": None}}, r"ray.*securityContext"),
    (CLUSTER, {"tracking": {"prometheusPort": 8265}}, r"tracking.prometheusPort"),
    (CLUSTER, {"job": {"runDir": "s3://runs/x"}}, r"job\.runDir: given, but mode is cluster"),
    (
        CLUSTER,
        {"job": {"arguments": ["--help"]}},
        r"job\.arguments: given, but mode is cluster",
    ),
    (CLUSTER, {"kueue": {"queueName": "gpus"}}, r"kueue\.queueName: .*workers\.minReplicas"),
    (CLUSTER, {"image": {"repository": ""}}, r"image\.repository: not given"),
    (JOB, {"job": {"preset": ""}}, r"job\.preset: not given"),
    (JOB, {"job": {"dataUrl": ""}}, r"job\.dataUrl: not given"),
    (JOB, {"job": {"runDir": ""}}, r"job\.runDir: not given"),
    (JOB, {"job": {"runDir": "/mnt/runs"}}, r"job.runDir"),
    (JOB, {"job": {"arguments": ["--run.dir=s3://runs/y"]}}, r"--run\.dir is set by job\.runDir"),
    (JOB, {"job": {"arguments": ["--scale.workers", "3"]}}, r"--scale\.workers is set by workers\."),
    (JOB, {"job": {"arguments": ["$(reboot)"]}}, r"job.arguments"),
    (JOB, {"job": {"arguments": ["a; reboot"]}}, r"job.arguments"),
    (JOB, {"job": {"arguments": ["it's"]}}, r"job.arguments"),
    (JOB, {"job": {"backoffLimit": -1}}, r"job.backoffLimit"),
    (JOB, {"tracking": {"uri": ""}}, r"tracking\.uri: not given, and install\.mlflow is false"),
    (JOB, {"monitoring": {"enable": True}}, r"monitoring.*enable\b"),
    (QUEUE, {"workers": {"maxReplicas": 3}}, r"kueue\.queueName: "),
    (QUEUE, {"networkPolicy": {"extraEgress": [{"form": []}]}}, r"extraEgress.*form"),
]


@pytest.mark.parametrize(("name", "wrong", "told"), REFUSALS, ids=lambda value: str(value)[:60])
def test_a_wrong_value_is_refused_by_its_name(helm, name, wrong, told):
    helm.render(name)  # without it, all is well
    refusal = helm.refusal(ci(name, **wrong))
    # helm 4 writes /workers/gpus where helm 3 writes workers.gpus.
    assert re.search(told, refusal.replace("/", "."), re.DOTALL), refusal


def test_the_schema_is_closed_but_for_what_others_define():
    schema = json.loads((CHART / "values.schema.json").read_text())
    open_ones: set[str] = set()

    def walk(node: Manifest, path: str, visit: Callable[[Manifest, str], None]) -> None:
        visit(node, path)
        for key, child in node.get("properties", {}).items():
            walk(child, f"{path}.{key}", visit)
        if "items" in node:
            walk(node["items"], f"{path}[]", visit)

    def note(node: Manifest, path: str) -> None:
        if node.get("type") == "object" and node.get("additionalProperties") is not False:
            open_ones.add(path)

    walk(schema, "", note)
    label_maps = {
        ".monitoring.labels",
        ".monitoring.dashboard.labels",
        ".pods.labels",
        ".pods.annotations",
    }
    label_maps |= {f"{pods}.nodeSelector" for pods in (".head", ".workers", ".workerGroups[]")}
    peer = ("namespaceSelector", "podSelector", "ipBlock")
    lists = ("submitFrom", "mlflowFrom", "s3To", "mlflowTo", "nodes")
    of_kubernetes = {f".networkPolicy.{name}[].{key}" for name in lists for key in peer}
    placing = ("affinity", "topologySpreadConstraints[]")
    of_kubernetes |= {
        f"{pods}.{key}" for pods in (".head", ".workers", ".workerGroups[]") for key in placing
    }
    of_kubernetes |= {f"{pods}.env[].valueFrom" for pods in (".pods", ".workers", ".workerGroups[]")}
    of_kubernetes |= {".pods.volumes[]", ".pods.envFrom[].configMapRef", ".pods.envFrom[].secretRef"}
    of_kubernetes |= {f"{pods}.extraResources" for pods in (".workers", ".workerGroups[]")}
    of_dependencies = {".kuberay-operator", ".mlflow", ".mlflow.service", ".global"}
    annotations = {".serviceAccount.annotations"}
    assert open_ones == label_maps | of_kubernetes | of_dependencies | annotations


def test_every_value_has_its_place_in_the_schema_and_the_other_way_round():
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(node: Manifest, value: Any, path: str) -> None:
        if node.get("additionalProperties") is False:
            assert node["properties"].keys() - {"global"} == value.keys(), path
            for key in value:
                compare(node["properties"][key], value[key], f"{path}.{key}")

    compare(schema, values, "")
