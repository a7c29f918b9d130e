"""Images and cluster files: pinned as the repository is, agreeing with each other, naming only commands that exist.

Every rule has a control: a file with one thing changed must be refused.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from experiments.cli import Usage, make_parser

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAMES = ("Dockerfile", "compose.yaml", "cluster.yaml", "constraints.txt", "README.md", "../.dockerignore")
NAMES += tuple(f"kubernetes/{name}.yaml" for name in ("runs", "raycluster", "rayjob"))
Files = Mapping[str, str]
TYPED = r"\bmbrl ((?:compare|train|resume|evaluate|report|record|list|bench) [^`'\n#;\\]+)"
UNITS = {"k": 10, "m": 20, "g": 30, "ki": 10, "mi": 20, "gi": 30}


def load(name: str) -> ModuleType:
    """A script of docker/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docker_{name}", DOCKER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


check = load("check")


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    return {name: (DOCKER / name).read_text(encoding="utf-8") for name in NAMES}


def pins(text: str) -> dict[str, str]:
    """``{name: version}`` of a file of constraints."""
    pairs = (line.split("==") for line in text.splitlines() if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


TESTED = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))


def size(text: str) -> int:
    """Bytes of ``2gb``, ``16Gi``, ``1000000000`` or ``${NAME:-2gb}``."""
    number, unit = re.fullmatch(r"(\d+)([a-z]*)", default(text).lower()).groups()  # type: ignore[union-attr]
    return int(number) << UNITS.get(unit.removesuffix("b") if unit != "b" else "", 0)


def default(text: str) -> str:
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", str(text))


def flag(words: list[str], name: str) -> str:
    """The value of ``--name=value``; empty when it is not given."""
    return next((default(word.partition("=")[2]) for word in words if word.startswith(f"--{name}=")), "")


# -- the rules: each yields what it finds ------------------------------------------------------------------------------


def image(files: Files) -> Iterator[str]:
    """The Dockerfile: rules of docker/check.py, one Python, what it copies is sent and is there."""
    text = files["Dockerfile"]
    yield from check.problems(text)
    values = check.arguments(check.instructions(text))
    release = values["PYTHON"].partition("-")[0]
    if not SpecifierSet(PROJECT["requires-python"]).contains(release):
        yield f"python {release} is outside requires-python"
    if f"Programming Language :: Python :: {release.rpartition('.')[0]}" not in PROJECT["classifiers"]:
        yield f"python {release} is not the tested one"
    sent = {line[1:] for line in files["../.dockerignore"].splitlines() if line.startswith("!")}
    copied = {name for step in check.instructions(text) if step.name == "COPY" for name in shlex.split(step.words)[:-1]}
    yield from (f"COPY {name}: .dockerignore keeps it out" for name in sorted(copied - sent))
    yield from (f".dockerignore sends {name}, which no step copies" for name in sorted(sent - copied))
    yield from (f"COPY {name}: there is no such file" for name in sorted(copied) if not (ROOT / name).exists())


def versions(files: Files) -> Iterator[str]:
    """One Ray, one release of the platform, everything that ray[default] adds is pinned, once."""
    more = pins(files["constraints.txt"])
    yield from (f"{name} is pinned in both constraints.txt" for name in sorted(more.keys() & TESTED.keys()))
    for line in metadata.requires("ray") or []:
        wanted = Requirement(line)
        if wanted.marker is None or not wanted.marker.evaluate({"extra": "default"}):
            continue
        pinned = (TESTED | more).get(canonicalize_name(wanted.name))
        if pinned is None or not wanted.specifier.contains(pinned):
            yield f"{wanted} of ray[default] is pinned to {pinned}"
    for name, text in files.items():
        for tag in re.findall(r"mbrl-platform:([\w.]+)-c", text):
            if tag != PROJECT["version"]:
                yield f"{name}: image {tag}, but the platform is {PROJECT['version']}"
        for release in re.findall(r"rayVersion: [\"']?([\w.]+)", text):
            if release != TESTED["ray"]:
                yield f"{name}: Ray {release}, but constraints.txt has {TESTED['ray']}"


def compose(files: Files) -> Iterator[str]:
    """The cluster of one machine: ports agree, only the dashboard is open and only here, memory fits, runs shared."""
    services: dict[str, Any] = yaml.safe_load(files["compose.yaml"])["services"]
    head = services["head"]
    port, dashboard = flag(head["command"], "port"), flag(head["command"], "dashboard-port")
    if head["healthcheck"]["test"][-1] != f"127.0.0.1:{port}":
        yield f"head: its health check asks another port than {port}"
    for name, service in services.items():
        command = service["command"]
        for published in map(default, service.get("ports", [])):
            if not published.startswith("127.0.0.1:"):
                yield f"{name}: {published} is open to other machines"
            if published.rpartition(":")[2] != dashboard:
                yield f"{name}: {published} is not the dashboard's port {dashboard}"
        if name != "head" and flag(command, "address") != f"head:{port}":
            yield f"{name}: joins {flag(command, 'address')}, the head listens on {port}"
        agent = flag(command, "dashboard-agent-listen-port")
        if name != "head" and f":{agent}/" not in service["healthcheck"]["test"][-1]:
            yield f"{name}: its health check asks another port than {agent}"
        if size(flag(command, "object-store-memory")) > 0.9 * size(service["shm_size"]):
            yield f"{name}: the object store is larger than nine tenths of shm_size"
        if not service["image"].endswith(f"-{service['build']['args']['DEVICE']}"):
            yield f"{name}: builds another image than it runs"
        if service["volumes"] != ["runs:/runs"]:
            yield f"{name}: runs are not at /runs"
        if service.get("privileged") or service.get("user") in ("root", "0") or service["cap_drop"] != ["ALL"]:
            yield f"{name}: has more rights than it needs"
    devices = [
        device
        for service in services.values()
        for one in service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        for device in one["device_ids"]
    ]
    if len(devices) != len(set(devices)):
        yield f"two services on one GPU: {devices}"


def kubernetes(files: Files) -> Iterator[str]:
    """The KubeRay manifests: versions, one cluster in both, resources, users, the shared folder."""
    runs, cluster, job = (yaml.safe_load(files[f"kubernetes/{name}.yaml"]) for name in ("runs", "raycluster", "rayjob"))
    for document, kind in ((cluster, "RayCluster"), (job, "RayJob")):
        if (document["apiVersion"], document["kind"]) != ("ray.io/v1", kind):
            yield f"{kind}: apiVersion {document['apiVersion']}, kind {document['kind']}"
    if job["spec"]["rayClusterSpec"] != cluster["spec"]:
        yield "the job's cluster is not that of raycluster.yaml"
    if runs["spec"]["accessModes"] != ["ReadWriteMany"]:
        yield "runs: many nodes must be able to write"
    groups = {group["groupName"]: group for group in cluster["spec"]["workerGroupSpecs"]}
    for name, group in {"head": cluster["spec"]["headGroupSpec"], **groups}.items():
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        resources = container["resources"]
        if resources["requests"] != resources["limits"]:
            yield f"{name}: requests are not limits"
        if ("nvidia.com/gpu" in resources["limits"]) != container["image"].endswith("-cuda"):
            yield f"{name}: image and GPU do not go together"
        if not pod["securityContext"]["runAsNonRoot"] or pod["securityContext"]["runAsUser"] != 1000:
            yield f"{name}: does not run as the image's user"
        if int(group["rayStartParams"]["object-store-memory"]) > size(resources["limits"]["memory"]) / 3:
            yield f"{name}: the object store takes more than a third of the memory"
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        claims = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"]}
        if mounts != {"runs": "/runs"} or claims != {"runs": runs["metadata"]["name"]}:
            yield f"{name}: runs are not at /runs, on the shared claim"
        if name in groups and not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            yield f"{name}: replicas {group['replicas']} lie outside their limits"


def launcher(files: Files) -> Iterator[str]:
    """Ray's cluster launcher, as written and with its cloud part: Ray's own schema, ports, a folder that exists."""
    package = importlib.util.find_spec("ray")
    assert package is not None
    assert package.origin is not None
    schema = json.loads((Path(package.origin).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
    text = files["cluster.yaml"]
    document = yaml.safe_load(text)
    commented = text.partition("# -- on a cloud")[2].partition("\n#\n")[2]
    cloud = yaml.safe_load(re.sub(r"^# ?", "", commented, flags=re.M))
    for name, what in (("cluster.yaml", document), ("its cloud part", document | cloud)):
        yield from (f"{name}: {error.message}" for error in jsonschema.Draft7Validator(schema).iter_errors(what))
    if cloud["head_node_type"] not in cloud["available_node_types"]:
        yield f"its cloud part: no node type {cloud['head_node_type']}"
    port = flag(shlex.split(document["head_start_ray_commands"][-1]), "port")
    if f"$RAY_HEAD_IP:{port}" not in document["worker_start_ray_commands"][-1]:
        yield f"cluster.yaml: workers do not join at {port}"
    if "--volume=/shared/runs:/runs" not in document["docker"]["run_options"]:
        yield "cluster.yaml: runs are not at /runs"
    yield from (f"file_mounts: no {p}" for p in document["file_mounts"].values() if not (ROOT / p).exists())


def commands(files: Files) -> Iterator[str]:
    """What is typed: words that our command line knows, options that this `ray start` has."""
    package = importlib.util.find_spec("ray")
    assert package is not None
    assert package.origin is not None
    ray_words = set(re.findall(r"\"(--[a-z-]+)\"", (Path(package.origin).parent / "scripts/scripts.py").read_text()))
    for name, text in files.items():
        for line in re.findall(TYPED, text):
            try:
                _, unknown = make_parser().parse_known_args(shlex.split(line))
            except Usage:
                yield f"{name}: `mbrl {line}` is refused"
                continue
            yield from (f"{name}: mbrl has no {word}" for word in unknown if not re.match(r"--\w+\.|[^-]", word))
        typed = re.findall(r"ray start ([^`\n]+(?:\n    --[^\n]+)*)", text) if name == "cluster.yaml" else []
        if name == "compose.yaml":
            typed = [" ".join(service["command"]) for service in yaml.safe_load(text)["services"].values()]
        words = {word for line in typed for word in re.findall(r"--[a-z-]+", line)}
        yield from (f"{name}: ray start has no {word}" for word in sorted(words - ray_words))


RULES = (image, versions, compose, kubernetes, launcher, commands)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_nothing_breaks_a_rule(rule: Any, files: Files) -> None:
    assert list(rule(files)) == []


CLUSTER, JOB = "kubernetes/raycluster.yaml", "kubernetes/rayjob.yaml"
BROKEN = [
    (image, "Dockerfile", "USER 1000:1000", "USER root", "ends as root"),
    (image, "Dockerfile", "USER 1000:1000\n", "", "ends as root"),
    (image, "Dockerfile", "python:${PYTHON}", "python:latest", "not the latest"),
    (image, "Dockerfile", "python:${PYTHON}", "python", "not the latest"),
    (image, "Dockerfile", "python:${PYTHON}", "python:slim", "tag moves"),
    (image, "Dockerfile", "3.11.14-slim", "3.10.14-slim", "outside requires-python"),
    (image, "Dockerfile", "3.11.14-slim", "3.13.1-slim", "not the tested one"),
    (image, "Dockerfile", " \\\n    && rm -rf /var/lib/apt/lists/*", "", "remove the lists"),
    (image, "Dockerfile", "apt-get update \\\n    && ", "", "update before"),
    (image, "Dockerfile", " --no-install-recommends", "", "--no-install-recommends"),
    (image, "Dockerfile", "COPY docker/constraints", "ADD https://x.org/docker/constraints", "use COPY"),
    (image, "Dockerfile", " --constraint constraints.txt ${TORCH", " ${TORCH", "nothing pins it"),
    (image, "Dockerfile", "install --no-cache-dir --no-deps", "install --no-deps", "cache would stay"),
    (image, "Dockerfile", "OMP_NUM_THREADS=1", "HUB_TOKEN=1", "a secret"),
    (image, "Dockerfile", "WORKDIR /runs", "RUN curl x | sh", "just fetched"),
    (image, "../.dockerignore", "!agents\n", "", "keeps it out"),
    (image, "../.dockerignore", "!agents\n", "!agents\n!.git\n", "no step copies"),
    (versions, CLUSTER, f'"{TESTED["ray"]}"', '"2.9.0"', "Ray 2.9.0"),
    (versions, "compose.yaml", f":{PROJECT['version']}-cuda", ":9.9-cuda", "image 9.9"),
    (versions, "constraints.txt", "aiohttp==", "aio==", "is pinned to None"),
    (versions, "constraints.txt", "aiohttp==", "numpy==", "pinned in both"),
    (compose, "compose.yaml", "127.0.0.1:${DASHBOARD", "${DASHBOARD", "open to other machines"),
    (compose, "compose.yaml", "dashboard-port=8265", "dashboard-port=8266", "not the dashboard's"),
    (compose, "compose.yaml", "head:6379", "head:6380", "the head listens on 6379"),
    (compose, "compose.yaml", '"127.0.0.1:6379"', '"127.0.0.1:6380"', "asks another port than 6379"),
    (compose, "compose.yaml", "listen-port=52365", "listen-port=52366", "asks another port than 52366"),
    (compose, "compose.yaml", "SHM_SIZE:-2gb", "SHM_SIZE:-64mb", "larger than nine tenths"),
    (compose, "compose.yaml", "DEVICE: cuda", "DEVICE: cpu", "builds another image"),
    (compose, "compose.yaml", "[runs:/runs]", "[runs:/data]", "not at /runs"),
    (compose, "compose.yaml", "  cap_drop: [ALL]", "  cap_drop: []", "more rights"),
    (compose, "compose.yaml", 'device_ids: ["3"]', 'device_ids: ["0"]', "two services on one GPU"),
    (kubernetes, CLUSTER, "ray.io/v1", "ray.io/v1alpha1", "v1alpha1"),
    (kubernetes, JOB, "replicas: 4", "replicas: 5", "not that of raycluster.yaml"),
    (kubernetes, "kubernetes/runs.yaml", "ReadWriteMany", "ReadWriteOnce", "able to write"),
    (kubernetes, CLUSTER, 'requests: {cpu: "4"', 'requests: {cpu: "1"', "requests are not limits"),
    (kubernetes, CLUSTER, "-cuda", "-cpu", "do not go together"),
    (kubernetes, CLUSTER, "runAsUser: 1000", "runAsUser: 0", "the image's user"),
    (kubernetes, CLUSTER, "mountPath: /runs", "mountPath: /tmp/runs", "on the shared claim"),
    (kubernetes, CLUSTER, "memory: 6Gi", "memory: 1Gi", "more than a third"),
    (kubernetes, CLUSTER, "maxReplicas: 16", "maxReplicas: 2", "outside their limits"),
    (launcher, "cluster.yaml", "container_name:", "container:", "container"),
    (launcher, "cluster.yaml", "#     min_workers: 4", "#     minimum: 4", "minimum"),
    (launcher, "cluster.yaml", "# head_node_type: head", "# head_node_type: boss", "no node type boss"),
    (launcher, "cluster.yaml", "--port=6379", "--port=6380", "do not join at 6380"),
    (launcher, "cluster.yaml", "/shared/runs:/runs", "/shared/runs:/data", "not at /runs"),
    (launcher, "cluster.yaml", "experiments/suites", "experiments/sweets", "no experiments/sweets"),
    (commands, JOB, "--ray auto", "--cluster auto", "mbrl has no --cluster"),
    (commands, JOB, "mbrl compare first", "mbrl list everything", "is refused"),
    (commands, "compose.yaml", "--num-cpus=0", "--cpu-count=0", "ray start has no --cpu-count"),
    (commands, "cluster.yaml", "--dashboard-host", "--dashboard-address", "no --dashboard-address"),
]


@pytest.mark.parametrize(("rule", "name", "old", "new", "said"), BROKEN)
def test_a_broken_file_is_refused(rule: Any, name: str, old: str, new: str, said: str, files: Files) -> None:
    assert old in files[name], "the control changes nothing"
    found = list(rule({**files, name: files[name].replace(old, new)}))
    assert any(said in line for line in found), found


def test_both_images_are_made_of_what_they_need() -> None:
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    made = {device: [stage.name for stage in check.chain(text, device)] for device in ("cpu", "cuda")}
    assert made == {device: ["base", "wheel", f"torch-{device}", "platform"] for device in made}


def test_requirements_are_those_of_the_project() -> None:
    assert load("requirements").requirements(ROOT / "pyproject.toml") == [*PROJECT["dependencies"], "ray[default]"]


def test_steps_are_read_as_docker_reads_them() -> None:
    steps = check.instructions("# a\nFROM x AS y\nRUN a \\\n  # not this\n  && b\nENV C=1 \\\n    D=2\n")
    assert [(step.name, step.words) for step in steps] == [("FROM", "x AS y"), ("RUN", "a && b"), ("ENV", "C=1 D=2")]
