"""Nothing that a run reads can run code, and no file of a run holds a secret."""

import ast
from pathlib import Path

import pytest

from raymeta import yaml12
from raymeta.cluster import Profile
from raymeta.errors import UserError
from raymeta.model import Backbone

PACKAGE = Path(__file__).parents[1] / "raymeta"
FORBIDDEN = {
    "torch.load", "pickle.load", "cloudpickle.load", "joblib.load", "np.load(allow_pickle)", "yaml.load(text)", "yaml.unsafe_load",
    "eval", "exec", "os.system", "os.popen", "shutil.unpack_archive", "tarfile.open", "zipfile.ZipFile", "shell=True",
}  # fmt: skip


def calls(path: Path) -> set[str]:
    """What a file calls, by the names above."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {k.arg: k.value for k in node.keywords}
            found.add(name)
            if name == "np.load" and "allow_pickle" in keywords:
                found.add("np.load(allow_pickle)")
            if name == "yaml.load":  # with a loader of its own, made safe below
                found.add(name if ast.unparse(node.args[1]) == "_Loader" else "yaml.load(text)")
            if "shell" in keywords:
                found.add("shell=True")
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_module_reads_code_from_disk_or_gives_a_shell_settings(path):
    assert not calls(path) & FORBIDDEN


def test_the_check_above_finds_what_it_looks_for(tmp_path):
    (tmp_path / "bad.py").write_text("torch.load(p)\nrun(c, shell=True)\nnp.load(p, allow_pickle=True)\n")
    assert calls(tmp_path / "bad.py") & FORBIDDEN == {"torch.load", "shell=True", "np.load(allow_pickle)"}


def test_settings_are_read_by_a_loader_that_makes_no_objects():
    with pytest.raises(ValueError, match="python/object"):
        yaml12.parse("!!python/object/apply:os.getcwd []")


def test_code_of_a_model_is_not_trusted_unless_asked():
    assert not Backbone(name="some-model").trust_remote_code


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "db_password"])
def test_a_secret_in_a_profile_is_refused(name):
    with pytest.raises(UserError, match=rf"cluster.environment: {name} looks like a secret.*cluster.secrets"):
        Profile.of({"environment": {name: "hidden"}})
    assert Profile.of({"environment": {"OMP_NUM_THREADS": "2"}, "secrets": [name]}).secrets == (name,)
