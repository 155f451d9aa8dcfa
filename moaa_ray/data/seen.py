"""What is known of each row id, for millions of ids: about 60 bytes an id, where a dict takes 200."""

import sqlite3
from dataclasses import dataclass

from moaa_ray.data.conversations import digest_of
from moaa_ray.data.locations import Place


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenRow:
    """The digest of a row, and where it stands in which source."""

    digest: bytes
    source: int
    place: Place


class Seen:
    """Ids met so far; looks into `before` as well."""

    def __init__(self, before: "Seen | None" = None):
        self._before = before
        # Handed on, never shared: whoever reads the rows of a stage may do it in another thread.
        self._table = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._table.execute(
            "CREATE TABLE seen(id BLOB PRIMARY KEY, digest BLOB, source INT, file INT, line INT) WITHOUT ROWID"
        )

    def __len__(self) -> int:
        """How many ids were added here."""
        return self._table.execute("SELECT count(*) FROM seen").fetchone()[0]

    def find(self, row_id: str) -> SeenRow | None:
        """The row with this id."""
        query = "SELECT digest, source, file, line FROM seen WHERE id = ?"
        found = self._table.execute(query, (digest_of(row_id),)).fetchone()
        if found is None:
            return self._before.find(row_id) if self._before else None
        digest, source, *place = found
        return SeenRow(digest=digest, source=source, place=(place[0], place[1]))

    def add(self, row_id: str, digest: bytes, place: Place = (0, 0), *, source: int = 0) -> None:
        """Of two rows with one id the one that is added last stays."""
        self._table.execute("REPLACE INTO seen VALUES (?, ?, ?, ?, ?)", (digest_of(row_id), digest, source, *place))
