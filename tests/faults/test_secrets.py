"""Row 32: what the environment or an address holds of secrets is in no file of a run, and on no terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import DS_RAG, SMALL, TRAIN, environment, execute

from ds_rag.config import RunConfig, build
from ds_rag.runtime.credentials import masked, printable

LITTLE = ["--max_steps", "1", "--refresh_index", "0", "--save_steps", "1", "--eval_answers", "false"]
VARIABLES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "GITHUB_TOKEN",
    "MY_SECRET",
    "DB_PASSWORD",
)
SECRETS = {name: f"s3cr3t-{n}-{name.lower()}" for n, name in enumerate(VARIABLES)}
USER, WORD = "alice", "hunter2-in-the-address"
ADDRESS = f"https://{USER}:{WORD}@example.org/corpus"


PARAMETERS = ["token", "access_token", "Private-Token", "api_key", "apikey", "API-KEY", "key", "sig", "signature"]
PARAMETERS += ["X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token", "AWSAccessKeyId", "X-Goog-Signature"]
PARAMETERS += ["password", "passwd", "pwd", "secret", "client_secret", "auth", "jwt", "sas", "session_id"]


def files_with(folder: Path, *needles: str) -> list[str]:
    """Files below the folder, or their names, that hold one of these."""
    found = []
    for file in (f for f in folder.rglob("*") if f.is_file()):
        content = file.read_bytes() + str(file).encode()
        found += [f"{file.name}: {needle}" for needle in needles if needle.encode() in content]
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, what was printed) of a run with secrets about it."""
    folder = tmp_path_factory.mktemp("runs") / "secret"
    flags = ["--output_dir", folder, *SMALL, *LITTLE, "--passage_prefix", f"see {ADDRESS} :"]
    done = execute([*TRAIN, *flags, "--report_to", "tensorboard"], env=environment(**SECRETS))
    return folder, done.stdout + done.stderr


def test_row_32_no_file_of_a_run_holds_a_secret_of_the_environment(run):
    folder, printed = run
    names = {f.name for f in folder.rglob("*")}
    assert {"run.log", "config.json", "report.html", "README.md", "step-1", "results.json"} <= names
    assert files_with(folder, *SECRETS.values()) == []
    assert not any(secret in printed for secret in SECRETS.values())


def test_row_32_the_search_finds_what_is_there(run):
    """Else it would show nothing."""
    assert any(hit.startswith("config.json") for hit in files_with(run[0], "per_device_train_batch_size"))


def test_row_32_credentials_of_an_address_are_masked_in_configuration_report_and_card(run):
    folder, printed = run
    assert json.loads((folder / "config.json").read_text())["passage_prefix"] == "see https://***@example.org/corpus :"
    for file in ("report.html", "retriever/README.md"):
        assert "https://***@example.org/corpus" in (folder / file).read_text(), file
    # The retriever's own settings are what embeds the next text: they keep the prefix as it was given.
    kept = {"ds_rag.json", "config_sentence_transformers.json"}
    assert {hit.split(":")[0] for hit in files_with(folder, WORD)} <= kept
    assert WORD not in printed


def test_row_32_an_error_does_not_repeat_credentials(tmp_path):
    refused = execute([*DS_RAG, "train", "--train_data", ADDRESS, "--output_dir", tmp_path / "run"], 2)
    assert "***@example.org" in refused.stderr and "does not exist" in refused.stderr
    assert WORD not in refused.stdout + refused.stderr and files_with(tmp_path, WORD) == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (ADDRESS, "https://***@example.org/corpus"),
        (f"a {ADDRESS} and {ADDRESS}", "a https://***@example.org/corpus and https://***@example.org/corpus"),
        ("https://ghp_token@github.com/x", "https://***@github.com/x"),
        ("s3://key:sec@ret@bucket/x", "s3://***@bucket/x"),
        ("https:/alice:pw@example.org/x", "https:/***@example.org/x"),  # as pathlib writes it
        ("https://example.org/a@b", "https://example.org/a@b"),
        *((f"https://x.org/f?a=1&{name}=s3cr3t&b=2#c", f"https://x.org/f?a=1&{name}=***&b=2#c") for name in PARAMETERS),
        (
            "see https://x.org/?token=a and https://y.org/?key=b",
            "see https://x.org/?token=*** and https://y.org/?key=***",
        ),
        ("https://u:p@x.org/?sig=a%2Fb%3D", "https://***@x.org/?sig=***"),
        ("https:/x.org/#access_token=a;state=b", "https:/x.org/#access_token=***;state=b"),
        ("https://x.org/?tokenizer=bert&page=3&monkey=4", "https://x.org/?tokenizer=bert&page=3&monkey=4"),
        ("what is f(x) ?token=5 & key=6", "what is f(x) ?token=5 & key=6"),
        ("mail me: a@b.c", "mail me: a@b.c"),
        ("C:/data/rows.csv", "C:/data/rows.csv"),
    ],
)
def test_row_32_what_is_masked(text, wanted):
    assert masked(text) == wanted and printable(text) == wanted


def test_row_32_other_values_are_left_alone():
    assert [masked(v) for v in (None, 3, 0.5, True)] == [None, 3, 0.5, True]
    assert build(RunConfig().flat()).flat() == RunConfig().flat()
