"""Storage of an Optuna study: a database or a journal file, opened from its URL. Optuna is an optional extra."""

import importlib.util
import json
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from utils.addresses import remove_credentials, remove_credentials_from
from utils.errors import UserError
from utils.files import append_line

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


def load_optuna() -> ModuleType:
    """Import Optuna. Raise UserError if it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise UserError("--evolve-storage needs Optuna: pip install 'optuna>=4'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_storage(url: str) -> "BaseStorage":
    """Open a database (sqlite:///file, postgresql://..., mysql://...) or a journal file."""
    shown = remove_credentials(url)
    if "://" not in url or url.startswith("journal://"):
        return _open_journal(url, shown)
    optuna = load_optuna()
    settings = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    for pause in (1, 2, 4, 0):
        try:
            return optuna.storages.RDBStorage(_with_driver(url), settings)
        except ImportError as error:
            raise UserError(
                f"--evolve-storage {shown}: its driver is absent; "
                "pip install 'psycopg[binary]' (PostgreSQL) or mysqlclient (MySQL)"
            ) from error
        except Exception as error:  # SQLAlchemy and each driver have their own classes
            reason = remove_credentials_from(str(error.__cause__ or error).strip().splitlines()[0], url)
            if not pause or not re.search("duplicate|already exists", reason):  # two machines create the tables at once
                raise UserError(f"--evolve-storage {shown}: {reason}") from error
            time.sleep(pause)
    raise AssertionError("the last round returns or raises")


def outage_errors() -> tuple[type[Exception], ...]:
    """Return what a storage raises that does not answer, or whose disk is full."""
    errors: list[type[Exception]] = [load_optuna().exceptions.StorageInternalError, OSError, json.JSONDecodeError]
    with suppress(ImportError):
        from sqlalchemy.exc import SQLAlchemyError

        errors.append(SQLAlchemyError)
    return tuple(errors)


def _open_journal(url: str, shown: str) -> "BaseStorage":
    optuna = load_optuna()
    file = Path(url.removeprefix("journal://"))
    shown = shown.removeprefix("journal://")
    if not file.absolute().parent.is_dir():
        raise UserError(f"--evolve-storage {shown}: there is no folder {Path(shown).absolute().parent}")
    from optuna.storages import journal

    # creating a symbolic link, the usual lock, needs a privilege on Windows
    lock = (journal.JournalFileOpenLock if os.name == "nt" else journal.JournalFileSymlinkLock)(str(file))

    class SafeBackend(journal.JournalFileBackend):
        """Journal that a full disk does not damage, and that is not begun again if its file is gone for a while."""

        def append_logs(self, logs: "list[dict[str, Any]]") -> None:
            lock.acquire()
            try:
                append_line(file, "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs))
            finally:
                with suppress(RuntimeError):  # another machine has broken the lock after a long outage
                    lock.release()

    return optuna.storages.JournalStorage(SafeBackend(str(file), lock_obj=lock))


def _with_driver(url: str) -> str:
    """Add the installed driver (psycopg) to a `postgresql://` URL."""
    plain = re.match(r"postgres(ql)?://", url)
    if plain and importlib.util.find_spec("psycopg"):
        return "postgresql+psycopg://" + url[plain.end() :]
    return url
