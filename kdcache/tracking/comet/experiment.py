"""One experiment of comet_ml, opened and closed so that it says what happened to it.

Offline means without any connection: nothing is collected that would need one (comet_ml looks
for the addresses of host and cloud).
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcache.errors import UsageError
from kdcache.tracking.comet.info_file import CometAccount
from kdcache.tracking.comet.sdk import (
    Heard,
    import_comet,
    same_random_numbers,
    without_callers_code,
)

log = logging.getLogger(__name__)

COMET_FOLDER = "comet"


def open_experiment(
    folder: Path, account: CometAccount, *, name: str | None, online: bool | None
) -> Any:
    """Start an experiment.

    Args:
        folder: where archives go.
        account: key, project, workspace; what it leaves open Comet's own settings say.
        name: of the experiment.
        online: None: where there is a key, and Comet can be reached.

    Returns:
        ``comet_ml.Experiment`` or ``comet_ml.OfflineExperiment``, alive.

    Raises:
        UsageError: there is no key for an experiment that is to be online, or Comet refuses it
            (key, workspace, project), or cannot be reached and ``online`` is True.
    """
    comet_ml = import_comet()
    key = account.api_key or comet_ml.get_config("comet.api_key")
    if online and not key:
        raise UsageError(
            "tracking.comet.online is true and there is no API key. Give an info file "
            "(tracking.comet.info) or COMET_API_KEY, or set online to false for an archive."
        )
    why = ""
    if online is not False and key:
        experiment, heard = _start(comet_ml, folder, account, name, key)
        if experiment is not None:
            log.info("Comet experiment: %s", experiment.url)
            return experiment
        if online or not heard.is_connection:
            way_out = "" if heard.is_connection else "Check key, workspace and project; "
            raise UsageError(
                f"Comet did not start the experiment: {heard.text} Nothing was trained. "
                f"{way_out}tracking.comet.online: false keeps it in an archive."
            )
        why = f"Comet cannot be reached ({heard.text})"
    elif online is None:
        why = "there is no Comet API key"
    experiment, heard = _start(comet_ml, folder, account, name, None)
    if experiment is None:
        raise UsageError(
            f"the Comet archive cannot be begun in {folder}: {heard.text} Nothing was trained."
        )
    level = logging.WARNING if why else logging.INFO
    text = f"{why}, so the" if why else "the"
    log.log(level, "%s experiment is kept offline, in %s", text, folder)
    return experiment


def archive_of(experiment: Any) -> Path | None:
    """Where an offline experiment's archive is, or will be; None for one that is online."""
    directory = getattr(experiment, "offline_directory", None)
    return None if directory is None else Path(directory) / f"{experiment.get_key()}.zip"


def log_code(experiment: Any, files: Mapping[str, Path]) -> None:
    """Keep source files as they are now, unless Comet's own settings say that there is no code.

    Args:
        experiment: alive.
        files: what it is called in the experiment -> the file.
    """
    if not getattr(experiment, "_log_code", True):
        return
    for name, path in files.items():
        try:
            code = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            log.warning("Comet does not get the source file %s: %s", path, error)
            continue
        experiment.log_code(code=code, code_name=name)


def close_experiment(experiment: Any, *, keep: bool) -> None:
    """End an experiment: uploaded, or archived and the archive read back. Warns where that fails.

    Args:
        experiment: to end; a training that has succeeded is no failure because of it.
        keep: otherwise an archive is removed.
    """
    archive = archive_of(experiment)
    failure = ""
    with Heard() as heard:
        try:
            experiment.end()
        except Exception as error:  # of many kinds: comet_ml's, the network's, the disk's
            failure = f"{type(error).__name__}: {error}"
    if archive is not None and not keep:
        archive.unlink(missing_ok=True)
        if archive.parent.name == COMET_FOLDER and not any(archive.parent.iterdir()):
            archive.parent.rmdir()
    elif archive is not None and not _is_complete(archive, experiment):
        log.warning("the Comet archive %s is not complete. %s %s", archive, failure, heard.text)
    elif failure:
        log.warning("Comet may not have all of %s. %s %s", experiment.url, failure, heard.text)
    else:
        heard.repeat()
        if archive is not None:
            log.info("Comet archive, for comet upload: %s", archive)


def _is_complete(archive: Path, experiment: Any) -> bool:
    if experiment.customer_error_reported:  # something could not be written down
        return False
    try:
        with zipfile.ZipFile(archive) as opened:
            names = {"experiment.json", "messages.json"}
            return opened.testzip() is None and names <= set(opened.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _start(
    comet_ml: Any, folder: Path, account: CometAccount, name: str | None, key: str | None
) -> tuple[Any, Heard]:
    """An experiment that is alive, or None, and what comet_ml said; online where there is a key."""
    config = comet_ml.ExperimentConfig(
        name=name,
        offline_directory=str(folder),
        auto_output_logging=False,  # it would replace sys.stdout
        auto_param_logging=False,
        auto_metric_logging=False,
        parse_args=False,  # the run's record says it
        auto_log_co2=False,
        display_summary_level=0,
        log_env_details=None if key else False,
    )
    experiment = None
    no_code = without_callers_code(comet_ml)
    with Heard(secret=key) as heard, same_random_numbers(), no_code:
        try:
            experiment = comet_ml.start(
                api_key=key,
                workspace=account.workspace,
                project_name=account.project,
                mode="create",
                online=key is not None,
                experiment_config=config,
            )
        except Exception as error:  # of many kinds; the caller tells
            heard.add(error)
    if experiment is None or not experiment.alive:
        return None, heard
    heard.repeat()
    if key is None:
        experiment.set_pip_packages()  # of the environment, what needs no connection
    return experiment, heard
