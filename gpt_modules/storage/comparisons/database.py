"""The SQLite file of a store of comparisons: its tables, and how it is opened.

Write-ahead logging, so that a page, a labeler and a training run read while one of them writes; every commit is synced,
so that what was confirmed outlives the process and the machine. A file is a store by the mark in its header
(`application_id`), and of a version (`user_version`).
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from gpt_modules.errors import UserError
from gpt_modules.storage.durable import no_room, sync, temporary_for

VERSION = 2
_MARK = 0x47434D50  # "GCMP"
PATIENCE = 60.0  # seconds to wait for another writer, whose transactions take milliseconds
EXPECTED = "a store of comparisons (gpt compare makes one)"

TABLES = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sources (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, digest TEXT NOT NULL, settings TEXT NOT NULL,
    UNIQUE (name, digest, settings)
);
CREATE TABLE prompts (
    id INTEGER PRIMARY KEY, text TEXT UNIQUE, messages TEXT UNIQUE, CHECK ((text IS NULL) <> (messages IS NULL))
);
CREATE TABLE rounds (number INTEGER PRIMARY KEY CHECK (number >= 1), sampling TEXT NOT NULL);
CREATE TABLE tasks (
    id INTEGER PRIMARY KEY, round INTEGER NOT NULL REFERENCES rounds, prompt INTEGER NOT NULL REFERENCES prompts,
    content TEXT NOT NULL, UNIQUE (round, content)
);
CREATE TABLE answers (
    id INTEGER PRIMARY KEY, task INTEGER NOT NULL REFERENCES tasks, text TEXT NOT NULL,
    source INTEGER NOT NULL REFERENCES sources, ended INTEGER CHECK (ended IN (0, 1)),
    UNIQUE (task, text)
);
CREATE TABLE labelers (
    name TEXT PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('person', 'scores', 'file')), settings TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE votes (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, task INTEGER NOT NULL REFERENCES tasks,
    labeler TEXT NOT NULL REFERENCES labelers, made REAL NOT NULL, seconds REAL CHECK (seconds >= 0),
    note TEXT NOT NULL, superseded REAL
);
CREATE UNIQUE INDEX counting_votes ON votes (task, labeler) WHERE superseded IS NULL;
CREATE TABLE judgements (
    vote INTEGER NOT NULL REFERENCES votes, answer INTEGER NOT NULL REFERENCES answers,
    rank INTEGER NOT NULL CHECK (rank >= 1), score INTEGER CHECK (score BETWEEN 1 AND 7),
    PRIMARY KEY (vote, answer)
) WITHOUT ROWID;
CREATE TABLE flags (
    vote INTEGER NOT NULL, answer INTEGER NOT NULL, name TEXT NOT NULL,
    PRIMARY KEY (vote, answer, name), FOREIGN KEY (vote, answer) REFERENCES judgements
) WITHOUT ROWID;
CREATE TABLE claims (
    task INTEGER NOT NULL REFERENCES tasks, labeler TEXT NOT NULL REFERENCES labelers, expires REAL NOT NULL,
    PRIMARY KEY (task, labeler)
) WITHOUT ROWID;
"""
# A prompt is a text or a conversation (`Spelled`). A vote that counts has `superseded` NULL; the others say since when
# they do not. The content of a task is the SHA-256 of its prompt and its answers, in any order.
_EITHER = """
CREATE TEMP VIEW prompts AS
SELECT p.id AS id, p.text AS text, (SELECT messages FROM main.prompts q WHERE q.id = p.id) AS messages
FROM (SELECT NULL AS messages) none, main.prompts p
"""
# The table of version 1 or of now: `messages` is that of `q` where it has one, else that of `none`. So a reader goes on
# where another process upgrades the file meanwhile.
_UPGRADE = (
    "CREATE TEMP TABLE kept AS SELECT id, text, NULL AS messages FROM main.prompts",
    "DROP TABLE main.prompts",
    next(statement for statement in TABLES.split(";\n") if "TABLE prompts" in statement),
    "INSERT INTO main.prompts SELECT * FROM kept",
    "DROP TABLE kept",
    f"PRAGMA user_version = {VERSION}",
)


def is_store(path: Path) -> bool:
    """Whether a file has the mark of a store of any version.

    SQLite alone may open the file of a store: whoever closes it otherwise takes away all locks that this process has on
    it (https://sqlite.org/howtocorrupt.html, 2.2), and another process removes the log that is written to.
    """
    if not path.is_file():
        return False
    # As it lies there only where nothing can be written beside it: a store that is written to may look damaged so.
    for immutable in (0, 1):
        address = _address(path, "ro", immutable)
        try:
            with closing(sqlite3.connect(address, uri=True, timeout=PATIENCE)) as connection:
                return bool(connection.execute("PRAGMA application_id").fetchone() == (_MARK,))
        except sqlite3.OperationalError:
            continue
        except sqlite3.DatabaseError:  # it is no database
            return False
    return False


def create(path: Path) -> sqlite3.Connection:
    """A new store, or the one that is there.

    Raises:
        UserError: another file is there, or a store of another version; or it cannot be written.
    """
    if not path.exists():
        temporary = temporary_for(path)
        try:
            with told(path):
                _make(temporary)
                sync(temporary)
                _name(temporary, path)
                sync(path.parent)
        finally:
            for left in temporary.parent.glob(f"{temporary.name}*"):
                left.unlink(missing_ok=True)
    return connect(path)


def _name(temporary: Path, path: Path) -> None:
    """Give a new store its name, unless another process was faster."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        if not path.exists():
            temporary.rename(path)


def _make(path: Path) -> None:
    """A store without content, whole in its one file."""
    connection = _opened(path, "rwc")
    try:
        with transaction(path, connection):
            for statement in TABLES.split(";\n"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute(f"PRAGMA application_id = {_MARK}")
        connection.execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()


def connect(path: Path, writing: bool = True) -> sqlite3.Connection:
    """An existing store. One of version 1, whose prompts are all texts, is of this version once it is written to; who
    only reads it leaves it as it is.

    Raises:
        UserError: it is not there, not a store, of another version, or cannot be opened.
    """
    if not path.exists():
        raise UserError(f"{path}: found no such file, expected {EXPECTED}")
    if not is_store(path):
        raise UserError(f"{path}: found another file, expected {EXPECTED}")
    with told(path, writing):
        connection = _opened(path, "rw" if writing else "ro")
    try:
        if (version := _version_of(path, connection, writing)) not in (1, VERSION):
            raise UserError(f"{path}: found a store of version {version}, expected version {VERSION}")
        if version == 1:
            _upgrade(path, connection) if writing else _read_as_new(path, connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _version_of(path: Path, connection: sqlite3.Connection, writing: bool = True) -> int:
    with told(path, writing):
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _upgrade(path: Path, connection: sqlite3.Connection) -> None:
    """All of it or nothing; unless another process was faster. Ids stay, so that what refers to them does."""
    with told(path):
        connection.execute("PRAGMA foreign_keys = OFF")
    with transaction(path, connection):
        for statement in _UPGRADE if _version_of(path, connection) == 1 else ():
            connection.execute(statement)
    with told(path):
        connection.execute("PRAGMA foreign_keys = ON")


def _read_as_new(path: Path, connection: sqlite3.Connection) -> None:
    """A view of this connection alone, in memory, stands before the table of the same name."""
    with told(path, writing=False):
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(_EITHER)


@contextmanager
def transaction(path: Path, connection: sqlite3.Connection) -> Iterator[None]:
    """All that is written within, or nothing of it; others wait. Within another one it is a part of that.

    Raises:
        UserError: the disk is full or cannot be written, or the file is damaged.
    """
    if connection.in_transaction:
        yield
        return
    with told(path):
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            with suppress(sqlite3.Error):  # a full disk has rolled back already
                connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")


def check_whole(path: Path, connection: sqlite3.Connection, writing: bool = True) -> None:
    """Raises:
    UserError: a part of the file is damaged.
    """
    with told(path, writing):
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise UserError(f"{path}: is damaged ({' '.join(str(found).split())[:120]}), expected {EXPECTED}")


def _opened(path: Path, mode: str) -> sqlite3.Connection:
    """Where nothing can be written beside a file, not even the index that its readers share, and no commit lies in its
    log, it is read as it lies there.
    """
    try:
        return _configured(_address(path, mode))
    except sqlite3.OperationalError:
        log = path.with_name(f"{path.name}-wal")
        if mode != "ro" or (log.exists() and log.stat().st_size):
            raise
        return _configured(_address(path, mode, immutable=1))


def _address(path: Path, mode: str, immutable: int = 0) -> str:
    return f"file:{quote(str(path.absolute()))}?mode={mode}&immutable={immutable}"


def _configured(address: str) -> sqlite3.Connection:
    connection = sqlite3.connect(address, uri=True, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def told(path: Path, writing: bool = True) -> Iterator[None]:
    """Turn what SQLite raises of a disk or of damage into one line."""
    try:
        yield
    except OSError as error:
        raise no_room(path, error) from error
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise UserError(
                f"{path}: another process has been writing for {PATIENCE:.0f} s, expected it free"
            ) from error
        if not writing:
            beside = f"the right to read, and room beside it for its index ({path.name}-shm)"
            raise UserError(f"{path}: could not be read ({error}), expected {beside}") from error
        raise no_room(path, error) from error
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
            raise
        raise UserError(f"{path}: cannot be read ({error}), expected {EXPECTED}") from error
