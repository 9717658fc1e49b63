"""A vector made under one template and used under others."""

from __future__ import annotations

from pathlib import Path

import pytest

from fvcore.experiments.evaluation.data import USUAL, read_templates
from fvcore.formats import FormatError
from fvcore.trials.fixed import TemplatePart
from tests.late import RUNNING

if RUNNING:
    from fvcore.experiments.evaluation.run import portability
    from tests.fvcore.evaluation import worlds


ENTRY = '- {name: A, prefixes: {input: "I:", output: "O:"}, separators: {input: "\\n", output: "\\n\\n"}}\n'


def test_shipped_templates_are_many_and_none_is_the_usual_one() -> None:
    templates = read_templates()
    assert len(templates) >= 8
    usual = USUAL
    assert (usual.prefixes, usual.separators) not in [(t.prefixes, t.separators) for t in templates]
    # What stands before an answer ends in a mark, so that no tokenizer joins it with the answer's leading space.
    assert all(template.prefixes.output[-1] in ":>" for template in templates)


def test_a_file_of_templates_reads_newlines_as_newlines(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(ENTRY)
    (template,) = read_templates(tmp_path / "t.yaml")
    assert template.name == "A"
    assert template.prefixes == TemplatePart(input="I:", output="O:", instructions="")
    assert template.separators == TemplatePart(input="\n", output="\n\n", instructions="")


@pytest.mark.parametrize(
    "text, said",
    [
        (ENTRY + ENTRY, "a name of its own"),
        ("[]", "at least one template"),
        (
            "- {name: A, prefixes: {input: a}, separators: {input: a, output: b}}",
            r"entry 0: missing key 'prefixes\.output'",
        ),
        (ENTRY.replace("name: A", "name: A, prefix: x"), r"entry 0: unknown key 'prefix'"),
        (ENTRY.replace('"I:"', "7"), r"entry 0: key 'prefixes\.input': .*string.*found 7"),
        ("a: 1", "the top level: .*list"),
    ],
)
def test_a_wrong_file_of_templates_is_located(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(FormatError, match=rf"t\.yaml: .*{said}"):
        read_templates(tmp_path / "t.yaml")


class TestTinyModels:
    def test_gpt2_takes_its_vector_along_to_another_template(self) -> None:
        """Trained to follow injected vectors: zero-shot it answers under a template it has never seen."""
        bench, vector = worlds.bench("tiny-gpt2"), worlds.vector_of_best_heads("tiny-gpt2").vector
        (port,) = portability(worlds.asking(bench, filter=False), [X_Y], {"fv": vector}, 1, 10)
        accuracy = {(r.labels, r.vector): r.accuracy for r in port.with_vectors}

        assert accuracy["clean", None] <= 0.2
        assert accuracy["clean", "fv"] >= 0.8
        assert accuracy["shuffled", "fv"] >= 0.8 > 0.2 >= accuracy["shuffled", None]

    def test_every_template_has_a_filter_of_its_own(self) -> None:
        bench, vector = worlds.bench(), worlds.vector_of_best_heads("tiny-llama").vector
        usual, other = portability(bench, [USUAL, X_Y], {"fv": vector}, 1, 10)

        assert usual.kept == bench.positions  # all is right under the template it was trained with
        assert 0 < len(other.kept) < len(usual.kept)
        for port in (usual, other):
            assert port.kept == port.baseline.right
            assert {r.template for r in (port.baseline, *port.with_vectors)} == {port.template}
            assert all(r.positions == port.kept for r in port.with_vectors)

    def test_a_template_under_which_nothing_is_right_stays_in_the_report(self) -> None:
        bench, vector = worlds.bench(), worlds.vector_of_best_heads("tiny-llama").vector
        arrow = next(template for template in read_templates() if template.name == "word ->")
        (port,) = portability(bench, [arrow], {"fv": vector}, 1, 10)
        assert (port.kept, port.with_vectors) == ([], [])
        assert port.baseline.accuracy == 0


X_Y = next(template for template in read_templates() if template.name == "X:/Y:")
