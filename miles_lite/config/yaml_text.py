"""YAML as people write it: what is said twice is an error, not the last of the two."""

from __future__ import annotations

from collections.abc import Hashable

import yaml

from miles_lite.process.json_types import Json


class _Loader(yaml.SafeLoader):
    """Safe, and of each key one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Json]:
        seen: set[Hashable] = set()
        for name, _ in node.value:
            key = self.construct_object(name, deep=True)
            if isinstance(key, Hashable) and key in seen and name.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"{key} is there twice", name.start_mark)
            seen.add(key)
        made: dict[Hashable, Json] = super().construct_mapping(node, deep=deep)
        return made


def read_yaml(text: str) -> Json:
    """What a text holds. Raises yaml.YAMLError, also for a key that is there twice."""
    return yaml.load(text, Loader=_Loader)
