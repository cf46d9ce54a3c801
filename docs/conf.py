"""The documentation site: python -m sphinx -W docs site.

Pages that describe something else are made from it here: READMEs, the commands' help, the fields of a recipe.
"""

import contextlib
import io
import json
import os
import re
import sys
from pathlib import Path

os.environ["COLUMNS"] = "100"  # of the commands' help, wherever this is built
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

project = "sllm_tune"
copyright = "the authors of sllm_tune, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
exclude_patterns = ["made/overview.md"]
html_theme = "furo"
html_title = "sllm_tune"
html_copy_source = False
html_show_sphinx = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_typehints_description_target = "documented"
default_role = "code"
highlight_language = "text"

PAGES = {  # a README, and the page that it becomes
    "README.md": "overview.md",
    "README.ko.md": "overview.ko.md",
    "recipes/README.md": "recipes.md",
    "recipes/legal/README.md": "legal.md",
    "recipes/medical/README.md": "medical.md",
    "recipes/finance/README.md": "finance.md",
    "scripts/serve/README.md": "serving.md",
    "CONTRIBUTING.md": "contributing.md",
}


def write_pages() -> None:
    made = ROOT / "docs" / "made"
    made.mkdir(exist_ok=True)
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        place = "docs" if page == "overview.md" else "docs/made"  # index.md includes the overview
        (made / page).write_text(with_links(text, (ROOT / source).parent, ROOT / place), encoding="utf-8")
    overview = help_of()
    parts = ["# Commands", f"```text\n{overview}\n```"]
    commands = re.findall(r"^    (\w+) ", overview, re.MULTILINE)
    parts += [f"## sllm-tune {name}\n\n```text\n{help_of(name)}\n```" for name in commands]
    (made / "commands.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    (made / "fields.md").write_text(fields(), encoding="utf-8")


def with_links(text: str, folder: Path, place: Path) -> str:
    """Links to what is a page of the site go there; another file of the repository is named by its path.

    Args:
        text: Markdown.
        folder: Where it lies in the repository.
        place: Where its page lies.
    """

    def link(found: re.Match[str]) -> str:
        image, label, target, anchor = found[1], found[2], found[3], found[4] or ""
        if "://" in target or not target:
            return found[0]
        path = (folder / target).resolve().relative_to(ROOT).as_posix()
        page = f"docs/made/{PAGES[path]}" if path in PAGES else path
        if page == "docs/made/overview.md":
            page = "docs/index.md"
        if page.startswith("docs/"):
            return f"{image}[{label}]({os.path.relpath(ROOT / page, place)}{anchor})"
        return label if "`" in label else f"`{path}`"

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)", link, text)


def help_of(*arguments: str) -> str:
    from sllm_tune.cli import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([*arguments, "--help"])
    return said.getvalue().strip()


def fields() -> str:
    """A table for every section of a recipe, from its schema."""
    from sllm_tune.recipe.recipe import recipe_schema

    schema = recipe_schema()
    sections = {"A recipe": schema, **{name.removesuffix("Section"): part for name, part in schema["$defs"].items()}}
    head = (
        "# What a recipe can say\n\nMade from the schema of recipes (`sllm-tune schema`); the keys of `train.lora`, "
        "`train.sft` and `base_model.quantization`\nare those of `peft.LoraConfig`, `trl.SFTConfig` and "
        "`transformers.BitsAndBytesConfig`."
    )
    tables = [table(name, part) for name, part in sections.items() if "properties" in part]
    return "\n\n".join([head, *tables]) + "\n"


def table(name: str, schema: dict) -> str:
    rows = [
        f"| `{key}` | {kind(field)} | {default(key, field, schema)} | {cell(field.get('description', ''))} |"
        for key, field in schema["properties"].items()
    ]
    head = "| field | | default | |\n|---|---|---|---|\n"
    return f"## {name}\n\n{cell(schema.get('description', ''))}\n\n{head}" + "\n".join(rows)


def kind(field: dict) -> str:
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2].removesuffix("Section")
        return f"[{name}](#{name.lower()})"
    if options := field.get("anyOf", field.get("oneOf")):
        return " or ".join(dict.fromkeys(map(kind, options)))
    if "enum" in field or "const" in field:
        return " or ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {kind(field.get('items', {}))}"
    return field.get("type", "any")


def default(key: str, field: dict, schema: dict) -> str:
    if key in schema.get("required", []):
        return "required"
    return f"`{json.dumps(field['default'], ensure_ascii=False)}`" if "default" in field else ""


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def setup(app) -> None:
    def guide(_, name: str, source: list[str]) -> None:
        if name.startswith("guides/"):
            source[0] = with_links(source[0], ROOT / "docs" / "guides", ROOT / "docs" / "guides")

    app.connect("source-read", guide)


write_pages()
