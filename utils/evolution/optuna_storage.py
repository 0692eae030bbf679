"""Storage of an Optuna study: a database or a journal file, opened from its URL. Optuna is an optional extra."""

import importlib.util
import re
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from utils.errors import UserError

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


def mask_password(url: str) -> str:
    """Replace the password in a database URL by ***."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", url)


def open_storage(url: str, heartbeat: int, grace: int) -> "BaseStorage":
    """Open a database (sqlite:///file, postgresql://..., mysql://...) or a journal file.

    heartbeat, grace: seconds between signs of life, and without one until a machine counts as dead.
    """
    if "://" not in url or url.startswith("journal://"):
        return _open_journal(url)
    optuna = load_optuna()
    settings = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    for pause in (1, 2, 4, 0):
        try:
            return optuna.storages.RDBStorage(
                _with_driver(url), settings, heartbeat_interval=heartbeat, grace_period=grace
            )
        except ImportError as error:
            raise UserError(
                f"--evolve-storage {mask_password(url)}: its driver is absent; "
                "pip install 'psycopg[binary]' (PostgreSQL) or mysqlclient (MySQL)"
            ) from error
        except Exception as error:  # SQLAlchemy and each driver have their own classes
            reason = mask_password(str(error.__cause__ or error).strip().splitlines()[0])
            if not pause or not re.search("duplicate|already exists", reason):  # two machines create the tables at once
                raise UserError(f"--evolve-storage {mask_password(url)}: {reason}") from error
            time.sleep(pause)
    raise AssertionError("the last round returns or raises")


def _open_journal(url: str) -> "BaseStorage":
    optuna = load_optuna()
    file = Path(url.removeprefix("journal://"))
    if not file.absolute().parent.is_dir():
        raise UserError(f"--evolve-storage {url}: there is no folder {file.absolute().parent}")
    from optuna.storages.journal import JournalFileBackend

    return optuna.storages.JournalStorage(JournalFileBackend(str(file)))


def _with_driver(url: str) -> str:
    """Add the installed driver (psycopg) to a `postgresql://` URL."""
    plain = re.match(r"postgres(ql)?://", url)
    if plain and importlib.util.find_spec("psycopg"):
        return "postgresql+psycopg://" + url[plain.end() :]
    return url
