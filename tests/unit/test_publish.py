"""What is published of a run, what its card says, and every reason for which it is refused; nothing is sent here."""

import json
import re
import shutil
import struct
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from sllm_tune.cli import main
from sllm_tune.deliver.card import Terms, model_card
from sllm_tune.deliver.leaks import find_leaks, own_secrets
from sllm_tune.deliver.licences import Commercial, commercial_use, is_without_derivatives
from sllm_tune.deliver.publish import describe, publish
from sllm_tune.errors import BadInput, JobFailed, RunFolderError
from sllm_tune.runs.files import sha256, write_json
from sllm_tune.runs.folder import open_run

MERGED: dict[str, Any] = {"format": "merged", "licence": "apache-2.0"}
SECRET = "hf_" + "AbCdEfGh12" * 3


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def rewrite(run: Path, stage: str, name: str, content: bytes | str) -> None:
    """Another content of a stage's output, as if the stage had made it."""
    path = run / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    manifest = json.loads((run / stage / "manifest.json").read_text())
    state = path.stat()
    manifest["files"][name] = {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": sha256(path)}
    write_json(run / stage / "manifest.json", manifest)


def change_results(run: Path, change: Callable[[Any], object]) -> None:
    results = json.loads((run / "scores" / "results.json").read_text())
    change(results)
    rewrite(run, "evaluate", "scores/results.json", json.dumps(results))


def refused(run: Path, **options: Any) -> str:
    with pytest.raises(BadInput) as caught:
        publish(run, "firm/specialist", **{**MERGED, **options})
    assert caught.value.exit_status == 2
    return str(caught.value)


def test_a_dry_run_says_what_would_be_pushed(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    plan = publish(run, "firm/specialist", **MERGED)
    assert plan.commit is None
    assert set(plan.files) == {"README.md", *(path.name for path in (run / "merged").iterdir())}
    said = describe(plan)
    assert "firm/specialist (private), merged" in said
    assert "model.safetensors" in said
    assert "  | license: apache-2.0" in said
    assert said.endswith("--yes")
    assert {path: path.read_bytes() for path in before} == before
    assert "everybody can read it" in describe(publish(run, "firm/specialist", **MERGED, private=False))


def test_the_recipe_says_where_to_and_who_sees_it_unless_the_command_does(run: Path) -> None:
    with pytest.raises(BadInput, match=r"publish\.repo in the recipe"):
        publish(run)
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["publish"] = {**MERGED, "repo": "firm/of-recipe", "private": False}
    write_json(run / "recipe.json", recipe)
    plan = publish(run)
    assert (plan.repo, plan.format, plan.private) == ("firm/of-recipe", "merged", False)
    assert "license: apache-2.0" in plan.card
    assert publish(run, "firm/other", private=True).private
    assert publish(run, "firm/other").repo == "firm/other"
    recipe["publish"] = {"private": "perhaps"}
    write_json(run / "recipe.json", recipe)
    with pytest.raises(BadInput, match=r"recipe\.json: cannot be read"):
        publish(run, "firm/other")


def test_the_command_shows_and_sends_nothing_without_yes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["publish", str(run), "--repo", "firm/specialist"]
    assert main([*asked, "--format", "merged", "--licence", "apache-2.0"]) == 0
    assert "Nothing was sent. To push it, say so: --yes" in capsys.readouterr().out
    assert main([*asked, "--format", "gguf"]) == 2
    assert "there are 'adapter' and 'merged'" in capsys.readouterr().err
    assert main(["publish", str(run / "nowhere"), "--repo", "firm/specialist"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def failed(results: Any) -> None:
    results["gate"] = {"passed": False, "reasons": ["clauses: the gain is 0.01, the least is 0.05"]}


def trained(**card: Any) -> Callable[[Any], None]:
    return lambda results: results["data"]["tasks"]["clauses"].update(card)


PERSONAL = {"policy": "report", "rows": 3, "kinds": {"phone": 4}}


@pytest.mark.parametrize(
    ("change", "said", "allow"),
    [
        (failed, "the gate failed.\n    clauses: the gain is 0.01", None),
        (trained(licence="not stated"), "data/card.json, clauses: its licence is 'not stated'", "unknown_licence"),
        (trained(licence="see the data set"), "State it in metadata.licence of the task file", "unknown_licence"),
        (trained(licence="CC BY-ND 4.0"), "allows no work derived from it", None),
        (trained(personal_data=PERSONAL), "personal data in 3 rows (phone 4)", "personal_data"),
        (lambda results: results.update(smoke=True), "a smoke run; its model is random", "smoke"),
    ],
)
def test_what_a_run_says_against_itself_is_refused(
    run: Path, change: Callable[[Any], None], said: str, allow: str | None
) -> None:
    change_results(run, change)
    assert said in refused(run)
    if allow:
        assert publish(run, "firm/specialist", **MERGED, allow=[allow]).files
    else:
        assert said in refused(run, allow=["unknown_licence", "personal_data", "smoke", "non_commercial", "base"])


@pytest.mark.parametrize("card", [{"commercial_use": False}, {"licence": "CC BY-NC 2.0"}])
def test_data_that_forbids_commercial_use_needs_both_a_word_and_a_licence_that_forbids_it(
    run: Path, card: dict[str, Any]
) -> None:
    change_results(run, trained(**card))
    assert "data/card.json, clauses: its licence forbids commercial use" in refused(run)
    assert "apache-2.0 is wider than the licence of clauses" in refused(run, allow=["non_commercial"])
    plan = publish(run, "firm/specialist", format="merged", licence="cc-by-nc-4.0", allow=["non_commercial"])
    assert "The data forbids commercial use" in plan.card


def test_redacted_data_and_data_that_is_only_graded_do_not_stand_in_the_way(run: Path) -> None:
    change_results(run, trained(personal_data={**PERSONAL, "policy": "redact"}))
    change_results(run, lambda results: results["data"]["tasks"]["skies"].update(licence="CC BY-NC 4.0"))
    plan = publish(run, "firm/specialist", **MERGED)
    assert "found in 3 rows, replaced" in plan.card


def test_the_licence_of_the_model_must_be_known(run: Path) -> None:
    assert "licence of the base cannot be looked up" in refused(run, licence=None)


def test_an_adapter_whose_base_is_on_no_hub_is_refused_with_the_way_out(run: Path) -> None:
    said = refused(run, format="adapter")
    assert "is not on a hub, so nobody could load it" in said
    assert "Publish the merged model (format merged), or name the base's id on the hub (base_id)" in said


def test_an_adapter_on_a_resized_base_is_refused(run: Path) -> None:
    step = {"kind": "prune_depth", "parameters": 1, "bytes": 2, "tokens_per_second": 1.0, "perplexity": 2.0}
    change_results(run, lambda results: results.update(resize=[step]))
    assert "was resized in this run, so nobody could load it" in refused(run, format="adapter")


def test_all_reasons_are_told_at_once(run: Path) -> None:
    change_results(run, lambda results: (failed(results), trained(licence="not stated")(results)))
    said = refused(run, format="adapter")
    assert "for 3 reasons" in said
    assert all(part in said for part in ("the gate failed", "its licence is", "is not on a hub"))


def test_an_output_that_was_changed_or_is_missing_is_refused(run: Path) -> None:
    config = run / "merged" / "config.json"
    config.write_text(config.read_text() + " ")
    assert "merged/config.json was changed since merge made it" in refused(run)
    config.unlink()
    assert "merged/config.json is missing" in refused(run)


def test_scores_of_another_adapter_are_refused(run: Path) -> None:
    weights = run / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    rewrite(run, "train", "adapter/adapter_model.safetensors", bytes(content))
    assert "the scores are of another adapter" in refused(run)


def test_an_adapter_of_another_base_is_refused(run: Path) -> None:
    said = json.loads((run / "adapter" / "sllm_tune.json").read_text())
    rewrite(run, "train", "adapter/sllm_tune.json", json.dumps({**said, "base_sha256": "0" * 64}))
    assert "an adapter of another base (adapter/sllm_tune.json 0000000000000000" in refused(run)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("training_args.bin", b"\x80\x02}q\x00.", "a pickle"),
        ("notes.txt", b"\x80\x04\x95", "a pickle"),
        ("modeling.py", b"import os", "code, which the reader"),
        ("notes.txt", b"a\nb " + SECRET.encode(), "notes.txt, line 2: holds what has the shape of a key or token"),
    ],
)
def test_pickles_code_and_tokens_are_refused_even_where_the_run_made_them(
    run: Path, name: str, content: bytes, said: str
) -> None:
    rewrite(run, "merge", f"merged/{name}", content)
    message = refused(run)
    assert said in message
    assert SECRET not in message


def test_a_file_that_the_run_did_not_make_is_refused(run: Path) -> None:
    (run / "merged" / "notes.txt").write_text("mine")
    assert "merge did not make this" in refused(run)
    (run / "merged" / "notes.txt").unlink()
    (run / "merged" / "link.json").symlink_to(run / "recipe.json")
    assert "merge did not make this" in refused(run)


def test_a_secret_of_the_environment_is_found_without_any_shape(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRM_API_KEY", "swordfish-and-more")
    rewrite(run, "merge", "merged/notes.txt", "the word is swordfish-and-more")
    message = refused(run)
    assert "merged/notes.txt, line 1: holds the secret of FIRM_API_KEY" in message
    assert "swordfish" not in message


def test_paths_of_this_machine_are_refused(run: Path) -> None:
    for path in (Path.home() / "models/base", Path.cwd() / "x.json", Path("/tmp/x"), run / "adapter"):
        rewrite(run, "merge", "merged/notes.txt", json.dumps({"a": str(path)}))
        assert "notes.txt, line 1: holds a path of this machine" in refused(run), path


def test_a_data_card_with_a_local_path_is_refused_in_the_card(run: Path) -> None:
    change_results(run, trained(licence=f"see {Path.home()}/licence.txt"))
    assert "README.md, line" in refused(run)


@pytest.mark.parametrize(
    "text",
    [
        "hf_" + "a1B2" * 8,
        "sk-proj-" + "a1B2" * 8,
        "ghp_" + "a1B2" * 9,
        "github_pat_" + "a1B2" * 9,
        "glpat-" + "a1B2" * 5,
        "AKIA" + "ABCD1234" * 2,
        "AIza" + "a1B2c" * 7,
        "xoxb-" + "1234567890-ab",
        "npm_" + "a1B2" * 9,
        "pypi-AgE" + "a1B2" * 10,
        "-----BEGIN RSA PRIVATE KEY-----",
    ],
)
def test_keys_are_known_by_their_shape(tmp_path: Path, text: str) -> None:
    assert find_leaks("notes.txt", f'{{"key": "{text}"}}'.encode(), tmp_path, {})


@pytest.mark.parametrize(
    "text", ["task-abcdefghijklmnopqrstuvwx", "hf_hub_download", "AKIA", '"/tmp": 7, "/home": 8', "xtmp/x /tmpfile/x"]
)
def test_words_of_a_vocabulary_are_no_leak(tmp_path: Path, text: str) -> None:
    assert not find_leaks("tokenizer.json", text.encode(), tmp_path, {})


def test_weights_are_searched_by_header_and_by_own_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def written(note: str, data: bytes, length: int) -> Path:
        entry = {"dtype": "U8", "shape": [length], "data_offsets": [0, length]}
        header = json.dumps({"__metadata__": {"note": note}, "w": entry}).encode()
        path = tmp_path / "model.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + data)
        return path

    def found(*given: Any) -> str:
        return "".join(find_leaks("model.safetensors", written(*given), tmp_path, own_secrets()))

    assert found("fine", b"12345678", 8) == ""
    assert "shape of a key" in found(SECRET, b"12345678", 8)
    assert "a path of this machine" in found(f"{Path.home()}/x", b"12345678", 8)
    assert "more or less than its tensors" in found("fine", b"12345678 and more", 8)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert "the secret of HF_TOKEN" in found("fine", SECRET.encode(), len(SECRET))
    (tmp_path / "cut.safetensors").write_bytes(struct.pack("<Q", 1000) + b"{}")
    assert "its header is cut" in find_leaks("cut.safetensors", tmp_path / "cut.safetensors", tmp_path, {})[0]


def test_arguments_that_cannot_be_are_refused_first(run: Path, tmp_path: Path) -> None:
    for repo, said in (("name", "has no owner"), ("firm/a--b", "Cannot have --"), ("a/b/c", "repo: Repo id must be")):
        with pytest.raises(BadInput, match=said):
            publish(run, repo, **MERGED)
    assert "format: no 'adaptor'; there are 'adapter' and 'merged'; did you mean 'adapter'?" in refused(
        run, format="adaptor"
    )
    assert "did you mean 'non_commercial'?" in refused(run, allow=["noncommercial"])
    assert "scores/results.json: not there, so the run is not finished" in refused(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_a_push_needs_a_token_and_a_hub(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no token to push with" in refused(run, yes=True)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with pytest.raises(JobFailed, match="the hub is switched off by HF_HUB_OFFLINE"):
        publish(run, "firm/specialist", **MERGED, yes=True)


def test_a_run_in_use_is_not_published(run: Path) -> None:
    with open_run(run), pytest.raises(RunFolderError, match="in use by process"):
        publish(run, "firm/specialist", **MERGED)


@pytest.mark.parametrize(
    ("licence", "use"),
    [
        ("CC BY-NC 2.0 (KorMedMCQA), no commercial use", Commercial.FORBIDDEN),
        ("cc-by-nc-4.0", Commercial.FORBIDDEN),
        ("for non-commercial research only", Commercial.FORBIDDEN),
        ("not stated", Commercial.UNKNOWN),
        ("", Commercial.UNKNOWN),
        ("CC BY 4.0 (The Atticus Project); the hub copy too", Commercial.ALLOWED),
        ("PubMedQA is MIT; abstracts are from PubMed, their publishers' rights apply", Commercial.ALLOWED),
        ("Apache-2.0", Commercial.ALLOWED),
    ],
)
def test_licences_are_read_by_their_words(licence: str, use: Commercial) -> None:
    assert commercial_use({"licence": licence, "commercial_use": True}) is use
    assert is_without_derivatives("cc-by-nc-nd-4.0")
    assert not is_without_derivatives(licence)


def results_of(run: Path) -> Any:
    return json.loads((run / "scores" / "results.json").read_text())


TERMS = Terms("firm/specialist", "apache-2.0", "maker/base", "llama3")


def test_the_card_has_the_scores_of_the_run_as_the_hub_reads_them(run: Path) -> None:
    results = results_of(run)
    results["data"]["tasks"]["clauses"]["source"] = "maker/clauses"
    data = ModelCard(model_card(results, TERMS, "adapter")).data.to_dict()
    assert (data["license"], data["base_model"], data["base_model_relation"]) == ("apache-2.0", "maker/base", "adapter")
    assert (data["library_name"], data["pipeline_tag"], data["language"]) == ("peft", "text-generation", "en")
    assert data["datasets"] == ["maker/clauses"]
    index = data["model-index"][0]
    assert index["name"] == "specialist"
    for result in index["results"]:
        score = results["tasks"][result["dataset"]["name"]]["scores"]["specialised"]
        assert result["metrics"][0]["value"] == pytest.approx(score["value"], abs=1e-4)
        assert result["metrics"][0]["args"]["ci95"] == pytest.approx(score["ci95"], abs=1e-4)
    assert {result["dataset"]["name"] for result in index["results"]} == {"clauses", "skies"}
    results["smoke"] = True
    assert "model-index" not in model_card(results, TERMS, "adapter")


@pytest.mark.parametrize(
    ("language", "parts"),
    [
        ("en", ["## Intended use and limits", "no legal advice", "TF-IDF baseline", "**Forgetting.**", "**Gate"]),
        ("ko", ["## 용도와 한계", "법률 자문을 제공하지 않으며", "TF-IDF 기준 모델", "**망각.**", "**합격 기준"]),
    ],
)
def test_the_card_is_whole_in_both_languages(run: Path, language: str, parts: list[str]) -> None:
    card = model_card({**results_of(run), "language": language}, TERMS, "merged")
    for part in [
        *parts,
        "llama3",
        "CC0-1.0",
        "sllm-tune run recipe.yaml",
        "name: tiny",
        "r: 4",
    ]:
        assert part in card, part
    assert "{" not in re.sub(r"```.*?```", "", card, flags=re.DOTALL)  # no sentence was left unfilled


def test_both_languages_of_the_card_have_the_same_sentences() -> None:
    strings = yaml.safe_load(resources.files("sllm_tune.deliver").joinpath("templates/card.yaml").read_text("utf-8"))

    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shape(inner) for key, inner in value.items()}
        return sorted(re.findall(r"{(\w+)}", value))

    assert shape(strings["en"]) == shape(strings["ko"])


def test_what_models_and_data_say_is_text_in_the_card(run: Path) -> None:
    results = results_of(run)
    evil = "<script>x</script> | [a](javascript:b) \x1b[2J\n# title"
    results["data"]["tasks"]["clauses"]["licence"] = evil
    results["tasks"][evil] = results["tasks"].pop("skies")
    results["recipe"]["name"] = "```\n<script>"
    card = model_card(results, TERMS, "adapter")
    body = re.sub(r"(?m)^(`{3,})\w*\n.*?^\1$", "", card.split("---\n", 2)[2], flags=re.DOTALL)
    assert "<script>" not in body
    assert "\x1b" not in card
    assert not re.search(r"(?m)^# title", body)
    assert not re.search(r"(?<!\\)\]\(javascript", body)
    assert ModelCard(card).data.license == "apache-2.0"


def test_no_item_is_in_the_card(run: Path) -> None:
    results = results_of(run)
    results["tasks"]["clauses"]["flips"] = [
        {"id": "1", "prompt": "the whole prompt", "target": "Yes", "base": "No", "specialised": "Yes"}
    ]
    card = model_card(results, TERMS, "adapter")
    assert "the whole prompt" not in card
    labels = results["data"]["tasks"]["clauses"]["splits"]["train"].get("labels")
    assert labels
    assert not re.search(r"\bYes\b", card)
