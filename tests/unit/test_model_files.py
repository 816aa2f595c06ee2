"""The papers of a model folder."""

import pytest

from convert.model_files import with_note


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("", "> note\n"),
        ("# Title\n", "> note\n\n# Title\n"),
        ("---\nlicense: mit\n---\n# Title\n", "---\nlicense: mit\n---\n> note\n\n# Title\n"),
        ("---\nnever closed\n", "> note\n\n---\nnever closed\n"),
    ],
)
def test_the_note_goes_on_top_but_under_the_front_matter(readme: str, expected: str) -> None:
    assert with_note(readme, "note") == expected
