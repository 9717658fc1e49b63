"""What the package's page on an index says beside `pyproject.toml`: where the project lives, as the place that builds it knows.

An index shows the first page away from the repository, where a relative link leads nowhere. A release is built in the
repository's own CI, so its address is asked for there and written down nowhere; without one the links stay as they are.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PAGES = {
    "Documentation": "blob/{tag}/docs/library.md",
    "Changelog": "blob/{tag}/CHANGELOG.md",
    "Source": "tree/{tag}",
    "Issues": "issues",
}
RELATIVE = re.compile(r"\]\((?!https?:|#|mailto:)([^)]+)\)")


class Addresses(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        home, tag = address(), f"v{metadata['version']}"
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        if home:
            text = RELATIVE.sub(lambda found: f"]({home}/blob/{tag}/{found[1]})", text)
            pages = {name: f"{home}/{page.format(tag=tag)}" for name, page in PAGES.items()}
            metadata["urls"] = {"Homepage": home, **pages}
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def address() -> str | None:
    """Of the repository on the server whose CI this is, if it is one."""
    server, name = (os.environ.get(f"GITHUB_{part}") for part in ("SERVER_URL", "REPOSITORY"))
    return f"{server}/{name}" if server and name else None
