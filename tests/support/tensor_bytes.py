"""Where a tensor's bytes lie in a safetensors file, to damage them."""

import json


def first_byte(path, name):
    """The offset of a tensor's first byte."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return 8 + size + json.loads(content[8 : 8 + size])[name]["data_offsets"][0]
