"""Select-KV: a relation shown in a demo is carried by a few of the demo's keys and values, and both sides are gated."""
