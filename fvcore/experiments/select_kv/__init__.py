"""Select-KV: the state that a demonstration leaves in the cache, carried to other prompts by a few of its tokens.

Spans of a demonstration are chosen, their keys and values become a short prefix, and two sides are measured behind it:
queries that need the demonstration must gain (ON), and prompts that have nothing to do with it must hardly move (OFF).
"""
