"""Ask a destination whether it would take our results, without sending any: C-ECHO and the sender's own contexts.

A C-ECHO alone proves little: archives answer it and then refuse Structured Reports.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.uid import UID, ComprehensiveSRStorage, SecondaryCaptureImageStorage
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from dicomnode.dicom.status import DimseStatus
from dicomnode.services.association import application_entity
from dicomnode.services.sender import TRANSFER_SYNTAXES

RESULT_SOP_CLASSES = (ComprehensiveSRStorage, SecondaryCaptureImageStorage)
"""What the node delivers: report and overlay."""


@dataclass(frozen=True)
class Address:
    """Where an AE listens."""

    ae_title: str
    host: str
    port: int


@dataclass(frozen=True)
class Answer:
    """What the peer said."""

    failure: str = ""
    """Why there was no association; empty: there was one."""
    echoed: bool = False
    refused: tuple[str, ...] = ()
    """Names of the proposed SOP classes that were not accepted."""


def probe(calling_ae_title: str, peer: Address, sop_class_uids: Sequence[UID], timeout_s: float = 10.0) -> Answer:
    """Associate with `peer`, propose Verification and these SOP classes as the sender does, send a C-ECHO, release."""
    try:
        # pynetdicom tells a refused connection, a wrong name and a firewall apart in its log only.
        socket.create_connection((peer.host, peer.port), timeout_s).close()
    except OSError as error:
        return Answer(failure=f"no connection ({error.strerror or error})")
    entity = application_entity(calling_ae_title)
    entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = timeout_s
    entity.add_requested_context(Verification)
    for sop_class_uid in sop_class_uids:
        entity.add_requested_context(sop_class_uid, TRANSFER_SYNTAXES)
    association = entity.associate(peer.host, peer.port, ae_title=peer.ae_title)
    if not association.is_established:
        return Answer(failure=_failure(association))
    try:
        accepted = {context.abstract_syntax for context in association.accepted_contexts}
        return Answer(
            echoed=Verification in accepted and association.send_c_echo().get("Status") == DimseStatus.SUCCESS,
            refused=tuple(uid.name for uid in sop_class_uids if uid not in accepted),
        )
    finally:
        if association.is_established:
            association.release()


def _failure(association: Association) -> str:
    if association.is_rejected:
        answer = association.acceptor.primitive
        return f"it rejected the association ({answer.result_str}: {answer.reason_str})" if answer else "it rejected us"
    return "it ended the association without an answer, or accepted no presentation context"
