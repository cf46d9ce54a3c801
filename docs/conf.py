"""The documentation site: python -m sphinx -W -n docs site."""

import contextlib
import io
import os
import sys
from pathlib import Path

os.environ["COLUMNS"] = "100"  # of the commands' help, wherever this is built
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

project = "sllm_tune"
copyright = "the authors of sllm_tune, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_made/*"]
html_theme = "furo"
html_title = "sllm_tune"
html_static_path: list[str] = []
html_copy_source = False
html_show_sphinx = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
napoleon_google_docstring = True

COMMANDS = ("run", "check", "prepare", "resize", "train", "evaluate", "report")
USING = ("ask", "chat", "export", "publish", "serve", "schema")


def help_of(*arguments: str) -> str:
    from sllm_tune.cli import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([*arguments, "--help"])
    return said.getvalue().strip()


def write_pages() -> None:
    """Pages that are made from what they describe: the commands' help, and the fields of a recipe."""
    made = ROOT / "docs" / "_made"
    made.mkdir(exist_ok=True)
    parts = [f"```text\n{help_of()}\n```"]
    parts += [f"## sllm-tune {name}\n\n```text\n{help_of(name)}\n```" for name in (*COMMANDS, *USING)]
    (made / "commands.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    (made / "fields.md").write_text(fields(), encoding="utf-8")


def fields() -> str:
    """A table for every section of a recipe, from its schema."""
    from sllm_tune.recipe.recipe import recipe_schema

    schema = recipe_schema()
    parts = [table("A recipe", schema)]
    parts += [table(name.removesuffix("Section"), part) for name, part in schema["$defs"].items()]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(name: str, schema: dict) -> str:
    if "properties" not in schema:
        return ""
    rows = [
        f"| `{key}` | {kind(field)} | {default(key, field, schema)} | {cell(field.get('description', ''))} |"
        for key, field in schema["properties"].items()
    ]
    head = [f"## {name}", cell(schema.get("description", "")), ""]
    return "\n\n".join(filter(None, head)) + "\n\n| field | | default | |\n|---|---|---|---|\n" + "\n".join(rows)


def kind(field: dict) -> str:
    if "$ref" in field:
        return field["$ref"].rpartition("/")[2].removesuffix("Section")
    if "anyOf" in field or "oneOf" in field:
        return " or ".join(dict.fromkeys(kind(one) for one in field.get("anyOf", field.get("oneOf"))))
    if "enum" in field or "const" in field:
        return " or ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {kind(field.get('items', {}))}"
    return field.get("type", "any")


def default(key: str, field: dict, schema: dict) -> str:
    import json

    if key in schema.get("required", []):
        return "required"
    return f"`{json.dumps(field['default'], ensure_ascii=False)}`" if "default" in field else ""


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


write_pages()
