"""Words that a file may hold, thrown at every door that shows them: each is shown, and none does anything there."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fvcore import escapes, exits
from fvcore.experiments.pictures import png
from fvcore.formats import FormatError
from fvcore.gates import Status
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.report.annotations import annotations
from pytest_fvparity.report.merge import merge
from pytest_fvparity.report.render import read_report, write_all, write_report
from pytest_fvparity.runners import workflow_commands
from tests.pytest_fvparity.made_reports import CONTEXT, assemble, failed, row_of, rows_of

WORDS = [
    "a\n::error file=x::forged",
    "::add-mask::x",
    "a\r##[error]forged",
    "##vso[task.complete result=Succeeded;]x",
    "\x1b[2J\x1b[31mPASS\x1b[0m",
    "\x9b31m\x07\x08",
    "\u202eSSAP\u2066",
    "line\u2028PASS: all 6 check keys agree\u0085x",
    "\ud800",
    "[bold red]x[/bold red][/]",
    "[x](javascript:alert(1)) ![x](http://127.0.0.1/x) [x][y]",
    "# PASS\n\n**PASS: all 6 check keys agree**\n\n---",
    "x** PASS `code` ``` <b>x</b> | a | b |",
    "```\n# PASS\n```",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" \'',
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "$(touch x) `touch x` ; rm -rf x & ' \" \\",
    "$\\frac{1}{$ ^_",
    "%n %s {0} {x!r}",
]
ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
COMMAND = re.compile(r"^\s*::|##\[|##vso\[", re.MULTILINE)

each_word = pytest.mark.parametrize("word", WORDS)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.acts: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.acts += [pair for pair in attrs if pair[0].startswith("on")]
        self.acts += [
            pair for pair in attrs if pair[0] in {"href", "src"} and not (pair[1] or "").startswith(("./", "data:"))
        ]


@each_word
def test_a_line_is_one_line_and_moves_nothing(word: str) -> None:
    for shown in (escapes.line(word), escapes.cell(word), escapes.code(word), escapes.shell([word])):
        assert len(shown.splitlines()) == 1
        assert not ACTS.search(shown)
        assert not COMMAND.search(shown)
    assert not ACTS.search(escapes.lines(word))
    assert not COMMAND.search(escapes.lines(word))


@each_word
def test_rich_shows_what_is_written(word: str) -> None:
    from rich.text import Text

    assert Text.from_markup(escapes.markup(word)).plain == escapes.line(word)


@pytest.mark.parametrize(
    "word", ["mean_activations[layer 1, head 2]", "a_b c-d", "x = 1.5 (2 of 3), 50 % & more", "\u6c34"]
)
def test_what_is_plain_stays_readable(word: str) -> None:
    assert escapes.line(word) == escapes.code(word) == escapes.lines(word) == word
    assert escapes.cell(word).replace("&amp;", "&") == word


@each_word
def test_an_error_is_one_line(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    exits.say(str(FormatError(f"{word}: not there")))
    exits.tell(word, f"wrote {word}")

    told = capsys.readouterr()
    assert (len(told.err.splitlines()), len(told.out.splitlines())) == (1, 2)
    assert not COMMAND.search(told.out + told.err)
    assert not ACTS.search((told.out + told.err).replace("\x1b[31m", "").replace("\x1b[0m", ""))


def hostile_report(word: str) -> Any:
    """A report whose every free text is the word, at a failing and at a broken key."""
    word = word.encode("utf-8", "backslashreplace").decode()
    verdict = failed(word, expected=word, actual=word, where=f"0:0/clean/{word}")
    first = row_of("prompt_boundary", Status.FAIL, verdict, message=word)
    first["context"] = {**CONTEXT, "model": word, "candidate": word, "conditions": {word: [word, word]}}
    broken = row_of("slot_map", Status.ERROR, message=word)
    return assemble(CHECK_KEYS, rows_of(prompt_boundary=first, slot_map=broken), suffix=word)


@each_word
def test_nothing_in_a_report_acts_in_any_of_its_files(word: str, tmp_path: Path) -> None:
    report = hostile_report(word)
    write_all([report], tmp_path)

    for file in (path for path in tmp_path.rglob("*") if path.suffix in {".html", ".md", ".log"}):
        text = file.read_text()
        assert "49" not in re.sub(r"[0-9T:.+-]{12,}", "", text) or "7 * 7" not in word
        if file.suffix == ".html":
            page = _Page()
            page.feed(text)
            assert not page.acts, file
            assert not page.tags & {"script", "img", "b"}, file
        else:
            assert not ACTS.search(text), file
            assert not COMMAND.search(text), file
        if file.suffix == ".md":
            outside = re.sub(r"(?ms)^(`{3,})\n.*?^\1$|`[^`\n]*`", "", text)
            own = [line for line in outside.splitlines() if line.startswith(("#", "**"))]
            assert not [line for line in own if line.startswith(("# PASS", "**PASS"))], file
            assert not re.search(r"(?<!\\)<[a-z]", outside.replace("<=", "")), file
            assert not re.search(r"(?<!\\)\]\(", outside), file
            assert "![" not in outside or "\\](" in outside, file


@each_word
def test_an_annotation_is_one_command(word: str) -> None:
    (command,) = workflow_commands(annotations([hostile_report(word)], Path.cwd()))

    assert len(command.splitlines()) == 1
    assert command.startswith("::error ")
    assert not ACTS.search(command)


@pytest.mark.parametrize("field", ["dataset", "fixed_trials_id"])
@pytest.mark.parametrize("name", ["../x", "/tmp/x", "..", "a/b", "a\nb", ""])
def test_a_report_that_would_lie_elsewhere_is_not_read(field: str, name: str, tmp_path: Path) -> None:
    (file, *_) = [
        path for path in write_report(hostile_report("x"), tmp_path) if path.name == "src_vs_fv_diff_report.json"
    ]
    value = json.loads(file.read_text())
    file.write_text(json.dumps(value | {field: name}))

    with pytest.raises(FormatError, match=f"key '{field}': expected the name of a file or folder"):
        merge([(str(file), read_report(file))])


@pytest.mark.filterwarnings("ignore:Glyph")
@each_word
def test_a_word_is_drawn_as_it_is_written(word: str) -> None:
    word = word.encode("utf-8", "backslashreplace").decode()

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        axes.set(title=word, xlabel=word)
        axes.set_xticks([0], [word])

    assert png(paint, (2, 2), 40).startswith(b"\x89PNG")
