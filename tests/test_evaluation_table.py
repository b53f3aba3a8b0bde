"""The table of an evaluation: shares in percent, losses in nats, and groups of tasks below."""

from raymeta.stages.evaluate import table


def row(**means: float) -> dict[str, dict[str, float]]:
    return {name.replace("__", "/"): {"mean": mean, "ci95": 0.01} for name, mean in means.items()}


def test_losses_are_in_nats_and_each_group_has_a_row():
    shape = {"split": "test", "episodes": 40, "ways": 1, "shots": 8, "queries": 8}
    rows = {
        "metrics": row(rouge_l=0.5, query_loss=1.25, qa__rouge_l=0.6, ner__rouge_l=0.4),
        "untrained": row(rouge_l=0.1, query_loss=5.0, qa__rouge_l=0.2, ner__rouge_l=0.0),
        "unadapted": row(rouge_l=0.2, query_loss=3.0, qa__rouge_l=0.3, ner__rouge_l=0.1),
    }
    apart = {"untrained": row(rouge_l=0.4, query_loss=-3.75), "unadapted": row(rouge_l=0.3, query_loss=-1.75)}
    text = table({"settings": [{**shape, **rows, "difference": apart}]})
    assert [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()] == [
        ["test: 40 episodes, 8-shot; mean ± 95 % interval, in %"],
        ["rouge_l", "query_loss"],
        ["meta-trained", "50.0 ± 1.0", "1.250 ± 0.010"],
        ["not meta-trained, adapted alike", "10.0 ± 1.0", "5.000 ± 0.010"],
        ["meta-trained, not adapted", "20.0 ± 1.0", "3.000 ± 0.010"],
        ["difference to not meta-trained, adapted alike", "+40.0 ± 1.0", "-3.750 ± 0.010"],
        ["difference to meta-trained, not adapted", "+30.0 ± 1.0", "-1.750 ± 0.010"],
        [],
        ["rouge_l by group", "meta-trained", "not meta-trained, adapted alike", "meta-trained, not adapted"],
        ["ner", "40.0 ± 1.0", "0.0 ± 1.0", "10.0 ± 1.0"],
        ["qa", "60.0 ± 1.0", "20.0 ± 1.0", "30.0 ± 1.0"],
    ]
