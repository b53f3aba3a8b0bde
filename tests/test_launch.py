"""What becomes of a run whose workers, or what looks after them, are lost."""

import pytest

from raymeta import cluster
from raymeta.cluster import Profile


@pytest.mark.parametrize(("losses", "ends_well"), [(2, True), (3, False)])
def test_a_lost_controller_is_replaced_as_often_as_workers_may_be(losses, ends_well, tmp_path, monkeypatch, capsys):
    """The loss itself is real in tests/end_to_end/chaos.py; this counts."""
    from ray.exceptions import RayActorError

    left = [RayActorError()] * losses

    def fit(*_: object) -> None:
        if left:
            raise left.pop()

    monkeypatch.setattr(cluster, "_fit", fit)
    monkeypatch.setattr(cluster.nodes, "shared", lambda _: None)
    profile = Profile(max_failures=2)
    if ends_well:
        cluster.launch(lambda *_: None, {}, profile, tmp_path)
    else:
        with pytest.raises(RuntimeError, match="controller was lost 3 times"):
            cluster.launch(lambda *_: None, {}, profile, tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert said == ["Ray Train's controller was lost; going on from the newest checkpoint"] * 2


def test_memory_that_did_not_suffice_is_known_by_its_words():
    ours = [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA out of memory"),
    ]
    assert all(cluster.out_of_memory(error) for error in ours)
    assert not cluster.out_of_memory(RuntimeError("Connection closed by peer"))
