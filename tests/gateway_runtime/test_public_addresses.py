from ipaddress import ip_address

import pytest

from gateway_runtime.public_addresses import is_public


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.1.2.3",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",  # where clouds keep their credentials
        "100.64.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "192.88.99.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "fe80::1",
        "fec0::1",
        "fc00::1",
        "fd12:3456::1",
        "ff02::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "2002:7f00:1::",  # 6to4 of 127.0.0.1
        "2002:a00:1::",
        "2001:0:4136:e378:8000:63bf:f5ff:fffe",  # Teredo of 10.0.0.1
        "64:ff9b::127.0.0.1",
        "64:ff9b::10.0.0.1",
        "64:ff9b:1::1",
        "192.0.0.1",
        "192.0.0.9",
        "192.0.0.192",
        "192.0.0.170",
        "::ffff:192.0.0.192",
        "64:ff9b::192.0.0.192",
        "2002:c000:c0::",  # 6to4 of 192.0.0.192
        "2001:2::1",
        "fd00:ec2::254",
        "168.63.129.16",
        "192.31.196.1",
        "192.52.193.1",
        "192.175.48.42",
        "198.51.100.1",
        "203.0.113.1",
        "100.100.100.200",
        "::ffff:168.63.129.16",
        "64:ff9b::168.63.129.16",
        "2002:a83f:8110::1",  # 6to4 of 168.63.129.16
        "2001:0:4136:e378:8000:63bf:f7f7:f7f7",  # Teredo of 8.8.8.8
        "2001:4:112::1",  # AS112
        "2001:20::1",
        "2620:4f:8000::1",
        "3fff::1",
        "3fff:fff:ffff::1",
        "5f00::1",
        "100::1",
        "100:0:0:1::1",
        "::ffff:0:8.8.8.8",
        "4000::1",
    ],
)
def test_address_that_is_not_public_is_refused(address: str) -> None:
    assert not is_public(ip_address(address), 443)


@pytest.mark.parametrize(
    "address",
    [
        "93.184.215.14",
        "8.8.8.8",
        "2606:4700::1111",
        "2001:4860:4860::8888",
        "192.0.1.1",
        "168.63.129.17",
        "2001:200::1",
        "::ffff:8.8.8.8",
        "2002:808:808::1",
        "64:ff9b::8.8.8.8",
    ],
)
def test_public_address_is_permitted(address: str) -> None:
    assert is_public(ip_address(address), 443)


@pytest.mark.parametrize(
    ("port", "permitted"), [(80, True), (443, True), (8443, True), (22, False), (25, False), (5432, False), (0, False)]
)
def test_only_ports_of_web_servers_are_permitted(port: int, permitted: bool) -> None:
    assert is_public(ip_address("8.8.8.8"), port) is permitted
