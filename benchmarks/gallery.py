"""The pages of the shipped models as pictures, `docs/gallery/`: every page is made anew, and a browser looks at it.

    python benchmarks/gallery.py [--only NAME] [--keep FOLDER]

With a headless chromium, `chromium`, `google-chrome` or `chrome`; without one the pages are made and left to be looked at.
`docs/gallery.md` shows the pictures.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from fvcore.formats import write_bytes, write_text

ROOT = Path(__file__).resolve().parents[1]
GALLERY = ROOT / "docs" / "gallery"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
DESK, PHONE = (1120, 1100), (390, 900)
WIDTH, QUALITY = 900, 82  # of a picture: pixels; of 100
SCHEMES = {"dark": 0, "light": 1}
BUG = re.compile(r"^( *)# (.*)  # a bug to try: .*$", re.MULTILINE)
TRIALS = Path("datasets", "fixed_trials", "fixed_trials_tiny_antonym_t10_s10_seed0_tiny_llama.json")
TASK = Path("datasets", "tiny_antonym", "raw", "tiny_antonym.json")
RELATION = Path("datasets", "relation", "relationA_ex.csv")

LOOKS = {
    "parity-pass": ("light",),
    "parity-fail": ("light", "dark", "phone"),
    "relation": ("light", "dark"),
    "antonym": ("light",),
    "evaluation": ("dark",),
    "select-kv": ("light",),
    "pathways": ("dark",),
}
"""Page -> how it is looked at."""


def command(where: Path, *words: object, fails: bool = False) -> None:
    """Run one in a folder; raises CalledProcessError with what it said where it does not end as it should."""
    ended = subprocess.run([sys.executable, "-m", *map(str, words)], cwd=where, capture_output=True, text=True)
    if (ended.returncode != 0) != fails:
        raise SystemExit(f"{' '.join(map(str, words))} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")


def shipped(where: Path, *files: Path) -> None:
    """The files at the same place in a folder: what a page says of them is no path of a machine."""
    for file in files:
        (where / file.parent).mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, where / file)


def parity(where: Path, *more: str, fails: bool = False) -> Path:
    """The shipped trials with their golden, in a folder that holds nothing else."""
    shipped(where, TRIALS)
    golden = Path("golden", "tiny_antonym", TRIALS.stem)
    shutil.copytree(ROOT / golden, where / golden, dirs_exist_ok=True)
    command(
        where, "pytest", TRIALS, "-m", "parity", "-q", "-p", "no:cacheprovider", "--rootdir", ".", *more, fails=fails
    )
    return where / "reports" / "tiny_antonym" / TRIALS.stem / "src_vs_fv_diff_report.html"


def with_a_bug(where: Path) -> Path:
    """The example whose bug takes the means over prompts with shuffled labels."""
    text = (ROOT / "docs" / "examples" / "every_layer.py").read_text()
    write_text(where / "rewrite.py", BUG.sub(r"\1\2", text))
    return parity(where, "--fv-candidate", "rewrite:Mine", fails=True)


def antonym(where: Path) -> Path:
    shipped(where, TRIALS)
    command(where, "fvcore", "antonym", "run", "--model", "tiny-llama", "--trials", TRIALS, "--out", "run")
    return where / "run" / "report.html"


def relation(where: Path) -> Path:
    shipped(where, RELATION)
    command(
        where,
        "fvcore",
        "relation",
        "run",
        "--model",
        "tiny-llama",
        "--dataset",
        RELATION,
        "--top-heads",
        "4",
        "--out",
        "run",
    )
    (page,) = (where / "run").rglob("report.html")
    return page


def evaluation(where: Path) -> Path:
    shipped(where, TRIALS, TASK)
    how = "--model", "tiny-llama", "--dataset", TASK, "--trials", TRIALS, "--out", "run"
    command(where, "fvcore", "eval", "all", *how, "--control", "random_heads")
    return where / "run" / "report.html"


def select_kv(where: Path) -> Path:
    config = Path("fvcore", "experiments", "select_kv", "configs", "wired.yaml")
    shipped(where, config)
    command(where, "fvcore", "select-kv", "--config", config, "--run-id", "wired")
    (page,) = where.rglob("report.html")
    return page


def pathways(where: Path) -> Path:
    command(where, "fvcore", "pathways", "run", "--example")
    (page,) = where.rglob("report.html")
    return page


PAGES: dict[str, Callable[[Path], Path]] = {
    "parity-pass": parity,
    "parity-fail": with_a_bug,
    "relation": relation,
    "antonym": antonym,
    "evaluation": evaluation,
    "select-kv": select_kv,
    "pathways": pathways,
}


def look(browser: str, page: Path, how: str, scratch: Path) -> bytes:
    """The first screen of a page as a WebP. A window is never as narrow as a phone, so there the page stands in a frame."""
    from PIL import Image

    size, shot = (PHONE if how == "phone" else DESK), scratch / "shot.png"
    if how == "phone":
        style = f"border: 0; width: {size[0]}px; height: {size[1]}px"
        write_text(
            scratch / "frame.html", f'<body style="margin: 0"><iframe src="{page.as_uri()}" style="{style}"></iframe>'
        )
        page = scratch / "frame.html"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1.5"]
    options += [f"--blink-settings=preferredColorScheme={SCHEMES.get(how, 1)}", f"--screenshot={shot}"]
    window = f"--window-size={max(size[0], 500)},{size[1]}"
    subprocess.run([browser, *options, window, page.as_uri()], check=True, capture_output=True)
    image = Image.open(shot).convert("RGB")
    image = image.crop((0, 0, round(1.5 * size[0]), image.height))
    width = min(WIDTH, image.width)
    buffer = io.BytesIO()
    image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS).save(
        buffer, "webp", quality=QUALITY, method=6
    )
    return buffer.getvalue()


def main(
    only: Annotated[list[str] | None, typer.Option(help="Pages, by name.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Where the pages are made and stay.")] = None,
) -> None:
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    with tempfile.TemporaryDirectory() as scratch:
        for name in only or PAGES:
            where = (keep or Path(scratch)).resolve() / name
            where.mkdir(parents=True, exist_ok=True)
            page = PAGES[name](where)
            for how in LOOKS[name] if browser else ():
                picture = look(browser, page, how, Path(scratch))
                write_bytes(GALLERY / f"{name}-{how}.webp", picture)
                print(f"{name}-{how}.webp: {len(picture) / 1024:.0f} KiB")
    if not browser:
        print(f"no browser ({', '.join(BROWSERS)}): pages are made, pictures are not{f', in {keep}' if keep else ''}")


if __name__ == "__main__":
    typer.run(main)
