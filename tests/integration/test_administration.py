"""An administrator at the command line beside a running node and a real archive."""

import json
from pathlib import Path

import pytest
from pydicom.uid import generate_uid

from benchmarks.programs import store, wait_until
from dicomnode.demo import ARCHIVE, free_ports
from dicomnode.storage.rows import DeliveryState
from tests.integration.conftest import StraightLine
from tests.written_objects import radiograph_dataset, write

pytestmark = pytest.mark.e2e

FIRST_ATTEMPT_TIMEOUT_S = 180.0


def test_a_sound_node_is_told_as_one(straight_line: StraightLine) -> None:
    checked = straight_line.node.command("check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    words = " ".join(checked.stdout.split())
    assert "the node is running" in words or "a node is running" in words
    assert "answers C-ECHO, takes reports and overlays" in words
    tested = straight_line.node.command("ae", "test", ARCHIVE)
    assert (tested.returncode, "takes reports and overlays" in tested.stdout) == (0, True)


def test_a_second_node_on_the_same_data_is_refused(straight_line: StraightLine) -> None:
    second = straight_line.node.command("serve")
    assert second.returncode == 2
    assert "runs already" in second.stderr


def test_what_could_not_be_delivered_is_delivered_once_the_address_is_mended(
    straight_line: StraightLine, tmp_path: Path
) -> None:
    node, right_port = straight_line.node, str(straight_line.orthanc.port)
    uid = str(generate_uid())
    file = write(tmp_path / "hip.dcm", radiograph_dataset(SOPInstanceUID=uid))
    try:
        assert node.command("ae", "change", ARCHIVE, "--port", str(free_ports(1)[0])).returncode == 0
        store(node, [file])
        wait_until(lambda: failed_once(straight_line, uid), FIRST_ATTEMPT_TIMEOUT_S, "no attempt to deliver failed")
        assert uid in node.command("jobs", "--state", "pending").stdout
        tested = node.command("ae", "test", ARCHIVE)
        assert (tested.returncode, "Connection refused" in tested.stdout) == (1, True)
        removed = node.command("ae", "remove", ARCHIVE)
        assert (removed.returncode, "dicomnode ae change" in removed.stderr) == (1, True)
        # Here, for with the right address the sender may be faster than the command.
        assert "deliveries tried again" in node.command("retry", uid).stdout
    finally:
        node.command("ae", "change", ARCHIVE, "--port", right_port)
    assert node.command("retry", uid).returncode == 0
    job = straight_line.delivered(uid)
    assert all(entry.delivery.state is DeliveryState.DELIVERED for entry in job.deliveries)
    shown = node.command("show", uid, "--json")
    assert json.loads(shown.stdout) == [dict(result.figures) for result in job.results]
    assert "waits for nothing" in node.command("retry", uid).stdout


def failed_once(straight_line: StraightLine, sop_instance_uid: str) -> bool:
    found = [job for job in straight_line.ledger.jobs() if job.instance.sop_instance_uid == sop_instance_uid]
    return bool(found) and any(entry.history for entry in straight_line.ledger.job(found[0].instance.id).deliveries)
