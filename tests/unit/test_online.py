"""Without a network, without the model or with a dead server: within seconds, a sentence that names it."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components.core import online
from components.core.errors import CheckpointError, DataError, SettingsError
from components.denoisers import load
from components.settings.data import Model, Pretrain
from components.stages.common.workspace import Workspace
from components.stages.pretrain import pretrain
from components.tasks.rows import load_rows
from components.tracking import store
from tests.messages import has_remedy

pytestmark = pytest.mark.e2e

SECONDS = 5.0


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def nowhere(silent: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that never answers, with an empty cache; no variable says that there is no network."""
    from huggingface_hub import constants

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", silent)
    if "datasets.config" in sys.modules:
        monkeypatch.setattr(sys.modules["datasets.config"], "HF_HUB_OFFLINE", False)
    online.offline_unless_hub_answers.cache_clear()
    yield
    online.offline_unless_hub_answers.cache_clear()


def test_a_server_that_never_answers_is_given_up_within_the_time(silent: str) -> None:
    begin = time.perf_counter()
    assert not online.answers(silent, 0.3) and not online.answers("http://127.0.0.1:9", 0.3)
    assert time.perf_counter() - begin < 2


def test_a_server_that_answers_anything_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(405)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        assert online.answers(f"http://user:secret@127.0.0.1:{server.server_address[1]}/path", 10)
        server.shutdown()


@pytest.mark.usefixtures("nowhere")
def test_a_model_that_is_not_there_is_named_within_seconds(tmp_path: Path) -> None:
    import transformers.utils.hub  # noqa: F401 (its import is no part of the time)

    begin = time.process_time(), time.perf_counter()
    with pytest.raises(CheckpointError, match="absent/name") as caught:
        load("absent/name")
    assert time.perf_counter() - begin[1] < SECONDS + 10 * (time.process_time() - begin[0])
    assert has_remedy(str(caught.value))
    model = Model(source="absent/name", layout="llada", revision=None, dtype="float32", rows={})
    shape = Pretrain(seed=0, width=8, layers=1, heads=1, inner=8, steps=1, learning_rate=0.1, warmup=0)
    with pytest.raises(CheckpointError, match="absent/name"):
        pretrain(Workspace(tmp_path, "p"), {"m": model}, shape, "m")


@pytest.mark.parametrize("path", ["data/smoke/llada", "./absent", "/absent/model", "absent/"])
def test_a_folder_that_is_not_there_is_not_sought_on_the_hub(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.denoisers.checkpoint.offline_unless_hub_answers", lambda: pytest.fail("asked"))
    with pytest.raises(CheckpointError, match="no such folder") as caught:
        load(f"{path}-nowhere" if path == "data/smoke/llada" else path)
    assert has_remedy(str(caught.value))


def test_a_folder_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load(tmp_path)


@pytest.mark.usefixtures("nowhere")
def test_a_data_set_that_cannot_be_had_is_named_within_seconds() -> None:
    pytest.importorskip("datasets")
    begin = time.process_time(), time.perf_counter()
    with pytest.raises(DataError, match="absent/rows") as caught:
        load_rows(None, ("absent/rows",), "train")
    assert time.perf_counter() - begin[1] < SECONDS + 10 * (time.process_time() - begin[0])
    assert has_remedy(str(caught.value))


@pytest.mark.parametrize("use", [store.connect, lambda uri: store.reading(uri).__enter__()], ids=["connect", "reading"])
def test_a_tracking_server_that_never_answers_is_named_within_seconds(use: Callable[[str], Any], silent: str) -> None:
    import mlflow  # noqa: F401 (its import is no part of the time)

    begin = time.process_time(), time.perf_counter()
    with pytest.raises(SettingsError, match=r"tracking store .* cannot be used \(no answer within 3 seconds\)"):
        use(silent)
    assert time.perf_counter() - begin[1] < SECONDS + 10 * (time.process_time() - begin[0])
