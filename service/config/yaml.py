"""Presets and files of settings, in YAML."""

import re
from pathlib import Path
from typing import Any

import yaml
from typing_extensions import override

from service.config.schema import Config
from service.errors import UsageError

PRESETS = Path(__file__).parents[1] / "presets"
LARGEST_BYTES, LARGEST_VALUES = 1 << 20, 100_000


def preset_names() -> list[str]:
    """All presets, by family."""
    return [name for file in sorted(PRESETS.glob("*.yaml")) for name in read_yaml(file)]


def load_preset(name: str) -> dict[str, Any]:
    """The values of a preset; UsageError lists the presets."""
    for file in sorted(PRESETS.glob("*.yaml")):
        presets = read_yaml(file)
        if name in presets:
            return presets[name]
    raise UsageError(f"--preset {name}: no such preset; choose one of {', '.join(preset_names())}")


def read_yaml(file: Path) -> dict[str, Any]:
    """The sections in a file; UsageError if it holds none."""
    content = load_yaml(file, "--config")
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{file}: not a mapping of sections; see docs/configuration.md")
    return content


def load_yaml(file: Path, flag: str) -> Any:
    """The content of the file that a flag names, by YAML 1.2's core schema and with merge keys (<<).

    So `1:4` and `no` are text, and `1e-4` is a number. UsageError if it is not YAML, gives a key twice,
    or is larger than any configuration, before or after its aliases are put in.
    """
    try:
        with file.open("rb") as stream:
            text = stream.read(LARGEST_BYTES + 1)
        if len(text) > LARGEST_BYTES:
            raise ValueError(f"more than {LARGEST_BYTES} bytes")
        return yaml.load(text.decode(), Loader=_Loader)
    except FileNotFoundError as error:
        raise UsageError(f"{flag} {file}: no such file; correct the path") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"{flag} {file}: cannot be read as YAML: {error}; correct the file") from error


def dump_yaml(content: Any) -> str:
    """Plain values as YAML that `load_yaml` reads back, and readers of YAML 1.1 as well."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML, in the order of the sections."""
    return dump_yaml(config.model_dump())


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema; refuses keys that are given twice, of which YAML would keep the last."""

    @override
    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node

    @override
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                reason = f"{key.value} is given twice"
                raise yaml.composer.ComposerError(None, None, reason, key.start_mark)
            seen.add((key.tag, str(key.value)))
        return node

    def text(self, node: yaml.ScalarNode) -> str:
        """The text as it stands there."""
        return str(self.construct_scalar(node))

    def whole(self, node: yaml.ScalarNode) -> int:
        """A whole number: decimal, 0o17 or 0xf."""
        text = self.construct_scalar(node)
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version of YAML would take for something else."""


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """How many values a node stands for once aliases are put in; ValueError if too many or endless."""
    if id(node) in counts:
        if not counts[id(node)]:
            raise ValueError("an alias leads to the value that it is in")
        return counts[id(node)]
    counts[id(node)] = 0  # at work
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    counts[id(node)] = count = 1 + sum(_count(child, counts) for child in children)
    if count > LARGEST_VALUES:
        raise ValueError(f"more than {LARGEST_VALUES} values, aliases included")
    return count


# https://yaml.org/spec/1.2.2/#103-core-schema, and merge keys, which presets use
_CORE = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
_Loader.yaml_implicit_resolvers = {}  # those of YAML 1.1
for _kind, (_pattern, _first) in _CORE.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_kind}", re.compile(rf"({_pattern})\Z"), _first
        )
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole)
_Loader.add_constructor("tag:yaml.org,2002:merge", _Loader.text)  # << as a value
