"""Each habit of hack/habits finds what it is there for."""

from pathlib import Path

import pytest

from habits import __main__ as habits
from habits import figures, walk, words
from habits import map as code_map
from habits.code import Source


def source(folder: Path, text: str, name: str = "module.py") -> Source:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return Source(file)


@pytest.mark.parametrize("line", ["a, b = 1, 2", "self.a, b = x, []", "a, b = f(), g()"])
def test_two_thoughts_in_a_line_are_found(tmp_path: Path, line: str) -> None:
    assert list(source(tmp_path, f"x = 1\n{line}\n").doubled_assignments()) == [2]


@pytest.mark.parametrize(
    "line", ["a, b = b, a", "a, b = f()", "a, b = pair", "a = 1, 2", "self.a, b = b, self.a"]
)
def test_swaps_and_unpackings_are_one_thought(tmp_path: Path, line: str) -> None:
    assert not list(source(tmp_path, line).doubled_assignments())


def test_a_full_folder_and_an_allowance_too_large_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(habits, "ROOT", tmp_path)
    monkeypatch.setattr(habits, "FULL_FOLDERS", {"bench/small": 5})
    files = [source(tmp_path, "", f"bench/large/{number}.py") for number in range(19)]
    monkeypatch.setattr(habits, "sources", lambda part: files if part == "bench" else [])
    large, small = habits.full_folders()
    assert large.startswith("bench/large: 19 modules")
    assert small.startswith("bench/small: 0 modules: lower or remove it")


def test_a_docstring_cut_by_an_empty_line_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = source(tmp_path, '"""A sentence that goes on,\n\nbehind an empty line.\n"""\n')
    monkeypatch.setattr(habits, "sources", lambda part: [file] if part == "bench" else [])
    monkeypatch.setattr(Source, "name", "module.py")
    assert list(habits.cut_docstrings()) == [
        "module.py:1: the docstring's first paragraph ends in mid-sentence"
    ]


def test_a_docstring_that_needs_its_neighbours_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'LIMIT = 1\n"""Of one\nentry."""\ndef f():\n    """Offers it. Its text."""\n'
    file = source(tmp_path, text + 'class A:\n    """They."""\n')
    monkeypatch.setattr(habits, "sources", lambda part: [file] if part == "runtime" else [])
    monkeypatch.setattr(Source, "name", "module.py")
    assert list(habits.dependent_docstrings()) == [
        "module.py:2: the docstring begins with 'Of': name what it is about",
        "module.py:7: the docstring begins with 'They.': name what it is about",
    ]


def test_modules_that_import_each_other_are_one_circle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    files = [
        source(tmp_path, "from bench.b import x", "bench/a.py"),
        source(tmp_path, "def late():\n    import bench.c", "bench/b.py"),
        source(tmp_path, "from bench import a", "bench/c.py"),
        source(tmp_path, "from bench import a", "bench/outside.py"),
    ]
    assert figures.circles(files) == [{"bench.a", "bench.b", "bench.c"}]


def test_the_figures_of_a_part_are_those_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "# why\ndef f():\n    if (a := 1):\n        return a\n" + "x = " + "1" * 100 + "\n"
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    figure = figures.row(
        "bench", [source(tmp_path / "bench", text, name) for name in ("a.py", "b.py")]
    )
    assert figure == (
        "bench",
        "10 / 2",
        "5, 5, 5",
        "3, 3, 3",
        "0 of 2",
        "20.0",
        "20.0 %",
        "0",
        "2",
        "0",
    )


def test_the_map_names_each_module_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "architecture.md"
    page.write_text(
        f"Before\n{code_map.BEGIN}| `gone` | A module that was deleted. |\n{code_map.END}Between\n"
        f"{code_map.LAYERS_BEGIN}{code_map.LAYERS_END}After\n"
    )
    contract = '{type = "layers", containers = ["made"], layers = ["a | b", "c"]}'
    (tmp_path / "pyproject.toml").write_text(f"[tool.importlinter]\ncontracts = [{contract}]\n")
    module = source(tmp_path, '"""Does this | that.\n\nMore."""\n', "bench/made.py")
    for name, value in (
        ("ROOT", tmp_path),
        ("PAGE", page),
        ("sources", lambda part: [module] if part == "bench" else []),
    ):
        monkeypatch.setattr(code_map, name, value)
    assert list(code_map.stale_map())
    code_map.main()
    assert not list(code_map.stale_map())
    text = page.read_text()
    assert "| `made` | Does this \\| that. |" in text
    assert "gone" not in text
    assert "| made | `a`, `b` → `c` |" in text
    assert text.startswith("Before\n")
    assert text.endswith("After\n")


GLOSSARY = """\
| word | meaning | not |
| --- | --- | --- |
| hold | how long a step lasts | `held`, `operator/rollout/share` |
| alias | MLflow's movable name | |
"""


def test_words_that_the_glossary_has_others_for_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("habits.code.ROOT", tmp_path)
    monkeypatch.setattr(words, "PAGE", tmp_path / "glossary.md")
    words.PAGE.write_text(GLOSSARY)
    files = [
        source(tmp_path, "def f(share):\n    self._held = 1\n", "operator/rollout/a.py"),
        source(tmp_path, "share = upheld = alias = 'held'\n", "operator/b.py"),
        source(tmp_path, "", "operator/held.py"),
    ]
    monkeypatch.setattr(words, "sources", lambda part: files if part == "operator" else [])
    assert sorted(words.foreign_words()) == [
        "operator/held.py:1: held: docs/glossary.md has 'hold' for it",
        "operator/rollout/a.py:1: share: docs/glossary.md has 'hold' for it",
        "operator/rollout/a.py:2: held: docs/glossary.md has 'hold' for it",
    ]


def test_places_of_the_table_of_changes_that_are_gone_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("habits.code.ROOT", tmp_path)
    monkeypatch.setattr(code_map, "PAGE", tmp_path / "page.md")
    table = "`plans/a.py`, `a.judge`, `plans/`, `a.Old`, `plans/b.py`, rt `compute/kernels.cpp`"
    code_map.PAGE.write_text(
        f"`lost.py`\n## Where do I change…\n| {table} |\n## The map\n`lost.py`"
    )
    file = source(tmp_path, "def judge(): ...\n", "operator/plans/a.py")
    monkeypatch.setattr(code_map, "sources", lambda part: [file] if part == "operator" else [])
    assert [line.split()[1] for line in code_map.lost_places()] == ["a.Old", "plans/b.py"]


def test_names_of_the_table_of_changes_are_in_the_file_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("habits.code.ROOT", tmp_path)
    monkeypatch.setattr(code_map, "ROOT", tmp_path)
    monkeypatch.setattr(code_map, "PAGE", tmp_path / "page.md")
    rows = (
        "| op `a.py` (`judge`, `_made`, `LIMIT`), then `make generate` and `/v1` |",
        "| op `a.py` (`read`), rt `b.py` (`read`, `judge`), `a.py` |",
        "| rt `b.py`, op `b.py`, `plans/` |",
        "| `judge` |",
    )
    text = "\n".join(rows)
    code_map.PAGE.write_text(f"## Where do I change…\n{text}\n## The map\n")
    files = [
        source(
            tmp_path,
            "LIMIT = 1\ndef judge(): ...\ndef _made(): ...\n",
            "operator/llm_operator/a.py",
        ),
        source(tmp_path, "def read(): ...\n", "runtime/llm_runtime/b.py"),
    ]
    monkeypatch.setattr(code_map, "sources", lambda part: files if part == "operator" else [])
    lost = [line.split()[1] for line in code_map.lost_places()]
    assert lost == ["read", "judge", "a.py", "b.py", "plans/", "judge"]


def test_what_a_package_defines_itself_stands_on_the_map(tmp_path: Path) -> None:
    file = source(
        tmp_path,
        'def advance():\n    """One step: it goes on.\n\n    More."""\ndef _own(): ...\n',
        "bench/__init__.py",
    )
    assert code_map.definitions(file) == "`advance`: One step: it goes on."
    assert code_map.definitions(source(tmp_path, "import ast\n", "bench/b/__init__.py")) == ""


def test_a_walk_that_comes_back_into_a_room_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    package = "operator/llm_operator/plans"
    texts = {
        "__init__": """from llm_operator.plans import one, state, two
def deployment(observed):
    found = one.first(state.noun(observed))
    for step in (two.last, one.first):
        found = step(found)
    one.first(3)
    return two.last(found)
""",
        "one": """from llm_operator.plans.two import last
def first(value):
    return last(value) + len(value)
""",
        "two": "def last(value):\n    return value\n",
        "state": "def noun(observed):\n    return observed\n",
    }
    files = [source(tmp_path, text, f"{package}/{name}.py") for name, text in texts.items()]
    monkeypatch.setattr(walk, "sources", lambda part: files)
    rooms = list(walk.Walk().calls("llm_operator.plans", "deployment", {0}))
    # plans calls one, which calls two; then the steps in turn, whose bodies were walked before.
    assert rooms == ["plans", "one", "two", "two", "one", "two"]
    assert walk.returns(rooms) == 2
