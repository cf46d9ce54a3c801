"""The documentation site builds without a warning, and asks nobody else for anything."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-W",
            "--keep-going",
            "-q",
            "-d",
            made / "doctrees",
            ROOT / "docs",
            made / "html",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return made / "html"


@pytest.mark.slow
def test_every_link_of_the_site_leads_to_a_page_and_a_heading_of_it(site: Path):
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert len(pages) > 15
    for path, text in pages.items():
        for target, anchor in re.findall(r'<a [^>]*?href="([^":#]*)(?:#([^"]*))?"', text):
            found = (path.parent / target).resolve() if target else path
            assert found.exists(), f"{path.name}: {target}"
            if anchor and found in pages:
                assert f'id="{anchor}"' in pages[found], f"{path.name}: {target}#{anchor}"


@pytest.mark.slow
def test_no_page_loads_a_script_a_font_or_a_style_from_elsewhere(site: Path):
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|iframe)[^>]* src="(?:https?:)?//[^"]*"', text), path.name
        assert not re.findall(r'<link(?![^>]*rel="canonical")[^>]* href="(?:https?:)?//[^"]*"', text), path.name
    for path in site.rglob("*.css"):
        assert not re.findall(r"url\(['\"]?(?:https?:)?//", path.read_text(encoding="utf-8")), path.name


@pytest.mark.slow
def test_every_field_of_a_recipe_and_every_command_has_its_place(site: Path):
    from sllm_tune.recipe.recipe import Recipe

    fields = (site / "made" / "fields.html").read_text(encoding="utf-8")
    assert all(f">{name}<" in fields for name in Recipe.model_fields)
    commands = (site / "made" / "commands.html").read_text(encoding="utf-8")
    assert all(f"sllm-tune {name}" in commands for name in ("run", "ask", "export", "publish", "serve"))
