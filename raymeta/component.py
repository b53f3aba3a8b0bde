"""Settings that know what to do: `kind: maml` in YAML becomes the class in `raymeta/algorithms/maml.py`.

A `Section` is a frozen, checked group of settings. A `Component` is a Section that YAML chooses by `kind`: its
settings and the methods that use them live in one class, in the module named for the kind. There is no registry:
a new kind is a new file, and `kind: my_package.my_module:MyClass` names a class of a user's own.
"""

import importlib
import pkgutil
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from raymeta.errors import did_you_mean, first_line


def _mistake(message: str) -> PydanticCustomError:
    return PydanticCustomError("setting", "{message}", {"message": message})


class Section(BaseModel):
    """A frozen group of settings in which an unknown name is an error that names its nearest neighbour."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _only_known_settings(cls, value: Any) -> Any:
        known = ", ".join(cls.model_fields)
        if isinstance(value, dict):
            for key in value:
                if key not in cls.model_fields:
                    raise _mistake(f"unknown setting {key!r}{did_you_mean(key, cls.model_fields)} (settings: {known})")
        elif not isinstance(value, cls):
            raise PydanticCustomError("wanted", "{wanted}", {"wanted": f"a mapping of settings ({known})"})
        return value


class Component(Section):
    """A Section chosen by `kind`. A family is declared with `class Algorithm(Component, family="raymeta.algorithms")`."""

    family: ClassVar[str] = ""
    noun: ClassVar[str] = "component"
    usual: ClassVar[str] = ""

    def __init_subclass__(cls, family: str = "", noun: str = "", usual: str = "", **kwargs: Any) -> None:
        """family: the package of its kinds; noun: what a message calls it; usual: the kind of a mapping that has none."""
        super().__init_subclass__(**kwargs)
        if family:
            cls.family, cls.noun, cls.usual = family, noun or cls.__name__.lower(), usual

    @property
    def kind(self) -> str:
        """The word that chooses this class in YAML."""
        module = type(self).__module__
        own = module.startswith(self.family + ".")
        return module.rsplit(".", 1)[-1] if own else f"{module}:{type(self).__qualname__}"

    @classmethod
    def kinds(cls) -> list[str]:
        """The kinds that ship with raymeta, by name."""
        package = importlib.import_module(cls.family)
        return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))

    @classmethod
    def member(cls, kind: str) -> "type[Self]":
        """The class for `kind`; a wrong one raises an error that lists those there are."""
        if ":" in kind:
            module_name, _, class_name = kind.partition(":")
            try:
                found = getattr(importlib.import_module(module_name), class_name)
            except (ImportError, AttributeError, ValueError) as error:
                raise _mistake(
                    f"no {cls.noun} of kind {kind!r}: {first_line(error)}; write module:Class of an installed module, "
                    "or of one in the folder where raymeta is started"
                ) from error
            if not (isinstance(found, type) and issubclass(found, cls)):
                raise _mistake(
                    f"{kind!r} is no kind of {cls.noun}; derive its class from {cls.__module__}.{cls.__name__}"
                )
            return found
        kinds = cls.kinds()
        if kind not in kinds:
            hint = did_you_mean(kind, kinds)
            raise _mistake(f"no {cls.noun} of kind {kind!r}{hint} (kinds: {', '.join(kinds)})")
        module = importlib.import_module(f"{cls.family}.{kind}")
        return next(
            c
            for c in vars(module).values()
            if isinstance(c, type) and issubclass(c, cls) and c is not cls and c.__module__ == module.__name__
        )

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_kind(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(value, cls):
            return value
        if "family" not in vars(cls):  # a concrete member, not the family itself
            if isinstance(value, dict):
                value = {k: v for k, v in value.items() if k != "kind"}
            return handler(value)
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, dict) or not (value.get("kind") or cls.usual):
            raise _mistake(
                f"give a kind of {cls.noun}, or a mapping with a kind (kinds: {', '.join(cls.kinds())}), not {value!r}"
            )
        member = cls.member(str(value.get("kind") or cls.usual))
        return member.model_validate({k: v for k, v in value.items() if k != "kind"})

    @model_serializer(mode="wrap")
    def _with_its_kind(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"kind": self.kind, **handler(self)}
