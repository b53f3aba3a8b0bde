"""The model card of an exported folder: what the model is, what was measured, how to load it, how it was made."""

from collections.abc import Mapping, Sequence
from typing import Any

from raymeta import yaml12
from raymeta.export import WRITERS
from raymeta.stages.evaluate import ROWS, shown_estimate

_PIPELINES = {
    "SequenceClassification": "text-classification", "TokenClassification": "token-classification",
    "Seq2SeqLM": "text-generation", "CausalLM": "text-generation",
}  # fmt: skip


def card(
    title: str,
    kind: str,
    loads: str,
    about: Mapping[str, Any],
    classes: Sequence[str] | None,
    shown: int,
    prompt: str = "",
) -> str:
    """README.md. kind: what follows `AutoModelFor`, empty for an encoder; loads: the class that holds the weights; about: see
    `Learner`; classes: of an adapted model; shown: how many examples it was adapted to (0: it was fine-tuned); prompt: of a
    model that writes answers, the template of what it is given."""
    own = loads.startswith("Raymeta")
    pipeline = _PIPELINES.get(kind, "feature-extraction")
    base = about.get("base_model", "")
    front: dict[str, Any] = {
        "library_name": "transformers", "pipeline_tag": pipeline, "tags": ["raymeta", "few-shot", "meta-learning"],
    }  # fmt: skip
    if base and base.count("/") == 1 and not base.startswith((".", "/", "package:", "~", "$")):
        front["base_model"] = base
    parts = [f"---\n{yaml12.dump(front)}---", f"# {title}", _what(base, kind, classes, shown, about)]
    loading = (
        _writing(kind, prompt, classes is not None)
        if kind in WRITERS
        else _loading(kind, loads, own, pipeline, classes is not None)
    )
    parts += ["## How to load it", loading]
    if about.get("evaluation"):
        parts += ["## What was measured", *evaluation_tables(about["evaluation"])]
    if about.get("report"):
        parts += ["## What was measured" if not about.get("evaluation") else "", *report_tables(about["report"])]
    if about.get("settings"):
        parts += ["## How it was made", f"```yaml\n{yaml12.dump(about['settings']).strip()}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what(base: str, kind: str, classes: Sequence[str] | None, shown: int, about: Mapping[str, Any]) -> str:
    steps = f" for {about['steps']} steps" if about.get("steps") else ""
    made = "Meta-trained" if about.get("steps") else "Made"
    origin = f"{made} with raymeta{steps}" + (f" from `{base}`" if base else "")
    if classes is None:
        return (
            f"{origin}: {'a language model' if kind in WRITERS else 'an encoder'} that is a good start for learning a new task from a few "
            f"examples. It answers nothing by itself; adapt it as below, or use it as any {'other' if kind in WRITERS else 'encoder'}."
        )
    source = f"adapted to {shown} examples" if shown else "fine-tuned on a task"
    if kind in WRITERS:
        return f"{origin}, and {source}{f' of {classes[0]}' if classes[0] else ''}."
    return f"{origin}, and {source}. It tells apart: {', '.join(f'`{c}`' for c in classes)}."


def _loading(kind: str, loads: str, own: bool, pipeline: str, adapted: bool) -> str:
    trust = ", trust_remote_code=True" if own else ""
    if kind:
        aggregation = ', aggregation_strategy="first"' if kind == "TokenClassification" else ""
        text = (
            f'```python\nfrom transformers import pipeline\n\nanswer = pipeline("{pipeline}", model=FOLDER{aggregation}{trust})\n'
            f'answer("some text")\n```'
        )
        if own:
            text += (
                "\n\n`trust_remote_code=True` lets transformers run `modeling_raymeta.py` from this folder, a page of code: transformers' own "
                f"AutoModelFor{kind} puts layers between encoder and output that this model does not have. Give it to "
                f"`AutoModelFor{kind}.from_pretrained` and `AutoTokenizer.from_pretrained` too."
            )
        if kind == "TokenClassification":
            text += "\n\nA word's tag is that of its first token."
    else:
        text = f"```python\nfrom transformers import {loads}\n\nencoder = {loads}.from_pretrained(FOLDER)\n```"
    more = "classifier = Adapted.from_pretrained(FOLDER)" if adapted else "learner = Learner.from_pretrained(FOLDER)"
    use = "classifier.predict(TEXTS)" if adapted else "learner.adapt(TEXTS, LABELS).predict(OTHER_TEXTS)"
    name = "Adapted" if adapted else "Learner"
    return f"{text}\n\nWith raymeta:\n\n```python\nfrom raymeta import {name}\n\n{more}\n{use}\n```"


def _writing(kind: str, prompt: str, adapted: bool) -> str:
    asked = f"prompt = {prompt!r}\n\n" if prompt else ""
    text = (
        f"```python\nfrom transformers import AutoModelFor{kind}, AutoTokenizer\n\n{asked}"
        f"tokenizer = AutoTokenizer.from_pretrained(FOLDER)\nmodel = AutoModelFor{kind}.from_pretrained(FOLDER)\n```"
    )
    if not prompt:
        return text
    inputs = 'inputs = tokenizer(prompt.format(source="some text", task="its task"), return_tensors="pt")'
    start = "" if kind == "Seq2SeqLM" else "[inputs.input_ids.shape[1] :]"
    text = text.removesuffix("\n```") + (
        f"\n{inputs}\nwritten = model.generate(**inputs)[0]{start}\ntokenizer.decode(written, skip_special_tokens=True)\n```"
    )
    more = "writer = Adapted.from_pretrained(FOLDER)" if adapted else "learner = Learner.from_pretrained(FOLDER)"
    use = "writer.write(SOURCES)" if adapted else "learner.adapt(SOURCES, TARGETS).write(OTHER_SOURCES)"
    name = "Adapted" if adapted else "Learner"
    return f"{text}\n\nWith raymeta:\n\n```python\nfrom raymeta import {name}\n\n{more}\n{use}\n```"


def evaluation_tables(evaluation: Mapping[str, Any]) -> list[str]:
    parts = []
    for found in evaluation["settings"]:
        names = [n for n in found["metrics"] if "/" not in n]
        what = (
            f"{found['ways']}-way {found['shots']}-shot"
            if "ways" in found
            else f"mean over {', '.join(found['parts'])}"
        )
        of = f" of {found['part']}" if "part" in found else ""
        parts.append(
            f"Adapted to episodes of classes that training did not see ({found['split']} split{of}, {found['episodes']} episodes, {what}); "
            "mean ± 95 % interval, in %:"
        )
        rows = [[label, *(shown_estimate(found[row], n) for n in names)] for row, label in ROWS.items() if row in found]
        parts.append(markdown(["", *names], rows))
    return parts


def report_tables(report: Mapping[str, Any]) -> list[str]:
    parts = [
        f"On {report['rows']} texts of its own task that it was not trained on, in % with 95 % intervals: "
        + ", ".join(f"{name} {_interval(found)}" for name, found in report["headline"].items())
        + "."
    ]
    for name, found in report["tables"].items():
        rows = [
            [line["name"], *(_percent(line[n]) for n in ("precision", "recall", "f1")), str(line["support"])]
            for line in (*found["classes"], *found["averages"])
        ]
        parts += [name if name != "report" else "", markdown(["", "precision", "recall", "F1", "support"], rows)]
    return parts


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column to the left, numbers to the right."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "| --- |" + " ---: |" * (len(head) - 1), *lines[1:]])


def _interval(found: Mapping[str, float | None]) -> str:
    value, low, high = found["value"], found["low"], found["high"]
    assert value is not None
    return (
        f"{100 * value:.1f}"
        if low is None or high is None
        else f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
