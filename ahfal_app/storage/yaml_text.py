"""YAML as people mean it: the types of YAML 1.2, and no key twice.

PyYAML reads YAML 1.1, where `010` is 8, `1:30` is 90, `no` is false and `1e-3` is text. Here
the core schema of YAML 1.2.2 (section 10.3) decides what a plain word is; the syntax is
PyYAML's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterator, Mapping

import yaml

_NULL = "tag:yaml.org,2002:null"
_BOOL = "tag:yaml.org,2002:bool"
_INT = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"
_MERGE = "tag:yaml.org,2002:merge"

#: Below it every whole number is a float of its own.
_EXACT = 2**53

#: Tag, form and first characters of what is no text; the first that fits is taken.
_CORE = (
    (_NULL, r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    (_BOOL, r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (_INT, r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (_FLOAT, r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    (_FLOAT, r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    # Not in the core schema, but in use: `<<: *name` takes over a mapping.
    (_MERGE, r"<<", ["<"]),
)


class RepeatedKey(yaml.YAMLError):
    """A mapping has the same key twice: which, and the two lines, from 1."""

    def __init__(self, key: str, first: int, line: int) -> None:
        super().__init__(
            f"line {line}: {key!r} is there twice, first in line {first}; allowed is once"
        )


class _Rules(yaml.constructor.SafeConstructor, yaml.resolver.BaseResolver):
    # The words of YAML 1.1 are not taken over; PyYAML copies the mapping before it adds to it.
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def get_single_node(self) -> yaml.Node | None:
        # Before anything is built: a merge would look like a repetition afterwards.
        # Of the class that either loader brings beside this one.
        node: yaml.Node | None = super().get_single_node()  # type: ignore[misc]
        for mapping in _mappings(node):
            self._refuse_repeated_keys(mapping)
        return node

    def _refuse_repeated_keys(self, mapping: yaml.MappingNode) -> None:
        first: dict[Hashable, yaml.Node] = {}
        for key_node, _ in mapping.value:
            if key_node.tag == _MERGE or not isinstance(key_node, yaml.ScalarNode):
                continue
            key = self.construct_object(key_node)
            # `1` and `1.0` are one key to Python, `1` and `"1"` once keys have become text.
            for form in (key, str(key)):
                known = first.setdefault(form, key_node)
                if known is not key_node:
                    lines = known.start_mark.line + 1, key_node.start_mark.line + 1
                    raise RepeatedKey(str(key), *lines)


class _Loader(_Rules, yaml.SafeLoader):
    """PyYAML's own parser, whose errors show the place."""


class _FastLoader(_Rules, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """libyaml's, where PyYAML was built with it: ten times as fast."""


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either version of YAML would not read as the text that it is."""


def load_yaml(text: str) -> object:
    """Return what a YAML text says.

    Parameters
    ----------
    text : str
        One document. Numbers, truth values and null are those of YAML 1.2's core schema: `010`
        is 10, `1e-3` is a number; `1:30`, `1_000`, `yes` and `2026-01-01` are text. Unlike there,
        `1e3` is the integer 1000.

    Raises
    ------
    RepeatedKey
        A mapping has the same key twice.
    yaml.YAMLError
        It is not YAML.
    """
    # Both loaders are safe ones.
    try:
        return yaml.load(text, _FastLoader)  # noqa: S506
    except yaml.YAMLError:
        return yaml.load(text, _Loader)  # noqa: S506


def dump_yaml(values: Mapping[str, object]) -> str:
    """Return a mapping as YAML text, which `load_yaml` and readers of YAML 1.1 read alike."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False)


def _mappings(root: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    """Yield all mappings of a document, each once, however often it is referred to."""
    seen: set[int] = set()
    left = [root]
    while left:
        node = left.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield node
            left += [part for pair in node.value for part in pair]
        else:
            left += node.value


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    try:
        return int(text[2:] if base != 10 else text, base)
    except ValueError as error:
        # Such as one of thousands of digits.
        raise yaml.constructor.ConstructorError(
            None, None, f"no integer: {error}", node.start_mark
        ) from error


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = loader.construct_scalar(node).lower()
    if text.endswith((".inf", ".nan")):
        return -math.inf if text[0] == "-" else float(text.lstrip("+."))
    value = float(text)
    # Who writes `1e3` means a whole number as often as not, and a number takes one, too.
    is_whole = "e" in text and value.is_integer() and abs(value) < _EXACT
    return int(value) if is_whole else value


for _tag, _form, _starts in _CORE:
    _pattern = re.compile(rf"^(?:{_form})$")
    _Rules.add_implicit_resolver(_tag, _pattern, _starts)
    _Dumper.add_implicit_resolver(_tag, _pattern, _starts)
_Rules.add_constructor(_INT, _integer)
_Rules.add_constructor(_FLOAT, _number)
