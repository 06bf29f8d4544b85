"""The pages that show how to add something: applied to a copy, their tests pass."""

import pytest

from tests.docs.worked_examples import WorkedExample

# Page: its test files, and the files of the package that it touches.
PAGES = {"adding_a_loss.md": (3, 3), "how_a_batch_flows.md": (1, 3)}


@pytest.fixture(scope="module", params=list(PAGES))
def example(request, tmp_path_factory) -> WorkedExample:
    return WorkedExample(request.param, tmp_path_factory.mktemp("changed"))


def test_the_tests_of_the_page_pass(example, request):
    page = request.node.callspec.params["example"]
    assert (len(example.tests), len(example.package_files)) == PAGES[page]
    done = example.run("pytest", "-q", "-p", "no:cacheprovider", *example.tests)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


def test_what_is_shown_is_formatted(example):
    """As the rest of the repository; the copy has its pyproject.toml."""
    pytest.importorskip("black", reason="black is not installed")
    done = example.run("black", "--check", "-q", "--diff", *example.files)
    assert done.returncode == 0, done.stdout
