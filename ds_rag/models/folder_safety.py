"""Opening a model folder runs no code from it and downloads nothing; errors of transformers and torch become
UserErrors.

Weights are safetensors, or a .bin of tensors alone: torch reads it with `weights_only`, which executes nothing. That
this holds for every file, whichever library opens it, is `forbid_pickles`. A class that transformers does
not have itself would come as Python from the folder; it is taken only under `--trust_remote_code`, and nobody is asked
in mid-run. Where transformers has the class, its own is used, and the folder's code lies idle.

Whatever a key names (an attention kernel, a base model, a tokenizer), the hub cannot be reached while a folder is
opened, unless `--trust_remote_code` is given.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ds_rag.runtime.errors import UserError

COPY_AGAIN = "a whole copy of the folder; of a run's, what `ds-rag verify RUN` says"


@contextmanager
def out_of_reach(trusted: bool) -> Iterator[None]:
    """Inside the block huggingface_hub, which every library here uses, is offline and raises an error when asked to
    download; with `trusted` (--trust_remote_code) it stays as the user's HF_HUB_OFFLINE says."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not trusted
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def opening(what: str) -> Iterator[None]:
    """To be put around a `from_pretrained`. what: flag and folder, for messages. Raises UserError for a folder that
    needs its own code, whose weights hold more than tensors, whose architecture is unknown, or whose files are
    damaged."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise UserError(
            f"{what}: weights that could run code are not read",
            found=f"a pickle that wants {culprit[1]}" if culprit else "a pickle of more than tensors",
            expected="model.safetensors, or a pytorch_model.bin of tensors alone",
            fix="a copy in safetensors, made by its author or where its code can do no harm",
        ) from None
    except StrictDataclassError as error:
        raise UserError(
            f"{what}: a configuration that no model can have",
            found=" ".join(str(error).split()),
            expected="values that fit each other",
            fix="correct them in its config.json",
        ) from None
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{what}: the folder brings Python code of its own, which is not run",
                found="auto_map in its config.json or tokenizer_config.json",
                expected="a model and a tokenizer that transformers has itself",
                fix="read that code; if you trust it, --trust_remote_code",
            ) from None
        if "does not recognize this architecture" in str(error):
            first = str(error).split(" but ")[0].replace("The checkpoint you are trying to load has ", "")
            raise UserError(
                f"{what}: an architecture that transformers does not know",
                found=first,
                expected="a model_type of the transformers that is installed",
            ) from None
        raise damaged(what, error) from error
    except (UserError, MemoryError, torch.OutOfMemoryError, ImportError):
        raise
    except Exception as error:  # each library has its own, tokenizers a plain Exception
        if isinstance(error, OSError) and error.errno is not None:  # raised by the operating system
            raise
        raise damaged(what, error) from error


def damaged(what: str, error: Exception) -> UserError:
    """The error for a folder from whose files a library cannot build a model."""
    text = " ".join(str(error).split())
    return UserError(
        f"{what}: cannot be opened: a file of it is missing, cut short or changed",
        found=f"{type(error).__name__}: {text[:300]}",
        expected="the folder's files as they were written",
        fix=COPY_AGAIN,
    )
