"""The pages against the program: the commands, options, links and files they name exist."""

import os
import re

import pytest

from lorashard_runs import REPO, lorashard

PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "recipes/README.md"] + sorted(
    "docs/" + name for name in os.listdir(os.path.join(REPO, "docs")) if name.endswith(".md"))


def text_of(page):
    with open(os.path.join(REPO, page), encoding="utf-8") as file:
        return file.read()


def code_of(text):
    """Inline code, fenced and indented blocks: where commands stand."""
    parts = re.findall(r"```.*?```|`[^`\n]+`", text, re.S) + re.findall(r"(?m)^ {4,}.*$", text)
    return "\n".join(part.strip("`") for part in parts)


def subcommands_of(help_text):
    body = re.split(r"(?mi)^subcommands:", help_text)[1].split("\n\n")[0]
    return set(re.findall(r"(?m)^  ([a-z][a-z-]*)\s", body))


def anchor(heading):
    """As GitHub makes it from a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.fixture(scope="module")
def subcommands():
    return subcommands_of(lorashard("--help").stdout)


def test_the_program_has_the_subcommands_of_this_version(subcommands):
    assert {"pack", "train", "launch", "inspect", "report", "init-base", "doctor", "help"} <= subcommands


@pytest.mark.parametrize("page", PAGES)
def test_every_command_a_page_names_exists(page, subcommands):
    for name in re.findall(r"\blorashard ([a-z][a-z-]*)", code_of(text_of(page))):
        assert name in subcommands, f"{page} names 'lorashard {name}'"


@pytest.mark.parametrize("page", PAGES)
def test_every_option_a_page_gives_a_command_exists(page):
    helps = {}
    for name, rest in re.findall(r"\blorashard ([a-z][a-z-]*)([^\n`|#]*)", code_of(text_of(page))):
        for option in re.findall(r"(?<!\S)(--[a-z][a-z-]*)", rest):
            if name not in helps:
                helps[name] = lorashard(name, *(["recipe"] if name == "help" else []), "--help").stdout
            assert re.search(re.escape(option) + r"\b", helps[name]), f"{page} gives 'lorashard {name}' the option {option}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        file = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
        assert os.path.exists(os.path.join(REPO, file)), f"{page} links to {target}"
        if fragment:
            headings = re.findall(r"(?m)^#+ (.*)$", text_of(file))
            assert fragment in {anchor(heading) for heading in headings}, f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_ascii(page):
    assert text_of(page).isascii()


def test_readme_lists_every_subcommand(subcommands):
    missing = subcommands - set(re.findall(r"`lorashard ([a-z-]+)", text_of("README.md")))
    assert not missing


def test_help_recipe_shows_a_key_and_refuses_an_unknown_one():
    assert "an integer" in lorashard("help", "recipe", "lora.rank").stdout
    assert "lora.rank" in lorashard("help", "recipe", "lora.rnak", code=2).stderr


def test_parity_names_keys_and_tests_that_exist():
    text = text_of("docs/parity.md")
    keys = set(re.findall(r"(?m)^\| `([a-z0-9_]+)` \|", text_of("docs/recipe_reference.md")))
    tables = set(re.findall(r"(?m)^## \[([a-z_]+)\]", text_of("docs/recipe_reference.md")))
    named = [name for name in re.findall(r"`([a-z_]+)\.([a-z0-9_]+)(?: = [^`]*)?`", text) if name[1] not in ("py", "json", "jsonl")]
    assert len(named) > 60
    for table, key in named:
        assert table in tables and key in keys, f"parity.md names '{table}.{key}'"
    tests = set(re.findall(r"(?:tests/[a-z0-9]+/)?\b(?:test_[a-z0-9_]+\.py|[a-z0-9_]+_test(?:\.cpp)?)\b", text))
    assert len(tests) > 30
    for test in tests:
        path = test if "/" in test else f"tests/e2e/{test}"
        path = path if path.endswith((".py", ".cpp")) else path + ".cpp"
        assert os.path.exists(os.path.join(REPO, path)), f"parity.md names {test}"
