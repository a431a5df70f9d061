"""Ask a destination whether it would take our results, without sending any: C-ECHO and the sender's own contexts.

A C-ECHO alone proves little: archives answer it and then refuse Structured Reports.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

SUCCESS = 0x0000


@dataclass(frozen=True)
class Address:
    """Where an AE listens."""

    ae_title: str
    host: str
    port: int


@dataclass(frozen=True)
class Proposal:
    """A SOP class with the transfer syntaxes that the sender would offer for it."""

    sop_class_uid: str
    transfer_syntax_uids: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the SOP class."""
        return UID(self.sop_class_uid).name


@dataclass(frozen=True)
class Answer:
    """What the peer said."""

    failure: str = ""
    """Why there was no association; empty: there was one."""
    echoed: bool = False
    refused: tuple[str, ...] = ()
    """Names of the proposed SOP classes that were not accepted."""


def probe(calling_ae_title: str, peer: Address, proposals: Sequence[Proposal], timeout_s: float = 10.0) -> Answer:
    """Associate with `peer`, propose Verification and `proposals`, send a C-ECHO, release."""
    entity = AE(ae_title=calling_ae_title)
    entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = timeout_s
    entity.add_requested_context(Verification)
    for proposal in proposals:
        entity.add_requested_context(proposal.sop_class_uid, list(proposal.transfer_syntax_uids))
    association = entity.associate(peer.host, peer.port, ae_title=peer.ae_title)
    if not association.is_established:
        return Answer(failure=_failure(association))
    try:
        accepted = {context.abstract_syntax for context in association.accepted_contexts}
        return Answer(
            echoed=Verification in accepted and association.send_c_echo().get("Status") == SUCCESS,
            refused=tuple(proposal.name for proposal in proposals if proposal.sop_class_uid not in accepted),
        )
    finally:
        if association.is_established:
            association.release()


def _failure(association: Association) -> str:
    if association.is_rejected:
        answer = association.acceptor.primitive
        return f"it rejected the association ({answer.result_str}: {answer.reason_str})" if answer else "it rejected us"
    if association.is_aborted:
        return "no connection, or it was aborted before an answer"
    return "nothing answers there"
