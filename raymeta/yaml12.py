"""Settings as YAML 1.2 reads them: `3e-4` is a number, `no` and `12:30` are text, and no key is given twice."""

import re
from pathlib import Path
from typing import Any

import yaml

from raymeta.errors import UserError


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2's plain values."""


class _Dumper(yaml.SafeDumper):
    """The safe dumper that quotes what `_Loader` would not read as text."""


_TAGS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    "merge": (r"<<", ["<"]),
}
for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _tag, (_pattern, _first) in _TAGS.items():
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def _once(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key, _ in node.value:
        if key.value in seen and isinstance(key, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
        seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _once)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))


def parse(text: str) -> Any:
    """The value that `text` stands for; raises ValueError with one line that says what is wrong, and where."""
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(f"{error.problem or error.context}{where}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError((str(error) or type(error).__name__).splitlines()[0]) from error


def read(path: Path, setting: str = "") -> dict[str, Any]:
    """The mapping in a YAML file; raises UserError, beginning with `setting`, where it is none."""
    start = f"{setting}: " if setting else ""
    try:
        values = parse(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{start}{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it"
        ) from error
    except ValueError as error:
        raise UserError(f"{start}{path} is not YAML: {error}") from error
    except OSError as error:
        raise UserError(f"{start}{path} could not be read: {error.strerror}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        shown = "is empty" if values is None else "is not a mapping of settings"
        raise UserError(f"{start}{path} {shown}; write lines like `seed: 0`")
    return values


def dump(values: Any) -> str:
    """YAML text that `parse` reads back as `values`."""
    text: str = yaml.dump(
        values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120
    )
    return text
