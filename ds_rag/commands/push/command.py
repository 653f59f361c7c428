"""`ds-rag push RUN --to org/name`: uploads a finished run's models with their cards to the hub.

Exactly the files that the run's manifest names are uploaded: no checkpoints, no rows, nothing that lies beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import ds_rag
from ds_rag.commands.push import PARTS
from ds_rag.commands.verify.command import of_index
from ds_rag.config.names import REPOSITORY
from ds_rag.models.adapters import ADAPTER_FILE
from ds_rag.run import export
from ds_rag.run.output_dir import ENDED, how_far, standing
from ds_rag.runtime import atomic_folders
from ds_rag.runtime.console import Console
from ds_rag.runtime.credentials import masked
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.hub import is_of_network, one_line
from ds_rag.runtime.own_files import listed

MANIFEST, CARD = atomic_folders.MANIFEST, export.CARD
VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json")  # whose entries may look like anything
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
OF_MODELS = ("config.json", "modules.json", ".safetensors", ".bin")  # ends of the names of a model's files
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY")
Files = dict[str, Path | bytes]  # path in the repository -> a file, or its content


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    run, console = Path(args.run), Console()
    if not REPOSITORY.fullmatch(args.to) or not is_valid(args.to):
        raise UserError(f"--to {args.to}: no name of a repository", expected="org/name, or your own user/name")
    parts = chosen(run, args.part)
    files = files_of(run, parts, args.to)
    refuse_credentials(files)
    total = 0
    rows = []
    for place, file in files.items():
        total += (size := len(file) if isinstance(file, bytes) else file.stat().st_size)
        rows.append([place, f"{size:,}"])
    visible = "public" if args.public else "private"
    console.table(f"{run} -> {args.to} ({visible})", ["file", "bytes"], [*rows, [f"{len(files)} files", f"{total:,}"]])
    for note in notes_on(run, parts):
        console.say(f"note: {note}", style="yellow")
    if args.dry_run:
        console.say("nothing was uploaded (--dry_run)")
        return 0
    console.say(f"pushed     {upload(files, args.to, args.public, str(run.resolve().name))}")
    return 0


def is_valid(name: str) -> bool:
    """Does the hub's own client take it as a name?"""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def chosen(run: Path, wanted: Collection[str] | None) -> list[str]:
    """The parts to upload, after checking that the run has them complete. Raises UserError."""
    if not export.exported(run) or standing(run) != ENDED:
        found = how_far(run) if export.exported(run) else "no exported models in it"
        raise UserError(f"{run}: not a finished run", found=found, fix="the training's own command with --resume auto")
    manifest = export.ready(run)
    if not manifest:
        raise UserError(f"{run}: it has no manifest, so nobody knows which files are the run's", fix="train again")
    parts = [part for part in PARTS if part in (wanted or PARTS[:2])]
    absent = [part for part in parts if not (run / part).is_dir()]
    if wanted and absent:
        raise UserError(f"--part {absent[0]}: the run has none", found=f"no {run / absent[0]}")
    if "index" in parts and (wrong := of_index(run).wrong):
        raise UserError(f"{run / 'index'}: damaged", found="; ".join(wrong), fix="ds-rag index --run RUN")
    return [part for part in parts if part not in absent]


def files_of(run: Path, parts: Collection[str], to: str) -> Files:
    """The files of these parts, and a card of the pair where there are several parts."""
    files: Files = {}
    for part in parts:
        at_root = len(parts) == 1
        for name in files_of_part(run, part):
            files[name if at_root else f"{part}/{name}"] = run / part / name
    if len(parts) > 1 or CARD not in files:
        files[CARD] = pair_card(run, parts, to).encode()
    return dict(sorted(files.items()))


def files_of_part(run: Path, part: str) -> list[str]:
    """The files of a part that the manifests name, relative to its folder."""
    if part == "index":
        return [*(atomic_folders.read_manifest(run / part) or {"files": {}})["files"], MANIFEST]
    named = (atomic_folders.read_manifest(run) or {"files": {}})["files"]
    return [name.removeprefix(f"{part}/") for name in named if name.startswith(f"{part}/") and (run / name).is_file()]


def pair_card(run: Path, parts: Collection[str], to: str) -> str:
    """The card at the root of a repository with several parts."""
    lines = [f"- `{part}/`" for part in parts]
    flags = " ".join(f"--{part} {to}" for part in parts if part != "index")
    use = f"\n```bash\nds-rag evaluate {flags} --data ROWS\n```\n" if flags else ""
    tags = "---\nlibrary_name: ds_rag\ntags: [ds_rag]\n---\n\n"
    title = f"# {run.resolve().name}, trained by ds_rag {ds_rag.__version__}\n\n"
    return tags + title + "\n".join(lines) + "\n" + use


def refuse_credentials(files: Mapping[str, Path | bytes]) -> None:
    """Raises UserError for a card or a configuration that contains a password or a token."""
    own = [os.environ[name] for name in TOKENS if os.environ.get(name)]
    for place, file in files.items():
        name = Path(place).name
        readable = name.endswith((".md", ".json", ".jinja")) and name not in VOCABULARIES
        if isinstance(file, bytes) or not readable:
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        if masked(text) != text or TOKEN.search(text) or any(token in text for token in own):
            raise UserError(
                f"{file}: contains a password, a key or a token", expected="nothing secret", fix="take it out"
            )


def notes_on(run: Path, parts: Collection[str]) -> list[str]:
    """What others will miss or see: a base that is a folder of this machine; the corpus's texts."""
    notes = []
    for part in parts:
        for file in (run / part).rglob(ADAPTER_FILE):
            base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
            if os.path.isabs(str(base)):
                notes.append(
                    f"{part}: adapters whose base {base} is on this machine only; `ds-rag merge` adds them to it"
                )
    if "index" in parts:
        notes.append("the index holds the texts of the corpus")
    return notes


def upload(files: Mapping[str, Path | bytes], to: str, public: bool, name: str) -> str:
    """Makes the repository where there is none, and uploads the files in one commit; returns the repository's address.
    Raises UserError."""
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError

    login = "HF_TOKEN=..., or `hf auth login`, with the right to write"
    if not get_token():
        raise UserError(f"--to {to}: the hub lets nobody write without a token", fix=login)
    api = HfApi(library_name="ds_rag")
    try:
        address = str(api.create_repo(to, private=not public, exist_ok=True))
        if public and api.repo_info(to).private:
            raise UserError(f"--to {to}: that repository is private", fix="without --public, or change it on its page")
        others = set(api.list_repo_files(to)) - set(files)
        models = any(place.endswith(OF_MODELS) for place in files)
        if models and (stale := sorted(f for f in others if f.endswith(OF_MODELS))):
            raise UserError(
                f"--to {to}: it has files of another model, which would be mixed with these",
                found=listed(stale),
                fix="another name, or delete them there",
            )
        if not public and not api.repo_info(to).private:
            raise UserError(
                f"--to {to}: that repository is public", expected="a private one", fix="another name, or --public"
            )
        operations = [CommitOperationAdd(path_in_repo=place, path_or_fileobj=file) for place, file in files.items()]
        message = f"{name}, by ds_rag {ds_rag.__version__}"
        api.create_commit(repo_id=to, operations=operations, commit_message=message)
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise UserError(
            f"--to {to}: refused by the hub",
            found=f"{masked(constants.ENDPOINT)} answered {status}: {one_line(error)}",
            fix=login if status in (401, 403, 404) else None,
        ) from None
    except Exception as error:
        if not is_of_network(error):
            raise
        raise UserError(
            f"--to {to}: the hub cannot be reached",
            found=f"{masked(constants.ENDPOINT)} (HF_ENDPOINT): {type(error).__name__}: {one_line(error)}",
            fix="with a network, and without HF_HUB_OFFLINE: the same command again",
        ) from None
    return address
