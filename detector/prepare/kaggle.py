"""Data sets are downloaded from Kaggle."""

import contextlib
import io
from pathlib import Path

from detector.errors import UserError


def download(dataset: str) -> Path:
    """The local folder of the Kaggle data set `dataset` (owner/name), downloaded unless it is there already.

    Raises:
        UserError: it cannot be downloaded, for whatever reason.
    """
    try:
        # Its log goes to standard output and is dropped; the progress bar goes to standard error and stays.
        with contextlib.redirect_stdout(io.StringIO()):
            import kagglehub

            return Path(kagglehub.dataset_download(dataset))
    except Exception as error:  # of requests, of kagglehub and its SDK, of zipfile, of a full disk
        raise UserError(
            f"data.kaggle: could not download {dataset}: {_reason(error)}; or download the archive by hand from "
            f"https://www.kaggle.com/datasets/{dataset} and set data.source=folder data.path=archive.zip"
        ) from None


def _reason(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    bases = {base.__name__ for base in type(error).__mro__}
    if status == 404:
        return "there is no such data set; check the spelling"
    if status in (401, 403):
        return "it is private or asks for consent; accept its terms on its page and set KAGGLE_API_TOKEN"
    if bases & {"ConnectionError", "Timeout"}:
        return "Kaggle cannot be reached; check the network"
    if isinstance(error, ImportError):
        return "kagglehub is not installed; run pip install -r requirements.txt"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}; try again"
