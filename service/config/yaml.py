"""Presets and files of settings, in YAML."""

from pathlib import Path
from typing import Any

import yaml
from typing_extensions import override

from service.config.schema import Config
from service.errors import UsageError

PRESETS = Path(__file__).parents[1] / "presets"


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
    """The content of the file that a flag names; UsageError if it is not YAML, or gives a key twice."""
    try:
        return yaml.load(file.read_text(), Loader=_Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"{flag} {file}: cannot be read as YAML: {error}; correct the file") from error


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML's own loader would keep the last."""

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


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML, in the order of the sections."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
