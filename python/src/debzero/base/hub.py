"""What the Hugging Face hub answers where it does not have what a job names, or does not give it."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from debzero.base.errors import HiddenError, UserError


class Repository(NamedTuple):
    """A kind of repository, in the words of messages."""

    kind: str
    key: str           # of the job, that names one
    revision_key: str
    page: str          # the address of a repository's page, up to its name
    local: str         # what the key may name on this host
    path: str          # a word for the path of that


MODEL = Repository("model", "`model:`", "`revision:`", "https://huggingface.co/", "a folder", "a folder")
DATASET = Repository("data set", "data.dataset", "data.revision", "https://huggingface.co/datasets/",
                     "a file, a folder", "a path")


@contextmanager
def refusals_explained(what: Repository, name: str, revision: str) -> Iterator[None]:
    """Turns the hub's refusals of a repository into UserErrors. A hub that cannot be reached is left to the caller."""
    from huggingface_hub.utils import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except HFValidationError:
        raise UserError(f"{name!r} is neither {what.local} nor a name that the hub can have",
                        f"correct {what.key}; {what.path} begins with / or ./") from None
    except RevisionNotFoundError:
        raise UserError(f"the hub's {what.kind} {name} has no revision {revision!r}",
                        f"set {what.revision_key} to one of its branches, tags or commits") from None
    except GatedRepoError:  # a RepositoryNotFoundError, too
        raise HiddenError(f"the hub gives the {what.kind} {name} only to those who have accepted its terms",
                          f"accept them on {what.page}{name}, and set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise HiddenError(f"the {what.kind} {name!r} was not found on the hub",
                          f"correct {what.key}, or set HF_TOKEN if it is private") from None
