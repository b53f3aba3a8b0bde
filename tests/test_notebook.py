"""`import raymeta as rm`: what a notebook needs, in the order in which it needs it."""

import subprocess
import sys

import pytest

import raymeta as rm
from raymeta.errors import UserError
from tests.mistakes import run_file


def test_a_notebook_looks_trains_measures_adapts_and_exports(tiny_tokenizer_folder, tmp_path):
    path = run_file(tmp_path, tiny_tokenizer_folder)
    run = rm.Run.load(str(path), "outer.steps=3", "outer.tasks_per_step=1", "validation.every=2", "evaluate.episodes=4")
    episode = next(rm.episodes(run, split="validation"))
    assert repr(episode).startswith("episode 0 of the validation split\nsupport: 2 texts\n  ")
    assert all(name in repr(episode) for name in episode.classes)
    with pytest.raises(UserError, match="is not meta-trained to its end"):
        rm.evaluate(run)
    result = rm.metatrain(run)
    pytest.importorskip("matplotlib", reason="needs the extra `report`")
    assert "Validation accuracy: " in result.plot().axes[1].get_title(loc="left")
    measured = rm.evaluate(run, result.checkpoint)
    assert measured["metrics"]["accuracy"]["mean"] == rm.evaluate(run)["metrics"]["accuracy"]["mean"]
    assert str(measured).startswith("test: 4 episodes, 2-way 1-shot; mean ± 95 % interval, in %")
    learner = rm.Learner.from_pretrained(result.checkpoint)
    classifier = learner.adapt(["book a table", "play jazz"], ["dining", "music"])
    assert set(classifier.predict(["any sushi nearby?"])) <= {"dining", "music"}
    classifier.save_pretrained(tmp_path / "intents")
    assert (tmp_path / "intents" / "model.safetensors").is_file()


def test_episodes_go_on_from_a_number_and_are_those_of_training(tiny_tokenizer_folder, tmp_path):
    run = rm.Run.load(str(run_file(tmp_path, tiny_tokenizer_folder)))
    first, second = (next(rm.episodes(run, start=start)) for start in (0, 1))
    both = rm.episodes(run)
    assert [next(both).text, next(both).text] == [first.text, second.text]
    assert first.text != second.text


def test_importing_raymeta_loads_neither_torch_nor_ray_and_every_name_is_there():
    code = (
        "import sys, raymeta as rm; assert not {'torch', 'ray', 'transformers', 'pydantic'} & set(sys.modules); "
        "[getattr(rm, name) for name in rm.__all__]; assert callable(rm.episodes); assert 'ray' not in sys.modules; "
        "assert set(rm.__all__) <= set(dir(rm))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'train'"):
        rm.train  # noqa: B018
