"""Peers: Application Entities that may send to us or receive results. Kept in the ledger, so that a change needs no restart."""

from collections.abc import Iterable

from sqlalchemy import Engine, func, select
from sqlalchemy.exc import IntegrityError

from dicomnode.errors import AlreadyExists, ConfigurationError, NotFound, StillInUse
from dicomnode.storage.database import Clock, reading, utc_now, writing
from dicomnode.storage.mapping import columns, frozen
from dicomnode.storage.rows import Ae, DeliveryState, NewAe
from dicomnode.storage.schema import AeTable, DeliveryTable


class Peers:
    """The configured Application Entities."""

    def __init__(self, engine: Engine, now: Clock = utc_now) -> None:
        self.engine = engine
        self._now = now

    def all(self) -> list[Ae]:
        """List them by AE title."""
        with reading(self.engine) as session:
            return [frozen(Ae, row) for row in session.scalars(select(AeTable).order_by(AeTable.ae_title))]

    def find(self, ae_title: str) -> Ae | None:
        """Read one, None where it is not configured."""
        with reading(self.engine) as session:
            row = session.scalar(select(AeTable).where(AeTable.ae_title == ae_title))
            return frozen(Ae, row) if row is not None else None

    def add(self, new: NewAe) -> Ae:
        """Add a peer.

        Raises:
            AlreadyExists: an AE with this title is configured.
            ConfigurationError: a destination without host or port, or a port out of range.
        """
        _check(new)
        try:
            with writing(self.engine) as session:
                row = AeTable(**columns(new), created_at=self._now())
                session.add(row)
                session.flush()
                return frozen(Ae, row)
        except IntegrityError as error:
            raise AlreadyExists(f"AE {new.ae_title} is configured already; use: dicomnode ae change") from error

    def change(self, new: NewAe) -> Ae:
        """Give the peer of this title other properties. What is pending for it goes to its new address.

        Raises:
            NotFound: it is not configured.
            ConfigurationError: as `add`.
        """
        _check(new)
        with writing(self.engine) as session:
            row = session.scalar(select(AeTable).where(AeTable.ae_title == new.ae_title))
            if row is None:
                raise NotFound(f"AE {new.ae_title} is not configured; see: dicomnode ae list")
            for name, value in columns(new).items():
                setattr(row, name, value)
            return frozen(Ae, row)

    def add_missing(self, peers: Iterable[NewAe]) -> int:
        """Import peers at a first start; those that exist stay as they are. Give the number that was added."""
        added = 0
        for new in peers:
            if self.find(new.ae_title) is None:
                self.add(new)
                added += 1
        return added

    def remove(self, ae_title: str, *, even_if_pending: bool = False) -> None:
        """Remove a peer. With `even_if_pending` its open deliveries are held for a person by the sender, not deleted.

        Raises:
            NotFound: it is not configured.
            StillInUse: deliveries to it are not through.
        """
        with writing(self.engine) as session:
            row = session.scalar(select(AeTable).where(AeTable.ae_title == ae_title))
            if row is None:
                raise NotFound(f"AE {ae_title} is not configured; see: dicomnode ae list")
            waiting = session.scalar(
                select(func.count()).where(
                    DeliveryTable.destination == ae_title, DeliveryTable.state == DeliveryState.PENDING.value
                )
            )
            if waiting and not even_if_pending:
                raise StillInUse(
                    f"{waiting} deliveries to {ae_title} are pending; let them finish, correct its address (dicomnode ae change), "
                    "or remove it with --force: then they wait for a person"
                )
            session.delete(row)


def _check(new: NewAe) -> None:
    if new.port is not None and not 1 <= new.port <= 65535:
        raise ConfigurationError(f"AE {new.ae_title}: port {new.port}; expected 1 to 65535")
    if new.receives_results and (not new.host or new.port is None):
        raise ConfigurationError(f"AE {new.ae_title} shall receive results: give it a host and a port")
