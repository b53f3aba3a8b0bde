"""Every file in clusters/: each is what its reader (raymeta, `ray up`, KubeRay) takes, and they agree with each other."""

import copy
import shlex
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

from raymeta import nodes, yaml12
from raymeta.cluster import Profile, profile_values, profiles
from raymeta.config import Run
from raymeta.errors import UserError

ROOT = Path(__file__).parents[1]
CLUSTERS = ROOT / "clusters"
UP = sorted(p for p in CLUSTERS.glob("*/cluster.yaml") if "provider" in yaml12.read(p))
MANIFESTS = sorted(p for p in CLUSTERS.glob("*/*.yaml") if "apiVersion" in yaml12.read(p))
KUBERAY = yaml12.read(Path(__file__).parent / "data" / "kuberay.yaml")


def machines(path: Path) -> list[dict[str, float]]:
    """The machines of a cluster at its largest, as Ray counts their resources."""
    described = yaml12.read(path)
    if "provider" in described:
        types = described["available_node_types"]
        head = described["head_node_type"]
        return [
            t["resources"] for name, t in types.items() for _ in range(t.get("max_workers", 1) if name != head else 1)
        ]
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    described["metadata"]["namespace"] = "default"
    types = _derive_autoscaling_config_from_ray_cr(described)["available_node_types"]
    return [t["resources"] for t in types.values() for _ in range(max(1, t["max_workers"]))]


def test_every_file_belongs_to_a_reader():
    known = {*profiles().values(), *UP, *MANIFESTS}
    assert {p.resolve() for p in CLUSTERS.rglob("*.yaml")} == {p.resolve() for p in known}
    assert {p.parent.name for p in UP} == {"aws-gpu", "gcp-gpu"}
    assert {yaml12.read(p)["kind"] for p in MANIFESTS} == {"RayCluster", "RayJob"}


@pytest.mark.parametrize("name", profiles())
def test_a_profile_is_one_and_says_what_it_is(name):
    profile = Profile.of(profile_values(name))
    assert profile.description
    said = profile.explain()
    assert said.startswith(profile.description)
    assert profile.in_process or f"{profile.cpus_per_worker:g} CPU" in said
    if profile.gpu:
        assert "1 GPU" in said


@pytest.mark.parametrize("path", UP, ids=lambda p: p.parent.name)
def test_a_ray_up_file_is_what_ray_up_takes(path):
    from ray.autoscaler._private.util import prepare_config, validate_config

    described = yaml.safe_load(path.read_text(encoding="utf-8"))
    prepared = prepare_config(copy.deepcopy(described))
    prepared.setdefault("cluster_synced_files", [])
    validate_config(prepared)
    with pytest.raises(jsonschema.ValidationError, match="max_wrokers"):
        validate_config({**prepared, "max_wrokers": 1})


@pytest.mark.parametrize("path", UP, ids=lambda p: p.parent.name)
def test_a_ray_up_file_installs_what_raymeta_needs_and_the_ray_it_needs(path):
    described = yaml12.read(path)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {d for d in project["dependencies"] if not d.startswith("ray[")}
    installs = [shlex.split(c) for c in described["setup_commands"] if c.startswith("pip install")]
    assert {word for command in installs for word in command[2:]} == needed
    assert described["docker"]["image"].startswith("rayproject/ray:2.60.0-py311")


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.stem)
def test_a_kuberay_manifest_is_what_its_resource_definition_takes(path):
    described = yaml.safe_load(path.read_text(encoding="utf-8"))
    schema = {**KUBERAY, "$ref": f"#/$defs/{described['kind']}"}
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(described, schema)
    wrong = copy.deepcopy(described)
    wrong["spec"]["rayClusterSpecs"] = {}
    with pytest.raises(jsonschema.ValidationError, match="rayClusterSpecs"):
        jsonschema.validate(wrong, schema)


def test_kuberays_job_has_the_cluster_of_its_neighbour_and_runs_what_there_is():
    cluster, job = (yaml12.read(CLUSTERS / "kuberay" / name) for name in ("cluster.yaml", "job.yaml"))
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    command, verb, recipe, *overrides = shlex.split(job["spec"]["entrypoint"])
    assert (command, verb) == ("raymeta", "run")
    assert Run.load(recipe, *overrides).storage == "/shared/results"


@pytest.mark.parametrize("folder", sorted({p.parent for p in (*UP, *MANIFESTS)}), ids=lambda p: p.name)
def test_a_profile_fits_on_its_cluster_and_stores_where_all_machines_see_it(folder):
    profile = Profile.of(profile_values(folder.name))
    there = machines(folder / "cluster.yaml")
    assert nodes.groups(profile.bundle, profile.most, profile.placement, there) >= 1
    assert not nodes.groups(profile.bundle, 2 * profile.most, profile.placement, there)
    assert profile.storage is not None
    mounted = (folder / "cluster.yaml").read_text(encoding="utf-8")
    assert f"/{profile.storage.split('/')[1]}" in mounted
    assert profile.dashboard is not None


def test_results_go_where_the_profile_says_unless_the_run_says_otherwise(tmp_path):
    assert Run.load("quickstart", "cluster=aws-gpu", "outer.tasks_per_step=8").storage == "/shared/results"
    assert Run.load("quickstart", "cluster=aws-gpu", "outer.tasks_per_step=8", "storage=mine").storage == "mine"
    assert Run.load("quickstart", "cluster={workers: 1, storage: here}").storage == "here"
    assert Run.load("quickstart").storage == "results"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["cluster.workers=0"], r"cluster.workers: give at least 1 worker, or \[fewest, most\], not 0"),
        (["cluster.workers=[4, 2]"], r"give at least 1 worker, or \[fewest, most\], not \[4, 2\]"),
        (["cluster.workers=[1, 5]"], "outer.tasks_per_step: 4 tasks a step cannot be shared by 5 workers"),
        (["cluster.image=a/b:c", "cluster.runtime=pip"], "cluster.image: Ray takes either an image or packages"),
        (["cluster.placement=PACKED"], "did you mean 'PACK'"),
    ],
)
def test_a_profile_that_makes_no_sense_is_told(overrides, says):
    with pytest.raises(UserError, match=says):
        Run.load("quickstart", *overrides)


def test_elastic_workers_are_a_range_and_begin_with_the_fewest():
    profile = Run.load("quickstart", "cluster.workers=[1, 4]").cluster
    assert (profile.fewest, profile.most) == (1, 4)
    assert "1 to 4 x 1 CPU" in profile.explain()
    assert yaml12.parse(Run.load("quickstart", "cluster.workers=[1, 4]").yaml())["cluster"]["workers"] == [1, 4]
