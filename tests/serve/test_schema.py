"""Whatever the OpenAPI schema allows or forbids, the server answers it without failing itself."""

from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import make_run
from twingpt.data.tokens.tokenizer import Tokenizer

schemathesis = pytest.importorskip("schemathesis", reason="pip install schemathesis")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from schemathesis import GenerationMode  # noqa: E402

from twingpt.serve.app import create_app  # noqa: E402
from twingpt.serve.security import Access, allowed_hosts  # noqa: E402
from twingpt.serve.service import Limits, open_service  # noqa: E402

pytestmark = pytest.mark.slow


def test_no_server_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "my-run", tokenizer)
    service = open_service(run_dir, "mlx", "cpu", slots=2, limits=Limits(max_tokens=8))
    app = create_app(service, Access(hosts=allowed_hosts("127.0.0.1") | {"testserver"}))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    statuses: dict[str, set[int]] = {}
    for found in schema.get_all_operations():
        operation = found.ok()

        # Not by the pytest plugin, which lags behind pytest.
        @given(case=st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode)))
        @settings(max_examples=80, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def check(case: Any) -> None:
            response = case.call()
            statuses.setdefault(case.operation.label, set()).add(response.status_code)
            assert response.status_code < 500, response.text

        check()
    service.worker.stop()
    # It was reached with requests that are good and with some that are not.
    assert 200 in statuses["POST /v1/completions"]
    assert 400 in statuses["POST /v1/completions"]
    assert 400 in statuses["POST /v1/chat/completions"]
    assert len(statuses) == 8
