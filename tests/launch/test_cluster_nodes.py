"""A cluster that is not there is named at once, before Ray tries for minutes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.launch.cluster_nodes import check_reachable, token_is_kept


def test_an_address_where_somebody_listens_and_those_without_a_port_pass() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_reachable(f"127.0.0.1:{server.getsockname()[1]}")
    for address in ("auto", "local"):
        check_reachable(address)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UserError, match=rf"--ray 127\.0\.0\.1:{port}: nobody answers there .*ray start --head"):
        check_reachable(f"127.0.0.1:{port}")
    with pytest.raises(UserError, match="nobody answers there"):
        check_reachable("no-such-host.invalid:6379")


@pytest.mark.parametrize("address", ["127.0.0.1:", "127.0.0.1:x", "127.0.0.1:99999"])
def test_no_port(address: str) -> None:
    with pytest.raises(UserError, match=r"--ray 127\.0\.0\.1"):
        check_reachable(address)


def test_a_token_is_shown_where_ray_keeps_one(tmp_path: Path) -> None:
    assert not token_is_kept(tmp_path, {})
    assert token_is_kept(tmp_path, {"RAY_AUTH_TOKEN": "x"})
    assert token_is_kept(tmp_path, {"RAY_AUTH_TOKEN_PATH": "y"})
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("x")
    assert token_is_kept(tmp_path, {})
