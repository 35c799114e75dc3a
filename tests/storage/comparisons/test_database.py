"""A store is known by its content, and what is none is refused in one line."""

import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpt_modules.errors import UserError
from gpt_modules.storage.comparisons import Answer, ComparisonStore, Source, database, is_store, spelled, votes_digest
from gpt_modules.storage.comparisons.store import content_of


def test_made_once(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    ComparisonStore.create(path).round_of("first")
    assert ComparisonStore.create(path).rounds() == [1]
    assert is_store(path)


def test_what_is_no_store(tmp_path: Path) -> None:
    text, other, missing = tmp_path / "text.db", tmp_path / "other.db", tmp_path / "missing.db"
    text.write_text("SQLite format 3? No.")
    sqlite3.connect(other).execute("CREATE TABLE votes (id)").connection.close()
    for path in (text, other):
        assert not is_store(path)
        with pytest.raises(UserError, match=rf"{path.name}: found another file, expected a store of comparisons"):
            ComparisonStore.create(path)
    with pytest.raises(UserError, match=r"missing.db: found no such file"):
        ComparisonStore.open(missing)
    assert not missing.exists()


def test_a_store_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    ComparisonStore.create(path).close()
    sqlite3.connect(path).execute("PRAGMA user_version = 7").connection.close()
    with pytest.raises(UserError, match=r"c.db: found a store of version 7, expected version 2"):
        ComparisonStore.open(path)


def of_version_1(path: Path) -> None:
    """As it was made when prompts were texts alone, with a vote on one of them."""
    store = sqlite3.connect(path)
    old = "CREATE TABLE prompts (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE)"
    begin, _, rest = database.TABLES.partition("CREATE TABLE prompts (")
    store.executescript(f"{begin}{old};{rest.partition(';')[2]}")
    store.executescript(f"""
    PRAGMA user_version = 1; PRAGMA application_id = {database._MARK}; PRAGMA journal_mode = WAL;
    INSERT INTO sources VALUES (1, 'm', '', '{{}}');
    INSERT INTO prompts VALUES (7, 'other'), (8, 'prompt');
    INSERT INTO rounds VALUES (1, 'first');
    INSERT INTO tasks VALUES (3, 1, 8, '{content_of("prompt", ["a", "b"])}');
    INSERT INTO answers VALUES (1, 3, 'a', 1, 1), (2, 3, 'b', 1, 0);
    INSERT INTO labelers VALUES ('ann', 'person', '');
    INSERT INTO votes VALUES (1, 'k', 3, 'ann', 1.0, 2.0, '', NULL);
    INSERT INTO judgements VALUES (1, 1, 1, 7), (1, 2, 2, 3);
    """)
    store.close()


def test_a_store_without_conversations_is_read_as_it_is_and_takes_them_once_it_is_written_to(tmp_path: Path) -> None:
    path, asked = tmp_path / "c.db", [{"role": "user", "content": "hi"}]
    of_version_1(path)
    before, digest = path.read_bytes(), votes_digest(path)
    with ComparisonStore.open(path, writing=False) as reader:
        (known,) = reader.rankings()
        assert (known.task, known.prompt, known.ranks) == (3, "prompt", (1, 2))
        assert reader.prompts(1) == {spelled("prompt")}
    assert path.read_bytes() == before
    with ComparisonStore.open(path, writing=False) as reader, ComparisonStore.create(path) as store:
        assert store.add_task(1, "prompt", [Answer("b", Source("m")), Answer("a", Source("m"))]) is None
        assert store.add_task(1, asked, [Answer("b", Source("m")), Answer("a", Source("m"))]) == 4
        assert [task.prompt for task in store.tasks()] == ["prompt", asked]
        assert [*reader.rankings()] == [*store.rankings()] == [known]
    assert votes_digest(path) == digest
    raw = sqlite3.connect(path)
    assert raw.execute("PRAGMA user_version").fetchone() == (2,)
    assert raw.execute("PRAGMA foreign_key_check").fetchall() == []
    assert raw.execute("SELECT id, text FROM prompts ORDER BY id").fetchall() == [
        (7, "other"),
        (8, "prompt"),
        (9, None),
    ]
    raw.close()


def test_an_upgrade_that_is_cut_off_leaves_the_old_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.db"
    of_version_1(path)
    monkeypatch.setattr(database, "_UPGRADE", (*database._UPGRADE[:-1], "no statement"))
    with pytest.raises(UserError, match=r"c.db: "):
        ComparisonStore.open(path)
    monkeypatch.undo()
    with ComparisonStore.open(path) as store:
        assert [found.prompt for found in store.rankings()] == ["prompt"]


def test_a_damaged_store(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    with ComparisonStore.create(path) as store:
        store.round_of("first")
    content = bytearray(path.read_bytes())
    content[4096:] = bytes(len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"c.db: .*, expected a store of comparisons"):
        ComparisonStore.open(path).round_of("second")
    with pytest.raises(UserError, match=r"c.db: .*, expected a store of comparisons"):
        ComparisonStore.open(path, writing=False).check()


@pytest.mark.parametrize("place", [3000, 8192, 20000])
def test_damage_anywhere_is_found_before_work(tmp_path: Path, place: int) -> None:
    path = tmp_path / "c.db"
    with ComparisonStore.create(path) as store:
        number = store.round_of("first")
        for i in range(60):
            store.add_task(number, f"prompt {i}", [Answer(f"{text} {i}" * 20, Source("m")) for text in "ab"])
        store.check()
    content = bytearray(path.read_bytes())
    content[place : place + 3000] = bytes(range(7, 247)) * 13
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"c.db: .*, expected a store of comparisons"), ComparisonStore.open(path) as it:
        it.check()


def test_a_store_is_whole_in_its_file_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process killed while it makes one leaves nothing under the name; what it makes is known at once."""
    path = tmp_path / "c.db"

    def killed(*names: object) -> None:
        assert is_store(Path(str(names[0])))
        raise KeyboardInterrupt

    monkeypatch.setattr("os.link", killed)
    with pytest.raises(KeyboardInterrupt):
        ComparisonStore.create(path)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    with ComparisonStore.create(path):
        assert is_store(path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"c.db: could not be written \(unable to open database file"):
        ComparisonStore.create(tmp_path / "nowhere" / "c.db")


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*names: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refused)
    with ComparisonStore.create(tmp_path / "c.db") as store:
        assert store.round_of("first") == 1
    with ComparisonStore.create(tmp_path / "c.db") as store:
        assert store.rounds() == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["c.db"]


def test_nobody_takes_away_the_log_of_an_open_store(tmp_path: Path) -> None:
    """Whoever opens and closes the file otherwise than SQLite ends this process's locks; another process would then
    take itself for the last one, and remove the log that commits go to.
    """
    path = tmp_path / "c.db"
    with ComparisonStore.create(path) as store:
        assert is_store(path)
        ComparisonStore.open(path).close()
        ComparisonStore.open(path, writing=False).close()
        store.round_of("first")
        script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM rounds'); c.close()"
        subprocess.run([sys.executable, "-c", script, str(path)], check=True)
        assert path.with_name("c.db-wal").exists()
        store.round_of("second")
    with ComparisonStore.open(path) as store:
        assert store.rounds() == [1, 2]


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_reader_needs_no_room(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    with ComparisonStore.create(path) as store:
        store.round_of("first")
    with full_disk(), ComparisonStore.open(path, writing=False) as store:
        store.check()
        assert store.rounds() == [1]
    with full_disk(), pytest.raises(UserError, match=r"c.db: could not be written \(disk I/O error"):
        ComparisonStore.open(path)


def test_a_reader_leaves_no_commit_out(tmp_path: Path) -> None:
    """What a killed process committed may lie in the log alone, which needs the index to be read."""
    path, copy = tmp_path / "c.db", tmp_path / "copy.db"
    with ComparisonStore.create(path) as store:
        store.round_of("first")
        for ending in ("", "-wal"):
            shutil.copy(f"{path}{ending}", f"{copy}{ending}")
    line = (
        r"copy.db: could not be read \(disk I/O error\), expected the right to read, and room beside it for its index"
    )
    with full_disk(), pytest.raises(UserError, match=line):
        ComparisonStore.open(copy, writing=False)
    with ComparisonStore.open(copy, writing=False) as store:
        assert store.rounds() == [1]
