"""Holds the files of cluster/ to what reads them: Ray's and KubeRay's shapes, Ray's and our own command lines, bash.

What must stay true: nothing is started; each file has a checker that returns its faults, is expected to find none in
the file, and is itself tried on copies with a typo in each of their keys.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_cli

from dasm_ray.cli import _with_options
from dasm_ray.cli import main as dasm_ray_cli
from dasm_ray.config.keys import RunConfig
from dasm_ray.config.parsing import load_config
from dasm_ray.errors import ConfigError
from dasm_ray.runtime import submit as jobs

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "cluster"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RANGES = {need.name: need.specifier for need in map(Requirement, PROJECT["dependencies"])}

LAUNCHED = ("aws.yaml", "gcp.yaml")
MANIFESTS = ("kuberay/rayjob.yaml", "kuberay/raycluster-autoscaling.yaml")
SCRIPTS = ("slurm.sbatch",)
IN_IMAGE = "/opt/dasm-ray"
"""Where the image holds the recipes."""

Tree = dict[str, Any]


def read(name: str) -> str:
    return (CLUSTER / name).read_text(encoding="utf-8")


def tree_of(name: str) -> Tree:
    found = yaml.safe_load(read(name))
    assert isinstance(found, dict)
    return found


def test_every_file_has_a_test() -> None:
    files = {path.relative_to(CLUSTER).as_posix() for path in CLUSTER.rglob("*") if path.is_file()}
    assert files == {*LAUNCHED, *MANIFESTS, *SCRIPTS, "Dockerfile", "README.md"}


def typos(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every key of every mapping."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        if isinstance(tree, dict):
            yield (*path, key)
        yield from typos(value, (*path, key))


def with_typo(tree: Tree, path: tuple[Any, ...]) -> Tree:
    """A copy in which the key at the end of the path has one letter too many."""
    changed = copy.deepcopy(tree)
    *above, last = path
    node: Any = changed
    for key in above:
        node = node[key]
    node[f"{last}x"] = node.pop(last)
    return changed


def unseen(tree: Tree, faults: Callable[[Tree], list[str]]) -> list[str]:
    """The keys whose typo the checker does not see."""
    return ["/".join(map(str, path)) for path in typos(tree) if not faults(with_typo(tree, path))]


def record(*required: str, **properties: Any) -> Tree:
    """JSON schema of a mapping that has the ``required`` keys, and no other than ``properties``."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def every(item: Tree) -> Tree:
    return {"type": "array", "items": item, "minItems": 1}


def one_of(*values: Any) -> Tree:
    return {"enum": list(values)}


TEXT: Tree = {"type": "string", "minLength": 1}
FLAG: Tree = {"type": "boolean"}
WHOLE: Tree = {"type": "integer", "minimum": 0}


def misshapen(tree: Any, schema: Tree) -> list[str]:
    errors = jsonschema.Draft202012Validator(schema).iter_errors(tree)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


# --- the package --------------------------------------------------------------------------------------------------

PARTS = ("pyproject.toml", "README.md", "LICENSE", "dasm_ray", "configs")
"""What of a checkout the package is made of."""


def assert_installs(parts: list[str], folder: Path) -> None:
    """The wheel of these parts alone has what pip needs, a recipe and the licence too."""
    for name in parts:
        copy_of = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy_of(ROOT / name, folder / name)
    code = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    held = zipfile.ZipFile(built).namelist()
    assert {"dasm_ray/cli.py", "dasm_ray/configs/digits.yaml"} <= set(held)
    assert any(name.endswith("/licenses/LICENSE") for name in held)


# --- command lines ------------------------------------------------------------------------------------------------


def parsed(command: click.Command, words: list[str]) -> tuple[Tree, list[str]]:
    """What click makes of the words, without running the command; and what is wrong with them."""
    try:
        return command.make_context(str(command.name), list(words)).params, []
    except click.ClickException as error:
        return {}, [error.format_message()]


def run_faults(words: list[str]) -> tuple[RunConfig | None, list[str]]:
    """The configuration that a ``dasm-ray`` command line leads to, recipes of the image being those of the checkout."""
    if words[:1] != ["dasm-ray"]:
        return None, [f"{words[:1]} is not dasm-ray"]
    command = dasm_ray_cli.commands.get(words[1])
    if command is None:
        return None, [f"dasm-ray has no command {words[1]}"]
    given, faults = parsed(command, words[2:])
    if words[1] == "submit":
        return (None, faults) if faults else job_faults(list(given["words"]))
    if faults or "config" not in given:
        return None, faults
    recipe = ROOT / given["config"].removeprefix(f"{IN_IMAGE}/")
    try:
        return load_config(recipe, _with_options(given["overrides"], given["workers"], given["address"])), []
    except ConfigError as error:
        return None, list(error.problems)


def job_faults(words: list[str]) -> tuple[RunConfig | None, list[str]]:
    """The same for a command that is sent to a cluster as a job."""
    config, faults = run_faults(["dasm-ray", *words])
    if faults:
        return None, faults
    try:
        jobs.check(words[0], parsed(dasm_ray_cli.commands[words[0]], words[1:])[0])
    except ConfigError as error:
        return None, list(error.problems)
    return config, []


def test_a_wrong_command_line_is_seen() -> None:
    good = ["dasm-ray", "distill", "configs/digits.yaml"]
    assert run_faults(good)[1] == []
    sent = ["dasm-ray", "submit", "--no-wait", *good[1:], "--run"]
    assert run_faults([*sent, "/shared/r"])[1] == []
    assert run_faults([*sent, "runs/r"])[1]
    assert run_faults([*sent, "/shared/r", "--no-wait"])[1]
    assert run_faults(["dasm-ray", "submit", "--id", *good[1:]])[1]
    assert run_faults(["dasm-ray", "destill", "configs/digits.yaml"])[1]
    assert run_faults(["dasm-ray", "distill", "configs/digit.yaml"])[1]
    assert run_faults([*good, "--wokers", "2"])[1]
    assert run_faults([*good, "--set", "runtime.gpu_per_worker=1"])[1]
    assert run_faults([*good, "--workers", "0"])[1]


def start_faults(command: str) -> list[str]:
    """What is wrong with a command that starts or stops Ray on a node."""
    words = shlex.split(command.rpartition(";")[2])
    if words[:2] == ["ray", "stop"] or words[:2] == ["ray", "start"]:
        return parsed(ray_cli.commands[words[1]], words[2:])[1]
    return [f"{command}: neither starts nor stops Ray"]


# --- ray up -------------------------------------------------------------------------------------------------------

PROVIDERS = {
    "aws": record(
        *("type", "region", "availability_zone", "cache_stopped_nodes"),
        type=one_of("aws"),
        region=TEXT,
        availability_zone=TEXT,
        cache_stopped_nodes=one_of(False),
    ),
    "gcp": record(
        *("type", "region", "availability_zone", "project_id"),
        type=one_of("gcp"),
        region=TEXT,
        availability_zone=TEXT,
        project_id=TEXT,
    ),
}
NODES = {
    # the fields of EC2's RunInstances and of Compute Engine's Instance that are used; both refuse any that they lack
    "aws": record(
        *("InstanceType", "ImageId", "SecurityGroupIds", "IamInstanceProfile", "BlockDeviceMappings"),
        InstanceType={"type": "string", "pattern": r"^[a-z0-9]+\.\d*x?large$"},
        ImageId=TEXT,
        SecurityGroupIds=every({"type": "string", "pattern": "^sg-[0-9a-f]+$"}),
        IamInstanceProfile=record("Name", Name=TEXT),
        InstanceMarketOptions=record("MarketType", MarketType=one_of("spot", "capacity-block")),
        BlockDeviceMappings=every(
            record(
                *("DeviceName", "Ebs"),
                DeviceName=TEXT,
                Ebs=record("VolumeSize", "VolumeType", VolumeSize=WHOLE, VolumeType=one_of("gp3")),
            )
        ),
    ),
    "gcp": record(
        *("machineType", "disks"),
        machineType=TEXT,
        disks=every(
            record(
                *("boot", "autoDelete", "type", "initializeParams"),
                boot=FLAG,
                autoDelete=FLAG,
                type=one_of("PERSISTENT"),
                initializeParams=record("diskSizeGb", "sourceImage", diskSizeGb=WHOLE, sourceImage=TEXT),
            )
        ),
        scheduling=record(
            *("provisioningModel", "onHostMaintenance", "instanceTerminationAction"),
            provisioningModel=one_of("SPOT"),
            onHostMaintenance=one_of("TERMINATE"),  # machines with GPUs cannot be moved
            instanceTerminationAction=one_of("DELETE"),
        ),
        metadata=record("items", items=every(record("key", "value", key=TEXT, value=TEXT))),
        serviceAccounts=every(record("email", "scopes", email=TEXT, scopes=every(TEXT))),
    ),
}
IS_SPOT = {"aws": "InstanceMarketOptions", "gcp": "scheduling"}
MUST_SAY = {
    "max_workers",
    "idle_timeout_minutes",
    "docker",
    "available_node_types",
    "head_node_type",
    "file_mounts",
    *("setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands"),
}


def launcher_faults(tree: Tree) -> list[str]:
    """What is wrong with a cluster file of ``ray up``, by Ray's own reading of it and by what we mean it to say."""
    try:
        validate_config(prepare_config(copy.deepcopy(tree)))
    except Exception as error:  # Ray raises of many types, KeyError among them
        return [f"{type(error).__name__}: {error}"]
    cloud = tree["provider"]["type"]
    if cloud not in PROVIDERS:
        return [f"provider {cloud}"]
    faults = [f"{key} is missing" for key in sorted(MUST_SAY - tree.keys())]
    faults += misshapen(tree["provider"], PROVIDERS[cloud]) + misshapen(tree["auth"], record(ssh_user=TEXT))
    for name, kind in tree["available_node_types"].items():
        faults += [f"{name}: {fault}" for fault in misshapen(kind["node_config"], NODES[cloud])]
        faults += misshapen(kind["resources"], record("CPU", CPU=WHOLE, GPU=WHOLE))
    if faults:
        return faults
    return [*faults, *scaling_faults(tree, cloud), *image_faults(tree), *set_up_faults(tree)]


def scaling_faults(tree: Tree, cloud: str) -> Iterator[str]:
    """The head runs no task; each other type is on spot, has GPUs and comes from nothing."""
    kinds = dict(tree["available_node_types"])
    if kinds.pop(tree["head_node_type"])["resources"] != {"CPU": 0}:
        yield "the head takes tasks"
    for name, kind in kinds.items():
        if IS_SPOT[cloud] not in kind["node_config"] or not kind["resources"].get("GPU"):
            yield f"{name}: is no spot machine with a GPU"
        if kind.get("min_workers") != 0 or not 0 < kind.get("max_workers", 0) <= tree["max_workers"]:
            yield f"{name}: does not grow from nothing to at most max_workers"
    if not 0 < tree["idle_timeout_minutes"] <= 15:
        yield "idle_timeout_minutes: idle GPUs are paid for"


def image_faults(tree: Tree) -> Iterator[str]:
    docker = tree["docker"]
    yield from misshapen(
        docker,
        record(
            *("head_image", "worker_image", "container_name", "pull_before_run", "run_options"),
            head_image={"pattern": rf"^rayproject/ray:{re.escape(ray_version())}-py312-cpu$"},
            worker_image={"pattern": rf"^rayproject/ray:{re.escape(ray_version())}-py312-gpu$"},
            container_name=TEXT,
            pull_before_run=FLAG,
            run_options={"type": "array", "contains": {"const": "--env RAY_AUTH_MODE=token"}},
        ),
    )


def mounted(tree: Tree) -> list[str]:
    """What of the checkout lies on every node."""
    return [source for source in tree["file_mounts"].values() if not source.startswith("~")]


def set_up_faults(tree: Tree) -> Iterator[str]:
    """The package is installed from what is mounted, beside Ray of the image's version; Ray listens to its own only."""
    for target, source in tree["file_mounts"].items():
        if target.endswith("auth_token") and target == "/home/ray/.ray/auth_token" and source == "~/.ray/auth_token":
            continue
        if target != f"/home/ray/dasm-ray/{source}" or not (ROOT / source).exists():
            yield f"file_mounts: {target}"
    if "/home/ray/.ray/auth_token" not in tree["file_mounts"] or set(mounted(tree)) != set(PARTS):
        yield "file_mounts: not all that an installation needs"
    installs = [command for command in tree["setup_commands"] if command.startswith("pip install")]
    if installs != [f"pip install --quiet /home/ray/dasm-ray 'ray[default,tune]=={ray_version()}'"]:
        yield f"setup_commands: {installs}"
    kinds = tree["available_node_types"].values()
    first = [command for kind in kinds for command in kind.get("initialization_commands", [])]
    for command in [*first, *tree["setup_commands"], *tree["head_setup_commands"]]:
        if bash_faults(command):
            yield f"{command}: is not bash"
    starts = tree["head_start_ray_commands"] + tree["worker_start_ray_commands"]
    for command in starts:
        yield from start_faults(command)
    for option in ("--head", "--num-cpus=0", "--dashboard-host=127.0.0.1", "--autoscaling-config="):
        if option not in starts[1]:
            yield f"head_start_ray_commands: {option} is missing"


def ray_version() -> str:
    """The one version of Ray that the files are for."""
    found = re.search(r"^ARG RAY_VERSION=(\S+)$", read("Dockerfile"), re.MULTILINE)
    assert found
    return found[1]


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_up_reads_the_cluster_file(name: str) -> None:
    assert launcher_faults(tree_of(name)) == []


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_package_installs_from_what_is_mounted(name: str, tmp_path: Path) -> None:
    assert_installs(mounted(tree_of(name)), tmp_path)


@pytest.mark.parametrize("name", LAUNCHED)
def test_no_typo_in_a_key_of_a_cluster_file_goes_unseen(name: str) -> None:
    assert unseen(tree_of(name), launcher_faults) == ["available_node_types/gpu_spot"]  # a name of our own


@pytest.mark.parametrize("name", LAUNCHED)
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("head_node_type",), "haed"),
        (("max_workers",), 4),
        (("available_node_types", "gpu_spot", "min_workers"), 1),
        (("available_node_types", "gpu_spot", "resources", "GPU"), 0.5),
        (("available_node_types", "head", "resources", "CPU"), 4),
        (("docker", "worker_image"), "rayproject/ray:latest"),
        (("docker", "run_options"), []),
        (("head_start_ray_commands", 1), "ray start --head --num-cpu=0 --dashboard-host=127.0.0.1"),
        (("head_start_ray_commands", 1), "ray start --head --num-cpus=0 --dashboard-host=0.0.0.0"),
        (("setup_commands", 0), "command -v g++ || (sudo apt-get update"),
        (("file_mounts", "/home/ray/dasm-ray/dasm_ray"), "dasm"),
    ],
)
def test_a_wrong_value_in_a_cluster_file_is_seen(name: str, path: tuple[Any, ...], value: object) -> None:
    tree = tree_of(name)
    node: Any = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    assert launcher_faults(tree)


# --- KubeRay ------------------------------------------------------------------------------------------------------

QUANTITY: Tree = {"type": "string", "pattern": r"^\d+(\.\d+)?(m|[KMGT]i?)?$"}
RESOURCES = record(
    *("cpu", "memory"), **dict.fromkeys(("cpu", "memory", "ephemeral-storage", "nvidia.com/gpu"), QUANTITY)
)
CONTAINER = record(
    *("name", "image", "resources", "securityContext", "volumeMounts"),
    name=TEXT,
    image={"type": "string", "pattern": r"^[^:]+:[\w.-]+$"},
    ports=every(record("containerPort", "name", containerPort=WHOLE, name=TEXT)),
    env=every(record("name", "value", name=TEXT, value=TEXT)),
    securityContext=record(
        *("allowPrivilegeEscalation", "capabilities"),
        allowPrivilegeEscalation=one_of(False),
        capabilities=record("drop", drop=one_of(["ALL"])),
    ),
    resources=record("requests", "limits", requests=RESOURCES, limits=RESOURCES),
    volumeMounts=every(record("mountPath", "name", mountPath=TEXT, name=TEXT)),
)
LABELS = {"cloud.google.com/gke-spot": one_of("true"), "cloud.google.com/gke-accelerator": TEXT}
POD = record(
    *("serviceAccountName", "restartPolicy", "securityContext", "containers", "volumes"),
    serviceAccountName=TEXT,
    restartPolicy=one_of("Never"),
    terminationGracePeriodSeconds=WHOLE,
    nodeSelector=record(**LABELS),
    tolerations=every(
        record(
            *("key", "operator", "effect"),
            key=one_of("nvidia.com/gpu", *LABELS),
            operator=one_of("Exists", "Equal"),
            value=TEXT,
            effect=one_of("NoSchedule"),
        )
    ),
    securityContext=record("runAsNonRoot", "runAsUser", runAsNonRoot=one_of(True), runAsUser=WHOLE),
    containers={**every(CONTAINER), "maxItems": 1},
    volumes=every(
        record(
            *("name", "emptyDir"),
            name=TEXT,
            emptyDir=record("medium", "sizeLimit", medium=one_of("Memory"), sizeLimit=QUANTITY),
        )
    ),
)
TEMPLATE = record("spec", spec=POD)
START = record("object-store-memory", **{p.opts[0][2:]: TEXT for p in ray_cli.commands["start"].params})
RAY_CLUSTER = record(
    *("rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "authOptions", "headGroupSpec", "workerGroupSpecs"),
    rayVersion=TEXT,
    enableInTreeAutoscaling=one_of(True),
    autoscalerOptions=record(
        *("version", "idleTimeoutSeconds"),
        version=one_of("v1", "v2"),
        upscalingMode=one_of("Default", "Aggressive", "Conservative"),
        idleTimeoutSeconds=WHOLE,
    ),
    authOptions=record("mode", mode=one_of("token")),
    headGroupSpec=record(
        *("serviceType", "rayStartParams", "template"),
        serviceType=one_of("ClusterIP"),
        enableIngress=one_of(False),
        rayStartParams=START,
        template=TEMPLATE,
    ),
    workerGroupSpecs=every(
        record(
            *("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"),
            groupName=TEXT,
            replicas=one_of(0),
            minReplicas=one_of(0),
            maxReplicas={"type": "integer", "minimum": 1},
            rayStartParams=START,
            template=TEMPLATE,
        )
    ),
)
RAY_JOB = record(
    *("entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "rayClusterSpec"),
    entrypoint=TEXT,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "SidecarMode"),
    backoffLimit=WHOLE,
    shutdownAfterJobFinishes=one_of(True),
    ttlSecondsAfterFinished=WHOLE,
    rayClusterSpec=RAY_CLUSTER,
)
SPECS = {"RayJob": RAY_JOB, "RayCluster": RAY_CLUSTER}


def manifest_faults(tree: Tree) -> list[str]:
    """What is wrong with a manifest: by the part of KubeRay's shapes (v1) that is used, then by its meaning."""
    schema = record(
        *("apiVersion", "kind", "metadata", "spec"),
        apiVersion=one_of("ray.io/v1"),
        kind=one_of(*SPECS),
        metadata=record("name", name={"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}),
        spec=SPECS.get(tree.get("kind", ""), {}),
    )
    return misshapen(tree, schema) or [*meaning_faults(tree)]


def meaning_faults(tree: Tree) -> Iterator[str]:
    cluster = tree["spec"].get("rayClusterSpec", tree["spec"])
    if cluster["rayVersion"] != ray_version():
        yield f"rayVersion {cluster['rayVersion']}"
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    if head["rayStartParams"].get("num-cpus") != "0" or gpus_of(head):
        yield "the head takes tasks"
    if len({container_of(group)["image"] for group in (head, *workers)}) > 1:
        yield "not one image"
    for group in (head, *workers):
        yield from (f"{group.get('groupName', 'head')}: {fault}" for fault in pod_faults(group))
    for group in workers:
        yield from (f"{group['groupName']}: {fault}" for fault in spot_faults(group))
    if not any(gpus_of(group) for group in workers):
        yield "no group has GPUs"
    if "entrypoint" in tree["spec"]:
        yield from entrypoint_faults(tree["spec"]["entrypoint"], workers)


def pod_faults(group: Tree) -> Iterator[str]:
    """Requests are limits; /dev/shm is memory that holds the object store and fits into the pod; Ray is told words."""
    container, pod = container_of(group), group["template"]["spec"]
    if container["resources"]["requests"] != container["resources"]["limits"]:
        yield "requests differ from limits"
    if pod["securityContext"]["runAsUser"] != image_user():
        yield "runs as another user than the image"
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    sizes = {volume["name"]: volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"]}
    if set(mounts) != {"/dev/shm"} or set(mounts.values()) != set(sizes):
        yield "/dev/shm is not the one volume"
        return
    store, shm = int(group["rayStartParams"]["object-store-memory"]), amount(sizes[mounts["/dev/shm"]])
    if not store < shm <= amount(container["resources"]["limits"]["memory"]) / 2:
        yield f"an object store of {store} in a /dev/shm of {shm}"
    words = [f"--{key}={value}" for key, value in group["rayStartParams"].items()]
    yield from parsed(ray_cli.commands["start"], words)[1]


def spot_faults(group: Tree) -> Iterator[str]:
    """On spot nodes, with GPUs exactly where they are asked for, and leaving Ray the time to drain."""
    pod = group["template"]["spec"]
    keys = {toleration["key"] for toleration in pod["tolerations"]}
    if "cloud.google.com/gke-spot" not in keys & pod["nodeSelector"].keys():
        yield "is not for spot nodes"
    has_gpus = bool(gpus_of(group))
    if has_gpus != ("nvidia.com/gpu" in keys) or has_gpus != (
        "cloud.google.com/gke-accelerator" in pod["nodeSelector"]
    ):
        yield "GPUs are asked for in one place and not in another"
    environment = {entry["name"]: entry["value"] for entry in container_of(group)["env"]}
    drain = int(environment.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", 30))
    if len(environment) > 1 or drain == 30 or not drain < pod["terminationGracePeriodSeconds"]:
        yield "the pod is killed before Ray has drained it"


def entrypoint_faults(entrypoint: str, workers: list[Tree]) -> Iterator[str]:
    """The command is one that the image can run, on workers that the cluster can grow to."""
    words = shlex.split(entrypoint)
    config, faults = run_faults(words)
    yield from faults
    if config is None:
        return
    if not words[2].startswith(f"{IN_IMAGE}/configs/"):
        yield f"{words[2]}: is not in the image"
    if "://" not in words[words.index("--run") + 1] or "://" not in (config.data.path or ""):
        yield "workers do not reach the run directory or the data"
    fits = [
        group["maxReplicas"] * (gpus_of(group) // (config.runtime.gpus_per_worker or 1))
        for group in workers
        if int(container_of(group)["resources"]["limits"]["cpu"]) >= config.runtime.cpus_per_worker
    ]
    if not config.runtime.gpus_per_worker or not 0 < (config.runtime.workers or 0) <= sum(fits):
        yield "asks for more workers than can come, or does not say how many"


def container_of(group: Tree) -> Tree:
    (container,) = group["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def gpus_of(group: Tree) -> int:
    return int(container_of(group)["resources"]["limits"].get("nvidia.com/gpu", "0"))


def amount(quantity: str) -> int:
    """Bytes of ``12Gi``."""
    return int(quantity[:-2]) * {"Mi": 2**20, "Gi": 2**30}[quantity[-2:]]


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_has_kuberays_shape_and_makes_sense(name: str) -> None:
    assert manifest_faults(tree_of(name)) == []


@pytest.mark.parametrize("name", MANIFESTS)
def test_no_typo_in_a_key_of_a_manifest_goes_unseen(name: str) -> None:
    assert unseen(tree_of(name), manifest_faults) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("dasm-ray distill", "dasm-ray destill"),
        ("configs/cifar10_ipc10_datm.yaml", "configs/cifar10_ipc10.yaml"),
        ("--set runtime.gpus_per_worker=1", ""),
        ("runtime.gpus_per_worker", "runtime.gpu_per_worker"),
        ("--run s3://my-bucket/", "--run /"),
        ("--workers 4", "--workers 5"),
        ('num-cpus: "0"', 'num-cpus: "none"'),
        ('num-cpus: "0"', "num-cpus: 0"),
        ('rayVersion: "2.60.0"', 'rayVersion: "2.50.0"'),
        ("sizeLimit: 12Gi", "sizeLimit: 8Gi"),
        ("sizeLimit: 12Gi", "sizeLimit: 12 gigs"),
        ('limits: {cpu: "7"', 'limits: {cpu: "8"'),
        ("runAsUser: 1000", "runAsUser: 0"),
        ("terminationGracePeriodSeconds: 60", "terminationGracePeriodSeconds: 30"),
        ("serviceType: ClusterIP", "serviceType: LoadBalancer"),
        ("mode: token", "mode: disabled"),
        ("ray.io/v1", "ray.io/v1alpha1"),
        ("kind: RayJob", "kind: Rayjob"),
    ],
)
def test_a_wrong_value_in_a_manifest_is_seen(old: str, new: str) -> None:
    text = read("kuberay/rayjob.yaml")
    assert old in text
    assert manifest_faults(yaml.safe_load(text.replace(old, new)))


# --- the image ----------------------------------------------------------------------------------------------------

Instruction = tuple[str, str]
KNOWN = {"ARG", "FROM", "USER", "WORKDIR", "RUN", "COPY", "CMD", "ENV", "LABEL"}
"""What may stand there. No ADD: it fetches URLs; no ENTRYPOINT: others start Ray with a command of their own."""


def instructions(text: str) -> list[Instruction]:
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def image_user() -> int:
    return int([rest for word, rest in instructions(read("Dockerfile")) if word == "USER"][-1])


def dockerfile_faults(text: str) -> list[str]:
    found = instructions(text)
    unknown = [f"{word} is no instruction" for word, _ in found if word not in KNOWN]
    return unknown or [*variable_faults(found), *base_faults(found), *layer_faults(found)]


def variable_faults(found: list[Instruction]) -> Iterator[str]:
    """Every variable has an ARG in front of it, in its own stage."""
    known: set[str] = set()
    for word, rest in found:
        if missing := set(re.findall(r"\$\{(\w+)\}", rest)) - known:
            yield f"{word} {rest}: {missing} is not declared"
        if word == "ARG":
            known.add(rest.partition("=")[0])
        if word == "FROM":
            known.clear()


def base_faults(found: list[Instruction]) -> Iterator[str]:
    """One public image of Ray with a full tag, of a version that the package supports; never root at the end."""
    defaults = dict(rest.split("=", 1) for word, rest in found if word == "ARG" and "=" in rest)
    bases = [re.sub(r"\$\{(\w+)\}", lambda m: defaults.get(m[1], ""), rest) for word, rest in found if word == "FROM"]
    parts = re.fullmatch(r"rayproject/ray:(\d+\.\d+\.\d+)-py3(\d+)-(cpu|gpu)", " ".join(bases))
    if not parts or not RANGES["ray"].contains(parts[1]):
        yield f"FROM {bases}"
    elif not SpecifierSet(PROJECT["requires-python"]).contains(f"3.{parts[2]}"):
        yield f"Python 3.{parts[2]} is too old"
    users = [rest for word, rest in found if word == "USER"]
    if not users or not users[-1].isdigit() or users[-1] == "0":
        yield f"USER {users[-1:]}: not a number, or root"


def copied_in(found: list[Instruction]) -> dict[str, str]:
    """Sources of the checkout, and where each goes in the image."""
    copied = {}
    for word, rest in found:
        if word == "COPY":
            *sources, target = [part for part in rest.split() if not part.startswith("--")]
            copied |= dict.fromkeys(sources, target)
    return copied


def layer_faults(found: list[Instruction]) -> Iterator[str]:
    """Sources exist and end where they are looked for; commands are bash; torch is as the package asks for it."""
    copied = copied_in(found)
    for word, rest in found:
        if word == "RUN" and bash_faults(rest):
            yield f"RUN {rest}: is not bash"
        if word == "CMD" and json.loads(rest)[0] not in PROJECT["scripts"]:
            yield f"CMD {rest}"
    yield from (f"COPY {source}: is not there" for source in copied if not (ROOT / source).exists())
    if copied != {name: f"{IN_IMAGE}/{name if (ROOT / name).is_dir() else ''}" for name in PARTS}:
        yield f"COPY: {copied}"
    installs = [shlex.split(rest)[2:] for word, rest in found if word == "RUN" and rest.startswith("pip install ")]
    names = [{word for word in words if not word.startswith("-")} for words in installs]
    ranges = [{need for need in PROJECT["dependencies"] if Requirement(need).name in ("torch", "torchvision")}]
    if [each - {"${TORCH_INDEX}"} for each in names] != [*ranges, {IN_IMAGE, "ray[default,tune]==${RAY_VERSION}"}]:
        yield f"RUN pip install: {names}"


def test_the_image_can_be_meant() -> None:
    assert dockerfile_faults(read("Dockerfile")) == []


def test_the_package_installs_from_what_the_image_copies(tmp_path: Path) -> None:
    assert_installs(list(copied_in(instructions(read("Dockerfile")))), tmp_path)


def test_no_typo_in_an_instruction_goes_unseen() -> None:
    text = read("Dockerfile")
    places = [match.start() for match in re.finditer(r"^[A-Z]+ ", text, re.MULTILINE)]
    assert len(places) == len(instructions(text))
    assert all(dockerfile_faults(f"{text[:place]}X{text[place:]}") for place in places)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("USER 1000", "USER root"),
        ("${RAY_VERSION}-py312", "${RAY_VERSOIN}-py312"),
        ("ARG RAY_VERSION\n", ""),
        ("-py312-", "-py310-"),
        ("RAY_VERSION=2.60.0", "RAY_VERSION=2.40.0"),
        ("rayproject/ray:${RAY_VERSION}-py312-${FLAVOUR}", "rayproject/ray"),
        ("COPY --chown=1000:100 configs", "COPY --chown=1000:100 config"),
        ("/opt/dasm-ray/configs", "/opt/configs"),
        ("torch>=2.11", "torch>=2.0"),
        ('["dasm-ray"', '["dasmray"'),
        ("COPY --chown=1000:100 configs", "ADD https://example.com/x.tar"),
    ],
)
def test_a_wrong_line_in_the_image_is_seen(old: str, new: str) -> None:
    text = read("Dockerfile")
    assert old in text
    assert dockerfile_faults(text.replace(old, new))


# --- the script ---------------------------------------------------------------------------------------------------


def bash_faults(text: str) -> str:
    return subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False).stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_reads_the_script(name: str) -> None:
    text = read(name)
    assert bash_faults(text) == ""
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing(name: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    called_by_traps = "--exclude=SC2317,SC2329"  # it takes handlers for code that nothing reaches
    subprocess.run(["shellcheck", "--shell=bash", called_by_traps, CLUSTER / name], check=True)


class Stubs:
    """A folder of commands that stand in for real ones: each writes down its arguments, then does what it is told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "calls.jsonl"
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLURM_"))},
            "PATH": f"{folder}:/usr/bin:/bin",
            "HOME": str(folder),
            "LOG": str(self.log),
        }

    def add(self, name: str, then: str = "pass") -> None:
        """``then``: Python that runs after the call is written down, with sys, os, time and signal."""
        path = self.folder / name
        path.write_text(
            f"#!{sys.executable} -IS\n"
            "import json, os, signal, sys, time\n"
            "def note(*words):\n"
            "    with open(os.environ['LOG'], 'a') as log:\n"
            "        ray = {key: value for key, value in os.environ.items() if key.startswith('RAY_')}\n"
            "        log.write(json.dumps([list(words), ray]) + '\\n')\n"
            f"note({name!r}, *sys.argv[1:])\n{then}\n",
            encoding="utf-8",
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def calls(self, name: str) -> list[list[str]]:
        return [words[1:] for words, _ in self._lines() if words[0] == name]

    def ray_variables(self, name: str) -> dict[str, str]:
        """The variables with which the command was last called."""
        return next(ray for words, ray in reversed(self._lines()) if words[0] == name)

    def _lines(self) -> list[tuple[list[str], dict[str, str]]]:
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        return [tuple(json.loads(line)) for line in lines]  # type: ignore[misc]


@pytest.fixture
def stubs(tmp_path: Path) -> Stubs:
    return Stubs(tmp_path)


RUN = ("distill", "configs/digits.yaml", "--run", "s3://bucket/runs/digits")
SRUN = "i = next(i for i, word in enumerate(sys.argv) if i and word[0] != '-'); os.execvp(sys.argv[i], sys.argv[i:])"
RAY_START = """
import socket
given = dict(word.partition('=')[::2] for word in sys.argv)
def leave(*_):
    note('ray left')
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
if '--head' in given:
    port = socket.create_server((given['--node-ip-address'], int(given['--port'])))
note('ray ready')
while True:
    time.sleep(0.05)
"""
JOINED = """
while sum('"ray ready"' in line for line in open(os.environ['LOG'])) < min(int(sys.argv[3]), 2):
    time.sleep(0.05)
"""
STOPPABLE = """
def stop(*_):
    time.sleep(0.3)
    note('checkpoint')
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
note('running')
while True:
    time.sleep(0.05)
"""
KNOWN_SBATCH = {"job-name", "nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "mem", "time", "signal"} | {
    "no-kill",
    "output",
}
KNOWN_SRUN = {"nodes", "ntasks", "nodelist", "exclude", "cpus-per-task", "overlap"}


def slurm(stubs: Stubs, command: str, *, ray: str = RAY_START, join: str = JOINED, nodes: int = 2) -> list[str]:
    """Stands in for Slurm and the cluster; returns the command that runs the batch script."""
    names = [f"node{number}" for number in range(nodes)]
    stubs.add("scontrol", f"print({chr(10).join(names)!r})")
    stubs.add("srun", SRUN)
    stubs.add("ray", ray)
    stubs.add("python", join)
    stubs.add("dasm-ray", command)
    number = os.getpid() * 7 % 10**6
    stubs.environment |= {"SLURM_JOB_ID": str(number), "SLURM_JOB_NUM_NODES": str(nodes), "SLURM_CPUS_PER_TASK": "8"}
    stubs.environment |= {"SLURM_JOB_NODELIST": "node[0-1]", "DASM_HEAD_IP": "127.0.0.1"}
    return ["bash", str(CLUSTER / "slurm.sbatch"), *RUN]


def batch(stubs: Stubs, words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=stubs.environment, text=True, capture_output=True, check=False, timeout=60)


@pytest.mark.parametrize(("code", "nodes"), [(0, 2), (2, 1), (7, 3)])
def test_the_batch_job_ends_as_the_command_ends_and_leaves_nothing(stubs: Stubs, code: int, nodes: int) -> None:
    done = batch(stubs, slurm(stubs, f"sys.exit({code})", nodes=nodes))
    assert done.returncode == code, done.stderr
    assert stubs.calls("dasm-ray") == [list(RUN)]
    assert len(stubs.calls("ray left")) == len(stubs.calls("ray")) == min(nodes, 2)
    assert any("rm" in words for words in stubs.calls("srun"))


def test_the_batch_job_starts_ray_as_ray_and_slurm_understand_it(stubs: Stubs) -> None:
    batch(stubs, slurm(stubs, "pass"))
    starts = [parsed(ray_cli.commands[words[0]], words[1:]) for words in stubs.calls("ray")]
    assert [faults for _, faults in starts] == [[], []]
    head, worker = sorted((given for given, _ in starts), key=lambda given: not given["head"])
    variables = stubs.ray_variables("dasm-ray")
    assert variables["RAY_ADDRESS"] == worker["address"] == f"127.0.0.1:{head['port']}"
    assert (head["node_ip_address"], head["include_dashboard"], head["num_cpus"]) == ("127.0.0.1", False, 8)
    assert variables["RAY_AUTH_MODE"] == "token"
    assert re.fullmatch("[0-9a-f]{64}", variables["RAY_AUTH_TOKEN"])
    assert stubs.ray_variables("ray")["RAY_AUTH_TOKEN"] == variables["RAY_AUTH_TOKEN"]
    own = [word for words in stubs.calls("srun") for word in itertools.takewhile(lambda w: w[0] == "-", words)]
    assert {word[2:].partition("=")[0] for word in own} == KNOWN_SRUN


def test_the_batch_job_hands_the_signal_on_and_waits_for_the_checkpoint(stubs: Stubs) -> None:
    with subprocess.Popen(slurm(stubs, STOPPABLE), env=stubs.environment) as job:
        deadline = time.monotonic() + 30
        while not stubs.calls("running") and time.monotonic() < deadline:
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=30) == 130
    assert len(stubs.calls("checkpoint")) == 1
    assert len(stubs.calls("ray left")) == 2


@pytest.mark.parametrize(
    ("ray", "join", "reason"),
    [
        ("sys.exit(1)", JOINED, "slurm.sbatch: Ray did not start on node0; its messages are above\n"),
        (RAY_START, "sys.exit(1)", "slurm.sbatch: the cluster did not come up\n"),
    ],
)
def test_the_batch_job_says_that_ray_did_not_come_up(stubs: Stubs, ray: str, join: str, reason: str) -> None:
    done = batch(stubs, slurm(stubs, "pass", ray=ray, join=join))
    assert (done.returncode, stubs.calls("dasm-ray")) == (1, [])
    assert done.stderr.endswith(reason)


def test_the_batch_script_is_for_sbatch_and_needs_an_address_that_others_reach(stubs: Stubs) -> None:
    words = slurm(stubs, "pass")
    stubs.add("getent", "print('127.0.1.1  STREAM node0')")
    del stubs.environment["DASM_HEAD_IP"]
    assert "node0 resolves to no address that other nodes reach" in batch(stubs, words).stderr
    del stubs.environment["SLURM_JOB_ID"]
    assert "start it with sbatch" in batch(stubs, words).stderr
    assert "no command was given" in batch(stubs, words[:2]).stderr


def test_slurm_is_asked_for_what_it_knows_and_for_a_signal_in_time() -> None:
    lines = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", read("slurm.sbatch"), re.MULTILINE)
    assert {name for name, _ in lines} == KNOWN_SBATCH
    assert len(lines) == read("slurm.sbatch").count("#SBATCH")
    assert dict(lines)["signal"] == "B:TERM@120"


# --- the text -----------------------------------------------------------------------------------------------------

README_LINES = [
    line for block in re.findall(r"```sh\n(.*?)```", read("README.md"), re.DOTALL) for line in block.splitlines()
]
KEY = re.compile(r"(?<![.\w])((?:data|experts|matcher|trajectory|synthetic|evaluate|runtime)\.[a-z_]+)\b(?!\.)")


def our_part(line: str) -> list[str]:
    """The ``dasm-ray`` command that a line of the README comes to, if any."""
    words = shlex.split(line)
    if words[0] == "sbatch":
        words = words[words.index("cluster/slurm.sbatch") :]
    return ["dasm-ray", *words[1:]] if words[0] in ("cluster/slurm.sbatch", "dasm-ray") else []


def test_commands_of_the_readme_are_commands() -> None:
    ours = [words for line in README_LINES if (words := our_part(line))]
    assert len(ours) >= 6
    assert [(words, faults) for words in ours if (faults := run_faults(words)[1])] == []
    assert [line for line in README_LINES if bash_faults(line)] == []


def test_files_and_keys_of_the_readme_are_there() -> None:
    text = read("README.md")
    files = set(re.findall(r"(?<![\w/])((?:configs|cluster)/[\w/.-]+\w)", text))
    assert [name for name in files if not (ROOT / name).exists()] == []
    named = set(re.findall(r"`((?:kuberay/)?[\w-]+\.(?:yaml|sbatch))`", text))
    assert [name for name in named if not (CLUSTER / name).exists()] == []
    keys = set(KEY.findall(text))
    assert len(keys) > 8
    assert [key for key in keys if not is_key(key)] == []
    assert set(re.findall(r"\d+\.\d+\.\d+", text)) >= {ray_version()}


def is_key(key: str) -> bool:
    section, _, name = key.partition(".")
    return name in type(getattr(RunConfig(), section)).model_fields


def test_names_to_replace_are_those_of_the_files() -> None:
    everything = "".join(read(name) for name in (*LAUNCHED, *MANIFESTS))
    for name in ("my-bucket", "my-project", "registry.example.com", "sg-00000000000000000"):
        assert f"`{name}`" in read("README.md")
        assert name in everything


@pytest.mark.parametrize("name", [*LAUNCHED, *MANIFESTS, *SCRIPTS, "Dockerfile", "README.md"])
def test_no_secret_stands_in_a_file_and_no_door_is_open(name: str) -> None:
    text = read(name)
    assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|secret_access_key|password", text, re.IGNORECASE)
    assert "0.0.0.0" not in text
