from __future__ import annotations

import ipaddress
from itertools import combinations
from pathlib import Path

import pytest

from lab import config as lab_config
from lab.config import HIGHEST_INDEX, SERVICE_ADDRESSES, LabConfig
from lab.failure import LabError


@pytest.mark.parametrize(("name", "index"), [("demo", 1), ("test", 2), ("bench", 3)])
def test_well_known_labs_have_their_index(name: str, index: int) -> None:
    assert LabConfig.named(name).index == index


@pytest.mark.parametrize(
    ("name", "index"),
    [
        pytest.param("mine", None, id="no index"),
        pytest.param("mine", 2, id="index of another lab"),
        pytest.param("mine", HIGHEST_INDEX + 1, id="index too high"),
        pytest.param("demo", 5, id="another index for a well-known lab"),
        pytest.param("Mine", 5, id="upper case"),
        pytest.param("../mine", 5, id="not a name"),
        pytest.param("", 5, id="empty"),
    ],
)
def test_refuses_a_lab_that_could_meet_another(name: str, index: int | None) -> None:
    with pytest.raises(LabError, match="Next: "):
        LabConfig.named(name, index=index)


def test_labs_share_no_address_and_no_name() -> None:
    labs = [LabConfig("lab", index) for index in range(1, HIGHEST_INDEX + 1)]
    ranges = [ipaddress.ip_network(net) for lab in labs for net in (lab.pod_subnet, lab.service_subnet)]
    ranges += [ipaddress.ip_network(f"{lab.host_address}/30", strict=False) for lab in labs]
    assert not [pair for pair in combinations(ranges, 2) if pair[0].overlaps(pair[1])]
    assert len({(lab.link, lab.cgroup) for lab in labs}) == len(labs)
    assert all(len(lab.link) <= 15 for lab in labs), "Linux cuts names of interfaces"


def test_fixed_service_addresses_are_where_kubernetes_hands_out_last() -> None:
    lab = LabConfig.named("demo")
    network = ipaddress.ip_network(lab.service_subnet)
    reserved = min(max(16, network.num_addresses // 16), 256)
    for service in SERVICE_ADDRESSES:
        address = ipaddress.ip_address(lab.service_address(service))
        assert 0 < int(address) - int(network.network_address) < reserved
    assert len(set(SERVICE_ADDRESSES.values())) == len(SERVICE_ADDRESSES)


def test_secret_is_private_and_stays_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_config, "PROJECT", tmp_path)
    lab = LabConfig.named("demo")
    first = lab.secret("weaviate-api-key")
    assert first == LabConfig.named("demo").secret("weaviate-api-key")
    assert len(first) >= 40
    assert lab.secret("s3-secret-key") != first
    assert lab.secret_file("weaviate-api-key").stat().st_mode & 0o777 == 0o600
    assert lab.secret_file("weaviate-api-key").parent.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in lab.secret_file("weaviate-api-key").parent.iterdir()} == {
        "weaviate-api-key",
        "s3-secret-key",
    }
