"""How the configuration of a transceiver's workers follows from that of all."""

from __future__ import annotations

import msgspec

from voicegate.config import Config
from voicegate.roles.transceiver.process import worker_config

URL = "ws://127.0.0.1:9/v1/realtime"


def test_each_worker_has_an_id_and_ports_of_its_own() -> None:
    settings = {"id": 20, "link_listen": "[::1]:4000", "control_listen": "127.0.0.1:5000", "workers": 4}
    settings["ops_listen"] = "127.0.0.1:6000"
    config = msgspec.convert({"transceiver": settings}, type=Config)
    own = worker_config(config, 3, URL)
    assert (own.transceiver.id, own.transceiver.workers) == (23, 1)
    assert own.transceiver.link_listen == "[::1]:4003"
    assert own.transceiver.control_listen == "127.0.0.1:5003"
    assert own.transceiver.ops_listen == "", "the page of all is the supervisor's"
    assert own.agent.url == URL


def test_what_is_to_be_chosen_for_one_is_chosen_for_each() -> None:
    own = worker_config(msgspec.convert({"transceiver": {"workers": 2}}, type=Config), 1, "")
    assert own.transceiver.id == 0
    assert own.transceiver.link_listen == own.transceiver.control_listen == "127.0.0.1:0"
