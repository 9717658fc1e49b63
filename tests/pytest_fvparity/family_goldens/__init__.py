"""What the public reference said of tiny random models of these families, a folder each."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
FAMILIES = ("gpt2", "gptj", "gpt_neox", "llama", "mistral")
